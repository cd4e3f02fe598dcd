"""Elementwise operators: entry for entry, so that every axis of the result is an axis of every operand.

Operands without axes, and axes of size one, are broadcast.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import reduce
from itertools import combinations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Axes, Layout, Need, Zeros, broken, unknown, zero_at
from jasgnas.program.sliced import Sliced
from jasgnas.rules.base import Rule, Sourced, register
from jasgnas.rules.degrees import Degree, common, is_constant, of_power, of_product


class Elementwise(Sourced):
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
            values: one number for each operand, None where it is not known; it may then be any finite one. Not all
                are None.

        Returns:
            The number that every backend computes, or None. NaN where a result is not finite though its operands are.
        """
        del eqn
        return self._at_zero if all(map(_is_zero, values)) else None

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        ndim = len(eqn.out_avals[0].shape)
        constants = [value.constant for value in operands]
        is_any_known = any(value is not None for value in constants)
        if not is_any_known and not any(mask is not None for value in operands for mask in value.axes):
            return [unknown(ndim)]
        axes: list[np.ndarray | None] = [None] * ndim
        with np.errstate(all="ignore"):
            everywhere = self._settled(eqn, constants) if is_any_known else None
            if not self._is_finite(constants, everywhere):
                return [broken(ndim)]
            for axis, masks in _masks(operands, ndim):
                result = self._settled(eqn, [0 if i in masks else value for i, value in enumerate(constants)])
                if result is None or (result != 0 and np.isfinite(result)):
                    continue
                region = reduce(np.logical_and, masks.values())
                if not np.count_nonzero(region):
                    continue
                if result != 0:
                    return [broken(ndim)]
                known = axes[axis]
                axes[axis] = region if known is None else known | region
        return [zero_at(axes) if everywhere is None else Zeros((None,) * ndim, everywhere)]

    def _is_finite(self, constants: Sequence[Any], result: Any) -> bool:
        """Tells whether a result is finite, or known not to be, as where one case of a mask is -inf on purpose."""
        if result is not None:
            return not np.isnan(result) or any(map(_is_nan, constants))
        return any(value is None for value in constants) or all(map(np.isfinite, constants))

    def _settled(self, eqn: Equation, values: Sequence[Any]) -> Any:
        """Returns what `at` does if that is the same whether or not subnormal numbers count as zero.

        A backend may replace them by zero wherever it likes: 1e-40 in 32 bits is either. So a result that is itself
        subnormal may be zero, too.
        """
        choices = [
            (value, 0) if _is_subnormal(value, aval.dtype) else (value,)
            for value, aval in zip(values, eqn.in_avals, strict=True)
        ]
        first, *others = [self.at(eqn, chosen) for chosen in product(*choices)]
        if not others and (first is None or first == 0):
            return first
        dtype = eqn.out_avals[0].dtype
        if any(other is not None and np.isnan(other) for other in others):
            return np.nan
        if first is None:
            return None
        if first != 0 and np.issubdtype(dtype, np.complexfloating):
            return None if np.isfinite(first) else np.nan  # Backends round complex numbers differently.
        tiny = _is_subnormal(first, dtype)
        return first if all(other == first or (tiny and _is_zero(other)) for other in others) else None

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        exponent = _EXPONENTS.get(eqn.primitive)
        return super().degrees(eqn, operands) if exponent is None else [of_power(common(operands), exponent)]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        return [_fitted(result, aval, eqn.out_avals[0]) for aval in eqn.in_avals]


# With which power an operator grows where all of its operands grow in proportion: f(s·x, s·y) = s^p · f(x, y) for every
# s > 0. That holds of the gradient, too, and so not of `stop_gradient`.
_EXPONENTS: dict[str, float] = {
    **dict.fromkeys(("abs", "add", "add_any", "clamp", "complex", "conj", "copy", "imag", "max", "min", "name"), 1),
    **dict.fromkeys(("neg", "real", "reduce_precision", "rem", "sub"), 1),
    **dict.fromkeys(("layout_constraint", "reshard", "sharding_constraint"), 1),
    **dict.fromkeys(("atan2", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "sign"), 0),
    "cbrt": 1 / 3,
    "rsqrt": -1 / 2,
    "sqrt": 1 / 2,
    "square": 2,
}


def _is_zero(value: Any) -> bool:
    return value is not None and value == 0


def _is_subnormal(value: Any, dtype: Any) -> bool:
    if value is None or value == 0 or not jax.dtypes.issubdtype(dtype, np.inexact):
        return False
    return bool(abs(value) < jnp.finfo(dtype).tiny)


def _is_nan(value: Any) -> bool:
    """Tells whether a constant is not a number; then it was put there on purpose, to be selected or not."""
    return value is not None and bool(np.isnan(value))


def _masks(operands: Sequence[Zeros], ndim: int) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
    """Yields axes of the result with every set of operands of which zeros are known on the axis, and their masks."""
    whole = [(i, value.axes) for i, value in enumerate(operands) if len(value.axes) == ndim]
    for axis in range(ndim):
        masks = [(i, mask) for i, axes in whole if (mask := axes[axis]) is not None]
        for size in range(1, len(masks) + 1):
            for chosen in combinations(masks, size):
                yield axis, dict(chosen)


def _fitted(axes: Axes, operand: Any, result: Any) -> Axes:
    """Carries what is said of the axes of the result over to an operand, which may be broadcast."""
    if not operand.shape:
        return ()
    sizes = zip(axes, operand.shape, result.shape, strict=True)
    return tuple(mask if size == full else None for mask, size, full in sizes)


class KeepsZeros(Elementwise):
    """Zero where all its operands are (f(0) = 0, f(0, 0) = 0), and finite where they are."""

    def __init__(self) -> None:
        """Describes an operator whose value at zero is zero."""
        super().__init__(0)


class Singular(Elementwise):
    """An operator of which nothing is known, not even that it is finite where an operand is a certain number."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        return None if all(value is None for value in values) else np.nan


class Computes(Elementwise):
    """An operator of which the results for known numbers are known."""

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
        return self._function(*_typed(eqn, values))


def _typed(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    return [np.asarray(value).astype(aval.dtype)[()] for value, aval in zip(values, eqn.in_avals, strict=True)]


class Approximates(Elementwise):
    """A function that backends round differently, and that is not finite everywhere."""

    def __init__(self, function: Callable[[Any], Any], at_zero: Any = None):
        """Describes an operator.

        Args:
            function: the same on NumPy scalars; any that is finite for the same numbers will do.
            at_zero: its value at zero if every backend computes that exactly.
        """
        super().__init__(at_zero)
        self._function = function

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        result = super().at(eqn, values)
        if result is not None or values[0] is None:
            return result
        return None if np.isfinite(self._function(*_typed(eqn, values))) else np.nan


class Rounds(Computes):
    """A sum or product: known if it is exact, since compilers reorder roundings and leave some of them out."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        result = super().at(eqn, values)
        if result is None or not any(values):  # nothing is rounded where all are zero
            return result
        dtype = eqn.out_avals[0].dtype
        if not jax.dtypes.issubdtype(dtype, np.floating) or not all(map(np.isfinite, values)):
            return result
        if not np.isfinite(result):
            return np.nan
        exact = self._function(*map(_fraction, _typed(eqn, values)))
        if exact == _fraction(result):
            return result
        # A number too small to be told from zero stands for all such numbers.
        least = jnp.finfo(dtype).smallest_subnormal
        return (least if exact > 0 else -least) if abs(result) < jnp.finfo(dtype).tiny else None


def _fraction(number: Any) -> Fraction:
    """Returns a finite real scalar exactly."""
    return Fraction(float(number) if jax.dtypes.issubdtype(number.dtype, np.floating) else int(number))


class Absorbs(Rounds):
    """A product: zero where any of its operands is."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        if not any(map(_is_zero, values)):
            return super().at(eqn, values)
        return 0 if all(value is None or np.isfinite(value) for value in values) else np.nan

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return [of_product(operands)]


class Adds(Rounds):
    """A sum or difference: an operand that is zero everywhere is not added at all."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        first, second = operands
        layout = layouts[0]
        shape = eqn.out_avals[0].shape
        if second.layout == NOTHING and first.aval.shape == shape:
            return [first.to(layout)]
        if first.layout == NOTHING and second.aval.shape == shape:
            added = second.to(layout)
            return [added._replace(array=jax.lax.neg(added.array)) if eqn.primitive == "sub" else added]
        return super().execute(eqn, operands, layouts)


class Divides(Elementwise):
    """A quotient or remainder: zero where the first operand is, not a number where the second one is zero."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        numerator, denominator = values
        if denominator is None:
            # An integer divided by zero is a number, which nobody would notice: 0 / 0 is -1.
            noticed = jax.dtypes.issubdtype(eqn.out_avals[0].dtype, np.inexact)
            return 0 if _is_zero(numerator) and noticed else None
        if _is_zero(denominator) or np.isnan(denominator):
            return np.nan
        if numerator is None or _is_zero(numerator):
            return numerator
        return None if np.isfinite(operator.truediv(*_typed(eqn, values))) else np.nan

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        numerator, denominator = operands
        is_quotient = eqn.primitive == "div"
        return [of_product([numerator, of_power(denominator, -1)])] if is_quotient else super().degrees(eqn, operands)


class Powers(Elementwise):
    """A power: zero where the base is, if the exponent is positive."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        base, *exponent = _typed(eqn, values)
        wide = np.promote_types(base.dtype, np.float32).type
        result = np.power(wide(base), *map(wide, exponent or [eqn.params["y"]])).astype(eqn.out_avals[0].dtype)
        if not np.isfinite(result):
            return np.nan  # Nor is it known which infinity: zero may be negative.
        return result if base == 0 else None

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        exponent = eqn.params["y"] if eqn.primitive == "integer_pow" else getattr(eqn.inputs[1], "value", np.nan)
        is_known = np.isrealobj(exponent) and np.isfinite(exponent)
        return [of_power(operands[0], float(exponent))] if is_known else super().degrees(eqn, operands)


class Shifts(Elementwise):
    """A shift of bits: zero where the first operand is."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        return 0 if _is_zero(values[0]) else None


class Selects(Elementwise):
    """`select_n(which, *cases)`: the case that is selected, if that is known, or what all cases are."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        which, *cases = values
        if which is not None and 0 <= which < len(cases):
            return cases[int(which)]
        return cases[0] if all(case is not None and case == cases[0] for case in cases) else None

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        which, *cases = operands
        return [common(cases) if is_constant(which) else None]


class Converts(Elementwise):
    """A cast: known where it is exact, since compilers leave roundings out and backends disagree beyond the range."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        (value,) = values
        dtype = eqn.out_avals[0].dtype
        if value is None or not (np.issubdtype(dtype, np.generic) or jax.dtypes.issubdtype(dtype, np.number)):
            return None
        (number,) = _typed(eqn, values)
        if dtype == np.bool_:
            return number != 0
        if jax.dtypes.issubdtype(dtype, np.complexfloating):
            return number.astype(dtype)
        cast = number.real.astype(dtype)
        if jax.dtypes.issubdtype(dtype, np.integer):
            whole = not jax.dtypes.issubdtype(number.dtype, np.inexact)
            return cast if whole or (np.isfinite(number) and int(number.real) == int(cast)) else None
        if not np.isfinite(number):
            return cast
        if not np.isfinite(cast):
            return np.nan
        return cast if _fraction(cast) == _fraction(number.real) else None

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        dtype = eqn.out_avals[0].dtype
        if jax.dtypes.issubdtype(dtype, np.inexact):
            return operands
        # Whether a number is zero does not change with its size.
        return [of_power(operands[0], 0)] if dtype == np.bool_ else super().degrees(eqn, operands)


class Narrows(KeepsZeros):
    """`reduce_precision`, beyond whose range nothing is finite."""

    def at(self, eqn: Equation, values: Sequence[Any]) -> Any:
        (value,) = values
        largest = 2.0 ** (2 ** (eqn.params["exponent_bits"] - 1) - 1)
        return super().at(eqn, values) if value is None or abs(value) < largest else np.nan


class Constrains(KeepsZeros):
    """A wish about where an array is laid out, which can be granted only to an array of the original shape."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        (layout,) = layouts
        return super().execute(eqn, operands, layouts) if _is_whole(layout) else [operands[0].to(layout)]


def _is_whole(layout: Layout) -> bool:
    return layout != NOTHING and all(mask is None for mask in layout)


class Barrier(Rule):
    """`optimization_barrier`: every operand is handed on as it is."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        return operands

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        return results

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        return operands

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        values = [value.to(layout) for value, layout in zip(operands, layouts, strict=True)]
        arrays = iter(eqn.bind(*(value.array for value in values if value.layout != NOTHING)))
        return [value if value.layout == NOTHING else value._replace(array=next(arrays)) for value in values]


class Places(Barrier):
    """`device_put`: like a barrier, except that it moves arrays to where only those of the original shapes can be."""

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        if all(map(_is_whole, layouts)):
            return super().execute(eqn, operands, layouts)
        return [value.to(layout) for value, layout in zip(operands, layouts, strict=True)]


register(Elementwise(), "atan2", "bessel_i0e", "clz", "complex", "nextafter", "polynomial")
register(Elementwise(1), "cos", "erfc")
register(Elementwise(0.5), "logistic")
register(Singular(), "igamma", "igammac", "polygamma", "regularized_incomplete_beta", "zeta")
register(
    KeepsZeros(),
    *("asinh", "atan", "bessel_i1e", "cbrt", "conj", "copy", "erf", "imag", "name", "population_count", "real"),
    *("round", "sin", "stop_gradient", "tan", "tanh"),
)


def _gamma(number: Any) -> Any:
    """Is not finite where the logarithm of the gamma function and its derivatives are not."""
    return np.inf if number <= 0 and number == np.floor(number) else number * np.log(np.abs(number))


_APPROXIMATE: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "acos": (np.arccos, None),
    "acosh": (np.arccosh, None),
    "asin": (np.arcsin, 0),
    "atanh": (np.arctanh, 0),
    "cosh": (np.cosh, 1),
    "digamma": (_gamma, None),
    "erf_inv": (np.arctanh, 0),
    "exp": (np.exp, 1),
    "exp2": (np.exp2, 1),
    "expm1": (np.expm1, 0),
    "lgamma": (_gamma, np.inf),
    "log": (np.log, -np.inf),
    "log1p": (np.log1p, 0),
    "log2": (np.log2, -np.inf),
    "one_minus_square": (lambda number: 1 - np.square(number), None),
    "rsqrt": (lambda number: 1 / np.sqrt(number), None),
    "sinh": (np.sinh, 0),
    "sqrt": (np.sqrt, 0),
    "square": (np.square, 0),
}
for _name, (_like, _at_zero) in _APPROXIMATE.items():
    register(Approximates(_like, _at_zero), _name)
register(Narrows(), "reduce_precision")
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
