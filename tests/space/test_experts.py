"""Experts stacked in one array: each is a channel of their axis, whatever weighs them; others keep their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from tests.space.removals import drawn

X = drawn(x=(5, 4))["x"]
PARAMS = drawn(stem=(4, 4), head=(4, 2), router=(4, 3), up=(3, 4, 6), low=(3, 6), down=(3, 6, 4), last=(3, 4))


def by_einsum(p, h):
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", h, p["up"]) + p["low"])
    return jnp.einsum("bef,efd->bed", hidden, p["down"]) + p["last"]


def by_vmap(p, h):
    run = lambda up, low, down, last: jax.nn.gelu(h @ up + low) @ down + last  # noqa: E731
    return jax.vmap(run, out_axes=1)(p["up"], p["low"], p["down"], p["last"])


def soft(p, h):
    return jax.nn.softmax(h @ p["router"])


def routed(p, h):
    values, chosen = jax.lax.top_k(h @ p["router"], 2)
    return jnp.zeros((5, 3)).at[jnp.arange(5)[:, None], chosen].set(jax.nn.softmax(values))


def by_sum(weights, experts):
    return (weights[:, :, None] * experts).sum(1)


def by_product(weights, experts):
    return jnp.einsum("be,bed->bd", weights, experts)


@pytest.mark.parametrize("mix", [by_sum, by_product])
@pytest.mark.parametrize("weigh", [soft, routed])
@pytest.mark.parametrize("experts", [by_einsum, by_vmap])
def test_each_stacked_expert_is_a_channel(experts, weigh, mix):
    def fn(p, x):
        h = x @ p["stem"]
        return (h + mix(weigh(p, h), experts(p, h))) @ p["head"]

    space = jasgnas.search_space(fn, X, params=PARAMS, channels=True)
    (own,) = [each for each in space.dimensions if each.paths == ("up", "low", "down", "last")]
    assert own.size == 3
    assert {each.path for each in space.groups[own.groups[0]].slices} == {"up", "low", "down", "last"}
    for removed in ([own.groups[1]], [own.groups[0], own.groups[2]]):
        assert space.is_valid(removed)
        zeroed = space.zero(PARAMS, removed)
        subnet, left = jasgnas.construct_subnet(space, zeroed)
        np.testing.assert_allclose(subnet(left, X), fn(zeroed, X), rtol=1e-4, atol=1e-5)
        # The weights of the others are what they were: all logits are computed.
        assert (left["up"].shape, left["router"].shape) == ((3 - len(removed), 4, 6), (4, 3))
        sizes = jasgnas.count_params(left), jasgnas.count_macs(subnet, X, params=left)
        assert space.subnet_size(removed) == sizes


def test_what_divides_by_all_is_no_channel():
    """Without the experts' own parameters nothing would make a product zero but the weights, which are needed."""

    def fn(p, x):
        h = x @ p["stem"]
        return (h + jnp.einsum("be,bed->bd", soft(p, h), jnp.stack([h, jnp.sin(h), jnp.cos(h)], 1))) @ p["head"]

    with pytest.raises(jasgnas.NoRemovableStructureError, match="router, axis 1: with what .* is needed"):
        jasgnas.search_space(fn, X, params={n: PARAMS[n] for n in ("stem", "head", "router")}, channels=True)
