"""Operators that move entries about in a fixed way: broadcast, transpose, reshape, slice, concatenate, pad, split."""

from collections.abc import Sequence
from functools import reduce

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
    depth,
    jointly,
    meet,
    normalize,
    stored_shape,
    zero,
    zeros,
)
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import PassThrough, Rule, register


class Broadcast(PassThrough):
    """`broadcast_in_dim`: axes keep their place unless they are stretched from size one."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        shape = eqn.out_avals[0].shape
        kept = [
            axis if shape[axis] == size else None
            for axis, size in zip(eqn.params["broadcast_dimensions"], eqn.in_avals[0].shape, strict=True)
        ]
        return [kept, *((None,) * len(aval.shape) for aval in eqn.in_avals[1:])]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        constant = operands[0].constant
        return (
            super().zeros(eqn, operands)
            if constant is None
            else [Zeros((None,) * len(eqn.out_avals[0].shape), constant)]
        )

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        # Every axis of the result may be made at the wanted width, also those that are stretched or new.
        (layout,) = layouts
        assert layout != NOTHING
        wanted = tuple(None if d is None else layout[d] for d in self.destinations(eqn)[0])
        aval = eqn.out_avals[0]
        array = jax.lax.broadcast_in_dim(
            operands[0].to(wanted).array, stored_shape(aval.shape, layout), eqn.params["broadcast_dimensions"]
        )
        return [Sliced(array, layout, aval)]


class Transpose(PassThrough):
    """`transpose`."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [np.argsort(eqn.params["permutation"]).tolist()]


class Squeeze(Rule):
    """`squeeze`: of the rows of a row, the row."""

    is_joint = True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        left = self._left(eqn)
        if value.constant is not None or not left:
            return [Zeros((None,) * len(left), value.constant)]
        axes = [value.axes[axis] for axis in left]
        if (joint := depth(value.axes)) > 1 and value.axes[0] is not None:
            axes[0] = np.squeeze(value.axes[0], tuple(d for d in eqn.params["dimensions"] if d < joint))
        return [zeros(axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        return [self._expanded(eqn, need)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        array = operands[0].to(coarsened(self._expanded(eqn, layout))).array
        return [Sliced(jnp.squeeze(array, eqn.params["dimensions"]), layout, eqn.out_avals[0])]

    def _left(self, eqn: Equation) -> list[int]:
        return [axis for axis in range(len(eqn.in_avals[0].shape)) if axis not in eqn.params["dimensions"]]

    def _expanded(self, eqn: Equation, need: Axes) -> Axes:
        axes: list = [None] * len(eqn.in_avals[0].shape)
        left = self._left(eqn)
        for axis, mask in zip(left, need, strict=True):
            axes[axis] = mask
        if left and need[0] is not None:
            # The axes before it are of size one.
            last = left[depth(need) - 1]
            axes[left[0]] = None
            axes[0] = np.expand_dims(need[0], tuple(d for d in eqn.params["dimensions"] if d < last))
        return tuple(axes)


class Reverse(Rule):
    """`rev`."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        return [value if value.constant is not None else zeros(self._reversed(eqn, value.axes))]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        return [self._reversed(eqn, need)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        array = operands[0].to(self._reversed(eqn, layout)).array
        return [Sliced(eqn.bind(array)[0], layout, eqn.out_avals[0])]

    def _reversed(self, eqn: Equation, axes: Axes) -> Axes:
        reverse = set(eqn.params["dimensions"])
        return tuple(m[::-1] if m is not None and axis in reverse else m for axis, m in enumerate(axes))


class Reshape(Rule):
    """`reshape`: axes are split, merged or kept; a merged or split range follows if it stays a product of axes."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        if value.everywhere or not value.anywhere:
            return [Zeros((None,) * len(new), value.constant)]
        axes: list = [None] * len(new)
        for sources, targets in matched_axes(old, new):
            masks = [value.axes[axis] for axis in sources]
            if any(mask is not None for mask in masks):
                blocks = [np.zeros(old[a], bool) if m is None else m for a, m in zip(sources, masks, strict=True)]
                flat = reduce(np.logical_or.outer, blocks).reshape([new[axis] for axis in targets])
                for position, axis in enumerate(targets):
                    axes[axis] = flat.all(tuple(i for i in range(flat.ndim) if i != position))
        return [zeros(axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        axes: list = [None] * len(eqn.in_avals[0].shape)
        for sources, targets in matched_axes(eqn.in_avals[0].shape, eqn.out_avals[0].shape):
            for axis, mask in zip(sources, _carry(need, eqn.out_avals[0].shape, targets, eqn, sources), strict=True):
                axes[axis] = mask
        return [normalize(axes)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        wanted: list = [None] * len(old)
        natural: list = [None] * len(new)
        for sources, targets in matched_axes(old, new):
            masks = _carry(layout, new, targets, eqn, sources)
            # The range survives the reshape only if it is a block of the operand as well as of the result.
            before = _flat(masks, [old[axis] for axis in sources])
            after = _flat([layout[axis] for axis in targets], [new[axis] for axis in targets])
            if np.array_equal(before, after):
                for axis, mask in zip(sources, masks, strict=True):
                    wanted[axis] = mask
                for axis in targets:
                    natural[axis] = layout[axis]
        array = jnp.reshape(operands[0].to(tuple(wanted)).array, stored_shape(new, tuple(natural)))
        return [Sliced(array, tuple(natural), eqn.out_avals[0])]


def _flat(masks: Sequence[np.ndarray | None], sizes: Sequence[int]) -> np.ndarray:
    """Returns the entries marked on every one of some neighbouring axes, as one vector."""
    blocks = [np.ones(size, bool) if mask is None else mask for mask, size in zip(masks, sizes, strict=True)]
    return reduce(np.logical_and.outer, blocks, np.ones((), bool)).reshape(-1)


def _carry(
    axes: Axes, shape: Sequence[int], targets: Sequence[int], eqn: Equation, sources: Sequence[int]
) -> list[np.ndarray | None]:
    """Carries a need on the result axes `targets` of a reshape over to the operand axes `sources`."""
    if all(axes[axis] is None for axis in targets):
        return [None] * len(sources)
    flat = _flat([axes[axis] for axis in targets], [shape[axis] for axis in targets])
    block = flat.reshape([eqn.in_avals[0].shape[axis] for axis in sources])
    rest = [tuple(i for i in range(block.ndim) if i != position) for position in range(block.ndim)]
    masks = [np.asarray(block.any(others)) for others in rest]
    return [None if mask.all() else mask for mask in masks]


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


class Slice(Rule):
    """`slice`: a range, perhaps strided, of every axis; of single rows of rows, it is known which they are."""

    is_joint = True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        if value.constant is not None:
            return [value]
        taken = _slices(eqn)
        masks = enumerate(value.axes)
        return [zeros(None if mask is None else mask[tuple(taken[axis : axis + mask.ndim])] for axis, mask in masks)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        shape = eqn.out_avals[0].shape
        singles = next((axis for axis, size in enumerate(shape) if size > 1), len(shape))
        return [normalize(self._spread(eqn, jointly(need, shape[:singles])))]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        # Taking the wanted entries of the operand is the slice.
        array = operands[0].to(self._spread(eqn, layout)).array
        return [Sliced(array, layout, eqn.out_avals[0])]

    def _spread(self, eqn: Equation, axes: Axes) -> Axes:
        shape, taken = eqn.in_avals[0].shape, _slices(eqn)
        spread: list = [None] * len(shape)
        for axis in (0, *range(depth(axes), len(shape))) if shape else ():
            mask = axes[axis]
            end = axis + (1 if mask is None else mask.ndim)
            full = np.zeros(shape[axis:end], bool)
            full[tuple(taken[axis:end])] = True if mask is None else mask
            spread[axis] = None if full.all() else full
        return tuple(spread)


def _slices(eqn: Equation) -> list[slice]:
    strides = eqn.params["strides"] or (1,) * len(eqn.params["start_indices"])
    return [
        slice(*bounds) for bounds in zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
    ]


class Split(Rule):
    """`split`: one axis divided into several results."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        if value.constant is not None:
            return [value for _ in eqn.out_avals]
        axis = eqn.params["axis"]
        return [
            zeros(m[part] if i == axis and m is not None else m for i, m in enumerate(value.axes))
            for part in _ranges(eqn.params["sizes"])
        ]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        return [reduce(_cover, (self._spread(eqn, need, part) for need, part in self._parts(eqn, results)))]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        results = []
        for layout, part, aval in zip(layouts, _ranges(eqn.params["sizes"]), eqn.out_avals, strict=True):
            if layout == NOTHING:
                results.append(Sliced(None, NOTHING, aval))
            else:
                results.append(Sliced(operands[0].to(self._spread(eqn, layout, part)).array, layout, aval))
        return results

    def _parts(self, eqn: Equation, results: Sequence[Need]) -> list[tuple[Axes, slice]]:
        pairs = zip(results, _ranges(eqn.params["sizes"]), strict=True)
        return [(need, part) for need, part in pairs if need != NOTHING]

    def _spread(self, eqn: Equation, axes: Axes, part: slice) -> Axes:
        axis = eqn.params["axis"]
        full = np.zeros(eqn.in_avals[0].shape[axis], bool)
        mask = axes[axis]
        full[part] = True if mask is None else mask
        return tuple((None if full.all() else full) if i == axis else m for i, m in enumerate(axes))


def _cover(first: Axes, second: Axes) -> Axes:
    return tuple(_either(a, b) for a, b in zip(first, second, strict=True))


def _either(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None or (first | second).all() else first | second


def _ranges(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


class Concatenate(Rule):
    """`concatenate`: a zero operand is a range of zeros, and is left out where the range is not wanted."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        axis = eqn.params["dimension"]
        # The operands may be of different sizes along the axis.
        common = meet([v._replace(axes=(*v.axes[:axis], None, *v.axes[axis + 1 :])) for v in operands])
        if common.everywhere:
            return [zero(len(common.axes))]
        along = np.concatenate(
            [value.axis(axis, aval.shape[axis]) for value, aval in zip(operands, eqn.in_avals, strict=True)]
        )
        return [zeros(along if i == axis else mask for i, mask in enumerate(common.axes))]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        return [normalize(axes) for axes in self._parts(eqn, need)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        axis = eqn.params["dimension"]
        pieces = []
        for value, axes in zip(operands, self._parts(eqn, layout), strict=True):
            if (wanted := normalize(axes)) != NOTHING:
                pieces.append(value.to(wanted).array)
        array = pieces[0] if len(pieces) == 1 else jax.lax.concatenate(pieces, axis)
        return [Sliced(array, layout, eqn.out_avals[0])]

    def _parts(self, eqn: Equation, axes: Axes) -> list[Axes]:
        axis = eqn.params["dimension"]
        mask = axes[axis]
        parts = _ranges([aval.shape[axis] for aval in eqn.in_avals])
        return [
            tuple((None if mask is None else mask[part]) if i == axis else m for i, m in enumerate(axes))
            for part in parts
        ]


class Stack(Rule):
    """`stack`: like a concatenation along an axis that the operands do not have yet."""

    is_joint = True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        common = meet([value.apart for value in operands])
        if common.everywhere:
            return [zero(len(common.axes) + 1)]
        axes = list(common.axes)
        axes.insert(eqn.params["axis"], np.array([value.everywhere for value in operands]))
        return [zeros(axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results if eqn.params["axis"] == 0 else map(coarsened, results)
        assert need != NOTHING
        return self._parts(eqn, need)

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        parts = zip(operands, self._parts(eqn, layout), strict=True)
        array = jnp.stack([value.to(part).array for value, part in parts if part != NOTHING], eqn.params["axis"])
        return [Sliced(array, layout, eqn.out_avals[0])]

    def _parts(self, eqn: Equation, axes: Axes) -> list[Need]:
        axis = eqn.params["axis"]
        marked = axes[axis]
        rest = (*axes[:axis], *axes[axis + 1 :])
        if marked is not None and marked.ndim > 1:
            return [normalize((rows, *rest[1:])) for rows in marked]
        return [rest if marked is None or marked[index] else NOTHING for index in range(len(eqn.in_avals))]


class Unstack(Rule):
    """`unstack`: one result for each index of an axis."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        axis = eqn.params["axis"]
        (value,) = operands
        left = (*value.axes[:axis], *value.axes[axis + 1 :])
        rest = zeros(left) if value.constant is None else Zeros(left, value.constant)
        silent = value.axis(axis, eqn.in_avals[0].shape[axis])
        return [zero(len(rest.axes)) if gone else rest for gone in silent]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        needed = [(index, need) for index, need in enumerate(results) if need != NOTHING]
        axes = list(needed[0][1])
        for _, need in needed[1:]:
            axes = list(_cover(tuple(axes), need))
        marked = np.zeros(len(results), bool)
        marked[[index for index, _ in needed]] = True
        axes.insert(eqn.params["axis"], marked)
        return [normalize(axes)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        axis = eqn.params["axis"]
        results = []
        for index, (layout, aval) in enumerate(zip(layouts, eqn.out_avals, strict=True)):
            if layout == NOTHING:
                results.append(Sliced(None, NOTHING, aval))
                continue
            taken = np.arange(len(layouts)) == index
            wanted = normalize((*layout[:axis], taken, *layout[axis:]))
            results.append(Sliced(jnp.squeeze(operands[0].to(wanted).array, axis), layout, aval))
        return results


class Bitcast(PassThrough):
    """`bitcast_convert_type`, which may split entries along a new last axis, or join them; -0.0 has bits."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        kept = len(eqn.out_avals[0].shape)
        return [[axis if axis < kept else None for axis in range(len(eqn.in_avals[0].shape))]]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


class Tile(PassThrough):
    """`tile`: axes that are not repeated pass through, and zeros are repeated with the others."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [[axis if times == 1 else None for axis, times in enumerate(eqn.params["reps"])]]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        (value,) = operands
        repeated = zip(value.axes, eqn.params["reps"], strict=True)
        tiled = (None if mask is None else np.tile(mask, times) for mask, times in repeated)
        return super().zeros(eqn, operands) if value.constant is not None else [zeros(tiled)]

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
        return [zeros(axes)]


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
