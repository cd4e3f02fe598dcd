"""H2SPG against its oracle, in every company an optax transformation can find itself in."""

import dataclasses
import math
import re
from collections import Counter
from functools import cache, partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from h2spg_oracle import BRANCHES, Adam, Oracle, Sgd
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jasgnas.errors import ArgumentError, TargetError, TreeMismatchError
from jasgnas.h2spg import ADAM_DEFAULTS, DONE, PROJECTION, WARMUP, h2spg, h2spg_metrics, h2spg_state
from jasgnas.scores import SCORES, GroupStats
from jasgnas.targets import resolve_target
from jasgnas.validity import SegmentTopology, is_valid

# A space like DemoNet's: three branches into a concatenation, whose batch norm is divided among them, and two addends.
# Segments: stem 0; branches 1, 2, 3; concatenation 4; conv6 5; conv7 6; conv8 7; sum 8; head 9.
TOPOLOGY = SegmentTopology(
    senders=np.array([0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8], np.int32),
    receivers=np.array([1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 9], np.int32),
    additive=np.isin(np.arange(10), [4, 8]),
    num_external=(np.arange(10) == 0).astype(np.int32),
    outputs=np.array([9], np.int32),
    group=np.array([-1, 0, 1, 2, -1, -1, 3, 4, -1, -1], np.int32),
)
SHAPES = {
    "stem/kernel": (2, 4),
    "conv2/kernel": (4, 3),
    "conv3/kernel": (4, 3),
    "conv4/bias": (4,),
    "conv4/kernel": (4, 4),
    "norm/scale": (10,),  # 3 + 3 entries of the first two branches, 3 of the third, and one of nobody
    "mixed/kernel": (3, 8),  # conv7 has columns 0-2, conv8 columns 4-7
    "gain": (),
}


class LeafSlice(NamedTuple):
    path: str
    axis: int | None = None
    start: int = 0
    stop: int = 0


@dataclasses.dataclass
class Group:
    index: int
    num_params: int
    slices: tuple[LeafSlice, ...]


SPACE = SimpleNamespace(
    groups=(
        Group(0, 15, (LeafSlice("conv2/kernel"), LeafSlice("norm/scale", 0, 0, 3))),
        Group(1, 15, (LeafSlice("conv3/kernel"), LeafSlice("norm/scale", 0, 3, 6))),
        Group(2, 23, (LeafSlice("conv4/bias"), LeafSlice("conv4/kernel"), LeafSlice("norm/scale", 0, 6, 9))),
        Group(3, 9, (LeafSlice("mixed/kernel", 1, 0, 3),)),
        Group(4, 13, (LeafSlice("mixed/kernel", 1, 4, 8), LeafSlice("gain"))),
    ),
    topology=TOPOLOGY,
    leaves=tuple(SimpleNamespace(path=path, shape=shape) for path, shape in SHAPES.items()),
)
INDICES = [
    [(part.path, (slice(None),) * (part.axis or 0) + (slice(part.start, part.stop),) if part.stop else ...)
     for part in group.slices]
    for group in SPACE.groups
]  # fmt: skip


def make_params(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in SHAPES.items()}


def make_problem(seed=0):
    """A quadratic that moves about: `grads(params, step)`, for NumPy and JAX arrays alike."""
    rng = np.random.default_rng(seed)
    curvature = {path: rng.uniform(0.1, 1.0, shape) for path, shape in SHAPES.items()}
    centre = {path: 0.5 * rng.normal(size=shape) for path, shape in SHAPES.items()}
    phase = {path: rng.uniform(0, 6, shape) for path, shape in SHAPES.items()}

    def grads(params, step, sin=np.sin):
        return {
            path: curvature[path] * (x - centre[path]) + 0.3 * sin(0.7 * step + phase[path])
            for path, x in params.items()
        }

    return grads


def jax_grads(params, step):
    """The gradients of `make_problem()`, traceable and in the dtype of the parameters."""
    grads = make_problem()(jax.tree.map(lambda x: x.astype(jnp.float32), params), step, sin=jnp.sin)
    return jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, params)


def group_arrays(params, group):
    return [np.asarray(params[path])[index] for path, index in INDICES[group]]


def zero_groups(params):
    """The groups all of whose parameters are exactly zero."""
    return [group for group in range(5) if not any(array.any() for array in group_arrays(params, group))]


def make_h2spg(learning_rate=0.1, target_groups=3, warmup_steps=4, projection_steps=6, **options):
    if "target_sparsity" in options:
        target_groups = None
    return h2spg(
        SPACE,
        learning_rate=learning_rate,
        target_groups=target_groups,
        warmup_steps=warmup_steps,
        projection_steps=projection_steps,
        **options,
    )


def make_chain(**options):
    return optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9), make_h2spg(**options))


DEFAULT = make_chain()


def make_step(tx, grads_fn=jax_grads):
    def step(params, opt_state, number):
        updates, opt_state = tx.update(grads_fn(params, number), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


@cache
def jit_step(tx, grads_fn):
    return jax.jit(make_step(tx, grads_fn))


def train(tx, params, num_steps, grads_fn=jax_grads, opt_state=None, start=0):
    """Runs steps `start` … `num_steps` − 1 jitted; returns parameters and state after each of them."""
    step = jit_step(tx, grads_fn)
    opt_state = tx.init(params) if opt_state is None else opt_state
    history = []
    for number in range(start, num_steps):
        params, opt_state = step(params, opt_state, number)
        history.append((params, opt_state))
    return history


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# --- The oracle

SGD, MOMENTUM = partial(Sgd), partial(Sgd, momentum=0.9, weight_decay=1e-3)
OPTAX_BASE = {
    SGD: optax.sgd,
    MOMENTUM: lambda lr: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(lr, momentum=0.9)),
    Adam: optax.adam,
}


def warmup_then_decay(step):
    """A learning rate that starts at 0."""
    return 0.002 * step * 0.99**step


def constant(step):
    return 0.01 + 0.0 * step


ORACLE_CASES = {
    "sgd-strong": (SGD, constant, {"lmbda": 0.3, "amplify": 1.5, "hat": 3.0, "guarantee_target": False}),
    "sgd-weak": (
        SGD,
        constant,
        {"lmbda": 0.05, "amplify": 1.1, "hat": 100.0, "epsilon": 0.95, "projection_steps": 250},
    ),
    "sgd-periods": (SGD, warmup_then_decay, {"lmbda": 0.02, "periods": 3, "omega": 0.7}),
    "momentum-schedule": (MOMENTUM, warmup_then_decay, {"lmbda": 0.1, "epsilon": 0.3, "num_redundant": 2}),
    "adam": (Adam, constant, dict(ADAM_DEFAULTS)),
    "adam-periods": (Adam, warmup_then_decay, {**ADAM_DEFAULTS, "periods": 3, "guarantee_target": False}),
}


def make_oracle(base, learning_rate, options):
    options = {"num_redundant": 3, "warmup_steps": 40, "projection_steps": 160, **options}
    return Oracle(INDICES, lambda removed: is_valid(TOPOLOGY, mask(removed)), base(), learning_rate, **options)


ORACLE_STEPS = 300
SILENCED_AT = 60  # before this step group 2 is set to zero by hand, whatever it was going to be


@pytest.fixture(scope="module")
def oracle_runs():
    """For every case the oracle, and what it held after each step: parameters, scores, redundant and zero groups."""
    runs = {}
    for seed, (case, (base, learning_rate, options)) in enumerate(ORACLE_CASES.items()):
        oracle, grads = make_oracle(base, learning_rate, options), make_problem(seed)
        params = jax.tree.map(np.float64, make_params(seed))
        history = []
        for number in range(ORACLE_STEPS):
            if number == SILENCED_AT:
                params = jax.tree.map(np.array, params)
                oracle.write(params, 2, np.zeros(23))
            params = oracle.step(params, grads(params, number))
            history.append((params, oracle.scores, mask(oracle.redundant), mask(oracle.zero)))
        runs[case] = oracle, jax.tree.map(lambda *steps: np.stack(steps), *history)
    return runs


def mask(groups):
    return np.isin(np.arange(5), list(groups))


@pytest.mark.parametrize("case", ORACLE_CASES)
def test_iterates_agree_with_oracle(case, oracle_runs):
    base, learning_rate, options = ORACLE_CASES[case]
    options = {"warmup_steps": 40, "projection_steps": 160, **options}
    options["target_groups"] = options.pop("num_redundant", 3)
    seed = list(ORACLE_CASES).index(case)
    with jax.enable_x64(True):
        tx = optax.chain(OPTAX_BASE[base](learning_rate), make_h2spg(learning_rate, **options))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), make_params(seed))
        step = make_step(tx, partial(make_problem(seed), sin=jnp.sin))

        def body(carry, number):
            params, opt_state = carry
            silenced = {path: params[path].at[index].multiply(number != SILENCED_AT) for path, index in INDICES[2]}
            params = {**params, **silenced}
            params, opt_state = step(params, opt_state, number)
            state = h2spg_state(opt_state)
            return (params, opt_state), (params, state.scores, state.redundant, state.zero)

        _, found = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(ORACLE_STEPS)))((params, tx.init(params)))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-10), found, oracle_runs[case][1])


def test_oracle_cases_meet_every_branch(oracle_runs):
    met = sum((oracle.branches for oracle, _ in oracle_runs.values()), Counter())
    assert set(met) == BRANCHES


# --- Phases


@pytest.fixture(scope="module")
def history():
    """Parameters and state after each of 16 steps of the default chain: 4 of warm-up, 6 of projection, 6 after."""
    return train(DEFAULT, make_params(), 16)


def test_phases_follow_the_step_numbers(history):
    states = [h2spg_state(opt_state) for _, opt_state in history]
    assert [int(state.step) for state in states] == list(range(1, 17))
    assert [int(state.phase) for state in states] == [WARMUP] * 4 + [PROJECTION] * 5 + [DONE] * 7
    assert [int(state.redundant.sum()) for state in states] == [0] * 4 + [3] * 12
    assert int(states[8].zero.sum()) < 3 and int(states[9].zero.sum()) == 3


def test_warmup_passes_updates_through(history):
    plain = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
    for (expected, _), (params, _) in zip(train(plain, make_params(), 4), history, strict=False):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), params, expected)


def test_selection_is_valid_and_kept(history):
    selected = [np.asarray(h2spg_state(opt_state).redundant) for _, opt_state in history[4:]]
    assert is_valid(TOPOLOGY, selected[0])
    assert all((later == selected[0]).all() for later in selected)


def test_scores_stay_after_the_last_selection(history):
    scores = [h2spg_state(opt_state).scores for _, opt_state in history]
    assert (scores[3] != scores[2]).all()
    assert all((later == scores[3]).all() for later in scores[4:])


BASES = {
    "clipped momentum": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "lion": lambda: optax.lion(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize(
    ("base", "dtype"), [("adamw", jnp.float32), ("lion", jnp.float32), ("clipped momentum", jnp.bfloat16)]
)
def test_exactly_the_target_is_zero_and_stays_so(base, dtype):
    tx = optax.chain(optax.add_decayed_weights(0.1), BASES[base](), make_h2spg())
    history = train(tx, make_params(dtype=dtype), 25)
    for params, opt_state in history[9:]:
        assert zero_groups(params) == np.flatnonzero(h2spg_state(opt_state).zero).tolist()
        assert len(zero_groups(params)) == 3
    before, after = history[9][0], history[-1][0]
    assert all(after[path].dtype == dtype for path in SHAPES)
    for group in set(range(5)) - set(zero_groups(after)):
        moved = [(x != y).any() for x, y in zip(group_arrays(before, group), group_arrays(after, group), strict=True)]
        assert all(moved)


def test_zero_groups_stay_zero_where_updates_are_not_finite(history):
    params, opt_state = history[-1]
    zero = zero_groups(params)

    def grads_fn(params, number):
        return {path: jnp.where(params[path] == 0, jnp.nan, grad) for path, grad in jax_grads(params, number).items()}

    params, _ = train(DEFAULT, params, 20, grads_fn, opt_state, start=16)[-1]
    assert zero_groups(params) == zero
    assert all(np.isfinite(params[path]).all() for path in SHAPES)


def test_rounds_select_and_finish_one_after_another():
    history = train(make_chain(periods=3), make_params(), 11)
    states = [h2spg_state(opt_state) for _, opt_state in history]
    assert [int(state.redundant.sum()) for state in states] == [0] * 4 + [1, 1, 2, 2, 3, 3, 3]
    assert [int(states[number].zero.sum()) for number in (5, 7, 9)] == [1, 2, 3]
    assert all((later.redundant >= earlier.redundant).all() for earlier, later in zip(states, states[1:], strict=False))
    assert [int(state.phase) for state in states[3:]] == [WARMUP] + [PROJECTION] * 5 + [DONE] * 2


def test_without_guarantee_the_norms_are_left_to_the_method():
    _, opt_state = train(make_chain(guarantee_target=False, lmbda=1e-6), make_params(), 12)[-1]
    state = h2spg_state(opt_state)
    assert int(state.phase) == PROJECTION
    assert int(state.redundant.sum()) == 3 and not state.zero.all()


@pytest.mark.parametrize(("options", "valid"), [({}, True), ({"hierarchical": False, "periods": 3}, False)])
def test_only_hierarchical_selection_respects_validity(options, valid):
    # The score prefers conv7 and conv8, whose sum nothing can replace.
    def score(stats):
        return jnp.arange(5.0) + 0 * stats.x_norm

    params, _ = train(make_chain(score=score, **options), make_params(), 11)[-1]
    assert zero_groups(params) == ([1, 2, 4] if valid else [2, 3, 4])
    assert is_valid(TOPOLOGY, mask(zero_groups(params))) is valid


def test_target_is_met_in_rounds_where_greed_alone_falls_short():
    # The output needs group 0, or groups 1 and 2. Without group 0, which scores highest, nothing else can go.
    topology = SegmentTopology(
        senders=np.array([1, 2, 0, 3]),
        receivers=np.array([3, 3, 4, 4]),
        additive=np.array([False, False, False, False, True]),
        num_external=np.array([1, 1, 1, 0, 0]),
        outputs=np.array([4]),
        group=np.array([0, 1, 2, -1, -1]),
    )
    space = SimpleNamespace(
        groups=tuple(Group(index, 4, (LeafSlice(str(index)),)) for index in range(3)),
        topology=topology,
        leaves=tuple(SimpleNamespace(path=str(index), shape=(4,)) for index in range(3)),
    )
    tx = h2spg(
        space,
        learning_rate=0.1,
        target_groups=2,
        warmup_steps=1,
        projection_steps=2,
        periods=2,
        score="magnitude",
    )
    params = {str(index): jnp.full(4, index + 1.0) for index in range(3)}
    params, _ = train(tx, params, 4, lambda params, number: jax.tree.map(jnp.zeros_like, params))[-1]
    assert [bool(params[str(index)].any()) for index in range(3)] == [True, False, False]


def test_scores_of_the_selection_window_only():
    # Scores measured over the last two of four warm-up steps are those of a run that starts at the third.
    late = train(make_chain(selection_steps=2), make_params(), 5)
    params, opt_state = late[1]
    state = h2spg_state(opt_state)
    assert not state.scores.any() and not state.norms.any()
    fresh = make_chain(warmup_steps=2)
    opt_state = (*opt_state[:-1], fresh.init(params)[-1])
    _, expected = train(fresh, params, 5, opt_state=opt_state, start=2)[-1]
    np.testing.assert_allclose(h2spg_state(late[-1][1]).scores, h2spg_state(expected).scores, rtol=1e-6)


# --- Scores


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Cosines 1, -0.5, 0, 0 have norm √1.25; reciprocals of ‖x‖/|g| are 2, 0.5, 4 and none, of norm √20.25 = 4.5.
        ("default", [0.5 / 1.25**0.5 + 1 / 4.5, -0.25 / 1.25**0.5 + 0.25 / 4.5, 2 / 4.5, 0.5]),
        ("magnitude", [-1.0, -2.0, -0.5, 0.0]),
        ("average_magnitude", [-0.5, -2.0, -0.25, 0.0]),
        ("cosine", [1.0, -0.5, 0.0, 0.0]),
        ("taylor", [-3.0, -3.0, 0.0, 0.0]),
    ],
)
def test_scores_by_hand(name, expected):
    stats = GroupStats(
        num_params=jnp.array([2.0, 1.0, 2.0, 5.0]),
        x_norm=jnp.array([1.0, 2.0, 0.5, 0.0]),
        d_norm=jnp.array([3.0, 3.0, 0.0, 1.0]),
        x_dot_d=jnp.array([3.0, -3.0, 0.0, 0.0]),
    )
    np.testing.assert_allclose(SCORES[name](stats), expected, rtol=1e-6)


def test_default_score_is_finite_for_tiny_and_huge_groups():
    stats = GroupStats(jnp.ones(3), jnp.array([1e-30, 1.0, 1e30]), jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(SCORES["default"](stats), [0.5, 0.0, 0.0], atol=1e-6)


# --- Company


def test_scan_with_donated_state_equals_single_steps_and_compiles_once(history):
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


def test_accumulated_gradients(history):
    tx = optax.MultiSteps(DEFAULT, every_k_schedule=2)
    params, opt_state = train(tx, make_params(), 32, lambda params, number: jax_grads(params, number // 2))[-1]
    assert_trees_equal(zero_groups(params), zero_groups(history[-1][0]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])
    assert int(h2spg_state(opt_state).step) == 16


def test_multi_transform(history):
    labels = {path: "stem" if path == "stem/kernel" else "search" for path in SHAPES}
    tx = optax.multi_transform({"search": DEFAULT, "stem": optax.adam(0.1)}, labels)
    params, opt_state = train(tx, make_params(), 16)[-1]
    assert int(h2spg_state(opt_state).phase) == DONE
    for path in SHAPES.keys() - {"stem/kernel"}:
        np.testing.assert_allclose(params[path], history[-1][0][path], rtol=1e-5, atol=1e-6)


def test_injected_hyperparameters(history):
    inject = optax.inject_hyperparams(
        h2spg, static_args=("target_groups", "warmup_steps", "projection_steps", "periods")
    )
    last = inject(
        SPACE, learning_rate=lambda step: 0.1, target_groups=3, warmup_steps=4, projection_steps=6, lmbda=1e-3
    )
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9), last)
    params, opt_state = train(tx, make_params(), 16)[-1]
    assert float(opt_state[-1].hyperparams["lmbda"]) == pytest.approx(1e-3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])


def test_steps_that_are_not_finite_are_as_if_they_had_not_been(history):
    def grads_fn(params, number):
        # Steps 2, 7 and 13 are of no use: in warm-up, in the projection and afterwards.
        bad = (number == 2) | (number == 7) | (number == 13)
        number = number - (number > 2) - (number > 7) - (number > 13)
        return jax.tree.map(lambda grad: jnp.where(bad, jnp.nan, grad), jax_grads(params, number))

    tx = optax.apply_if_finite(DEFAULT, max_consecutive_errors=3)
    params, opt_state = train(tx, make_params(), 19, grads_fn)[-1]
    assert int(h2spg_state(opt_state).step) == 16
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, history[-1][0])


# --- Trees


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


# --- Devices


def test_pmap_selects_the_same_on_every_device(history):
    num_devices = 8

    @partial(jax.pmap, axis_name="data", in_axes=(0, 0, None, 0), devices=jax.devices()[:num_devices])
    def step(params, opt_state, number, shard):
        def grads_fn(params, number):
            # Every device's own gradient is off; their mean is not.
            grads = jax.tree.map(lambda grad: shard * grad, jax_grads(params, number))
            return jax.lax.pmean(grads, "data")

        return make_step(DEFAULT, grads_fn)(params, opt_state, number)

    params = make_params()
    carry = jax.tree.map(lambda x: jnp.stack([x] * num_devices), (params, DEFAULT.init(params)))
    for number in range(12):
        carry = step(*carry, number, jnp.linspace(0.5, 1.5, num_devices))
    carry = jax.device_get(carry)
    for device in range(num_devices):
        found = jax.tree.map(lambda x, device=device: x[device], carry)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, history[11])
        for name in ("redundant", "zero"):
            ours, theirs = (getattr(h2spg_state(opt_state), name) for _, opt_state in (found, history[11]))
            np.testing.assert_array_equal(ours, theirs)


def collective_sizes(compiled):
    """The number of elements of every array that a collective operation of the compiled program returns."""
    collective = r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(re.findall(collective, compiled.as_text())))
    return [math.prod(int(length) for length in shape.split(",") if length) for shape in shapes]


def test_sharded_parameters_cost_no_large_collective(history):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    specs = {
        "conv2/kernel": P("model"),
        "conv3/kernel": P("model"),
        "conv4/kernel": P(None, "model"),
        "conv4/bias": P("model"),
        "mixed/kernel": P(None, "model"),
    }
    shardings = {path: NamedSharding(mesh, specs.get(path, P())) for path in SHAPES}
    params = jax.device_put(make_params(), shardings)
    opt_state = optax.tree_map_params(
        DEFAULT, jax.device_put, DEFAULT.init(params), shardings,
        transform_non_params=lambda x: jax.device_put(x, NamedSharding(mesh, P())),
    )  # fmt: skip
    carry = (params, opt_state)
    shardings = jax.tree.map(lambda x: x.sharding, carry)
    step = jax.jit(make_step(DEFAULT), out_shardings=shardings).lower(*carry, 0).compile()
    sizes = collective_sizes(step)
    assert len(sizes) > 0 and max(sizes) <= 3 * len(SPACE.groups)
    for number in range(12):
        carry = step(*carry, number)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), carry, history[11])
    np.testing.assert_array_equal(h2spg_state(carry[1]).zero, h2spg_state(history[11][1]).zero)


# --- Checkpoints


@pytest.mark.parametrize("saved_after", [2, 4, 7, 12], ids=["warm-up", "before selection", "projection", "done"])
def test_training_goes_on_bit_identically_from_a_checkpoint(saved_after, history, tmp_path):
    saved = history[saved_after - 1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: (make_params(), DEFAULT.init(make_params())))
        restored = checkpointer.restore(tmp_path / "state", target)
    params, opt_state = jax.tree.map(jnp.array, jax.device_get(restored))
    resumed = train(DEFAULT, params, 16, opt_state=opt_state, start=saved_after)
    assert_trees_equal(resumed[-1], history[-1])


def test_state_of_another_space_is_refused():
    params = make_params()
    tx = make_h2spg()
    foreign = jax.tree.map(lambda x: jnp.zeros(7, x.dtype) if x.ndim else x, tx.init(params))
    with pytest.raises(TreeMismatchError, match=r"\(7,\) groups, the search space has 5"):
        tx.update(params, foreign, params)


# --- Observation


def test_metrics(history):
    params, opt_state = history[6]
    metrics = jax.jit(h2spg_metrics)(opt_state)
    redundant = np.flatnonzero(h2spg_state(opt_state).redundant)
    norms = [np.sqrt(sum((array**2).sum() for array in group_arrays(history[5][0], group))) for group in redundant]
    assert int(metrics["phase"]) == PROJECTION
    assert int(metrics["num_redundant"]) == 3
    assert int(metrics["num_zero"]) == len(zero_groups(params))
    assert float(metrics["group_sparsity"]) == pytest.approx(len(zero_groups(params)) / 5)
    shrinking = [0 if group in zero_groups(params) else norm for group, norm in zip(redundant, norms, strict=True)]
    np.testing.assert_allclose(metrics["shrinking_norms"][redundant], shrinking, rtol=1e-5)
    assert metrics["shrinking_norms"].sum() == pytest.approx(sum(shrinking), rel=1e-5)
    assert metrics["scores"].shape == (5,)


def test_state_is_small(history):
    _, opt_state = history[-1]
    assert sum(leaf.size for leaf in jax.tree.leaves(h2spg_state(opt_state))) <= 2 + 6 * 5


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1), lambda: optax.chain(make_h2spg(), make_h2spg())])
def test_state_must_be_there_once(make):
    with pytest.raises(ArgumentError, match="expected an optimizer state that holds one H2SPGState, found [02]"):
        h2spg_state(make().init(make_params()))


# --- Errors


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"target_groups": None},
            ArgumentError,
            "expected exactly one of target_groups, target_sparsity, target_params, target_macs, got none",
        ),
        ({"target_groups": 4}, TargetError, "cannot remove 4 of 5 groups .* at most 3 can go"),
        ({"target_groups": 0}, TargetError, "at least 1"),
        ({"target_groups": 1.5}, ArgumentError, "target_groups must be an int"),
        ({"target_sparsity": 0.9}, TargetError, "cannot remove 4 of 5 groups"),
        ({"target_sparsity": 0.1}, TargetError, "cannot remove 0 of 5 groups"),
        ({"target_sparsity": "half"}, ArgumentError, "target_sparsity must be a number"),
        ({"hierarchical": False, "target_groups": 6}, TargetError, "at most 5"),
        ({"warmup_steps": 0}, ArgumentError, "warmup_steps must be an int, at least 1, got 0"),
        ({"warmup_steps": 2.0}, ArgumentError, "warmup_steps must be an int"),
        ({"warmup_steps": jnp.int32(2)}, ArgumentError, "static_args"),
        ({"selection_steps": 5}, ArgumentError, "selection_steps must be an int, between 1 and 4"),
        ({"projection_steps": 0}, ArgumentError, "projection_steps"),
        ({"periods": 7}, ArgumentError, "projection_steps must be an int, at least 7"),
        ({"periods": 4}, ArgumentError, "periods must be an int, between 1 and 3"),
        ({"learning_rate": "fast"}, ArgumentError, "learning_rate must be a number or an optax schedule"),
        ({"lmbda": -1.0}, ArgumentError, "lmbda must be a number in"),
        ({"lmbda": float("nan")}, ArgumentError, "lmbda must be a number in"),
        ({"amplify": 0.5}, ArgumentError, "amplify"),
        ({"hat": 0.5}, ArgumentError, "hat"),
        ({"epsilon": 1.0}, ArgumentError, "epsilon"),
        ({"omega": 1.0}, ArgumentError, "omega"),
        ({"score": "luck"}, ArgumentError, "one of default, magnitude, average_magnitude, cosine, taylor, got 'luck'"),
    ],
    ids=str,
)
def test_options_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        make_h2spg(**options)


def test_both_targets_at_once_are_refused():
    with pytest.raises(ArgumentError, match="exactly one"):
        h2spg(SPACE, learning_rate=0.1, target_groups=1, target_sparsity=0.5, warmup_steps=1, projection_steps=1)


@pytest.mark.parametrize(("sparsity", "num_redundant"), [(0.59, 2), (0.6, 3)])
def test_sparsity_is_rounded_down(sparsity, num_redundant):
    assert resolve_target(SPACE, {"target_sparsity": sparsity}, 1, True).amounts.tolist() == [num_redundant]


def test_parameters_of_another_network_are_refused_with_every_fault():
    params = make_params() | {"conv3/kernel": jnp.zeros((4, 7)), "norm/scale": jnp.zeros(9)}
    del params["conv2/kernel"]
    with pytest.raises(TreeMismatchError) as caught:
        make_h2spg().init(params)
    message = str(caught.value)
    assert "conv2/kernel is missing" in message
    assert "conv3/kernel has shape (4, 7) instead of (4, 3)" in message
    assert message.count("norm/scale has shape (9,) instead of (10,)") == 1


def test_parameters_are_needed():
    tx, params = make_h2spg(), make_params()
    with pytest.raises(ArgumentError, match="h2spg needs the parameters"):
        tx.update(params, tx.init(params))
