"""H2SPG among other optax transformations, and on trees of every flavour."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jasgnas.optimizer.h2spg import h2spg
from jasgnas.optimizer.state import DONE, PROJECTION, h2spg_state
from tests.optimizer.h2spg_problem import (
    CANDIDATES,
    DEFAULT,
    SHAPES,
    assert_trees_equal,
    default_history,
    jax_grads,
    make_h2spg,
    make_params,
    make_problem,
    make_step,
    mask,
    train,
    zero_groups,
)


def test_scan_with_donated_state_equals_single_steps_and_compiles_once():
    history = default_history()
    tx, num_traces = DEFAULT, 0

    def body(carry, number):
        nonlocal num_traces
        num_traces += 1
        return make_step(tx)(*carry, number), None

    run = jax.jit(lambda carry, start: jax.lax.scan(body, carry, start + jnp.arange(4))[0], donate_argnums=0)
    params = make_params()
    carry = (params, tx.init(params))
    for start in range(0, 16, 4):
        carry = run(carry, start)
    assert params["stem/kernel"].is_deleted()
    assert run._cache_size() == 1 and num_traces == 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), carry, history[-1])
    np.testing.assert_array_equal(h2spg_state(carry[1]).zero, h2spg_state(history[-1][1]).zero)


def test_accumulated_gradients():
    history = default_history()
    tx = optax.MultiSteps(DEFAULT, every_k_schedule=2)
    params, opt_state = train(tx, make_params(), 32, lambda params, number: jax_grads(params, number // 2))[-1]
    assert_trees_equal(zero_groups(params), zero_groups(history[-1][0]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])
    assert int(h2spg_state(opt_state).step) == 16


def test_multi_transform():
    history = default_history()
    labels = {path: "stem" if path == "stem/kernel" else "search" for path in SHAPES}
    tx = optax.multi_transform({"search": DEFAULT, "stem": optax.adam(0.1)}, labels)
    params, opt_state = train(tx, make_params(), 16)[-1]
    assert int(h2spg_state(opt_state).phase) == DONE
    for path in SHAPES.keys() - {"stem/kernel"}:
        np.testing.assert_allclose(params[path], history[-1][0][path], rtol=1e-5, atol=1e-6)


def test_injected_hyperparameters():
    history = default_history()
    inject = optax.inject_hyperparams(
        h2spg, static_args=("target_groups", "warmup_steps", "projection_steps", "periods", "score")
    )
    last = inject(
        CANDIDATES,
        learning_rate=lambda step: 0.1,
        target_groups=3,
        warmup_steps=4,
        projection_steps=6,
        lmbda=1e-3,
        score="magnitude",
    )
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9), last)
    params, opt_state = train(tx, make_params(), 16)[-1]
    assert float(opt_state[-1].hyperparams["lmbda"]) == pytest.approx(1e-3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])


def test_steps_that_are_not_finite_are_as_if_they_had_not_been():
    history = default_history()

    def grads_fn(params, number):
        # Steps 2, 7 and 13 are of no use: in warm-up, in the projection and afterwards.
        bad = (number == 2) | (number == 7) | (number == 13)
        number = number - (number > 2) - (number > 7) - (number > 13)
        return jax.tree.map(lambda grad: jnp.where(bad, jnp.nan, grad), jax_grads(params, number))

    tx = optax.apply_if_finite(DEFAULT, max_consecutive_errors=3)
    params, opt_state = train(tx, make_params(), 19, grads_fn)[-1]
    assert int(h2spg_state(opt_state).step) == 16
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])


def nest(params):
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    nested = {}
    for path, x in params.items():
        *scopes, name = path.split("/")
        scope = nested
        for key in scopes:
            scope = scope.setdefault(key, {})
        scope[name] = x
    return nested


TREES = {
    "linen": lambda params: {"params": nest(params)},
    "state of variables": lambda params: nnx.State(jax.tree.map(nnx.Param, nest(params))),
    "pure state": lambda params: nnx.State(nest(params)),
}


# In the middle of the projection, so that every kind of group is met.
TREE_TX = make_h2spg()
TREE_STATE = TREE_TX.init(make_params())._replace(
    step=jnp.int32(6), redundant=mask([0, 3]), zero=mask([0]), start_norms=jnp.full(5, 3.0), phase=jnp.int32(PROJECTION)
)
TREE_UPDATES = jax.tree.map(lambda x: -0.1 * x + 0.01, make_params(1))


@pytest.fixture(scope="module")
def flat_tree_result():
    return jax.jit(TREE_TX.update)(TREE_UPDATES, TREE_STATE, make_params())


@pytest.mark.parametrize("make_tree", TREES.values(), ids=TREES)
def test_trees_of_every_flavour_give_the_same_updates(make_tree, flat_tree_result):
    updates, state = flat_tree_result
    params = make_tree(make_params())
    found, found_state = jax.jit(TREE_TX.update)(make_tree(TREE_UPDATES), TREE_STATE, params)
    assert_trees_equal(found, make_tree(updates))
    assert_trees_equal(found_state, state)
    assert_trees_equal(TREE_TX.init(params), TREE_TX.init(make_params()))


class Net(nnx.Module):
    """A module whose parameters have the paths and shapes of the space."""

    def __init__(self, params):
        for name, value in nest(params).items():
            is_leaf = not isinstance(value, dict)
            setattr(self, name, nnx.Param(value) if is_leaf else nnx.Dict(jax.tree.map(nnx.Param, value)))


def test_nnx_optimizer():
    model = Net(make_params())
    optimizer = nnx.Optimizer(model, DEFAULT, wrt=nnx.Param)
    grads = make_problem()

    @nnx.jit
    def step(model, optimizer, number):
        def loss_fn(model):
            # A loss whose gradient at the present parameters is that of the problem.
            params = {"/".join(path): x[...] for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}
            constant = jax.lax.stop_gradient(grads(params, number, sin=jnp.sin))
            return sum(jnp.sum(constant[path] * params[path]) for path in params)

        optimizer.update(model, nnx.grad(loss_fn)(model))

    for number in range(12):
        step(model, optimizer, number)
    state = h2spg_state(optimizer.opt_state)
    assert int(state.phase) == DONE and isinstance(state.zero, jax.Array)
    params = {"/".join(path): x[...] for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert zero_groups(params) == np.flatnonzero(state.zero).tolist()
    assert len(zero_groups(params)) == 3
