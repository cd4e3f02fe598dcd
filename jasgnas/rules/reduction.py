"""Operators that mix the entries along some axes and leave the others alone: reductions, windows, sorts, transforms."""

from collections.abc import Sequence
from functools import reduce

from jasgnas.jaxpr import Equation
from jasgnas.masks import NOTHING, Layout, Need, Sliced, Zeros, union, unknown, zeros
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


class WindowOfAnyKind(Window):
    """A sliding window of which nothing more is known: axes pass through, zeros do not."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        return [*super().destinations(eqn), ()]

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        return False


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

    def axis(self, eqn: Equation) -> int:
        """Returns the axis that is sorted."""
        return eqn.params["dimension"]

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return [self._kept(eqn, value) for value in operands]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        return [self._common(eqn, results)] * len(operands)

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        wanted = self._common(eqn, layouts)
        results = eqn.bind(*(value.to(wanted).array for value in operands))
        return [Sliced(array, wanted, aval) for array, aval in zip(results, eqn.out_avals, strict=True)]

    def _kept(self, eqn: Equation, value: Zeros) -> Zeros:
        mixed = self.axis(eqn)
        return value if value.everywhere else zeros(None if i == mixed else mask for i, mask in enumerate(value.axes))

    def _common(self, eqn: Equation, wanted: Sequence[Need]) -> Need:
        """Returns what is wanted of any result; of the sorted axis everything."""
        need = reduce(union, wanted)
        assert need != NOTHING
        return tuple(None if i == self.axis(eqn) else mask for i, mask in enumerate(need))


class TopK(Sort):
    """The largest entries along one axis and their indices, which are not zero where the entries are."""

    def axis(self, eqn: Equation) -> int:
        axis = eqn.params["axis"] if "axis" in eqn.params else eqn.params["reduction_dimension"]
        return axis % len(eqn.in_avals[0].shape)

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return [self._kept(eqn, operands[0]), unknown(len(eqn.out_avals[1].shape))]

    def _common(self, eqn: Equation, wanted: Sequence[Need]) -> Need:
        # The axis is shorter in the results.
        return super()._common(eqn, [self._elsewhere(eqn, need) for need in wanted])

    def _elsewhere(self, eqn: Equation, need: Need) -> Need:
        return need if need == NOTHING else tuple(None if i == self.axis(eqn) else m for i, m in enumerate(need))


class Fourier(PassThrough):
    """A Fourier transform of the last axes."""

    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        ndim = len(eqn.out_avals[0].shape)
        kept = ndim - len(eqn.params["fft_lengths"])
        return [[axis if axis < kept else None for axis in range(ndim)]]


register(Sum(), "reduce_sum")
register(
    Reduce(), "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_xor"
)
register(Window(), "reduce_window_max", "reduce_window_min", "reduce_window_sum")
register(Cumulative(), "cummax", "cummin", "cumprod", "cumsum")
register(CumulativeLogSumExp(), "cumlogsumexp")
register(WindowOfAnyKind(), "reduce_window")
register(Sort(), "sort")
register(TopK(), "approx_top_k", "top_k")
register(Fourier(), "fft")
# A scan over data, such as a recurrent layer, is understood well enough to be removed as a whole, and no further.
register(Rule(), "scan")
