"""Abstract interpretation of programs: zeros flow forwards, needs flow backwards; calls are entered.

Degrees of homogeneity flow forwards, too, through programs without calls.

Nothing is computed and no parameter value is looked at: all that is known is which entries of the inputs are zero.
"""

from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Literal, Program, aval_of
from jasgnas.program.masks import NOTHING, Need, Zeros, everything, union, unknown, without, zero_at
from jasgnas.rules.base import degrees_of, needs_of, zeros_of
from jasgnas.rules.degrees import ANY, CONSTANT, Degree

# Constants larger than this are not searched for zeros.
_LARGEST_CONSTANT = 4096

_Value = TypeVar("_Value", Zeros, Need)


class Answers:
    """What rules answer, asked anew each time."""

    def of_literal(self, literal: Literal) -> Zeros:
        """Returns what is known of an operand that is written into the equation."""
        return of_literal(literal)

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        """Returns what is known of each result of an equation, given what is known of each operand."""
        return zeros_of(eqn, operands)

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        """Returns which entries of each operand the needed entries of the results depend on."""
        return needs_of(eqn, operands, results)

    def more(self, need: Need, added: Need, known: Zeros) -> Need:
        """Returns a need with another one added, of which the entries known to be zero are not needed."""
        return union(need, without(added, known))

    def one(self, value: _Value) -> _Value:
        """Returns the object that stands for all values that say the same."""
        return value


class RememberedAnswers(Answers):
    """What rules answer, each question asked once: for the same network with other zeros each time.

    Equations that are alike share their answers: in a stack of equal layers most of them are asked in the first layer.
    Values that say the same are made one object, so that questions are told apart by identity.
    """

    def __init__(self) -> None:
        """Remembers nothing yet."""
        self._kinds: dict[Hashable, int] = {}
        self._kind_of: dict[Equation, int] = {}
        self._literals: dict[Literal, Zeros] = {}
        self._values: dict[Hashable, Any] = {}
        # With each answer what was asked of is kept, lest its identity become that of something else.
        self._known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def of_literal(self, literal: Literal) -> Zeros:
        if literal not in self._literals:
            said = (literal.aval.dtype, np.shape(literal.value), str(literal.value))
            self._literals[literal] = self._values.setdefault(said, of_literal(literal))
        return self._literals[literal]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        key = (self._kind(eqn), *map(id, operands))
        found = self._known.get(key)
        if found is None:
            answer = [self.one(value) for value in zeros_of(eqn, operands)]
            found = self._known[key] = (answer, operands)
        return found[0]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        key = (self._kind(eqn), *map(id, operands), *map(id, results))
        found = self._known.get(key)
        if found is None:
            answer = [self.one(need) for need in needs_of(eqn, operands, results)]
            found = self._known[key] = (answer, (operands, results))
        return found[0]

    def more(self, need: Need, added: Need, known: Zeros) -> Need:
        key = ("more", id(need), id(added), id(known))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (self.one(union(need, without(added, known))), (need, added, known))
        return found[0]

    def one(self, value: _Value) -> _Value:
        known = value if isinstance(value, Zeros) else None
        if value == NOTHING or (known is not None and known.entries is not None):
            return value
        axes = value if known is None else known.axes
        masks = tuple([mask if mask is None else (mask.shape, mask.tobytes()) for mask in axes])
        said = None if known is None else (known.is_broken, type(known.constant), str(known.constant))
        return self._values.setdefault((masks, said), value)

    def _kind(self, eqn: Equation) -> int:
        kind = self._kind_of.get(eqn)
        if kind is None:
            kind = self._kind_of[eqn] = self._kinds.setdefault(eqn.kind, len(self._kinds))
        return kind


_ANEW = Answers()


@dataclass(frozen=True, eq=False)
class ZeroFlow:
    """What is known to be zero throughout a program, or a part of one.

    Attributes:
        zeros: zeros of each variable.
        bodies: the same for the programs that equations call, by position of the equation.
        answers: whom to ask.
    """

    zeros: MutableMapping[int, Zeros]
    bodies: dict[int, "ZeroFlow"] = field(default_factory=dict)
    answers: Answers = _ANEW

    def read(self, atom: Atom) -> Zeros:
        """Returns what is known of an operand."""
        return self.answers.of_literal(atom) if isinstance(atom, Literal) else self.zeros[atom]

    def through(self, equations: Iterable[tuple[int, Equation]]) -> "ZeroFlow":
        """Follows the zeros forwards through equations, given with their positions in order; returns itself."""
        for position, eqn in equations:
            operands = [self.read(atom) for atom in eqn.inputs]
            if eqn.body is None:
                results = self.answers.zeros(eqn, operands)
            else:
                inner = self.bodies[position] = propagate_zeros(eqn.body, operands)
                results = [inner.read(atom) for atom in eqn.body.outputs]
            self.zeros.update(zip(eqn.outputs, results, strict=True))
        return self


@dataclass(frozen=True, eq=False)
class NeedFlow:
    """What is needed throughout a program, or a part of one. Nobody needs an entry that is zero.

    Attributes:
        flow: the zeros.
        needs: need of each variable that is needed at all.
        bodies: the same for the programs that equations call, by position of the equation.
    """

    flow: ZeroFlow
    needs: dict[int, Need] = field(default_factory=dict)
    bodies: dict[int, "NeedFlow"] = field(default_factory=dict)

    def read(self, var: int) -> Need:
        """Returns which entries of a variable are needed."""
        return self.needs.get(var, NOTHING)

    def add(self, atoms: Iterable[Atom], needs: Iterable[Need]) -> "NeedFlow":
        """Records one more need of each of some operands or results; returns itself."""
        for atom, need in zip(atoms, needs, strict=True):
            if isinstance(atom, int) and need != NOTHING:
                self.needs[atom] = self.flow.answers.more(self.read(atom), need, self.flow.zeros[atom])
        return self

    def back_through(self, equations: Sequence[tuple[int, Equation]]) -> "NeedFlow":
        """Follows the needs backwards through equations, given as to `ZeroFlow.through`; returns itself."""
        for position, eqn in reversed(equations):
            results = [self.read(var) for var in eqn.outputs]
            if all(need == NOTHING for need in results):
                continue
            if eqn.body is None:
                operands = self.flow.answers.needs(eqn, [self.flow.read(atom) for atom in eqn.inputs], results)
            else:
                inner = self.bodies[position] = propagate_needs(eqn.body, self.flow.bodies[position], results)
                operands = [inner.read(var) for var in eqn.body.inputs]
            self.add(eqn.inputs, operands)
        return self


@dataclass(frozen=True, eq=False)
class DegreeFlow:
    """With which degree the values of an inlined program, or a part of one, grow with some of its parameters.

    Attributes:
        flow: the zeros.
        degrees: degree of each variable that may depend on these parameters; others do not.
    """

    flow: ZeroFlow
    degrees: dict[int, Degree]

    def read(self, atom: Atom) -> Degree:
        """Returns the degree of an operand or result."""
        if self.flow.read(atom).everywhere:
            return ANY
        return self.degrees.get(atom, CONSTANT) if isinstance(atom, int) else CONSTANT

    def through(self, equations: Iterable[tuple[int, Equation]]) -> "DegreeFlow":
        """Follows the degrees forwards through equations, given as to `ZeroFlow.through`; returns itself."""
        for _, eqn in equations:
            operands = [self.read(atom) for atom in eqn.inputs]
            self.degrees.update(zip(eqn.outputs, degrees_of(eqn, operands), strict=True))
        return self


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
    known = zero_at(~is_set.any(tuple(i for i in range(ndim) if i != axis)) for axis in range(ndim)) if ndim else None
    if known is None or not known.anywhere:
        return Zeros((None,) * ndim, None if ndim else np.asarray(value)[()], entries=lambda: value)
    return known._replace(entries=lambda: value)


def propagate_zeros(program: Program, inputs: Sequence[Zeros] = (), answers: Answers = _ANEW) -> ZeroFlow:
    """Derives which entries of every value are zero from the zeros of the first inputs; of others nothing is known."""
    zeros = {var: answers.one(unknown(len(program.avals[var].shape))) for var in program.inputs}
    flow = ZeroFlow(zeros, answers=answers)
    flow.zeros.update(zip(program.inputs, inputs, strict=False))
    for var, value in program.constants.items():
        flow.zeros[var] = of_constant(value, len(program.avals[var].shape))
    return flow.through(enumerate(program.equations))


def propagate_needs(program: Program, flow: ZeroFlow, outputs: Sequence[Need]) -> NeedFlow:
    """Derives which entries of every value the needed entries of the outputs depend on, given the zeros."""
    return NeedFlow(flow).add(program.outputs, outputs).back_through(list(enumerate(program.equations)))


def all_needed(program: Program) -> list[Need]:
    """Returns the need of every output in full."""
    return [everything(len(aval_of(program, atom).shape)) for atom in program.outputs]
