"""Sub-networks are used as Flax modules are: copied, pickled, viewed, iterated, and trained with Flax's optimizers."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from tests.networks import arrays, randomize

X = jnp.sin(jnp.arange(24.0).reshape(6, 4))


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def rectify(x):
    """A function of this module, which can be pickled as those of JAX cannot."""
    return nnx.relu(x)


class Net(nnx.Module):
    """Every container that Flax knows, statistics, randomness, and an array that is no variable."""

    def __init__(self, rngs):
        self.inputs = nnx.Linear(4, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), rectify, *(nnx.Linear(4, 4, rngs=rngs) for _ in "ab")])
        self.named = nnx.Dict(left=nnx.Linear(4, 4, rngs=rngs), right=nnx.Linear(4, 4, rngs=rngs))
        self.kernels = nnx.data({("k", 0): nnx.Param(jnp.eye(4)), ("k", 1): jnp.eye(4)})
        self.pair = nnx.data((nnx.Linear(4, 4, rngs=rngs), [nnx.Linear(4, 4, rngs=rngs)]))
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.inputs(x))
        for index in (0, 2, 3):
            x = x + self.layers[1](self.dropout(self.layers[index](x)))
        x = x + jnp.tanh(self.named["left"](x)) + jnp.sin(self.named.right(x))
        x = x + x @ self.kernels[("k", 0)][...] @ self.kernels[("k", 1)]
        return x + jnp.tanh(self.pair[0](x)) + jnp.sin(self.pair[1][0](x))


def make_net():
    model = Net(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return model


@pytest.fixture
def pair():
    """The network in training mode without `layers[0]`, `layers[2]`, `named.left` and `pair[0]`; its sub-network."""
    model = make_net()
    space = jasgnas.search_space(model, X)
    names = ("layers/0", "layers/2", "named/left", "pair/0")
    full = space.zero(model, [group.index for group in space.groups if group.name in names])
    full.train()
    return full, jasgnas.construct_subnet(space, full)


# Copies and pickles.

COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "clone": nnx.clone,
}


@pytest.mark.parametrize("is_called", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_module(pair, name, is_called):
    full, subnet = pair
    for model in pair:
        model.eval()
    if is_called:
        assert_close(subnet(X), full(X))
    copied = COPIES[name](subnet)
    assert type(copied) is type(subnet)
    assert_close(copied(X), full(X))
    for model in (copied, full):
        model.train()
    assert_close(copied(X), full(X))
    if name != "copy":  # which shares the variables
        for model in (copied, full, subnet):
            model.eval()
        before = subnet(X)
        copied.inputs.bias[...] += 1
        assert np.all(subnet(X) == before) and np.any(copied(X) != before)


def test_copies_in_a_transformation(pair):
    full, subnet = pair

    @nnx.jit
    def both(model, x):
        copied = copy.deepcopy(model)
        return copied(x), nnx.clone(model)(x), model(x)

    expected = full(X)
    for found in both(subnet, X):
        assert_close(found, expected)
    assert_close(copy.deepcopy(subnet)(X), full(X))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        for _ in range(2):
            x = x + jnp.tanh(nn.Dense(4)(x))
        return x


def plain(params, x):
    x = x @ params["a"]
    return x + jnp.tanh(x @ params["b"][0]) + jnp.sin(x @ params["b"][1])


def linen_case():
    variables = randomize(LinenNet().init(jax.random.key(0), X))
    return LinenNet(), {"variables": variables}, variables, lambda v: LinenNet().apply(v, X), lambda m, v: m.apply(v, X)


def plain_case():
    params = randomize({"a": jnp.ones((4, 4)), "b": [jnp.ones((4, 4)), jnp.ones((4, 4))]})
    return plain, {"params": params}, params, lambda p: plain(p, X), lambda fn, p: fn(p, X)


@pytest.mark.parametrize("name", ["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [linen_case, plain_case])
def test_copies_of_other_flavours(make, name):
    model, options, holder, call, call_sub = make()
    space = jasgnas.search_space(model, X, **options)
    full = space.zero(holder, [1])
    subnet = jasgnas.construct_subnet(space, full)
    for _ in range(2):
        assert_close(call_sub(*COPIES[name](subnet)), call(full))
        assert_close(call_sub(*subnet), call(full))
    jitted = jax.jit(partial(call_sub, COPIES[name](subnet[0])))
    assert_close(jitted(subnet[1]), call(full))


def nnx_case():
    model = make_net()
    return model, {}, model


@pytest.mark.parametrize("name", ["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [nnx_case, linen_case, plain_case])
def test_copies_of_a_space(make, name):
    model, options, holder, *_ = make()
    keep = next(leaf.path for leaf in jasgnas.search_space(model, X, **options).leaves[-1:])
    space = jasgnas.search_space(model, X, **options, keep=keep)
    copied = COPIES[name](space)
    assert (
        copied.candidates.fingerprint == space.candidates.fingerprint
        and copied.groups == space.groups
        and copied.kept == space.kept
    )
    assert str(copied) == str(space)
    for index in range(len(space.groups)):
        assert copied.is_valid([index]) == space.is_valid([index])
    full = copied.zero(holder, [0])
    assert jasgnas.count_params(jax.tree.leaves(jasgnas.construct_subnet(copied, full))) == jasgnas.count_params(
        jax.tree.leaves(jasgnas.construct_subnet(space, full))
    )
    tx = jasgnas.h2spg(
        copied, learning_rate=0.1, target_groups=1, warmup_steps=1, projection_steps=1, score="magnitude"
    )
    state = tx.init(nnx.state(holder, nnx.Param) if isinstance(holder, nnx.Module) else holder)
    jasgnas.h2spg_state(state, space)


def test_what_cannot_be_pickled_says_so():
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    space = jasgnas.search_space(lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]), X, params=params)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(space)


# Modes and settings.


def test_views(pair):
    full, subnet = pair
    expected = nnx.view(full, deterministic=True, use_running_average=True)(X)
    view = nnx.view(subnet, deterministic=True, use_running_average=True)
    assert_close(view(X), expected)
    # The network that is viewed keeps its mode, and shares its variables with the view.
    before = np.asarray(subnet.norm.mean[...])
    subnet(X)
    assert np.any(subnet.norm.mean[...] != before)
    assert view.inputs.kernel is subnet.inputs.kernel
    with pytest.raises(ValueError, match="colour"):
        nnx.view(subnet, colour="blue")


def test_set_attributes_of_some_layers(pair):
    for filters in ((nnx.Dropout,), (nnx.PathContains("dropout"),)):
        full, subnet = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
        start = subnet(X)
        for model in (full, subnet):
            model.set_attributes(*filters, rate=0.0)
        assert_close(subnet(X), full(X))
        assert np.any(np.abs(subnet(X) - start) > 1e-3)
    with pytest.raises(ValueError, match="colour"):
        pair[1].set_attributes(colour="blue")
    with pytest.raises(jasgnas.ArgumentError, match="arrays"):
        pair[1].set_attributes(kernel=jnp.ones((4, 4)))


@pytest.mark.parametrize(
    "change",
    [
        lambda subnet: setattr(subnet.dropout, "rate", 0.0),
        lambda subnet: setattr(subnet.norm, "use_running_average", True),
        lambda subnet: setattr(subnet.named, "other", 1.0),
        lambda subnet: setattr(subnet.layers, "0", nnx.Param(jnp.ones((4, 4)))),
        lambda subnet: setattr(subnet, "inputs", nnx.Linear(4, 4, rngs=nnx.Rngs(0))),
    ],
)
def test_settings_without_an_effect_are_refused(pair, change):
    with pytest.raises(jasgnas.ArgumentError, match=r"subnet\.set_attributes\(\w+=…\)"):
        change(pair[1])


def test_arrays_can_be_set(pair):
    full, subnet = pair
    bias = nnx.Param(jnp.arange(4.0))
    for model in pair:
        model.eval()
        model.inputs.bias = bias
        model.kernels[("k", 1)] = jnp.full((4, 4), 0.3)
    assert_close(subnet(X), full(X))


@pytest.mark.parametrize("train", [False, True])
def test_transformations(pair, train):
    full, subnet = pair
    for model in pair:
        model.train() if train else model.eval()
    graphdef, state = nnx.split(subnet)
    assert_close(nnx.merge(graphdef, state, copy=True)(X), nnx.clone(full)(X))
    assert_close(nnx.jit(lambda model, x: model(x))(subnet, X), nnx.jit(lambda model, x: model(x))(full, X))
    grads = [arrays(nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)) for model in (full, subnet)]
    assert grads[1].keys() <= grads[0].keys()
    for path, grad in grads[1].items():
        np.testing.assert_allclose(grad, grads[0][path], rtol=1e-4, atol=1e-4)
    subnet.eval(), full.eval()
    many = nnx.vmap(lambda model, x: model(x[None])[0], in_axes=(None, 0))
    assert_close(many(subnet, X), full(X))
    assert "_Part" in repr(subnet) and len([*nnx.iter_modules(subnet)]) > 5


# Containers.


def test_items_of_a_list_keep_their_indices(pair):
    full, subnet = pair
    layers = subnet.layers
    assert [*layers] == layers[:] == layers[1:] == [layers[3]] and len(layers) == 1
    assert layers[-1] is layers[3] and layers[:3] == [] and layers[::-2] == [layers[3]]
    assert_close(layers[3].kernel, full.layers[3].kernel)
    for index in (0, 1, -2, 4, -5):
        with pytest.raises(jasgnas.MissingPartError, match=rf"item {index}: of the 4 items .* index 3 are left"):
            layers[index]
    assert len(subnet.pair) == 1 and len(subnet.pair[1]) == 1
    assert_close(subnet.pair[1][0].kernel, full.pair[1][0].kernel)


def test_entries_of_a_mapping(pair):
    full, subnet = pair
    assert list(subnet.named) == list(subnet.named.keys()) == ["right"] and len(subnet.named) == 1
    assert "left" not in subnet.named and subnet.named["right"] is subnet.named.right
    with pytest.raises(KeyError):
        subnet.named["left"]
    assert [*subnet.kernels] == [("k", 0), ("k", 1)]
    assert_close(subnet.kernels[("k", 1)], full.kernels[("k", 1)])
    assert isinstance(subnet.kernels[("k", 0)], nnx.Param) and not isinstance(subnet.kernels[("k", 1)], nnx.Variable)


def test_what_a_part_is_not(pair):
    _, subnet = pair
    with pytest.raises(jasgnas.ArgumentError, match="cannot be called by itself"):
        subnet.inputs(X)
    with pytest.raises(TypeError, match="not iterable"):
        iter(subnet.inputs)
    for read in (lambda: subnet.named.left, lambda: subnet.dropout.rate, lambda: subnet.nothing):
        with pytest.raises(jasgnas.MissingPartError, match="neither its settings nor its methods"):
            read()
    assert not hasattr(subnet.named, "left") and hasattr(subnet.named, "right")


# Optimizers.


def loss_fn(model):
    return jnp.mean((model(X) - jnp.cos(X)) ** 2)


@nnx.jit
def train_step(model, optimizer):
    optimizer.update(model, nnx.grad(loss_fn)(model))


class Residual(nnx.Module):
    """Layers in a list, of which one goes; one part is not trained."""

    def __init__(self, rngs):
        self.frozen = nnx.Linear(4, 4, rngs=rngs)
        self.trained = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        x = self.frozen(x)
        for layer in self.trained:
            x = x + jnp.tanh(layer(x))
        return x


WRT = {
    "all parameters": nnx.Param,
    "a part": nnx.All(nnx.Param, nnx.PathContains("trained")),
    "by index": nnx.All(nnx.Param, nnx.Any(*(nnx.PathContains(index) for index in range(3)))),
}


@pytest.mark.parametrize("kind", [nnx.Optimizer, nnx.ModelAndOptimizer])
@pytest.mark.parametrize("wrt", WRT)
def test_optimizers_go_on_with_the_subnet(kind, wrt):
    model = Residual(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    tx = optax.chain(
        optax.adam(0.02),
        jasgnas.h2spg(
            space, learning_rate=0.02, target_groups=1, warmup_steps=2, projection_steps=3, score="magnitude"
        ),
    )
    optimizer = kind(model, tx, wrt=WRT[wrt])
    has_model = kind is nnx.ModelAndOptimizer

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, WRT[wrt]))(model)
        optimizer.update(grads) if has_model else optimizer.update(model, grads)

    for _ in range(6):
        step(model, optimizer)
    averaged = nnx.clone(model)
    subnet, (sub_optimizer, sub_averaged) = jasgnas.shrink(space, model, (optimizer, averaged))
    assert type(sub_optimizer) is kind and (not has_model or sub_optimizer.model is subnet)
    assert jasgnas.count_params(subnet) == jasgnas.count_params(sub_averaged) == jasgnas.count_params(model) - 20
    assert_close(sub_averaged(X), averaged(X))
    assert int(optimizer.step[...]) == int(sub_optimizer.step[...]) == 6
    for _ in range(6):
        step(model, optimizer)
        step(subnet, sub_optimizer)
    np.testing.assert_allclose(subnet(X), model(X), rtol=1e-3, atol=1e-4)
    assert int(sub_optimizer.step[...]) == 12
    assert np.any(np.abs(np.asarray(subnet(X)) - np.asarray(sub_averaged(X))) > 1e-3)
    # The optimizer shrinks by itself as it does in a tuple, and once more.
    again, sub_optimizer = jasgnas.shrink(space, subnet, sub_optimizer)
    step(again, sub_optimizer)
    step(model, optimizer)
    np.testing.assert_allclose(again(X), model(X), rtol=1e-3, atol=1e-4)


# Modules whose merge or call computes with values.


class Normalized(nnx.Module):
    """Layers whose weights are normalised in each call, by scales that are plain arrays, or by statistics."""

    def __init__(self, rngs):
        make = partial(nnx.Linear, 4, 4, rngs=rngs)
        self.inputs = make()
        self.weight = nnx.WeightNorm(make(), rngs=rngs)
        self.every = nnx.WeightNorm(make(), variable_filter=nnx.Param, rngs=rngs)
        self.spectral = nnx.SpectralNorm(make(), rngs=rngs)

    def __call__(self, x):
        x = self.inputs(x)
        return x + self.weight(x) + jnp.tanh(self.every(x)) + jnp.sin(self.spectral(x))


class Settled(nnx.Module):
    """A layer that computes with its variables where its mode is set."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.scale = nnx.Variable(jnp.full(4, 2.0))

    def set_attributes(self, *filters, **attributes):
        super().set_attributes(*filters, **attributes)
        self.scale[...] = jnp.clip(self.scale[...] * 1.0, 0, 2)

    def __call__(self, x):
        x = self.first(x)
        return x + jnp.tanh(self.second(x)) * self.scale[...]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", [Normalized, Settled])
def test_modules_that_compute_with_their_values(cls, training):
    model = cls(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    names = {group.name.split("/")[0] for group in space.groups}
    assert names == ({"weight", "every", "spectral"} if cls is Normalized else {"second"})
    for group in space.groups:
        full = space.zero(model, [group.index])
        full.train() if training else full.eval()
        subnet = jasgnas.construct_subnet(space, full)
        assert jasgnas.count_params(subnet) == jasgnas.count_params(full) - 20
        for _ in range(3):
            assert_close(subnet(X), full(X))
        left = arrays(subnet)
        for path, array in left.items():
            assert_close(array, arrays(full)[path])


def test_normalized_weights_shrink():
    model = Normalized(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    tx = optax.chain(
        optax.adam(0.02),
        jasgnas.h2spg(
            space, learning_rate=0.02, target_groups=2, warmup_steps=2, projection_steps=3, score="magnitude"
        ),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(6):
        train_step(model, optimizer)
    subnet, sub_optimizer = jasgnas.shrink(space, model, optimizer)
    assert jasgnas.count_params(subnet) == jasgnas.count_params(model) - 40
    for _ in range(6):
        train_step(model, optimizer)
        train_step(subnet, sub_optimizer)
    np.testing.assert_allclose(subnet(X), model(X), rtol=1e-3, atol=1e-4)


class Layers(nnx.Module):
    """Layers in containers, but no array that is no variable: Flax lists none of a module that has one."""

    def __init__(self, rngs):
        self.items = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in "abc"])
        self.named = nnx.Dict(left=nnx.Linear(4, 4, rngs=rngs), right=nnx.Linear(4, 4, rngs=rngs))
        self.inner = nnx.data({"only": nnx.Linear(4, 4, rngs=rngs)})
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        x = sum(jnp.tanh(layer(x)) for layer in self.items)
        x = jnp.tanh(self.named["left"](x)) + jnp.sin(self.named["right"](x))
        return self.norm(self.inner["only"](x))


def test_tabulate_lists_the_layers():
    model = Layers(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    names = ("items/0", "named/left")
    removed = [group.index for group in space.groups if group.name in names]
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    table = nnx.tabulate(subnet, X, console_kwargs={"force_terminal": False, "width": 200})
    rows = [[cell.strip() for cell in line.split("│")[1:]] for line in table.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows if row[0]] == [
        *("inner/only", "items", "items/1", "items/2", "named", "named/right", "norm")
    ]
    (layer,) = (rows[index : index + 2] for index, row in enumerate(rows) if row[0] == "items/2")
    assert [row[5] for row in layer] == ["bias: float32[4]", "kernel: float32[4,4]"]
    for arguments in ((X,), ()):
        with pytest.raises(jasgnas.ArgumentError, match="cannot be called by itself"):
            subnet.items[2](*arguments)


# Sub-networks whose parameters are cast, as for inference.


class Branches(nnx.Module):
    """Three branches, one of them without parameters."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(jnp.tanh(self.first(x)) + jnp.sin(self.second(x)) + x)


class LinenBranches(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4)(x)) + jnp.sin(nn.Dense(4)(x)) + x


def branches(params, x):
    return jnp.tanh(x @ params["first"]) + jnp.sin(x @ params["second"] + params["bias"]) + x


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def cast_module(model, dtype):
    copied = copy.deepcopy(model)
    nnx.update(copied, cast(nnx.state(copied), dtype))
    return copied


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("is_gated", [False, True])
def test_modules_can_be_cast(is_gated, dtype):
    model = Branches(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    model.eval()
    if is_gated:
        model = jasgnas.gated(model, X)
    space = jasgnas.search_space(model, X)
    zeroed = space.zero(model, [1])
    subnet = cast_module(jasgnas.construct_subnet(space, zeroed), dtype)
    full, x = cast_module(zeroed, dtype), X.astype(dtype)
    for call in (lambda model, x: model(x), nnx.jit(lambda model, x: model(x))):
        assert call(subnet, x).dtype == call(full, x).dtype == dtype
        np.testing.assert_allclose(*(np.asarray(call(each, x), np.float32) for each in (subnet, full)), atol=0.05)
    # Only the parameters, or only the input: as Flax promotes them.
    assert subnet(X).dtype == full(X).dtype and jasgnas.construct_subnet(space, zeroed)(x).dtype == zeroed(x).dtype
    # A module that is built of cast parameters, and trained so.
    again = jasgnas.construct_subnet(space, full)
    np.testing.assert_array_equal(again(x), subnet(x))
    gradients = nnx.grad(lambda model: jnp.sum(model(x).astype(jnp.float32)))(again)
    assert all(each.dtype == dtype for each in jax.tree.leaves(gradients))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_variables_and_parameters_can_be_cast(dtype):
    module = LinenBranches()
    variables = randomize(module.init(jax.random.key(0), X))
    space = jasgnas.search_space(module, X, variables=variables)
    zeroed = space.zero(variables, [1])
    subnet, sub_variables = jasgnas.construct_subnet(space, zeroed)
    found = subnet.apply(cast(sub_variables, dtype), X.astype(dtype))
    expected = module.apply(cast(zeroed, dtype), X.astype(dtype))
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=0.05)

    params = randomize({"first": jnp.ones((4, 4)), "second": jnp.ones((4, 4)), "bias": jnp.ones(4)})
    space = jasgnas.search_space(branches, X, params=params)
    zeroed = space.zero(params, [1])
    fn, sub_params = jasgnas.construct_subnet(space, zeroed)
    found, expected = fn(cast(sub_params, dtype), X.astype(dtype)), branches(cast(zeroed, dtype), X.astype(dtype))
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=0.05)
