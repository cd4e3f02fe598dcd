"""The main job from the command line to its results."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import experiments
import jasgnas
from experiments import demo, train
from experiments.compare import Comparison, compare
from experiments.config import Config, H2SPGConfig, ModelConfig, ParallelConfig
from experiments.logs import read_log
from experiments.networks import create_module
from experiments.parallel import start
from experiments.presets import DIGITS
from experiments.runs import Run
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, train.Results]:
    config = dataclasses.replace(SMALL, output_dir=tmp_path_factory.mktemp("run"))
    return config, train.run(config)


def test_main_job_leaves_its_results(finished: tuple[Config, train.Results]) -> None:
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
    assert results.removed[0] in (folder / "report.html").read_text()
    for name in ("full", "h2spg"):
        log = read_log(folder / name / "log.jsonl")
        assert [record["step"] for record in log] == [5, 10]
        assert all(np.isfinite(record["train/loss"]) and "test/accuracy" in record for record in log)
        assert list((folder / name / "events").iterdir())
    assert log[-1]["num_zero"] == 2 and log[-1]["phase"] == 2


def test_subnet_comes_back_in_one_line(finished: tuple[Config, train.Results]) -> None:
    config, results = finished
    subnet = experiments.load(config.output_dir)
    assert experiments_params(subnet) == results.subnet.num_params
    dataset = train.open_dataset("digits")
    images, labels = dataset.test.load(np.arange(360))
    mean, std = dataset.normalisation
    logits = subnet(jnp.asarray((images / 255 - mean[0]) / std[0], jnp.float32))
    assert np.mean(logits.argmax(axis=1) == labels) == pytest.approx(results.subnet.test_accuracy)


def test_comparison_counts_what_each_network_gets_right() -> None:
    dataset = train.open_dataset("digits")
    run = Run(SMALL, dataset, start(SMALL.parallel))  # 360 test images, so that the second batch is filled up
    module = create_module(SMALL, 10, 1)
    module.eval()
    images, labels = dataset.test.load(np.arange(360))
    mean, std = dataset.normalisation
    logits = np.array(module(jnp.asarray((images / 255 - mean[0]) / std[0], jnp.float32)))
    # To the nearest image: two logits may lie as close together as they are rounded.
    accuracy = pytest.approx(np.mean(logits.argmax(axis=1) == labels), abs=1.5 / 360)
    found = compare(run, module, module)
    assert (found.sparse_accuracy, found.subnet_accuracy, found.largest_difference) == (accuracy, accuracy, 0)
    assert found.largest_output == pytest.approx(np.abs(logits).max(), rel=1e-4)
    other = create_module(dataclasses.replace(SMALL, seed=1), 10, 1)
    with pytest.raises(jasgnas.VerificationError, match="differ from the sparse network's by up to"):
        compare(run, module, other)


def experiments_params(module) -> int:
    from experiments.networks import inference_params

    return inference_params(module)


def test_same_command_again_only_reads_the_results(
    finished: tuple[Config, train.Results], capsys: pytest.CaptureFixture[str]
) -> None:
    config, results = finished
    assert train.run(config) == results
    train.run_and_report(config)
    assert "Finished before" in capsys.readouterr().out


def test_table_shows_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    results = train.Results(
        full=train.NetworkResults(1000, 2000, 0.5, 0.6, 1.0, 20.0),
        subnet=train.NetworkResults(500, 1500, 0.25, 0.3, 2.0, 30.0),
        removed=["conv2", "conv3"],
        num_groups=5,
        full_params=1000,
        full_macs=2000,
        comparison=Comparison(10.0, 1e-6, 0.125, 0.375),
        seconds={"search space": 1.0, "construction and comparison": 2.0},
        dataset="digits",
        image_shape=[8, 8, 1],
        num_train=10,
        num_test=5,
        num_steps=4,
        device="cpu",
        versions={},
    )
    train.rich.print(train.results_table(Config(), results))
    train.rich.print(train.results_table(Config(), dataclasses.replace(results, full=None)))
    alone = dataclasses.replace(results, subnet=None, removed=[], comparison=None)
    train.rich.print(train.results_table(Config(), alone))
    printed, without_full, without_subnet = capsys.readouterr().out.split("demo_net on digits")[1:]
    assert "25.00%" in without_full and "50.00%" not in without_full
    assert "50.00%" in without_subnet and "25.00%" not in without_subnet
    for text in ("1,000", "500 (50%)", "1,500 (75%)", "50.00%", "25.00%", "conv2", "conv3", "1.0e-06", "20.0", "30.0"):
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
    assert not (tmp_path / "results.json").exists()


def test_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    command = [sys.executable, "-m", "experiments.demo", "--output-dir", str(tmp_path / "run"), "--quiet"]
    if os.access(tmp_path, os.W_OK):  # as the superuser, who first has to give up writing everywhere
        if shutil.which("setpriv") is None:
            pytest.skip("this user may write everywhere")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
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
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "parameters became" in capsys.readouterr().out


def test_default_network_of_the_main_job_is_the_papers() -> None:
    assert DIGITS.model == ModelConfig("demo_net") and DemoNet.__init__.__kwdefaults__["width"] == 1.0
