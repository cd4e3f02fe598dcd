"""Where a trained gate may go that nothing before it can take up: to what its product is multiplied by in turn.

A gate g multiplies a value v, and what reads g·v may come to multiply another value u by it, as a convolution does with
its kernel. Then g may as well multiply u, and be folded into the parameters that u is made of. All that is needed of
g·v must end so, and in every mode three things are proved of the equations from there to each product with such a u:

- What the product reads has degree 1 in g·v: with everything else that the equations read or, for a concatenation, if
  that is zero. What is taken for zero must be needed by no index of what the product reads that g·v leads to.
- Each index of g·v leads to one index of an axis of what the product reads, and no two to the same. It is read off
  binary digit by binary digit: g·v at this index is needed by the indices that have the digit or by those that lack it,
  never by both.
- The product is in proportion to either operand, and an index of the one meets the same index of the other alone: it is
  zero where the one is zero at all indices with some binary digit and the other at all without it, or the reverse.

A batch norm on the way ends it: in training mode its statistics take the gate out again, but for its epsilon.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jasgnas.gates.modes import Mode, Place
from jasgnas.program.jaxpr import Atom, Equation
from jasgnas.program.masks import NOTHING, coarsened, digit_masks, filled, zero_at
from jasgnas.rules import degrees_of, zeros_of
from jasgnas.rules.degrees import ANY, PROPORTIONAL
from jasgnas.rules.flow import DegreeFlow


class _Crossing(NamedTuple):
    """An equation that multiplies two operands.

    Attributes:
        eqn: the equation.
        gated: the operand that a gate leads to.
        other: the other one.
        before: the equations whose needed readers all lead to that, and the product's own, by position.
    """

    eqn: Equation
    gated: int
    other: int
    before: frozenset[int]

    def is_index_by_index(self, axis: int, other_axis: int, size: int) -> bool:
        """Tells whether an index of an axis of the one operand meets the same of an axis of the other alone."""
        for mask in digit_masks(size):
            marked: dict[Atom, tuple[int, np.ndarray]] = {self.gated: (axis, ~mask), self.other: (other_axis, mask)}
            zeros = []
            for atom, aval in zip(self.eqn.inputs, self.eqn.in_avals, strict=True):
                own_axis, zero = marked[atom]
                zeros.append(zero_at(zero if i == own_axis else None for i in range(len(aval.shape))))
            if not zeros_of(self.eqn, zeros)[0].everywhere:
                return False
        return True


@dataclass(frozen=True, eq=False)
class _Way:
    """What lies between a gate and the products that it leads to.

    Attributes:
        mode: the network.
        start: what the gate multiplies.
        equations: the equations on the way, with their positions in order.
        absent: what they read that is taken for zero.
        crossings: the products.
    """

    mode: Mode
    start: Place
    equations: Sequence[tuple[int, Equation]]
    absent: Collection[int]
    crossings: Sequence[_Crossing]

    def places(self, axis: int | None) -> list[Place]:
        """Returns where a gate along an axis of what it multiplies may go, beside all products, none if it may not."""
        places = []
        for crossing in self.crossings:
            if (place := self._beside(crossing, axis)) is None:
                return []
            places.append(place)
        return places

    def _beside(self, crossing: _Crossing, axis: int | None) -> Place | None:
        """Returns the other operand of a product as the place of the gate, None if it cannot be."""
        if axis is None:
            is_alone = self._is_alone(crossing.gated, None, None)
            return Place(crossing.other, None, self.start.order, crossing.before) if is_alone else None
        shape, other = (self.mode.program.avals[var].shape for var in (crossing.gated, crossing.other))
        for i, size in enumerate(shape):
            if size not in other or (order := self._order(crossing.gated, i, axis)) is None:
                continue
            for j, other_size in enumerate(other):
                if other_size == size and crossing.is_index_by_index(i, j, size):
                    return Place(crossing.other, j, order, crossing.before)
        return None

    def _order(self, value: int, value_axis: int, axis: int) -> np.ndarray | None:
        """Returns which number of the gate leads to each index of an axis of a value, as `Place.order` has it.

        None if an index of the axis that the gate lies along leads to several indices, or several lead to one.
        """
        avals, start = self.mode.program.avals, self.start.value
        size, length = avals[value].shape[value_axis], avals[start].shape[axis]

        def read_by(mask: np.ndarray) -> np.ndarray:
            need = coarsened(self.mode.needs(value, value_axis, mask, self.equations).read(start))
            return np.zeros(length, bool) if need == NOTHING else filled(need[axis], length)

        index, is_read = np.zeros(length, int), read_by(np.ones(size, bool))
        masks = digit_masks(size)
        for digit, (lacking, having) in enumerate(zip(masks, masks, strict=True)):
            by_having = read_by(having)
            if np.any(is_read & (read_by(lacking) == by_having)):
                return None
            index += by_having << digit
        (read,) = np.nonzero(is_read)
        num_read = np.bincount(index[read], minlength=size)
        if num_read.max() != 1 or len(num_read) > size or not self._is_alone(value, value_axis, num_read > 0):
            return None
        order = np.full(size, -1)
        order[index[read]] = read if self.start.axis is not None else 0
        return order

    def _is_alone(self, value: int, axis: int | None, mask: np.ndarray | None) -> bool:
        """Tells whether some indices of a value need nothing of what has been taken for zero on the way."""
        needs = self.mode.needs(value, axis, mask, self.equations)
        return all(needs.read(var) == NOTHING for var in self.absent)


def _is_product(mode: Mode, eqn: Equation, *operands: Sequence[int]) -> bool:
    """Tells whether an equation multiplies its two operands, given one by one."""
    return len(eqn.inputs) == len(operands) and all(len(own) == 1 and mode.grows_with(eqn, own) for own in operands)


def places_behind(mode: Mode, product: Place, takers: Collection[int]) -> list[Place]:
    """Returns the places that a gate may go to, to all of them at once, none if it may not.

    Args:
        mode: the network in one mode.
        product: where the gate is.
        takers: the leaves that may be multiplied.
    """
    if (way := _way(mode, product, takers)) is None:
        return []
    # One number may go beside all of an operand, or beside the part that it leads to.
    axes = (None, *range(len(mode.program.avals[product.value].shape))) if product.axis is None else (product.axis,)
    return next(filter(None, map(way.places, axes)), [])


def _way(mode: Mode, product: Place, takers: Collection[int]) -> _Way | None:
    """Returns what lies between a gate and the nearest products that it may go beside, None if not all ends so."""
    flow = DegreeFlow(mode.flow, {product.value: PROPORTIONAL})
    reached, absent = {product.value}, set[int]()
    equations: list[tuple[int, Equation]] = []
    crossings: list[_Crossing] = []
    pending = set(mode.readers.get(product.value, ()))
    while pending:
        position = min(pending)
        pending.remove(position)
        eqn = mode.program.equations[position]
        own = [atom for atom in eqn.inputs if isinstance(atom, int) and atom in reached]
        others = [atom for atom in eqn.inputs if isinstance(atom, int) and atom not in reached]
        if [flow.read(atom) for atom in own] == [PROPORTIONAL] and _is_product(mode, eqn, own, others):
            crossing = _Crossing(eqn, own[0], others[0], mode.leading_to(position, others))
            if mode.proposed(Place(crossing.other, None, product.order, crossing.before), takers):
                crossings.append(crossing)
                continue
        if None in degrees_of(eqn, list(map(flow.read, eqn.inputs))):
            absent.update(others)
            flow.degrees.update(dict.fromkeys(others, ANY))
        flow.through([(position, eqn)])
        if None in map(flow.read, eqn.outputs):
            return None
        equations.append((position, eqn))
        reached.update(eqn.outputs)
        pending.update(*(mode.readers.get(var, ()) for var in eqn.outputs))
    return None if reached & mode.returned else _Way(mode, product, equations, absent, crossings)
