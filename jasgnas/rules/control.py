"""Rules for loops and conditions: what is zero after them, given what is zero before.

A recurrent layer whose state starts at zero returns zeros if its parameters are zero, although its state would be kept
at whatever it is: an LSTM halves its cell, 0.5 · c + 0.5 · tanh(0). So the zeros of what a loop carries are followed
through its body until they stay as they are. What is zero at first, and after an iteration before which it is, is zero
after any number of them.

Scans are evaluated without what is zero or of no use in all of their iterations, other loops and conditions at full
width.
"""

from collections.abc import Sequence

from jasgnas.program.jaxpr import Equation, Program
from jasgnas.program.masks import NOTHING, Axes, Need, Zeros, broken, meet, same, union
from jasgnas.program.scans import scan_arity
from jasgnas.rules.base import PassThrough, Rule, Sourced, register
from jasgnas.rules.degrees import Degree, common
from jasgnas.rules.flow import NeedFlow, ZeroFlow, propagate_needs, propagate_zeros


class Scan(Rule):
    """A loop over the rows of arrays, such as the steps of time."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        flow = zeros_in_any_iteration(eqn, operands)
        (body,) = eqn.inner
        num_consts, num_carry = scan_arity(eqn, body)
        results = [flow.read(atom) for atom in body.outputs]
        if not all(map(_is_finite, results)):
            return [broken(len(aval.shape)) for aval in eqn.out_avals]
        # After an iteration it does not matter what was carried at first.
        at_first = [flow.zeros[var] for var in body.inputs[num_consts : num_consts + num_carry]]
        states = results[:num_carry] if eqn.params["length"] else at_first
        return [*states, *map(_stack, results[num_carry:])]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (body,) = eqn.inner
        num_consts, num_carry = scan_arity(eqn, body)
        flow = needs_in_any_iteration(eqn, zeros_in_any_iteration(eqn, operands), results)
        found = [flow.read(var) for var in body.inputs]
        first_rows = num_consts + num_carry
        return [*found[:first_rows], *(need if need == NOTHING else (None, *need) for need in found[first_rows:])]


class While(Rule):
    """A loop that goes on as long as a condition holds."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        _, body = eqn.inner
        first, second = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        flow = _settled(body, operands[first:second], operands[second:])
        if not all(_is_finite(flow.read(atom)) for atom in body.outputs):
            return [broken(len(aval.shape)) for aval in eqn.out_avals]
        return [flow.zeros[var] for var in body.inputs[second - first :]]


class LoopRow(PassThrough):
    """Any row of an operand, in a loop that is unfolded to be looked at (`scans.unfolded`)."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [(None, *range(len(eqn.out_avals[0].shape))), *[()] * (len(eqn.inputs) - 1)]


class LoopStart(PassThrough):
    """What is carried at the start of such a loop."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [tuple(range(len(eqn.out_avals[0].shape))), *[()] * (len(eqn.inputs) - 1)]


class LoopRows(Sourced):
    """A stack of rows of which each is one of the operands; what is computed goes by all of them."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return [_stack(_of_any(operands))]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        return [result[1:]] * len(eqn.inputs)

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [common(operands)]


class LoopEnd(Sourced):
    """What is carried at the end of such a loop: one of the operands; what is computed goes by all of them."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return [_of_any(operands)]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        return [result] * len(eqn.inputs)

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [common(operands)]


class Condition(Rule):
    """One of several branches, chosen by an index."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        branches = [_results(branch, operands[1:]) for branch in eqn.inner]
        return [_of_any(values) for values in zip(*branches, strict=True)]


def _results(program: Program, inputs: Sequence[Zeros]) -> list[Zeros]:
    flow = propagate_zeros(program, inputs)
    return [flow.read(atom) for atom in program.outputs]


def _of_any(values: Sequence[Zeros]) -> Zeros:
    """Returns what is known of a value that is one of several."""
    return meet(values) if all(map(_is_finite, values)) else broken(len(values[0].axes))


def _is_finite(value: Zeros) -> bool:
    return not (value.is_broken or value.is_infinite)


def zeros_in_any_iteration(eqn: Equation, operands: Sequence[Zeros]) -> ZeroFlow:
    """Returns what is zero in the body of a `scan` in each of its iterations, and after none, given its operands."""
    (body,) = eqn.inner
    num_consts, num_carry = scan_arity(eqn, body)
    first_rows = num_consts + num_carry
    rows = [Zeros(value.axes[1:], value.constant, value.is_broken) for value in operands[first_rows:]]
    return _settled(body, operands[:num_consts], operands[num_consts:first_rows], rows)


def needs_in_any_iteration(eqn: Equation, flow: ZeroFlow, results: Sequence[Need]) -> NeedFlow:
    """Returns what is needed in the body of a `scan` in some of its iterations.

    Args:
        eqn: the `scan`.
        flow: what is zero in its body.
        results: which entries of its results are needed.
    """
    (body,) = eqn.inner
    num_consts, num_carry = scan_arity(eqn, body)
    states = body.inputs[num_consts : num_consts + num_carry]
    rows = [need if need == NOTHING else need[1:] for need in results[num_carry:]]
    carried = list(results[:num_carry])
    while True:
        needs = propagate_needs(body, flow, [*carried, *rows])
        # What is carried at the start is what is left after no iteration.
        if eqn.params["length"] == 0:
            needs.add(states, results[:num_carry])
        after = [union(need, needs.read(var)) for need, var in zip(carried, states, strict=True)]
        if all(map(same, carried, after)):
            return needs
        carried = after


def _settled(body: Program, constants: Sequence[Zeros], carry: Sequence[Zeros], rows: Sequence[Zeros] = ()) -> ZeroFlow:
    """Returns what is zero in the body of a loop before and in each of its iterations.

    Args:
        body: it takes constants, what is carried, and rows, and returns first what is carried on.
        constants: what is known of the constants.
        carry: what is known of what is carried at first.
        rows: what is known of any row.
    """
    while True:
        flow = propagate_zeros(body, [*constants, *carry, *rows])
        results = [flow.read(atom) for atom in body.outputs]
        # An infinity that is carried on would not be known as one any more.
        if not all(map(_is_finite, results)):
            return propagate_zeros(body, [*constants, *(broken(len(value.axes)) for value in carry), *rows])
        # There may be no iteration at all.
        after = [meet([before, now]) for before, now in zip(carry, results, strict=False)]
        if all(map(_is_same, carry, after)):
            return flow
        carry = after


def _is_same(before: Zeros, after: Zeros) -> bool:
    """Tells whether no more was known of a state before an iteration than of that before any; of its value, too."""
    is_value_known = before.constant is not None or before.entries is not None
    return before.everywhere == after.everywhere and (
        before.everywhere or (not is_value_known and same(before.axes, after.axes))
    )


def _stack(row: Zeros) -> Zeros:
    """Returns what is known of a stack of such rows."""
    return row._replace(axes=(None, *row.axes), entries=None)


register(Scan(), "scan")
register(While(), "while")
register(Condition(), "cond")
register(LoopRow(), "loop_row")
register(LoopStart(), "loop_start")
register(LoopRows(), "loop_rows")
register(LoopEnd(), "loop_state", "loop_end")
