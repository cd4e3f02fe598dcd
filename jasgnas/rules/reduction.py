"""Operators that mix the entries along some axes and leave the others alone: reductions, windows, sums, sorts."""

from collections.abc import Sequence
from functools import reduce

from jasgnas.jaxpr import Equation
from jasgnas.masks import NOTHING, Layout, Need, Sliced, Zeros, union, zeros
from jasgnas.rules.base import PassThrough, Rule, register


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


class Sort(Rule):
    """A sort along one axis, of one operand or of several by the order of the first ones."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        mixed = eqn.params["dimension"]
        return [
            value if value.everywhere else zeros(None if i == mixed else mask for i, mask in enumerate(value.axes))
            for value in operands
        ]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        return [self._common(eqn, results)] * len(operands)

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        wanted = self._common(eqn, layouts)
        results = eqn.bind(*(value.to(wanted).array for value in operands))
        return [Sliced(array, wanted, aval) for array, aval in zip(results, eqn.out_avals, strict=True)]

    def _common(self, eqn: Equation, wanted: Sequence[Need]) -> Need:
        """Returns what is wanted of any result; of the sorted axis everything."""
        need = reduce(union, wanted)
        assert need != NOTHING
        return tuple(None if i == eqn.params["dimension"] else mask for i, mask in enumerate(need))


register(Sum(), "reduce_sum")
register(
    Reduce(), "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_xor"
)
register(Window(), "reduce_window_max", "reduce_window_min", "reduce_window_sum")
register(Cumulative(), "cummax", "cummin", "cumprod", "cumsum")
register(CumulativeLogSumExp(), "cumlogsumexp")
register(Sort(), "sort")
# A scan over data, such as a recurrent layer, is understood well enough to be removed as a whole, and no further.
register(Rule(), "scan")
