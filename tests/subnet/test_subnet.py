"""Sub-networks return what the full network holding the zeros returns, in every mode, and train on like it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
from jasgnas import InvalidRemovalError, NonFiniteError, TreeMismatchError, VerificationError
from jasgnas.program.jaxpr import inline, trace
from jasgnas.subnet.construct import make_recipe
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import (
    arrays,
    build,
    combination,
    error,
    gradients,
    idle_indices,
    random_input,
    randomize,
    sampled,
    subsets,
)
from tests.toy_models import TOYS, toy_params

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def space_of(model, channels, dtype):
    return jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, channels), dtype))


def run(model, x, training):
    """Outputs and the arrays afterwards, on a copy of the model."""
    copy = nnx.clone(model)
    copy.train() if training else copy.eval()
    return copy(x), arrays(copy)


def compare(full, subnet, x, training):
    """Compares outputs, and all the statistics that the sub-network still has."""
    tolerance = TOLERANCE[x.dtype.name]
    expected, state = run(full, x, training)
    found, sub_state = run(subnet, x, training)
    assert error(found, expected) < tolerance
    statistics = [path for path in sub_state if path.endswith(("mean", "var"))]
    assert statistics
    for path in statistics:
        assert error(sub_state[path], state[path]) < tolerance, path
        assert training == bool(np.any(state[path] != arrays(full)[path]))


# Every valid subset of DemoNet: at most two of three branches, at most one of two addends.
DEMO_SETS = [s for s in subsets(5) if not {0, 1, 2} <= set(s) and not {3, 4} <= set(s)]
# Every valid subset of StackedUnets: the two last structures of the two halves do not go together.
UNETS_SETS = [s for s in subsets(6) if not {2, 5} <= set(s)]


def cases(sets, every):
    """Every set in float64, which sees the smallest difference, and some in float32, for the sake of its dtypes."""
    double, single = ([(name, i) for i in range(0, len(sets), step)] for name, step in (("float64", 1), ("float32", 5)))
    return sampled(double, every) + sampled(single, every)


def batch_sizes(number):
    """The batch sizes in inference and in training mode, which change places from set to set."""
    return zip((False, True), (1, 3) if number % 2 else (3, 1), strict=True)


@pytest.fixture(scope="module")
def precision(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture(scope="module")
def demo(precision):
    model = build(DemoNet, width=0.1, dtype=precision)
    return model, space_of(model, 1, precision)


@pytest.fixture(scope="module")
def unets(precision):
    model = build(StackedUnets, width=0.08, dtype=precision)
    return model, space_of(model, 3, precision)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("precision", "number"), cases(DEMO_SETS, every=2), indirect=["precision"])
def test_demo_net_is_exact(demo, precision, number):
    model, space = demo
    removed = DEMO_SETS[number]
    full = space.zero(model, removed)
    subnet = jasgnas.construct_subnet(space, full, allow_nothing=not removed)
    gone = {path for index in removed for path in space.groups[index].paths}
    assert arrays(subnet).keys() <= arrays(full).keys() - gone
    for training, batch_size in batch_sizes(number):
        compare(full, subnet, random_input((batch_size, 8, 8, 1), precision, number), training)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("precision", "number"), cases(UNETS_SETS, every=5), indirect=["precision"])
def test_stacked_unets_is_exact(unets, precision, number):
    model, space = unets
    full = space.zero(model, UNETS_SETS[number])
    subnet = jasgnas.construct_subnet(space, full, allow_nothing=not UNETS_SETS[number])
    for training, batch_size in batch_sizes(number):
        compare(full, subnet, random_input((batch_size, 8, 8, 3), precision, number), training)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("cls", "channels", "removed"),
    [*((DemoNet, 1, removed) for removed in DEMO_SETS[::3]), *((StackedUnets, 3, s) for s in [(0, 3, 4, 5), (1, 3)])],
)
def test_nothing_idle_is_kept(cls, channels, removed):
    model = build(cls, width=0.08)
    space = space_of(model, channels, jnp.float32)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed), allow_nothing=not removed)
    subnet.eval()
    idle = []
    for seed in range(3):
        # A relu may be off for good with some parameters, not with all.
        nnx.update(subnet, randomize(nnx.state(subnet), seed))
        idle.append(set(idle_indices(gradients(subnet, random_input((8, 8, 8, channels))))))
    assert not set.intersection(*idle)


@pytest.mark.exhaustive
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("removed", [(1, 3), (0, 1, 4), (2,)], ids=str)
def test_gradients_are_those_of_the_full_network(removed, training):
    with jax.enable_x64(True):
        model = build(DemoNet, width=0.1, dtype=jnp.float64)
        space = space_of(model, 1, jnp.float64)
        full = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, full)
        for network in (full, subnet):
            network.train() if training else network.eval()
        x = random_input((3, 8, 8, 1), jnp.float64)
        expected, found = gradients(full, x), gradients(subnet, x)
        for path, gradient in found.items():
            kept = np.ones(3, bool)
            kept[list({0, 1, 2} & set(removed))] = False
            wanted = expected[path]
            if path == "conv6/kernel":
                wanted = wanted[:, :, np.repeat(kept, wanted.shape[2] // 3)]
            assert gradient.shape == wanted.shape
            np.testing.assert_allclose(
                gradient, wanted, rtol=1e-9, atol=1e-10 * np.abs(np.asarray(wanted)).max() + 1e-12
            )


# A sub-network is an `nnx.Module` like any other.


@pytest.fixture
def pair():
    """DemoNet with two branches and one addend at zero, and its sub-network, both in training mode."""
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    full = space.zero(model, (0, 1, 4))
    return full, jasgnas.construct_subnet(space, full)


X = random_input((4, 8, 8, 1))


def test_parameters_are_found_by_name(pair):
    full, subnet = pair
    np.testing.assert_array_equal(subnet.conv7.kernel, full.conv7.kernel)
    np.testing.assert_array_equal(subnet.bn4.mean, full.bn4.mean)
    assert type(subnet.bn4.mean) is type(full.bn4.mean) and isinstance(subnet.bn4.mean, nnx.BatchStat)
    assert type(subnet.bn4.scale) is nnx.Param
    assert not hasattr(subnet, "conv2") and not hasattr(subnet, "bn8")
    assert subnet.conv6.kernel.shape[2] * 3 == full.conv6.kernel.shape[2]


def test_split_merge_and_clone(pair):
    _, subnet = pair
    subnet.eval()
    expected = subnet(X)
    graphdef, params, rest = nnx.split(subnet, nnx.Param, ...)
    np.testing.assert_array_equal(nnx.merge(graphdef, params, rest)(X), expected)
    clone = nnx.clone(subnet)
    np.testing.assert_array_equal(clone(X), expected)
    clone.fc2.bias.set_value(clone.fc2.bias.get_value() + 1)
    np.testing.assert_allclose(clone(X), expected + 1, rtol=1e-5)
    np.testing.assert_array_equal(subnet(X), expected)


def test_modes(pair):
    full, subnet = pair
    start = arrays(subnet)
    for network in (full, subnet):
        network.eval()
    assert error(subnet(X), full(X)) < 1e-5
    assert all(array is start[path] for path, array in arrays(subnet).items())
    for network in (full, subnet):
        network.train()
    assert error(subnet(X), full(X)) < 1e-5
    assert np.any(subnet.bn1.mean.get_value() != start["bn1/mean"])
    assert error(subnet.bn1.mean.get_value(), full.bn1.mean.get_value()) < 1e-5


def test_a_subnet_starts_in_the_mode_of_its_model():
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    for training in (False, True):
        model.train() if training else model.eval()
        subnet = jasgnas.construct_subnet(space, space.zero(model, (0,)))
        before = np.asarray(subnet.bn1.mean.get_value())
        subnet(X)
        assert bool(np.any(subnet.bn1.mean.get_value() != before)) is training


def test_jit_traces_once_per_shape(pair):
    full, subnet = pair
    traces = []

    @nnx.jit
    def apply(model, x):
        traces.append(x.shape)
        return model(x)

    for batch_size in (4, 4, 2, 4, 2):
        x = random_input((batch_size, 8, 8, 1))
        assert error(apply(subnet, x), full(x)) < 1e-5
    assert traces == [(4, 8, 8, 1), (2, 8, 8, 1)]


def test_further_training_follows_the_full_network():
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    full = space.zero(model, (0, 1, 4))
    pair = full, jasgnas.construct_subnet(space, full)
    optimizers = [nnx.Optimizer(network, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param) for network in pair]

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean(jnp.square(model(X) - 1)))(model)
        optimizer.update(model, grads)
        return loss

    losses = []
    for _ in range(3):
        losses.append([float(step(network, optimizer)) for network, optimizer in zip(pair, optimizers, strict=True)])
        # The full network's zeros stay where they are, as under H2SPG.
        nnx.update(full, nnx.state(space.zero(full, (0, 1, 4))))
    losses = np.array(losses)
    assert losses[2, 1] < losses[0, 1]
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)


def test_a_subnet_can_be_searched_again(pair):
    _, subnet = pair
    subnet.eval()
    with pytest.raises(jasgnas.NoRemovableStructureError, match="plain chain"):
        space_of(subnet, 1, jnp.float32)
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    first = jasgnas.construct_subnet(space, space.zero(model, (0,)))
    again = space_of(first, 1, jnp.float32)
    assert [group.name for group in again.groups] == [group.name for group in space.groups if group.index != 0]
    second = jasgnas.construct_subnet(again, again.zero(first, (0, 2)))
    direct = jasgnas.construct_subnet(space, space.zero(model, (0, 1, 3)))
    assert {path: a.shape for path, a in arrays(second).items()} == {
        path: a.shape for path, a in arrays(direct).items()
    }
    assert error(run(second, X, False)[0], run(direct, X, False)[0]) < 1e-5


def test_params_and_macs_shrink(pair):
    full, subnet = pair
    dropped = ["conv2", "bn2", "conv3", "bn3", "conv8", "bn8"]
    expected = {path: array.shape for path, array in arrays(full).items() if path.split("/")[0] not in dropped}
    expected["conv6/kernel"] = (3, 3, expected["conv6/kernel"][2] // 3, expected["conv6/kernel"][3])
    assert {path: array.shape for path, array in arrays(subnet).items()} == expected
    assert jasgnas.count_macs(subnet, X) < jasgnas.count_macs(full, X)


# Toy networks: one wiring each.


@pytest.fixture(params=TOYS, ids=str)
def toy(request):
    with jax.enable_x64(True):
        yield TOYS[request.param]


def test_toy_groups_are_those_found_by_hand(toy):
    params = toy_params(toy, np.float64)
    space = jasgnas.search_space(toy.fn, jax.ShapeDtypeStruct(toy.x, jnp.float64), params=params)
    assert [set(group.paths) for group in space.groups] == toy.groups
    assert [group.num_params for group in space.groups] == [
        sum(int(np.prod(np.asarray(params[part.path][part.indices]).shape)) for part in group.slices)
        for group in space.groups
    ]


def test_toy_sub_network_holds_what_is_needed(toy):
    params = toy_params(toy, np.float64)
    space = jasgnas.search_space(toy.fn, jax.ShapeDtypeStruct(toy.x, jnp.float64), params=params)
    _, sub_params = jasgnas.construct_subnet(space, space.zero(params, toy.removed))
    kept = {name: shape for name, shape in (toy.shapes | toy.left).items() if shape is not None}
    assert {name: array.shape for name, array in sub_params.items()} == kept


@pytest.mark.exhaustive
def test_toy_sub_networks_are_exact(toy):
    params = toy_params(toy, np.float64)
    space = jasgnas.search_space(toy.fn, jax.ShapeDtypeStruct(toy.x, jnp.float64), params=params)
    fn, derivative_of_fn = jax.jit(toy.fn), jax.jit(derivative(toy.fn))
    for removed in subsets(len(space.groups)):
        if not space.is_valid(removed):
            continue
        zeroed = space.zero(params, removed)
        sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed, allow_nothing=not removed)
        derivative_of_subnet = jax.jit(derivative(sub_fn))
        for batch_size in (1, 12):
            x = random_input((batch_size, *toy.x[1:]), jnp.float64, seed=len(removed))
            assert error(jax.jit(sub_fn)(sub_params, x), fn(zeroed, x)) < 1e-12
        expected, found = derivative_of_fn(zeroed, x), derivative_of_subnet(sub_params, x)
        for path, gradient in found.items():
            assert contains(expected[path], gradient), path
        # A relu may be off for good with some parameters, not with all.
        idle = set(idle_indices(found))
        for seed in range(1, 9):
            idle &= set(idle_indices(derivative_of_subnet(randomize(sub_params, seed), x))) if idle else idle
        assert not idle


def derivative(fn):
    return jax.grad(lambda params, x: combination(fn(params, x)))


def contains(whole, part):
    """Whether a gradient is the full one without some indices of one axis."""
    whole, part = np.asarray(whole), np.asarray(part)
    sliced = [axis for axis in range(whole.ndim) if whole.shape[axis] != part.shape[axis]]
    if not sliced:
        return np.allclose(whole, part, rtol=1e-9, atol=1e-12)
    (axis,) = sliced
    # The indices that stay keep their order.
    rows, wanted = np.moveaxis(whole, axis, 0), list(np.moveaxis(part, axis, 0))
    for row in rows:
        if wanted and np.allclose(row, wanted[0], rtol=1e-9, atol=1e-12):
            wanted.pop(0)
    return not wanted


class ConcatNorm(nnx.Module):
    """Two convolutions, concatenated, normalised, and read by two more."""

    def __init__(self, rngs):
        self.a = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.b = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(5, rngs=rngs)
        self.head = nnx.Conv(5, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        both = jnp.concatenate([self.a(x), self.b(x)], -1)
        return self.head(nnx.relu(self.bn(both)))


@pytest.mark.parametrize(("removed", "left"), [(0, slice(3, 5)), (1, slice(0, 3))])
def test_statistics_of_a_removed_range_go_too(removed, left):
    model = build(ConcatNorm)
    space = space_of(model, 1, jnp.float32)
    assert [set(group.paths) for group in space.groups] == [
        {"a/kernel", "a/bias", "bn/scale[0:3]", "bn/bias[0:3]"},
        {"b/kernel", "b/bias", "bn/scale[3:5]", "bn/bias[3:5]"},
    ]
    full = space.zero(model, [removed])
    subnet = jasgnas.construct_subnet(space, full)
    assert arrays(subnet).keys() == arrays(full).keys() - {f"{'ab'[removed]}/{leaf}" for leaf in ("kernel", "bias")}
    for training in (False, True):
        x = random_input((3, 6, 6, 1))
        expected, state = run(full, x, training)
        found, sub_state = run(subnet, x, training)
        assert error(found, expected) < 1e-5
        for leaf in ("scale", "bias", "mean", "var"):
            assert error(sub_state[f"bn/{leaf}"], state[f"bn/{leaf}"][left]) < 1e-5


class SharedNorm(nnx.Module):
    """A normalised layer that is read by two branches beside a third one."""

    def __init__(self, rngs):
        self.dense, self.bn = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.a, self.b = (nnx.Linear(4, 5, rngs=rngs) for _ in range(2))
        self.rest, self.head = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        shared = nnx.relu(self.bn(self.dense(x)))
        return self.head(self.a(shared) + self.b(shared) + self.rest(x))


def test_statistics_that_are_to_be_kept_are_kept_up_to_date():
    model, x = build(SharedNorm), random_input((6, 3))
    space = jasgnas.search_space(model, x, keep="bn/*")
    full = space.zero(model, [group.index for group in space.groups if group.name in ("a", "b")])
    subnet = jasgnas.construct_subnet(space, full)
    assert {path.partition("/")[0] for path in arrays(subnet)} == {"dense", "bn", "rest", "head"}
    for training in (False, True):
        compare(full, subnet, x, training)


# Gradients that are not those of the formula.


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_relu_has_no_gradient_at_zero(wrap):
    def fn(params, x):
        both = jnp.concatenate([x @ params["a"], x @ params["b"]], -1)
        return wrap(jax.nn.relu)(both + params["shift"]) @ params["head"]

    params = {"a": np.ones((3, 2)), "b": np.zeros((3, 2)), "shift": np.zeros(4), "head": np.ones((4, 3))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = jnp.ones((2, 3)) * jnp.array([1.0, -1.0, 0.0])  # every sum is zero: relu stands at its kink
    space = jasgnas.search_space(fn, x, params=params)
    zeroed = space.zero(params, [1])
    sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed)
    expected = jax.grad(lambda p: fn(p, x).sum())(zeroed)
    found = jax.grad(lambda p: sub_fn(p, x).sum())(sub_params)
    assert not np.any(expected["a"])  # a maximum's own derivative there would be one half
    np.testing.assert_array_equal(found["a"], expected["a"])


def test_checkpoint_survives():
    def fn(params, x):
        block = jax.checkpoint(lambda w, x: jnp.sin(x @ w), policy=jax.checkpoint_policies.nothing_saveable)
        return (block(params["a"], x) + x @ params["b"]) @ params["head"]

    params = {name: random_input((4, 4), seed=seed) for seed, name in enumerate(("a", "b", "head"))}
    x = random_input((2, 4))
    space = jasgnas.search_space(fn, x, params=params)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, [1]))
    program = trace(sub_fn, sub_params, x)
    assert [eqn.primitive for eqn in program.equations if "checkpoint" in eqn.primitive or "remat" in eqn.primitive]
    assert len(inline(program).equations) == 3


def test_function_of_the_state_of_a_module():
    """Parameters may be wrapped, as the variables of an `nnx.State` are; what wraps those that go, goes."""
    graphdef, state = nnx.split(nnx.Sequential(*(nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3))))

    def fn(state, x):
        first, second, head = nnx.merge(graphdef, state).layers
        x = first(x)
        return head(x + jax.nn.relu(second(x)))

    x = random_input((2, 4))
    space = jasgnas.search_space(fn, x, params=state)
    sparse = space.zero(state, [0])
    sub_fn, sub_state = jasgnas.construct_subnet(space, sparse)
    assert sorted(sub_state["layers"]) == [0, 2] and isinstance(sub_state, nnx.State)
    assert error(sub_fn(sub_state, x), fn(sparse, x)) < 1e-6
    smaller, (averaged, _) = jasgnas.shrink(space, sparse, (sparse, optax.adam(0.1).init(sparse)), removed=(0,))
    assert jax.tree.structure(averaged) == jax.tree.structure(smaller[1]) == jax.tree.structure(sub_state)


# What is not removed.


def test_only_groups_that_are_entirely_zero_go():
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    zeroed = space.zero(model, (1, 3))
    zeroed.bn3.bias.set_value(zeroed.bn3.bias.get_value().at[0].set(1e-30))
    subnet = jasgnas.construct_subnet(space, zeroed)
    assert hasattr(subnet, "conv3") and not hasattr(subnet, "conv7")
    assert subnet.conv3.kernel.shape == model.conv3.kernel.shape


def test_zero_initialised_parameters_stay():
    """Zeros outside the groups, or in a part of one, may be trained to something else."""
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    for name in ("bn2", "bn7", "bn1", "bn6"):
        norm = getattr(model, name)
        norm.bias.set_value(jnp.zeros_like(norm.bias.get_value()))
    model.bn8.scale.set_value(jnp.zeros_like(model.bn8.scale.get_value()))
    model.fc1.bias.set_value(jnp.zeros_like(model.fc1.bias.get_value()))
    model.conv6.kernel.set_value(jnp.zeros_like(model.conv6.kernel.get_value()))
    subnet = jasgnas.construct_subnet(space, model, allow_nothing=True)
    before = {path: array.shape for path, array in arrays(model).items()}
    assert {path: array.shape for path, array in arrays(subnet).items()} == before


def test_negative_zeros_are_zeros():
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    zeroed = space.zero(model, (0,))
    zeroed.conv2.kernel.set_value(-zeroed.conv2.kernel.get_value())
    assert not hasattr(jasgnas.construct_subnet(space, zeroed), "conv2")


def test_nothing_removed_changes_nothing():
    model = build(DemoNet, width=0.1)
    subnet = jasgnas.construct_subnet(space_of(model, 1, jnp.float32), model, allow_nothing=True)
    found = arrays(subnet)
    assert found.keys() == arrays(model).keys()
    assert all(found[path] is array or np.array_equal(found[path], array) for path, array in arrays(model).items())


# verify= and errors.


def test_verify_passes_for_every_toy(toy):
    params = toy_params(toy, np.float64)
    space = jasgnas.search_space(toy.fn, jax.ShapeDtypeStruct(toy.x, jnp.float64), params=params)
    jasgnas.construct_subnet(space, space.zero(params, toy.removed), verify=True)


def test_verify_bears_what_is_not_finite_in_the_full_network_either():
    def fn(params, x):
        y = x @ params["a"] + jax.nn.relu(x @ params["b"])
        return y / jnp.where(jnp.arange(3) == 1, 0.0, 1.0)

    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}
    space = jasgnas.search_space(fn, jnp.ones((2, 4)), params=params)
    _, sub_params = jasgnas.construct_subnet(space, space.zero(params, [1]), verify=True)
    assert list(sub_params) == ["a"]


class NeedsAnAxis(nnx.Module):
    """A residual network that averages over the devices in training, as synchronised batch norms do."""

    def __init__(self, rngs):
        self.training = False
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.b = nnx.Linear(4, 2, rngs=rngs)

    def set_attributes(self, *_, deterministic=None, **__):
        self.training = deterministic is False

    def __call__(self, x):
        y = self.a(x)
        return self.b(x + (y - jax.lax.pmean(y.mean(0), "devices") if self.training else y))


def test_training_that_needs_an_axis_of_devices():
    model = NeedsAnAxis(nnx.Rngs(0))
    model.train()
    assert model.training
    x = random_input((8, 4))
    space = jasgnas.search_space(model, x)
    subnet = jasgnas.construct_subnet(space, space.zero(model, [0]))
    assert jasgnas.count_params(subnet) == 10
    subnet.train()
    graphdef, state = nnx.split(subnet)
    apply = jax.pmap(lambda x: nnx.merge(graphdef, state)(x), axis_name="devices", devices=jax.devices()[:2])
    assert error(apply(x.reshape(2, 4, 4)).reshape(8, 2), model.b(x)) < 1e-6


def test_verify_refuses_a_wrong_sub_network(monkeypatch):
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)

    def broken(space, removed):
        recipe = make_recipe(space, removed)
        return replace(recipe, zeros=make_recipe(space, [*removed, 3]).zeros)

    monkeypatch.setattr("jasgnas.subnet.construct.make_recipe", broken)
    jasgnas.construct_subnet(space, space.zero(model, (0,)))
    with pytest.raises(VerificationError, match="output 0 of the sub-network differs by up to"):
        jasgnas.construct_subnet(space, space.zero(model, (0,)), verify=True)


@pytest.mark.parametrize("removed", [(3, 4), (0, 1, 2), (0, 1, 2, 3, 4)], ids=str)
def test_invalid_sets_are_refused(removed):
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    names = ", ".join(rf"{index} \({space.groups[index].name}\)" for index in removed)
    with pytest.raises(InvalidRemovalError, match=f"without the groups {names} no path is left"):
        jasgnas.construct_subnet(space, space.zero(model, removed))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_arrays_are_refused(bad):
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    model.conv3.bias.set_value(model.conv3.bias.get_value().at[0].set(bad))
    model.bn6.var.set_value(model.bn6.var.get_value().at[0].set(bad))
    with pytest.raises(NonFiniteError, match="bn6/var, conv3/bias hold NaN or infinity"):
        jasgnas.construct_subnet(space, model)


@pytest.mark.parametrize(
    ("params", "faults"),
    [
        ({"a": (4, 4), "head": (4, 4)}, "b: missing"),
        ({"a": (4, 4), "b": (4, 3), "head": (4, 4)}, r"b: shape \(4, 3\), expected \(4, 4\)"),
        ({"a": (4, 4), "b": (4, 4), "head": (4, 4), "c": (2,)}, "c: not in the search space"),
        ({"a": (4, 4), "b2": (4, 4), "head": (2,)}, r"b2: not in.*b: missing.*head: shape"),
    ],
)
def test_other_trees_are_refused(params, faults):
    def fn(params, x):
        return (x @ params["a"] + x @ params["b"]) @ params["head"]

    space = jasgnas.search_space(fn, jnp.ones((2, 4)), params={name: jnp.ones((4, 4)) for name in ("a", "b", "head")})
    with pytest.raises(TreeMismatchError, match=f"(?s)do not match the search space.*{faults}.*search_space"):
        jasgnas.construct_subnet(space, {name: jnp.ones(shape) for name, shape in params.items()})


def test_another_model_is_refused():
    model = build(DemoNet, width=0.1)
    space = space_of(model, 1, jnp.float32)
    with pytest.raises(TreeMismatchError, match="shape"):
        jasgnas.construct_subnet(space, build(DemoNet, width=0.2))
    with pytest.raises(TreeMismatchError, match="not in the search space"):
        jasgnas.construct_subnet(space, build(StackedUnets, width=0.1))


def test_calls_that_need_what_is_gone_are_refused():
    def fn(params, x, deep=False):
        y = x @ params["a"] + x @ params["b"]
        return (y @ params["extra"] if deep else y) @ params["head"]

    params = {name: jnp.ones((4, 4)) for name in ("a", "b", "extra", "head")}
    space = jasgnas.search_space(fn, jnp.ones((2, 4)), params=params)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, [0]))
    assert sub_fn(sub_params, jnp.ones((2, 4))).shape == (2, 4)
    with pytest.raises(jasgnas.ArgumentError, match="this call needs entries of extra that were not needed"):
        sub_fn(sub_params, jnp.ones((2, 4)), deep=True)


def test_the_time_to_trace_does_not_grow_with_the_square_of_the_network(monkeypatch):
    # Batch norms in training mode ask their statistics for a sharding; a tracer's answer goes through all equations.
    from jax.interpreters import partial_eval

    asked = []
    origin = partial_eval.DynamicJaxprTracer._origin_msg
    monkeypatch.setattr(
        partial_eval.DynamicJaxprTracer, "_origin_msg", lambda tracer: asked.append(tracer) or origin(tracer)
    )
    model = build(DemoNet, num_classes=10, width=0.125)
    train_step = jax.make_jaxpr(lambda x: nnx.merge(*nnx.split(model), copy=True)(x))
    train_step(random_input((2, 8, 8, 1)))
    assert asked
    asked.clear()
    space = jasgnas.search_space(model, random_input((2, 8, 8, 1)))
    jasgnas.construct_subnet(space, space.zero(model, [0]))
    assert not asked
