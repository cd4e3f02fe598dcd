"""Operators that read or write entries at indices that are computed: dynamic slices, gather, scatter."""

from collections.abc import Sequence

import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Axes, Layout, Need, Zeros, broken, meet, unknown, zeros
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import PassThrough, Rule, entries_of, register


class DynamicSlice(PassThrough):
    """`dynamic_slice`: axes taken whole keep their zeros."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        sizes = zip(eqn.params["slice_sizes"], eqn.in_avals[0].shape, strict=True)
        whole = [axis if taken == size else None for axis, (taken, size) in enumerate(sizes)]
        return [whole, *((),) * (len(eqn.in_avals) - 1)]

    def resized(self, eqn: Equation, stored: Sequence[Sequence[int]], result: Sequence[int]) -> dict[str, object]:
        return {"slice_sizes": tuple(result)}


class DynamicUpdateSlice(Rule):
    """`dynamic_update_slice`: axes that are updated over their whole length pass through."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        whole = self._whole(eqn)
        both = meet(
            [
                Zeros(tuple(m if w else None for m, w in zip(value.axes, whole, strict=True)), value.constant)
                for value in operands[:2]
            ]
        )
        return [both if both.everywhere else Zeros(both.axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        assert need != NOTHING
        wanted = self._passed(eqn, need)
        return [wanted, wanted, *((),) * (len(eqn.in_avals) - 2)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        wanted = self._passed(eqn, layout)
        stored = [value.to(wanted).array for value in operands[:2]]
        array = eqn.bind(*stored, *(value.full() for value in operands[2:]))[0]
        return [Sliced(array, wanted, eqn.out_avals[0])]

    def _whole(self, eqn: Equation) -> list[bool]:
        return [a == b for a, b in zip(eqn.in_avals[0].shape, eqn.in_avals[1].shape, strict=True)]

    def _passed(self, eqn: Equation, axes: Axes) -> Axes:
        return tuple(mask if whole else None for mask, whole in zip(axes, self._whole(eqn), strict=True))


class Gather(PassThrough):
    """`gather`: axes of the operand taken whole keep their zeros; embedding lookup and nearest-neighbour resize."""

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

    def _in_bounds(self, eqn: Equation, indices: np.ndarray) -> bool:
        axes = list(eqn.params["dimension_numbers"].start_index_map)
        last = [eqn.in_avals[0].shape[axis] - eqn.params["slice_sizes"][axis] for axis in axes]
        return bool(((indices >= 0) & (indices <= np.asarray(last, np.int64))).all())

    def resized(self, eqn: Equation, stored: Sequence[Sequence[int]], result: Sequence[int]) -> dict[str, object]:
        sizes = zip(eqn.params["slice_sizes"], eqn.in_avals[0].shape, stored[0], strict=True)
        return {"slice_sizes": tuple(now if taken == size else taken for taken, size, now in sizes)}


class Scatter(Rule):
    """`scatter`, which overwrites, and its kin, which add, multiply and so on: axes written whole pass through."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        array, _, updates = operands
        function = eqn.params["update_jaxpr"]
        if eqn.primitive == "scatter" and function is not None and function.outvars[0] is not function.invars[1]:
            return [unknown(len(array.axes))]  # What is written is a function of what is there.
        if array.is_infinite or updates.is_infinite:
            return [broken(len(array.axes))]
        axes: list = [None] * len(array.axes)
        for axis, source in self._whole(eqn).items():
            axes[axis] = updates.axes[source]
        # What is written may fall on any entry, or on none.
        written = Zeros(tuple(axes), updates.constant)
        result = array if eqn.primitive == "scatter-mul" else meet([array, written])
        return [result if result.everywhere else zeros(result.axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        (need,) = results
        return self._wanted(eqn, need)

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        wanted = self._wanted(eqn, layouts[0])
        stored = [value.to(layout).array for value, layout in zip(operands, wanted, strict=True)]
        return [Sliced(eqn.bind(*stored)[0], wanted[0], eqn.out_avals[0])]

    def _wanted(self, eqn: Equation, result: Need) -> list[Axes]:
        """Returns what of each operand goes with some entries of the result."""
        assert result != NOTHING
        array: list = [None] * len(eqn.in_avals[0].shape)
        updates: list = [None] * len(eqn.in_avals[2].shape)
        for axis, source in self._whole(eqn).items():
            array[axis] = updates[source] = result[axis]
        return [tuple(array), (None,) * len(eqn.in_avals[1].shape), tuple(updates)]

    def _whole(self, eqn: Equation) -> dict[int, int]:
        """Returns the axes of the updates that are written to axes of the array over their whole length."""
        numbers = eqn.params["dimension_numbers"]
        array, _, updates = (aval.shape for aval in eqn.in_avals)
        hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        windows = zip(
            (axis for axis in range(len(array)) if axis not in hidden), numbers.update_window_dims, strict=True
        )
        return {
            axis: source
            for axis, source in windows
            if updates[source] == array[axis] and axis not in numbers.scatter_dims_to_operand_dims
        }


register(DynamicSlice(), "dynamic_slice")
register(DynamicUpdateSlice(), "dynamic_update_slice")
register(Gather(), "gather")
register(Scatter(), "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")
