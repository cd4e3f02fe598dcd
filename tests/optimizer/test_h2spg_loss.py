"""What H2SPG makes of the gradient and the loss that it is given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jasgnas
from jasgnas.errors import ArgumentError, BlindSelectionWarning, EarlySelectionWarning, TreeMismatchError
from jasgnas.optimizer.ablation import Turns
from jasgnas.optimizer.h2spg import h2spg
from jasgnas.optimizer.state import DONE, h2spg_metrics, h2spg_state
from tests.optimizer.loss_problem import BRANCHES, NUM_BATCHES, PARAMS, SPACE, WIDTH, X, Y, loss_of, network


def make_h2spg(**options):
    settings = {"learning_rate": 0.05, "target_groups": 1, "warmup_steps": 16, "projection_steps": 4}
    return h2spg(SPACE, **{**settings, **options})


def make_step(tx, poisoned=-1, with_value=True):
    """A training step; the gradient of one update may be poisoned."""

    def step(params, state, number):
        value_fn = partial(loss_of, batch=number % NUM_BATCHES)
        value, grads = jax.value_and_grad(value_fn)(params)
        seen = jax.tree.map(lambda grad: jnp.where(number == poisoned, jnp.nan, grad), grads)
        given = {"value": value} if with_value else {}
        updates, state = tx.update(grads, state, params, grad=seen, value_fn=value_fn, **given)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def train(tx, num_steps, params=PARAMS, **options):
    step, state = make_step(tx, **options), tx.init(params)
    history = []
    for number in range(num_steps):
        history.append(params)
        params, state = step(params, state, jnp.int32(number))
    return params, state, history


def chain(**options):
    return optax.chain(optax.sgd(0.05, momentum=0.9), make_h2spg(**options))


def products(params, number):
    grads = jax.grad(loss_of)(params, number % NUM_BATCHES)
    return np.array([np.vdot(params[name], grads[name]) for name in BRANCHES], np.float64)


def test_gate_is_the_mean_square_over_the_scoring_window():
    _, state, history = train(chain(score="gate", selection_steps=6, target_groups=2), 16)
    expected = np.mean([products(history[number], number) ** 2 for number in range(10, 16)], axis=0)
    # The branch of a tanh is not in proportion to its weights, but the whole of it stands in.
    np.testing.assert_allclose(h2spg_state(state).scores, -expected, rtol=1e-4)
    np.testing.assert_array_equal(h2spg_state(state).num_scored, 6)


@pytest.mark.parametrize("score", ["taylor", "gate", "cosine"])
def test_a_score_recovers_from_an_update_that_is_not_finite(score):
    _, state, _ = train(chain(score=score, selection_steps=6), 16, poisoned=12)
    state = h2spg_state(state)
    assert np.isfinite(state.scores).all()
    np.testing.assert_array_equal(state.num_scored, 5)
    np.testing.assert_array_equal(state.num_skipped, 1)


@pytest.mark.parametrize("with_value", [True, False])
def test_a_batch_on_which_the_loss_is_not_finite_is_not_measured(with_value):
    """Every group is measured in every update; in one of them the loss is NaN, in another one without `b` alone."""
    tx = chain(score="ablation", selection_steps=6, forward_passes=5.0 if with_value else 6.0, target_groups=1)
    params, state = PARAMS, tx.init(PARAMS)

    def value_fn(params, number):
        loss = jnp.where(number == 12, jnp.nan, loss_of(params, number % NUM_BATCHES))
        return jnp.where((number == 13) & ~jnp.any(params["b"]), jnp.nan, loss)

    @jax.jit
    def step(params, state, number):
        grads = jax.grad(loss_of)(params, number % NUM_BATCHES)
        given = {"value": value_fn(params, number)} if with_value else {}
        updates, state = tx.update(grads, state, params, grad=grads, value_fn=value_fn, number=number, **given)
        return optax.apply_updates(params, updates), state

    for number in range(16):
        params, state = step(params, state, jnp.int32(number))
    state = h2spg_state(state)
    assert np.isfinite(state.scores).all()
    measured = state.num_scored + state.num_skipped
    assert measured.min() >= 5 and state.num_skipped.tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "with_value", "every"), [({}, True, 8), ({}, False, 10), ({"forward_passes": 0.25}, True, 16)]
)
def test_ablation_measures_the_groups_in_turn(options, with_value, every):
    _, state, history = train(chain(score="ablation", selection_steps=16, **options), 16, with_value=with_value)
    measured = range(every - 1, 16, every)
    rises = [
        [loss_of(SPACE.zero(history[at], [index]), at % NUM_BATCHES) - loss_of(history[at], at % NUM_BATCHES)]
        for at in measured
        for index in range(4)
    ]
    expected = -np.reshape(rises, (len(measured), 4)).mean(0)
    np.testing.assert_allclose(h2spg_state(state).scores, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(h2spg_state(state).num_scored, len(measured))


def test_ablation_of_several_groups_at_a_time():
    _, state, history = train(chain(score="ablation", selection_steps=1, forward_passes=4), 16)
    before = loss_of(history[15], 15 % NUM_BATCHES)
    rises = [loss_of(SPACE.zero(history[15], [index]), 15 % NUM_BATCHES) - before for index in range(4)]
    np.testing.assert_allclose(h2spg_state(state).scores, -np.array(rises), rtol=1e-3)


def test_the_loss_is_not_evaluated_outside_of_the_scoring_window():
    """Counted while it runs: what is traced into a branch not taken costs nothing."""
    calls = []

    def counted(params, number):
        jax.debug.callback(lambda: calls.append(1))
        return loss_of(params, number % NUM_BATCHES)

    tx = chain(score="ablation", selection_steps=8)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state, number):
        value, grads = jax.value_and_grad(loss_of)(params, number % NUM_BATCHES)
        updates, state = tx.update(grads, state, params, value=value, value_fn=partial(counted, number=number))
        return optax.apply_updates(params, updates), state

    counts = []
    for number in range(22):
        params, state = step(params, state, jnp.int32(number))
        jax.block_until_ready(params)
        jax.effects_barrier()
        counts.append(len(calls))
    # As many as half the updates of the window, and once more for what was selected.
    assert np.diff(counts, prepend=0).tolist() == [0] * 15 + [4, 1] + [0] * 5


def test_the_rise_without_the_selected_groups_is_measured():
    tx = chain(score="ablation", target_groups=2, selection_steps=8)
    params, state, history = train(tx, 17)
    found = h2spg_state(state)
    gone = np.flatnonzero(found.redundant).tolist()
    rise = loss_of(SPACE.zero(history[16], gone), 0) - loss_of(history[16], 0)
    assert float(found.measured_rise) == pytest.approx(float(rise), rel=1e-4)
    assert float(found.predicted_rise) == pytest.approx(-float(found.scores[jnp.array(gone)].sum()), rel=1e-4)
    metrics = h2spg_metrics(state)
    assert float(metrics["measured_rise"]) == float(found.measured_rise)
    assert int(metrics["selected_at"]) == 16
    np.testing.assert_array_equal(metrics["redundant"], found.redundant)


@pytest.mark.exhaustive
def test_what_is_given_decides_on_the_default():
    cases = {}
    for name in ("gate", "ablation"):
        cases[name] = train(chain(score=name, selection_steps=8), 16)[1]
    default = train(chain(selection_steps=8), 16)[1]
    np.testing.assert_array_equal(h2spg_state(default).scores, h2spg_state(cases["ablation"]).scores)
    tx = h2spg(
        SPACE,
        inner=optax.sgd(0.05, momentum=0.9),
        learning_rate=0.05,
        target_groups=1,
        warmup_steps=16,
        projection_steps=4,
    )
    step = jax.jit(lambda params, state, number: tx.update(jax.grad(loss_of)(params, number), state, params))
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(16):
        updates, state = step(params, state, number % NUM_BATCHES)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.scores, h2spg_state(cases["gate"]).scores, rtol=1e-5)
    tx = make_h2spg()
    with pytest.warns(BlindSelectionWarning, match="selects by magnitude.*grad=grads.*inner=tx"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("score", "what"), [("gate", r"the gradient \(grad\)"), ("ablation", r"the loss \(value_fn\)")]
)
def test_a_score_that_lacks_something_says_how_to_give_it(score, what):
    tx = make_h2spg(score=score)
    with pytest.raises(ArgumentError, match=f"needs {what}.*value_fn=loss_fn.*inner=tx"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_the_loss_takes_the_arguments_that_it_names():
    def value_fn(params, x, *, scale):
        return scale * jnp.mean(network(params, x) ** 2), "aux"

    tx = make_h2spg(score="ablation", selection_steps=16, forward_passes=7.0)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=value_fn, x=X[0], scale=2.0, unused=object())
    before = 2 * jnp.mean(network(PARAMS, X[0]) ** 2)
    rises = [2 * jnp.mean(network(SPACE.zero(PARAMS, [index]), X[0]) ** 2) - before for index in range(4)]
    np.testing.assert_allclose(state.scores, -np.array(rises), rtol=1e-4)
    with pytest.raises(ArgumentError, match=r"must return the loss, a real scalar.*shape \(16, 6\)"):
        tx.update(grads, state, PARAMS, value_fn=lambda params: network(params, X[0]))


def test_a_loss_in_the_place_of_its_function_is_refused():
    tx = chain(score="ablation", selection_steps=8)
    with pytest.raises(ArgumentError, match=r"value_fn must be a function.*got 3\.0; the loss itself is value="):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=3.0)


def test_a_window_too_short_to_measure_every_group_is_refused():
    tx = make_h2spg(score="ablation", selection_steps=4)
    given = {"value": 0.0, "value_fn": lambda params: jnp.float32(0)}
    shortage = "4 scored updates with forward_passes=0.5 measure 2 groups, and there are 4: give selection_steps=8"
    with pytest.raises(ArgumentError, match=shortage):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **given)
    # The default goes by the gradient then, and says so; with as many as it says, by the loss.
    tx = make_h2spg(selection_steps=4)
    with pytest.warns(EarlySelectionWarning, match=f"early to be made by the loss, and is made by gate: {shortage}"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=PARAMS, **given)
    for options in ({"score": "ablation"}, {}):
        tx = make_h2spg(selection_steps=8, **options)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=PARAMS, **given)


def normalised(params, x):
    """Of b and c, whose sum is normalised, the derivatives by their gates add up to zero; d and a matter more."""
    both = x @ params["b"] + x @ params["c"]
    both = both * jax.lax.rsqrt(jnp.mean(both**2, axis=-1, keepdims=True))
    return both + 4 * jnp.tanh(x @ params["a"]) + 4 * jnp.tanh(x @ params["d"])


@pytest.mark.parametrize("periods", [1, 2])
@pytest.mark.parametrize("useless", ["b", "c"])
def test_ties_by_gate_are_broken_by_the_loss(useless, periods):
    params = {name: leaf for name, leaf in PARAMS.items() if name != "head"}
    space = jasgnas.search_space(normalised, X[0], params=params)
    names = [group.paths[0] for group in space.groups]

    def value_fn(params, number):
        wanted = 2 * normalised({**PARAMS, useless: 0 * PARAMS[useless]}, X[number]) + Y[number]
        return jnp.mean((normalised(params, X[number]) - wanted) ** 2)

    tx = h2spg(
        space, learning_rate=0.01, target_groups=periods, warmup_steps=8, projection_steps=8, score="gate",
        periods=periods,
    )  # fmt: skip

    @jax.jit
    def step(params, state, number):
        value, grads = jax.value_and_grad(value_fn)(params, number)
        given = {"grad": grads, "value": value, "value_fn": value_fn, "number": number}
        updates, state = tx.update(jax.tree.map(lambda g: -0.01 * g, grads), state, params, **given)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in range(9):
        params, state = step(params, state, jnp.int32(number % NUM_BATCHES))
    b_score, c_score = state.scores[np.array([names.index("b"), names.index("c")])]
    assert float(b_score) == pytest.approx(float(c_score), rel=1e-3)
    assert [names[index] for index in np.flatnonzero(state.redundant)] == [useless]


@pytest.mark.parametrize("knows_value", [True, False])
@pytest.mark.parametrize("forward_passes", [0.5, 0.3, 1, 4, 9.5])
@pytest.mark.parametrize("num_groups", [1, 4, 6, 7, 20, 47])
def test_the_least_window_that_measures_every_group(num_groups, forward_passes, knows_value):
    def measured(updates):
        return Turns.within(updates, forward_passes, num_groups, knows_value).num_measured

    least = Turns.least_updates(forward_passes, num_groups, knows_value)
    assert measured(least) >= num_groups
    assert all(measured(updates) < num_groups for updates in range(1, least))


@pytest.mark.parametrize("score", ["gate", "magnitude"])  # which does not look at them
def test_gradients_of_another_tree_are_refused(score):
    tx = make_h2spg(score=score)
    with pytest.raises(TreeMismatchError, match="grad= has nothing, or another shape, for b, c. Expected"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad={**PARAMS, "b": jnp.ones(3), "c": None})


def rising(step):
    return 0.01 * jnp.minimum(step, 10)


def test_updates_are_not_scored_while_the_learning_rate_rises():
    _, state, _ = train(chain(score="gate", learning_rate=rising, selection_steps=16), 16)
    np.testing.assert_array_equal(h2spg_state(state).num_scored, 6)
    with pytest.warns(EarlySelectionWarning, match="still rises at update 8"):
        make_h2spg(learning_rate=rising, warmup_steps=8)
    with pytest.warns(EarlySelectionWarning, match="still rises at update 10"):
        make_h2spg(learning_rate=rising, warmup_steps=10)
    make_h2spg(learning_rate=rising, warmup_steps=11)


@pytest.mark.parametrize("score", ["gate", "ablation", "magnitude"])
def test_scores_are_forgotten_while_an_injected_learning_rate_rises(score):
    inject = optax.inject_hyperparams(
        h2spg, static_args=("target_groups", "warmup_steps", "projection_steps", "selection_steps", "periods")
    )
    options = {"target_groups": 1, "warmup_steps": 24, "projection_steps": 4, "selection_steps": 24, "score": score}

    def scored(last):
        return h2spg_state(train(optax.chain(optax.sgd(rising), last), 24)[1])

    known, injected = (
        scored(make_h2spg(learning_rate=rising, **options)),
        scored(inject(SPACE, learning_rate=rising, **options)),
    )
    assert injected.learning_rate == pytest.approx(0.1)
    assert known.learning_rate == 0
    if score == "ablation":  # it is measured in other updates
        assert 0 < injected.num_scored.min() <= injected.num_scored.max() < 4
    else:
        np.testing.assert_array_equal(injected.num_scored, known.num_scored)
        np.testing.assert_allclose(injected.scores, known.scores, rtol=1e-4)
    constant = scored(inject(SPACE, learning_rate=0.05, **options))
    assert constant.num_scored.sum() > injected.num_scored.sum()


@pytest.mark.parametrize("score", ["magnitude", "ablation"])
def test_nothing_settles_while_an_injected_learning_rate_rises(score):
    """Magnitudes that hardly change would settle as soon as they are looked at twice."""
    inject = optax.inject_hyperparams(
        h2spg,
        static_args=(
            *("target_groups", "warmup_steps", "projection_steps", "selection_steps", "periods", "look_every"),
            *("settle", "forward_passes"),
        ),
    )
    options = {"target_groups": 1, "warmup_steps": 40, "projection_steps": 4, "selection_steps": 40, "score": score}
    options |= {"settle": True, "look_every": 4, "forward_passes": 6.0}

    def selected_at(schedule):
        last = inject(SPACE, learning_rate=schedule, **options)
        state = h2spg_state(train(optax.chain(optax.sgd(1e-4), last), 48)[1])
        assert state.redundant.sum() == 1
        return int(state.selected_at)

    assert selected_at(lambda step: 0.01) < 20
    assert 28 < selected_at(lambda step: 0.001 * jnp.minimum(step, 26)) < 40


def test_a_choice_that_settles_is_taken_early():
    def score(stats):
        return jnp.array([1.0, 3.0, 2.0, 0.0]) + 0 * stats.x_norm

    tx = chain(score=score, target_groups=2, selection_steps=10, settle=True, look_every=3)
    params, state, _ = train(tx, 12)
    # Scored from update 6 on; looked at updates 10 and 13.
    assert not h2spg_state(state).redundant.any() and h2spg_state(state).trial.tolist() == [False, True, True, False]
    params, state, _ = train(tx, 14)
    assert int(h2spg_state(state).selected_at) == 13
    assert h2spg_state(state).redundant.tolist() == [False, True, True, False]
    params, state, _ = train(tx, 17)
    assert int(h2spg_state(state).phase) == DONE  # 4 updates of projection, from the selection on
    assert not params["b"].any() and not params["c"].any() and params["a"].any()


def test_a_choice_that_does_not_settle_is_made_in_the_end():
    def score(stats):
        # The best changes with every update.
        noise = jax.random.normal(jax.random.key(0), (64, 4))
        return noise[jnp.int32(stats.x_norm[0] * 1e4) % 64]

    tx = chain(score=score, selection_steps=8, settle=True, look_every=1, omega=0.0, target_groups=2)
    _, state, _ = train(tx, 17)
    found = h2spg_state(state)
    assert 8 < int(found.selected_at) <= 16 and int(found.redundant.sum()) == 2


def test_inner_is_a_chain_that_masks_the_gradients_of_what_is_frozen():
    links = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05, momentum=0.9))
    tx = make_h2spg(inner=links, score="gate")
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda params, state, number: tx.update(jax.grad(loss_of)(params, number), state, params))
    for number in range(20):
        updates, state = step(params, state, number % NUM_BATCHES)
        params = optax.apply_updates(params, updates)
    assert int(state.phase) == DONE
    # From here on the network without the group has the same updates, clipping by the global norm included.
    (sub_fn, sub_params), sub_state = jasgnas.shrink(SPACE, params, state)
    gone = BRANCHES[int(np.flatnonzero(state.zero)[0])]
    assert gone not in sub_params and sub_state.inner[1][0].trace.keys() == sub_params.keys()

    def sub_loss(params, batch):
        return jnp.mean((sub_fn(params, X[batch]) - Y[batch]) ** 2)

    sub_step = jax.jit(lambda params, state, number: tx.update(jax.grad(sub_loss)(params, number), state, params))
    for number in range(20, 40):
        updates, state = step(params, state, number % NUM_BATCHES)
        params = optax.apply_updates(params, updates)
        updates, sub_state = sub_step(sub_params, sub_state, number % NUM_BATCHES)
        sub_params = optax.apply_updates(sub_params, updates)
    assert not params[gone].any()
    for name in sub_params:
        np.testing.assert_allclose(sub_params[name], params[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_where_a_group_is_frozen_does_not_spread():
    links = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05, momentum=0.9))
    tx = make_h2spg(inner=links, score=[4.0, 3.0, 2.0, 1.0])
    params = SPACE.zero(PARAMS, [0])
    state = tx.init(params)._replace(
        step=jnp.int32(30), redundant=jnp.arange(4) == 0, zero=jnp.arange(4) == 0, phase=jnp.int32(DONE)
    )
    grads = {**PARAMS, "a": jnp.full((WIDTH, WIDTH), jnp.nan)}
    updates, state = jax.jit(tx.update)(grads, state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state.inner)))
    assert not updates["a"].any() and updates["b"].any()


def test_a_gradient_beside_accumulated_ones_is_that_of_the_last_mini_batch():
    tx = optax.MultiSteps(chain(score="gate", warmup_steps=4, selection_steps=4), every_k_schedule=2)
    params, state, seen = PARAMS, tx.init(PARAMS), []
    step = jax.jit(lambda params, state, grads: tx.update(grads, state, params, grad=grads))
    for number in range(8):
        if number % 2:
            seen.append(products(params, number) ** 2)
        updates, state = step(params, state, jax.grad(loss_of)(params, number % NUM_BATCHES))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(h2spg_state(state).scores, -np.mean(seen, axis=0), rtol=1e-4)
    inside = optax.MultiSteps(make_h2spg(score="gate"), every_k_schedule=2).gradient_transformation()
    tx = optax.chain(optax.sgd(0.05), inside)
    with pytest.raises(ArgumentError, match=r"needs the gradient \(grad\), which update was not given"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=PARAMS)


COMPARING = {"score": "ablation", "selection_steps": 8, "target_groups": 2, "forward_passes": 6.0}
"""Sets are compared."""


def assert_same_selection(found, expected):
    np.testing.assert_array_equal(found.redundant, expected.redundant)
    np.testing.assert_array_equal(found.trial, expected.trial)
    assert expected.trial.any()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.measured_rise, expected.measured_rise, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_every_device_count_selects_by_the_same_loss(num_devices):
    tx = chain(**COMPARING)

    @partial(jax.pmap, axis_name="devices", devices=jax.devices()[:num_devices])
    def step(params, state, x, y):
        def value_fn(params):
            return jax.lax.pmean(jnp.mean((network(params, x) - y) ** 2), "devices")

        grads = jax.lax.pmean(jax.grad(lambda params: jnp.mean((network(params, x) - y) ** 2))(params), "devices")
        updates, state = tx.update(grads, state, params, value=value_fn(params), value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_devices), (PARAMS, tx.init(PARAMS)))
    for number in range(17):
        shards = (each[number % NUM_BATCHES].reshape(num_devices, -1, WIDTH) for each in (X, Y))
        params, state = step(params, state, *shards)
    _, expected, _ = train(tx, 17)
    expected = h2spg_state(expected)
    assert_same_selection(jax.tree.map(lambda leaf: leaf[0], h2spg_state(state)), expected)


def test_shard_map_selects_as_single_steps():
    tx = chain(**COMPARING)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("devices",))
    every, part = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("devices")

    def step(params, state, x, y):
        def value_fn(params):
            return jax.lax.pmean(jnp.mean((network(params, x) - y) ** 2), "devices")

        # Of parameters that are the same everywhere, the gradient of the mean is the mean of the gradients.
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    shared = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(every, every, part, part), out_specs=every))
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(17):
        params, state = shared(params, state, X[number % NUM_BATCHES], Y[number % NUM_BATCHES])
    assert_same_selection(h2spg_state(state), h2spg_state(train(tx, 17)[1]))


def test_the_default_is_compiled_once_and_never_calls_back():
    tx = chain(selection_steps=16, forward_passes=6.0)
    step, state, params = make_step(tx), tx.init(PARAMS), PARAMS
    assert "callback" not in step.lower(params, state, jnp.int32(0)).as_text()
    for number in range(24):
        params, state = step(params, state, jnp.int32(number))
    assert step._cache_size() == 1
    assert h2spg_state(state).planned_rise != 0 and h2spg_state(state).phase == DONE


def test_sharded_jit_and_scan_select_as_single_steps():
    tx = chain(score="ablation", selection_steps=8, target_groups=2, forward_passes=6.0)
    _, expected, _ = train(tx, 20)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("batch",))
    images = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch")))

    def body(carry, number):
        params, state = carry

        def value_fn(params):
            return jnp.mean((network(params, images[number % NUM_BATCHES]) - Y[number % NUM_BATCHES]) ** 2)

        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    (_, state), _ = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(20)))((PARAMS, tx.init(PARAMS)))
    np.testing.assert_array_equal(h2spg_state(state).zero, h2spg_state(expected).zero)
    np.testing.assert_allclose(h2spg_state(state).scores, h2spg_state(expected).scores, rtol=1e-3, atol=1e-6)


def test_accumulated_gradients_are_seen_by_what_runs_the_optimizer():
    """`inner` under `optax.MultiSteps` sees the mean of the gradients, which is that of the large batch."""
    whole = make_h2spg(inner=optax.sgd(0.05), score="gate")
    parts = optax.MultiSteps(whole, every_k_schedule=2)

    @jax.jit
    def of_parts(params, state, number):
        updates, state = parts.update(jax.grad(loss_of)(params, number), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def of_both(params, state, number):
        grads = [jax.grad(loss_of)(params, batch) for batch in (number - 1, number)]
        updates, state = whole.update(jax.tree.map(lambda a, b: (a + b) / 2, *grads), state, params)
        return optax.apply_updates(params, updates), state

    carry, expected = (PARAMS, parts.init(PARAMS)), (PARAMS, whole.init(PARAMS))
    for number in range(32):
        carry = of_parts(*carry, number % NUM_BATCHES)
        if number % 2:
            expected = of_both(*expected, number % NUM_BATCHES)
    np.testing.assert_allclose(h2spg_state(carry[1]).scores, expected[1].scores, rtol=1e-4)
    for name in PARAMS:
        np.testing.assert_allclose(carry[0][name], expected[0][name], rtol=1e-4, atol=1e-6)
