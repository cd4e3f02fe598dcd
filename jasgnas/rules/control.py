"""Rules for loops and conditions: what is zero after them, given what is zero before.

A recurrent layer whose state starts at zero returns zeros if its parameters are zero, although its state would be kept
at whatever it is: an LSTM halves its cell, 0.5 · c + 0.5 · tanh(0). So the zeros of what a loop carries are followed
through its body until they stay as they are. What is zero at first, and after an iteration before which it is, is zero
after any number of them.

Loops and conditions are evaluated at full width.
"""

from collections.abc import Callable, Sequence

from jasgnas.program.jaxpr import Equation, Program
from jasgnas.program.masks import Zeros, broken, meet, same
from jasgnas.program.scans import scan_arity
from jasgnas.rules.base import Rule, register
from jasgnas.rules.flow import propagate_zeros


class Scan(Rule):
    """A loop over the rows of arrays, such as the steps of time."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (body,) = eqn.inner
        num_consts, num_carry = scan_arity(eqn, body)
        constants, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        rows = [_row(value) for value in operands[num_consts + num_carry :]]
        results = _settled(carry, lambda carry: _results(body, [*constants, *carry, *rows]))
        return [*results[:num_carry], *map(_stack, results[num_carry:])]


class While(Rule):
    """A loop that goes on as long as a condition holds."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        _, body = eqn.inner
        first, second = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        constants, carry = operands[first:second], operands[second:]
        return _settled(carry, lambda carry: _results(body, [*constants, *carry]))


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
    is_sure = not any(value.is_broken or value.is_infinite for value in values)
    return meet(values) if is_sure else broken(len(values[0].axes))


def _settled(carry: Sequence[Zeros], run: Callable[[Sequence[Zeros]], list[Zeros]]) -> list[Zeros]:
    """Returns what is known of the results of a loop's body in any of its iterations, and of what is carried after all.

    Args:
        carry: what is known of what is carried at first.
        run: the body, of which the first results are carried on.
    """
    while True:
        results = run(carry)
        # An infinity that is carried on would not be known as one any more.
        if any(value.is_broken or value.is_infinite for value in results):
            return [broken(len(value.axes)) for value in results]
        # There may be no iteration at all.
        after = [meet([before, now]) for before, now in zip(carry, results, strict=False)]
        if all(a.everywhere == b.everywhere and same(a.axes, b.axes) for a, b in zip(carry, after, strict=True)):
            return [*after, *results[len(carry) :]]
        carry = after


def _row(value: Zeros) -> Zeros:
    """Returns what is known of any row of a value."""
    return Zeros(value.axes[1:], value.constant)


def _stack(row: Zeros) -> Zeros:
    """Returns what is known of a stack of such rows."""
    return row._replace(axes=(None, *row.axes), entries=None)


register(Scan(), "scan")
register(While(), "while")
register(Condition(), "cond")
