"""Elementwise operators: entry for entry, so that every axis of the result is an axis of every operand.

Operands without axes, and axes of size one, are broadcast.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jasgnas.jaxpr import Equation
from jasgnas.masks import NOTHING, Axes, Layout, Need, Sliced, Zeros, join, meet, unknown
from jasgnas.rules.base import Rule, register


class Elementwise(Rule):
    """An elementwise operator of which nothing more is known."""

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        ndim = len(eqn.out_avals[0].shape)
        return [self.known(eqn, [_lift(value, ndim) for value in operands])]

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        """Returns the zeros of the result; operands all have its number of axes."""
        del operands
        return unknown(len(eqn.out_avals[0].shape))

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


def _fitted(axes: Axes, operand: Any, result: Any) -> Axes:
    """Carries what is said of the axes of the result over to an operand, which may be broadcast."""
    if not operand.shape:
        return ()
    sizes = zip(axes, operand.shape, result.shape, strict=True)
    return tuple(mask if size == full else None for mask, size, full in sizes)


def _lift(value: Zeros, ndim: int) -> Zeros:
    return value if len(value.axes) == ndim else Zeros((None,) * ndim, value.constant)


class KeepsZeros(Elementwise):
    """Zero where all its operands are (f(0) = 0, f(0, 0) = 0)."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        return _anonymous(meet(operands))


class Absorbs(Elementwise):
    """Zero where any of its operands is: a product."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        return _anonymous(join(operands))


def _anonymous(value: Zeros) -> Zeros:
    """Forgets a constant other than zero: the operator has changed it."""
    return value if value.everywhere else Zeros(value.axes)


class Divides(Elementwise):
    """A quotient or remainder: zero where the first operand is and the second is not known to be."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        numerator, denominator = operands
        return unknown(len(numerator.axes)) if denominator.anywhere else _anonymous(numerator)


class Adds(KeepsZeros):
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


class Bounds(Elementwise):
    """A maximum or minimum: a zero survives beside another zero, or beside a constant that it beats."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        pick = max if eqn.primitive == "max" else min
        others = [value for value in operands if value.constant is None or pick(value.constant, 0) != 0]
        return _anonymous(meet(others or operands))


class Clamps(Elementwise):
    """`clamp(low, x, high)`: zero where x is, if zero lies within constant bounds."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        low, x, high = operands
        inside = low.constant is not None and low.constant <= 0 and high.constant is not None and high.constant >= 0
        return _anonymous(x) if inside else unknown(len(x.axes))


class Powers(Elementwise):
    """A power: zero where the base is, if the exponent is a positive constant."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        base = operands[0]
        exponent = operands[1].constant if len(operands) == 2 else eqn.params["y"]
        return _anonymous(base) if exponent is not None and exponent > 0 else unknown(len(base.axes))


class Selects(Elementwise):
    """`select_n(which, *cases)`: zero where every case is."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        return _anonymous(meet(operands[1:]))


class Converts(Elementwise):
    """A cast: zeros stay zeros and constants stay known."""

    def known(self, eqn: Equation, operands: Sequence[Zeros]) -> Zeros:
        (value,) = operands
        if value.constant is None or not np.issubdtype(eqn.out_avals[0].dtype, np.number):
            return _anonymous(value)
        return value._replace(constant=np.asarray(value.constant).astype(eqn.out_avals[0].dtype)[()])


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


register(
    Elementwise(),
    *("acos", "acosh", "atan2", "bessel_i0e", "clz", "complex", "cos", "cosh", "digamma", "eq", "erfc", "exp", "exp2"),
    *(
        "ge",
        "gt",
        "igamma",
        "igammac",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log2",
        "logistic",
        "lt",
        "ne",
        "nextafter",
        "not",
    ),
    *("nextafter", "not", "one_minus_square", "polygamma", "regularized_incomplete_beta", "rsqrt", "zeta"),
)
register(
    KeepsZeros(),
    *("abs", "asin", "asinh", "atan", "atanh", "bessel_i1e", "cbrt", "ceil", "conj", "copy", "erf"),
    *(
        "erf_inv",
        "expm1",
        "floor",
        "imag",
        "log1p",
        "name",
        "neg",
        "or",
        "population_count",
        "real",
        "reduce_precision",
    ),
    *("round", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh", "xor"),
)
register(Constrains(), "layout_constraint", "reshard", "sharding_constraint")
register(Barrier(), "optimization_barrier")
register(Absorbs(), "and", "mul")
register(Adds(), "add", "add_any", "sub")
register(Divides(), "div", "rem")
register(Bounds(), "max", "min")
register(Clamps(), "clamp")
register(Powers(), "integer_pow", "pow")
register(Selects(), "select_n")
register(Converts(), "convert_element_type")
