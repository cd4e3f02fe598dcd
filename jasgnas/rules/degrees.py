"""Degrees of homogeneity: with which power of a positive number a value grows when parameters are multiplied by it.

A value v has degree d in some parameters x if v(s·x) = s^d · v(x) for every s > 0, whatever all other values are. A
convolution has degree 1 in its kernel, its square degree 2, and a sum has a degree only if both sides have the same
one: a convolution with a bias has degree 1 in kernel and bias together, and none in the kernel alone.
"""

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

Degree: TypeAlias = float | Literal["any"] | None
"""The degree of a value: `CONSTANT` where it does not depend on the parameters, `PROPORTIONAL` where it grows as they
do, `ANY` where all of it is zero, and None where it has no degree, or none that is known."""

CONSTANT: Final = 0.0
PROPORTIONAL: Final = 1.0
ANY: Final[Literal["any"]] = "any"


def is_constant(degree: Degree) -> bool:
    """Tells whether a value of a degree stays what it is."""
    return degree in (CONSTANT, ANY)


def common(degrees: Iterable[Degree]) -> Degree:
    """Returns the one degree that all have, as the operands of a sum must, or None."""
    found = set(degrees) - {ANY}
    return found.pop() if len(found) == 1 else None if found else ANY


def of_product(degrees: Iterable[Degree]) -> Degree:
    """Returns the degree of a product of finite values."""
    known = list(degrees)
    if ANY in known:
        return ANY
    numbers = [degree for degree in known if isinstance(degree, float)]
    return sum(numbers) if len(numbers) == len(known) else None


def of_power(degree: Degree, exponent: float) -> Degree:
    """Returns the degree of what grows with a power of a value."""
    if isinstance(degree, float):
        return degree * exponent
    # A power of nothing but zeros is zero, one, or not finite.
    return None if degree is None or exponent < 0 else ANY if exponent > 0 else CONSTANT
