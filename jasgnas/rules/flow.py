"""Abstract interpretation of programs: zeros flow forwards, needs flow backwards; calls are entered.

Nothing is computed and no parameter value is looked at: all that is known is which entries of the inputs are zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Literal, Program
from jasgnas.program.masks import NOTHING, Need, Zeros, everything, union, unknown, without, zeros
from jasgnas.rules import needs_of, zeros_of

# Constants larger than this are not searched for zeros.
_LARGEST_CONSTANT = 4096


@dataclass(frozen=True, eq=False)
class ZeroFlow:
    """What is known to be zero throughout a program.

    Attributes:
        zeros: zeros of each variable.
        bodies: the same for the programs that equations call, by position of the equation.
    """

    zeros: dict[int, Zeros]
    bodies: dict[int, "ZeroFlow"] = field(default_factory=dict)

    def read(self, atom: Atom) -> Zeros:
        """Returns what is known of an operand."""
        return of_literal(atom) if isinstance(atom, Literal) else self.zeros[atom]


@dataclass(frozen=True, eq=False)
class NeedFlow:
    """What is needed throughout a program.

    Attributes:
        needs: need of each variable that is needed at all.
        bodies: the same for the programs that equations call, by position of the equation.
    """

    needs: dict[int, Need]
    bodies: dict[int, "NeedFlow"] = field(default_factory=dict)

    def read(self, var: int) -> Need:
        """Returns which entries of a variable are needed."""
        return self.needs.get(var, NOTHING)

    def add(self, atom: Atom, need: Need) -> None:
        """Records one more need of a variable."""
        if isinstance(atom, int):
            self.needs[atom] = union(self.read(atom), need)


def of_literal(literal: Literal) -> Zeros:
    """Returns what is known of an operand that is written into the equation."""
    ndim = np.ndim(literal.value)
    if ndim or not isinstance(literal.aval.dtype, np.dtype):
        return unknown(ndim)
    value = np.asarray(literal.value, literal.aval.dtype)[()]
    return Zeros((), value, entries=lambda: value)


def of_constant(value: Any, ndim: int) -> Zeros:
    """Returns what is known of a constant array."""
    held = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_fully_addressable
    if not (held or isinstance(value, np.ndarray)):
        return unknown(ndim)
    if value.size > _LARGEST_CONSTANT or not isinstance(value.dtype, np.dtype):
        return Zeros((None,) * ndim, entries=lambda: value)
    is_set = np.asarray(value) != 0
    known = zeros(~is_set.any(tuple(i for i in range(ndim) if i != axis)) for axis in range(ndim)) if ndim else None
    if known is None or not known.anywhere:
        return Zeros((None,) * ndim, None if ndim else np.asarray(value)[()], entries=lambda: value)
    return known._replace(entries=lambda: value)


def propagate_zeros(program: Program, inputs: Sequence[Zeros]) -> ZeroFlow:
    """Derives which entries of every value are zero from the zeros of the inputs."""
    flow = ZeroFlow(dict(zip(program.inputs, inputs, strict=True)))
    for var, value in program.constants.items():
        flow.zeros[var] = of_constant(value, len(program.avals[var].shape))
    for position, eqn in enumerate(program.equations):
        operands = [flow.read(atom) for atom in eqn.inputs]
        if eqn.body is None:
            results = zeros_of(eqn, operands)
        else:
            inner = flow.bodies[position] = propagate_zeros(eqn.body, operands)
            results = [inner.read(atom) for atom in eqn.body.outputs]
        flow.zeros.update(zip(eqn.outputs, results, strict=True))
    return flow


def full_zero_flow(program: Program) -> ZeroFlow:
    """Returns the zeros of a program nothing of which has been removed."""
    return propagate_zeros(program, [unknown(len(program.avals[var].shape)) for var in program.inputs])


def propagate_needs(program: Program, flow: ZeroFlow, outputs: Sequence[Need]) -> NeedFlow:
    """Derives which entries of every value the needed entries of the outputs depend on, given the zeros."""
    needs = NeedFlow({})
    for atom, need in zip(program.outputs, outputs, strict=True):
        needs.add(atom, without(need, flow.read(atom)))
    for position in reversed(range(len(program.equations))):
        eqn = program.equations[position]
        results = [without(needs.read(var), flow.zeros[var]) for var in eqn.outputs]
        if all(need == NOTHING for need in results):
            continue
        for atom, need in zip(eqn.inputs, _operand_needs(eqn, position, flow, needs, results), strict=True):
            needs.add(atom, without(need, flow.read(atom)))
    return needs


def _operand_needs(
    eqn: Equation, position: int, flow: ZeroFlow, needs: NeedFlow, results: Sequence[Need]
) -> Sequence[Need]:
    if eqn.body is None:
        return needs_of(eqn, [flow.read(atom) for atom in eqn.inputs], results)
    inner = needs.bodies[position] = propagate_needs(eqn.body, flow.bodies[position], results)
    return [inner.read(var) for var in eqn.body.inputs]


def all_needed(program: Program) -> list[Need]:
    """Returns the need of every output in full."""
    return [everything(len(_ndim(program, atom))) for atom in program.outputs]


def _ndim(program: Program, atom: Atom) -> Sequence[int]:
    return program.avals[atom].shape if isinstance(atom, int) else np.shape(atom.value)
