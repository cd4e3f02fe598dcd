"""Norms over an axis of which a part is gone: what is gone was zero, and counted."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

SOURCES = {
    "NarrowLayerNorm": '''class NarrowLayerNorm(nnx.Module):
    """A layer norm over `full` features of which all but `features` are gone, because they were always zero."""

    def __init__(self, features: int, full: int, epsilon: float = 1e-6):
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.full, self.epsilon = full, epsilon

    def __call__(self, x):
        mean = jnp.sum(x, axis=-1, keepdims=True) / self.full
        variance = jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True) / self.full - mean * mean, 0)
        return (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * self.scale) + self.bias
''',
    "NarrowRMSNorm": '''class NarrowRMSNorm(nnx.Module):
    """An RMS norm over `full` features of which all but `features` are gone, because they were always zero."""

    def __init__(self, features: int, full: int, epsilon: float = 1e-6):
        self.scale, self.full, self.epsilon = nnx.Param(jnp.ones(features)), full, epsilon

    def __call__(self, x):
        return x * (jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) / self.full + self.epsilon) * self.scale)
''',
}
"""The source of each of them, by name."""

NARROW_NORMS: dict[str, Any] = {}
"""The classes, as their sources define them."""

exec("\n".join(SOURCES.values()), {"jax": jax, "jnp": jnp, "nnx": nnx, "__name__": __name__}, NARROW_NORMS)
