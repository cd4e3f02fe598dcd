"""Which indices of the axes of an equation's operands and results belong together.

An addition adds index 3 of one operand to index 3 of the other, so that they are one channel; a concatenation puts
index 3 of its second operand behind the first; a depthwise convolution keeps its channels apart and a dense layer mixes
all of them. None of this is written down per primitive: it follows from the rules. The rules for needs are asked which
entries of the operands are needed for the results whose index has a certain binary digit, and for the index's
complement. What is needed with the digit set and not with it unset belongs to an index with that digit.

A reshape alone is not told by that: of the axes that it merges or splits, which are all related to the one axis, one is
to be followed. So it is described as it is, by an array in between that has all axes apart.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jasgnas.program.jaxpr import Equation, Literal
from jasgnas.program.masks import NOTHING, Need, Zeros, coarsened, digit_masks, everything, filled, zero_at
from jasgnas.rules import needs_of
from jasgnas.rules.shape import matched_axes
from jasgnas.space.groups import NOBODY

_Found = TypeVar("_Found")

Axis = tuple[int, int]
"""Position of an operand, the results counted after the operands, and an axis of it."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Two axes of an equation whose indices belong together, block by block.

    Attributes:
        first: an axis of an operand.
        first_blocks: int `[size]`, the block that each index of it belongs to, `NOBODY` for none.
        second: an axis of a result or of another operand.
        second_blocks: the same for its indices.
        is_summed: whether the products of the two are summed over the axis, so that it is none of the result.
    """

    first: Axis
    first_blocks: np.ndarray
    second: Axis
    second_blocks: np.ndarray
    is_summed: bool = False

    @cached_property
    def is_identity(self) -> bool:
        """Whether each index of the one axis belongs to the same index of the other."""
        index = np.arange(len(self.first_blocks))
        return np.array_equal(self.first_blocks, index) and np.array_equal(self.second_blocks, index)

    @cached_property
    def links(self) -> np.ndarray:
        """Pairs of indices that connect each block, int `[2, num_links]`; those of the second axis are counted on."""
        labels = np.concatenate([self.first_blocks, self.second_blocks])
        (members,) = np.nonzero(labels != NOBODY)
        heads = np.zeros(labels.max(initial=NOBODY) + 1, int)
        heads[labels[members]] = members  # any one of each block
        links = np.stack([heads[labels[members]], members])
        return links[:, links[0] != links[1]]


class Regrouping(NamedTuple):
    """The array between the operand of a reshape and its result, which has the axes of both apart.

    Attributes:
        sizes: its sizes, without axes of size one.
        axes: for each axis of the operand and of the result that is of more than one size, those it consists of.
    """

    sizes: tuple[int, ...]
    axes: dict[Axis, tuple[int, ...]]


class Aligner:
    """Finds what is aligned in equations; those that are alike are looked at once.

    They are alike if the same is known of their operands, too: the same object says it, as in `Graph.full`.
    """

    def __init__(self) -> None:
        """Has seen no equation yet."""
        # With each finding what it was found from is kept, lest its identity become that of something else.
        self._found: dict[tuple[Any, ...], tuple[list[Any], Sequence[Zeros]]] = {}

    def alignments(self, eqn: Equation, operands: Sequence[Zeros]) -> list[Alignment]:
        """Returns all alignments of an equation that is no reshape, given what is known of its operands."""
        return self._once(_alignments, eqn, operands)

    def read_alone(self, eqn: Equation, operands: Sequence[Zeros]) -> list[Axis]:
        """Returns the axes of operands of which a result depends on a single index, given what is known of them."""
        return self._once(_read_alone, eqn, operands)

    def _once(
        self, find: Callable[[Equation, Sequence[Zeros]], list[_Found]], eqn: Equation, operands: Sequence[Zeros]
    ) -> list[_Found]:
        key = (find, eqn.kind, *map(id, operands))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = (find(eqn, operands), operands)
        return found[0]


def _read_alone(eqn: Equation, operands: Sequence[Zeros]) -> list[Axis]:
    found: dict[Axis, None] = {}
    for number, result in enumerate(eqn.out_avals):
        wanted: list[Need] = [NOTHING] * len(eqn.out_avals)
        wanted[number] = everything(len(result.shape))
        for operand, need in enumerate(map(coarsened, needs_of(eqn, operands, wanted))):
            for axis, size in enumerate(eqn.in_avals[operand].shape):
                if size > 1 and np.count_nonzero(_row(need, axis, size)) == 1:
                    found[operand, axis] = None
    return list(found)


def regrouping(eqn: Equation) -> Regrouping:
    """Returns the array between the operand of a reshape and its result."""
    old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
    sizes: list[int] = []
    axes: dict[Axis, tuple[int, ...]] = {}
    for sources, targets in matched_axes(old, new):
        # The products of the last sizes: of (6, 4) these are 1, 4 and 24, of (3, 8) they are 1, 8 and 24. Together
        # they say that in between there is (3, 2, 4).
        runs = [(0, old, sources), (1, new, targets)]
        bounds = [_products([shape[axis] for axis in run]) for _, shape, run in runs]
        joint = sorted({*bounds[0], *bounds[1]})
        if any(large % small for small, large in zip(joint, joint[1:], strict=False)) or joint[0] == 0:
            continue  # As (2, 3) and (3, 2): no axis stays what it was.
        own = [large // small for small, large in zip(joint, joint[1:], strict=False)][::-1]
        for (position, shape, run), products in zip(runs, bounds, strict=True):
            for axis, (below, above) in zip(reversed(run), zip(products, products[1:], strict=False), strict=True):
                if shape[axis] > 1:
                    first, last = joint.index(above), joint.index(below)
                    axes[position, axis] = tuple(len(sizes) + len(joint) - 1 - i for i in range(first, last, -1))
        sizes += own
    return Regrouping(tuple(sizes), axes)


def kept_axes(eqn: Equation) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yields the axes, each as variable and axis, that are the same before and after a reshape."""
    axes = regrouping(eqn).axes
    for (before, old), parts in axes.items():
        for (after, new), others in axes.items():
            if before == 0 and after == 1 and len(parts) == 1 and parts == others and isinstance(eqn.inputs[0], int):
                yield (eqn.inputs[0], old), (eqn.outputs[0], new)


def _products(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[i:]) for i in range(len(sizes), -1, -1)]


def _alignments(eqn: Equation, operands: Sequence[Zeros]) -> list[Alignment]:
    found: list[Alignment] = []
    for number, aval in enumerate(eqn.out_avals):
        for axis, size in enumerate(aval.shape):
            if size > 1:
                found += _with_result(eqn, operands, number, axis)
    aligned = {alignment.first for alignment in found}
    return found + list(_summed(eqn, operands, aligned))


def _with_result(eqn: Equation, operands: Sequence[Zeros], number: int, axis: int) -> Iterator[Alignment]:
    """Yields what is aligned with an axis of a result."""
    size = eqn.out_avals[number].shape[axis]
    index = np.arange(size)
    wanted: list[Need] = [NOTHING] * len(eqn.out_avals)

    def ask(mask: np.ndarray) -> list[Need]:
        wanted[number] = tuple(mask if i == axis else None for i in range(len(eqn.out_avals[number].shape)))
        return [coarsened(need) for need in needs_of(eqn, operands, wanted)]

    masks = list(digit_masks(size))
    answers = [ask(mask) for mask in masks]
    units: list[list[Need]] = []
    for operand, aval in enumerate(eqn.in_avals):
        for i, n in enumerate(aval.shape):
            if n == 1 or not any(need[operand] != NOTHING and need[operand][i] is not None for need in answers):
                continue
            if all(need[operand][i] is mask for need, mask in zip(answers, masks, strict=True)):
                yield Alignment((operand, i), index, (len(eqn.in_avals) + number, axis), index)
                continue
            rows = [_row(need[operand], i, n) for need in answers]
            unset, is_set = np.array(rows[0::2]), np.array(rows[1::2])
            needed = (unset | is_set).any(0)
            single = (unset ^ is_set).all(0)
            if np.array_equal(needed, single):  # no index is needed by several of the result
                blocks = np.where(single, (1 << np.arange(len(is_set))) @ is_set, NOBODY)
                others = np.where(np.isin(index, blocks), index, NOBODY)
            else:
                units = units or [ask(index == each) for each in index]
                blocks, others = _blocks(np.array([_row(need[operand], i, n) for need in units]))
            if blocks.max(initial=NOBODY) > 0:
                yield Alignment((operand, i), blocks, (len(eqn.in_avals) + number, axis), others)


def _row(need: Need, axis: int, size: int) -> np.ndarray:
    return np.zeros(size, bool) if need == NOTHING else filled(need[axis], size)


def _blocks(related: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the blocks of two axes, given bool `[size of the result's, size of the operand's]`.

    One index of the one axis may be related to several of the other, as in a repetition, or several to several, as in a
    grouped convolution: all that hangs together is one block. A single block means that all is mixed.
    """
    num_results, num_operands = related.shape
    rows, columns = np.nonzero(related)
    graph = coo_array((np.ones(len(rows), bool), (columns, num_operands + rows)), (sum(related.shape),) * 2)
    _, labels = connected_components(graph, directed=False)
    first, second = labels[:num_operands], labels[num_operands:]
    shared = np.intersect1d(first, second)
    return tuple(  # type: ignore[return-value]
        np.where(np.isin(side, shared), np.searchsorted(shared, side), NOBODY) for side in (first, second)
    )


def _summed(eqn: Equation, operands: Sequence[Zeros], aligned: set[Axis]) -> Iterator[Alignment]:
    """Yields what is aligned between operands: an entry that meets nothing but zeros of the other is not needed."""
    axes = [
        (operand, axis)
        for operand, aval in enumerate(eqn.in_avals)
        for axis, size in enumerate(aval.shape)
        if size > 1 and (operand, axis) not in aligned and not isinstance(eqn.inputs[operand], Literal)
    ]
    everything_needed: list[Need] = [everything(len(aval.shape)) for aval in eqn.out_avals]
    for first in axes:
        others = [axis for axis in axes if axis[0] > first[0]]
        if not others:
            continue
        size = eqn.in_avals[first[0]].shape[first[1]]
        index = np.arange(size)
        answers = []
        for digit in range((size - 1).bit_length()):
            for value in (0, 1):
                known = list(operands)
                ndim = len(eqn.in_avals[first[0]].shape)
                mask = index >> digit & 1 == value
                known[first[0]] = zero_at(mask if i == first[1] else None for i in range(ndim))
                answers.append([coarsened(need) for need in needs_of(eqn, known, everything_needed)])
            if all(need == NOTHING or need[axis] is None for need, axis in _parts(answers[-2:], others)):
                break
        for second in others:
            n = eqn.in_avals[second[0]].shape[second[1]]
            if n != size:
                continue
            rows = [~_row(answer[second[0]], second[1], n) for answer in answers]
            expected = [index >> digit & 1 == value for digit in range((size - 1).bit_length()) for value in (0, 1)]
            if len(rows) == len(expected) and np.array_equal(rows, expected):
                yield Alignment(first, index, second, index, is_summed=True)


def _parts(answers: Sequence[Sequence[Need]], axes: Sequence[Axis]) -> Iterator[tuple[Need, int]]:
    return ((answer[operand], axis) for answer in answers for operand, axis in axes)
