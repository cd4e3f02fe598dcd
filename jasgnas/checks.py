"""Checks of what a user gives, and of what functions of the user's return."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
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


def checked_batches(batches: Any) -> Iterator[Any]:
    """Yields the batches of an iterable; raises an `ArgumentError` if it is none, or there are no batches."""
    is_one_batch = isinstance(batches, Mapping | str) or hasattr(batches, "shape")
    if is_one_batch or not isinstance(batches, Iterable):
        raise ArgumentError(f"batches must be an iterable of batches, [batch] for one, got a {type(batches).__name__}")
    batch = nothing = object()
    for batch in batches:
        yield batch
    if batch is nothing:
        raise ArgumentError(
            "batches must hold at least one batch, got none; an iterator that was used before is at its end"
        )


def loss_value(result: Any) -> jax.Array:
    """Returns the loss, given what a loss function has returned: the loss, or a tuple of the loss and more.

    Raises:
        ArgumentError: it is no real number.
    """
    loss = result[0] if isinstance(result, tuple) and result else result
    if not hasattr(loss, "dtype") or np.shape(loss) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        found = f"{loss.dtype} of shape {np.shape(loss)}" if hasattr(loss, "dtype") else repr(loss)
        raise ArgumentError(f"a loss function must return the loss, a real scalar, or (loss, aux), got {found}")
    return jnp.asarray(loss)
