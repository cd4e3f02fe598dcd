"""All removals of a small network, compared with the full network that holds the zeros."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jasgnas


def drawn(**shapes):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def held(space):
    return [{each.path for each in group.slices} for group in space.groups]


def check_all_sets(space, fn, params, args, others):
    """Every set is valid if and only if the output varies; every valid one is constructed, compared and counted."""
    num_valid = 0
    fn = jax.jit(fn)
    for number in range(len(space.groups) + 1):
        for removed in itertools.combinations(range(len(space.groups)), number):
            zeroed = space.zero(params, removed)
            expected = fn(zeroed, *args)
            varies = float(jnp.abs(fn(zeroed, *others) - expected).max()) > 1e-6
            assert space.is_valid(removed) == varies, removed
            if removed and varies:
                num_valid += 1
                subnet, left = jasgnas.construct_subnet(space, zeroed)
                np.testing.assert_allclose(subnet(left, *args), expected, atol=1e-5 * float(jnp.abs(expected).max()))
                assert space.subnet_size(removed) == (jasgnas.count_params(left), count_macs(subnet, left, args))
    return num_valid


def count_macs(subnet, left, args):
    return jasgnas.count_macs(subnet, *args, params=left)
