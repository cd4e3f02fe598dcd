"""Operators that mix the entries along some axes and leave the others alone: reductions, windows, running sums."""

from collections.abc import Sequence

from jasgnas.jaxpr import Equation
from jasgnas.masks import Zeros
from jasgnas.rules.base import PassThrough, register


class Reduce(PassThrough):
    """A reduction whose value over zeros is zero, such as a maximum."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        reduced = set(eqn.params["axes"])
        left = iter(range(len(eqn.out_avals[0].shape)))
        return [[None if axis in reduced else next(left) for axis in range(len(eqn.in_avals[0].shape))]]


class Sum(Reduce):
    """A sum: zeros along the summed axes can be left out."""

    sums = True


class Window(PassThrough):
    """A sliding window: axes on which it is one entry wide and moves by one pass through."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        p = eqn.params
        steps = zip(p["window_dimensions"], p["window_strides"], p["padding"], p["base_dilation"], strict=True)
        return [
            [axis if (w, s, tuple(pad), d) == (1, 1, (0, 0), 1) else None for axis, (w, s, pad, d) in enumerate(steps)]
        ]


class Cumulative(PassThrough):
    """A running sum, product, maximum or minimum along one axis."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [[None if axis == eqn.params["axis"] else axis for axis in range(len(eqn.out_avals[0].shape))]]


class CumulativeLogSumExp(Cumulative):
    """A running log-sum-exp: axes pass through, zeros do not."""

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


register(Sum(), "reduce_sum")
register(
    Reduce(), "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_xor"
)
register(Window(), "reduce_window_max", "reduce_window_min", "reduce_window_sum")
register(Cumulative(), "cummax", "cummin", "cumprod", "cumsum")
register(CumulativeLogSumExp(), "cumlogsumexp")
