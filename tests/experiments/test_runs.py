"""Runs that are stopped, damaged, misused or continued."""

import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import experiments
from experiments.common.errors import CheckpointError, ConfigError, DivergedError, Interrupted, OutputError
from experiments.common.files import save_arrays, write_atomically
from experiments.data.datasets import open_dataset
from experiments.engine import logs
from experiments.engine.checkpoints import Checkpoints, CheckpointWarning, Position
from experiments.engine.compare import Comparison
from experiments.engine.config import Config, H2SPGConfig, ModelConfig, ParallelConfig, differences, from_json, to_json
from experiments.engine.logs import RunLog, describe, read_log
from experiments.engine.networks import create_module
from experiments.engine.parallel import start
from experiments.engine.presets import PRESETS
from experiments.engine.runs import Run, claimed_folder, save_full, start_from
from experiments.engine.training import stop_requests

ROOT = Path(__file__).parents[2]
STATE = {"a": np.arange(12.0).reshape(3, 4), "b": (np.int32(3), np.array([True, False]), np.zeros((0, 2)))}


def position_at(step: int) -> Position:
    return Position(step, {"next_index": step}, (1, 3), 2.5, Comparison(10.0, 1e-6, 0.75, 0.5), 0.25)


def saved(folder: Path, steps: tuple[int, ...] = (5, 10)) -> Path:
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in steps:
            state = STATE | {"a": STATE["a"] + step}
            checkpoints.save(state, position_at(step))
    return folder


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    with Checkpoints(saved(tmp_path, (5, 10, 15)), keep=2) as checkpoints:
        position = checkpoints.latest()
        assert position == position_at(15)
        restored = checkpoints.restore(STATE, position)
    np.testing.assert_array_equal(restored["a"], STATE["a"] + 15)
    assert restored["b"][0] == 3 and restored["b"][0].dtype == np.int32
    assert restored["b"][1].tolist() == [True, False] and restored["b"][2].shape == (0, 2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["10", "15"]


def test_no_checkpoint_is_no_fault(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None


def files_of(step: Path) -> list[Path]:
    """Returns the files that hold data."""
    return [path for path in step.rglob("*") if path.is_file() and path.stat().st_size and path.name != "_METADATA"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads, after an error
def test_any_damaged_file_sends_back_to_the_last_good_checkpoint(tmp_path: Path) -> None:
    names = [path.relative_to(tmp_path / "0" / "10") for path in files_of(saved(tmp_path / "0") / "10")]
    damaging = 0
    for index, name in enumerate(names):
        folder = saved(tmp_path / f"run{index}")
        matching = sorted(path for path in files_of(folder / "10") if path.parent.name == name.parent.name)
        for path in matching:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        with Checkpoints(folder, keep=2) as checkpoints:
            try:
                with pytest.warns(CheckpointWarning, match="step 10 is damaged and deleted"):
                    position = checkpoints.latest()
                damaging += 1
            except pytest.fail.Exception:
                # A file that is not read, or is there twice: then what was read is proved right.
                assert checkpoints.latest().step == 10
                continue
            assert position.step == 5
            np.testing.assert_array_equal(checkpoints.restore(STATE, position)["a"], STATE["a"] + 5)
            assert not (folder / "10").exists()
            checkpoints.save(STATE, Position(10, {}))
    assert damaging >= 2


def test_flipped_bits_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    read = Checkpoints._read_arrays

    def flipped(self: Checkpoints, step: int, record: dict) -> dict[str, np.ndarray]:
        arrays = read(self, step, record)
        return arrays | {"a": arrays["a"] + (step == 10)}

    monkeypatch.setattr(Checkpoints, "_read_arrays", flipped)
    with (
        Checkpoints(tmp_path, keep=2) as checkpoints,
        pytest.warns(CheckpointWarning, match="a is not what was written"),
    ):
        assert checkpoints.latest().step == 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (STATE | {"c": np.zeros(2)}, "c is missing"),
        ({"a": STATE["a"]}, "b.0 is too many"),
        (STATE | {"a": np.zeros((4, 3))}, r"a is float64\[3, 4\] instead of float64\[4, 3\]"),
        (STATE | {"a": np.zeros((3, 4), np.float32)}, "a is float64"),
    ],
)
def test_checkpoints_of_another_training_are_refused(tmp_path: Path, state: dict, message: str) -> None:
    with Checkpoints(saved(tmp_path), keep=2) as checkpoints:
        position = checkpoints.latest()
        with pytest.raises(CheckpointError, match=f"does not belong to this training: .*{message}.*--restart"):
            checkpoints.restore(state, position)


def test_nothing_infinite_is_saved(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(DivergedError, match="a hold NaN or infinity after step 7"):
            checkpoints.save(STATE | {"a": np.array([1.0, np.nan])}, Position(7, {}))
        assert checkpoints.latest() is None


def test_first_signal_asks_and_second_stops() -> None:
    # A process that was started in the background by a shell ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests() as request:
        request.raise_if_made("never")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped") as stop:
            request.raise_if_made("stopped")
        assert stop.value.exit_code == 128 + signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_configs_survive_json() -> None:
    fraction = Config(h2spg=H2SPGConfig(target_macs=0.5))
    for config in (fraction, *(preset for _, preset in PRESETS.values())):
        assert from_json(to_json(config)) == config and differences(config, from_json(to_json(config))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "no setting epoch: did you mean epochs"),
        (
            '{"data": {"augmentation": {"cutou": 3}}}',
            "no setting data.augmentation.cutou: did you mean data.augmentation",
        ),
        ('{"zzz": 1}', "no setting zzz: there are output_dir"),
        ("{", "no JSON"),
    ],
)
def test_unknown_keys_of_a_config_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(text)


def claim(config: Config) -> None:
    with claimed_folder(config):
        pass


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    config = Config(output_dir=tmp_path / "run")
    with claimed_folder(config):
        for other in (config, dataclasses.replace(config, seed=1), dataclasses.replace(config, restart=True)):
            with pytest.raises(OutputError, match="another run is at work in .*run. Wait .*--output-dir"):
                claim(other)
    claim(dataclasses.replace(config, seed=1))


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    config = Config(output_dir=tmp_path / "run", h2spg=H2SPGConfig(target_groups=2))
    claim(config)
    claim(dataclasses.replace(config, quiet=True, keep_checkpoints=5))
    other = dataclasses.replace(config, h2spg=H2SPGConfig(target_groups=3), epochs=3)
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"epochs: 15 → 3; h2spg.target_groups: 2 → 3|target_groups: 2 → 3; epochs"):
        claim(other)
    (tmp_path / "run" / "h2spg").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    claim(dataclasses.replace(other, restart=True))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "notes.txt"]


@pytest.mark.parametrize("training", ["full", "h2spg"])
def test_only_a_run_that_came_to_something_keeps_its_folder(tmp_path: Path, training: str) -> None:
    config = Config(output_dir=tmp_path)
    other = dataclasses.replace(config, seed=1)
    checkpoints = tmp_path / training / "checkpoints"
    for _ in range(2):
        claim(config)
        (tmp_path / "notes.txt").write_text("mine")
        (checkpoints / "10.orbax-checkpoint-tmp").mkdir(parents=True)  # killed while it was written
        claim(other)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "notes.txt"]
    (checkpoints / "10").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"other settings \(seed: 1 → 0\). Give another --output-dir, or --restart"):
        claim(config)
    claim(other)
    assert (checkpoints / "10").exists()
    (tmp_path / "config.json").write_text('{"older": 1}')
    with pytest.raises(ConfigError, match=r"config.json cannot be read: there is no setting older.*--restart"):
        claim(other)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config.json is missing.*--restart"):
        claim(other)
    claim(dataclasses.replace(other, restart=True))
    assert not checkpoints.exists()


def test_loading_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no finished run"):
        experiments.load(tmp_path)


def test_runs_start_from_the_full_network_of_another(tmp_path: Path) -> None:
    config = Config(output_dir=tmp_path, model=ModelConfig(options={"width": 0.05}))
    (tmp_path / "full").mkdir()
    trained, module = (create_module(dataclasses.replace(config, seed=seed), 10, (8, 8, 1)) for seed in (1, 2))
    state = nnx.state(trained, nnx.BatchStat)  # of a fresh network they are those of any other
    nnx.update(trained, jax.tree.map(lambda x: x + np.random.default_rng(0).uniform(size=x.shape), state))
    save_full(Run(config, open_dataset("digits"), start(ParallelConfig(devices=1))), trained)
    start_from(tmp_path, module)
    images = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
    for each in (trained, module):
        each.eval()
    np.testing.assert_array_equal(module(images), trained(images))
    other = create_module(config, 9, (8, 8, 1))
    with pytest.raises(ConfigError, match=r"is not the one to be trained: they differ in \S+/bias, \S+ \(2 arrays\)"):
        start_from(tmp_path, other)
    with pytest.raises(ConfigError, match="holds no full network that was trained"):
        start_from(tmp_path / "none", module)


def test_log_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.write({"step": step, "train/loss": 1 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "tra')
    with RunLog(tmp_path, 4) as log:
        assert [record["step"] for record in log.history] == [2, 4]
        log.write({"step": 6, "train/loss": 0.5, "group_norms": [1.0, 2.0]})
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6] and records[-1]["train/loss"] == 0.5
    assert "loss 0.500" in describe(records[-1])


def test_tensorboard_events_hold_the_log(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with RunLog(tmp_path, 0) as log:
        log.write({"step": 3, "train/loss": 0.25, "phase": 1, "group_norms": [1.0]})
    (path,) = (tmp_path / "events").iterdir()
    content, found, start = path.read_bytes(), {}, 0
    while start < len(content):
        size = int.from_bytes(content[start : start + 8], "little")
        event = Event.FromString(content[start + 12 : start + 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        start += 16 + size
    assert found == {"train/loss": (3, 0.25), "phase": (3, 1.0)}


def test_live_display_shows_how_far_and_how_well(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    monkeypatch.setattr(logs, "Live", partial(logs.Live, console=console, auto_refresh=False))
    record = {"epoch": 1.5, "train/loss": 0.25, "train/accuracy": 0.5, "learning_rate": 0.1, "images_per_second": 1234}
    with logs.LiveDisplay() as display:
        display.start("h2spg", 60, step=20)
        display.update({"step": 30, "test/accuracy": 0.75})
        display.update({"step": 40} | record | {"phase": 1, "num_zero": 2, "num_groups": 5})
        display._live.refresh()
        shown = screen.getvalue()
    for text in (
        "h2spg",
        "40/60",
        "epoch 1.5",
        "loss 0.250",
        "accuracy 50.0%",
        "test 75.0%",
        "rate 0.1",
        "1,234 images/s",
    ):
        assert text in shown
    assert "projection, 2 of 5 groups zero" in shown
    assert re.search(r"\d\d:\d\d", shown)  # the time that is left


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full_disk(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    save_arrays(tmp_path / "a.npz", {"x": np.ones(2)})
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [1, 1]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from experiments.common.cli import run_command
from experiments.engine.checkpoints import Checkpoints, Position

def save():
    with Checkpoints(Path(sys.argv[1]), 2) as checkpoints:
        checkpoints.save({"a": np.arange(1e5)}, Position(1, {}))
        checkpoints.latest()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        checkpoints.save({"a": np.arange(1e5) + 1}, Position(2, {}))

run_command(save)
"""


def test_full_disk_is_told_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints")]
    env = environment(tmp_path / "cache")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: a checkpoint could not be written" in done.stderr and "Is the disk full" in done.stderr
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest().step == 1


def environment(cache: Path) -> dict[str, str]:
    """Compiled programs are kept, so that only the first of several starts compiles."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, num_kills: int) -> None:
    command = [sys.executable, "-m", "tests.experiments.killed_runs", str(tmp_path), str(num_kills), "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path / "cache"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert [ended for *_, ended in report["kills"]] == [signal.SIGKILL] * num_kills
    assert report["num_arrays"] > 30 and report["same_paths"] and report["same_log"]
    assert report["differing"] == []
    # How well the smaller network agreed with the sparse one outlives the start that shrank it.
    expected, found = report["comparisons"]
    assert expected == found and 0 <= expected["largest_difference"] < 1e-4 * expected["largest_output"]


def test_command_that_is_asked_to_stop_goes_on_later(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.demo", "--output-dir", str(tmp_path / "run"), "--quiet"]
    command += ["--model.options", "width", "0.05", "--batch-size", "256", "--epochs", "400", "--eval-every", "0"]
    command += ["--no-train-full", "--log-every", "5", "--checkpoint-every", "1000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path / "cache"), stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "h2spg" / "log.jsonl"
    while len(read_log(log)) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "error: stopped after step" in error and "the same command goes on from here" in error
    step = read_log(log)[-1]["step"]
    assert not (tmp_path / "run" / "results.json").exists()
    with Checkpoints(tmp_path / "run" / "h2spg" / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest().step == step


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "sharded-jit"])
def test_two_hosts_follow_one(tmp_path: Path, mode: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])

    def start(name: str, count: int, index: int) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / name), mode, port, str(count), str(index)]
        command = [sys.executable, "-m", "tests.experiments.two_hosts", *arguments]
        env = environment(tmp_path / f"cache{index}")
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    reports = []
    for processes in ([start("one", 1, 0)], [start("two", 2, index) for index in range(2)]):
        for process in processes:
            output, error = process.communicate(timeout=600)
            assert process.returncode == 0, error[-2000:]
            reports.append(json.loads(output.splitlines()[-1]))
    whole, first, second = reports
    assert first == second
    np.testing.assert_allclose(first["losses"], whole["losses"], rtol=2e-3)
    assert first["top1"] == pytest.approx(whole["top1"], abs=0.02)
