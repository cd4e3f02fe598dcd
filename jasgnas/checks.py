"""Checks of the options that a user gives."""

from typing import Any

import jax
import numpy as np

from jasgnas.errors import ArgumentError

NUMBERS = (int, float, np.integer, np.floating)
"""The types that a number may have."""


def check_integer(name: str, value: Any, least: int, most: float = np.inf, otherwise: str = "") -> None:
    """Raises an `ArgumentError` unless the value is an int in `[least, most]`; `otherwise` says what else it may be."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"at least {least}" if most == np.inf else f"between {least} and {most}"
        bounds += f", {otherwise}" if otherwise else ""
        hint = "; under optax.inject_hyperparams name it in static_args" if isinstance(value, jax.Array) else ""
        raise ArgumentError(f"{name} must be an int, {bounds}, got {value!r}{hint}")


def check_number(name: str, value: Any, least: float, bound: float) -> None:
    """Raises an `ArgumentError` unless the value is a number in `[least, bound)`, or an array, which may be traced."""
    if not isinstance(value, jax.Array) and not (isinstance(value, NUMBERS) and least <= value < bound):
        raise ArgumentError(f"{name} must be a number in [{least}, {bound}), got {value!r}")
