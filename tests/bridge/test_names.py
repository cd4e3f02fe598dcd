"""Names and containers that users give, which are also names of something else: nothing of a model is taken for it."""

from collections import defaultdict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (3, 6))
A, B, H = (jax.random.normal(key, (6, size)) for key, size in zip(KEYS[1:], (6, 6, 3), strict=True))


def two_branches(a, b, h, x):
    return (x @ a + jnp.tanh(x @ b)) @ h


def index_of(space, path):
    (index,) = (group.index for group in space.groups if path in group.paths)
    return index


@pytest.mark.parametrize("scopes", [("first", "first/pool"), ("gates", "gates/gates"), ("a", "a/b", "a/b/c")])
def test_scopes_inside_scopes_have_gates_of_their_own(scopes):
    def fn(params, x):
        paths = []
        for scope in scopes:
            with jax.named_scope(scope):
                paths.append(jnp.sin(x))
        return sum(paths, x @ params["w"]) @ params["h"]

    params = {"w": A, "h": H}
    gated, given = jasgnas.gated(fn, X, params=params)
    space = jasgnas.search_space(gated, X, params=given)
    assert len({group.name for group in space.groups if group.kind == "gate"}) == len(scopes)
    np.testing.assert_array_equal(gated(given, X), fn(params, X))


@pytest.mark.parametrize("name", ["count", "learning_rate"])
@pytest.mark.parametrize(
    "tx", [optax.adam(0.1), optax.inject_hyperparams(optax.adam)(learning_rate=0.1)], ids=["adam", "injected"]
)
def test_numbers_of_an_optimizer_are_no_parameters_of_that_name(name, tx):
    def fn(params, x):
        return two_branches(params[name], params["b"], params["h"], x)

    params = {name: A, "b": B, "h": H}
    space = jasgnas.search_space(fn, X, params=params)
    removed = [index_of(space, name)]
    params = space.zero(params, removed)
    (_, left), state = jasgnas.shrink(space, params, tx.init(params), removed=removed)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, left), state, left)
    assert set(updates) == set(left) == {"b", "h"}
    counts = [leaf for path, leaf in jax.tree.leaves_with_path(state) if "count" in jax.tree_util.keystr(path)]
    assert counts and all(int(count) == 1 for count in counts)


class Hidden(nnx.Module):
    """Its attributes have names that a library could have for its own."""

    def __init__(self, rngs):
        self._full, self._recipe = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x + self._full(x) + jnp.tanh(self._recipe(x)))


class HiddenEquinox(eqx.Module):
    """The same in Equinox."""

    _full: eqx.nn.Linear
    _recipe: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(self._full(x) + jnp.tanh(self._recipe(x)))


def test_attributes_of_modules_keep_their_names():
    model = Hidden(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    zeroed = space.zero(model, [index_of(space, "_recipe/kernel")])
    subnet = jasgnas.construct_subnet(space, zeroed, verify=True)
    np.testing.assert_allclose(subnet(X), zeroed(X), rtol=1e-6)
    assert jasgnas.count_params(subnet) == space.subnet_size([index_of(space, "_recipe/kernel")])[0]
    np.testing.assert_array_equal(jasgnas.gated(model, X)(X), model(X))

    layers = [eqx.nn.Linear(6, size, key=key) for size, key in zip((6, 6, 3), KEYS, strict=False)]
    module = HiddenEquinox(*layers)
    space = jasgnas.search_space(module, X[0])
    zeroed = space.zero(module, [index_of(space, "_recipe/weight")])
    subnet = jasgnas.construct_subnet(space, zeroed, verify=True)
    np.testing.assert_allclose(subnet(X[0]), zeroed(X[0]), rtol=1e-6)


class Cache(nn.Module):
    """Has a variable in the collection of its own name."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(x) * self.variable("cache", "scale", lambda: jnp.full(6, 2.0)).value


class WithCache(nn.Module):
    """A submodule and a collection are both called `cache`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(Cache(name="cache")(x) + jnp.tanh(nn.Dense(6)(x)))


def test_a_submodule_with_the_name_of_a_collection_is_refused():
    module = WithCache()
    variables = module.init(jax.random.key(0), X)
    with pytest.raises(jasgnas.ArgumentError, match="cache is a collection of variables and a submodule at once"):
        jasgnas.search_space(module, X, variables=variables)


def test_a_key_called_params_beside_arrays_is_a_key():
    def fn(params, x):
        return two_branches(params["params"]["w"], params["b"], params["h"], x)

    params = {"params": {"w": A}, "b": B, "h": H}
    assert jasgnas.count_params(params) == 90 == jasgnas.search_space(fn, X, params=params).subnet_size(())[0]


def test_a_defaultdict_stays_one():
    def fn(params, x):
        return two_branches(params["a"], params["b"], params["h"], x)

    params = defaultdict(dict, a=A, b=B, h=H)
    space = jasgnas.search_space(fn, X, params=params)
    _, left = jasgnas.construct_subnet(space, space.zero(params, [index_of(space, "b")]), verify=True)
    assert isinstance(left, defaultdict) and left.default_factory is dict and set(left) == {"a", "h"}


class Residual(nnx.Module):
    """Nothing is left of it without its only layer."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(6, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(jnp.tanh(self.layer(x)))


@pytest.mark.parametrize("kind", ["module", "function", "bare array"])
def test_a_network_of_which_no_array_is_left_hands_its_input_through(kind):
    if kind == "module":
        model = Residual(nnx.Rngs(0))
        model.eval()
        space = jasgnas.search_space(model, X)
        subnet = jasgnas.construct_subnet(space, space.zero(model, [0]))
        assert jasgnas.count_params(subnet) == 0
        np.testing.assert_array_equal(subnet(X), X)
        np.testing.assert_array_equal(jasgnas.shrink(space, space.zero(model, [0]), (), removed=[0])[0](X), X)
        return
    params = {"a": A} if kind == "function" else A

    def fn(params, x):
        return x + jnp.tanh(x @ (params if kind == "bare array" else params["a"]))

    space = jasgnas.search_space(fn, X, params=params)
    sub_fn, left = jasgnas.construct_subnet(space, space.zero(params, [0]))
    assert not jax.tree.leaves(left)
    np.testing.assert_array_equal(sub_fn(left, X), X)


def test_parameters_of_numpy_in_double_precision_can_be_loaded_into_their_model(tmp_path):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(6, 6)), "b": rng.normal(size=(6, 6)), "h": rng.normal(size=(6, 3))}

    def fn(params, x):
        return two_branches(params["a"], params["b"], params["h"], x)

    space = jasgnas.search_space(fn, X, params=params)
    zeroed = space.zero(params, [index_of(space, "b")])
    sub_fn, left = jasgnas.construct_subnet(space, zeroed, verify=True)
    jasgnas.save(tmp_path / "saved", sub_fn, left)
    loaded, arrays = jasgnas.load(tmp_path / "saved", fn, params=params)
    np.testing.assert_allclose(loaded(arrays, X), fn(zeroed, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["structures", "channels"])
def test_arguments_of_a_network_with_names_of_options_are_told(name):
    params = {"a": A, "b": B, "h": H}

    def fn(params, x, **others):
        return two_branches(params["a"], params["b"], params["h"], x + others[name])

    with pytest.raises(jasgnas.ArgumentError, match=f"{name} must be True or False, got a ArrayImpl.*by position"):
        jasgnas.search_space(fn, X, params=params, **{name: X})
