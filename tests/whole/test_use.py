"""The library as it is used, rightly and wrongly: real spaces of small functions, in JAX's default 32-bit mode."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax.core import FrozenDict, freeze

import jasgnas
from jasgnas.optimizer.state import DONE, PROJECTION
from jasgnas.subnet.verify import num_values
from tests.networks import sampled


def weights(**shapes):
    return {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}


def branches(params, x):
    return x @ params["a"] + jnp.tanh(x @ params["b"]) + jnp.sin(x @ params["c"])


X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
PARAMS = weights(a=(4, 4), b=(4, 4), c=(4, 4))
SPACE = jasgnas.search_space(branches, X, params=PARAMS)


def make_h2spg(space=SPACE, **options):
    settings = {
        "learning_rate": 0.1,
        "target_groups": 1,
        "warmup_steps": 1,
        "projection_steps": 2,
        "score": "magnitude",
    }
    return jasgnas.h2spg(space, **(settings | options))


def loss(params):
    return jnp.mean(branches(params, X) ** 2)


def train(tx, params, num_steps, jit=True):
    state = tx.init(params)
    update = jax.jit(tx.update) if jit else tx.update
    for _ in range(num_steps):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# Fingerprints are numbers below 2³², half of which no int32 holds.


@pytest.mark.parametrize("width", range(3, 11))
def test_spaces_of_any_fingerprint(width):
    x, params = jnp.ones((2, width)), weights(a=(width, width), b=(width, width))
    space = jasgnas.search_space(lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]), x, params=params)
    tx = optax.chain(optax.sgd(0.1), make_h2spg(space))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)  # not jitted: values are looked at
    assert int(jasgnas.h2spg_state(state, space).space_id) == space.candidates.fingerprint
    wider = weights(a=(width, width + 1), b=(width, width + 1))
    other = jasgnas.search_space(lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]), x, params=wider)
    with pytest.raises(jasgnas.TreeMismatchError, match="another search space"):
        jasgnas.h2spg_state(state, other)
    zeroed = space.zero(params, [0])
    (_, left), _ = jasgnas.shrink(space, zeroed, state, removed=[0])
    assert sorted(left) == ["b"]


def test_both_halves_of_the_fingerprints_are_met():
    spaces = [
        jasgnas.search_space(
            lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]), jnp.ones((2, n)), params=weights(a=(n, n), b=(n, n))
        )
        for n in range(3, 11)
    ]
    assert {space.candidates.fingerprint >= 2**31 for space in spaces} == {True, False}


def test_training_shrinks_in_32_bit_mode():
    tx = optax.chain(optax.sgd(0.05, momentum=0.9), make_h2spg(learning_rate=0.05))
    params, state = train(tx, PARAMS, 4)
    assert int(jasgnas.h2spg_metrics(state)["num_zero"]) == 1
    (sub_fn, sub_params), sub_state = jasgnas.shrink(SPACE, params, state)
    assert jasgnas.count_params(sub_params) == 32
    np.testing.assert_allclose(sub_fn(sub_params, X), branches(params, X), rtol=1e-5, atol=1e-6)
    updates, sub_state = tx.update(jax.tree.map(jnp.ones_like, sub_params), sub_state, sub_params)
    assert int(jasgnas.h2spg_state(sub_state).phase) == DONE
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, sub_params)


# Groups are named by indices.


@pytest.mark.parametrize(
    "indices",
    [
        jnp.array([False, False, True]),
        np.array([True, False, False]),
        [np.bool_(True)],
        [False, True, True],
        jnp.array([0.0, 2.0]),
        [[0, 1]],
        1,
        jnp.array(1),
        None,
    ],
    ids=str,
)
def test_what_is_no_set_of_indices_is_refused(indices):
    for use in (SPACE.is_valid, SPACE.subnet_size, lambda groups: SPACE.zero(PARAMS, groups)):
        with pytest.raises(jasgnas.ArgumentError, match="expected group indices"):
            use(indices)


def test_booleans_are_told_what_to_be():
    with pytest.raises(jasgnas.ArgumentError, match=r"np.flatnonzero\(vector\)"):
        SPACE.zero(PARAMS, jnp.array([False, False, True]))


@pytest.mark.parametrize("indices", [[2], (2,), {2}, np.array([2]), jnp.array([2]), iter([2]), range(2, 3), {2: 0}])
def test_sets_of_indices(indices):
    zeroed = SPACE.zero(PARAMS, indices)
    assert [name for name in zeroed if not np.any(zeroed[name])] == ["c"]


# What does not go together.

STATE = make_h2spg().init(PARAMS)
WRONG_USES = {
    "expected the search space first": lambda: jasgnas.construct_subnet(PARAMS, SPACE),
    "expected the search space first, .* got dict": lambda: jasgnas.shrink(PARAMS, SPACE, STATE),
    "expected a search space, .* got function": lambda: make_h2spg(branches),
    "two leaves of the tree have the path 'a/b'": lambda: jasgnas.search_space(
        lambda p, x: x @ p["a/b"] + x @ p["a"]["b"], X, params={"a/b": PARAMS["a"], "a": {"b": PARAMS["b"]}}
    ),
    "b has no update; c has no update; d has an update, but is no parameter": lambda: make_h2spg().update(
        {"a": PARAMS["a"], "d": PARAMS["b"]}, STATE, PARAMS
    ),
    r"an update has the shape \(2, 4\)": lambda: make_h2spg().update(PARAMS | {"b": jnp.ones((2, 4))}, STATE, PARAMS),
    "expected an H2SPGState, got tuple. A checkpoint": lambda: make_h2spg().update(PARAMS, tuple(STATE), PARAMS),
    "expected an H2SPGState, got dict": lambda: make_h2spg().update(PARAMS, STATE._asdict(), PARAMS),
    "found 0 in a tuple.* restore it into the tree": lambda: jasgnas.h2spg_state((tuple(STATE),)),
    "these parameters are abstract": lambda: SPACE.zero(jax.eval_shape(lambda: PARAMS), [0]),
    "target_macs must be an int.* or a fraction": lambda: make_h2spg(target_groups=None, target_macs=1.5),
    "target_params must be an int.* or a fraction.*, got 0.0": lambda: make_h2spg(
        target_groups=None, target_params=0.0
    ),
    "target_params must be an int.*, got True": lambda: make_h2spg(target_groups=None, target_params=True),
    "h2spg needs the parameters": lambda: make_h2spg().update(PARAMS, STATE),
    "name them when the space is made.*keep=": lambda: optax.masked(
        make_h2spg(), {"a": True, "b": True, "c": False}
    ).init(PARAMS),
}


@pytest.mark.parametrize("match", WRONG_USES)
def test_wrong_uses(match):
    with pytest.raises(jasgnas.JasgnasError, match=match):
        WRONG_USES[match]()


def test_a_replicated_state_is_no_state():
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), STATE)
    with pytest.raises(jasgnas.ArgumentError, match=r"replicated: .* got \(4, 3\)"):
        jasgnas.h2spg_metrics(state)
    assert int(jasgnas.h2spg_metrics(jax.tree.map(lambda leaf: leaf[0], state))["num_zero"]) == 0
    num_zero = jax.vmap(lambda state: jasgnas.h2spg_metrics(state)["num_zero"])(state)
    assert num_zero.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("name", "fraction"),
    sampled(itertools.product(["target_params", "target_macs"], [0.34, 0.67, 2 / 3, np.float32(0.99)]), 3),
)
def test_fractions_of_sizes(name, fraction):
    count = {"target_params": jasgnas.count_params, "target_macs": lambda p: jasgnas.count_macs(branches, X, params=p)}
    params, state = train(make_h2spg(target_groups=None, **{name: fraction}), PARAMS, 4)
    _, sub_params = jasgnas.construct_subnet(SPACE, params, opt_state=state)
    full = count[name](PARAMS)
    found = jasgnas.count_params(sub_params) / 48 * full
    assert found <= fraction * full < found + full / 3 + 1e-6 * full


def test_a_fraction_out_of_reach():
    with pytest.raises(jasgnas.TargetError, match="the smallest sub-network found .* has 16 of its 48 parameters"):
        make_h2spg(target_groups=None, target_params=0.1)


# What wraps H2SPG, or keeps parameters from it.


def test_sharpness_aware_minimisation_blends_states_by_arithmetic():
    inner = optax.chain(optax.sgd(0.05, momentum=0.9), make_h2spg(learning_rate=0.05))
    tx = optax.contrib.sam(inner, optax.chain(optax.contrib.normalize(), optax.sgd(0.01)), sync_period=2)
    params, state = train(tx, PARAMS, 8)
    found = jasgnas.h2spg_state(state, SPACE)
    assert found.zero.dtype == found.redundant.dtype == bool and found.space_id.dtype == jnp.uint32
    (gone,) = np.flatnonzero(found.zero)
    assert [name for name in params if not np.any(params[name])] == ["abc"[gone]]
    _, sub_params = jasgnas.construct_subnet(SPACE, params, opt_state=state)
    assert jasgnas.count_params(sub_params) == 32


def test_parameters_that_h2spg_does_not_see_are_to_be_kept():
    labels = {"a": "trained", "b": "trained", "c": "frozen"}
    tx = optax.multi_transform({"trained": optax.chain(optax.sgd(0.1), make_h2spg()), "frozen": optax.sgd(0.0)}, labels)
    with pytest.raises(jasgnas.TreeMismatchError, match="c is missing.* name them when the space is made, .*keep="):
        tx.init(PARAMS)
    kept = jasgnas.search_space(branches, X, params=PARAMS, keep=("c",))
    h2spg = make_h2spg(kept)
    tx = optax.multi_transform({"trained": optax.chain(optax.sgd(0.1), h2spg), "frozen": optax.set_to_zero()}, labels)
    params, state = train(tx, PARAMS, 4)
    np.testing.assert_array_equal(params["c"], PARAMS["c"])
    _, sub_params = jasgnas.construct_subnet(kept, params, opt_state=state)
    assert len(sub_params) == 2 and "c" in sub_params


def test_frozen_parameters_that_h2spg_sees_go_to_zero_all_the_same():
    frozen = optax.masked(optax.set_to_zero(), {"a": True, "b": True, "c": True})
    params, state = train(optax.chain(optax.sgd(0.1), frozen, make_h2spg()), PARAMS, 4)
    _, sub_params = jasgnas.construct_subnet(SPACE, params, opt_state=state)
    assert jasgnas.count_params(sub_params) == 32


def test_a_state_without_its_type_does_not_shrink():
    params, state = train(optax.chain(optax.adam(0.1), make_h2spg()), PARAMS, 4)
    removed = np.flatnonzero(jasgnas.h2spg_state(state).zero)
    for lost in (jax.tree.leaves(state), {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}):
        with pytest.raises(jasgnas.ArgumentError, match="without its type. A checkpoint"):
            jasgnas.shrink(SPACE, params, lost, removed=removed)


def test_arrays_that_are_not_the_subnets():
    sub_fn, sub_params = jasgnas.construct_subnet(SPACE, SPACE.zero(PARAMS, [0]))
    with pytest.raises(jasgnas.TreeMismatchError, match=r"b: missing, expected \(4, 4\)"):
        sub_fn({"c": sub_params["c"]}, X)
    with pytest.raises(jasgnas.TreeMismatchError, match=r"b: \(4, 3\), expected \(4, 4\)"):
        sub_fn(sub_params | {"b": jnp.ones((4, 3))}, X)


# Updates that something changes after H2SPG.


def wrapped(make):
    return lambda: make(optax.chain(optax.sgd(0.1, momentum=0.9), make_h2spg()))


CHANGED = {
    "scaled": wrapped(lambda tx: optax.chain(tx, optax.scale(0.5))),
    "clipped": wrapped(lambda tx: optax.chain(tx, optax.clip(1e-3))),
    "clipped by the global norm": wrapped(lambda tx: optax.chain(tx, optax.clip_by_global_norm(1e-3))),
    "averaged": wrapped(lambda tx: optax.chain(tx, optax.ema(0.9))),
    "decayed": wrapped(lambda tx: optax.chain(tx, optax.add_decayed_weights(-0.3))),
    "wrong order": lambda: optax.chain(make_h2spg(), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_updates_that_are_changed_after_h2spg_do_not_go_unnoticed(name):
    tx = CHANGED[name]()
    params, state = train(tx, PARAMS, 8)
    assert all(np.any(array) for array in params.values())
    with pytest.warns(jasgnas.RevivedGroupsWarning, match="h2spg must be the last link"):
        metrics = jasgnas.h2spg_metrics(state)
    assert (int(metrics["num_zero"]), int(metrics["num_revived"]), int(metrics["phase"])) == (0, 1, PROJECTION)
    with pytest.warns(jasgnas.NothingRemovedWarning, match="none of the 3 groups .* h2spg must be the last link"):
        _, sub_params = jasgnas.construct_subnet(SPACE, params, opt_state=state)
    assert jasgnas.count_params(sub_params) == 48
    with pytest.warns(jasgnas.NothingRemovedWarning, match="h2spg must be the last link"):
        jasgnas.shrink(SPACE, params, state)


def test_a_state_that_says_zero_of_what_is_not():
    params, state = train(make_h2spg(), PARAMS, 4)
    with pytest.raises(
        jasgnas.ArgumentError, match=r"state \(step 4, phase 2 \(done\)\) says so. .* must be the last link"
    ):
        jasgnas.construct_subnet(SPACE, PARAMS, opt_state=state)
    with pytest.raises(jasgnas.ArgumentError, match=r"step 4, phase 2 \(done\)"):
        jasgnas.shrink(SPACE, PARAMS, state)
    jasgnas.construct_subnet(SPACE, params, opt_state=state)


def test_groups_that_are_zero_after_all_count_again():
    tx = make_h2spg()
    params, state = train(tx, PARAMS, 3)
    gone = np.flatnonzero(state.zero)
    changed = jax.tree.map(lambda x: x + 1, params)
    for expected in ([True, False], [False, True], [False, True]):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, changed), state, changed)
        changed = optax.apply_updates(changed, updates)
        assert [bool(state.revived[gone[0]]), bool(state.zero[gone[0]])] == expected
        assert not any(np.any(changed["abc"[index]]) for index in gone)
    assert int(state.phase) == DONE


# Constructions that remove nothing.


def test_nothing_removed():
    with pytest.warns(jasgnas.NothingRemovedWarning, match="none of the 3 groups is entirely zero.*give `opt_state=`"):
        _, sub_params = jasgnas.construct_subnet(SPACE, PARAMS)
    assert jasgnas.count_params(sub_params) == 48
    jasgnas.construct_subnet(SPACE, PARAMS, allow_nothing=True)  # and no warning


@pytest.mark.parametrize(
    ("target", "num_steps", "match"),
    [
        ({}, 1, r"not as far yet: step 1, phase 0 \(warm-up\), 0"),
        ({}, 2, r"phase 1 \(proj.*, 1 gr"),
        ({"target_groups": None, "at_most": {"{leaf}": 1}}, 8, r"h2spg selected none \(step 8, phase 2 \(done\)\)"),
    ],
)
def test_nothing_removed_yet(target, num_steps, match):
    params, state = train(make_h2spg(projection_steps=5, **target), PARAMS, num_steps)
    for use in (
        lambda: jasgnas.construct_subnet(SPACE, params, opt_state=state),
        lambda: jasgnas.shrink(SPACE, params, state),
    ):
        with pytest.warns(jasgnas.NothingRemovedWarning, match=match):
            use()


def test_a_shrunk_network_may_be_shrunk_again():
    params, state = train(make_h2spg(), PARAMS, 4)
    (_, params), state = jasgnas.shrink(SPACE, params, state)
    (_, again), _ = jasgnas.shrink(SPACE, params, state)  # and no warning: something is removed
    assert jasgnas.count_params(again) == jasgnas.count_params(params) == 32


def test_nan_beside_groups_at_zero_names_the_cure():
    params = SPACE.zero(PARAMS, [0]) | {"b": jnp.full((4, 4), jnp.nan)}
    with pytest.raises(jasgnas.NonFiniteError, match=r"b hold NaN .*optax.zero_nans\(\) as the first link"):
        jasgnas.construct_subnet(SPACE, params)
    with pytest.raises(jasgnas.NonFiniteError, match="training has diverged [^,]*$"):
        jasgnas.construct_subnet(SPACE, PARAMS | {"b": jnp.full((4, 4), jnp.nan)})


def test_the_cure_for_singular_gradients_of_frozen_zeros():
    params = weights(i=(4, 4), v=(4, 4), w=(4, 4), g=(4,), o=(4, 2))

    def fn(p, x):
        h = x @ p["i"]
        h = h + jax.nn.relu(h @ (p["g"] * p["v"] / (jnp.linalg.norm(p["v"], axis=0) + 1e-6))) + jax.nn.relu(h @ p["w"])
        return h @ p["o"]

    space = jasgnas.search_space(fn, X, params=params)
    first = next(group.index for group in space.groups if "v" in group.paths)
    h2spg = make_h2spg(space, score=lambda stats: -jnp.abs(jnp.arange(len(space.groups)) - first) + 0.0)

    def trained(*links):
        tx, trained = optax.chain(*links, optax.clip_by_global_norm(1.0), optax.sgd(1e-2), h2spg), params
        state = tx.init(trained)
        for _ in range(6):
            grads = jax.grad(lambda p: jnp.mean(fn(p, X) ** 2))(trained)
            updates, state = tx.update(grads, state, trained)
            trained = optax.apply_updates(trained, updates)
        return trained

    with pytest.raises(jasgnas.NonFiniteError, match="optax.zero_nans"):
        jasgnas.construct_subnet(space, trained())
    cured = trained(optax.zero_nans())
    sub_fn, sub_params = jasgnas.construct_subnet(space, cured)
    assert "v" not in sub_params
    np.testing.assert_allclose(sub_fn(sub_params, X), fn(cured, X), rtol=1e-4, atol=1e-5)


# Arguments that outputs must stay connected to.


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, noise=None):
        if noise is None:
            noise = jax.random.normal(self.make_rng("noise"), (x.shape[0], 4))
        return nn.Dense(4, use_bias=False, name="data")(x) + nn.Dense(4, use_bias=False, name="noise")(noise)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_random_keys_are_no_network_input(make_key):
    keys = {"noise": make_key(0)}
    variables = Noisy().init({"params": jax.random.key(1), **keys}, X)
    space = jasgnas.search_space(Noisy(), X, variables=variables, rngs=keys)
    assert [group.name for group in space.groups] == ["data"]
    assert not space.is_valid([0])
    with pytest.raises(jasgnas.InvalidRemovalError, match="output"):
        jasgnas.construct_subnet(space, space.zero(variables, [0]))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys_that_are_arguments(make_key):
    def fn(params, x, key):
        noise = jax.random.normal(key, x.shape)
        noise = jnp.tanh(noise) + jnp.sin(noise) + noise @ params["c"]
        return x @ params["a"] + noise @ params["b"]

    # A raw key is an array of integers like any other: the data are named then.
    inputs = None if make_key is jax.random.key else ("x",)
    space = jasgnas.search_space(fn, X, make_key(0), params=PARAMS, inputs=inputs)
    names = [group.name for group in space.groups]
    removable = {name: space.is_valid([names.index(name)]) for name in names}
    assert removable == {"a": False, "b": True, "c": True}
    noiseless = space.zero(PARAMS, [names.index("b")])
    _, sub_params = jasgnas.construct_subnet(space, noiseless, verify=True)
    assert sorted(sub_params) == ["a"]


def two_inputs(params, x, noise):
    return x["image"] @ params["a"] + noise @ params["b"] + x["depth"] @ params["c"]


TWO = ({"image": X, "depth": X}, X)


@pytest.mark.parametrize(
    ("inputs", "cut"),
    [
        (None, []),
        ("x", [{0, 2}]),
        (("x",), [{0, 2}]),
        ((0,), [{0, 2}]),
        (0, [{0, 2}]),
        (("noise",), [{1}]),
        ((1,), [{1}]),
        (("0/image",), [{0}]),
        (("x/image", "noise"), [{0, 1}]),
    ],
)
def test_inputs_that_outputs_must_stay_connected_to(inputs, cut):
    space = jasgnas.search_space(two_inputs, *TWO, params=PARAMS, inputs=inputs)
    names = [group.name for group in space.groups]
    index = {names.index(name): number for number, name in enumerate("abc")}
    for removed in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        expected = not any(each <= {index[i] for i in removed} for each in cut)
        assert space.is_valid(removed) == expected, removed


def test_only_what_is_named_needs_to_reach_the_output():
    with pytest.raises(jasgnas.ArgumentError, match="names no array.* there are 0/depth or x/depth, .*1 or noise"):
        jasgnas.search_space(two_inputs, *TWO, params=PARAMS, inputs=("y",))
    with pytest.raises(jasgnas.ArgumentError, match="leaves nothing"):
        jasgnas.search_space(two_inputs, *TWO, params=PARAMS, inputs=())
    with pytest.raises(jasgnas.DisconnectedOutputError, match="inputs="):
        jasgnas.search_space(lambda p, x, y: y @ p["a"] + jnp.tanh(y @ p["b"]), X, X, params=PARAMS, inputs="x")


@pytest.mark.parametrize("join", [jnp.multiply, lambda u, v: jnp.where(v > 0, u, 0.0)])
def test_what_only_a_key_keeps_alive_is_not_connected(join):
    def fn(p, x, key):
        noise = jax.random.normal(key, (3, 4)) @ p["b"]
        data, ones = jnp.concatenate([x @ p["a"], noise], -1), jnp.concatenate([x @ p["c"], jnp.ones((3, 4))], -1)
        return join(data, ones) @ p["w"]

    params = weights(a=(4, 4), b=(4, 4), c=(4, 4), w=(8, 2))
    space = jasgnas.search_space(fn, X, jax.random.key(0), params=params)
    index = [group.name for group in space.groups].index("a")
    assert not space.is_valid([index])
    with pytest.raises(jasgnas.InvalidRemovalError):
        jasgnas.construct_subnet(space, space.zero(params, [index]))


def test_inputs_of_an_nnx_module_by_name():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x, mask):
            return self.a(x) + self.b(mask)

    space = jasgnas.search_space(Net(nnx.Rngs(0)), X, mask=X, inputs=("x",))
    assert space.is_valid([1]) and not space.is_valid([0])


# Sets that leave a constant network are not valid.


def norm(y, scale, bias):
    return (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5) * scale + bias


def joined(params, x, names="abc"):
    return jnp.concatenate([x @ params[name] for name in names], -1)


CONSTANT = {
    "slices of a norm": (
        lambda p, x: (lambda y: (y[:, :6] + jnp.tanh(y[:, 6:] @ p["d"])) @ p["h"])(norm(joined(p, x), p["s"], p["t"])),
        {"a": (4, 2), "b": (4, 4), "c": (4, 4), "d": (4, 6), "s": (10,), "t": (10,), "h": (6, 3)},
    ),
    "a slice that follows a norm at once": (
        lambda p, x: norm(joined(p, x), p["s"], p["t"])[:, 2:6] @ p["h"],
        {"a": (4, 2), "b": (4, 4), "c": (4, 4), "s": (10,), "t": (10,), "h": (4, 3)},
    ),
    "a product of concatenations": (
        lambda p, x: (joined(p, x, "ab") * joined(p, x, "cd")) @ p["w"],
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "w": (8, 2)},
    ),
    "a product of concatenations that meet askew": (
        lambda p, x: (joined(p, x, "ab") * jnp.tanh(joined(p, x, "cd"))) @ p["w"],
        {"a": (4, 2), "b": (4, 6), "c": (4, 5), "d": (4, 3), "w": (8, 2)},
    ),
    "a contraction of concatenations": (
        lambda p, x: jnp.einsum("ik,jk->ij", joined(p, x, "ab"), joined(p, x, "cd")),
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4)},
    ),
    "both halves of a concatenation": (
        lambda p, x: (lambda y: (y[:, :4] * y[:, 4:]) @ p["w"])(joined(p, x, "abcd")),
        {"a": (4, 2), "b": (4, 2), "c": (4, 2), "d": (4, 2), "w": (4, 2)},
    ),
    "a concatenation and itself, rolled": (
        lambda p, x: (lambda y: (y * jnp.roll(y, 3, -1)) @ p["w"])(joined(p, x)),
        {"a": (4, 3), "b": (4, 3), "c": (4, 3), "w": (9, 2)},
    ),
    "a product of norms": (
        lambda p, x: (norm(joined(p, x, "ab"), p["s"], p["t"]) * norm(joined(p, x, "cd"), p["u"], p["v"])) @ p["w"],
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "w": (8, 2)} | {name: (8,) for name in "stuv"},
    ),
    "a split with a factor that is never zero": (
        lambda p, x: (lambda u, v: u * jnp.exp(v) @ p["h"])(*jnp.split(joined(p, x), 2, -1)),
        {"a": (4, 2), "b": (4, 2), "c": (4, 4), "h": (4, 2)},
    ),
    "a gated linear unit of a scaled concatenation": (
        lambda p, x: jax.nn.glu(joined(p, x) * p["s"]) @ p["h"],
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "s": (12,), "h": (6, 2)},
    ),
    "a rectified gate of a normalised concatenation": (
        lambda p, x: (lambda u, v: (u * jax.nn.relu(v)) @ p["h"])(
            *jnp.split(norm(joined(p, x), p["s"], p["t"]), 2, -1)
        ),
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "s": (12,), "t": (12,), "h": (6, 2)},
    ),
    "sums of the parts of a split": (
        lambda p, x: (lambda u, v: u.sum(-1) * v.sum(-1))(*jnp.split(joined(p, x), 2, -1)),
        {"a": (4, 2), "b": (4, 2), "c": (4, 4)},
    ),
    "a concatenation and itself, reversed": (
        lambda p, x: (lambda y: (y * y[:, ::-1]) @ p["w"])(joined(p, x)),
        {"a": (4, 3), "b": (4, 3), "c": (4, 3), "w": (9, 2)},
    ),
    "a product along the channels": (
        lambda p, x: jnp.prod(joined(p, x, "ab"), -1, keepdims=True) @ p["w"] + x[:, :2] @ p["c"],
        {"a": (4, 2), "b": (4, 2), "w": (1, 2), "c": (2, 2)},
    ),
    "a constant mask": (
        lambda p, x: (joined(p, x, "ab") * jnp.array([1.0] * 4 + [0.0] * 4)) @ p["w"],
        {"a": (4, 4), "b": (4, 4), "w": (8, 2)},
    ),
    "tiles": (
        lambda p, x: (lambda t: (t[:, 2:6] * t[:, 8:12]) @ p["w"])(jnp.tile(joined(p, x, "ab"), (1, 2))),
        {"a": (4, 4), "b": (4, 4), "w": (4, 2)},
    ),
    "padding": (
        lambda p, x: (jnp.pad(x @ p["a"], ((0, 0), (0, 4))) * joined(p, x, "bc")) @ p["w"],
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "w": (8, 2)},
    ),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_no_set_is_valid_that_leaves_a_constant_network(name):
    fn, shapes = CONSTANT[name]
    params = weights(**shapes)
    space = jasgnas.search_space(fn, X, params=params)
    groups = range(len(space.groups))
    sets = [[i for i in groups if code >> i & 1] for code in range(1, 2 ** len(space.groups))]
    judged = {True: 0, False: 0}
    for removed in sets:
        zeroed = space.zero(params, removed)
        varies = bool(np.abs(fn(zeroed, X) - fn(zeroed, 2 * X + jnp.flip(X, 0))).max() > 1e-6)
        assert space.is_valid(removed) == varies, removed
        judged[varies] += 1
        if varies:
            sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed)
            np.testing.assert_allclose(sub_fn(sub_params, X), fn(zeroed, X), rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(jasgnas.InvalidRemovalError):
                jasgnas.construct_subnet(space, zeroed)
    assert all(judged.values())


# What the comparison of `verify=True` draws.


def test_integers_are_drawn_over_the_range_of_their_use():
    def fn(p, token, position, kind, pixel):
        h = p["tokens"][token] + jnp.take(p["positions"], position, axis=0) + jax.nn.one_hot(kind, 5) @ p["kinds"]
        h = h + pixel.astype(jnp.float32)[..., None] / 255
        return h + jnp.tanh(h @ p["a"])

    params = weights(tokens=(11, 4), positions=(7, 4), kinds=(5, 4), a=(4, 4))
    arrays = [jnp.zeros((2, 3), jnp.int32)] * 3 + [jnp.zeros((2, 3), jnp.uint8)]
    space = jasgnas.search_space(fn, *arrays, params=params)
    program = space.graph.program
    assert [num_values(program, var) for var in program.inputs[len(space.leaves) :]] == [11, 7, 5, 256]
    jasgnas.construct_subnet(space, space.zero(params, [0]), verify=True)


# What is counted, kept and told of arguments.


def test_only_parameters_are_counted():
    pair = jasgnas.construct_subnet(SPACE, SPACE.zero(PARAMS, [0]))
    assert jasgnas.count_params(pair) == jasgnas.count_params(pair[1]) == 32  # its function is no parameter
    assert jasgnas.count_params({}) == 0
    for wrong in (SPACE, "a", branches, None):
        with pytest.raises(jasgnas.ArgumentError, match="expected a module, its variables or a pytree"):
            jasgnas.count_params(wrong)


@pytest.mark.parametrize(
    "score", [lambda s: s.x_norm[:1], lambda s: s.x_norm[:, None], lambda s: 1, lambda s: [1.0, 2.0], lambda s: None]
)
def test_scores_of_another_shape_are_refused(score):
    tx = make_h2spg(score=score)
    with pytest.raises(jasgnas.ArgumentError, match=r"shape \[num_groups\], here \(3,\)"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("learning_rate", [np.nan, np.inf, -1.0, True, jnp.ones(3), "0.1", None])
def test_learning_rates_are_checked(learning_rate):
    with pytest.raises(jasgnas.ArgumentError, match="learning_rate must be a number, at least 0, or an optax schedule"):
        make_h2spg(learning_rate=learning_rate)


def test_values_must_be_known():
    state = make_h2spg().init(PARAMS)
    abstract = jax.eval_shape(lambda: PARAMS)
    for use in (
        lambda: jasgnas.construct_subnet(SPACE, abstract),
        lambda: jasgnas.shrink(SPACE, abstract, state, removed=[0]),
        lambda: jax.jit(lambda p: jasgnas.construct_subnet(SPACE, p)[1])(PARAMS),
    ):
        with pytest.raises(jasgnas.ArgumentError, match="values of these arrays are not known"):
            use()


def test_frozen_variables_stay_frozen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="a")(x) + nn.relu(nn.Dense(4, name="b")(x))

    variables = freeze(Net().init(jax.random.key(0), X))
    space = jasgnas.search_space(Net(), X, variables=variables)
    tx = optax.adam(0.1)
    zeroed = space.zero(variables, [1])
    assert isinstance(zeroed, FrozenDict)
    (_, sub_variables), opt_state = jasgnas.shrink(space, zeroed, tx.init(variables["params"]), removed=[1])
    assert isinstance(sub_variables, FrozenDict)
    updates, _ = tx.update(sub_variables["params"], opt_state, sub_variables["params"])
    assert list(updates) == ["a"]


def test_states_with_numbers_for_parameters_shrink():
    tx = optax.novograd(0.1)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    (_, sub_params), state = jasgnas.shrink(SPACE, SPACE.zero(PARAMS, [1]), state, removed=[1])
    updates, _ = tx.update(sub_params, state, sub_params)
    assert sorted(updates) == ["a", "c"]


def test_flax_serializes_the_state():
    params, state = train(optax.chain(optax.adam(0.1), make_h2spg()), PARAMS, 4)
    restored = serialization.from_bytes(state, serialization.to_bytes(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_patterns_and_inputs_of_the_wrong_kind():
    assert SPACE.explain(re.compile("^a$")) == SPACE.explain("a")
    for use in (lambda: SPACE.explain(3), lambda: jasgnas.search_space(branches, X, params=PARAMS, keep=(3,))):
        with pytest.raises(jasgnas.ArgumentError, match="expected a pattern of parameter paths"):
            use()
    with pytest.raises(jasgnas.ArgumentError, match="a jax.ShapeDtypeStruct; 3, 6 is none"):
        jasgnas.search_space(branches, (3, 6), params=PARAMS)


# What is said of networks.


def test_explain_names_the_operator_where_zeros_stop():
    def fn(p, x):
        stops = jnp.cos(jnp.tanh(jnp.exp(jnp.sin(x @ p["b"]))))
        return x @ p["a"] + stops + jnp.tanh(jnp.exp(x) + p["c"])

    space = jasgnas.search_space(fn, X, params=PARAMS | {"c": jnp.ones(4)})
    assert "exp does not keep zeros" in space.explain("b")
    assert "add is not zero where its parameters are" in space.explain("c")


def test_a_network_whose_additions_are_inside_a_loop_is_no_plain_chain():
    def fn(p, x):
        steps = jnp.stack([x, x])
        cell = lambda carry, step: (jnp.tanh(carry + jnp.cos(step @ p["a"])), None)  # noqa: E731
        return jax.lax.scan(cell, jnp.exp(x @ p["b"]), steps)[0]

    with pytest.raises(jasgnas.NoRemovableStructureError, match="inside a scan over data"):
        jasgnas.search_space(fn, X, params={"a": PARAMS["a"], "b": PARAMS["b"]})
    with pytest.raises(jasgnas.NoRemovableStructureError, match="plain chain"):
        jasgnas.search_space(lambda p, x: jnp.tanh(x @ p["a"]), X, params={"a": PARAMS["a"]})


def test_repr_is_one_line():
    assert repr(SPACE) == "<SearchSpace: 3 groups with 48 of 48 parameters; print() shows them>"


def test_version():
    assert jasgnas.__version__[0].isdecimal()
