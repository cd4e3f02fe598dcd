"""Which trained gates can vanish: those that parameters before or behind them can take up.

A gate g multiplies a value v. Where v grows in proportion with some parameters S, v(g·S) = g·v(S), the network with g·S
in the place of S needs no gate. That is proved over the equations of every mode that the network was traced in:

- The product depends on S and on g, and nothing else does that is needed: no other reader, output or running statistic.
- It has degree 1 in S and in g (see `rules/degrees.py`). Degrees are about positive factors, so all of g must be
  positive; then a relu may lie between S and the product.
- Where g has a number for each index of an axis, the entries of the product at an index depend only on those of S and g
  at the same index of an axis of theirs, so that S can be multiplied index by index. The needs of all indices with some
  binary digit must lie within these indices, and those of all without it within the others: any two differ in one.

Where nothing before g can take it up, it goes to what is behind (`forwards.py`), and is folded there in the same way.

Entries of the product that are zero whatever the gate is leave nothing to multiply: there the gate counts as 1.
"""

from collections.abc import Collection, Sequence
from functools import reduce
from typing import Any

import numpy as np

from jasgnas.gates.forwards import places_behind
from jasgnas.gates.modes import Mode, Place
from jasgnas.program.sliced import on_host


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
        shares: list[_Share] | None = []
        if np.any(factor != 1):
            shares = _shares(modes, products, takers, factor) if np.all(factor > 0) else None
        if shares is not None:
            arrays[gate] = np.ones_like(factor)
            for index, axis, factors in shares:
                arrays[index] = _multiplied(arrays[index], factors, axis)
    return arrays


_Share = tuple[int, int | None, np.ndarray]
"""A leaf, an axis of it, and what it is multiplied by: one number where the axis is None, or one for each index."""


def _shares(
    modes: Sequence[Mode], products: Sequence[Place], takers: Collection[int], factor: np.ndarray
) -> list[_Share] | None:
    """Returns which leaves take up a gate: some before its product or else some behind; None if neither can."""
    if (before := _taken(modes, products, takers, factor)) is not None:
        return before
    behind = [places_behind(mode, product, takers) for mode, product in zip(modes, products, strict=True)]
    if len(set(map(len, behind))) > 1:
        return None
    shares = []
    for places in zip(*behind, strict=True):
        if (taken := _taken(modes, places, takers, factor)) is None:
            return None
        shares += taken
    return shares or None


def _taken(
    modes: Sequence[Mode], places: Sequence[Place], takers: Collection[int], factor: np.ndarray
) -> list[_Share] | None:
    """Returns the leaves that take up a gate at one place in every mode, None if there are none."""
    factors, *others = [place.factors(factor) for place in places]
    if not all(np.array_equal(factors, each) for each in others):
        return None
    pairs = list(zip(modes, places, strict=True))
    for proposed in dict.fromkeys(mode.proposed(place, takers) for mode, place in pairs):
        found = [mode.scaled_axes(place, proposed) for mode, place in pairs]
        agreed = {index: set.intersection(*(axes.get(index, set()) for axes in found)) for index in proposed}
        if agreed and all(agreed.values()):
            return [(index, axes.pop(), factors) for index, axes in agreed.items()]
    return None


def _multiplied(array: Any, factor: np.ndarray, axis: int | None) -> Any:
    """Returns an array multiplied by one number, or by one for each index of an axis, in its own dtype."""
    shape = [-1 if i == axis else 1 for i in range(np.ndim(array))]
    return on_host(lambda array: (array * factor.reshape(shape)).astype(array.dtype), array)
