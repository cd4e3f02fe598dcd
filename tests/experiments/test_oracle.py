"""The oracle: which sets there are, which ones are chosen, how choices are judged, and the whole command when small."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
import models
from experiments.common.errors import ConfigError
from experiments.oracle import __main__ as oracle
from experiments.oracle import trainings
from experiments.oracle.judge import best_sets, completed, judged, judged_random, spread_of
from experiments.oracle.pages import correlations
from experiments.oracle.records import ScoresRecord, SetRecord, append_line, read_results
from experiments.oracle.sets import all_sets, choices, drawn_sets, is_maximal, macs_of
from experiments.oracle.settings import PRESETS, changes
from jasgnas.optimizer.scores import SCORES

TINY = (
    "demo_net --model.options.width 0.05 --data.name digits --data.image-size None --data.num-train 256 "
    "--data.num-test 96 --epochs 2 --batch-size 32 --score-batches 1 --points 0.5 --snapshot 0.5 --budgets 0.95"
).split()


@pytest.fixture(scope="module")
def demo_net() -> jasgnas.SearchSpace:
    model = models.create("demo_net", width=0.1, rngs=nnx.Rngs(0))
    return jasgnas.search_space(model, jax.ShapeDtypeStruct((1, 14, 14, 1), jnp.float32))


@pytest.mark.parametrize(
    ("network", "size", "number"), [("demo_net", (14, 14, 1), 20), ("stacked_unets", (16, 16, 3), 47)]
)
def test_all_valid_sets_are_found(network: str, size: tuple[int, int, int], number: int) -> None:
    model = models.create(network, width=0.1, rngs=nnx.Rngs(0))
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((1, *size), jnp.float32))
    sets = all_sets(space)
    assert len(set(sets)) == len(sets) == number and () not in sets
    assert all(map(space.is_valid, sets))


def test_a_maximal_set_can_spare_no_group_that_it_keeps(demo_net: jasgnas.SearchSpace) -> None:
    size = {removed: macs_of(demo_net, removed) for removed in ((4,), (0, 4), (0, 1, 4))}
    assert 1 > size[4,] > size[0, 4] > size[0, 1, 4]
    assert all(is_maximal(demo_net, removed, left) for removed, left in size.items())
    assert is_maximal(demo_net, (4,), 0.99) and not is_maximal(demo_net, (4,), size[0, 4])  # not within the budget
    assert not is_maximal(demo_net, (0, 1, 4), size[0, 4])  # 1 could stay


def test_drawn_sets_are_different_maximal_ones(demo_net: jasgnas.SearchSpace) -> None:
    maximal = [removed for removed in all_sets(demo_net) if is_maximal(demo_net, removed, 0.6)]
    drawn = drawn_sets(demo_net, 0.6, 3)
    assert len(set(drawn)) == 3 and set(drawn) <= set(maximal)
    assert drawn == drawn_sets(demo_net, 0.6, 3)
    assert set(drawn_sets(demo_net, 0.6, 10)) <= set(maximal)


def test_every_score_chooses(demo_net: jasgnas.SearchSpace) -> None:
    scores = {name: -np.arange(5.0) for name in SCORES}
    found = choices(demo_net, scores, 0.8)
    unchecked = {f"{name}, `hierarchical=False`" for name in SCORES}
    assert {*SCORES, "gate, plain order", *unchecked} <= found.keys()
    assert all(macs_of(demo_net, removed) <= 0.8 for removed in found.values())


def test_every_score_also_chooses_without_regard_to_validity(demo_net: jasgnas.SearchSpace) -> None:
    wanted = np.array([0.0, 0.0, 0.0, 2.0, 1.0])  # either of the last two can go, and both cannot
    found = choices(demo_net, dict.fromkeys(SCORES, wanted), 0.8)
    for name in SCORES:
        assert found[f"{name}, `hierarchical=False`"] == (3, 4) and not demo_net.is_valid((3, 4))
        assert demo_net.is_valid(found[name])


# Three seeds of the first two sets, one of the others; the second seed is 2 points better, the third 1 point worse.
ACCURACIES: dict[tuple[int, ...], Mapping[int, float]] = {
    (0,): {0: 90.0, 1: 92.0, 2: 89.0},
    (1,): {0: 88.0, 1: 90.0, 2: 87.0},
    (2,): {0: 80.0},
    (3,): {0: 70.0},
}


def test_missing_accuracies_follow_the_seeds() -> None:
    found = completed(ACCURACIES)
    assert found[0,] == ACCURACIES[0,]
    np.testing.assert_allclose([found[3,][seed] for seed in (0, 1, 2)], [70.0, 72.0, 69.0])
    assert best_sets(ACCURACIES, 2) == [(0,), (1,)]


def test_spread_is_compared_with_that_over_seeds() -> None:
    spread = spread_of(ACCURACIES, ACCURACIES)
    mean = 271 / 3
    assert spread.num_sets == 4
    np.testing.assert_allclose((spread.best, spread.median), (mean, mean - 6))
    np.testing.assert_allclose(spread.over_seeds, np.std([90.0, 92.0, 89.0], ddof=1))
    assert spread.passes and not spread._replace(median=spread.best - 2.9 * spread.over_seeds).passes
    one_seed = {(0,): {0: 90.0}, (1,): {0: 50.0}}
    assert not spread_of(one_seed, one_seed).passes  # of one seed nothing is known


def test_regret_and_percentile_are_those_within_the_budget_at_the_same_seed() -> None:
    verdict = judged("a score", 0.6, {0: (1,), 1: (2,), 2: (0,)}, ACCURACIES, ACCURACIES, 10.0)
    np.testing.assert_allclose(verdict.regrets, [2.0, 10.0, 0.0])
    np.testing.assert_allclose(verdict.percentiles, [200 / 3, 100 / 3, 100.0])
    assert verdict.num_invalid == 0
    invalid = judged("another", 0.6, {0: (0, 1, 2)}, ACCURACIES, ACCURACIES, 10.0)
    assert (invalid.regrets, invalid.percentiles, invalid.num_invalid) == ((80.0,), (0.0,), 1)


def test_random_is_the_mean_over_the_maximal_sets() -> None:
    verdict = judged_random(0.6, [(1,), (2,), (3,)], ACCURACIES, ACCURACIES)
    np.testing.assert_allclose(verdict.regrets, [(2 + 10 + 20) / 3] * 3)
    np.testing.assert_allclose(verdict.percentiles, [100 / 3] * 3)
    np.testing.assert_allclose(verdict.spread, np.std([2.0, 10.0, 20.0], ddof=1))


def test_sets_that_scores_chose_are_no_random_ones() -> None:
    drawn = [(1,), (2,), (3,)]  # the best set is one that a score chose
    np.testing.assert_allclose(spread_of(ACCURACIES, drawn)[:3], (4, 271 / 3, 271 / 3 - 10))
    found = judged("a score", 0.6, {0: (2,), 1: (0,)}, ACCURACIES, drawn, 10.0)
    np.testing.assert_allclose(found.regrets, [10.0, 0.0])
    np.testing.assert_allclose(found.percentiles, [50.0, 100.0])
    at_random = judged_random(0.6, drawn, ACCURACIES, drawn)
    np.testing.assert_allclose(at_random.regrets, [32 / 3] * 3)
    np.testing.assert_allclose(at_random.percentiles, [50.0] * 3)


def test_a_score_correlates_that_ranks_as_the_loss_does() -> None:
    rises = [0.1, 0.5, 0.2, 0.9]
    scores = {"ablation": [-1.0, -30.0, -2.0, -31.0], "magnitude": [1.0, 30.0, 2.0, 31.0]}
    line = ScoresRecord("demo_net", "", 0, [], "", {}, "", 0.3, scores, rises, 0.0)
    found = correlations([line, dataclasses.replace(line, seed=1)])
    assert found == {0.3: {"ablation": [pytest.approx(1)] * 2, "magnitude": [pytest.approx(-1)] * 2}}


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    folders = ["--results", str(folder / "results"), "--output-dir", str(folder / "runs")]
    monkeypatch.setattr("sys.argv", ["oracle", *TINY, *folders, *more])
    oracle.main()


def test_the_command_trains_judges_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = [(0,), (3,)]  # two of the sets, so that the test is short
    monkeypatch.setattr("experiments.oracle.plan.all_sets", lambda space: only)
    monkeypatch.setattr("experiments.oracle.plan.choices", lambda space, scores, budget: {"gate": (3,)})
    monkeypatch.setattr("experiments.oracle.trainings.SCORES", {"gate": SCORES["gate"]})
    monkeypatch.setattr("experiments.oracle.pages.SCORES", {"gate": SCORES["gate"]})
    call(monkeypatch, tmp_path, "--seeds", "0")
    path = tmp_path / "results/demo_net.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    choices = [line for line in lines if line["kind"] == "choice"]
    assert [line["budget"] for line in choices] == [0.95]
    lines = [line for line in lines if line["kind"] != "choice"]
    assert [line["kind"] for line in lines[:4]] == ["scores", "set", "set", "set"]
    # What was chosen is judged beside the sets that were to be.
    assert [line["removed"] for line in lines[1:4]] == [[], [0], [3]]
    assert {(0,), (3,), *(tuple(line["removed"]) for line in choices)} == {tuple(line["removed"]) for line in lines[2:]}
    assert lines[0]["point"] == 0.5 and len(lines[0]["loss_rises"]) == len(lines[0]["scores"]["gate"]) == 5
    assert lines[1]["macs"] > lines[2]["macs"] > 0 and "data.num_train: 32000 → 256" in lines[1]["changes"]
    assert "| gate " in capsys.readouterr().out
    assert "ablation of sets" in (tmp_path / "results/demo_net.md").read_text()
    for name in ("demo_net.md", "demo_net.svg", "oracle.md"):
        assert "gate" in (tmp_path / "results" / name).read_text()

    def refuse(*arguments: object) -> None:
        raise AssertionError("what is recorded was trained again")

    monkeypatch.setattr(trainings.Trainer, "train_full", refuse)
    monkeypatch.setattr(trainings.Trainer, "train_set", refuse)
    call(monkeypatch, tmp_path, "--seeds", "0")
    assert len(path.read_text().splitlines()) == len(lines) + len(choices)


def run_untrained(
    monkeypatch: pytest.MonkeyPatch, folder: Path, accuracies: Mapping[tuple[int, ...], list[float]], *more: str
) -> dict[str, Any]:
    """Returns the record of an oracle that is told the accuracies by seed, and in which `gate` chooses (3,)."""

    def trained(removed: tuple[int, ...], seed: int) -> trainings.Trained:
        return trainings.Trained(1.0, 1.0, accuracies[removed][seed], 0.0)

    def train_full(self: object, seed: int) -> tuple[trainings.Trained, list[trainings.Scored | trainings.Chosen]]:
        scored = trainings.Scored(0.5, dict.fromkeys(SCORES, [0.0, 1, 2, 3, 4]), [0.0, 1, 2, 3, 4], 0.0)
        return trained((), seed), [scored, trainings.Chosen(0.95, (3,), 0.0)]

    monkeypatch.setattr(trainings.Trainer, "train_full", train_full)
    monkeypatch.setattr(trainings.Trainer, "train_set", lambda self, removed, seed: trained(removed, seed))
    monkeypatch.setattr("experiments.oracle.plan.choices", lambda space, scores, budget: {"gate": (3,)})
    call(monkeypatch, folder, *more)
    record: dict[str, Any] = json.loads((folder / "results/demo_net.json").read_text())
    return record


def test_the_best_sets_have_all_seeds_whichever_they_turn_out_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {
        (): [0.9, 0.9, 0.9],
        (0,): [0.8, 0.65, 0.65],  # the best with the first seed alone
        (1,): [0.78, 0.78, 0.78],  # the best, as is seen when the other has all seeds
        (2,): [0.75],
        (3,): [0.5, 0.5, 0.5],
        (4,): [0.55],
    }
    monkeypatch.setattr(
        "experiments.oracle.plan.all_sets", lambda space: [removed for removed in accuracies if removed]
    )
    record = run_untrained(monkeypatch, tmp_path, accuracies, "--num-best", "1")
    lines = [json.loads(text) for text in (tmp_path / "results/demo_net.jsonl").read_text().splitlines()]
    trained = Counter(tuple(line["removed"]) for line in lines if line["kind"] == "set")
    assert trained == {(): 3, (0,): 3, (1,): 3, (2,): 1, (3,): 3, (4,): 1}
    np.testing.assert_allclose(record["spreads"]["0.95"]["best"], 78.0)


def test_random_is_the_mean_over_the_drawn_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {(): [0.9], (0,): [0.6], (1,): [0.5], (2,): [0.2], (3,): [0.8]}
    monkeypatch.setattr("experiments.oracle.plan.drawn_sets", lambda space, budget, number: [(0,), (1,), (2,)])
    record = run_untrained(monkeypatch, tmp_path, accuracies, "--seeds", "0", "--num-drawn", "3")
    found = {verdict["label"]: verdict for verdict in record["verdicts"]}
    np.testing.assert_allclose(found["random"]["regrets"], [(20 + 30 + 60) / 3])
    np.testing.assert_allclose(found["random"]["spread"], np.std([20, 30, 60], ddof=1))
    assert found["gate"]["regrets"] == [0.0] and found["gate"]["percentiles"] == [100.0]
    np.testing.assert_allclose(record["spreads"]["0.95"]["median"], 50.0)
    assert "3 drawn at random" in (tmp_path / "results/demo_net.md").read_text()


def test_lines_are_read_back_and_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "demo_net.jsonl"
    line = SetRecord("demo_net", "one", 0, [], "", {}, "", (0, 3), ["a", "b"], 10, 20, 30, 1.0, 1.0, 0.5, 9.0)
    other = dataclasses.replace(line, settings_id="other")
    for each in (line, dataclasses.replace(line, test_accuracy=0.75), other):
        append_line(path, each)
    assert read_results(path, "demo_net", "one").accuracies() == {(0, 3): {0: 75.0}}
    with path.open("a") as file:
        file.write('{"kind": "set"}\n')
    with pytest.raises(ConfigError, match="line 4"):
        read_results(path, "demo_net", "one")


@pytest.mark.parametrize("network", PRESETS)
def test_recorded_lines_are_those_of_todays_settings(network: str) -> None:
    _, settings = PRESETS[network]
    path = Path("experiments/results/oracle") / f"{network}.jsonl"
    assert read_results(path, network, settings.fingerprint).accuracies()
    gated = dataclasses.replace(settings, model=dataclasses.replace(settings.model, gated=True))
    assert gated.fingerprint != settings.fingerprint


def test_the_fingerprint_is_of_what_is_trained() -> None:
    for _, settings in PRESETS.values():
        assert dataclasses.replace(settings, budgets=(0.5,), num_drawn=3).fingerprint == settings.fingerprint
        moved = dataclasses.replace(settings, data=dataclasses.replace(settings.data, data_dir=Path("elsewhere")))
        assert moved.fingerprint == settings.fingerprint and changes(settings, moved) == []
        longer = dataclasses.replace(settings, epochs=3)
        assert longer.fingerprint != settings.fingerprint
        assert changes(settings, longer) == [f"epochs: {settings.epochs} → 3"]
    with pytest.raises(ConfigError, match="budgets"):
        dataclasses.replace(settings, budgets=(1.5,))
