"""What gates multiply in one mode of a network, and which parameters may be multiplied instead."""

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Program, depending
from jasgnas.program.masks import NOTHING, Need, coarsened, digit_masks
from jasgnas.rules import degrees_of
from jasgnas.rules.degrees import PROPORTIONAL
from jasgnas.rules.flow import DegreeFlow, NeedFlow, ZeroFlow, propagate_needs


class Place(NamedTuple):
    """A value that a gate multiplies, or that it may multiply instead.

    Attributes:
        value: the variable of the value; where the gate is, that of the product.
        axis: the axis of it along which the gate has its numbers, None if it has one for all.
        order: for each index of the axis, which number of the gate multiplies it, -1 for none.
        before: the equations whose needed readers all lead to the value, by position, and the last in which it is seen.
    """

    value: int
    axis: int | None
    order: np.ndarray
    before: frozenset[int]

    def factors(self, gate: np.ndarray) -> np.ndarray:
        """Returns what the value is multiplied by: one number, or one for each index of the axis."""
        return gate if self.axis is None else np.where(self.order < 0, 1, gate.reshape(-1)[self.order])


@dataclass(frozen=True, eq=False)
class Mode:
    """The network as it is called in one mode, without what has been removed.

    Attributes:
        program: its flat program, the first inputs of which are the leaves.
        flow: what is zero in it, whatever the gates are that may be folded.
        wanted: which entries of the outputs of the program are needed.
    """

    program: Program
    flow: ZeroFlow
    wanted: Sequence[Need]

    @cached_property
    def readers(self) -> dict[int, set[int]]:
        """For each variable, the equations with needed results that read it."""
        needs = propagate_needs(self.program, self.flow, self.wanted)
        found: dict[int, set[int]] = {}
        for position, eqn in enumerate(self.program.equations):
            if any(needs.read(var) != NOTHING for var in eqn.outputs):
                for atom in eqn.inputs:
                    if isinstance(atom, int):
                        found.setdefault(atom, set()).add(position)
        return found

    @cached_property
    def returned(self) -> set[Atom]:
        """The variables that are needed as outputs."""
        outputs = zip(self.program.outputs, self.wanted, strict=True)
        return {atom for atom, need in outputs if need != NOTHING}

    def _is_read_by(self, variables: Sequence[int], positions: Collection[int]) -> bool:
        """Tells whether some of these equations read some of the variables, and nothing else that is needed does."""
        readers = set[int]().union(*(self.readers.get(var, ()) for var in variables))
        return bool(readers) and readers.issubset(positions) and self.returned.isdisjoint(variables)

    def product(self, gate: int) -> Place | None:
        """Returns where a gate, given as the index of its leaf, multiplies something, None unless that is one place."""
        equations = self.program.equations
        first = var = self.program.inputs[gate]
        way: list[int] = []
        while len(readers := self.readers.get(var, set())) == 1 and var not in self.returned:
            (position,) = readers
            way.append(position)
            var, *others = equations[position].outputs
            if others:
                break
            if sum(isinstance(atom, int) for atom in equations[position].inputs) == 1:
                continue
            if not self._is_in_proportion(var, [first], way):
                break
            before = self.leading_to(position, equations[position].inputs)
            if not (shape := self.program.avals[first].shape):
                return Place(var, None, np.zeros(1, int), before)
            axes = (i for i, size in enumerate(self.program.avals[var].shape) if size == shape[0])
            axis = next((i for i in axes if self._aligned(var, i, [first], way)[first]), None)
            return None if axis is None else Place(var, axis, np.arange(*shape), before)
        return None

    def leading_to(self, last: int, operands: Iterable[Atom]) -> frozenset[int]:
        """Returns an equation and all whose results are needed for some of its operands alone."""
        found = {last}
        # From the end backwards: then it is settled of all readers whether they are among them.
        pending = [-self._producers[atom] for atom in operands if atom in self._producers]
        heapq.heapify(pending)
        while pending:
            position = -heapq.heappop(pending)
            eqn = self.program.equations[position]
            if position not in found and self._is_read_by(eqn.outputs, found):
                found.add(position)
                for atom in eqn.inputs:
                    if (producer := self._producers.get(atom)) is not None:
                        heapq.heappush(pending, -producer)
        return frozenset(found)

    @cached_property
    def _producers(self) -> dict[Atom, int]:
        """For each variable that an equation computes, its position."""
        return {var: position for position, eqn in enumerate(self.program.equations) for var in eqn.outputs}

    def idle(self, place: Place) -> np.ndarray:
        """Returns for which entries of a gate its product is zero whatever they are, bool in the shape of the gate."""
        zeros = self.flow.read(place.value)
        if place.axis is None:
            return np.asarray(zeros.everywhere)
        return zeros.axis(place.axis, self.program.avals[place.value].shape[place.axis])

    def proposed(self, place: Place, leaves: Collection[int]) -> frozenset[int]:
        """Returns some of the leaves that may take up a gate, none if none may: those nearest to the product.

        Whether all operators between them and the product agree is left to `scaled_axes`.
        """
        private = [i for i in leaves if self._is_read_by([self.program.inputs[i]], place.before)]
        sources = {self.program.inputs[index]: frozenset([index]) for index in private}
        first_read = {index: min(self.readers[self.program.inputs[index]]) for index in private}
        for position in sorted(place.before):
            eqn = self.program.equations[position]
            known = [atom for atom in dict.fromkeys(eqn.inputs) if isinstance(atom, int) and atom in sources]
            known.sort(key=lambda var: min(map(first_read.__getitem__, sources[var])), reverse=True)
            for chosen in (*([var] for var in known), known):
                if chosen and self.grows_with(eqn, chosen):
                    found = frozenset[int]().union(*map(sources.__getitem__, chosen))
                    sources.update(dict.fromkeys(eqn.outputs, found))
                    break
        return sources.get(place.value, frozenset())

    def grows_with(self, eqn: Equation, operands: Collection[int]) -> bool:
        """Tells whether all results of an equation grow in proportion with some of its operands."""
        flow = DegreeFlow(self.flow, dict.fromkeys(operands, PROPORTIONAL))
        return set(degrees_of(eqn, list(map(flow.read, eqn.inputs)))) == {PROPORTIONAL}

    def _is_in_proportion(self, value: int, variables: Sequence[int], positions: Collection[int]) -> bool:
        """Tells whether a value grows in proportion with some variables through some of the equations."""
        equations = depending(self.program, variables, positions)
        flow = DegreeFlow(self.flow, dict.fromkeys(variables, PROPORTIONAL))
        return flow.through(equations).read(value) == PROPORTIONAL

    def scaled_axes(self, place: Place, leaves: Collection[int]) -> dict[int, set[int | None]]:
        """Returns the axes of leaves along any of which they can be multiplied, all of them, by a gate in its place.

        There is None in the place of an axis for a gate that is one number, and no leaf if they cannot take it up.
        """
        variables = {self.program.inputs[index]: index for index in leaves}
        if not all(self._is_read_by([var], place.before) for var in variables):
            return {}
        if not self._is_in_proportion(place.value, list(variables), place.before):
            return {}
        if place.axis is None:
            return {index: {None} for index in leaves}
        aligned = self._aligned(place.value, place.axis, list(variables), place.before)
        return {index: set(aligned[var]) for var, index in variables.items()}

    def _aligned(
        self, result: int, axis: int, variables: Sequence[int], positions: Collection[int]
    ) -> dict[int, set[int]]:
        """Returns the axes of some variables that an axis of a result depends on index by index.

        Args:
            result: a variable.
            axis: an axis of it.
            variables: what it depends on.
            positions: the equations between them.
        """
        size = self.program.avals[result].shape[axis]
        equations = depending(self.program, variables, positions)
        found = {var: {i for i, n in enumerate(self.program.avals[var].shape) if n == size} for var in variables}
        for mask in digit_masks(size):
            needs = self.needs(result, axis, mask, equations)
            for var, axes in found.items():
                if (need := coarsened(needs.read(var))) != NOTHING:
                    found[var] = {i for i in axes if need[i] is not None and not np.any(need[i] & ~mask)}
        return found

    def needs(
        self, value: int, axis: int | None, mask: np.ndarray | None, equations: Sequence[tuple[int, Equation]]
    ) -> NeedFlow:
        """Returns what some indices of an axis of a value, or all of it, depend on through some equations."""
        wanted = tuple(mask if i == axis else None for i in range(len(self.program.avals[value].shape)))
        return NeedFlow(self.flow).add([value], [wanted]).back_through(equations)
