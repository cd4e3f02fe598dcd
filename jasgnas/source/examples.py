"""Random values for the operands of a piece of a network, to compare two ways of computing it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.program.jaxpr import key_implementation
from jasgnas.source.sizes import concrete


def example(aval: Any, seed: int, sizes: Mapping[str, int], *, spread: float = 0.0, whole: int = 3) -> Any:
    """Returns a random array; real numbers have a standard deviation of 3, beyond the bounds of a relu6.

    Args:
        aval: its shape and dtype.
        seed: tells it from others.
        sizes: numbers for symbolic sizes.
        spread: by how many powers of ten real numbers are smaller at some indices of the first and of the last axis
            than at others, so that some of them are small beside what a norm adds to its variance.
        whole: whole numbers are smaller than this, and not negative.
    """
    rng = np.random.default_rng(seed)
    shape = concrete(tuple(aval.shape), sizes)
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(seed, impl=key_implementation(aval.dtype)), shape)
    if aval.dtype == bool:
        return jnp.asarray(rng.random(shape) < 0.5)
    if jnp.issubdtype(aval.dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, whole, shape), aval.dtype)
    values = 3 * rng.normal(size=shape)
    if spread and len(shape) > 1:
        for axis in (0, len(shape) - 1):
            powers = rng.uniform(-spread, 0, shape[axis])
            values = values * np.expand_dims(10.0**powers, tuple(other for other in range(len(shape)) if other != axis))
    if jnp.issubdtype(aval.dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(values, aval.dtype)
