"""Proofs that a part of a network stays zero when some of its parameters do, and which parameters that takes.

Zero-invariance is never looked up by the name of a layer: the zeros of the parameters are followed through the
equations of the part (arXiv 2305.18030, definition 3.2).
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jasgnas.graph.build import Graph, Operator
from jasgnas.program.jaxpr import Atom, Literal
from jasgnas.program.masks import NOTHING, Need, Zeros, coarsened, everything, same, union, without, zero, zeros
from jasgnas.rules import needs_of, zeros_of
from jasgnas.rules.flow import of_literal


class Range(NamedTuple):
    """Indices of one axis of a part.

    Attributes:
        part: index of the part, which is a whole leaf.
        axis: the axis.
        mask: the indices, bool `[size of the axis]`.
    """

    part: int
    axis: int
    mask: np.ndarray


class Effect(NamedTuple):
    """What a zero range does to the parameters of an operator.

    Attributes:
        operator: index of the operator.
        ranges: the parameters that act on the range, or meet nothing but its zeros.
        joins: whether they must be zero themselves for the range to stay zero; the others are merely of no use.
    """

    operator: int
    ranges: list[Range]
    joins: bool


class Prover:
    """Follows zeros from parameters through parts of a network."""

    def __init__(self, graph: Graph):
        """Prepares a graph."""
        self._graph = graph
        self._program = graph.program
        held = {var for variables in graph.part_vars for var in variables}
        self._static_producer = {
            var: position
            for position, eqn in enumerate(graph.program.equations)
            for var in eqn.outputs
            if var in graph.static_parts and var not in held
        }

    def zeros_of(self, operators: Iterable[int], parts: Iterable[int]) -> dict[int, Zeros]:
        """Returns what is known of the results of a chain of operators when parts are zero, whatever its input."""
        variables = [var for part in parts for var in self._graph.part_vars[part]]
        known = {var: zero(len(self._program.avals[var].shape)) for var in variables}
        for operator in operators:
            self.extend(self._graph.operators[operator], known)
        return known

    def output(self, operator: int) -> tuple[int, ...]:
        """Returns the variables that an operator hands on."""
        return self._program.equations[self._graph.operators[operator].equations[-1]].outputs

    def follow(self, operator: int, known: dict[int, Zeros], eligible: frozenset[int]) -> Iterator[Effect]:
        """Follows a zero range beyond an operator, as far as parameters can keep it zero.

        A concatenation makes a range of channels of an operator's zero output. The parameters that act on that range
        up to the next stem are yielded, operator by operator, and are taken to be zero from there on; then those of
        the stem that meet nothing but zeros.

        Args:
            operator: the operator whose output is zero.
            known: what is known to be zero so far; extended on the way.
            eligible: parts that may be asked to be zero on a range; whole leaves.
        """
        pending = list(self._graph.consumers[operator])
        heapq.heapify(pending)
        seen = set(pending)
        while pending:
            current = self._graph.operators[heapq.heappop(pending)]
            if current.kind == "unknown":
                continue
            if current.parts:
                if ranges := self._held(current, known, eligible):
                    yield Effect(current.index, ranges, joins=True)
                elif current.kind == "stem":
                    yield Effect(current.index, self._idle(current, known), joins=False)
                    continue
            self.extend(current, known)
            if any(self._gained(var, known) for var in self.output(current.index)):
                for consumer in self._graph.consumers[current.index]:
                    if consumer not in seen:
                        seen.add(consumer)
                        heapq.heappush(pending, consumer)

    def passes_zeros(self, operators: Iterable[int], source: int) -> bool:
        """Tells whether a chain of operators is zero, whatever its parameters, where what it reads of `source` is."""
        chain = [self._graph.operators[operator] for operator in operators]
        read = self.inputs(chain[0])
        given = self.output(source)
        known = {var: zero(len(self._program.avals[var].shape)) for var in read if var in given}
        for operator in chain:
            self.extend(operator, known)
        return all(known[var].everywhere for var in self.output(chain[-1].index))

    def _gained(self, var: int, known: Mapping[int, Zeros]) -> bool:
        """Tells whether more of a variable is zero than in the full network."""
        value = known.get(var)
        if value is None:
            return False
        whole = everything(len(value.axes))
        return not same(without(whole, value), without(whole, self._graph.zeros[var]))

    def _held(self, operator: Operator, known: dict[int, Zeros], eligible: frozenset[int]) -> list[Range]:
        """Finds the ranges of an operator's parameters that act on the zero range of its input, and on nothing else.

        They are taken to be zero if that, or nothing more, keeps the range zero.
        """
        result, *others = self.output(operator.index)
        shape = self._program.avals[result].shape
        if others:
            return []
        for var in self.inputs(operator):
            value = known.get(var)
            if value is None or not self._gained(var, known) or len(value.axes) != len(shape):
                continue
            for axis, mask in enumerate(value.axes):
                if mask is None or len(mask) != shape[axis]:
                    continue
                ranges = self._acting(operator, var, axis, mask, eligible)
                if not ranges:
                    continue
                tried = dict(known)
                for part, part_axis, part_mask in ranges:
                    (held,) = self._graph.part_vars[part]
                    ndim = len(self._program.avals[held].shape)
                    tried[held] = zeros(part_mask if i == part_axis else None for i in range(ndim))
                self.extend(operator, tried)
                if not (mask & ~tried[result].axis(axis, shape[axis])).any():
                    known.update(tried)
                    return ranges
        return []

    def _acting(
        self, operator: Operator, var: int, axis: int, mask: np.ndarray, eligible: frozenset[int]
    ) -> list[Range]:
        """Returns the ranges of parameters that act on a range of the result's channels and on no other."""
        (result,) = self.output(operator.index)
        ndim = len(self._program.avals[result].shape)
        inside = self.needs(operator, {result: tuple(mask if i == axis else None for i in range(ndim))}, {})
        outside = self.needs(operator, {result: tuple(~mask if i == axis else None for i in range(ndim))}, {})
        if operator.kind == "stem" and not disjoint(inside.get(var, NOTHING), outside.get(var, NOTHING)):
            return []  # It mixes channels: the range ends here.
        ranges = []
        for part in operator.parts:
            if part not in eligible:
                continue
            (held,) = self._graph.part_vars[part]
            need, other = inside.get(held, NOTHING), outside.get(held, NOTHING)
            if need != NOTHING and disjoint(need, other):
                axes = [i for i, taken in enumerate(need) if taken is not None]
                if len(axes) == 1 and (taken := need[axes[0]]) is not None:
                    ranges.append(Range(part, axes[0], taken))
        return ranges

    def _idle(self, operator: Operator, known: Mapping[int, Zeros]) -> list[Range]:
        """Returns the ranges of an operator's parameters that meet nothing but zeros."""
        whole: dict[int, Need] = {
            var: everything(len(self._program.avals[var].shape)) for var in self.output(operator.index)
        }
        before = self.needs(operator, whole, {})
        after = self.needs(operator, whole, known)
        ranges = []
        for part in operator.parts:
            for held in self._graph.part_vars[part]:
                old, new = before.get(held, NOTHING), after.get(held, NOTHING)
                if old == NOTHING or new == NOTHING:
                    continue
                for axis, (was, still) in enumerate(zip(old, new, strict=True)):
                    if was is None and still is not None:
                        ranges.append(Range(part, axis, ~still))
        return ranges

    def needs(self, operator: Operator, results: dict[int, Need], known: Mapping[int, Zeros]) -> dict[int, Need]:
        """Returns which entries of what an operator reads some entries of its results depend on."""
        needs = dict(results)
        for position in reversed(sorted([*operator.equations, *self._static_equations(operator)])):
            eqn = self._program.equations[position]
            wanted = [needs.get(var, NOTHING) for var in eqn.outputs]
            if all(need == NOTHING for need in wanted):
                continue
            operands = [self.read(atom, known) for atom in eqn.inputs]
            for atom, asked in zip(eqn.inputs, needs_of(eqn, operands, wanted), strict=True):
                if isinstance(atom, int):
                    needs[atom] = union(needs.get(atom, NOTHING), asked)
        return {var: coarsened(need) for var, need in needs.items()}

    def inputs(self, operator: Operator) -> list[int]:
        """Returns the data-dependent variables that an operator reads from others."""
        equations = [self._program.equations[position] for position in operator.equations]
        own = {var for eqn in equations for var in eqn.outputs}
        read = dict.fromkeys(atom for eqn in equations for atom in eqn.inputs if isinstance(atom, int))
        return [var for var in read if var not in own and var not in self._graph.static_parts]

    def _static_equations(self, operator: Operator) -> set[int]:
        """Returns the equations on leaves and constants alone that an operator depends on."""
        found: set[int] = set()
        pending: list[Atom] = [a for p in operator.equations for a in self._program.equations[p].inputs]
        while pending:
            atom = pending.pop()
            position = self._static_producer.get(atom) if isinstance(atom, int) else None
            if position is not None and position not in found:
                found.add(position)
                pending.extend(self._program.equations[position].inputs)
        return found

    def extend(self, operator: Operator, known: dict[int, Zeros]) -> None:
        """Extends what is known over the equations of an operator, those on its leaves included."""
        for position in sorted([*operator.equations, *self._static_equations(operator)]):
            eqn = self._program.equations[position]
            results = zeros_of(eqn, [self.read(atom, known) for atom in eqn.inputs])
            known.update(zip(eqn.outputs, results, strict=True))

    def read(self, atom: Atom, known: Mapping[int, Zeros]) -> Zeros:
        """Returns what is known of an operand, be it only what holds in the full network."""
        if isinstance(atom, Literal):
            return of_literal(atom)
        return known.get(atom, self._graph.zeros[atom])


def disjoint(first: Need, second: Need) -> bool:
    """Tells whether two needs have no entry in common."""
    if first == NOTHING or second == NOTHING:
        return True
    pairs = zip(first, second, strict=True)
    return any(a is not None and b is not None and not (a & b).any() for a, b in pairs)
