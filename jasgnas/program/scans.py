"""Scans, opened up: each layer of a scanned stack, or of a shared block, gets equations of its own.

A scan over the steps of time is none of these: it reads another row of the data in every iteration. It is evaluated as
a loop; to be looked into it is unfolded to a few iterations, which stand for all (`unfolded`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jasgnas.program.jaxpr import ITERATION, Atom, Equation, Literal, Program, abstract, aval_of, trace

# A block that is applied more often than this is no stack of layers.
_MOST_SHARED_LAYERS = 64


def unroll(program: Program, is_leaf: Sequence[bool]) -> Program:
    """Opens up every `scan` over stacked leaves, so that each layer of a scanned stack has equations of its own.

    Likewise one that applies the same leaves to nothing but what it carries: a block that is applied several times.

    Args:
        program: a nested program.
        is_leaf: for each of its inputs, whether it is a leaf (or computed from leaves alone).
    """
    if not _has_scan(program):
        return program
    avals = dict(program.avals)
    # Variables that depend on leaves and constants alone, and whether any leaf is among them.
    on_leaves = dict.fromkeys(program.constants, False)
    on_leaves |= {var: True for var, leaf in zip(program.inputs, is_leaf, strict=True) if leaf}
    equations: list[Equation] = []

    def depends_on_leaves(atom: Atom) -> bool:
        return isinstance(atom, int) and on_leaves.get(atom, False)

    def is_data(atom: Atom) -> bool:
        return isinstance(atom, int) and atom not in on_leaves

    def add(eqn: Equation) -> None:
        if all(isinstance(atom, Literal) or atom in on_leaves for atom in eqn.inputs):
            on_leaves.update(dict.fromkeys(eqn.outputs, any(map(depends_on_leaves, eqn.inputs))))
        if eqn.body is not None:
            eqn = replace(eqn, body=unroll(eqn.body, [depends_on_leaves(atom) for atom in eqn.inputs]))
        equations.append(eqn)

    def call(
        sources: tuple, name: str, body: Program, operands: Sequence[Atom], outputs: Sequence[int] | None = None
    ) -> list[int]:
        out_avals = tuple(aval_of(body, atom) for atom in body.outputs)
        if outputs is None:
            outputs = range(len(avals), len(avals) + len(out_avals))
            avals.update(zip(outputs, out_avals, strict=True))
        in_avals = tuple(body.avals[var] for var in body.inputs)
        add(Equation(name, _no_bind, {}, tuple(operands), tuple(outputs), in_avals, out_avals, body, sources=sources))
        return list(outputs)

    for eqn in program.equations:
        if eqn.primitive != "scan":
            add(eqn)
            continue
        (body,) = eqn.inner
        num_consts, num_carry = scan_arity(eqn, body)
        rows = eqn.inputs[num_consts + num_carry :]
        is_shared = (
            eqn.params["length"] <= _MOST_SHARED_LAYERS
            and any(map(depends_on_leaves, eqn.inputs[:num_consts]))
            and any(map(is_data, eqn.inputs[num_consts : num_consts + num_carry]))
            and not any(map(is_data, rows))
        )
        if is_shared or any(map(depends_on_leaves, rows)):
            _unroll_scan(eqn, body, partial(call, eqn.sources))
        else:
            add(eqn)
    return replace(program, equations=tuple(equations), avals=avals)


class Course(NamedTuple):
    """How the iterations of a loop resemble each other: after some of them each is like the one a period before.

    Attributes:
        settled: the number of iterations from which on they recur.
        period: the number of iterations after which they do.
    """

    settled: int
    period: int

    @property
    def num_different(self) -> int:
        """The number of iterations that stand for all."""
        return self.settled + self.period

    def like(self, iteration: int) -> int:
        """Returns the first iteration that is like one."""
        return min(iteration, self.settled + (iteration - self.settled) % self.period)


def unfolded(eqn: Equation, is_data: Sequence[bool], course: Course) -> Program:
    """Returns the first iterations of a `scan`, which stand for all of them, as a program to be looked at.

    They read any rows (`loop_row`), and the first starts from what is carried then (`loop_start`). Each row of the
    results is that of an iteration (`loop_rows`), and what is carried out of the loop that of one (`loop_end`): the
    parameter `read` says which, for what depends on what. What is computed goes by all of them, as the loop computes in
    every iteration what it makes use of in any: an equation of the body counts once, as often as the loop runs. What is
    computed by the program has the shapes of the loop's results, not their values.

    Args:
        eqn: the `scan`. The program takes its operands, and then the number of an iteration.
        is_data: for each operand, whether it depends on the network input. A row of others depends on the iteration,
            and so does a state that starts from them.
        course: which iterations stand for all.
    """
    (body,) = eqn.inner
    num_consts, num_carry = scan_arity(eqn, body)
    avals = dict(enumerate((*eqn.in_avals, ITERATION)))
    equations: list[Equation] = []

    def add(name: str, operands: Sequence[int], out_avals: Sequence[Any], **fields: Any) -> tuple[int, ...]:
        outputs = tuple(range(len(avals), len(avals) + len(out_avals)))
        avals.update(zip(outputs, out_avals, strict=True))
        made = Equation(
            primitive=name,
            bind=binds.get(name, _no_bind),
            params=fields.pop("params", {}),
            inputs=tuple(operands),
            outputs=outputs,
            in_avals=tuple(avals[var] for var in operands),
            out_avals=tuple(out_avals),
            sources=eqn.sources,
            **fields,
        )
        equations.append(made)
        return outputs

    length = eqn.params["length"]
    binds: dict[str, Callable[..., list[Any]]] = {
        "loop_row": lambda rows, *_: [rows[0]],
        "loop_start": lambda state, *_: [state],
        "loop_state": lambda state, *_: [state],
        "loop_rows": lambda row, *_: [jnp.broadcast_to(row, (length, *row.shape))],
        "loop_end": lambda state, *_: [state],
    }
    inputs = tuple(avals)
    *operands, iteration = inputs

    def taken(name: str, first: int, last: int) -> list[int]:
        """Returns what operands are in an iteration."""
        return [
            add(name, [var] if own else [var, iteration], [body.avals[inner]])[0]
            for var, own, inner in list(zip(operands, is_data, body.inputs, strict=True))[first:last]
        ]

    def carried(before: Sequence[int], after: Sequence[int]) -> list[int]:
        """Returns the states before the next iteration."""
        return [
            add("loop_state", [after[place], var], [avals[var]], params={"read": (0,)})[0] if place in changing else var
            for place, var in enumerate(before)
        ]

    changing = changing_states(eqn, body)
    carry = taken("loop_start", num_consts, num_consts + num_carry)
    found: list[tuple[int, ...]] = []
    for number in range(course.num_different):
        own = [*operands[:num_consts], *carry, *taken("loop_row", num_consts + num_carry, len(operands))]
        # The one in the middle is neither without what is carried into it nor without use.
        often = length if number == course.num_different // 2 else 0
        found.append(add("step", own, [aval_of(body, atom) for atom in body.outputs], body=body, repeats=often))
        carry = carried(carry, found[-1])
    numbers = [course.like(number) for number in range(length)]
    last = {"read": (numbers[-1],)}
    each_row = {"read": tuple(reversed(numbers) if eqn.params["reverse"] else numbers)}
    results = [
        add("loop_end", several, [aval], params=last)
        if position < num_carry
        else add("loop_rows", several, [aval], params=each_row)
        for position, (several, aval) in enumerate(zip(zip(*found, strict=True), eqn.out_avals, strict=True))
    ]
    return Program(inputs, tuple(var for (var,) in results), tuple(equations), avals)


def is_step(eqn: Equation) -> bool:
    """Tells whether an equation is a call that the opening up of a scan has made, and no primitive of JAX."""
    return eqn.bind is _no_bind


def _has_scan(program: Program) -> bool:
    return any(eqn.primitive == "scan" or (eqn.body is not None and _has_scan(eqn.body)) for eqn in program.equations)


def scan_arity(eqn: Equation, body: Program) -> tuple[int, int]:
    """Returns how many operands of a scan are constants and how many are carried; the others are stacked.

    The parameters that say so differ between versions of JAX; that what is stacked has one more axis outside does not.
    """
    num_stacked = sum(
        len(aval.shape) > len(body.avals[var].shape) for aval, var in zip(eqn.in_avals, body.inputs, strict=True)
    )
    num_carry = sum(
        len(aval.shape) == len(aval_of(body, atom).shape)
        for aval, atom in zip(eqn.out_avals, body.outputs, strict=True)
    )
    return len(eqn.inputs) - num_carry - num_stacked, num_carry


def changing_states(eqn: Equation, body: Program) -> list[int]:
    """Returns what a scan carries, by place, and does not hand on as it is."""
    num_consts, num_carry = scan_arity(eqn, body)
    return [place for place in range(num_carry) if body.outputs[place] != body.inputs[num_consts + place]]


def _unroll_scan(eqn: Equation, body: Program, call: Callable[..., list[int]]) -> None:
    """Emits the steps of a scan, each a call of its body, in the order in which they run."""
    num_consts, num_carry = scan_arity(eqn, body)
    consts, carry = eqn.inputs[:num_consts], list(eqn.inputs[num_consts : num_consts + num_carry])
    stacked = eqn.inputs[num_consts + num_carry :]
    stacked_avals = eqn.in_avals[num_consts + num_carry :]
    length = eqn.params["length"]
    collected: dict[int, list[int]] = {}
    for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
        taken = [
            call("take", trace(lambda x, i=step: jax.lax.index_in_dim(x, i, keepdims=False), abstract(aval)), [atom])[0]
            for atom, aval in zip(stacked, stacked_avals, strict=True)
        ]
        results = call("step", body, [*consts, *carry, *taken])
        carry, collected[step] = list(results[:num_carry]), results[num_carry:]
    call("carry", _identity([aval_of(body, atom) for atom in body.outputs[:num_carry]]), carry, eqn.outputs[:num_carry])
    for position, output in enumerate(eqn.outputs[num_carry:]):
        rows = [collected[step][position] for step in range(length)]
        row_aval = abstract(aval_of(body, body.outputs[num_carry + position]))
        call("stack", trace(lambda *xs: jnp.stack(xs), *[row_aval] * length), rows, [output])


def _identity(avals: Sequence[Any]) -> Program:
    return Program(tuple(range(len(avals))), tuple(range(len(avals))), (), dict(enumerate(avals)))


def _no_bind(*operands: Any, **changes: Any) -> list[Any]:
    raise AssertionError("a step of an unrolled scan is evaluated through its body")
