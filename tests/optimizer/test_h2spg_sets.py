"""H2SPG and `select_groups` compare sets of groups where removals do not add up."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jasgnas
from jasgnas.optimizer.ablation import Turns
from jasgnas.optimizer.h2spg import h2spg
from jasgnas.optimizer.state import DONE, h2spg_state
from tests.optimizer.loss_problem import NUM_BATCHES, PARAMS, X


def substitutes(params, x):
    """Either of b and c can go, but not both; d matters somewhat, and a much."""
    both = jnp.tanh(3 * (x @ params["b"] + x @ params["c"]))
    return (both + 2 * jnp.tanh(x @ params["a"]) + 0.4 * jnp.tanh(x @ params["d"])) @ params["head"]


def copies(params, x):
    """Either of b and c can go without any loss, and both would be dear; d matters little, and a more."""
    both = x @ params["b"] + x @ params["c"]
    both = 4 * both * jax.lax.rsqrt(jnp.mean(both**2, axis=-1, keepdims=True) + 1e-6)
    return (both + 2 * jnp.tanh(x @ params["a"]) + jnp.tanh(x @ params["d"])) @ params["head"]


SUBSTITUTES = {**PARAMS, "c": 1.1 * PARAMS["b"]}


def substitutes_loss(params, batch, fn=substitutes):
    return jnp.mean((fn(params, X[batch]) - fn(SUBSTITUTES, X[batch])) ** 2)


def compared(space, history, window, every, look_every, num_groups, fn=substitutes):
    """What the groups are worth beside which set, and what is planned in the end, update by update in NumPy.

    The scores are those of whole sets: of what is planned with a group more or less, or with one in the place of that
    which is exchanged.
    """

    def rise_without(gone, number):
        params, batch = history[number], number % NUM_BATCHES
        left = space.zero(params, sorted(gone))
        return float(substitutes_loss(left, batch, fn) - substitutes_loss(params, batch, fn))

    found, planned, trial, exchanged, rises, plans = [[] for _ in history[0]], (), (), None, [], []
    scores = np.full(len(space.groups), np.nan)
    for number in range(window.start, window.stop + 1):
        scored = number - window.start
        if scored >= look_every and (window.stop - number) % look_every == 0:
            scores = np.array([np.mean(each) if each else old for each, old in zip(found, scores, strict=False)])
            before = planned, trial, exchanged
            plan_rise, trial_rise = np.mean(rises, axis=0) if rises else (np.nan, np.nan)
            best = plan_rise
            if exchanged is not None:
                best -= max(np.mean(each) for index, each in enumerate(found) if each and index not in planned)
            if trial_rise < plan_rise and trial_rise <= best:
                planned, exchanged, plan_rise = trial, None, trial_rise
            elif number < window.stop or exchanged is not None:
                wanted = np.where(np.isin(np.arange(len(scores)), planned), 1e3, scores)
                wanted[exchanged or 0] = 0.0
                trial = space.select(scores if exchanged is None else wanted, target_groups=num_groups)
                if number == window.stop:
                    plan_rise -= sum(scores[index] for index in trial if index not in planned)
                    planned = trial
                elif planned and exchanged is None:
                    exchanged = min(planned, key=lambda index: scores[index])
                elif trial == planned or (trial == before[1] and rises):
                    exchanged = None
            planned = planned or trial
            plans.append(planned)
            if number == window.stop:
                return plans, scores, plan_rise
            if (planned, exchanged) != (before[0], before[2]):
                found = [[] for _ in history[0]]
            if (planned, trial) != before[:2]:
                rises = []
        if scored % every == every - 1:
            rises.append((rise_without(planned, number), rise_without(trial, number)))
            for index in range(len(space.groups)):
                is_planned = index in planned
                beside = set(planned) - {index if is_planned else exchanged} | ({index} - set(planned))
                if space.is_valid(beside):
                    rise = rise_without(beside, number) - rises[-1][0]
                    found[index].append(rise if is_planned else -rise)
    return None


def train_substitutes(num_steps, fn=substitutes, **given):
    """A training of the network with substitutes; what it has learned is disturbed a little, so that it descends."""
    space = jasgnas.search_space(fn, X[0], params=SUBSTITUTES)
    options = {"target_groups": 2, "warmup_steps": 24, "projection_steps": 4, "selection_steps": 20, "look_every": 5}
    last = h2spg(space, learning_rate=0.02, forward_passes=3, **(options | given))
    tx = optax.chain(optax.sgd(0.02), last)
    params, state, history = SUBSTITUTES, tx.init(SUBSTITUTES), []

    @jax.jit
    def step(params, state, number):
        value_fn = partial(substitutes_loss, batch=number % NUM_BATCHES, fn=fn)
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for number in range(num_steps):
        history.append(params)
        params, state = step(params, state, jnp.int32(number))
        if number < 4:
            params = {name: leaf + 0.02 * weights for (name, leaf), weights in zip(params.items(), X[0], strict=False)}
    return space, state, history


def test_sets_are_compared_and_groups_measured_beside_the_best():
    space, state, history = train_substitutes(25)
    plans, scores, _ = compared(space, history, range(4, 24), 2, 5, 2)
    planned = plans[-1]
    found = h2spg_state(state)
    assert [group.paths for group in space.groups] == [("b",), ("c",), ("a",), ("d",)]
    assert plans[0] == (0, 1) and planned in ((0, 3), (1, 3)) and len(plans) == 4
    assert np.flatnonzero(found.redundant).tolist() == list(planned) == np.flatnonzero(found.planned).tolist()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-2, atol=1e-5)
    rise = float(substitutes_loss(space.zero(history[24], planned), 0) - substitutes_loss(history[24], 0))
    assert float(found.measured_rise) == pytest.approx(rise, rel=1e-3)
    assert float(found.predicted_rise) == pytest.approx(rise, rel=0.5)


@pytest.mark.parametrize("window", [15, 20, 25, 40])
def test_of_two_copies_one_goes(window):
    """Both are planned first, and beside them each is so dear that both would stay: one is exchanged.

    Of a short window this is at its end, before it can be tried.
    """
    space, state, history = train_substitutes(window + 5, copies, warmup_steps=4 + window, selection_steps=window)
    plans, scores, rise = compared(space, history, range(4, 4 + window), 2, 5, 2, copies)
    found = h2spg_state(state)
    names = [group.paths[0] for group in space.groups]
    assert {names[index] for index in plans[0]} == {"b", "c"}
    assert {names[index] for index in plans[-1]} in ({"b", "d"}, {"c", "d"})
    assert np.flatnonzero(found.redundant).tolist() == list(plans[-1])
    np.testing.assert_allclose(found.scores, scores, rtol=1e-2, atol=1e-5)
    assert float(found.predicted_rise) == pytest.approx(rise, rel=1e-2)
    batches = [X[0], X[1]]
    loss = lambda params, x: jnp.mean((copies(params, x) - copies(SUBSTITUTES, x)) ** 2)  # noqa: E731
    chosen = jasgnas.select_groups(space, history[-1], loss, batches, target_groups=2)
    assert {names[index] for index in chosen} in ({"b", "d"}, {"c", "d"})


@pytest.mark.parametrize("target", [{"target_groups": 3}, {"target_params": 0.5}])
def test_choices_among_substitutes_are_nearly_the_best(target):
    """Of losses in which some pairs of branches stand in for each other: most choices are the best of all sets."""
    names, num_updates = "abcdefg", 250

    def branches(params, x):
        return sum(jnp.tanh(x @ params[name]) for name in names)

    params = {name: jnp.full((3, 3), 1.0) for name in names}
    space = jasgnas.search_space(branches, X[0][:, :3], params=params)

    def value_fn(params, single, pairs):
        gone = jnp.stack([~jnp.any(params[name]) for name in names]).astype(jnp.float32)
        return 1 + gone @ single + gone @ pairs @ gone

    last = h2spg(
        space, learning_rate=0.0, warmup_steps=num_updates, selection_steps=num_updates, projection_steps=5,
        score="ablation", look_every=num_updates // 5, **target,
    )  # fmt: skip

    @jax.jit
    def selected(single, pairs):
        def step(state, _):
            given = {"value": jnp.float32(1), "value_fn": value_fn, "single": single, "pairs": pairs}
            return last.update(jax.tree.map(jnp.zeros_like, params), state, params, **given)[1], None

        return jax.lax.scan(step, last.init(params), length=num_updates + 1)[0]

    regrets, of_random = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        single = 0.3 * np.abs(rng.normal(size=7)).astype(np.float32)
        pairs = np.triu(2 * np.abs(rng.normal(size=(7, 7))) * (rng.random((7, 7)) < 0.3), 1).astype(np.float32)

        def rise(gone, single=single, pairs=pairs):
            is_gone = np.isin(np.arange(7), [names.index(space.groups[index].paths[0]) for index in gone])
            return float(is_gone @ single + is_gone @ pairs @ is_gone)

        state = selected(single, pairs)
        found = np.flatnonzero(state.redundant).tolist()
        number = 3 if "target_groups" in target else 4
        assert space.is_valid(found) and len(found) == number
        assert float(state.measured_rise) == pytest.approx(rise(found), abs=1e-5)
        all_rises = [rise(gone) for gone in itertools.combinations(range(7), number)]
        regrets.append(rise(found) - min(all_rises))
        of_random.append(np.mean(all_rises) - min(all_rises))
    assert np.mean(np.array(regrets) < 1e-5) >= 0.7
    assert np.mean(regrets) < 0.1 * np.mean(of_random)


def test_a_set_without_which_the_loss_is_not_finite_does_not_stay_planned():
    space = jasgnas.search_space(substitutes, X[0], params=SUBSTITUTES)

    def value_fn(params):
        both = jnp.any(params["b"]) | jnp.any(params["c"])
        loss = 1.0 + 0.1 * ~jnp.any(params["b"]) + 0.1 * ~jnp.any(params["c"]) + 0.3 * ~jnp.any(params["d"])
        return jnp.where(both, loss + ~jnp.any(params["a"]), jnp.inf)

    last = h2spg(
        space, learning_rate=0.0, target_groups=2, warmup_steps=24, projection_steps=4, selection_steps=20,
        forward_passes=3, look_every=5, score="ablation",
    )  # fmt: skip
    state, step = last.init(SUBSTITUTES), jax.jit(partial(last.update, value=jnp.float32(1), value_fn=value_fn))
    for _ in range(25):
        _, state = step(jax.tree.map(jnp.zeros_like, SUBSTITUTES), state, SUBSTITUTES)
    gone = np.flatnonzero(state.redundant).tolist()
    rise = float(value_fn(space.zero(SUBSTITUTES, gone))) - 1
    assert gone != [0, 1] and np.isfinite(rise)
    assert float(state.measured_rise) == pytest.approx(rise) and float(state.predicted_rise) == pytest.approx(rise)
    chosen = jasgnas.select_groups(space, SUBSTITUTES, lambda params, _: value_fn(params), [X[0]], target_groups=2)
    assert np.isfinite(value_fn(space.zero(SUBSTITUTES, chosen)))


def test_rounds_take_what_was_compared():
    _, state, _ = train_substitutes(26, periods=2)
    first = np.flatnonzero(h2spg_state(state).redundant).tolist()
    _, state, _ = train_substitutes(29, periods=2)
    found = h2spg_state(state)
    assert len(first) == 1 and np.flatnonzero(found.zero).tolist() in ([0, 3], [1, 3])
    assert first[0] in np.flatnonzero(found.zero) and int(found.phase) == DONE


def test_a_comparison_that_settles_ends_early():
    """Planned at update 9, bettered on trial from 14 on, which wins at 19; at 24 there is nothing better beside it."""
    _, state, _ = train_substitutes(26, settle=True, warmup_steps=44, selection_steps=40)
    found = h2spg_state(state)
    assert int(found.selected_at) == 25
    assert np.flatnonzero(found.redundant).tolist() in ([0, 3], [1, 3])
    assert float(found.predicted_rise) > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Six groups and two sets, as many evaluations as half of the updates.
        ((300, 0.5, 13, True), (6, 16, 80, 108, True)),
        ((150, 0.5, 5, True), (5, 14, 28, 50, True)),
        ((150, 0.5, 5, True, 40), (5, 14, 40, 50, True)),
        ((150, 0.5, 5, False), (5, 16, 32, 45, True)),
        # Too few for six passes, or three sets: groups alone.
        ((150, 0.5, 13, True), (6, 12, 60, 72, False)),
        ((150, 0.5, 5, True, 51), (5, 10, 51, 75, False)),
        ((16, 1.0, 4, True), (4, 4, 8, 16, False)),
        ((16, 8.0, 4, True), (4, 1, 2, 64, True)),
        ((4, 0.5, 4, True), (2, 4, 16, 2, False)),
    ],
)
def test_turns_keep_to_the_evaluations_that_are_allowed(given, expected):
    turns = Turns.within(*given, measured_between=2)
    assert turns == expected
    own = (2 if turns.compares else 0) + (not given[3])
    assert given[0] // turns.every * (turns.number + own) <= given[0] * given[1]


def test_every_group_is_measured_nine_times_where_sets_are_compared():
    """A turn measures six of 16 groups, beside two sets, every sixteen updates: eight turns from trial to trial."""
    assert Turns.within(384, 0.5, 16, True) == (6, 16, 128, 144, True)
    assert not Turns.within(383, 0.5, 16, True).compares
    assert Turns.within(2000, 0.5, 16, True, look_every=400).look_every == 400
    assert Turns.within(288, 0.5, 16, True, measured_between=2).compares
