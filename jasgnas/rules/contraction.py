"""Operators that multiply and add: `dot_general` and convolutions."""

from collections.abc import Sequence

import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Layout, Need, Zeros, broken, normalize, unknown, zero, zeros
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import Rule, register


def _nonzero(value: Zeros, axis: int) -> np.ndarray | None:
    mask = value.axes[axis]
    return None if mask is None else ~mask


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


class DotGeneral(Rule):
    """`dot_general`: result axes are the batch axes, then the free axes of either side."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        left, right = operands
        ndim = len(eqn.out_avals[0].shape)
        if left.is_infinite or right.is_infinite:
            return [broken(ndim)]
        (left_summed, right_summed), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        if left.everywhere or right.everywhere:
            return [zero(ndim)]
        for i, j in zip(left_summed, right_summed, strict=True):
            size = eqn.in_avals[0].shape[i]
            if (left.axis(i, size) | right.axis(j, size)).all():
                return [zero(ndim)]
        batch = []
        for i, j in zip(left_batch, right_batch, strict=True):
            masks = [mask for mask in (left.axes[i], right.axes[j]) if mask is not None]
            batch.append(np.logical_or.reduce(masks) if masks else None)
        left_free, right_free = self._free(eqn)
        return [zeros([*batch, *(left.axes[i] for i in left_free), *(right.axes[j] for j in right_free)])]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        left, right = operands
        (left_summed, right_summed), _ = eqn.params["dimension_numbers"]
        axes = self._outer(eqn, results[0])
        for i, j in zip(left_summed, right_summed, strict=True):
            axes[0][i] = _nonzero(right, j)
            axes[1][j] = _nonzero(left, i)
        return [normalize(side) for side in axes]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        left, right = operands
        assert left.layout != NOTHING and right.layout != NOTHING
        (left_summed, right_summed), _ = eqn.params["dimension_numbers"]
        axes = self._outer(eqn, layout)
        for i, j in zip(left_summed, right_summed, strict=True):
            # An entry that one side does not store is zero there, or zero on the other side.
            axes[0][i] = axes[1][j] = _both(left.layout[i], right.layout[j])
        results = eqn.bind(left.to(tuple(axes[0])).array, right.to(tuple(axes[1])).array)
        return [Sliced(results[0], layout, eqn.out_avals[0])]

    def _free(self, eqn: Equation) -> list[list[int]]:
        summed, batch = eqn.params["dimension_numbers"]
        return [
            [axis for axis in range(len(aval.shape)) if axis not in summed[side] and axis not in batch[side]]
            for side, aval in enumerate(eqn.in_avals)
        ]

    def _outer(self, eqn: Equation, result: Need) -> list[list[np.ndarray | None]]:
        """Distributes what is said of the result axes over both sides; summed axes stay None."""
        assert result != NOTHING
        _, batch = eqn.params["dimension_numbers"]
        axes: list[list[np.ndarray | None]] = [[None] * len(aval.shape) for aval in eqn.in_avals]
        masks = iter(result)
        for i, j in zip(*batch, strict=True):
            axes[0][i] = axes[1][j] = next(masks)
        for side, free in enumerate(self._free(eqn)):
            for axis in free:
                axes[side][axis] = next(masks)
        return axes


class Convolution(Rule):
    """`conv_general_dilated`, with feature groups; batch groups (found in gradients only) are left at full width.

    With `g` groups, input features `[g, i]` and output features `[g, o]` are matrices of a row per group.
    """

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        data, kernel = operands
        ndim = len(eqn.out_avals[0].shape)
        if data.is_infinite or kernel.is_infinite:
            return [broken(ndim)]
        if data.everywhere or kernel.everywhere:
            return [zero(ndim)]
        if eqn.params["batch_group_count"] > 1:
            return [unknown(ndim)]
        lhs, rhs, out = eqn.params["dimension_numbers"]
        silent = (self._data_zeros(eqn, data) | self._kernel_zeros(eqn, kernel)).all(1)
        features = eqn.in_avals[1].shape[rhs[0]]
        axes: list = [None] * ndim
        axes[out[0]] = data.axes[lhs[0]]
        axes[out[1]] = np.repeat(silent, features // len(silent)) | kernel.axis(rhs[0], features)
        return [zeros(axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        if eqn.params["batch_group_count"] > 1:
            return super().needs(eqn, operands, results)
        data, kernel = operands
        (need,) = results
        assert need != NOTHING
        lhs, rhs, out = eqn.params["dimension_numbers"]
        groups = np.asarray(self._groups(eqn, need[out[1]]).any(1))
        data_axes: list = [None] * len(lhs)
        data_axes[lhs[0]] = need[out[0]]
        data_axes[lhs[1]] = (groups[:, None] & ~self._kernel_zeros(eqn, kernel)).reshape(-1)
        kernel_axes: list = [None] * len(rhs)
        kernel_axes[rhs[0]] = need[out[1]]
        kernel_axes[rhs[1]] = (groups[:, None] & ~self._data_zeros(eqn, data)).any(0)
        return [normalize(data_axes), normalize(kernel_axes)]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        if eqn.params["batch_group_count"] > 1:
            return super().execute(eqn, operands, layouts)
        data, kernel = operands
        (layout,) = layouts
        assert layout != NOTHING and data.layout != NOTHING and kernel.layout != NOTHING
        lhs, rhs, out = eqn.params["dimension_numbers"]
        wanted = self._groups(eqn, layout[out[1]])
        groups = np.asarray(wanted.any(1))
        # Every group that stays must stay with the same number of outputs and of inputs.
        outputs = groups[:, None] & wanted.any(0)
        stored = self._grouped(eqn, data.layout[lhs[1]])
        inputs = np.asarray(stored[groups].any(0))
        if kernel.layout[rhs[1]] is not None:
            inputs = inputs & kernel.layout[rhs[1]]
        data_axes: list = [None] * len(lhs)
        data_axes[lhs[0]] = layout[out[0]]
        data_axes[lhs[1]] = (groups[:, None] & inputs).reshape(-1)
        kernel_axes: list = [None] * len(rhs)
        kernel_axes[rhs[0]] = outputs.reshape(-1)
        kernel_axes[rhs[1]] = inputs
        natural: list = list(layout)
        natural[out[1]] = outputs.reshape(-1)
        for axis in out[2:]:
            natural[axis] = None
        results = eqn.bind(
            data.to(tuple(data_axes)).array,
            kernel.to(tuple(kernel_axes)).array,
            feature_group_count=int(groups.sum()),
        )
        return [Sliced(results[0], tuple(natural), eqn.out_avals[0])]

    def _groups(self, eqn: Equation, features: np.ndarray | None) -> np.ndarray:
        """Returns marked output features, one row per group."""
        rhs = eqn.params["dimension_numbers"].rhs_spec
        size = eqn.in_avals[1].shape[rhs[0]]
        marked = np.ones(size, bool) if features is None else features
        return marked.reshape(eqn.params["feature_group_count"], -1)

    def _grouped(self, eqn: Equation, features: np.ndarray | None) -> np.ndarray:
        """Returns marked input features, one row per group."""
        lhs = eqn.params["dimension_numbers"].lhs_spec
        size = eqn.in_avals[0].shape[lhs[1]]
        marked = np.ones(size, bool) if features is None else features
        return marked.reshape(eqn.params["feature_group_count"], -1)

    def _data_zeros(self, eqn: Equation, data: Zeros) -> np.ndarray:
        mask = data.axes[eqn.params["dimension_numbers"].lhs_spec[1]]
        return ~self._grouped(eqn, None if mask is None else ~mask)

    def _kernel_zeros(self, eqn: Equation, kernel: Zeros) -> np.ndarray:
        """Returns the kernel's zero input features, the same ones for every group, as one row."""
        axis = eqn.params["dimension_numbers"].rhs_spec[1]
        return kernel.axis(axis, eqn.in_avals[1].shape[axis])[None, :]


register(DotGeneral(), "dot_general")
register(Convolution(), "conv_general_dilated")
