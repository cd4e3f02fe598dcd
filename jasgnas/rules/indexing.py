"""Operators that read or write entries at indices that are computed: dynamic slices, gather, scatter."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import Zeros, broken, meet, unknown
from jasgnas.rules.base import PassThrough, entries_of, moved, register
from jasgnas.rules.degrees import CONSTANT, Degree, common, is_constant


class DynamicSlice(PassThrough):
    """`dynamic_slice`: axes taken whole keep their zeros."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        sizes = zip(eqn.params["slice_sizes"], eqn.in_avals[0].shape, strict=True)
        whole = [axis if taken == size else None for axis, (taken, size) in enumerate(sizes)]
        return [whole, *((),) * (len(eqn.in_avals) - 1)]

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        return eqn.bind(*arrays, slice_sizes=tuple(shape))


class DynamicUpdateSlice(PassThrough):
    """`dynamic_update_slice`: axes that are updated over their whole length pass through."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        sizes = zip(*(aval.shape for aval in eqn.in_avals[:2]), strict=True)
        whole = [axis if size == written else None for axis, (size, written) in enumerate(sizes)]
        return [whole, whole, *((),) * (len(eqn.in_avals) - 2)]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        array, update = operands[:2]
        return [meet([array, moved(update, self.destinations(eqn)[1], len(array.axes))])]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [common(operands[:2]) if all(map(is_constant, operands[2:])) else None]


class Gather(PassThrough):
    """`gather`: axes of the operand taken whole keep their zeros; embedding lookup and nearest-neighbour resize."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        numbers = eqn.params["dimension_numbers"]
        shape = eqn.in_avals[0].shape
        hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        offsets = iter(numbers.offset_dims)
        axes: list[int | None] = []
        for axis, size in enumerate(shape):
            offset = None if axis in hidden else next(offsets)
            whole = eqn.params["slice_sizes"][axis] == size and axis not in numbers.start_index_map
            axes.append(offset if whole else None)
        return [axes, (None,) * len(eqn.in_avals[1].shape)]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        # Something else may be filled in where an index is out of bounds. Not a number marks an error, which is assumed
        # not to occur unless the indices are constants.
        fill = eqn.params["fill_value"]
        if fill is None or fill == 0:
            return True
        indices = entries_of(operands[1], eqn.in_avals[1])
        return bool(np.isnan(fill)) if indices is None else self._in_bounds(eqn, np.asarray(indices()))

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        (degree,) = super().degrees(eqn, operands)
        fill = eqn.params["fill_value"]
        return [degree if fill is None or fill == 0 or np.isnan(fill) else common([degree, CONSTANT])]

    def _in_bounds(self, eqn: Equation, indices: np.ndarray) -> bool:
        axes = list(eqn.params["dimension_numbers"].start_index_map)
        last = [eqn.in_avals[0].shape[axis] - eqn.params["slice_sizes"][axis] for axis in axes]
        return bool(((indices >= 0) & (indices <= np.asarray(last, np.int64))).all())

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        sizes = zip(eqn.params["slice_sizes"], eqn.in_avals[0].shape, arrays[0].shape, strict=True)
        return eqn.bind(*arrays, slice_sizes=tuple(now if taken == size else taken for taken, size, now in sizes))


class Scatter(PassThrough):
    """`scatter`, which overwrites, and its kin, which add, multiply and so on: axes written whole pass through."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        numbers = eqn.params["dimension_numbers"]
        array, indices, updates = (aval.shape for aval in eqn.in_avals)
        hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        windows = zip(
            (axis for axis in range(len(array)) if axis not in hidden), numbers.update_window_dims, strict=True
        )
        written = {
            source: axis
            for axis, source in windows
            if updates[source] == array[axis] and axis not in numbers.scatter_dims_to_operand_dims
        }
        whole = [axis if axis in written.values() else None for axis in range(len(array))]
        return [whole, (None,) * len(indices), [written.get(axis) for axis in range(len(updates))]]

    def _applies(self, eqn: Equation) -> bool:
        """Tells whether what is written is a function of what is there."""
        function = eqn.params["update_jaxpr"]
        return eqn.primitive == "scatter" and function is not None and function.outvars[0] is not function.invars[1]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        array, _, updates = operands
        ndim = len(array.axes)
        if self._applies(eqn):
            return [unknown(ndim)]
        if array.is_infinite and not updates.is_infinite and eqn.primitive in ("scatter-max", "scatter-min"):
            # The largest of a segment, as `jax.ops.segment_max` has it: infinite where a segment is empty, which is
            # either not read or taken care of by the network.
            return [unknown(ndim)]
        if array.is_infinite or updates.is_infinite:
            return [broken(ndim)]
        # What is written may fall on any entry, or on none.
        written = moved(updates, self.destinations(eqn)[2], ndim)
        return [meet([array] if eqn.primitive == "scatter-mul" else [array, written])]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        array, indices, updates = operands
        if eqn.primitive == "scatter-mul" or self._applies(eqn) or not is_constant(indices):
            return super().degrees(eqn, operands)
        return [common([array, updates])]


register(DynamicSlice(), "dynamic_slice")
register(DynamicUpdateSlice(), "dynamic_update_slice")
register(Gather(), "gather")
register(Scatter(), "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")
