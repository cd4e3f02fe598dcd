"""Haiku transforms go in, and come back as Haiku transforms."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from tests.networks import randomize

X = jax.random.normal(jax.random.key(0), (8, 6))


def network(x):
    left = jnp.tanh(hk.Linear(5, name="left")(x))
    right = hk.dropout(hk.next_rng_key(), 0.2, jax.nn.relu(hk.Linear(5, name="right")(x)))
    return hk.Linear(4, name="head")(left + right)


def normed(x, is_training):
    def branch(name):
        norm = hk.BatchNorm(True, True, 0.9, name=f"{name}_norm")
        return jax.nn.relu(norm(hk.Linear(5, name=name)(x), is_training))

    return hk.Linear(4, name="head")(branch("left") + jnp.tanh(branch("right")))


def test_a_transform_comes_back_as_one():
    transformed = hk.transform(network)
    params = randomize(transformed.init(jax.random.key(1), X))
    key = jax.random.key(2)
    space = jasgnas.search_space(transformed, key, X, params=params)
    assert [group.paths for group in space.groups] == [("left/b", "left/w"), ("right/b", "right/w")]
    sparse = space.zero(params, [0])
    subnet, sub_params = jasgnas.construct_subnet(space, sparse, verify=True)
    assert isinstance(subnet, hk.Transformed) and sorted(sub_params) == ["head", "right"]
    np.testing.assert_allclose(subnet.apply(sub_params, key, X), transformed.apply(sparse, key, X), rtol=1e-5)
    assert jasgnas.count_params(sub_params) == space.subnet_size([0])[0]
    with pytest.raises(jasgnas.ArgumentError, match="not initialised"):
        subnet.init(key, X)


def test_without_a_key():
    transformed = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(x) + jnp.tanh(hk.Linear(4)(x))))
    params = randomize(transformed.init(jax.random.key(1), X))
    space = jasgnas.search_space(transformed, X, params=params)
    subnet, sub_params = jasgnas.construct_subnet(space, space.zero(params, [1]))
    expected = transformed.apply(space.zero(params, [1]), X)
    np.testing.assert_allclose(jax.jit(subnet.apply)(sub_params, X), expected, rtol=1e-5)


def test_a_transform_with_a_state(tmp_path):
    transformed = hk.transform_with_state(normed)
    params, state = transformed.init(jax.random.key(1), X, True)
    params = randomize(params)
    _, state = transformed.apply(params, state, None, X, True)
    space = jasgnas.search_space(transformed, None, X, is_training=False, params=(params, state))
    assert len(space.groups) == 2
    for removed in ([0], [1]):
        sparse, _ = space.zero((params, state), removed)
        subnet, (sub_params, sub_state) = jasgnas.construct_subnet(space, (sparse, state), verify=True)
        assert isinstance(subnet, hk.TransformedWithState)
        assert jasgnas.count_params(sub_params) == space.subnet_size(removed)[0]
        full_state = state
        for training in (True, True, False):
            expected, full_state = transformed.apply(sparse, full_state, None, X, is_training=training)
            found, sub_state = subnet.apply(sub_params, sub_state, None, X, is_training=training)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert 0 < len(jax.tree.leaves(sub_state)) < len(jax.tree.leaves(full_state))
    jasgnas.save(tmp_path / "saved", subnet, (sub_params, sub_state))
    again, holder = jasgnas.load(tmp_path / "saved", transformed)
    np.testing.assert_array_equal(again.apply(*holder, None, X, is_training=False)[0], found)
    np.testing.assert_allclose(jasgnas.load(tmp_path / "saved")(X), found, rtol=1e-5, atol=1e-6)


def test_a_state_must_come_with_the_parameters():
    transformed = hk.transform_with_state(normed)
    params, _ = transformed.init(jax.random.key(1), X, True)
    with pytest.raises(jasgnas.ArgumentError, match=r"params=\(params, state\); got dict"):
        jasgnas.search_space(transformed, None, X, is_training=False, params=params)
