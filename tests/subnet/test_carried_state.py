"""What `shrink` makes of trees of any kind: parameters and optimizer states keep all that is not gone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

import jasgnas
from jasgnas.optimizer.state import DONE
from tests.networks import sampled

X = jnp.sin(jnp.arange(24.0).reshape(6, 4))
Y = jnp.cos(jnp.arange(18.0).reshape(6, 3))


class Fields(NamedTuple):
    first: Any
    last: Any
    left: Any
    right: Any


@struct.dataclass
class Record:
    first: Any
    last: Any
    left: Any
    right: Any


# Where the four matrices lie. The first two stay; one of the others goes.
TREES = {
    "a list with empty tuples": lambda a, b, c, d: [a, b, [c, ()], [d, ()]],
    "a list in which indices shift": lambda a, b, c, d: [a, [], b, (), c, d],
    "tuples and None": lambda a, b, c, d: (a, b, (None, c, None), (d,)),
    "a named tuple": lambda a, b, c, d: Fields(a, b, {"kernel": c, "nothing": {}}, {"kernel": d}),
    "a dataclass": lambda a, b, c, d: Record(a, [b], (c, {}), {"kernel": d}),
    "numbers as keys": lambda a, b, c, d: {0: a, 1: {10: b, 2: c}, 2: {0: d}},
    "names of an optimizer": lambda a, b, c, d: {"count": a, "mu": b, "nu": {"mu": c}, "trace": [d], "inner_state": {}},
}


def network(params, x):
    first, last, left, right = (params[key] for key in "abcd")
    h = x @ first
    return (h + jax.nn.relu(h @ left) + jnp.tanh(h @ right)) @ last


def make_problem(make_tree):
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 5), "b": (5, 3), "c": (5, 5), "d": (5, 5)}
    arrays = {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in shapes.items()}
    order = [path for _, path in sorted(zip(jax.tree.leaves(make_tree(*range(4))), range(4), strict=True))]

    def fn(params, x):
        leaves = jax.tree.leaves(params)
        return network({name: leaves[place] for name, place in zip("abcd", order, strict=True)}, x)

    params = make_tree(*(arrays[name] for name in "abcd"))
    return fn, params, jasgnas.search_space(fn, X, params=params)


def is_square(params):
    return jax.tree.map(lambda w: w.shape[0] == w.shape[1], params)


def labels(params):
    return jax.tree.map(lambda w: "square" if w.shape[0] == w.shape[1] else "other", params)


OPTIMIZERS = {
    "adam": lambda: optax.adam(0.02),
    "links without a state": lambda: optax.chain(
        optax.clip(1.0), optax.identity(), optax.sgd(0.05, momentum=0.9), optax.scale(1.0)
    ),
    "masked": lambda: optax.chain(optax.masked(optax.trace(0.5), is_square), optax.adam(0.02)),
    "all masked": lambda: optax.chain(
        optax.masked(optax.trace(0.5), lambda params: jax.tree.map(lambda _: False, params)), optax.sgd(0.05)
    ),
    "labelled": lambda: optax.multi_transform(
        {"square": optax.adam(0.02), "other": optax.sgd(0.05, momentum=0.9), "unused": optax.adam(0.1)}, labels
    ),
    "frozen": lambda: optax.partition({"square": optax.sgd(0.05), "other": optax.set_to_zero()}, labels),
    "sharpness-aware": lambda: optax.contrib.sam(optax.adam(0.02), optax.sgd(0.01), sync_period=2),
    "accumulated": lambda: optax.MultiSteps(optax.adam(0.02), 2).gradient_transformation(),
}


def make_step(fn, tx):
    @jax.jit
    def step(params, state):
        opt_state, averaged, rest = state
        grads = jax.grad(lambda params: jnp.mean((fn(params, X) - Y) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, (opt_state, optax.incremental_update(params, averaged, 0.5), rest)

    return step


def train(step, carry, num_steps):
    for _ in range(num_steps):
        carry = step(*carry)
    return carry


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-3, atol=2e-5)


CASES = [(tree, "adam") for tree in TREES] + [
    (tree, optimizer)
    for tree in ("a list with empty tuples", "tuples and None", "names of an optimizer")
    for optimizer in list(OPTIMIZERS)[1:]
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("tree", "optimizer"), sampled(CASES, 2))
def test_what_is_not_gone_stays_as_it_is(tree, optimizer):
    """The structure is that of a fresh state of the smaller parameters, and training goes on as without shrinking."""
    fn, params, space = make_problem(TREES[tree])
    inner = OPTIMIZERS[optimizer]()
    links = jasgnas.h2spg(
        space, learning_rate=0.02, target_groups=1, warmup_steps=2, projection_steps=4, score="magnitude"
    )
    tx = optax.chain(inner, links)
    rest = {
        "masks": jax.tree.map(lambda w: (w > 0).astype(jnp.int8), params),
        "steps": jnp.int32(7),
        "history": [jnp.ones(2), ()],
        "nothing": (None, {}, optax.EmptyState()),
    }
    step = make_step(fn, tx)
    full = train(step, (params, (tx.init(params), params, rest)), 10)
    assert int(jasgnas.h2spg_state(full[1][0], space).phase) == DONE

    (sub_fn, sub_params), sub_state = jasgnas.shrink(space, *full)
    assert jasgnas.count_params(sub_params) == jasgnas.count_params(params) - 25
    opt_state, averaged, sub_rest = sub_state
    shapes = jax.tree.map(jnp.shape, sub_params)
    assert jax.tree.map(jnp.shape, averaged) == jax.tree.map(jnp.shape, sub_rest["masks"]) == shapes
    assert all(mask.dtype == jnp.int8 for mask in jax.tree.leaves(sub_rest["masks"]))
    fresh = jax.eval_shape(inner.init, sub_params)
    assert jax.tree.structure(opt_state[0]) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, opt_state[0]) == jax.tree.map(jnp.shape, fresh)
    for name in ("steps", "history", "nothing"):
        assert_close(sub_rest[name], rest[name])

    found = train(make_step(sub_fn, tx), (sub_params, sub_state), 6)
    full = train(step, full, 6)
    np.testing.assert_allclose(sub_fn(found[0], X), fn(full[0], X), rtol=1e-3, atol=1e-4)
    (_, expected), expected_state = jasgnas.shrink(space, *full)
    assert_close(found, (expected, expected_state))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("removed", [(0,), (1,), (0, 1)], ids=str)
def test_parameters_keep_their_tree(tree, removed):
    fn, params, space = make_problem(TREES[tree])
    full = space.zero(params, removed)
    sub_fn, sub_params = jasgnas.construct_subnet(space, full)
    assert jasgnas.count_params(sub_params) == 85 - 25 * len(removed)
    assert type(sub_params) is type(params)
    np.testing.assert_allclose(sub_fn(sub_params, X), fn(full, X), rtol=1e-5, atol=1e-5)
    assert sum(np.shape(leaf) == (5, 5) for leaf in jax.tree.leaves(sub_params)) == 2 - len(removed)


def test_every_array_of_a_list_of_metrics_stays():
    """What has as many items as the parameters, but of no shape of theirs, is not taken for them."""
    fn, params, space = make_problem(TREES["a list in which indices shift"])
    full = space.zero(params, [0])
    losses = (jnp.float32(1), jnp.float32(2))
    _, state = jasgnas.shrink(space, full, (losses, {"losses": list(losses)}), removed=[0])
    assert_close(state, (losses, {"losses": list(losses)}))


def test_leaves_that_are_no_arrays_are_named():
    with pytest.raises(jasgnas.ArgumentError, match=r"scale \(2\.0\): use jnp\.asarray"):
        jasgnas.search_space(lambda p, x: x * p["scale"], X, params={"scale": 2.0})
