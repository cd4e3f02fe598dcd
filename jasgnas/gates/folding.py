"""Which trained gates can vanish: those that parameters before them can take up.

A gate g multiplies a value v. Where v grows in proportion with some parameters S, v(g·S) = g·v(S), the network with g·S
in the place of S needs no gate. That is proved over the equations of every mode that the network was traced in:

- The product depends on S and on g, and nothing else does that is needed: no other reader, output or running statistic.
- It has degree 1 in S and in g (see `rules/degrees.py`). Degrees are about positive factors, so all of g must be
  positive; then a relu may lie between S and the product.
- Where g has a number for each index of an axis, the entries of the product at an index depend only on those of S and g
  at the same index of an axis of theirs, so that S can be multiplied index by index. The needs of all indices with some
  binary digit must lie within these indices, and those of all without it within the others: any two differ in one.

Entries of the product that are zero whatever the gate is leave nothing to multiply: there the gate counts as 1.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Program, depending
from jasgnas.program.masks import NOTHING, Need, coarsened, digit_masks
from jasgnas.program.sliced import on_host
from jasgnas.rules import degrees_of
from jasgnas.rules.flow import DegreeFlow, NeedFlow, ZeroFlow, propagate_needs

_IN_PROPORTION = 1.0


class _Product(NamedTuple):
    """The product of a gate and what it multiplies.

    Attributes:
        gate: the variable of the gate.
        result: the variable of the product.
        axis: the axis of the result along which the gate has its numbers, None if it is one number.
        before: the equations whose needed readers all lead to the product, and its own, by position.
    """

    gate: int
    result: int
    axis: int | None
    before: frozenset[int]


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
    def _readers(self) -> dict[int, set[int]]:
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
    def _returned(self) -> set[Atom]:
        """The variables that are needed as outputs."""
        outputs = zip(self.program.outputs, self.wanted, strict=True)
        return {atom for atom, need in outputs if need != NOTHING}

    def _is_read_by(self, variables: Sequence[int], positions: Collection[int]) -> bool:
        """Tells whether some of these equations read some of the variables, and nothing else that is needed does."""
        readers = set[int]().union(*(self._readers.get(var, ()) for var in variables))
        return bool(readers) and readers.issubset(positions) and self._returned.isdisjoint(variables)

    def product(self, gate: int) -> _Product | None:
        """Returns the product of a gate, given as the index of its leaf, None unless there is exactly one."""
        equations = self.program.equations
        first = var = self.program.inputs[gate]
        way: set[int] = set()
        while len(readers := self._readers.get(var, set())) == 1 and var not in self._returned:
            (position,) = readers
            way.add(position)
            var, *others = equations[position].outputs
            if others:
                break
            if sum(isinstance(atom, int) for atom in equations[position].inputs) == 1:
                continue
            axis = None
            if shape := self.program.avals[first].shape:
                axes = (i for i, size in enumerate(self.program.avals[var].shape) if size == shape[0])
                axis = next((i for i in axes if self._aligned(var, i, [first], way)[first]), None)
                if axis is None:
                    break
            return _Product(first, var, axis, self._before(position))
        return None

    def _before(self, last: int) -> frozenset[int]:
        """Returns an equation and all whose results are needed for its own alone."""
        found: set[int] = set()
        # From the end backwards: then it is settled of all readers whether they are among them.
        pending = [-last]
        while pending:
            position = -heapq.heappop(pending)
            eqn = self.program.equations[position]
            if position not in found and (position == last or self._is_read_by(eqn.outputs, found)):
                found.add(position)
                for atom in eqn.inputs:
                    if (producer := self._producers.get(atom)) is not None:
                        heapq.heappush(pending, -producer)
        return frozenset(found)

    @cached_property
    def _producers(self) -> dict[Atom, int]:
        """For each variable that an equation computes, its position."""
        return {var: position for position, eqn in enumerate(self.program.equations) for var in eqn.outputs}

    def idle(self, product: _Product) -> np.ndarray:
        """Returns for which entries of a gate its product is zero whatever they are, bool in the shape of the gate."""
        zeros = self.flow.read(product.result)
        if product.axis is None:
            return np.asarray(zeros.everywhere)
        return zeros.axis(product.axis, self.program.avals[product.result].shape[product.axis])

    def proposed(self, product: _Product, leaves: Collection[int]) -> frozenset[int]:
        """Returns some of the leaves that may take up a gate, none if none may: those nearest to the product.

        Whether all operators between them and the product agree is left to `scaled_axes`.
        """
        private = [i for i in leaves if self._is_read_by([self.program.inputs[i]], product.before)]
        sources = {self.program.inputs[index]: frozenset([index]) for index in private}
        first_read = {index: min(self._readers[self.program.inputs[index]]) for index in private}
        for position in sorted(product.before):
            eqn = self.program.equations[position]
            known = [atom for atom in dict.fromkeys(eqn.inputs) if isinstance(atom, int) and atom in sources]
            known.sort(key=lambda var: min(map(first_read.__getitem__, sources[var])), reverse=True)
            for chosen in (*([var] for var in known), known):
                if chosen and self._grows_with(eqn, chosen):
                    found = frozenset[int]().union(*map(sources.__getitem__, chosen))
                    sources.update(dict.fromkeys(eqn.outputs, found))
                    break
        return sources.get(product.result, frozenset())

    def _grows_with(self, eqn: Equation, operands: Collection[int]) -> bool:
        """Tells whether all results of an equation grow in proportion with some of its operands."""
        flow = DegreeFlow(self.flow, dict.fromkeys(operands, _IN_PROPORTION))
        return set(degrees_of(eqn, list(map(flow.read, eqn.inputs)))) == {_IN_PROPORTION}

    def scaled_axes(self, product: _Product, leaves: Collection[int]) -> dict[int, set[int | None]]:
        """Returns the axes of leaves along any of which they can be multiplied, all of them, by a gate in its place.

        There is None in the place of an axis for a gate that is one number, and no leaf if they cannot take it up.
        """
        variables = {self.program.inputs[index]: index for index in leaves}
        if not all(self._is_read_by([var], product.before) for var in variables):
            return {}
        for own in (variables, [product.gate]):
            equations = depending(self.program, own, product.before)
            degrees = DegreeFlow(self.flow, dict.fromkeys(own, _IN_PROPORTION)).through(equations)
            if degrees.read(product.result) != _IN_PROPORTION:
                return {}
        if product.axis is None:
            return {index: {None} for index in leaves}
        aligned = self._aligned(product.result, product.axis, list(variables), product.before)
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
        shape = self.program.avals[result].shape
        equations = depending(self.program, variables, positions)
        found = {
            var: {i for i, size in enumerate(self.program.avals[var].shape) if size == shape[axis]} for var in variables
        }
        for mask in digit_masks(shape[axis]):
            wanted = tuple(mask if i == axis else None for i in range(len(shape)))
            needs = NeedFlow(self.flow).add([result], [wanted]).back_through(equations)
            for var, axes in found.items():
                if (need := coarsened(needs.read(var))) != NOTHING:
                    found[var] = {i for i in axes if need[i] is not None and not np.any(need[i] & ~mask)}
        return found


def folded(modes: Sequence[Mode], values: Sequence[Any], gates: Collection[int], takers: Collection[int]) -> list[Any]:
    """Returns arrays with which a network computes the same, and gates that others have taken up, or need not, are 1.

    Args:
        modes: the network in all modes.
        values: the array of each leaf.
        gates: indices of the leaves that are gates to be folded if they can be.
        takers: those of the leaves that may be multiplied.
    """
    arrays = list(values)
    for gate in gates:
        products = [product for mode in modes if (product := mode.product(gate)) is not None]
        if len(products) < len(modes):
            continue
        idle = reduce(np.logical_and, map(Mode.idle, modes, products))
        factor = np.where(idle, 1, np.asarray(values[gate]))
        taken: Mapping[int, int | None] | None = {}
        if np.any(factor != 1):
            taken = _taken(modes, products, takers) if np.all(factor > 0) else None
        if taken is not None:
            arrays[gate] = np.ones_like(factor)
            for index, axis in taken.items():
                arrays[index] = _multiplied(arrays[index], factor, axis)
    return arrays


def _taken(
    modes: Sequence[Mode], products: Sequence[_Product], takers: Collection[int]
) -> dict[int, int | None] | None:
    """Returns the leaves that take up a gate in every mode, each with an axis of it, None if there are none."""
    pairs = list(zip(modes, products, strict=True))
    for proposed in dict.fromkeys(mode.proposed(product, takers) for mode, product in pairs):
        found = [mode.scaled_axes(product, proposed) for mode, product in pairs]
        agreed = {index: set.intersection(*(axes.get(index, set()) for axes in found)) for index in proposed}
        if agreed and all(agreed.values()):
            return {index: axes.pop() for index, axes in agreed.items()}
    return None


def _multiplied(array: Any, factor: np.ndarray, axis: int | None) -> Any:
    """Returns an array multiplied by one number, or by one for each index of an axis, in its own dtype."""
    shape = [-1 if i == axis else 1 for i in range(np.ndim(array))]
    return on_host(lambda array: (array * factor.reshape(shape)).astype(array.dtype), array)
