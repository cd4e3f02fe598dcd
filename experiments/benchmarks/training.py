"""What a trained sub-network costs in time: `python -m experiments.bench_training --data-dir DIR`.

Three trainings of equally many steps, from the same start and over the same images: the full network without H2SPG,
with H2SPG, and with H2SPG going on with the sub-network as soon as it is there, each in a process of its own.
Compilation, checkpoints and a test after every epoch count. Beside the time of all steps stands the time after which a
test has first shown the accuracy that all three reach, the lowest of those that they end with. The data sets must have
been prepared (`python -m experiments.prepare --help`). The file of the results keeps the tables of other networks, data
sets and seeds: small machines measure them one at a time, each at the size that they have time for.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.benchmarks.measure import in_fresh_process
from experiments.common.cli import check_names
from experiments.common.machine import machine_facts
from experiments.common.text import time_text
from experiments.engine import job
from experiments.engine.config import Config as RunConfig
from experiments.engine.logs import read_log
from experiments.engine.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """Times trainings with and without shrinking."""

    rows: tuple[tuple[str, str], ...] = (("demonet-fashion-mnist", "fashion_mnist"), ("stacked-unets-svhn", "cifar10"))
    """Presets of `experiments.train` and the data sets to train them on."""
    data_dir: Path | None = None
    """Folder of the prepared data sets."""
    num_train: int = 12_800
    """Training images."""
    num_test: int = 2_000
    """Test images."""
    epochs: int = 5
    """Passes over the training images."""
    warmup_fraction: float = 0.2
    """Part of the steps before the selection."""
    projection_fraction: float = 0.2
    """Part of the steps in which the redundant structures go to zero."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each is a table of its own."""
    output: Path | None = None
    """Where to write the tables as JSON; those of the same row and seed are replaced."""


def run(config: Config) -> Iterator[Table]:
    """Yields a table for each row and seed."""
    check_names("preset", (preset for preset, _ in config.rows), PRESETS)
    for preset, data in config.rows:
        for seed in config.seeds:
            with tempfile.TemporaryDirectory() as folder:
                yield _measure(preset, _run_config(config, preset, data, seed, Path(folder)))


def _run_config(config: Config, preset: str, data: str, seed: int, folder: Path) -> RunConfig:
    base = PRESETS[preset][1]
    return dataclasses.replace(
        base,
        output_dir=folder,
        data=dataclasses.replace(
            base.data, name=data, data_dir=config.data_dir, num_train=config.num_train, num_test=config.num_test
        ),
        h2spg=dataclasses.replace(
            base.h2spg, warmup_fraction=config.warmup_fraction, projection_fraction=config.projection_fraction
        ),
        epochs=config.epochs,
        eval_every=1,
        seed=seed,
        quiet=True,
    )


def _measure(preset: str, config: RunConfig) -> Table:
    changes: dict[str, dict[str, Any]] = {
        "full": {"train_h2spg": False},
        "H2SPG": {"train_full": False, "shrink": False},
        "H2SPG, shrinking": {"train_full": False},
    }
    trained = {
        label: in_fresh_process(
            _train, dataclasses.replace(config, output_dir=config.output_dir / str(number), **changed)
        )
        for number, (label, changed) in enumerate(changes.items())
    }
    (full, _), (kept, _), _ = trained.values()
    accuracy = min(each.tests[-1][1] for each, _ in trained.values())
    table = Table(
        *("training", "s", "÷ full", "÷ not shrinking", f"s to {accuracy:.2%}", "÷ full's"),
        *("parameters", "multiply-adds", "test accuracy", "peak MiB"),
        title=f"{preset} on {config.data.name}, seed {config.seed}",
        caption=f"{config.data.num_train:,} training and {config.data.num_test:,} test images, {config.epochs} epochs, "
        f"batch {config.batch_size}, {_circumstances()}",
    )
    for label, (result, peak) in trained.items():
        network = result.network
        seconds, reaching = network.training_seconds, result.seconds_to(accuracy)
        table.add_row(
            label,
            time_text(seconds),
            f"{seconds / full.network.training_seconds:.2f}",
            f"{seconds / kept.network.training_seconds:.2f}",
            time_text(reaching),
            f"{reaching / full.seconds_to(accuracy):.2f}",
            f"{network.num_params:,}",
            f"{network.macs:,}",
            f"{network.test_accuracy:.2%}",
            f"{peak:.0f}",
        )
    return table


def _circumstances() -> str:
    """Returns what the times of a table depend on, which may differ from that of other tables in the same file."""
    machine = machine_facts()
    flags = os.environ.get("XLA_FLAGS")
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''} of {machine['processor']}"
    return f"{cores}, load {machine['load']:.1f}" + (f", XLA_FLAGS={flags}" if flags else "")


class Trained(NamedTuple):
    """A training that has ended.

    Attributes:
        network: figures of the network.
        tests: seconds since the start, and the test accuracy, of every test.
    """

    network: job.NetworkResults
    tests: tuple[tuple[float, float], ...]

    def seconds_to(self, accuracy: float) -> float:
        """Returns the seconds after which a test has first shown an accuracy, which the last one does."""
        return next(seconds for seconds, found in self.tests if found >= accuracy)


def _train(config: RunConfig) -> Trained:
    """Returns the one network that is trained."""
    results = job.run(config)
    name, network = ("h2spg", results.subnet) if config.train_h2spg else ("full", results.full)
    assert network is not None
    log = read_log(config.output_dir / name / "log.jsonl")
    tests = [(record["seconds"], record["test/accuracy"]) for record in log if "test/accuracy" in record]
    return Trained(network, tuple(tests))
