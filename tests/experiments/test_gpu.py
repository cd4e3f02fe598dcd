"""The command for a GPU that can be had for minutes, tried on the CPU."""

import dataclasses
import gzip
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from packaging.utils import canonicalize_name

import jasgnas
import models
from experiments.common.errors import ConfigError, DataError
from experiments.data import Augmentation, Batch, TrainBatches, open_dataset
from experiments.data.datasets import ArrayImages, Dataset
from experiments.data.files import read_files
from experiments.data.pipeline import changed_batch, mean_color
from experiments.engine.config import Config, DataConfig, H2SPGConfig, ModelConfig
from experiments.engine.networks import Network, create_module
from experiments.engine.optimizers import make_optimizer, make_schedule, random_scores
from experiments.engine.runs import make_space
from experiments.engine.steps import StepOptions, init_state, make_train_step
from experiments.gpu import bundling, races, speed
from experiments.gpu.checks import check_exactness, checks
from experiments.gpu.journal import Journal, Thing, read_lines
from experiments.gpu.networks import random_network
from experiments.gpu.page import write_page
from experiments.gpu.races import RACES, Deadline, Race, Races
from experiments.gpu.training import ERASING, FULL, NUM_DRAWS, Trainer, Variant
from tests.experiments.raw_images import class_folders, write_folder


@pytest.fixture(scope="module")
def small() -> tuple[Config, Dataset]:
    """Settings of a training of two epochs of four steps, and its images."""
    config = Config(
        model=ModelConfig("demo_net", {"width": 0.125}),
        h2spg=H2SPGConfig(target_groups=2, warmup_fraction=0.5, projection_fraction=0.25),
        epochs=2,
        batch_size=16,
        seed=0,
    )
    augmentation = Augmentation(pad_crop=1, flip=True, color_jitter=0.4, cutout=3, mixup=0.2, cutmix=1.0)
    config = replace(config, data=replace(config.data, num_train=64, num_test=64, augmentation=augmentation))
    return config, open_dataset("digits")


def test_batches_on_the_device_are_those_of_the_host(small: tuple[Config, Dataset]) -> None:
    config, dataset = small
    trainer = Trainer(config, dataset)
    taken = dataset.take(64, 64)
    images, labels = (jax.numpy.asarray(each) for each in taken.train.load(np.arange(64)))
    options, fill = config.data.augmentation, mean_color(dataset)
    change = jax.jit(lambda place: changed_batch(images[place[0]], labels[place[0]], *place[1:], options, fill))
    expected = list(TrainBatches(taken, 16, seed=3, epochs=2, augmentation=options))
    found = [change(tuple(each[step] for each in trainer.places(3, epoch))) for epoch in range(2) for step in range(4)]
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        # Products of float32 may be rounded otherwise inside jit: a pixel by one, the area of a box not at all.
        assert np.abs(one.images.astype(int) - np.asarray(other.images).astype(int)).max() <= 1
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.other_labels, other.other_labels)
        np.testing.assert_allclose(one.shares, other.shares, rtol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_training_on_the_device_goes_on_with_an_exact_sub_network(small: tuple[Config, Dataset], ema: float) -> None:
    config, dataset = small
    trainer = Trainer(replace(config, ema=ema, h2spg=replace(config.h2spg, warmup_fraction=0.25)), dataset)
    full = trainer.advance(trainer.start(trainer.compile(Variant("h2spg", "default"), 2), 0))
    assert full.epoch == 1 and full.is_to_shrink
    assert int(jasgnas.h2spg_state(full.state.opt_state).zero.sum()) == 2
    logits = trainer.logits(full)
    smaller = trainer.shrunk(full)
    np.testing.assert_allclose(trainer.logits(smaller), logits, atol=1e-4 * np.abs(logits).max())
    assert logits.shape == (64, 10)
    if not ema:  # the average of what is zero is not
        assert trainer.accuracy(smaller) == trainer.accuracy(full) > 0
    assert smaller.program.size[0] < trainer.full_size[0] and smaller.program.size[1] < trainer.full_size[1]
    assert trainer.shrunk(full).program is smaller.program, "the same network is compiled once"
    end = trainer.advance(smaller)
    assert end.epoch == 2 and not end.is_to_shrink
    assert end.seconds == pytest.approx(sum(end.epoch_seconds))
    assert np.abs(trainer.logits(end) - logits).max() > 1e-3 * np.abs(logits).max(), "it goes on learning"


@pytest.mark.parametrize("variant", [FULL, Variant("random", "random")])
def test_seeds_that_are_trained_at_once_learn_what_each_learns_alone(
    small: tuple[Config, Dataset], variant: Variant
) -> None:
    config, dataset = small
    config = replace(config, h2spg=replace(config.h2spg, warmup_fraction=0.25))
    trainer = Trainer(config, dataset)
    alone, at_once = (trainer.compile(variant, 2, number) for number in (1, 2))
    seeds = (0, 5)
    expected = [trainer.advance(trainer.start(alone, seed)) for seed in seeds]
    found = trainer.advance_at_once(at_once, [trainer.start(at_once, seed) for seed in seeds])
    for one, other in zip(expected, found, strict=True):
        assert (one.seed, one.epoch, one.is_to_shrink) == (other.seed, other.epoch, other.is_to_shrink)
        assert (one.at_once, other.at_once) == (1, 2)
        np.testing.assert_allclose(trainer.logits(one), trainer.logits(other), atol=0.02)
        if variant == FULL:
            continue
        states = [jasgnas.h2spg_state(each.state.opt_state) for each in (one, other)]
        np.testing.assert_array_equal(states[0].zero, states[1].zero)
        assert int(states[1].zero.sum()) == 2
        end = trainer.advance(trainer.shrunk(other))
        assert end.epoch == 2 and end.program.num_seeds == 1 and len(end.epoch_seconds) == 2
    assert np.abs(trainer.logits(found[0]) - trainer.logits(found[1])).max() > 0.1


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_seeds_are_trained_at_once_where_that_is_faster(
    small: tuple[Config, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    config, dataset = small
    race = Race("small", config, 8, RACES[0].smoke, ERASING[:2])
    # What is measured on a CPU may be either.
    monkeypatch.setattr(races, "_epoch_seconds", lambda _, program: 100 * gain if program.num_seeds > 1 else 100.0)
    Races([race], Journal(tmp_path / "gpu.jsonl", "smoke", "command"), lambda _: dataset).run(Deadline(60))
    plan, *lines = (line.figures for line in read_lines(tmp_path / "gpu.jsonl"))
    assert plan["epoch_seconds_at_once"] == 100 * gain
    trained = [(figures["variant"], figures["seed"], figures["at_once"]) for figures in lines]
    number = 3 if gain < 1 else 1
    assert sorted(trained) == [(variant, seed, number) for variant in ("full", "h2spg") for seed in range(3)]
    page = write_page(tmp_path, "smoke").read_text()
    assert f"| small | 100 | {100 * gain:.0f} | a |" in " ".join(page.split())
    assert ("All seeds at once" in page) == (gain < 1)


def test_seeds_at_once_are_not_tried_where_that_takes_longer_than_training(
    small: tuple[Config, Dataset], tmp_path: Path
) -> None:
    config, dataset = small
    race = Race("small", config, 8, RACES[0].smoke, (FULL,))
    Races([race], Journal(tmp_path / "gpu.jsonl", "smoke", "command"), lambda _: dataset).run(Deadline(60))
    plan, *lines = (line.figures for line in read_lines(tmp_path / "gpu.jsonl"))
    assert "epoch_seconds_at_once" not in plan
    assert [each["at_once"] for each in lines] == [1, 1, 1]


def test_random_cells_are_as_large_as_those_that_were_found(tmp_path: Path) -> None:
    race = RACES[-1].small
    space = make_space(
        create_module(race.config, 10, (16, 16, 1)), (16, 16, 1), tie=race.config.h2spg.tie, keep=race.config.h2spg.keep
    )
    trainer = Trainer(race.config, open_dataset("digits", None, 16))
    found, others = [], []
    for seed in range(3):
        scores = random_scores(7000 + seed, (len(space.groups),))
        macs = space.subnet_size(space.select(scores, at_most=race.config.h2spg.at_most))[1]
        draw = trainer.nearest_draw("structures", macs, seed)
        assert seed * NUM_DRAWS <= draw < (seed + 1) * NUM_DRAWS
        for chosen, sizes in ((draw, found), (seed, others)):
            scores = random_scores(chosen, (len(space.groups),))
            sizes.append(space.subnet_size(space.select(scores, at_most=race.config.h2spg.at_most))[1] / macs)
    assert max(abs(size - 1) for size in found) < 0.05 < max(abs(size - 1) for size in others)


def test_random_channels_are_drawn_within_the_limits_of_the_row(small: tuple[Config, Dataset]) -> None:
    config, dataset = small
    h2spg = replace(config.h2spg.with_target(target_params=0.6), multiple_of=4)
    trainer = Trainer(replace(config, h2spg=h2spg), dataset)
    space = make_space(create_module(config, 10, dataset.image_shape), dataset.image_shape, "channels")

    def macs(draw: int) -> int:
        scores = random_scores(draw, (len(space.groups),))
        return space.subnet_size(space.select(scores, target_params=0.6, multiple_of=4))[1]

    assert macs(trainer.nearest_draw("channels", macs(137), seed=1)) == macs(137)


def test_a_variant_that_is_as_large_as_another_one_follows_it(
    small: tuple[Config, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset = small
    asked = {}

    def nearest_draw(_: Trainer, kinds: str, macs: int, seed: int) -> int:
        asked[seed] = kinds, macs
        return 77

    monkeypatch.setattr(Trainer, "nearest_draw", nearest_draw)
    others = Variant("random", "random", as_large_as="h2spg"), Variant("h2spg", "default")
    race = Race("small", config, 8, RACES[0].smoke, (FULL, *others))
    Races([race], Journal(tmp_path / "gpu.jsonl", "smoke", "command"), lambda _: dataset).run(Deadline(60))
    _, *lines = (line.figures for line in read_lines(tmp_path / "gpu.jsonl"))
    sizes = {each["seed"]: ("structures", each["predicted_size"][1]) for each in lines if each["variant"] == "h2spg"}
    assert asked == sizes and len(sizes) == 3
    assert len({tuple(each["removed"]) for each in lines if each["variant"] == "random"}) == 1, "one draw for all seeds"


def test_full_training_is_the_engines(small: tuple[Config, Dataset]) -> None:
    """The learning rates come from a table, and the images from the device: neither changes what is learned."""
    config, dataset = small
    config = replace(config, data=replace(config.data, augmentation=Augmentation()))
    trainer = Trainer(config, dataset)
    state = trainer.advance(trainer.start(trainer.compile(FULL, 2), 0)).state
    taken = dataset.take(64, 64)
    module = create_module(config, 10, dataset.image_shape)
    tx = make_optimizer(config.optimizer, make_schedule(config.optimizer, 4, 8))
    expected = init_state(Network.variables(module), tx, 0.0)
    step = jax.jit(make_train_step(Network(module), tx, StepOptions.of(config, dataset), None))
    for batch in TrainBatches(taken, 16, seed=0, epochs=2):
        expected, _ = step(expected, batch)
    for one, other in zip(jax.tree.leaves(expected.variables), jax.tree.leaves(state.variables), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_journal_keeps_what_is_done_and_passes_over_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    journal = Journal(path, "smoke", "command")
    a, b, c = (Thing("speed", name, {"batch_size": 4}) for name in "abc")
    assert journal.do(a, lambda: {"ms": 1.5}) == {"ms": 1.5}
    assert journal.do(b, lambda: 1 / 0) is None  # type: ignore[arg-type, return-value]
    path.write_text(path.read_text() + '{"part": "speed", "na')
    again = Journal(path, "smoke", "command")
    assert again.do(a, lambda: {"ms": 2.5}) == {"ms": 1.5}
    assert again.figures(b) is None, "what failed is done anew"
    assert Journal(path, "full", "command").figures(a) is None, "another scale is another thing"
    assert [line.figures for line in read_lines(path)] == [
        {"ms": 1.5},
        {"fault": "ZeroDivisionError: division by zero"},
    ]
    page = write_page(tmp_path, "smoke").read_text()
    assert "ZeroDivisionError" in page
    again.do(c, lambda: {"ms": 3.5})
    assert [line.name for line in read_lines(path)] == ["a", "b", "c"], "a new line begins where one was cut off"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1"):
        Journal(path, "smoke", "command")


def test_other_settings_or_another_device_are_another_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.jsonl"
    one, other = (Thing("speed", "a", {"batch_size": number}) for number in (4, 8))
    Journal(path, "full", "command").do(one, lambda: {"ms": 1.5})
    untold = json.loads(path.read_text())
    del untold["settings_id"]  # as lines were written before there were any
    path.write_text(json.dumps(untold) + "\n")
    assert [line.settings_id for line in read_lines(path)] == [""]
    for number, thing in enumerate((one, other)):
        assert Journal(path, "full", "command").figures(thing) is None
        Journal(path, "full", "command").do(thing, lambda number=number: {"ms": number})  # type: ignore[misc]
    assert Journal(path, "full", "command").figures(one) == {"ms": 0}
    monkeypatch.setattr(jax, "devices", lambda *_: [SimpleNamespace(device_kind="another")])
    assert Journal(path, "full", "command").figures(one) is None
    assert len(path.read_text().splitlines()) == 3, "all are kept"


def test_page_marks_what_was_recorded_with_other_settings_until_it_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    (now, _), *_ = checks(tiny=True)
    thing = now._replace(settings=now.settings | {"dtype": "float16"})
    figures = {"error": 0.5, "removed": 1, "groups": 2, "params": [2, 1]}
    Journal(path, "smoke", "command").do(thing, lambda: figures)
    line = json.loads(path.read_text()) | {"device": "earlier one", "date": "2020-02-02"}
    path.write_text(json.dumps(line) + "\n")

    def page() -> str:
        return " ".join(write_page(tmp_path, "smoke").read_text().split())

    assert "- a: earlier one, 2020-02-02, jax" in page() and "recorded earlier" in page()
    assert "| 5.0e-01 | a |" in page()
    Journal(path, "smoke", "command").do(now, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert "| 5.0e-01 | a |" in page() and "ZeroDivisionError" in page(), "what failed stands for nothing"
    Journal(path, "smoke", "command").do(now, lambda: figures | {"error": 0.25})
    assert "| 2.5e-01 | a |" in page()
    assert "5.0e-01" not in page() and "recorded earlier" not in page() and "earlier one" not in page()
    assert len(path.read_text().splitlines()) == 3, "all are kept"


def test_page_keeps_the_trainings_of_a_plan_together(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    race = RACES[0].small
    figures = {"row": race.name, "size": [4, 40], "full_size": [8, 80], "train_seconds": 4.0, "epoch_seconds": [2.0]}

    def trained(journal: Journal, variants: tuple[str, ...], epochs: int, **more: object) -> None:
        for variant in variants:
            found = {**figures, "variant": variant, "epochs": epochs, "accuracy": float(epochs), **more}
            journal.do(race.training(variant, 0, epochs), lambda found=found: found)  # type: ignore[misc]

    def rows() -> list[list[str]]:
        page = write_page(tmp_path, "smoke").read_text()
        lines = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "float" in line]
        return [[*line[1:6], line[-2]] for line in lines]

    trained(Journal(path, "smoke", "command"), ("full", "h2spg"), 8, dtype="float32")
    before = [[race.name, "full", "float32", "8", "1"], ["", "h2spg", "float32", "8", "1"]]
    assert rows() == [[*line, "a"] for line in before]
    journal = Journal(path, "smoke", "command")
    journal.do(race.plan, lambda: {"epochs": 9, "epoch_seconds": 1.0})
    plan = {"plan": race.plan.settings_id, "dtype": "bfloat16"}
    trained(journal, ("full",), 9, **plan)
    after = [race.name, "full", "bfloat16", "9", "1"]
    # What the newer one is to be held against is not there yet.
    assert rows() == [*([*line, "a"] for line in before), [*after, "b"]]
    page = write_page(tmp_path, "smoke").read_text()
    assert [line[:4] for line in page.splitlines() if "recorded earlier" in line] == ["- a:"]
    trained(journal, ("h2spg",), 9, **plan)
    assert [line[:-1] for line in rows()] == [after, ["", "h2spg", *after[2:]]]
    assert "recorded earlier" not in write_page(tmp_path, "smoke").read_text()


def test_a_row_is_trained_anew_with_other_settings_and_known_again_with_the_same(
    small: tuple[Config, Dataset], tmp_path: Path
) -> None:
    config, dataset = small
    path = tmp_path / "gpu.jsonl"

    def run(config: Config) -> int:
        race = Race("small", config, 8, RACES[0].smoke, (FULL,))
        Races([race], Journal(path, "smoke", "command"), lambda _: dataset).run(Deadline(60))
        return len(path.read_text().splitlines())

    assert run(config) == 4, "a plan and three seeds"
    assert run(config) == 4
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=0.01))
    assert run(other) == 8, "the plan is made anew, too"
    assert run(config) == run(other) == 8
    assert len({line.key for line in read_lines(path)}) == 8


def test_what_decides_a_training_is_in_its_settings() -> None:
    race = RACES[0]
    ids = [
        race.training(*each).settings_id for each in (("full", 0, 2), ("h2spg", 0, 2), ("full", 1, 2), ("full", 0, 3))
    ]
    scores = race.variants[0], race.variants[1]._replace(score="magnitude")
    ids.append(race._replace(variants=scores).training("h2spg", 0, 2).settings_id)
    ids.append(replace_config(race, batch_size=7).training("full", 0, 2).settings_id)
    assert len(set(ids)) == len(ids)
    assert race.plan.settings_id == race._replace(variants=scores).plan.settings_id, "a new variant joins the others"
    assert race.plan.settings_id != replace_config(race, batch_size=7).plan.settings_id


def replace_config(race: Race, **settings: int) -> Race:
    """The same row with other settings."""
    return race._replace(config=replace(race.config, **settings))  # type: ignore[arg-type]


def test_peak_of_a_call_is_told_where_the_device_tells_and_held_less_before(monkeypatch: pytest.MonkeyPatch) -> None:
    mebibytes = 1 << 20
    for held, expected in (([3, 5], 5.0), ([5, 5], None), (None, None)):
        told = iter([] if held is None else [{"peak_bytes_in_use": each * mebibytes} for each in held])
        device = SimpleNamespace(memory_stats=lambda told=told: next(told, None))
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        called: list[int] = []
        assert speed._peak_mib(lambda called=called: called.append(1)) == expected  # type: ignore[misc]
        assert called == [1]


def test_random_networks_have_no_parameter_near_zero_and_can_be_trained_on() -> None:
    for name, _ in speed.NETWORKS:
        model = random_network(name, num_classes=10, dtype=jax.numpy.bfloat16)
        assert not any(isinstance(each, jax.ShapeDtypeStruct) for each in jax.tree.leaves(nnx.state(model)))
        scale = [np.abs(each).min() / np.abs(each).max() for each in jax.tree.leaves(nnx.state(model, nnx.Param))]
        assert min(scale) > 0.05
        network = Network(model)
        variables = Network.variables(model)
        state = init_state(variables, optax.sgd(0.1), 0.0)
        x = models.example_input(name, batch_size=2)
        zeros, ones = np.zeros(x.shape[-1], np.float32), np.full(x.shape[-1], 255, np.float32)
        step = make_train_step(network, optax.sgd(0.1), StepOptions(zeros, ones, 10, 0.0, 0.0, 1, 0.0), None)
        labels = np.zeros(2, np.int32)
        batch = Batch(np.zeros(x.shape, np.uint8), labels, labels, np.ones(2, np.float32))
        assert jax.eval_shape(step, state, batch)[1].loss.shape == ()


def test_sub_network_of_a_random_network_is_exact() -> None:
    found = check_exactness("demo_net", "float32")
    assert 0 <= found["error"] < 1e-5 and found["removed"] == 2
    assert found["params"][1] < found["params"][0] == 818_250


def test_page_shows_cells_and_what_was_looked_up(tmp_path: Path) -> None:
    full = {"row": "cells", "variant": "full", "seed": 0, "epochs": 2, "accuracy": 50.0, "train_seconds": 4.0}
    full |= {"epoch_seconds": [2.0], "size": [8, 80], "full_size": [8, 80], "dtype": "bfloat16"}
    cell = {**full, "variant": "h2spg", "size": [4, 20], "cell": "|none~0|+|skip_connect~0|none~1|"}
    known = {**cell, "variant": "random", "cell_accuracy": 93.256, "cell_rank": 1234, "draw": 7}
    journal = Journal(tmp_path / "gpu.jsonl", "full", "command")
    for figures in (full, cell, known):
        journal.do(Thing("training", str(figures["variant"]), {}), lambda figures=figures: figures)  # type: ignore[misc]
    page = write_page(tmp_path, "full").read_text()
    assert f"Of cells (a) the random selection is, of {NUM_DRAWS} that meet the target," in page
    rows = [line.split(" | ") for line in page.splitlines() if "none~0" in line]
    own = r"\|none~0\|+\|skip_connect~0\|none~1\|"
    assert [[each.strip("| ") for each in row] for row in rows] == [
        ["h2spg", "0", own.strip("|"), "", ""],
        ["random", "0", own.strip("|"), "93.26", "1,234"],
    ]


def test_no_time_left_trains_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gpu.jsonl", "smoke", "command")
    Races([RACES[0].small], journal, lambda data: open_dataset(data.name, None, data.image_size)).run(Deadline(0))
    assert not (tmp_path / "gpu.jsonl").exists()


def test_a_row_without_images_is_said_and_passed_over(tmp_path: Path) -> None:
    def open_nothing(data: DataConfig) -> Dataset:
        raise DataError(f"no images for {data.name}")

    journal = Journal(tmp_path / "gpu.jsonl", "full", "command")
    Races(RACES[:2], journal, open_nothing).run(Deadline(1))
    assert {line.name: line.figures for line in read_lines(tmp_path / "gpu.jsonl")} == {
        race.name: {"fault": f"DataError: no images for {race.config.data.name}"} for race in RACES[:2]
    }


def test_the_command_does_not_wait_for_programs_it_has_no_time_for(tmp_path: Path) -> None:
    code = """
        import threading
        from experiments.gpu import __main__ as command, training

        begun = threading.Event()

        def compile_forever(*_):
            begun.set()
            threading.Event().wait()

        training.Trainer.compile = compile_forever
        command.Races.run = lambda *_: begun.wait()
        command.main()
    """
    options = ["--scale", "smoke", "--parts", "training", "--results", str(tmp_path)]
    assert str(tmp_path) in outcome(code, options)
    assert (tmp_path / "gpu-smoke.md").exists()


def outcome(code: str, options: list[str]) -> str:
    """What a program prints that ends by itself and without a fault."""
    command = [sys.executable, "-c", textwrap.dedent(code), *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_ends_when_the_minutes_are_over_whatever_is_under_way(tmp_path: Path) -> None:
    code = """
        import threading
        from experiments.gpu import __main__ as command
        from experiments.gpu.journal import Thing

        forever = threading.Event().wait
        things = [Thing("speed", name, {}) for name in ("cannot be prepared", "done", "never done")]
        preparations = (lambda: 1 / 0, lambda: lambda: {"ms": 1.5}, lambda: forever)
        command.measurements = lambda tiny: zip(things, preparations)
        command.main()
    """
    options = ["--scale", "smoke", "--parts", "speed", "--minutes", "0.1", "--results", str(tmp_path)]
    assert f"The time is over. Written in {tmp_path}" in outcome(code, options)
    found = [(line.name, line.failed) for line in read_lines(tmp_path / "gpu.jsonl")]
    assert found == [("cannot be prepared", True), ("done", False)]
    assert (tmp_path / "gpu-smoke.md").exists()


def test_files_are_read_as_they_are_published(tmp_path: Path) -> None:
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    for prefix in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1]) + np.array([5], ">u4").tobytes() + bytes(range(5)))
        )
    dataset = read_files("fashion_mnist", tmp_path)
    assert isinstance(dataset.train, ArrayImages) and dataset.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(dataset.train.images[..., 0], images)
    np.testing.assert_array_equal(dataset.test.load(np.arange(5))[1], range(5))
    with pytest.raises(DataError, match="cifar10"):
        read_files("cifar10", tmp_path)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 3)])
def test_colours_of_other_images_are_measured(tmp_path: Path, shape: tuple[int, ...]) -> None:
    splits = {"train": 3, "test": 2}
    write_folder(tmp_path / "own", class_folders(splits, ["a", "b"], shape, "png"))
    dataset = read_files("own", tmp_path)
    images = dataset.train.load(np.arange(6))[0] / 255
    assert images.shape == (6, 6, 6, 3 if shape[2:] else 1) and dataset.num_classes == 2
    np.testing.assert_allclose(dataset.normalisation, [images.mean((0, 1, 2)), images.std((0, 1, 2))], rtol=1e-6)


def test_rows_are_those_of_the_papers_and_the_search_for_a_cell() -> None:
    assert [race.name for race in RACES] == [
        "demonet-fashion-mnist",
        "stacked-unets-cifar10",
        "super-resnet-1m-cifar10",
        "regnet-cifar10",
        "stacked-unets-svhn-on-svhn_test10k",
        "resnet18-cifar10",
        "nasbench201-cifar10",
    ]
    for race in RACES:
        assert race.config.model.dtype == "bfloat16" and race.config.data.name in race.name.replace("-", "_")
        assert race.variants[0] == FULL and any(each.as_long_as for each in race.variants)
        drawn = [each for each in race.variants if each.score == "random"]
        kinds = {each.name: each.kinds for each in race.variants}
        for each in drawn:  # What is held against each other has equal multiply-adds.
            if each.as_large_as is None:  # Channels are small enough to come to the target.
                assert "target_macs" in race.config.h2spg.targets and each.kinds != "structures"
            else:
                assert kinds[each.as_large_as] == each.kinds


def test_bundle_collects_what_the_command_imports() -> None:
    names = set(bundling.needed("jasgnas", "experiments", "3.12"))
    assert {"flax", "grain", "jraph", "tyro"} <= names
    assert names == {canonicalize_name(name) for name in names}
    assert not names & {"jasgnas", "tensorflow-datasets", "pytest"}


def test_recorded_page_is_made_from_the_recorded_lines(tmp_path: Path) -> None:
    folder = Path("experiments/results/gpu")
    (tmp_path / "gpu.jsonl").write_text((folder / "gpu.jsonl").read_text())
    assert write_page(tmp_path, "full").read_text() == (folder / "gpu.md").read_text()
    assert all("/" not in json.dumps(dataclasses.asdict(line)["command"]) for line in read_lines(folder / "gpu.jsonl"))
