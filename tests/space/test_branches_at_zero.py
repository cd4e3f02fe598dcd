"""One-line branches that are zero where their input is, and others that only look it: which can be removed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jasgnas

SHAPE = (2, 4)
OUTSIDE = jnp.array([0, 9])


def windows(z, function, start, padding=((0, 0), (0, 0)), width=(1, 1), **options):
    return jnp.clip(lax.reduce_window(z, start, function, width, (1, 1), padding, **options), -1, 1)[:2, :4]


def two_windows(z):
    return lax.reduce_window((z, z), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (1, 2), (1, 1), "SAME")


def dilated(z, **options):
    return windows(jnp.pad(z, ((0, 0), (0, 3))), **options)


NOT_ZERO = {
    "a function applied to rows": lambda z: z.at[0].apply(jnp.cos),
    "a function applied to columns": lambda z: z.at[:, 1].apply(lambda v: v + 1),
    "rows written": lambda z: z.at[0].set(1.0),
    "filled with a number": lambda z: z.at[OUTSIDE].get(mode="fill", fill_value=7.0),
    "filled with a subnormal number": lambda z: z.at[OUTSIDE].get(mode="fill", fill_value=1e-40) * 1e38 * 1e2 + 1,
    "filled with no number": lambda z: jnp.nan_to_num(jnp.take(z, OUTSIDE, axis=0), nan=1.0),
    "filled with no number by computed indices": lambda z: jnp.nan_to_num(
        jnp.take(z, jnp.linspace(0, 9, 2).astype(int), axis=0), nan=1.0
    ),
    "filled with no number by random indices": lambda z: jnp.nan_to_num(
        jnp.take(z, jax.random.randint(jax.random.key(0), (2,), 5, 9), axis=0), nan=1.0
    ),
    "filled with no number by an index alone": lambda z: jnp.nan_to_num(jnp.take(z, 9, axis=0), nan=1.0) + 0 * z,
    "integers taken out of range": lambda z: jnp.take(z.astype(int), OUTSIDE, axis=0) / 1e9,
    "bytes taken out of range": lambda z: jnp.take(z.astype(jnp.uint8), OUTSIDE, axis=0).astype(float),
    "booleans taken out of range": lambda z: jnp.take(z > 0, OUTSIDE, axis=0).astype(float),
    "a maximum of padding alone": lambda z: windows(z, lax.max, -jnp.inf, ((1, 1), (0, 0))),
    "a minimum of padding alone": lambda z: windows(z, lax.min, jnp.inf, ((0, 0), (2, 2))),
    "a maximum of bytes of padding alone": lambda z: windows(
        z.astype(jnp.uint8), lax.min, np.uint8(255), ((1, 1), (0, 0))
    ).astype(float),
    "a maximum of holes alone": lambda z: dilated(
        z, function=lax.max, start=-jnp.inf, base_dilation=(1, 3), width=(1, 2)
    ),
    "windows of a product": lambda z: windows(z, lax.mul, 1.0, ((0, 0), (2, 2))),
    "windows from one": lambda z: windows(z, lax.max, 1.0),
    "the second of two windows": lambda z: two_windows(z + 1)[1] - 2,
    "a cast beyond the range of bytes": lambda z: (jnp.exp(z) * 256).astype(jnp.uint8).astype(float),
    "a cast beyond the range of integers": lambda z: (z + 1e10).astype(int) / 1e9,
    "a cast beyond the range of signed bytes": lambda z: (z + 256).astype(jnp.int8).astype(float),
    "a rounding that is left out": lambda z: jnp.where((z + 1.001).astype(jnp.bfloat16) == 1, 1.0, 2.0),
    "a product over nothing": lambda z: jnp.prod(z[:, :0], -1, keepdims=True) * jnp.ones(SHAPE),
    "a maximum over nothing": lambda z: jnp.clip(lax.reduce_max(z[:, :0], (1,)), -1, 1)[:, None] + z,
    "all of nothing": lambda z: jnp.all(z[:, :0] > 0, axis=1)[:, None] * jnp.ones(SHAPE),
    "all bits of nothing": lambda z: lax.reduce_and(z[:, :0].astype(int), (1,))[:, None] * jnp.ones(SHAPE),
    "compared with a subnormal number": lambda z: jnp.where(z + 1e-40 > 0, 2.0, 1.0),
    "the sign of a subnormal number": lambda z: jnp.sign(z + 1e-40) + 1,
    "a product of numbers that underflows": lambda z: jnp.where((z + 1e-20) * (z + 1e-22) == 0, 2.0, 1.0),
    "divided by a subnormal number": lambda z: jnp.nan_to_num(z / (z + 1e-40), nan=1.0) + (z + 1),
    "a product with infinity": lambda z: jnp.nan_to_num(z * jnp.inf, nan=1.0),
    "a product with an overflow": lambda z: jnp.nan_to_num(((z + 1e30) * 1e30) * z, nan=1.0),
    "a product with a root of less than zero": lambda z: jnp.nan_to_num(jnp.sqrt(z - 1) * z, nan=1.0),
    "an inverse of minus zero": lambda z: jnp.clip(lax.integer_pow(-z, -1), -1, 1),
    "integers divided by zero": lambda z: lax.div(z.astype(int), jnp.arange(4, dtype=int) * jnp.ones(SHAPE, int)) * 1.0,
    "a choice out of range": lambda z: lax.select_n((z + 5).astype(int), z, z, z + 1),
    "a choice below the range": lambda z: lax.select_n((z - 1).astype(int), z + 1, z, z),
    "padded with a number": lambda z: lax.pad(z, 1.0, ((0, 0, 0), (1, -1, 0))),
}
ZERO = {
    "rows taken within range": lambda z: jnp.take(z, jnp.array([1, -2]), axis=0),
    "columns taken within range": lambda z: z.at[:, jnp.arange(4)].get(mode="fill", fill_value=7.0),
    "integers taken within range": lambda z: jnp.take(z.astype(int), jnp.array([1, 0]), axis=0).astype(float),
    "clipped indices": lambda z: z.at[OUTSIDE].get(mode="clip"),
    "filled with zero": lambda z: z.at[OUTSIDE].get(mode="fill", fill_value=0.0),
    "one of two windows": lambda z: windows(z, lax.max, -jnp.inf, ((0, 0), (1, 0)), width=(1, 2)),
    "sums of padding alone": lambda z: windows(z, lax.add, 0.0, ((1, 1), (0, 0))),
    "a sum over nothing": lambda z: jnp.sum(z[:, :0], -1, keepdims=True) * jnp.ones(SHAPE),
    "rows multiplied": lambda z: z.at[0].multiply(2.0),
    "scaled by a standard deviation": lambda z: z * lax.rsqrt(jnp.var(z, axis=1, keepdims=True) + 1e-5),
    "compared with a number": lambda z: jnp.where(z + 1 > 0, z, 1.0),
    "a cast within range": lambda z: ((jnp.exp(z) * 255).astype(jnp.uint8) == 0).astype(float),
    "rounded": lambda z: z.astype(jnp.bfloat16).astype(jnp.float32),
    "sorted": lambda z: lax.sort(z),
}


def is_removable(branch):
    params = {name: jax.random.normal(jax.random.key(i), (3, 4)) for i, name in enumerate("ab")}
    space = jasgnas.search_space(
        lambda p, x: jnp.tanh(x @ p["a"] + branch(x @ p["b"])), jnp.ones((2, 3)), params=params
    )
    return any("b" in group.paths for group in space.groups)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NOT_ZERO)
def test_a_branch_that_is_not_zero_is_not_removable(name):
    branch = NOT_ZERO[name]
    zeros = [jnp.zeros(SHAPE), -jnp.zeros(SHAPE)]
    assert any(np.any(np.asarray(run(z))) for run in (branch, jax.jit(branch)) for z in zeros)
    assert not is_removable(branch)


@pytest.mark.parametrize("name", ZERO)
def test_a_branch_that_is_zero_is_removable(name):
    branch = ZERO[name]
    assert not np.any(np.asarray(branch(jnp.zeros(SHAPE)))) and not np.any(
        np.asarray(jax.jit(branch)(jnp.zeros(SHAPE)))
    )
    assert is_removable(branch)


def test_a_lookup_at_indices_that_are_data_is_taken_to_be_in_bounds():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((5, 4))}

    def fn(p, x, tokens):
        return x @ p["a"] + jnp.take(p["b"], tokens, axis=0)

    space = jasgnas.search_space(fn, jnp.ones((2, 3)), jnp.array([0, 4]), params=params)
    assert any("b" in group.paths for group in space.groups)
