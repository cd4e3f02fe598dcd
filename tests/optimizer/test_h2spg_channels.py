"""H2SPG on structures and channels together: sizes are met, entries go with the right owner, on any devices."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jasgnas
from jasgnas import ArgumentError
from jasgnas.optimizer.ablation import Units
from models.demo_net import DemoNet
from tests.networks import build

STEPS = {"warmup_steps": 4, "projection_steps": 6}
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 1)), jnp.float32)
Y = jnp.arange(8) % 10


@cache
def demo():
    model = build(DemoNet, width=0.2)
    return model, jasgnas.search_space(model, X[:1], channels=True)


def loss_fn(model):
    return optax.softmax_cross_entropy_with_integer_labels(model(X), Y).mean()


def trained(space, model, steps=14, rate=0.02, with_loss=False, **options):
    """Trains a copy of a model; returns it, and the state of H2SPG."""
    model = nnx.clone(model)
    tx = optax.chain(
        optax.sgd(rate, momentum=0.9), jasgnas.h2spg(space, learning_rate=rate, **{**STEPS, "score": "gate", **options})
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(loss_fn)(model)
        given = {"value_fn": jasgnas.nnx_value_fn(model, loss_fn)} if with_loss else {}
        optimizer.update(model, grads, grad=grads, **given)

    for _ in range(steps):
        step(model, optimizer)
    return model, jasgnas.h2spg_state(optimizer.opt_state)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"target_macs": 0.5}, marks=[pytest.mark.sweep, pytest.mark.exhaustive]),
        {"target_params": 0.4},
        {"target_macs": 0.3, "periods": 2, "settle": True},
    ],
)
def test_a_size_is_met_in_training(options):
    model, space = demo()
    after, state = trained(space, model, **options)
    assert int(state.phase) == 2
    inner = np.append(state.redundant[: len(space.structures)], False)[space.candidates.inner_of]
    with_structures = np.append(np.zeros(len(space.structures), bool), inner[space.channels.dimension_of])
    np.testing.assert_array_equal(state.zero, state.redundant | with_structures)
    assert int(jasgnas.h2spg_metrics(state)["num_zero"]) == int(state.redundant.sum())
    subnet = jasgnas.construct_subnet(space, after)
    full, left = space.subnet_size(()), space.subnet_size(np.flatnonzero(state.zero))
    index = 0 if "target_params" in options else 1
    assert left[index] <= int(next(iter(options.values())) * full[index])
    assert (jasgnas.count_params(subnet), jasgnas.count_macs(subnet, X[:1])) == left
    after.eval()
    subnet.eval()
    np.testing.assert_allclose(subnet(X), after(X), rtol=1e-4, atol=1e-5)
    assert space.is_valid(np.flatnonzero(state.zero))
    assert bool(state.redundant[len(space.structures) :].any())


def test_rounds_keep_to_the_limits():
    """After every round each dimension has a multiple of its channels, and in the end the target is met."""
    model, space = demo()
    options = {"target_macs": 0.3, "periods": 3, "multiple_of": {"fc1/*": 16, "*": 4}, "min_channels": 5}
    for steps in (5, 7, 9, 14):
        _, state = trained(space, model, steps=steps, **options)
        redundant = np.asarray(state.redundant)
        for dimension in space.dimensions:
            left = dimension.size - redundant[dimension.groups].sum()
            assert left == dimension.size or left % (16 if dimension.name == "fc1" else 4) == 0
            assert left >= 8
    assert space.subnet_size(np.flatnonzero(redundant))[1] <= int(0.3 * space.subnet_size(())[1])


def test_numbers_of_kinds_are_met_in_rounds():
    model, space = demo()
    options = {"target_groups": {"structure": 2, "channel": 30}, "periods": 2}
    for steps, numbers in ((5, (1, 15)), (14, (2, 30))):
        _, state = trained(space, model, steps=steps, **options)
        structures, channels = np.split(np.asarray(state.redundant), [len(space.structures)])
        gone = np.append(structures, False)[space.candidates.inner_of]
        assert (structures.sum(), (channels & ~gone[space.channels.dimension_of]).sum()) == numbers


def test_the_selection_is_that_of_select():
    model, space = demo()
    scores = -np.random.default_rng(0).random(len(space.groups)).astype(np.float32)
    scores[: len(space.structures)] *= 10
    _, state = trained(space, model, score=jnp.asarray(scores), target_macs=0.5)
    assert tuple(np.flatnonzero(state.redundant)) == space.select(scores, target_macs=0.5)


def test_it_can_be_made_while_something_is_traced():
    """As in a step that takes settings of the optimizer, such as a schedule or scores, as arguments."""
    model, space = demo()
    params = nnx.as_pure(nnx.state(model, nnx.Param))

    def made(scores):
        return jasgnas.h2spg(space, learning_rate=0.02, **STEPS, score=lambda _: scores, target_macs=0.5)

    def selected(scores):
        tx = made(scores)
        state = tx.init(params)._replace(step=jnp.int32(STEPS["warmup_steps"] - 1))
        for _ in range(2):
            _, state = tx.update(params, state, params)
        return state.redundant

    scores = np.random.default_rng(0).random(len(space.groups)).astype(np.float32)
    found = jax.jit(selected)(scores)
    assert tuple(np.flatnonzero(found)) == space.select(scores, target_macs=0.5)


def test_an_entry_moves_with_one_of_its_groups():
    """Heads and their features are made by one leaf: an entry of two redundant channels moves with the shorter one."""

    def fn(p, x):
        return jnp.einsum("bhs,hsk->bk", jax.nn.relu(jnp.einsum("bc,chs->bhs", x, p["a"])), p["b"])

    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(4, 5, 2)), jnp.float32),
    }
    space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params, channels=True)
    assert [(each.paths, each.size) for each in space.dimensions] == [(("a",), 4), (("a",), 5)]
    row, column = space.dimensions[0].groups[1], space.dimensions[1].groups[2]
    scores = np.full(len(space.groups), -1.0, np.float32)
    scores[[row, column]] = 1.0
    target = space.subnet_size([row, column])[0]
    tx = jasgnas.h2spg(
        space, learning_rate=0.1, score=scores, target_params=target, warmup_steps=1, projection_steps=4, lmbda=1e-9
    )
    opt_state = tx.init(params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        before = params["a"]
        updates, opt_state = tx.update(nothing, opt_state, params)
        params = optax.apply_updates(params, updates)
    state = jasgnas.h2spg_state(opt_state)
    assert set(np.flatnonzero(state.redundant)) == {row, column}
    factor = np.asarray(params["a"] / before)
    lengths = np.linalg.norm(before[:, 1, :]), np.linalg.norm(before[:, :, 2])
    alone = {"row": factor[0, 1, 0], "column": factor[0, 0, 2]}
    assert np.allclose(factor[:, 1, [0, 1, 3, 4]], alone["row"], rtol=1e-5)
    assert np.allclose(factor[:, [0, 2, 3], 2], alone["column"], rtol=1e-5)
    shorter = "row" if lengths[0] < lengths[1] else "column"
    assert np.allclose(factor[:, 1, 2], alone[shorter], rtol=1e-5)
    assert np.allclose(np.delete(np.delete(factor, 1, 1), 2, 2), 1)


def test_shrinking_in_between_goes_on_alike():
    model, space = demo()
    tx = optax.chain(
        optax.sgd(0.02, momentum=0.9),
        jasgnas.h2spg(space, learning_rate=0.02, score="gate", target_macs=0.3, periods=2, **STEPS),
    )
    full = nnx.clone(model)
    opt_state = tx.init(nnx.state(full, nnx.Param))

    @nnx.jit
    def step(model, opt_state):
        params = nnx.state(model, nnx.Param)
        grads = nnx.grad(loss_fn)(model)
        updates, opt_state = tx.update(grads, opt_state, params, grad=grads)
        nnx.update(model, optax.apply_updates(params, updates))
        return opt_state

    for _ in range(9):
        opt_state = step(full, opt_state)
    state = jasgnas.h2spg_state(opt_state)
    assert state.zero.any()
    small, small_state = jasgnas.shrink(space, full, opt_state)
    assert jasgnas.count_params(small) < jasgnas.count_params(full)
    for _ in range(4):
        opt_state, small_state = step(full, opt_state), step(small, small_state)
    one, other = jasgnas.h2spg_state(opt_state), jasgnas.h2spg_state(small_state)
    np.testing.assert_array_equal(one.redundant, other.redundant)
    full.eval()
    small.eval()
    np.testing.assert_allclose(small(X), full(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_same_selection_with_kernels_sharded_over_their_channels(dtype):
    """The parameters are float32, and the network computes with copies of a narrower dtype, as is usual on devices."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)

    def wide(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 16)), jnp.bfloat16).astype(jnp.float32),
        "b": jnp.asarray(rng.normal(size=(16, 2)), jnp.bfloat16).astype(jnp.float32),
    }
    space = jasgnas.search_space(wide, x, params=params, channels=True)
    tx = optax.chain(
        optax.sgd(0.01), jasgnas.h2spg(space, learning_rate=0.01, score="gate", target_params=0.5, **STEPS)
    )

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            computed = wide(jax.tree.map(lambda leaf: leaf.astype(dtype), params), x.astype(dtype))
            return jnp.mean(computed.astype(jnp.float32) ** 2)

        grads = jax.grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params, grad=grads)
        return optax.apply_updates(params, updates), opt_state

    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = Mesh(np.array(devices), ("model",))
        layout = {"a": PartitionSpec(None, "model"), "b": PartitionSpec("model")}
        own = {name: jax.device_put(params[name], NamedSharding(mesh, spec)) for name, spec in layout.items()}
        opt_state = tx.init(own)
        for _ in range(12):
            own, opt_state = step(own, opt_state)
        state = jasgnas.h2spg_state(opt_state)
        found.append(np.flatnonzero(state.zero).tolist())
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_what_is_for_structures_alone_says_so():
    _, space = demo()
    for options, message in [
        ({"target_groups": 2}, "target_macs"),
        ({"target_macs": 0.5, "multiple_of": {"nowhere": 4}}, "matches no parameter"),
        ({"target_macs": 0.5, "hierarchical": False}, "hierarchical"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            jasgnas.h2spg(space, learning_rate=0.1, **STEPS, **options)


@cache
def measured():
    """Scores of `ablation`, and what they are of: parts of a dimension, none of which is much larger than another."""
    model, space = demo()
    scores = jasgnas.score_groups(space, model, lambda model, batch: loss_fn(model), [X], score="ablation", train=True)
    return scores, Units.of(space.candidates)


def test_ablation_measures_channels_by_quarters_and_shares_the_rise_by_gate():
    model, space = demo()
    scores, units = measured()
    gates = -jasgnas.score_groups(space, model, lambda model, batch: loss_fn(model), [X], score="gate", train=True)
    for dimension in space.dimensions:
        sizes = np.unique(units.of_groups[dimension.groups], return_counts=True)[1]
        assert len(sizes) == min(4, dimension.size) and np.ptp(sizes) <= 1
    for unit in range(units.number):
        members = np.flatnonzero(units.of_groups == unit)
        rise = loss_fn(space.zero(nnx.clone(model), members)) - loss_fn(model)
        # The sums of a float32 loss differ by a few roundings of it.
        np.testing.assert_allclose(-scores[members].sum(), rise, rtol=1e-3, atol=2e-6)
        if (whole := gates[members].sum()) > 0:
            np.testing.assert_allclose(-scores[members], rise * gates[members] / whole, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_rises_are_shared_whatever_the_unit_of_the_loss(scale):
    model, space = demo()

    def scaled(model, batch):
        return scale * loss_fn(model)

    scores = jasgnas.score_groups(space, model, scaled, [X], score="ablation", train=True)
    np.testing.assert_allclose(scores / scale, measured()[0], rtol=2e-3, atol=2e-6)


def test_ablation_of_channels_in_training_measures_the_same():
    model, space = demo()
    scores, units = measured()
    steps = {"warmup_steps": units.number, "selection_steps": units.number, "projection_steps": 4}
    _, state = trained(
        space, model, units.number, 0.0, True, target_macs=0.5, score="ablation", forward_passes=1.5, **steps
    )
    np.testing.assert_array_equal(state.num_scored > 0, True)
    np.testing.assert_allclose(state.scores, scores, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("periods", [1, 2])
def test_ablation_of_channels_compares_sets_and_meets_the_target(periods):
    model, space = demo()
    _, state = trained(
        space, model, 32, with_loss=True, target_macs=0.5, score="ablation", forward_passes=60.0, periods=periods,
        **{"warmup_steps": 24, "selection_steps": 24, "projection_steps": 6}
    )  # fmt: skip
    assert state.planned_rise != 0
    redundant = np.flatnonzero(state.redundant)
    np.testing.assert_array_equal(np.flatnonzero(state.zero & state.redundant), redundant)
    assert space.is_valid(redundant.tolist())
    assert space.subnet_size(redundant.tolist())[1] <= space.subnet_size([])[1] / 2


def test_ablation_of_channels_needs_the_gradient():
    model, space = demo()
    params = nnx.state(model, nnx.Param)
    tx = jasgnas.h2spg(space, learning_rate=0.1, target_macs=0.5, score="ablation", **STEPS)
    with pytest.raises(ArgumentError, match="tells them apart by the gradient"):
        tx.update(params, tx.init(params), params, value_fn=lambda params: jnp.float32(0))


def test_sets_of_channels_are_not_selected_without_a_training_loop():
    model, space = demo()
    with pytest.raises(ArgumentError, match=r"space\.select"):
        jasgnas.select_groups(space, model, lambda model, batch: loss_fn(model), [X], target_macs=0.5)
