"""The phases of H2SPG, its scores, what it reports, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jasgnas.errors import ArgumentError, TargetError, TreeMismatchError
from jasgnas.optimizer.h2spg import h2spg
from jasgnas.optimizer.state import DONE, PROJECTION, WARMUP, h2spg_metrics, h2spg_state
from jasgnas.space.groups import LeafSlice
from jasgnas.space.targets import resolve_target
from jasgnas.space.validity import DependenceGraph, is_valid
from tests.optimizer.h2spg_problem import (
    CANDIDATES,
    DEFAULT,
    GRAPH,
    SHAPES,
    default_history,
    group_arrays,
    jax_grads,
    make_candidates,
    make_chain,
    make_h2spg,
    make_params,
    mask,
    train,
    zero_groups,
)


def test_phases_follow_the_step_numbers():
    history = default_history()
    states = [h2spg_state(opt_state) for _, opt_state in history]
    assert [int(state.step) for state in states] == list(range(1, 17))
    assert [int(state.phase) for state in states] == [WARMUP] * 4 + [PROJECTION] * 5 + [DONE] * 7
    assert [int(state.redundant.sum()) for state in states] == [0] * 4 + [3] * 12
    assert int(states[8].zero.sum()) < 3 and int(states[9].zero.sum()) == 3


def test_warmup_passes_updates_through():
    history = default_history()
    plain = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
    for (expected, _), (params, _) in zip(train(plain, make_params(), 4), history, strict=False):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), params, expected)


def test_selection_is_valid_and_kept():
    history = default_history()
    selected = [np.asarray(h2spg_state(opt_state).redundant) for _, opt_state in history[4:]]
    assert is_valid(GRAPH, selected[0])
    assert all((later == selected[0]).all() for later in selected)


def test_scores_stay_after_the_last_selection():
    history = default_history()
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


def test_zero_groups_stay_zero_where_updates_are_not_finite():
    history = default_history()
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
    assert is_valid(GRAPH, mask(zero_groups(params))) is valid


def test_target_is_met_in_rounds_where_greed_alone_falls_short():
    # The output needs group 0, or groups 1 and 2. Without group 0, which scores highest, nothing else can go.
    graph = DependenceGraph(
        senders=np.array([1, 2, 0, 3]),
        receivers=np.array([3, 3, 4, 4]),
        passes_zeros=np.ones(4, bool),
        additive=np.array([False, False, False, False, True]),
        num_external=np.array([1, 1, 1, 0, 0]),
        outputs=np.array([4]),
        required=np.array([4]),
        group=np.array([0, 1, 2, -1, -1]),
        segment=np.arange(5),
    )
    slices = [(LeafSlice(str(index)),) for index in range(3)]
    candidates = make_candidates(slices, {str(index): (4,) for index in range(3)}, graph, fingerprint=2**31)
    tx = h2spg(
        candidates,
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


def test_by_default_scores_are_averaged_over_all_updates_that_matter():
    # 0.01 to the eighth power is below the resolution of float64, to the seventh above it.
    settings = {"omega": 0.01, "warmup_steps": 10}
    found = train(make_chain(**settings), make_params(), 11)
    expected = train(make_chain(**settings, selection_steps=10), make_params(), 11)
    measured = [bool(h2spg_state(opt_state).scores.any()) for _, opt_state in found]
    assert measured == [False, False] + [True] * 9
    # Up to one rounding: what differs in the first updates may have been rounded up in one run and down in the other.
    np.testing.assert_allclose(
        h2spg_state(found[-1][1]).scores, h2spg_state(expected[-1][1]).scores, rtol=np.finfo(np.float32).eps
    )


def test_metrics():
    history = default_history()
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


def test_state_is_small():
    history = default_history()
    _, opt_state = history[-1]
    assert sum(leaf.size for leaf in jax.tree.leaves(h2spg_state(opt_state))) <= 12 + 10 * 5


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1), lambda: optax.chain(make_h2spg(), make_h2spg())])
def test_state_must_be_there_once(make):
    with pytest.raises(ArgumentError, match="expected an optimizer state that holds one H2SPGState, found [02]"):
        h2spg_state(make().init(make_params()))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"target_groups": None},
            ArgumentError,
            "expected exactly one of target_groups, .*, target_latency, target_seconds, got none",
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
        ({"learning_rate": "fast"}, ArgumentError, "learning_rate must be a number, .* or an optax schedule"),
        ({"lmbda": -1.0}, ArgumentError, "lmbda must be a number in"),
        ({"lmbda": float("nan")}, ArgumentError, "lmbda must be a number in"),
        ({"amplify": 0.5}, ArgumentError, "amplify"),
        ({"hat": 0.5}, ArgumentError, "hat"),
        ({"epsilon": 1.0}, ArgumentError, "epsilon"),
        ({"omega": 1.0}, ArgumentError, "omega"),
        ({"score": "default", "per_cost": True}, ArgumentError, "per_cost=True is for a function or an array"),
        ({"forward_passes": 0}, ArgumentError, "forward_passes must be a number above 0"),
        ({"score": "luck"}, ArgumentError, "one of default, magnitude, .*, ablation, .*, got 'luck'"),
    ],
    ids=str,
)
def test_options_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        make_h2spg(**options)


def test_both_targets_at_once_are_refused():
    with pytest.raises(ArgumentError, match="exactly one"):
        h2spg(CANDIDATES, learning_rate=0.1, target_groups=1, target_sparsity=0.5, warmup_steps=1, projection_steps=1)


@pytest.mark.parametrize(("sparsity", "num_redundant"), [(0.59, 2), (0.6, 3)])
def test_sparsity_is_rounded_down(sparsity, num_redundant):
    assert resolve_target(CANDIDATES, {"target_sparsity": sparsity}, 1, True).amounts.tolist() == [[num_redundant]]


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
