"""Random sub-networks: whether they return what the full networks at zero return, and are as large as predicted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jasgnas


class Mixtures(NamedTuple):
    """What random sub-networks of one network showed.

    Attributes:
        num: number of them.
        error: largest difference of an output to that of the network with the same parameters at zero, in float64, as a
            part of the largest output.
        same_params: how many had as many parameters as predicted.
        same_macs: how many had as many multiply-adds.
        excess: the largest part by which more of either was predicted.
    """

    num: int
    error: float
    same_params: int
    same_macs: int
    excess: float


def draw_mixture(space: jasgnas.SearchSpace, seed: int) -> list[int]:
    """Returns a random valid set: about half of the structures that can go, and channels of each dimension."""
    rng = np.random.default_rng(seed)
    removed: list[int] = []
    for index in rng.permutation(len(space.structures)).tolist():
        if rng.random() < 0.5 and space.is_valid([*removed, index]):
            removed.append(index)
    for dimension in space.dimensions:
        channels = rng.permutation(np.asarray(dimension.groups)).tolist()
        removed += channels[: rng.integers(0, dimension.size)]
    return removed


def check_mixtures(model: nnx.Module, x: jax.ShapeDtypeStruct, num: int) -> Mixtures:
    """Removes random mixtures of structures and channels of an abstract network, whose parameters are drawn here.

    Raises:
        jasgnas.VerificationError: a sub-network returns something else.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        graphdef, params, *others = nnx.split(model, nnx.Param, ...)
        params = jax.tree.map(lambda leaf: _drawn(rng, leaf) * rng.choice([-1, 1], leaf.shape), params)
        full = nnx.merge(graphdef, params, *jax.tree.map(lambda leaf: _drawn(rng, leaf), others))
        full.eval()
        is_real = jnp.issubdtype(x.dtype, jnp.floating)
        data = jnp.asarray(rng.normal(size=x.shape) if is_real else rng.integers(0, 2, x.shape))
        space = jasgnas.search_space(full, data, channels=True)
        errors, sizes = [], []
        for seed in range(num):
            removed = draw_mixture(space, seed)
            zeroed = space.zero(full, removed)
            subnet = jasgnas.construct_subnet(space, zeroed, allow_nothing=True)
            expected, found = _apply(zeroed, data), _apply(subnet, data)
            errors.append(float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected))))
            left = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, data)
            sizes.append((space.subnet_size(removed), left))
            if not errors[-1] < 1e-10:
                raise jasgnas.VerificationError(f"seed {seed}: the sub-network is off by {errors[-1]:.1e}")
        same_params, same_macs = (sum(said[i] == left[i] for said, left in sizes) for i in range(2))
        return Mixtures(num, max(errors), same_params, same_macs, _excess(sizes))


@nnx.jit
def _apply(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x)


def _excess(sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> float:
    return max(said / found - 1 for each in sizes for said, found in zip(*each, strict=True))


def _drawn(rng: np.random.Generator, leaf: Any) -> Any:
    """Returns random positive values for an abstract leaf, none near zero; zeros for counters and random keys."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.zeros((*leaf.shape, 2), jnp.uint32))
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros(leaf.shape, leaf.dtype)
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
    return jnp.asarray((rng.random(leaf.shape) + 0.1) / np.sqrt(fan_in))
