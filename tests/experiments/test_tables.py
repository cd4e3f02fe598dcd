"""The papers' tables: sizes, recorded trainings, controls, ablations and the page of results."""

import dataclasses
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import jasgnas
import models
from experiments.common.errors import ConfigError, DivergedError
from experiments.engine.config import H2SPGConfig
from experiments.engine.logs import read_log
from experiments.engine.optimizers import add_h2spg
from experiments.engine.presets import PRESETS
from experiments.engine.steps import Metrics
from experiments.engine.training import _Window
from experiments.tables import __main__ as tables
from experiments.tables.ablations import ABLATIONS, ROW, SCALE, ablation_variants, plot, variant_name
from experiments.tables.jobs import VARIANTS, Job, Variant, perform
from experiments.tables.pace import _ratio
from experiments.tables.page import END, MAIN_START, PAGE, README, START, main_results, replaced, section
from experiments.tables.records import Record, append_record, read_lines
from experiments.tables.rows import ROWS, Size
from experiments.tables.summary import summaries

ROOT = Path(__file__).parents[2]
TINY = "demonet-fashion-mnist --scale smoke --options width 0.1 --num-train 256 --stand-in digits"
OTHERS = "--parallel.devices 1 --quiet"


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: str) -> list[Record]:
    """Calls the command, and returns what is recorded in a folder."""
    results = folder / "results.jsonl"
    folders = [f"--results={results}", f"--output-dir={folder / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["tables", *arguments.split(), *folders])
    tables.main()
    return [line.record for line in read_lines(results).values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> list[Record]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return call(monkeypatch, folder, f"run {TINY} {OTHERS}")


def test_every_training_makes_a_line(recorded: list[Record]) -> None:
    full, h2spg = recorded
    assert (full.variant, h2spg.variant) == ("full", "h2spg")
    for record in recorded:
        assert record.row == "demonet-fashion-mnist" and record.seed == 0 and record.fault is None
        assert record.scale == "smoke with num_train 256, options {'width': 0.1}"
        assert (record.dataset, record.stands_in_for) == ("digits", "Fashion-MNIST")
        assert (record.epochs, record.batch_size, record.num_steps) == (2, 64, 8)
        assert (record.num_train, record.num_test, record.image_shape) == (256, 360, [8, 8, 1])
        assert record.test_accuracy is not None and 0 <= record.test_accuracy <= 1
        assert "epochs: 100 → 2" in record.changes and "optimizer.learning_rate: 0.1 → 0.05" in record.changes
        assert record.command.endswith(
            "python -m experiments.tables run demonet-fashion-mnist --scale smoke --variants full h2spg --seeds 0 "
            "--num-train 256 --options width 0.1 --stand-in digits"
        )
    assert full.removed == [] and h2spg.removed is not None and len(h2spg.removed) == 3
    assert full.num_params == full.full_params == h2spg.full_params
    assert full.num_params is not None and h2spg.num_params is not None and h2spg.num_params < full.num_params


def test_recorded_trainings_are_not_done_again(
    recorded: list[Record], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.tables.jobs.run", lambda config: pytest.fail("trained again"))
    before = (folder / "results.jsonl").read_text()
    assert call(monkeypatch, folder, f"run {TINY} {OTHERS}") == recorded
    assert (folder / "results.jsonl").read_text() == before
    assert re.search(r"h2spg 0: recorded already in line 2 of ", capsys.readouterr().out)


def test_interrupted_training_goes_on_to_the_same_result(
    recorded: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = f"run {TINY} {OTHERS} --variants full"
    add = _Window.add

    def add_and_stop(window: _Window, metrics: Metrics) -> None:
        add(window, metrics)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(_Window, "add", add_and_stop)
        with pytest.raises(SystemExit) as stop:
            call(patch, tmp_path, stopped)
    assert stop.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "results.jsonl").exists()
    (record,) = call(monkeypatch, tmp_path, stopped)
    assert "going on after step 1" in capsys.readouterr().out
    assert (record.test_accuracy, record.removed) == (recorded[0].test_accuracy, recorded[0].removed)


def test_equal_time_is_as_many_steps_as_the_pace_says(
    recorded: list[Record], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, h2spg, record = call(monkeypatch, folder, f"run {TINY} {OTHERS} --variants full h2spg h2spg-equal-time")
    assert [full, h2spg] == recorded and h2spg.pace is None
    assert record.variant == "h2spg-equal-time" and record.removed is not None and len(record.removed) == 3
    assert record.settings_id == h2spg.settings_id and record.pace is not None
    # Three of eight steps are made before the structures are zero.
    before, after = record.pace
    assert before > 0 and after > 0 and record.num_steps == round(8 / (3 / 8 * before + 5 / 8 * after))
    # Measured again, the pace would be another, and a training that was interrupted would not go on.
    monkeypatch.setattr("experiments.tables.jobs.measure_pace", lambda config: pytest.fail("measured again"))
    monkeypatch.setattr("experiments.tables.jobs.run", lambda config: (_ for _ in ()).throw(DivergedError("trained")))
    *_, other = call(monkeypatch, folder, f"run {TINY} {OTHERS} --variants h2spg-equal-time --seeds 1")
    assert other.fault is not None and other.pace == record.pace


def test_pace_spares_steps_in_which_the_machine_stood_still() -> None:
    assert _ratio([(1.0, 2.0), (2.0, 2.0), (1.0, 2.0), (60.0, 2.0), (2.0, 3.0), (1.0, 60.0)]) == 9 / 6


def test_trained_networks_are_trained_further(
    recorded: list[Record], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved,) = folder.glob("runs/*-full-0/full/variables.npz")
    trained = saved.stat().st_mtime_ns
    found = call(monkeypatch, folder, f"run {TINY} {OTHERS} --variants continued pretrained-random")
    assert saved.stat().st_mtime_ns == trained
    continued, random = (next(r for r in found if r.variant == name) for name in ("continued", "pretrained-random"))
    assert continued.fault is random.fault is None and continued.num_steps == random.num_steps == 4
    assert continued.removed == [] and random.removed is not None and len(random.removed) == 3
    assert continued.settings_id != recorded[0].settings_id
    (log,) = folder.glob("runs/*-continued-0/full/log.jsonl")
    before, after = (read_log(path)[-1] for path in (saved.with_name("log.jsonl"), log))
    assert after["train/loss"] < before["train/loss"]


def test_network_without_a_path_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without four of DemoNet's five structures nothing is left of its branches or of its sum.
    asked = f"run {TINY} {OTHERS} --variants unchecked --target-sparsity 0.8"
    (record,) = call(monkeypatch, tmp_path, asked)
    assert record.fault is not None and record.fault.startswith("InvalidRemovalError: without the groups ")
    assert record.test_accuracy is None and record.num_params is None and record.removed is None
    assert call(monkeypatch, tmp_path, asked) == [record]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run demonet-fasion-mnist", "no row 'demonet-fasion-mnist': did you mean demonet-fashion-mnist"),
        ("run xyz", "no row 'xyz': there are demonet-fashion-mnist, .*darts-14-imagenet"),
        ("run regnet-cifar10 --scale smok", "no scale 'smok': did you mean smoke"),
        ("run regnet-cifar10 --variants h2sgp", "no variant 'h2sgp': did you mean h2spg"),
        ("ablate warm-up", "no ablation 'warm-up': did you mean warmup"),
        ("run demonet-fashion-mnist --data-dir nowhere --scale smoke", "fashion_mnist is not prepared"),
    ],
)
def test_mistakes_end_with_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, tmp_path, arguments)
    error = capsys.readouterr().err
    assert stop.value.code != 0
    assert re.fullmatch(f"error: .*{message}.*\n", error)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_record(path, RECORD)
    path.write_text(path.read_text() + '{"row": 1\n')
    with pytest.raises(ConfigError, match="line 2 of .*results.jsonl is no record"):
        read_lines(path)


def test_size_takes_the_rest_of_the_recipe_with_it() -> None:
    row = ROWS["darts-8-stl10"]
    config = Size(epochs=60, num_train=100, image_size=48, batch_size=24, target_sparsity=0.5).apply(row.config, 96)
    assert (config.epochs, config.batch_size, config.data.num_train, config.data.image_size) == (60, 24, 100, 48)
    assert config.optimizer.learning_rate == pytest.approx(0.025 / 4)
    assert (config.data.augmentation.pad_crop, config.data.augmentation.cutout) == (6, 24)
    assert config.data.augmentation.flip
    assert config.h2spg == dataclasses.replace(row.config.h2spg, target_params=None, target_sparsity=0.5)
    assert Size(target_params=7).apply(row.config, 96).h2spg == dataclasses.replace(row.config.h2spg, target_params=7)
    assert Size(epochs=40).apply(ROWS["super-resnet-2m-cifar10"].config, 32).optimizer.warmup_epochs == 4
    assert Size(epochs=80).apply(ROWS["super-resnet-2m-cifar10"].config, 32).optimizer.warmup_epochs == 5
    assert Size(auxiliary_weight=0.0).apply(row.config, 96).model == dataclasses.replace(
        row.config.model, auxiliary_weight=0.0
    )
    assert Size(drop_path=0.0).apply(row.config, 96).model == dataclasses.replace(row.config.model, drop_path=0.0)
    h2spg = dataclasses.replace(row.config.h2spg, warmup_fraction=0.1, projection_fraction=0.05)
    assert Size(warmup=0.1, projection=0.05).apply(row.config, 96).h2spg == h2spg
    given = {"settle": True, "look_every": 90, "forward_passes": 4.0}
    assert Size(**given).apply(row.config, 96).h2spg == dataclasses.replace(row.config.h2spg, **given)
    assert Size(learning_rate=0.1, batch_size=24).apply(row.config, 96).optimizer.learning_rate == 0.1
    assert Size().apply(row.config, 96) == row.config


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (Size(epochs=3), {"target_params": 1_000_000 // 16}),
        (Size(target_sparsity=0.5), {"target_sparsity": 0.5}),
        (Size(target_params=0.25), {"target_params": 0.25}),
    ],
)
def test_target_on_the_command_line_takes_the_place_of_the_scales(given: Size, targets: dict[str, float]) -> None:
    job = Job(ROWS["super-resnet-1m-cifar10"], "reduced", "h2spg", VARIANTS["h2spg"], 0, "", given)
    assert job.config.h2spg.targets == targets
    assert job.config.epochs == (given.epochs or 4) and job.config.data.num_train == 5_000


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_trained_as_they_say(name: str) -> None:
    row = ROWS[name]
    assert row.sizes["full"] == Size() and {"reduced", "smoke"} <= set(row.sizes)
    assert row.native_size == models.example_input(row.config.model.name).shape[1]
    for scale in row.sizes:
        jobs = {name: Job(row, scale, name, variant, 0, "") for name, variant in VARIANTS.items()}
        assert len({job.config.output_dir for job in jobs.values()}) == len(jobs)
        begun = [job for name, job in jobs.items() if not VARIANTS[name].pretrained]
        assert {(job.config.epochs, job.config.batch_size, job.config.seed) for job in begun} == {
            (jobs["full"].config.epochs, jobs["full"].config.batch_size, 0)
        }
        assert jobs["full"].config.train_full and not jobs["full"].config.train_h2spg
        assert not jobs["h2spg"].config.train_full and jobs["h2spg"].config.train_h2spg
        assert jobs["published"].config.h2spg.score == "published"
        assert not jobs["unchecked"].config.h2spg.hierarchical
        assert (jobs["h2spg"].changes == []) == (scale == "full")


def test_presets_are_the_rows_and_the_main_job_and_cell_searches() -> None:
    searches = {"darts-8-stl10-gated", "darts-14-imagenet-gated", "nasbench201-cifar10"}
    assert set(PRESETS) == {*ROWS, "digits", *searches}


def test_random_score_selects_valid_sets_that_the_seed_decides() -> None:
    # Two sums in a row: of each, one summand must stay.
    def fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        for names in ("ab", "cd"):
            x = sum(jnp.tanh(x @ params[name]) for name in names)
        return x

    params = {name: jnp.eye(3) for name in "abcd"}
    space = jasgnas.search_space(fn, jnp.ones((1, 3)), params=params)
    config = H2SPGConfig(target_groups=2, score="random", warmup_fraction=0.1)
    selected = set()
    for seed in range(4):
        tx = add_h2spg(optax.sgd(0.1), space, config, "sgd", lambda _: 0.1, 10, seed)
        state = tx.init(params)
        for _ in range(2):
            _, state = jax.jit(tx.update)(params, state, params)
        redundant = np.flatnonzero(jasgnas.h2spg_state(state).redundant)
        assert len(redundant) == 2 and space.is_valid(redundant)
        selected.add(tuple(redundant))
    assert len(selected) > 1


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_vary_one_setting(name: str) -> None:
    ablation = ABLATIONS[name]
    variants = ablation_variants(ablation)
    assert variants.pop("full").settings is None
    assert len(variants) == len(ablation.values)
    configs = {variant: Job(ROW, SCALE, variant, given, 0, "").config for variant, given in variants.items()}
    usual = Job(ROW, SCALE, "h2spg", VARIANTS["h2spg"], 0, "").config.h2spg
    for variant, value in zip(variants, ablation.values, strict=True):
        assert configs[variant].h2spg == dataclasses.replace(usual, **{ablation.setting: value, **ablation.beside})


# Lines of a results file: two seeds of two variants, a control of which one failed, and other rows at smoke scale.
RECORD = Record(
    row="demonet-fashion-mnist",
    scale="reduced",
    dataset="fashion_mnist",
    variant="full",
    seed=0,
    changes=["epochs: 100 → 3"],
    stands_in_for=None,
    epochs=3,
    batch_size=64,
    machine={"processor": "a processor", "jax": "0.10.2"},
    date="2026-11-22",
    command="python -m experiments.tables run demonet-fashion-mnist --scale reduced --seeds 0 1",
    settings_id="0123456789abcdef",
    origin="fashion_mnist: made from idx files",
    image_shape=[28, 28, 1],
    num_train=60_000,
    num_test=10_000,
    num_steps=2_811,
    num_params=818_250,
    macs=210_700_000,
    test_accuracy=0.91,
    test_top5=0.99,
    full_params=818_250,
    full_macs=210_700_000,
    removed=[],
    num_groups=5,
    seconds=1_800.0,
    device="1 × cpu",
)
SUBNET: dict[str, Any] = {"variant": "h2spg", "num_params": 454_000, "macs": 106_400_000}
FAILED: dict[str, Any] = {"num_params": None, "macs": None, "test_accuracy": None, "seconds": None, "fault": "Invalid"}
SMOKE: dict[str, Any] = {"scale": "smoke", "dataset": "svhn_test10k", "stands_in_for": "SVHN"}
LINES: list[dict[str, Any]] = [
    {},
    {"variant": "unchecked", "test_accuracy": 0.5},
    {"seed": 1, "test_accuracy": 0.93},
    SUBNET | {"test_accuracy": 0.90},
    SUBNET | {"seed": 1, "test_accuracy": 0.92, "num_params": 410_000},
    # The second line of the same training is the one that counts.
    {"variant": "unchecked", "num_params": 500_000, "macs": 9e7, "test_accuracy": 0.8},
    FAILED | {"variant": "unchecked", "seed": 1},
    SMOKE | {"row": "stacked-unets-svhn"},
]
REDUCED = "DemoNet on Fashion-MNIST, reduced"
SECTION = (
    "| DemoNet on Fashion-MNIST, paper | full network | 0.82 | 209 | 84.9 | | | |",
    "| DemoNet on Fashion-MNIST, paper | sub-network | 0.45 | 107 | 84.7 | | | |",
    f"| {REDUCED} | full network | 0.818 | 211 | 92.00 ± 1.41 | 2,811 | 0–1 | 1, 3 |",
    f"| {REDUCED} | H2SPG | 0.432 ± 0.031 | 106 | 91.00 ± 1.41 | 2,811 | 0–1 | 4–5 |",
    f"| {REDUCED} | control: validity ignored | 0.500 | 90 | 80.00, failed: 1 of 2 | 2,811 | 0–1 | 6–7 |",
)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    for line in lines:
        append_record(path, dataclasses.replace(RECORD, **line))
    return path


def test_section_is_made_of_the_lines(tmp_path: Path) -> None:
    text = section(write(tmp_path / "tables.jsonl", LINES), tmp_path / "none.jsonl")
    assert "\n".join(SECTION) + "\n\n" in re.sub(r" +", " ", text)
    assert "60,000 training and 10,000 test images of 28×28×1 (fashion_mnist: made from idx files), 3 epochs" in text
    assert "2,811 steps; 1 × cpu (a processor), jax 0.10.2, 2.5 hours in all" in text
    assert text.count(f"`{RECORD.command}`") == 1
    assert (
        "on its own data: DemoNet on Fashion-MNIST (reduced, lines 1, 3–7), StackedUnets on SVHN (smoke with " in text
    )
    assert (
        "with svhn_test10k in its place, line 8), StackedUnets on CIFAR-10 (not run), DARTS, 8 cells on STL-10" in text
    )


def test_row_by_the_full_recipe_is_not_missing(tmp_path: Path) -> None:
    lines = [{"scale": "full"}, SMOKE | {"row": "stacked-unets-svhn", "scale": "full"}]
    text = section(write(tmp_path / "tables.jsonl", lines), tmp_path / "none.jsonl")
    assert "on its own data: StackedUnets on SVHN (full with svhn_test10k in its place, line 2), " in text


def test_main_results_are_of_the_largest_scale(tmp_path: Path) -> None:
    scales = [{"scale": scale, "variant": variant} for scale in ("control", "full") for variant in ("full", "h2spg")]
    lines = [{**line, "macs": 100 if line["variant"] == "full" else 25, "full_macs": 100} for line in scales]
    for few, name in ((lines[:2], "control"), (lines[:3], "control"), (lines, "full")):
        text = main_results(write(tmp_path / f"{len(few)}.jsonl", few))
        assert f"| DemoNet on Fashion-MNIST, {name} |" in text and " 25 % |" in text and "| 84.9 → 84.7 |" in text
    longer = [
        line | {"scale": f"control with {given}"}
        for given in ("epochs 4", "epochs 10", "epochs 20, warmup 0.1")
        for line in lines[:2]
    ]
    for more, name in ((longer, "control with epochs 10"), (longer + lines[2:], "full")):
        assert f"| DemoNet on Fashion-MNIST, {name} |" in main_results(
            write(tmp_path / f"longer{len(more)}.jsonl", lines[:2] + more)
        )
    beside = [{"scale": "full", "variant": name, "test_accuracy": 0.8} for name in ("random", "h2spg-equal-time")]
    beside[1]["test_accuracy"] = 0.85
    text = re.sub(r" +", " ", main_results(write(tmp_path / "beside.jsonl", lines + beside)))
    assert "| training images | M parameters |" in text and ", full | 60,000 of 28×28 |" in text
    assert "| top-1 % | at equal time | random selection | seeds | device |" in text
    assert "| 91.00 → 91.00 | 85.00 | 80.00 | 0 | 1 × cpu |" in text
    stand_ins = [line | {"stands_in_for": "Fashion-MNIST"} for line in lines]
    assert "DemoNet" not in main_results(write(tmp_path / "stand_ins.jsonl", stand_ins))


def test_stand_in_is_never_called_what_it_stands_for(tmp_path: Path) -> None:
    line = SMOKE | {"row": "stacked-unets-svhn", "scale": "reduced"}
    text = section(write(tmp_path / "tables.jsonl", [line]), tmp_path / "none.jsonl")
    assert "StackedUnets on svhn_test10k, which is not SVHN; reduced |" in text
    assert "StackedUnets on SVHN, reduced" not in text


ABLATED = [
    {"row": ROW.preset, "scale": SCALE, "variant": variant, "seed": seed, "test_accuracy": 0.5 + place / 10 + seed / 50}
    for seed in (0, 1)
    for place, variant in enumerate(["full", *(variant_name(ABLATIONS["epsilon"], v) for v in (0.0, 0.5))])
]


def test_ablations_are_tabulated(tmp_path: Path) -> None:
    text = section(tmp_path / "none.jsonl", write(tmp_path / "ablations.jsonl", ABLATED))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    start = next(
        place for place, row in enumerate(rows) if row and "experiments/results/ablations/epsilon.svg" in row[0]
    )
    assert [row[1:] for row in rows[start : start + 2]] == [
        ["0.0", "0.818", "61.00 ± 1.41", "0–1", "2, 5"],
        ["0.5", "0.818", "71.00 ± 1.41", "0–1", "3, 6"],
    ]
    assert not rows[start + 1][0]  # named once
    assert "full network, of 0.818 M parameters, has 51.00 ± 1.41 % (lines 1, 4)" in text


def test_ablations_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = summaries(read_lines(write(tmp_path / "ablations.jsonl", ABLATED)).values())
    paths = tmp_path / "a" / "one.svg", tmp_path / "two.svg"
    for path in paths:
        plot("epsilon", found, path)
    drawn = paths[0].read_text()
    assert drawn == paths[1].read_text()
    assert drawn.count(">0.5</text>") == 1 and ">full network</text>" in drawn
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'jasgnas\[plots\]'"):
        plot("epsilon", found, paths[0])


def test_recorded_ablation_is_only_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tables.jobs.run", lambda config: pytest.fail("trained"))
    variants = ablation_variants(ABLATIONS["periods"])
    jobs = [Job(ROW, SCALE, variant, settings, 0, "") for variant, settings in variants.items()]
    write(tmp_path / "results.jsonl", [job.key._asdict() | {"settings_id": job.settings_id} for job in jobs])
    call(monkeypatch, tmp_path, f"ablate periods --plots {tmp_path}")
    assert (tmp_path / "periods.svg").exists()


def test_recorded_ablations_are_those_of_the_present_settings() -> None:
    """A new setting changes no training in which it is as it always was, so that none is done again for it."""
    variants = {name: how for ablation in ABLATIONS.values() for name, how in ablation_variants(ablation).items()}
    recorded = [line for line in read_lines(ROOT / tables.ABLATED).values() if line.record.scale == SCALE]
    assert recorded
    for record in (line.record for line in recorded):
        job = Job(ROW, SCALE, record.variant, variants[record.variant], record.seed, "")
        assert job.settings_id == record.settings_id


@pytest.mark.parametrize("variant", ["full", "h2spg"])
def test_record_of_other_settings_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr("experiments.tables.jobs.run", lambda config: (_ for _ in ()).throw(DivergedError("trained")))
    job = Job(ROW, SCALE, variant, VARIANTS[variant], 0, "")
    others = {
        "another recipe": dataclasses.replace(job, row=dataclasses.replace(ROW, preset="regnet-cifar10")),
        "another H2SPG": dataclasses.replace(job, how=Variant("", None if variant == "full" else {"epsilon": 0.5})),
        "another folder": dataclasses.replace(job, data_dir=tmp_path, output_dir=tmp_path, quiet=True),
    }
    trains = {
        name: [str(record.fault).startswith("DivergedError: trained") for record in perform([job], results)] == [True]
        for name, other in others.items()
        for results in [write(tmp_path / f"{name}.jsonl", [job.key._asdict() | {"settings_id": other.settings_id}])]
    }
    assert trains == {"another recipe": True, "another H2SPG": variant == "h2spg", "another folder": False}


def test_rows_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "tables.jsonl", LINES)
    monkeypatch.setattr("rich._console", Console(width=250))  # the one that is printed to keeps its first width
    monkeypatch.setattr("sys.argv", ["tables", "list", f"--results={results}"])
    tables.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ROWS)
    for text in (
        "84.9 %",
        "reduced, H2SPG: 91.00 ± 1.41 % (seeds 0–1)",
        "smoke on svhn_test10k, full network",
        "nothing",
    ):
        assert text in printed


def test_rows_are_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich._console", Console(width=80))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["tables"])
    tables.main()
    printed = capsys.readouterr().out
    assert "…" not in printed and max(map(len, printed.splitlines())) == 80
    assert all(name in printed for name in (*ROWS, "svhn_test10k", "imagenette_96", "multiply-adds", "augmentation"))


def test_help_names_every_variant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["tables", "run", "--help"])
    with pytest.raises(SystemExit):
        tables.main()
    printed = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    text = printed[printed.index("--variants") : printed.index("--results")]
    assert VARIANTS.keys() == set(re.findall(r"`([^`]+)` \(", text))
    assert all(f"`{name}` ({variant.label})" in text for name, variant in VARIANTS.items())


def test_page_is_written_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, results = tmp_path / "docs" / "page.md", write(tmp_path / "tables.jsonl", LINES)
    page.parent.mkdir()
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MAIN_START}\n{END}\nafter\n")
    arguments = ["tables", "page", f"--page={page}", f"--readme={readme}", f"--tables={results}"]
    arguments.append(f"--ablations={tmp_path / 'none'}")
    monkeypatch.setattr("sys.argv", arguments)
    tables.main()
    text = page.read_text()
    assert text == f"before\n{section(results, tmp_path / 'none', page)}\nafter\n"
    assert "[tables.jsonl](../tables.jsonl)" in text
    assert readme.read_text() == f"before\n{main_results(results)}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit):
        tables.main()


def test_page_shows_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path, new in ((PAGE, section()), (README, main_results())):
        text = path.read_text()
        assert replaced(text, new) == text


def test_recorded_results_name_no_folder_of_a_machine() -> None:
    for path in (ROOT / "experiments" / "results").glob("*.jsonl"):
        for line in read_lines(path).values():
            assert not re.search(r'[\s"=]/\w', json.dumps(dataclasses.asdict(line.record)))
