"""Operators that multiply and add: `dot_general` and convolutions."""

from collections.abc import Sequence

import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Axes, Layout, Need, Zeros, broken, filled, normalize, unknown, zero, zero_at
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import Rule, register
from jasgnas.rules.degrees import Degree, of_product


def _both(first: np.ndarray | None, second: np.ndarray | None, combine: np.ufunc) -> np.ndarray | None:
    if first is None or second is None:
        return second if first is None else first
    return combine(first, second)


class Contraction(Rule):
    """A sum of products of entries of two operands."""

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [of_product(operands)]


class DotGeneral(Contraction):
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
        pairs = zip(left_batch, right_batch, strict=True)
        batch = [_both(left.axes[i], right.axes[j], np.logical_or) for i, j in pairs]
        left_free, right_free = self._free(eqn)
        return [zero_at([*batch, *(left.axes[i] for i in left_free), *(right.axes[j] for j in right_free)])]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        left, right = operands
        (left_summed, right_summed), _ = eqn.params["dimension_numbers"]
        axes = self._outer(eqn, results[0])
        for i, j in zip(left_summed, right_summed, strict=True):
            # An entry that meets a zero is not needed.
            size = eqn.in_avals[0].shape[i]
            axes[0][i], axes[1][j] = ~right.axis(j, size), ~left.axis(i, size)
        return list(map(normalize, axes))

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        left, right = operands
        assert left.layout != NOTHING and right.layout != NOTHING
        (left_summed, right_summed), _ = eqn.params["dimension_numbers"]
        axes = self._outer(eqn, layout)
        for i, j in zip(left_summed, right_summed, strict=True):
            # An entry that one side does not store is zero there, or zero on the other side.
            axes[0][i] = axes[1][j] = _both(left.layout[i], right.layout[j], np.logical_and)
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


class Convolution(Contraction):
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
        return [zero_at(axes)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        if eqn.params["batch_group_count"] > 1:
            return super().needs(eqn, operands, results)
        data, kernel = operands
        (need,) = results
        assert need != NOTHING
        groups = np.asarray(self._outputs(eqn, need).any(1))[:, None]
        outputs = need[eqn.params["dimension_numbers"].out_spec[1]]
        inputs = np.asarray((groups & ~self._data_zeros(eqn, data)).any(0))
        both = self._operands(eqn, need, groups & ~self._kernel_zeros(eqn, kernel), outputs, inputs)
        return list(map(normalize, both))

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        if eqn.params["batch_group_count"] > 1:
            return super().execute(eqn, operands, layouts)
        data, kernel = operands
        (layout,) = layouts
        assert layout != NOTHING and data.layout != NOTHING and kernel.layout != NOTHING
        lhs, rhs, out = eqn.params["dimension_numbers"]
        wanted = self._outputs(eqn, layout)
        groups = np.asarray(wanted.any(1))
        # Every group that stays must stay with the same number of outputs and of inputs.
        outputs = (groups[:, None] & wanted.any(0)).reshape(-1)
        stored = filled(data.layout[lhs[1]], eqn.in_avals[0].shape[lhs[1]]).reshape(len(groups), -1)
        inputs = stored[groups].any(0) & filled(kernel.layout[rhs[1]], eqn.in_avals[1].shape[rhs[1]])
        axes = self._operands(eqn, layout, groups[:, None] & inputs, outputs, inputs)
        arrays = [value.to(wanted).array for value, wanted in zip(operands, axes, strict=True)]
        natural: list = [None] * len(layout)
        natural[out[0]], natural[out[1]] = layout[out[0]], outputs
        results = eqn.bind(*arrays, feature_group_count=int(groups.sum()))
        return [Sliced(results[0], tuple(natural), eqn.out_avals[0])]

    def _operands(
        self, eqn: Equation, result: Axes, data: np.ndarray, outputs: np.ndarray | None, inputs: np.ndarray
    ) -> list[Axes]:
        """Returns what of data and kernel goes with a result, given the features of the data and then of the kernel."""
        lhs, rhs, out = eqn.params["dimension_numbers"]
        features = {lhs[0]: result[out[0]], lhs[1]: data.reshape(-1)}, {rhs[0]: outputs, rhs[1]: inputs}
        return [tuple(map(side.get, range(len(lhs)))) for side in features]

    def _outputs(self, eqn: Equation, result: Axes) -> np.ndarray:
        """Returns the marked features of a result, one row per group."""
        _, rhs, out = eqn.params["dimension_numbers"]
        marked = filled(result[out[1]], eqn.in_avals[1].shape[rhs[0]])
        return marked.reshape(eqn.params["feature_group_count"], -1)

    def _data_zeros(self, eqn: Equation, data: Zeros) -> np.ndarray:
        """Returns the zero input features of the data, one row per group."""
        axis = eqn.params["dimension_numbers"].lhs_spec[1]
        return data.axis(axis, eqn.in_avals[0].shape[axis]).reshape(eqn.params["feature_group_count"], -1)

    def _kernel_zeros(self, eqn: Equation, kernel: Zeros) -> np.ndarray:
        """Returns the kernel's zero input features, the same ones for every group, as one row."""
        axis = eqn.params["dimension_numbers"].rhs_spec[1]
        return kernel.axis(axis, eqn.in_avals[1].shape[axis])[None, :]


register(DotGeneral(), "dot_general")
register(Convolution(), "conv_general_dilated")
