"""Operators that mix the entries along some axes and leave the others alone: reductions, windows, sorts, transforms."""

from collections.abc import Sequence

import jax
import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Layout, Zeros, broken, unknown, zero
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import PassThrough, register
from jasgnas.rules.degrees import Degree, of_power
from jasgnas.rules.shape import padded


class Reduce(PassThrough):
    """A reduction, such as a maximum, that is zero over zeros, but not over an axis without any entries."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        reduced = set(eqn.params["axes"])
        left = iter(range(len(eqn.out_avals[0].shape)))
        return [[None if axis in reduced else next(left) for axis in range(len(eqn.in_avals[0].shape))]]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return all(eqn.in_avals[0].shape[axis] for axis in eqn.params["axes"])


class ReduceProduct(Reduce):
    """A product, or that all entries are true: zero with any zero along the axes, and one over nothing."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        has_zero = any(operands[0].axes[axis] is not None for axis in eqn.params["axes"])
        absorbs = has_zero and self.keeps_zeros(eqn, operands)
        return [zero(len(eqn.out_avals[0].shape))] if absorbs else super().zeros(eqn, operands)


class ReduceExtreme(Reduce):
    """A maximum or minimum, which is infinite over nothing."""

    keeps_degree = True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return super().zeros(eqn, operands) if self.keeps_zeros(eqn, operands) else [_extreme_of_nothing(eqn)]


class Sum(Reduce):
    """A sum, or a like operation with zero over nothing."""

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return True


class PlainSum(Sum):
    """A sum proper: zeros along the summed axes can be left out."""

    keeps_degree = True

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (value,), (layout,) = operands, layouts
        if value.layout == NOTHING or layout == NOTHING:
            return [Sliced(None, NOTHING, eqn.out_avals[0])]
        places = zip(value.layout, self.destinations(eqn)[0], strict=True)
        stored = value.to(tuple(mask if place is None else layout[place] for mask, place in places)).array
        return [Sliced(eqn.bind(stored)[0], layout, eqn.out_avals[0])]


def _extreme_of_nothing(eqn: Equation) -> Zeros:
    """Returns what is known of a result some entries of which are a maximum or minimum of no entries."""
    (aval,) = eqn.out_avals
    return (broken if jax.dtypes.issubdtype(aval.dtype, np.inexact) else unknown)(len(aval.shape))


class Window(PassThrough):
    """A sliding window: axes on which it is one entry wide and moves by one pass through."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        p = eqn.params
        steps = zip(p["window_dimensions"], p["window_strides"], p["padding"], p["base_dilation"], strict=True)
        axes = [
            axis if (w, s, tuple(pad), d) == (1, 1, (0, 0), 1) else None for axis, (w, s, pad, d) in enumerate(steps)
        ]
        # Of several arrays at once, all are followed by their initial values.
        return [axes if aval.shape else () for aval in eqn.in_avals]


class WindowExtreme(Window):
    """A maximum or minimum over windows, infinite where one meets nothing but padding and holes of a dilation."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        axes = range(len(eqn.in_avals[0].shape))
        return super().zeros(eqn, operands) if all(_is_met(eqn, axis) for axis in axes) else [_extreme_of_nothing(eqn)]


def _is_met(eqn: Equation, axis: int) -> bool:
    """Tells whether every position of a window along an axis meets an entry of the operand."""
    width, stride, (low, high), base_dilation, dilation = (
        eqn.params[name][axis]
        for name in ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    )
    if (width, low, high, base_dilation) == (1, 0, 0, 1):
        return True  # Also where the size of the axis is a symbol.
    holes = padded(np.zeros(eqn.in_avals[0].shape[axis], bool), low, high, base_dilation - 1)
    starts = np.arange(eqn.out_avals[0].shape[axis]) * stride
    return not holes[starts[:, None] + np.arange(width) * dilation].all(1).any()


class WindowOfAnyKind(Window):
    """A sliding window of which nothing more is known: axes pass through, zeros do not."""

    keeps_degree = False

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


class Cumulative(PassThrough):
    """A running sum, maximum or minimum along one axis."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [[None if axis == eqn.params["axis"] else axis for axis in range(len(eqn.out_avals[0].shape))]]


class CumulativeProduct(Cumulative):
    """A running product along one axis."""

    keeps_degree = False


class CumulativeLogSumExp(Cumulative):
    """A running log-sum-exp: axes pass through, zeros do not."""

    keeps_degree = False

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


class Sort(PassThrough):
    """A sort along one axis, of one operand or of several by the order of the first ones."""

    def axis(self, eqn: Equation) -> int:
        """Returns the axis that is sorted."""
        return eqn.params["dimension"]

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        mixed = self.axis(eqn)
        return [[None if axis == mixed else axis for axis in range(len(aval.shape))] for aval in eqn.in_avals]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        # The order of entries that grow in proportion stays.
        return [None] * len(operands) if None in operands else operands


class TopK(Sort):
    """The largest entries along one axis and their indices, which are not zero where the entries are."""

    def axis(self, eqn: Equation) -> int:
        axis = eqn.params["axis"] if "axis" in eqn.params else eqn.params["reduction_dimension"]
        return axis % len(eqn.in_avals[0].shape)

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return [*super().zeros(eqn, operands), unknown(len(eqn.out_avals[1].shape))]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [operands[0], of_power(operands[0], 0)]


class Fourier(PassThrough):
    """A Fourier transform of the last axes."""

    keeps_degree = True

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        ndim = len(eqn.out_avals[0].shape)
        first = ndim - len(eqn.params["fft_lengths"])
        return [[axis if axis < first else None for axis in range(ndim)]]


register(PlainSum(), "reduce_sum")
register(Sum(), "reduce_or", "reduce_xor")
register(Reduce(), "argmax", "argmin")
register(ReduceProduct(), "reduce_and", "reduce_prod")
register(ReduceExtreme(), "reduce_max", "reduce_min")
register(Window(), "reduce_window_sum")
register(WindowExtreme(), "reduce_window_max", "reduce_window_min")
register(Cumulative(), "cummax", "cummin", "cumsum")
register(CumulativeProduct(), "cumprod")
register(CumulativeLogSumExp(), "cumlogsumexp")
register(WindowOfAnyKind(), "reduce_window")
register(Sort(), "sort")
register(TopK(), "approx_top_k", "top_k")
register(Fourier(), "fft")
