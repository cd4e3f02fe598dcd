"""Proofs that a part of a network stays zero when some of its parameters do, and which parameters that takes.

Zero-invariance is never looked up by the name of a layer: the zeros of the parameters are followed through the
equations of the part (arXiv 2305.18030, definition 3.2).
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jasgnas.analysis import of_literal
from jasgnas.evaluate import full_zero_flow
from jasgnas.graph import Graph, Operator
from jasgnas.jaxpr import Atom, Literal
from jasgnas.masks import NOTHING, Axes, Need, Zeros, everything, same, union, without, zero, zeros
from jasgnas.rules import rule_for


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


class Prover:
    """Follows zeros from parameters through parts of a network."""

    def __init__(self, graph: Graph):
        """Prepares a graph."""
        self._graph = graph
        self._program = graph.program
        self._baseline = full_zero_flow(graph.program)
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
            self._run(self._graph.operators[operator], known)
        return known

    def output(self, operator: int) -> tuple[int, ...]:
        """Returns the variables that an operator hands on."""
        return self._program.equations[self._graph.operators[operator].equations[-1]].outputs

    def follow(self, operator: int, known: dict[int, Zeros], eligible: frozenset[int]) -> Iterator[list[Range]]:
        """Follows a zero range beyond an operator, as far as parameters can keep it zero.

        A concatenation makes a range of channels of an operator's zero output. The parameters that act on that range
        up to the next stem are yielded, operator by operator, and are taken to be zero from there on.

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
            if current.kind in ("stem", "unknown"):
                continue
            if current.kind == "accessory" and current.parts and (ranges := self._held(current, known, eligible)):
                yield ranges
            self._run(current, known)
            if any(self._gained(var, known) for var in self.output(current.index)):
                for consumer in self._graph.consumers[current.index]:
                    if consumer not in seen:
                        seen.add(consumer)
                        heapq.heappush(pending, consumer)

    def _gained(self, var: int, known: Mapping[int, Zeros]) -> bool:
        """Tells whether more of a variable is zero than in the full network."""
        value = known.get(var)
        if value is None:
            return False
        whole = everything(len(value.axes))
        return not same(without(whole, value), without(whole, self._baseline.zeros[var]))

    def _held(self, operator: Operator, known: dict[int, Zeros], eligible: frozenset[int]) -> list[Range]:
        """Finds the ranges of an operator's parameters that act on the zero range of its input, and on nothing else.

        They are taken to be zero if that, or nothing more, keeps the range zero.
        """
        (result,) = self.output(operator.index)
        shape = self._program.avals[result].shape
        for var in self._inputs(operator):
            value = known.get(var)
            if value is None or not self._gained(var, known) or self._program.avals[var].shape != shape:
                continue
            for axis, mask in enumerate(value.axes):
                if mask is None:
                    continue
                ranges = self._acting(operator, result, axis, mask, eligible)
                if not ranges:
                    continue
                tried = dict(known)
                for part, part_axis, part_mask in ranges:
                    (held,) = self._graph.part_vars[part]
                    ndim = len(self._program.avals[held].shape)
                    tried[held] = zeros(part_mask if i == part_axis else None for i in range(ndim))
                self._run(operator, tried)
                if not (mask & ~tried[result].axis(axis, shape[axis])).any():
                    known.update(tried)
                    return ranges
        return []

    def _acting(
        self, operator: Operator, result: int, axis: int, mask: np.ndarray, eligible: frozenset[int]
    ) -> list[Range]:
        ndim = len(self._program.avals[result].shape)
        inside = self._part_needs(operator, result, tuple(mask if i == axis else None for i in range(ndim)))
        outside = self._part_needs(operator, result, tuple(~mask if i == axis else None for i in range(ndim)))
        ranges = []
        for part in operator.parts:
            need = inside.get(part, NOTHING)
            other = outside.get(part, NOTHING)
            if part not in eligible or need == NOTHING or other == NOTHING:
                continue
            axes = [i for i, taken in enumerate(need) if taken is not None]
            if len(axes) != 1:
                continue
            taken, rest = need[axes[0]], other[axes[0]]
            if taken is not None and rest is not None and not (taken & rest).any():
                ranges.append(Range(part, axes[0], taken))
        return ranges

    def _part_needs(self, operator: Operator, result: int, need: Axes) -> dict[int, Need]:
        """Returns which entries of each whole leaf some entries of an operator's result depend on."""
        needs: dict[int, Need] = {result: need}
        for position in reversed(sorted([*operator.equations, *self._static_equations(operator)])):
            eqn = self._program.equations[position]
            results = [needs.get(var, NOTHING) for var in eqn.outputs]
            if all(need == NOTHING for need in results):
                continue
            operands = [self._baseline.read(atom) for atom in eqn.inputs]
            for atom, asked in zip(eqn.inputs, rule_for(eqn.primitive).needs(eqn, operands, results), strict=True):
                if isinstance(atom, int):
                    needs[atom] = union(needs.get(atom, NOTHING), asked)
        held = {part: self._graph.part_vars[part][0] for part in operator.parts}
        return {part: needs[var] for part, var in held.items() if var in needs}

    def _inputs(self, operator: Operator) -> list[int]:
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

    def _run(self, operator: Operator, known: dict[int, Zeros]) -> None:
        """Extends what is known over the equations of an operator, those on its leaves included."""
        for position in sorted([*operator.equations, *self._static_equations(operator)]):
            eqn = self._program.equations[position]
            results = rule_for(eqn.primitive).zeros(eqn, [self._read(atom, known) for atom in eqn.inputs])
            known.update(zip(eqn.outputs, results, strict=True))

    def _read(self, atom: Atom, known: Mapping[int, Zeros]) -> Zeros:
        if isinstance(atom, Literal):
            return of_literal(atom)
        return known.get(atom, self._baseline.zeros[atom])
