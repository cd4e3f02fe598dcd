"""Elementwise operators: entry for entry, so that every axis of the result is an axis of every operand.

Operands without axes, and axes of size one, are broadcast.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import jax
import numpy as np

from jasgnas.jaxpr import Equation
from jasgnas.masks import NOTHING, Axes, Layout, Need, Sliced, Zeros, broken, zeros
from jasgnas.rules.base import Rule, register


class Elementwise(Rule):
    """An elementwise operator, told by what it makes of single numbers of which only some are known."""

    def __init__(self, at_zero: Any = None):
        """Describes an operator.

        Args:
            at_zero: its value where all operands are zero, infinity included; None if nothing is to be said.
        """
        self._at_zero = at_zero

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        """Returns the result for single numbers, as far as it is known.

        Args:
            eqn: the equation.
            values: one number for each operand, None where it is not known; it may then be any finite one.

        Returns:
            The number that every backend computes, NaN included, or None.
        """
        del eqn
        return self._at_zero if all(map(_is_zero, values)) else None

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        ndim = len(eqn.out_avals[0].shape)
        constants = [value.constant for value in operands]
        axes: list[np.ndarray | None] = [None] * ndim
        with np.errstate(all="ignore"):
            everywhere = self.at(eqn, constants)
            if everywhere is not None and np.isnan(everywhere) and not any(map(_is_nan, constants)):
                return [broken(ndim)]
            for axis in range(ndim):
                for zero_here, region in _regions(operands, axis, ndim):
                    result = self.at(eqn, [0 if i in zero_here else value for i, value in enumerate(constants)])
                    if result is not None and not np.isfinite(result):
                        return [broken(ndim)]
                    if result is not None and result == 0:
                        known = axes[axis]
                        axes[axis] = region if known is None else known | region
        return [zeros(axes) if everywhere is None else Zeros((None,) * ndim, everywhere)]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        del operands
        (need,) = results
        assert need != NOTHING
        return [_fitted(need, aval, eqn.out_avals[0]) for aval in eqn.in_avals]

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        assert layout != NOTHING
        aval = eqn.out_avals[0]
        stored = [value.to(_fitted(layout, value.aval, aval)).array for value in operands]
        return [Sliced(eqn.bind(*stored)[0], layout, aval)]


def _is_zero(value: Any) -> bool:
    return value is not None and value == 0


def _is_nan(value: Any) -> bool:
    """Tells whether a constant is not a number; then it was put there on purpose, to be selected or not."""
    return value is not None and bool(np.isnan(value))


def _regions(operands: Sequence[Zeros], axis: int, ndim: int) -> Iterator[tuple[set[int], np.ndarray]]:
    """Yields sets of operands, and the indices of an axis of the result at which all of the set are zero."""
    masks = {i: m for i, v in enumerate(operands) if len(v.axes) == ndim and (m := v.axes[axis]) is not None}
    for size in range(1, len(masks) + 1):
        for chosen in combinations(masks, size):
            region = np.logical_and.reduce([masks[i] for i in chosen])
            if region.any():
                yield set(chosen), region


def _fitted(axes: Axes, operand: Any, result: Any) -> Axes:
    """Carries what is said of the axes of the result over to an operand, which may be broadcast."""
    if not operand.shape:
        return ()
    sizes = zip(axes, operand.shape, result.shape, strict=True)
    return tuple(mask if size == full else None for mask, size, full in sizes)


class KeepsZeros(Elementwise):
    """Zero where all its operands are (f(0) = 0, f(0, 0) = 0)."""

    def __init__(self) -> None:
        """Describes an operator whose value at zero is zero."""
        super().__init__(0)


class Computes(Elementwise):
    """An operator that every backend computes exactly, so that the results for known numbers are known."""

    def __init__(self, function: Callable[..., Any]):
        """Describes an operator.

        Args:
            function: the same on NumPy scalars.
        """
        super().__init__()
        self._function = function

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        typed = (np.asarray(value).astype(aval.dtype)[()] for value, aval in zip(values, eqn.in_avals, strict=True))
        return self._function(*typed)


class Absorbs(Computes):
    """A product: zero where any of its operands is."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        if not any(map(_is_zero, values)):
            return super().at(eqn, values)
        return 0 if all(value is None or np.isfinite(value) for value in values) else np.nan


class Adds(Computes):
    """A sum or difference: an operand that is zero everywhere is not added at all."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        first, second = operands
        layout = layouts[0]
        shape = eqn.out_avals[0].shape
        if second.layout == NOTHING and first.aval.shape == shape:
            return [first.to(layout)]
        if first.layout == NOTHING and second.aval.shape == shape:
            kept = second.to(layout)
            return [kept._replace(array=jax.lax.neg(kept.array)) if eqn.primitive == "sub" else kept]
        return super().execute(eqn, operands, layouts)


class Divides(Elementwise):
    """A quotient or remainder: zero where the first operand is, not a number where the second one is zero."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        numerator, denominator = values
        if _is_zero(denominator):
            return np.nan
        return 0 if _is_zero(numerator) else None


class Powers(Elementwise):
    """A power: zero where the base is, if the exponent is positive."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        base = values[0]
        exponent = values[1] if len(values) == 2 else eqn.params["y"]
        if not _is_zero(base) or exponent is None:
            return None
        return np.float64(0) ** exponent


class Shifts(Elementwise):
    """A shift of bits: zero where the first operand is."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        return 0 if _is_zero(values[0]) else None


class Selects(Elementwise):
    """`select_n(which, *cases)`: the case that is selected, if that is known, or what all cases are."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        which, *cases = values
        if which is not None:
            return cases[int(which)]
        return cases[0] if all(case is not None and case == cases[0] for case in cases) else None


class Converts(Elementwise):
    """A cast."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        (value,) = values
        dtype = eqn.out_avals[0].dtype
        is_number = np.issubdtype(dtype, np.generic) or jax.dtypes.issubdtype(dtype, np.number)
        return None if value is None or not is_number else np.asarray(value).astype(dtype)[()]


class Constrains(KeepsZeros):
    """A wish about where an array is laid out, which can be granted only to an array of the original shape."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        whole = layout != NOTHING and all(mask is None for mask in layout)
        return super().execute(eqn, operands, layouts) if whole else [operands[0].to(layout)]


class Barrier(Rule):
    """`optimization_barrier`: every operand is handed on as it is."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return operands

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        return results

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        kept = [value.to(layout) for value, layout in zip(operands, layouts, strict=True)]
        arrays = iter(eqn.bind(*(value.array for value in kept if value.layout != NOTHING)))
        return [value if value.layout == NOTHING else value._replace(array=next(arrays)) for value in kept]


class Places(Barrier):
    """`device_put`: like a barrier, except that it moves arrays to where only those of the original shapes can be."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        whole = all(layout != NOTHING and all(mask is None for mask in layout) for layout in layouts)
        if whole:
            return super().execute(eqn, operands, layouts)
        return [value.to(layout) for value, layout in zip(operands, layouts, strict=True)]


register(
    Elementwise(),
    *("acos", "acosh", "atan2", "bessel_i0e", "clz", "complex", "digamma", "igamma", "igammac"),
    *("nextafter", "one_minus_square", "polygamma", "polynomial", "regularized_incomplete_beta", "zeta"),
)
register(Elementwise(1), "cos", "cosh", "erfc", "exp", "exp2")
register(Elementwise(0.5), "logistic")
register(Elementwise(np.inf), "lgamma", "rsqrt")
register(Elementwise(-np.inf), "log", "log2")
register(
    KeepsZeros(),
    *("asin", "asinh", "atan", "atanh", "bessel_i1e", "cbrt", "conj", "copy", "erf", "erf_inv", "expm1", "imag"),
    *("log1p", "name", "population_count", "real", "reduce_precision", "round", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "tan", "tanh"),
)
_EXACT: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "clamp": lambda low, value, high: np.minimum(np.maximum(value, low), high),
    "eq": operator.eq,
    "floor": np.floor,
    "ge": operator.ge,
    "gt": operator.gt,
    "is_finite": np.isfinite,
    "le": operator.le,
    "lt": operator.lt,
    "max": np.maximum,
    "min": np.minimum,
    "ne": operator.ne,
    "neg": operator.neg,
    "not": np.invert,
    "or": operator.or_,
    "sign": np.sign,
    "xor": operator.xor,
}
for _name, _function in _EXACT.items():
    register(Computes(_function), _name)
register(Absorbs(operator.and_), "and")
register(Absorbs(operator.mul), "mul")
register(Adds(operator.add), "add", "add_any")
register(Adds(operator.sub), "sub")
register(Divides(), "div", "rem")
register(Powers(), "integer_pow", "pow")
register(Shifts(), "shift_left", "shift_right_arithmetic", "shift_right_logical")
register(Selects(), "select_n")
register(Converts(), "convert_element_type")
register(Constrains(), "layout_constraint", "reshard", "sharding_constraint")
register(Barrier(), "optimization_barrier")
register(Places(), "device_put")
