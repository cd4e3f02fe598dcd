"""Equinox modules go in, are trained, and come back as Equinox modules."""

import copy
import pickle
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jasgnas
from tests.networks import randomize

X = jax.random.normal(jax.random.key(0), (16, 6))


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear
    activation: Callable
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.norm, self.linear = eqx.nn.LayerNorm(6), eqx.nn.Linear(6, 6, key=key)
        self.activation, self.dropout = jax.nn.gelu, eqx.nn.Dropout(0.2)

    def __call__(self, x, key=None):
        return self.dropout(self.activation(self.linear(self.norm(x))), key=key)


class Residual(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list[Block]
    heads: dict[str, eqx.nn.Linear]
    scale: float
    table: np.ndarray

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.stem, self.blocks = eqx.nn.Linear(6, 6, key=keys[0]), [Block(each) for each in keys[1:4]]
        self.heads, self.scale, self.table = (
            {"main": eqx.nn.Linear(6, 4, key=keys[4])},
            2.0,
            np.arange(4, dtype=np.float32),
        )

    def __call__(self, x, key=None):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x, key=key)
        return self.heads["main"](x) * self.scale + self.table


class Normed(eqx.Module):
    left: eqx.nn.Linear
    left_norm: eqx.nn.BatchNorm
    right: eqx.nn.Linear
    right_norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, mode, key):
        left, right, head = jax.random.split(key, 3)
        self.left, self.right = eqx.nn.Linear(6, 5, key=left), eqx.nn.Linear(6, 5, key=right)
        self.left_norm, self.right_norm = (eqx.nn.BatchNorm(5, "batch", mode=mode) for _ in range(2))
        self.head = eqx.nn.Linear(5, 4, key=head)

    def __call__(self, x, state):
        left, state = self.left_norm(self.left(x), state)
        right, state = self.right_norm(self.right(x), state)
        return self.head(jnp.tanh(left) + jax.nn.relu(right)), state


def random_parameters(module):
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(randomize(arrays), rest)


def inference(module):
    return eqx.nn.inference_mode(module)


@pytest.fixture(scope="module")
def residual():
    model = random_parameters(Residual(jax.random.key(1)))
    return model, jasgnas.search_space(model, X[0])


def test_a_module_comes_back_as_a_smaller_one(residual):
    model, space = residual
    assert [set(group.paths) for group in space.groups] == [
        {f"blocks/{index}/{name}" for name in ("norm/weight", "norm/bias", "linear/weight", "linear/bias")}
        for index in range(3)
    ]
    sparse = space.zero(model, [1])
    subnet = jasgnas.construct_subnet(space, sparse, verify=True)
    assert isinstance(sparse, Residual) and isinstance(subnet, Residual)
    assert subnet.blocks[1].linear.weight is None and subnet.blocks[2].linear.weight.shape == (6, 6)
    sizes = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, X[0])
    assert sizes == space.subnet_size([1]) and jasgnas.count_params(model) == space.subnet_size([])[0]
    keys = jax.random.split(jax.random.key(2), len(X))
    for full, small in (
        (sparse, subnet),
        (sparse, copy.deepcopy(subnet)),
        (sparse, pickle.loads(pickle.dumps(subnet))),
    ):
        np.testing.assert_allclose(jax.vmap(full)(X, keys), jax.vmap(small)(X, keys), rtol=1e-5)
        expected = jax.vmap(inference(full))(X)
        np.testing.assert_allclose(jax.vmap(inference(small))(X), expected, rtol=1e-5)
        np.testing.assert_allclose(
            eqx.filter_jit(lambda module: jax.vmap(module)(X))(inference(small)), expected, rtol=1e-5
        )


def test_a_function_may_stand_for_the_call(residual):
    model, single = residual
    space = jasgnas.search_space(inference(model), X, method=lambda module, x: jax.vmap(module)(x))
    assert [group.paths for group in space.groups] == [group.paths for group in single.groups]
    subnet = inference(jasgnas.construct_subnet(space, space.zero(model, [0])))
    np.testing.assert_allclose(subnet(X), jax.vmap(inference(space.zero(model, [0])))(X), rtol=1e-5)


def test_training_and_shrinking(residual):
    model, space = residual
    tx = optax.chain(
        optax.adam(1e-2),
        jasgnas.h2spg(
            space, learning_rate=1e-2, target_groups=1, warmup_steps=14, projection_steps=5, **jasgnas.ADAM_DEFAULTS
        ),
    )

    @eqx.filter_jit
    def step(model, opt_state):
        params, rest = eqx.partition(model, eqx.is_inexact_array)

        def loss_fn(params):
            return jnp.mean(jax.vmap(inference(eqx.combine(params, rest)))(X) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, grad=grads, value=loss, value_fn=loss_fn)
        return eqx.apply_updates(model, updates), opt_state, loss

    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(20):
        model, opt_state, _ = step(model, opt_state)
    subnet, small_state = jasgnas.shrink(space, model, opt_state)
    assert jasgnas.count_params(subnet) < jasgnas.count_params(model)
    for _ in range(3):
        model, opt_state, loss = step(model, opt_state)
        subnet, small_state, small_loss = step(subnet, small_state)
        np.testing.assert_allclose(small_loss, loss, rtol=1e-4)


def batched(module, x, state):
    return jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_a_module_with_a_state(mode, tmp_path):
    model, state = eqx.nn.make_with_state(Normed)(mode, jax.random.key(3))
    model = random_parameters(model)
    _, state = batched(model, X, state)
    space = jasgnas.search_space(model, X, method=batched, variables=state)
    assert len(space.groups) == 2
    for removed in ([0], [1]):
        sparse, _ = space.zero((model, state), removed)
        subnet, sub_state = jasgnas.construct_subnet(space, (sparse, state), verify=True)
        assert jasgnas.count_params(subnet) == space.subnet_size(removed)[0]
        assert len(jax.tree.leaves(sub_state)) < len(jax.tree.leaves(state))
        full_state = state
        for _ in range(2):
            outputs, full_state = batched(sparse, X, full_state)
            found, sub_state = subnet(X, sub_state)
            np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5)
        outputs, _ = batched(inference(sparse), X + 1, full_state)
        found = inference(subnet)(X + 1, sub_state)[0]
        np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5)
    jasgnas.save(tmp_path / "saved", subnet, sub_state)
    np.testing.assert_allclose(jasgnas.load(tmp_path / "saved")(X + 1), found, rtol=1e-4, atol=1e-5)
    again = eqx.nn.make_with_state(Normed)(mode, jax.random.key(4))
    again, again_state = jasgnas.load(tmp_path / "saved", again[0], variables=again[1], method=batched)
    np.testing.assert_array_equal(inference(again)(X + 1, again_state)[0], found)


def test_saving_and_loading(residual, tmp_path):
    model, space = residual
    subnet = jasgnas.construct_subnet(space, space.zero(model, [2]))
    jasgnas.save(tmp_path / "saved", subnet, symbolic=())  # of one example no axis is a batch
    expected = inference(subnet)(X[0])
    np.testing.assert_allclose(jasgnas.load(tmp_path / "saved")(X[0]), expected, rtol=1e-5)
    again = jasgnas.load(tmp_path / "saved", Residual(jax.random.key(9)))
    np.testing.assert_array_equal(inference(again)(X[0]), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"params": {}}, "leave out `params=`"), ({"variables": {}}, "for its eqx.nn.State, .* got dict")],
)
def test_what_does_not_go_with_a_module_is_refused(given, message):
    with pytest.raises(jasgnas.ArgumentError, match=message):
        jasgnas.search_space(Residual(jax.random.key(0)), X[0], **given)
