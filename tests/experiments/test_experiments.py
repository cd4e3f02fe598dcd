"""The main job from the command line to its results."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import experiments
import jasgnas
from experiments import demo, train
from experiments.benchmarks.training import Trained
from experiments.common.cli import run_command
from experiments.common.errors import ConfigError, DivergedError, Interrupted
from experiments.common.text import show
from experiments.data import open_dataset
from experiments.engine import job
from experiments.engine.compare import Comparison, compare
from experiments.engine.config import Config, H2SPGConfig, ModelConfig, OptimizerConfig, ParallelConfig, to_json
from experiments.engine.logs import read_log
from experiments.engine.networks import create_module
from experiments.engine.parallel import start
from experiments.engine.presets import DIGITS, PRESETS, read_config
from experiments.engine.runs import Run, check_folder, claimed_folder, noted_fault, read_finished
from experiments.genotype import genotype
from models.demo_net import DemoNet

SMALL = dataclasses.replace(
    DIGITS,
    epochs=2,
    batch_size=256,
    model=ModelConfig("demo_net", {"width": 0.1}),
    h2spg=H2SPGConfig(target_groups=2),
    parallel=ParallelConfig(devices=1),
    quiet=True,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, job.Results]:
    config = dataclasses.replace(SMALL, output_dir=tmp_path_factory.mktemp("run"))
    return config, job.run(config)


def test_main_job_leaves_its_results(finished: tuple[Config, job.Results]) -> None:
    config, results = finished
    assert len(results.removed) == 2 and results.num_groups == 5
    assert results.full is not None
    assert results.subnet.num_params < results.full.num_params and results.subnet.macs < results.full.macs
    assert results.comparison.sparse_accuracy == results.comparison.subnet_accuracy
    assert results.full.test_accuracy > 0.2 and results.full.test_top5 > results.full.test_accuracy

    folder = config.output_dir
    saved = json.loads((folder / "results.json").read_text())
    assert saved["removed"] == results.removed and saved["subnet"]["num_params"] == results.subnet.num_params
    assert json.loads((folder / "config.json").read_text())["h2spg"]["target_groups"] == 2
    assert all(name in (folder / "search_space.txt").read_text() for name in results.removed)
    report = (folder / "report.html").read_text()
    assert results.removed[0] in report and '"target_groups":2' in report
    at_construction = f'"construction":"{results.comparison.subnet_accuracy:.2%}"'
    assert at_construction in report and '"text":"shrunk: 2 groups cut out"' in report
    for name in ("full", "h2spg"):
        log = read_log(folder / name / "log.jsonl")
        assert [record["step"] for record in log] == [5, 10]
        assert all(np.isfinite(record["train/loss"]) and "test/accuracy" in record for record in log)
        network = results.full if name == "full" else results.subnet
        assert 0 < log[0]["seconds"] < log[1]["seconds"] < network.training_seconds
        assert list((folder / name / "events").iterdir())
    assert log[-1]["num_zero"] == 2 and log[-1]["phase"] == 2
    (explained,) = (record for record in log if record.get("scores"))
    assert len(explained["scores"]) == explained["num_groups"] and explained["runner_up"] >= -1
    assert len(explained["redundant"]) == explained["num_groups"] and sum(explained["redundant"]) == 2
    assert '"scores":{' in report


def test_subnet_comes_back_in_one_line(finished: tuple[Config, job.Results]) -> None:
    config, results = finished
    subnet = experiments.load(config.output_dir)
    assert experiments_params(subnet) == results.subnet.num_params
    dataset = open_dataset("digits")
    images, labels = dataset.test.load(np.arange(360))
    mean, std = dataset.normalisation
    logits = subnet(jnp.asarray((images / 255 - mean[0]) / std[0], jnp.float32))
    assert np.mean(logits.argmax(axis=1) == labels) == pytest.approx(results.subnet.test_accuracy)


def test_only_networks_with_cells_have_a_genotype(finished: tuple[Config, job.Results]) -> None:
    with pytest.raises(ConfigError, match="the network demo_net has no cells"):
        genotype(read_finished(finished[0].output_dir))


def test_gates_that_are_not_asked_for_cannot_be_left_out() -> None:
    config = dataclasses.replace(SMALL, model=ModelConfig("demo_net", ungated=("gates/*",)))
    with pytest.raises(ConfigError, match="model.ungated names gates .* model.gated is off"):
        create_module(config, 10, (8, 8, 1))


def test_comparison_counts_what_each_network_gets_right() -> None:
    dataset = open_dataset("digits")
    run = Run(SMALL, dataset, start(SMALL.parallel))  # 360 test images, so that the second batch is filled up
    module = create_module(SMALL, 10, (8, 8, 1))
    module.eval()
    images, labels = dataset.test.load(np.arange(360))
    mean, std = dataset.normalisation
    logits = np.array(module(jnp.asarray((images / 255 - mean[0]) / std[0], jnp.float32)))
    # To the nearest image: two logits may lie as close together as they are rounded.
    accuracy = pytest.approx(np.mean(logits.argmax(axis=1) == labels), abs=1.5 / 360)
    found = compare(run, module, module)
    assert (found.sparse_accuracy, found.subnet_accuracy, found.largest_difference) == (accuracy, accuracy, 0)
    assert found.largest_output == pytest.approx(np.abs(logits).max(), rel=1e-4)
    other = create_module(dataclasses.replace(SMALL, seed=1), 10, (8, 8, 1))
    with pytest.raises(jasgnas.VerificationError, match="differ from the sparse network's by up to"):
        compare(run, module, other)


def experiments_params(module) -> int:
    from experiments.engine.networks import inference_params

    return inference_params(module)


def test_same_command_again_only_reads_the_results(
    finished: tuple[Config, job.Results], capsys: pytest.CaptureFixture[str]
) -> None:
    config, results = finished
    assert job.run(config) == results
    train.run_and_report(config)
    assert "Finished before" in capsys.readouterr().out


def test_table_shows_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    results = job.Results(
        full=job.NetworkResults(1000, 2000, 0.5, 0.6, 1.0, 20.0),
        subnet=job.NetworkResults(500, 1500, 0.25, 0.3, 2.0, 30.0),
        removed=["conv2", "conv3"],
        num_groups=5,
        full_params=1000,
        full_macs=2000,
        comparison=Comparison(10.0, 1e-6, 0.125, 0.375),
        seconds={"search space": 0.0432, "construction and comparison": 0.00071},
        dataset="digits",
        image_shape=[8, 8, 1],
        num_train=10,
        num_test=5,
        num_steps=4,
        device="cpu",
        versions={},
    )
    show(train.results_table(Config(), results))
    show(train.results_table(Config(), dataclasses.replace(results, full=None)))
    alone = dataclasses.replace(results, subnet=None, removed=[], comparison=None)
    show(train.results_table(Config(), alone))
    printed, without_full, without_subnet = capsys.readouterr().out.split("demo_net on digits")[1:]
    assert "25.00%" in without_full and "50.00%" not in without_full
    assert "50.00%" in without_subnet and "25.00%" not in without_subnet
    for text in (
        "1,000",
        "500 (50%)",
        "1,500 (75%)",
        "50.00%",
        "25.00%",
        "conv2",
        "conv3",
        "1.0e-06",
        "20.0",
        "30.0",
        "0.043",
        "0.00071",
    ):
        assert text in printed
    assert "12.50%" in printed and "37.50%" in printed


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        (["--h2spg.target-groups", "4"], "error: .*at most 3", 1),
        (["--data.name", "fashion_mnist", "--data.data-dir", "nowhere"], "error: fashion_mnist is not prepared", 1),
        (["--data.name", "digit"], "error: no data set is called 'digit'.*did you mean digits", 1),
        (["--batch-size", "2000"], "error: .*1437 training images", 1),
        (["--batch-size", "63", "--accumulate", "2"], "error: .*63 images cannot be divided", 2),
        (["--no-train-full", "--no-train-h2spg"], "error: .*nothing to train", 2),
        (["--epochs", "0"], "error: .*epochs must be at least 1", 2),
        (["--optimizer.learning-rate", "-1"], "error: optimizer.learning_rate must be positive and finite, got -1", 2),
        (["--data.num-test", "0"], "error: data.num_test must be at least 1, got 0", 2),
        (["--h2spg.score", "beauty"], "error: .*beauty", 1),
        (
            ["--h2spg.target-groups", "3", "--h2spg.target-macs", "0.5"],
            "error: exactly one .*target_groups=3, target_macs=0.5.*`--h2spg.target-groups None`",
            2,
        ),
        (["--h2spg.target-groups", "None"], "error: exactly one of target_groups, .* got none. Give one", 2),
        (["--h2spg.warmup-fraction", "0.95"], "error: .*add up to 1", 2),
        (["--model.name", "demonet"], "error: .*demo_net", 2),
        (["--model.drop-path", "0.5"], "error: .*drop_path_rate", 2),
        (["--parallel.devices", "99"], "error: parallel.devices is 99; this process has 8", 2),
        (["--parallel.devices", "7"], "error: a batch of 64 images cannot be divided equally among 7 devices", 2),
        (["--output-dir", "/dev/null/run"], "error: .*cannot be written: Not a directory.*--output-dir", 1),
    ],
)
def test_mistakes_end_with_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    exit_code: int,
) -> None:
    given = ["demo", "--output-dir", str(tmp_path), "--model.options", "width", "0.1", *arguments]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit) as stop:
        demo.main()
    assert stop.value.code == exit_code
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # so that nothing refuses the corrected command


def test_run_that_diverged_leaves_its_folder_to_the_corrected_one(tmp_path: Path) -> None:
    # Only the second epoch diverges, when a checkpoint is there.
    diverging = OptimizerConfig(schedule="step", step_epochs=(1,), step_factor=1e30)
    wrong = dataclasses.replace(SMALL, output_dir=tmp_path, optimizer=diverging, train_full=False)
    with pytest.raises(DivergedError, match=r"A lower optimizer.learning_rate"):
        job.run(wrong)
    checkpoints = tmp_path / "h2spg" / "checkpoints"
    assert [path for path in checkpoints.iterdir() if path.name.isdigit()]
    assert (tmp_path / "fault.txt").read_text().startswith("DivergedError: ")
    with claimed_folder(dataclasses.replace(SMALL, output_dir=tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (DivergedError("the loss"), True),
        (jasgnas.InvalidRemovalError("no path is left"), True),
        (Interrupted("stopped", 15), False),
        (OSError("disk full"), False),
    ],
)
def test_folder_is_left_only_by_what_the_same_settings_would_come_to_again(
    tmp_path: Path, error: Exception, is_final: bool
) -> None:
    config = dataclasses.replace(SMALL, output_dir=tmp_path)
    other = dataclasses.replace(config, seed=1)
    checkpoint = tmp_path / "full" / "checkpoints" / "10"
    with pytest.raises(type(error)), claimed_folder(config), noted_fault(tmp_path):
        checkpoint.mkdir(parents=True)
        raise error
    if is_final:
        check_folder(other)
    else:
        with pytest.raises(ConfigError, match="seed: 0 → 1"):
            check_folder(other)
    with claimed_folder(config):  # the same settings go on from there
        assert checkpoint.exists() and not (tmp_path / "fault.txt").exists()


def test_refused_restart_leaves_what_is_there(finished: tuple[Config, job.Results]) -> None:
    config, results = finished
    wrong = dataclasses.replace(config, restart=True, h2spg=H2SPGConfig(target_groups=4))
    with pytest.raises(jasgnas.TargetError):
        job.run(wrong)
    assert job.run(config) == results


def test_construction_is_timed_where_it_happens_and_outlives_a_start(
    finished: tuple[Config, job.Results], tmp_path: Path
) -> None:
    config, results = finished
    seconds = results.seconds["construction and comparison"]
    assert results.subnet is not None and 0.02 < seconds < results.subnet.training_seconds
    again = dataclasses.replace(config, output_dir=tmp_path / "again")
    shutil.copytree(config.output_dir, again.output_dir)
    (again.output_dir / "results.json").unlink()  # as if it had been killed just before
    (again.output_dir / "config.json").write_text(to_json(again))
    assert job.run(again).seconds["construction and comparison"] == seconds


def test_construction_at_the_end_is_timed_too(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, output_dir=tmp_path, train_full=False, shrink=False, epochs=1)
    assert job.run(config).seconds["construction and comparison"] > 0.02


def test_images_that_a_network_cannot_take_are_refused(tmp_path: Path) -> None:
    model = ModelConfig("darts_8_stl10", {"features": 4, "num_cells": 3}, auxiliary_weight=0.4)
    config = dataclasses.replace(SMALL, model=model, output_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="network darts_8_stl10 cannot take images of 8×8×1: .*data.image_size"):
        job.run(config)
    assert not (tmp_path / "run").exists()


def read(monkeypatch: pytest.MonkeyPatch, command: str) -> dict[str, int | float]:
    """Returns the targets that a command line asks for."""
    name, *arguments = command.split()
    monkeypatch.setattr("sys.argv", [name, *arguments])
    presets = PRESETS if name == "train" else {"digits": ("the main job", DIGITS)}
    return read_config(presets, (train if name == "train" else demo)._parse).h2spg.targets


def test_target_on_the_command_line_takes_the_place_of_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    for command, targets in {
        "demo": {"target_groups": 3},
        "demo --h2spg.target-params 300000": {"target_params": 300_000},
        "demo --h2spg.target-macs 0.5": {"target_macs": 0.5},
        "demo --h2spg.target-groups 3 --h2spg.target-macs 0.5": {"target_groups": 3, "target_macs": 0.5},
        "train digits --h2spg.target-sparsity 0.4": {"target_sparsity": 0.4},
        "train stacked-unets-svhn --h2spg.target-params 0.25": {"target_params": 0.25},
        "train stacked-unets-svhn --h2spg.target-groups 2 --epochs 3": {"target_groups": 2},
        "train stacked-unets-svhn --epochs 3": {"target_params": 375_000},
    }.items():
        found = read(monkeypatch, command)
        assert found == targets and list(map(type, found.values())) == list(map(type, targets.values())), command


FOLDER = Path(experiments.__file__).parent


def commands() -> list[str]:
    """Returns the modules that can be run."""
    paths = [path for path in FOLDER.rglob("*.py") if '"__main__"' in path.read_text()]
    return sorted(path.parent.name if path.stem == "__main__" else path.stem for path in paths)


def module_of(command: str) -> ModuleType:
    """Returns the module that is run; rooms that can be run have one of their own for it."""
    is_room = (FOLDER / command).is_dir()
    return importlib.import_module(f"experiments.{command}" + (".__main__" if is_room else ""))


def test_rooms_import_only_what_lies_above_them() -> None:
    rooms = {
        "common": set(),
        "data": {"common"},
        "engine": {"common", "data"},
        "tables": {"common", "data", "engine"},
        "benchmarks": {"common", "data", "engine"},
        "oracle": {"common", "data", "engine"},
        "nasbench201": {"common", "data", "engine"},
        "language": {"common"},
        "gpu": {"common", "data", "engine", "tables", "benchmarks", "nasbench201"},
    }
    assert {path.parent.name for path in FOLDER.glob("*/*.py")} == rooms.keys()
    for room, others in rooms.items():
        code = "\n".join(path.read_text() for path in (FOLDER / room).glob("*.py"))
        imported = re.findall(r"^ *(?:from|import) experiments\b\.?(\w*)", code, re.MULTILINE)
        assert {room, *others}.issuperset(imported), room


@pytest.mark.parametrize("name", commands())
def test_commands_are_called_by_the_names_that_they_are_run_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module = module_of(name)
    for argument, expected in (("--help", 0), ("--nope", 2)):
        monkeypatch.setattr("sys.argv", [str(module.__file__), argument])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == expected
    printed = capsys.readouterr()
    assert re.match(rf"usage: python -m experiments\.{name} ", printed.out)
    told = re.sub(r"[│\s]+", " ", printed.err)
    assert f"python -m experiments.{name} " in told and ".py" not in told


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("model_table", "demo_nett", "no network 'demo_nett': did you mean demo_net"),
        ("check_mixtures", "--networks demo_nett", "no network 'demo_nett': did you mean demo_net"),
        ("paper_subnets", "demonet", "no sub-network 'demonet': did you mean DemoNet"),
        ("benchmarks", "--only trainin", "no benchmark 'trainin': did you mean training"),
        ("bench_analysis", "--networks demo_nett 2", "no network 'demo_nett': did you mean demo_net"),
        ("bench_h2spg", "--networks demo_nett 2", "no network 'demo_nett': did you mean demo_net"),
        ("bench_latency", "--networks demo_nett 2", "no network 'demo_nett': did you mean demo_net"),
        ("bench_input", "--recipes digit", "no recipe 'digit': did you mean digits"),
        ("bench_report", "demo_nett", "no network 'demo_nett': did you mean demo_net"),
        ("bench_channels", "--networks demo_nett", "no network 'demo_nett': did you mean demo_net"),
        ("bench_saved", "--networks demo_nett", "no network 'demo_nett': did you mean demo_net"),
        ("bench_subnet", "--networks DemoNett 2", "no network 'DemoNett': did you mean DemoNet"),
        ("bench_training", "--rows digit digits", "no preset 'digit': did you mean digits"),
        ("model_table", "demo_net --output /dev/null/run", "Not a directory"),
        ("tables", "list --results nowhere", "no results file nowhere"),
        ("prepare", "nosuch", "TFDS knows no data set 'nosuch'"),
        ("prepare", "digits", "the digits are embedded"),
        ("prepare", "own --source README.md", "README.md is no readable tar: file could not be opened"),
    ],
)
def test_mistakes_of_every_command_end_with_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, arguments: str, message: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr("sys.argv", [name, *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        module_of(name).main()
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2) and re.match(f"error: .*{message}", error) and error.count("\n") == 1


def test_time_to_an_accuracy_is_that_of_the_first_test_that_shows_it() -> None:
    network = job.NetworkResults(1, 1, 0.7, 0.9, 1.0, 40.0)
    trained = Trained(network, ((10.0, 0.4), (20.0, 0.65), (30.0, 0.6), (39.0, 0.7)))
    assert [trained.seconds_to(accuracy) for accuracy in (0.3, 0.6, 0.65, 0.7)] == [10.0, 20.0, 20.0, 39.0]


def test_interrupted_command_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(interrupted)
    assert stop.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("width", [20, 80, 200])
def test_tables_never_cut_a_word_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr("rich._console", Console(width=width))
    words = ["super-resnet-1m-cifar10", "cells_0-edges_3-sep_conv_5x5", "multiply-adds", "several words to wrap " * 9]
    table = Table("name", "long heading", "b", "c", title="a title")
    table.add_row(*words)
    show(table)
    printed = capsys.readouterr().out
    assert "…" not in printed and all(word in printed for text in words for word in text.split())
    needed = len("".join(words[:3])) + len("several") + 13  # the frame of four columns
    widest = max(len(line.rstrip()) for line in printed.splitlines())
    assert widest == needed if width < needed else needed < widest <= width


def test_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    command = [sys.executable, "-m", "experiments.demo", "--output-dir", str(tmp_path / "run"), "--quiet"]
    if os.access(tmp_path, os.W_OK):  # as the superuser, who first has to give up writing everywhere
        if shutil.which("setpriv") is None:
            pytest.skip("this user may write everywhere")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: the output folder .* cannot be written: Permission denied.*--output-dir\n", done.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["--optimizer.lr", "1"], ["--epochs", "three"]])
def test_unknown_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["demo", *arguments])
    with pytest.raises(SystemExit) as stop:
        demo.main()
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_documents_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        demo.main()
    printed = capsys.readouterr().out
    for option in ("--epochs", "--data.augmentation.cutmix", "--parallel.mode", "--h2spg.target-params", "--ema"):
        assert option in printed
    fields = [field for field in dataclasses.fields(Config) if not dataclasses.is_dataclass(field.type)]
    assert all(f"--{field.name.replace('_', '-')}" in printed for field in fields)


def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "parameters became" in capsys.readouterr().out


def test_default_network_of_the_main_job_is_the_papers() -> None:
    assert DIGITS.model == ModelConfig("demo_net") and DemoNet.__init__.__kwdefaults__["width"] == 1.0
