"""Arrays, settings and comparisons in float64, in which exact means equal up to 1e-10."""

import jax
import jax.numpy as jnp
import numpy as np

F = jnp.float64
D = {"param_dtype": F, "dtype": F}


def double_settings(rngs):
    return {"rngs": rngs, **D}


def random_array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), F)


def perturbed(tree):
    """Makes every floating-point array positive and different from its initial value: no zero, no one is left."""
    rng = np.random.default_rng(0)

    def perturb(value):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return jnp.asarray(np.abs(np.asarray(value) + 0.3 * rng.normal(size=value.shape)), F)

    return jax.tree.map(perturb, tree)


def assert_same(expected, found):
    expected, found = jax.tree.leaves(expected), jax.tree.leaves(found)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10 * np.max(np.abs(a)))
