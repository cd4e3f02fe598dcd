"""Partial evaluation of a program at zeros: only the entries that are needed and not zero are computed.

A `Plan` fixes the layout of every value: entries that the zeros of the parameters made zero, or made useless, are not
stored. Where a rule cannot keep a range out, the zeros are put back: the result is larger, never different.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import RuleError
from jasgnas.program.jaxpr import Equation, Literal, Program, call_name, trace
from jasgnas.program.masks import (
    NOTHING,
    Layout,
    Need,
    Zeros,
    aligned,
    coarsened,
    everything,
    normalize,
    same,
    simplified,
    union,
    zero,
)
from jasgnas.program.scans import scan_arity
from jasgnas.program.sliced import Sliced
from jasgnas.rules import execute_of
from jasgnas.rules.control import needs_in_any_iteration, zeros_in_any_iteration
from jasgnas.rules.flow import NeedFlow, all_needed, propagate_needs, propagate_zeros

_Run = Callable[..., list[Any]]
"""A function of the stored arrays of the inputs of a program; returns those of its outputs."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How to evaluate a program.

    Attributes:
        program: the program.
        zeros: what is known to be zero in each of its inputs.
        layouts: layout of each variable that is stored at all.
        bodies: plans of the programs that equations call, and of the bodies of scans, by position of the equation.
    """

    program: Program
    zeros: tuple[Zeros, ...]
    layouts: dict[int, Layout]
    bodies: dict[int, "Plan"]

    def layout(self, var: int) -> Layout:
        """Returns the layout of a variable."""
        return self.layouts.get(var, NOTHING)

    @cached_property
    def last_uses(self) -> list[list[int]]:
        """For each equation, the variables that nothing reads after it."""
        last: dict[int, int] = {}
        for position, eqn in enumerate(self.program.equations):
            last |= dict.fromkeys((*(atom for atom in eqn.inputs if isinstance(atom, int)), *eqn.outputs), position)
        found: list[list[int]] = [[] for _ in self.program.equations]
        for var in last.keys() - set(self.program.outputs):
            found[last[var]].append(var)
        return found


def plan(program: Program, inputs: Sequence[Zeros], outputs: Sequence[Need]) -> Plan:
    """Plans the evaluation of a program, given the zeros of its inputs and what its outputs are needed for."""
    full = propagate_needs(program, propagate_zeros(program), all_needed(program))
    return plan_of(program, propagate_needs(program, propagate_zeros(program, inputs), outputs), full)


def plan_of(program: Program, needs: NeedFlow, full: NeedFlow) -> Plan:
    """Chooses the layout of every value from what is zero and needed of it.

    Args:
        program: the program.
        needs: needs and zeros of every value, with the removed parameters at zero.
        full: the same in the full network.
    """
    layouts: dict[int, Layout] = {}
    zeros, inputs = needs.flow.zeros, frozenset(program.inputs)
    for var, need in needs.needs.items():
        layout = choose_layout(zeros[var], need, full.flow.zeros[var], full.read(var))
        if layout != NOTHING:
            # Inputs may be stored by one mask over several axes, as the rows of stacked layers are, and calls take
            # them so; rules know one mask for each axis.
            layouts[var] = layout if var in inputs else coarsened(layout)
    bodies = {
        position: plan_of(body, inner, full.bodies[position])
        for position, inner in needs.bodies.items()
        if position in full.bodies and (body := program.equations[position].body) is not None
    }
    for position, eqn in enumerate(program.equations):
        if eqn.primitive != "scan":
            continue
        if all(any(flow.read(var) != NOTHING for var in eqn.outputs) for flow in (needs, full)):
            bodies[position] = plan_of(eqn.inner[0], _in_any_iteration(eqn, needs), _in_any_iteration(eqn, full))
    return Plan(program, tuple(zeros[var] for var in program.inputs), layouts, bodies)


def _in_any_iteration(eqn: Equation, needs: NeedFlow) -> NeedFlow:
    """Returns what is needed and zero in the body of a scan, given what is so around it."""
    flow = zeros_in_any_iteration(eqn, [needs.flow.read(atom) for atom in eqn.inputs])
    return needs_in_any_iteration(eqn, flow, [needs.read(var) for var in eqn.outputs])


def choose_layout(zeros: Zeros, need: Need, full_zeros: Zeros, full_need: Need) -> Layout:
    """Leaves out what is zero or useless now and was not so before.

    Entries that the full network computes in vain (padding, rows that a slice skips) are left alone: they cost it
    nothing extra, and which ones they are changes with the shape of the input.
    """
    if need == NOTHING or (zeros.everywhere and not full_zeros.everywhere):
        return NOTHING
    if full_zeros.everywhere or full_need == NOTHING:
        return everything(len(need))
    masks = []
    known = aligned([need, full_need], zeros=[zeros.axes, full_zeros.axes])
    for needed, needed_then, zero_now, zero_then in zip(*known, strict=True):
        dropped = []
        if zero_now is not None:
            dropped.append(zero_now if zero_then is None else zero_now & ~zero_then)
        if needed is not None:
            dropped.append(~needed if needed_then is None else ~needed & needed_then)
        masks.append(~np.logical_or.reduce(dropped) if dropped else None)
    return simplified(normalize(masks))


def evaluate(plan: Plan, inputs: Sequence[Sliced]) -> list[Sliced]:
    """Evaluates a program as planned; outputs come in the layouts of the plan.

    Inputs may come in any layout that stores all the entries the plan asks for.
    """
    program = plan.program
    env: dict[int, Sliced] = {}

    def write(var: int, value: Sliced) -> None:
        env[var] = value.to(plan.layout(var))

    def read(atom: Any) -> Sliced:
        return whole(atom.value, atom.aval) if isinstance(atom, Literal) else env[atom]

    def write_results(position: int) -> None:
        # In a function of its own, so that nothing but `env` holds on to operands and results once it returns.
        eqn = program.equations[position]
        layouts = [plan.layout(var) for var in eqn.outputs]
        results: Sequence[Sliced]
        if all(layout == NOTHING for layout in layouts):
            results = [Sliced(None, NOTHING, aval) for aval in eqn.out_avals]
        else:
            operands = [read(atom) for atom in eqn.inputs]
            if eqn.body is not None:
                results = _call(eqn, plan.bodies[position], operands)
            elif eqn.primitive == "scan" and position in plan.bodies:
                results = _loop(eqn, plan.bodies[position], operands, layouts)
            else:
                results = execute_of(eqn, [value.to(coarsened(value.layout)) for value in operands], layouts)
        for var, value in zip(eqn.outputs, results, strict=True):
            write(var, value)

    for var, value in zip(program.inputs, inputs, strict=True):
        write(var, value)
    for var, value in program.constants.items():
        write(var, whole(value, program.avals[var]))
    for position, unread in enumerate(plan.last_uses):
        write_results(position)
        for var in unread:
            del env[var]
    return [read(atom) for atom in program.outputs]


def _call(eqn: Equation, body: Plan, operands: Sequence[Sliced]) -> list[Sliced]:
    """Evaluates a call; names, rematerialisation and custom gradients are kept."""
    program = body.program
    in_layouts = [body.layout(var) for var in program.inputs]
    out_layouts = [body.layout(atom) if isinstance(atom, int) else everything(0) for atom in program.outputs]
    arrays = [value.to(layout).array for value, layout in zip(operands, in_layouts, strict=True)]
    run = stored_function(body, in_layouts, out_layouts)
    run.__name__ = call_name(eqn) or run.__name__
    if eqn.primitive in _CUSTOM_GRADIENTS:
        differentiable = all(jnp.issubdtype(aval.dtype, jnp.inexact) for aval in (*eqn.in_avals, *eqn.out_avals))
        custom = differentiable and _CUSTOM_GRADIENTS[eqn.primitive](eqn, body, run, in_layouts, out_layouts)
        if not custom:
            return list(map(whole, eqn.bind(*(value.full() for value in operands)), eqn.out_avals))
        run = custom
    match eqn.primitive:
        case "jit" if any(isinstance(array, jax.core.Tracer) for array in arrays):
            run = jax.jit(run)  # Outside of a trace this would compile every call anew.
        case "remat2" | "checkpoint":
            run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    try:
        results = run(*(array for array in arrays if array is not None))
    except RuleError as error:
        # What a function of JAX computes is on no line of the user's code, but its call is.
        error.add_note(f"in a call of {call_name(eqn) or eqn.primitive} at {eqn.where}")
        raise
    return _wrapped(results, out_layouts, eqn.out_avals)


def _loop(eqn: Equation, body: Plan, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> list[Sliced]:
    """Evaluates a scan with the body as planned; what is stored of a state is the same in all iterations."""
    program = body.program
    num_consts, num_carry = scan_arity(eqn, program)
    inside = [body.layout(var) for var in program.inputs]
    constants, states, taken = inside[:num_consts], inside[num_consts:][:num_carry], inside[num_consts + num_carry :]
    # A state that the body has no use for is carried on if it is wanted afterwards.
    states = list(map(union, states, layouts[:num_carry]))
    results = [
        NOTHING if wanted == NOTHING else body.layout(atom) if isinstance(atom, int) else everything(0)
        for atom, wanted in zip(program.outputs[num_carry:], layouts[num_carry:], strict=True)
    ]
    run = stored_function(body, [*constants, *states, *taken], [*states, *results])

    def stored(values: Sequence[Sliced], wanted: Sequence[Layout]) -> list[Any]:
        arrays = [value.to(layout).array for value, layout in zip(values, wanted, strict=True)]
        return [array for array in arrays if array is not None]

    given = stored(operands[:num_consts], constants)
    carry = stored(operands[num_consts:][:num_carry], states)
    rows = stored(operands[num_consts + num_carry :], list(map(_stacked, taken)))

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        found = run(*given, *carry, *row)
        return found[: len(carry)], found[len(carry) :]

    options = {name: eqn.params[name] for name in _OPTIONS if name in eqn.params}
    after, stacks = jax.lax.scan(step, carry, rows, **options)
    return _wrapped([*after, *stacks], [*states, *map(_stacked, results)], eqn.out_avals)


_OPTIONS = ("length", "reverse", "unroll", "_split_transpose")


def _stacked(row: Layout) -> Layout:
    """Returns the layout of a stack of rows of a layout."""
    return row if row == NOTHING else (None, *row)


def whole(array: Any, aval: Any) -> Sliced:
    """Wraps an array of which every entry is stored."""
    return Sliced(array, everything(len(aval.shape)), aval)


def _wrapped(arrays: Iterable[Any], layouts: Sequence[Layout], avals: Sequence[Any]) -> list[Sliced]:
    """Wraps stored arrays: one for each layout that stores anything."""
    stored = iter(arrays)
    return [
        Sliced(None if layout == NOTHING else next(stored), layout, aval)
        for layout, aval in zip(layouts, avals, strict=True)
    ]


def stored_function(
    plan: Plan, in_layouts: Sequence[Layout], out_layouts: Sequence[Layout]
) -> Callable[..., list[Any]]:
    """Returns a plan as a function from the stored arrays of its inputs to those of its outputs."""
    avals = [plan.program.avals[var] for var in plan.program.inputs]

    def run(*arrays: Any) -> list[Any]:
        results = zip(evaluate(plan, _wrapped(arrays, in_layouts, avals)), out_layouts, strict=True)
        return [value.to(layout).array for value, layout in results if layout != NOTHING]

    return run


def _with_custom_jvp(
    eqn: Equation, body: Plan, run: _Run, in_layouts: Sequence[Layout], out_layouts: Sequence[Layout]
) -> _Run:
    """Gives a sliced call the custom derivative of the full one, itself evaluated on stored entries only."""
    del body

    def full_jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        return jax.jvp(lambda *operands: eqn.bind(*operands), tuple(primals), tuple(tangents))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        program = trace(full_jvp, eqn.in_avals, eqn.in_avals)
        # An entry that is not stored is zero, or nobody asks for what depends on it; its tangent likewise.
        missing = [_missing(layout, aval) for layout, aval in zip(in_layouts, eqn.in_avals, strict=True)]
        layouts = [*out_layouts, *out_layouts]
        derivative = stored_function(plan(program, missing + missing, layouts), [*in_layouts, *in_layouts], layouts)
        results = derivative(*primals, *tangents)
        half = len(results) // 2
        return results[:half], results[half:]

    function = jax.custom_jvp(run)
    function.defjvp(jvp)
    return function


def _with_custom_vjp(
    eqn: Equation, body: Plan, run: _Run, in_layouts: Sequence[Layout], out_layouts: Sequence[Layout]
) -> _Run | None:
    """Gives a sliced call the custom derivative in reverse of the full one; None if that needs more than is stored.

    What the forward pass of the derivative hands to the backward pass is computed in the backward pass again.
    """

    def full_vjp(primals: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        return jax.vjp(lambda *operands: eqn.bind(*operands), *primals)[1](list(cotangents))

    program = trace(full_vjp, eqn.in_avals, eqn.out_avals)
    missing = [_missing(layout, aval) for layout, aval in zip(out_layouts, eqn.out_avals, strict=True)]
    derivative = plan(program, [*body.zeros, *missing], in_layouts)
    stored = [*in_layouts, *out_layouts]
    if not all(same(union(a, derivative.layout(var)), a) for a, var in zip(stored, program.inputs, strict=True)):
        return None
    backward = stored_function(derivative, stored, in_layouts)
    function = jax.custom_vjp(run)
    function.defvjp(
        lambda *arrays: (run(*arrays), arrays), lambda arrays, cotangents: tuple(backward(*arrays, *cotangents))
    )
    return function


_CUSTOM_GRADIENTS: dict[str, Callable[..., _Run | None]] = {
    "custom_jvp_call": _with_custom_jvp,
    "custom_vjp_call": _with_custom_vjp,
}


def _missing(layout: Layout, aval: Any) -> Zeros:
    if layout == NOTHING:
        return zero(len(aval.shape))
    return Zeros(tuple(None if mask is None else ~mask for mask in layout))
