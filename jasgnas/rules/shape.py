"""Operators that move entries about in a fixed way: broadcast, transpose, reshape, slice, concatenate, pad, split."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import repeat, takewhile
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import (
    NOTHING,
    Axes,
    Layout,
    Need,
    Zeros,
    coarsened,
    deepened,
    depth,
    everything,
    jointly,
    meet,
    normalize,
    union,
    zero,
    zero_at,
)
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import PassThrough, Rule, Sourced, register
from jasgnas.rules.degrees import Degree, common


class Broadcast(PassThrough):
    """`broadcast_in_dim`: axes keep their place unless they are stretched from size one."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        shape = eqn.out_avals[0].shape
        placed = zip(eqn.params["broadcast_dimensions"], eqn.in_avals[0].shape, strict=True)
        return [[axis if shape[axis] == size else None for axis, size in placed]]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        constant = operands[0].constant
        everywhere = Zeros(everything(len(eqn.out_avals[0].shape)), constant)
        return super().zeros(eqn, operands) if constant is None else [everywhere]

    def computable(self, eqn: Equation, layout: Axes) -> Axes:
        return layout  # Axes that are stretched or new are made at the wanted width.

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        return [jax.lax.broadcast_in_dim(arrays[0], tuple(shape), eqn.params["broadcast_dimensions"])]


class Transpose(PassThrough):
    """`transpose`."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [np.argsort(eqn.params["permutation"]).tolist()]


class Reshape(Sourced):
    """`reshape`: axes are split, merged or left; a merged or split range follows if it stays a product of axes."""

    keeps_degree = True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        if value.everywhere or not value.anywhere:
            return [Zeros(everything(len(new)), value.constant)]
        return [zero_at(_regrouped(value.axes, old, new, np.logical_or, np.logical_and))]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        return [normalize(_regrouped(result, new, old, np.logical_and, np.logical_or))]

    def computable(self, eqn: Equation, layout: Axes) -> Axes:
        old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        source = _regrouped(layout, new, old, np.logical_and, np.logical_or)
        natural: list = [None] * len(new)
        for sources, targets in matched_axes(old, new):
            if all(layout[axis] is None for axis in targets):
                continue  # All of the run is stored, whatever its size; that may be a symbol.
            # The range survives the reshape only if it is a block of the operand as well as of the result.
            before = _joint(source, old, sources, np.logical_and).reshape(-1)
            if np.array_equal(before, _joint(layout, new, targets, np.logical_and).reshape(-1)):
                natural[targets.start : targets.stop] = layout[targets.start : targets.stop]
        return tuple(natural)

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        return [jnp.reshape(arrays[0], shape)]


def _joint(axes: Sequence[np.ndarray | None], shape: Sequence[int], run: range, combine: np.ufunc) -> np.ndarray:
    """Returns what is said of a run of axes as one mask over all of them."""
    lead = tuple(shape[run.start : run.stop])
    return np.asarray(deepened(tuple(axes[run.start : run.stop]), lead, combine)[0])


def _regrouped(
    axes: Axes, old: Sequence[int], new: Sequence[int], combine: np.ufunc, alike: np.ufunc
) -> list[np.ndarray | None]:
    """Carries what is said of the axes of one shape over to the axes of another one, reshaped from it.

    `combine` says how masks of two axes go together, and `alike` when an index of a new axis is marked: a row is zero
    if all of its entries are (`np.logical_and`), and needed if any is (`np.logical_or`).
    """
    masks: list[np.ndarray | None] = []
    for sources, targets in matched_axes(old, new):
        if all(axes[axis] is None for axis in sources):
            masks += [None] * len(targets)
            continue
        if len(sources) == len(targets) == 1:
            masks.append(axes[sources[0]])
            continue
        joint = _joint(axes, old, sources, combine).reshape([new[axis] for axis in targets])
        others = [tuple(i for i in range(joint.ndim) if i != axis) for axis in range(joint.ndim)]
        masks += [alike.reduce(joint, rest) for rest in others]
    return masks


def matched_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Divides the axes of two shapes that a reshape turns into each other into the shortest runs of equal size.

    Axes of size one that have no partner at their place stand alone: from (2, 15) to (2, 1, 5, 3) the first axes are a
    run, the 1 is one, and 15 with (5, 3) is one.
    """
    if 0 in old:
        return [(range(len(old)), range(len(new)))]
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, second = i, j
        is_one = tuple(old[i : i + 1]) == (1,), tuple(new[j : j + 1]) == (1,)
        if any(is_one):
            i, j = i + is_one[0], j + is_one[1]
        else:
            m, n, i, j = old[i], new[j], i + 1, j + 1
            while m != n:
                if m < n:
                    m, i = m * old[i], i + 1
                else:
                    n, j = n * new[j], j + 1
        runs.append((range(first, i), range(second, j)))
    return runs


# A NumPy index of a part of an array: a range of each axis, or one entry of an axis that the part does not have.
Index: TypeAlias = tuple[slice | int, ...]


def _along(axis: int, ndim: int, taken: Sequence[slice | int]) -> list[Index]:
    """Returns the indices that take these entries of one axis and all of the others."""
    return [(*(slice(None),) * axis, each, *(slice(None),) * (ndim - axis - 1)) for each in taken]


def _ranges(sizes: Sequence[int]) -> list[slice]:
    """Returns the neighbouring ranges of these sizes."""
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]


def _taken(axes: Axes, index: Index) -> tuple[list[bool], Axes]:
    """Returns what is said of `array[index]`, given what is said of an array.

    First of the axes that are dropped, then of those that are left.
    """
    left = [axis for axis, taken in enumerate(index) if isinstance(taken, slice)]
    dropped: list[bool] = []
    masks: list = [None] * len(left)
    for axis, mask in enumerate(axes):
        if mask is None:
            continue
        marks = mask[index[axis : axis + mask.ndim]]
        if marks.ndim:
            masks[sum(other < axis for other in left)] = marks
        else:
            dropped.append(bool(marks))
    return dropped, tuple(masks)


def _placed(axes: Axes, index: Index, shape: tuple[int, ...], outside: bool) -> list[np.ndarray | None]:
    """Returns what is said of an array of a shape, given what is said of `array[index]`.

    Where axes before the first one of the part are dropped, its mask becomes a joint one: `array[1]` may need
    other columns than `array[2]`.

    Args:
        axes: what is said of the part.
        index: where it is.
        shape: shape of the array.
        outside: whether the entries outside of the part are marked.
    """
    left = [axis for axis, taken in enumerate(index) if isinstance(taken, slice)]
    said = dict(zip(left, axes, strict=True))
    lead = 1
    if axes and axes[0] is not None:
        lead = left[depth(axes) - 1] + 1
        said[0] = axes[0]
    masks: list = [None] * len(shape)
    for axis in [0, *range(lead, len(shape))][: len(shape)]:
        end = max(lead, axis + 1)
        mask = said.get(axis)
        if any(taken != slice(None) for taken in index[axis:end]):
            marks = np.full(shape[axis:end], outside)
            marks[index[axis:end]] = not outside if mask is None else mask
            mask = marks
        masks[axis] = mask
    return masks


class Taking(Rule):
    """Operators whose results are parts of the operand, each of them `operand[index]`."""

    is_joint = True
    keeps_degree = True

    @abstractmethod
    def indices(self, eqn: Equation) -> Sequence[Index]:
        """Returns the index of each result."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        if value.constant is not None:
            return [Zeros(everything(len(aval.shape)), value.constant) for aval in eqn.out_avals]
        parts = [_taken(value.axes, index) for index in self.indices(eqn)]
        return [zero(len(axes)) if any(dropped) else zero_at(axes) for dropped, axes in parts]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        need: Need = NOTHING
        shape = eqn.in_avals[0].shape
        for result, index, aval in zip(results, self.indices(eqn), eqn.out_avals, strict=True):
            if result != NOTHING:
                # A row of a row of an array is one of all its rows, which only a joint mask can tell.
                single = tuple(takewhile(lambda size: size == 1, aval.shape))
                need = union(need, normalize(_placed(jointly(result, single), index, shape, outside=False)))
        return [need]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        results = []
        for layout, index, aval in zip(layouts, self.indices(eqn), eqn.out_avals, strict=True):
            array = None
            if layout != NOTHING:
                # Taking the wanted entries of the operand takes the ranges; left are the order and the dropped axes.
                source = _placed(layout, index, eqn.in_avals[0].shape, outside=False)
                array = operands[0].to(coarsened(tuple(source))).array
                if reverse := [axis for axis, taken in enumerate(index) if taken == slice(None, None, -1)]:
                    array = jax.lax.rev(array, reverse)
                array = jax.lax.squeeze(array, [axis for axis, taken in enumerate(index) if isinstance(taken, int)])
            results.append(Sliced(array, layout, aval))
        return results


class Squeeze(Taking):
    """`squeeze`: the only entry of some axes."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        dropped = eqn.params["dimensions"]
        return [tuple(0 if axis in dropped else slice(None) for axis in range(len(eqn.in_avals[0].shape)))]


class Reverse(Taking):
    """`rev`."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        steps = [-1 if axis in eqn.params["dimensions"] else None for axis in range(len(eqn.in_avals[0].shape))]
        return [tuple(slice(None, None, step) for step in steps)]


class Slice(Taking):
    """`slice`: a range, perhaps strided, of every axis."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        p = eqn.params
        return [tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or repeat(None)))]


class Split(Taking):
    """`split`: one axis divided into several results."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        return _along(eqn.params["axis"], len(eqn.in_avals[0].shape), _ranges(eqn.params["sizes"]))


class Unstack(Taking):
    """`unstack`: one result for each index of an axis."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        return _along(eqn.params["axis"], len(eqn.in_avals[0].shape), range(len(eqn.out_avals)))


class Assembling(Sourced):
    """Operators whose operands are parts of the result, each of them `result[index]`; parts not wanted are left out."""

    is_joint = True

    @abstractmethod
    def indices(self, eqn: Equation) -> Sequence[Index]:
        """Returns the index of each operand."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        # An operand has no say outside of its part, so that all is marked there: what all agree on is zero.
        shape = eqn.out_avals[0].shape
        agreed = [
            zero(len(shape)) if value.everywhere else zero_at(_placed(value.axes, index, shape, outside=True))
            for value, index in zip(operands, self.indices(eqn), strict=True)
        ]
        return [meet(agreed)]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [common(operands)]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        parts = [_taken(result, index) for index in self.indices(eqn)]
        return [normalize(axes) if all(dropped) else NOTHING for dropped, axes in parts]


class Concatenate(Assembling):
    """`concatenate`."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        axis = eqn.params["dimension"]
        return _along(axis, len(eqn.out_avals[0].shape), _ranges([aval.shape[axis] for aval in eqn.in_avals]))

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        return [jax.lax.concatenate(arrays, eqn.params["dimension"])]


class Stack(Assembling):
    """`stack`: like a concatenation along an axis that the operands do not have yet."""

    def indices(self, eqn: Equation) -> Sequence[Index]:
        return _along(eqn.params["axis"], len(eqn.out_avals[0].shape), range(len(eqn.in_avals)))

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        return [jnp.stack(arrays, eqn.params["axis"])]


class Bitcast(PassThrough):
    """`bitcast_convert_type`, which may split entries along a new last axis, or join them; -0.0 has bits."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        ndim = len(eqn.out_avals[0].shape)
        return [[axis if axis < ndim else None for axis in range(len(eqn.in_avals[0].shape))]]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


class Tile(PassThrough):
    """`tile`: axes that are not repeated pass through, and zeros are repeated with the others."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [[axis if times == 1 else None for axis, times in enumerate(eqn.params["reps"])]]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        repeated = zip(value.axes, eqn.params["reps"], strict=True)
        tiled = (None if mask is None else np.tile(mask, times) for mask, times in repeated)
        return super().zeros(eqn, operands) if value.constant is not None else [zero_at(tiled)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        repeated = zip(need, eqn.params["reps"], strict=True)
        return [normalize(None if m is None else np.asarray(m.reshape(times, -1).any(0)) for m, times in repeated)]


class Pad(PassThrough):
    """`pad`: padded axes are taken in full; zeros stay if zeros are padded."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        config = eqn.params["padding_config"]
        return [[axis if tuple(pad) == (0, 0, 0) else None for axis, pad in enumerate(config)], ()]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        # Padding with something else fills whole slices of the other axes with it.
        return operands[1].everywhere

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (result,) = super().zeros(eqn, operands)
        if result.everywhere or not operands[1].everywhere:
            return [result]
        axes = list(result.axes)
        for axis, (low, high, interior) in enumerate(eqn.params["padding_config"]):
            if (low, high, interior) != (0, 0, 0):
                size = eqn.in_avals[0].shape[axis]
                axes[axis] = padded(operands[0].axis(axis, size), low, high, interior)
        return [zero_at(axes)]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [common(operands)]


def padded(mask: np.ndarray, low: int, high: int, interior: int) -> np.ndarray:
    """Pads a vector with True as `pad` does; negative widths cut off."""
    spread = np.ones(max(len(mask) * (interior + 1) - interior, 0), bool)
    spread[:: interior + 1] = mask
    spread = np.concatenate([np.ones(max(low, 0), bool), spread, np.ones(max(high, 0), bool)])
    return spread[max(-low, 0) : len(spread) - max(-high, 0)]


register(Broadcast(), "broadcast_in_dim")
register(Transpose(), "transpose")
register(Squeeze(), "squeeze")
register(Reverse(), "rev")
register(Reshape(), "reshape")
register(Slice(), "slice")
register(Split(), "split")
register(Concatenate(), "concatenate")
register(Stack(), "stack")
register(Unstack(), "unstack")
register(Bitcast(), "bitcast_convert_type")
register(Tile(), "tile")
register(Pad(), "pad")
