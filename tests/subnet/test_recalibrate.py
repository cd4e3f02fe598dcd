"""Running statistics computed anew: against the activations themselves, in every flavour, and what is left alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from jasgnas.errors import ArgumentError, NonFiniteError
from jasgnas.pytree import leaves_by_path
from tests.networks import arrays, random_input, randomize

BATCHES = [3 * random_input((16, 6, 6, 3), seed=seed) + seed for seed in range(3)]
X = BATCHES[0]


class Net(nnx.Module):
    """Norms that remember for long and hardly at all, and dropout in front of one."""

    def __init__(self, rngs):
        self.stem, self.stem_norm = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, momentum=0.999, rngs=rngs)
        self.left, self.left_norm = nnx.Conv(6, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.right, self.right_norm = nnx.Conv(6, 6, (1, 1), rngs=rngs), nnx.BatchNorm(6, momentum=0.1, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = x + nnx.relu(self.left_norm(self.left(x))) + nnx.relu(self.right_norm(self.right(x)))
        return self.head(self.dropout(x).mean((1, 2)))


def make_net(seed=0):
    model = Net(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat)), seed))
    return model


def raw(model):
    return {
        path: np.asarray(jax.random.key_data(array) if path.endswith("key") else array)
        for path, array in arrays(model).items()
    }


def inputs_of_norms(model, x):
    """What each norm of the network gets in training mode, by its name."""
    found = {"stem_norm": model.stem(x)}

    def normed(name):
        a = found[name]
        a = (a - a.mean((0, 1, 2))) / np.sqrt(a.var((0, 1, 2)) + 1e-5)
        return nnx.relu(a * getattr(model, name).scale + getattr(model, name).bias)

    x = normed("stem_norm")
    return found | {"left_norm": model.left(x), "right_norm": model.right(x)}


@pytest.mark.parametrize("training", [False, True])
def test_statistics_are_those_of_the_activations(training):
    model = make_net()
    model.train() if training else model.eval()
    before = raw(model)
    seen = [inputs_of_norms(model, x) for x in BATCHES]
    assert jasgnas.recalibrate(model, iter(BATCHES)) is model
    for name in seen[0]:
        norm = getattr(model, name)
        np.testing.assert_allclose(norm.mean[...], np.mean([a[name].mean((0, 1, 2)) for a in seen], 0), 1e-4, 1e-4)
        np.testing.assert_allclose(norm.var[...], np.mean([a[name].var((0, 1, 2)) for a in seen], 0), 1e-4)
        assert norm.use_running_average is not training
    assert model.dropout.deterministic is not training
    changed = {path for path, array in raw(model).items() if array.tobytes() != before[path].tobytes()}
    assert changed == {f"{name}/{statistic}" for name in seen[0] for statistic in ("mean", "var")}
    model(X)


def test_it_is_what_the_layers_own_averages_converge_to():
    model = make_net()
    reference = nnx.clone(model)
    reference.train()
    reference.dropout.rate = 0.0
    step = nnx.jit(lambda model, x: model(x))
    for _ in range(400):
        step(reference, X)
    jasgnas.recalibrate(model, [X])
    for name in ("left_norm", "right_norm"):  # the other has not forgotten yet where it began
        for statistic in ("mean", "var"):
            expected = getattr(getattr(reference, name), statistic)[...]
            np.testing.assert_allclose(getattr(getattr(model, name), statistic)[...], expected, 0.03, 0.01)


def test_of_a_sub_network():
    model = make_net()
    space = jasgnas.search_space(model, X)
    full = space.zero(model, [group.index for group in space.groups if group.name.startswith("left")])
    full.eval()
    subnet = jasgnas.construct_subnet(space, full)
    jasgnas.recalibrate(full, BATCHES)
    assert jasgnas.recalibrate(subnet, BATCHES) is subnet
    assert not hasattr(subnet, "left")
    for path, array in arrays(subnet).items():
        if not path.endswith("key"):
            np.testing.assert_allclose(array, arrays(full)[path], rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(subnet(X), full(X), rtol=1e-4, atol=1e-4)


def test_it_repairs_statistics_of_another_network():
    model = make_net()
    model.eval()
    space = jasgnas.search_space(model, X)
    goal = jasgnas.recalibrate(jasgnas.construct_subnet(space, space.zero(model, [0])), BATCHES)
    expected = goal(X)
    # A norm undoes the scale of what it gets, if its statistics are those of what it gets.
    for layer in (model.stem, model.left, model.right):
        layer.kernel[...] *= 4
        layer.bias[...] = 4 * layer.bias[...] + 1
    subnet = jasgnas.construct_subnet(space, space.zero(model, [0]))
    assert np.max(np.abs(subnet(X) - expected)) > 0.1
    jasgnas.recalibrate(subnet, BATCHES)
    np.testing.assert_allclose(subnet(X), expected, rtol=1e-2, atol=1e-2)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, other, train):
        for index in range(2):
            y = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{index}")(nn.Dense(3)(x + other))
            x = x + nn.Dropout(0.5, deterministic=not train)(nn.relu(y))
        return x


@pytest.mark.parametrize("is_subnet", [False, True])
def test_linen(is_subnet):
    batches = [(x, jnp.cos(x)) for x in BATCHES]
    model = LinenNet()
    variables = randomize(model.init(jax.random.key(0), *batches[0], train=False))
    rngs = {"dropout": jax.random.key(1)}
    if is_subnet:
        space = jasgnas.search_space(model, *batches[0], variables=variables, train=False)
        variables = space.zero(variables, [0])
        model, variables = jasgnas.construct_subnet(space, variables)
    before = jax.tree.map(np.asarray, variables)
    found = jasgnas.recalibrate(model, batches, variables=variables, train=True, rngs=rngs)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(before), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(before["params"]), strict=True):
        assert np.array_equal(a, b)
    # From zero, an update is a tenth of what the batch says.
    nothing = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    updates = [
        leaves_by_path(model.apply(nothing, *batch, train=True, rngs=rngs, mutable=["batch_stats"])[1]["batch_stats"])
        for batch in batches
    ]
    statistics = leaves_by_path(found["batch_stats"])
    assert set(statistics) == set(updates[0]) and len(statistics) == (2 if is_subnet else 4)
    for path, statistic in statistics.items():
        np.testing.assert_allclose(statistic, 10 * np.mean([each[path] for each in updates], 0), rtol=1e-4, atol=1e-5)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dropout(x))


class EquinoxNet(eqx.Module):
    """Its norm divides the averages by 1 − mⁿ at inference, n being the number of calls in training."""

    stem: eqx.nn.Linear
    branch: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.stem, self.branch = eqx.nn.Linear(3, 5, key=keys[0]), eqx.nn.Linear(5, 5, key=keys[1])
        self.norm, self.head = eqx.nn.BatchNorm(5, "batch", mode="batch"), eqx.nn.Linear(5, 2, key=keys[2])

    def __call__(self, x, state):
        x = self.stem(x)
        x, state = self.norm(x + jnp.tanh(self.branch(x)), state)
        return self.head(jax.nn.relu(x)), state


def over_a_batch(module, x, state):
    return jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


@pytest.mark.parametrize("is_subnet", [False, True])
def test_equinox(is_subnet):
    batches = [jax.random.normal(jax.random.key(seed), (16, 3)) + seed for seed in range(3)]
    module, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    for x in batches[:2]:  # a few calls, after which the averages are far from what they converge to
        _, state = over_a_batch(module, x, state)
    method = over_a_batch
    if is_subnet:
        space = jasgnas.search_space(module, batches[0], variables=state, method=method)
        (group,) = [each.index for each in space.groups if "branch/weight" in each.paths]
        module, state = jasgnas.construct_subnet(space, space.zero((module, state), [group]))
        method = None  # a sub-network is called with a batch
    module, state = jasgnas.recalibrate(module, batches, variables=state, method=method)
    seen = []
    for x in batches:
        h = x @ module.stem.weight.T + module.stem.bias
        branch = 0 if is_subnet else jnp.tanh(h @ module.branch.weight.T + module.branch.bias)
        seen.append(np.asarray(h + branch, np.float64))
    mean, var = np.mean([h.mean(0) for h in seen], 0), np.mean([h.var(0) for h in seen], 0)
    run = eqx.nn.inference_mode(module)
    for h, x in zip(seen, batches, strict=True):
        normed = (h - mean) / np.sqrt(var + module.norm.eps) * module.norm.weight + module.norm.bias
        expected = np.maximum(normed, 0) @ module.head.weight.T + module.head.bias
        outputs, _ = run(x, state) if is_subnet else over_a_batch(run, x, state)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_each_batch_is_dropped_out_anew():
    model = Dropped(nnx.Rngs(0))
    expected = nnx.clone(model)
    expected.train()
    dropped = [np.asarray(expected.dropout(X)) for _ in range(2)]
    assert np.any(dropped[0] != dropped[1])
    jasgnas.recalibrate(model, [X, X])
    np.testing.assert_allclose(model.norm.mean[...], np.mean([a.mean((0, 1, 2)) for a in dropped], 0), 1e-4, 1e-5)
    assert int(model.dropout.rngs.count[...]) == 0


class State(nnx.Variable):
    pass


class Odd(nnx.Module):
    """Every kind of state that is no running statistic, beside two that are."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        for name in (
            "mean",
            "drifting",
            "last",
            "read",
            "feeding",
            "fed",
            "squared",
            "steps",
            "peak",
            "followed",
            "follower",
        ):
            setattr(self, name, State(jnp.full(3, 0.5)))
        self.rows = State(jnp.full((2, 3), 0.5))
        self.count = State(jnp.int32(7))

    def __call__(self, x):
        x = self.linear(x)
        batch = jnp.mean(x, (0, 1, 2))
        self.mean[...] = 0.9 * self.mean + 0.1 * batch
        self.drifting[...] = self.drifting - 0.01 * (self.drifting - batch)  # the same, written otherwise
        self.rows[...] = self.rows.at[1].set(0.5 * self.rows[1] + 0.5 * batch)
        self.last[...] = batch
        x = x + self.read
        self.read[...] = 0.9 * self.read + 0.1 * batch
        self.feeding[...] = 0.9 * self.feeding + 0.1 * batch
        self.fed[...] = self.feeding * 2
        self.squared[...] = 0.9 * self.squared**2 + 0.1 * batch
        self.peak[...] = jnp.maximum(self.peak, batch)
        self.followed[...] = 0.9 * self.followed + 0.1 * batch
        self.follower[...] = 0.9 * self.follower + 0.1 * self.followed
        self.steps[...] += 1
        self.count[...] += 1
        return x


def test_what_is_no_running_statistic_is_left_alone():
    model = Odd(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, nnx.Param)))
    before = raw(model)
    expected = np.mean([np.mean(np.asarray(model.linear(x)), (0, 1, 2)) for x in BATCHES], 0)
    jasgnas.recalibrate(model, BATCHES)
    changed = {path for path, array in raw(model).items() if array.tobytes() != before[path].tobytes()}
    assert changed == {"mean", "drifting", "rows"}
    for found in (model.mean[...], model.drifting[...], model.rows[1]):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.all(model.rows[0] == 0.5)


class Spectral(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x, update_stats=True))


def test_vectors_of_spectral_norm_are_left_alone():
    model = Spectral(nnx.Rngs(0))
    before = raw(model)
    jasgnas.recalibrate(model, BATCHES[:1])
    changed = {path for path, array in raw(model).items() if array.tobytes() != before[path].tobytes()}
    assert changed == {"norm/mean", "norm/var"}


class Stacked(nnx.Module):
    """Layers in a scan, whose statistics are stacked."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return Block(rngs)

        self.blocks = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return run(x, self.blocks)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.norm(self.linear(x)))


def test_stacked_layers():
    model = Stacked(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, nnx.Param)))
    x, seen = X, []
    for index in range(3):
        block = jax.tree.map(lambda a, i=index: a[i], nnx.state(model.blocks, nnx.Param))
        y = x @ block["linear"]["kernel"][...] + block["linear"]["bias"][...]
        seen.append(y)
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
        x = x + nnx.relu(y * block["norm"]["scale"][...] + block["norm"]["bias"][...])
    jasgnas.recalibrate(model, [X])
    np.testing.assert_allclose(model.blocks.norm.mean[...], [y.mean((0, 1, 2)) for y in seen], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.blocks.norm.var[...], [y.var((0, 1, 2)) for y in seen], rtol=1e-4)


def test_what_is_refused():
    model = make_net()
    with pytest.raises(ArgumentError, match="a function of parameters does not return the statistics"):
        jasgnas.recalibrate(lambda params, x: x @ params, [X])
    with pytest.raises(ArgumentError, match="at least one batch, got none"):
        jasgnas.recalibrate(model, [])
    with pytest.raises(ArgumentError, match=r"an iterable of batches, \[batch\] for one"):
        jasgnas.recalibrate(model, X)
    with pytest.raises(ArgumentError, match="this call updates no running statistics.*train=True"):
        jasgnas.recalibrate(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), [X])
    linen = LinenNet()
    variables = linen.init(jax.random.key(0), X, X, train=False)
    with pytest.raises(ArgumentError, match="this call updates no running statistics.*train=True"):
        jasgnas.recalibrate(linen, [(X, X)], variables=variables, train=False)
    with pytest.raises(ArgumentError, match="a Linen module needs its variables"):
        jasgnas.recalibrate(linen, [(X, X)], train=True)
    before = raw(model)
    with pytest.raises(NonFiniteError, match="the statistic .*norm/(mean|var) of batch 1 is not finite"):
        jasgnas.recalibrate(model, [X, X.at[0].set(jnp.nan)])
    assert all(array.tobytes() == before[path].tobytes() for path, array in raw(model).items())
