"""The main job: train DemoNet in full and with H2SPG, construct the sub-network, and compare the two.

Both trainings see the same images in the same order for the same number of steps, and start from the same
initialisation. What comes out is checked: the sub-network must return what the sparse full network returns.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import rich
import tyro
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import jasgnas
from experiments.data import DataError, Dataset, DatasetName, load, steps_per_epoch
from experiments.train import accuracy, logits, train
from models.demo_net import DemoNet

PHASES = ("warm-up", "projection", "target met")
OUTPUT_TOLERANCE = 1e-5
"""Largest difference between two networks' outputs, relative to the largest output, that passes for rounding."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains DemoNet in full and with H2SPG, constructs the sub-network, and compares the two."""

    dataset: DatasetName = "digits"
    """Images to train on: scikit-learn's embedded 8×8 digits, or Fashion-MNIST from its original idx.gz files."""
    data_dir: Path | None = None
    """Folder of the Fashion-MNIST files; by default where Debian's package dataset-fashion-mnist puts them."""
    output_dir: Path = Path("runs/demo")
    """Folder for config, results, parameters and the printed search space; an earlier run's are overwritten."""
    target_groups: int = 3
    """Number of removal structures that must go."""
    epochs: int = 15
    """Passes over the training images, in each of the two trainings."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 0.05
    """Learning rate of the first step; it falls to zero along a cosine."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay, on all parameters."""
    warmup_fraction: float = 0.3
    """Part of the steps in which H2SPG only averages its redundancy scores."""
    projection_fraction: float = 0.4
    """Part of the steps in which H2SPG takes the redundant structures to zero; the rest trains what is left."""
    width: float = 1.0
    """Factor on DemoNet's numbers of channels; 1 gives the paper's size."""
    seed: int = 0
    """Seed of the initialisation and of the order of the images."""

    def __post_init__(self) -> None:
        """Refuses settings that no run could meet, before any work is done."""
        if self.epochs < 1 or self.width <= 0:
            raise ValueError(f"epochs and width must be positive, got {self.epochs} and {self.width}")
        if self.warmup_fraction + self.projection_fraction > 1:
            raise ValueError(
                "warm-up and projection must end with the training: the two fractions may add up to 1 at most, "
                f"got {self.warmup_fraction} and {self.projection_fraction}"
            )


@dataclasses.dataclass(frozen=True)
class NetworkResults:
    """Figures of one network.

    Attributes:
        num_params: number of trainable parameters.
        macs: multiply-adds of one forward pass of one image.
        test_accuracy: fraction of the test images classified rightly.
    """

    num_params: int
    macs: int
    test_accuracy: float


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        full: the full network after full training.
        subnet: the sub-network constructed after training with H2SPG.
        removed: names of the structures that went.
        largest_output: largest absolute logit of the sparse full network over the test images.
        largest_difference: largest absolute difference between its logits and the sub-network's.
        seconds: wall time of each part of the job, compilation included.
        device: kind of the device that trained.
    """

    full: NetworkResults
    subnet: NetworkResults
    removed: list[str]
    largest_output: float
    largest_difference: float
    seconds: dict[str, float]
    device: str


def run(config: Config) -> Results:
    """Runs the job, shows its progress, and saves what it makes in `config.output_dir`.

    Raises:
        DataError: if the data set cannot be loaded.
        jasgnas.JasgnasError: if so many structures cannot go, or the sub-network differs from the sparse network.
        OSError: if the output folder cannot be written.
    """
    dataset = load(config.dataset, config.data_dir)
    _prepare_output(config)
    seconds: dict[str, float] = {}
    network = _network(config, dataset)
    with _timed(seconds, "search space"):
        space = jasgnas.search_space(network, _example(dataset))
    (config.output_dir / "search_space.txt").write_text(f"{space}\n")

    sgd, h2spg = _optimizers(config, dataset, space)
    with _progress_bars() as progress:
        with _timed(seconds, "full training"):
            full, _ = _train(config, dataset, sgd, progress, "full", lambda _: "")
        with _timed(seconds, "H2SPG training"):
            sparse, optimizer = _train(
                config, dataset, optax.chain(sgd, h2spg), progress, "H2SPG", partial(_sparsity_status, space)
            )
    with _timed(seconds, "construction"):
        subnet = jasgnas.construct_subnet(space, sparse)

    removed = [group.name for group in space.groups if jasgnas.h2spg_state(optimizer.opt_state).zero[group.index]]
    results = _compare(config, dataset, full, sparse, subnet, removed, seconds)
    for name, network in {"full": full, "sparse": sparse, "subnet": subnet}.items():
        np.savez(config.output_dir / f"{name}.npz", **_variables(network))
    _write_json(config.output_dir / "results.json", results)
    return results


def results_table(config: Config, results: Results) -> Table:
    """Returns the table that compares the full network and the sub-network."""
    full, subnet = results.full, results.subnet
    table = Table(
        "",
        "full network",
        "sub-network",
        title=f"DemoNet on {config.dataset}: {config.epochs} epochs, seed {config.seed}, {results.device}",
    )
    for label, field in (("parameters", "num_params"), ("multiply-adds", "macs")):
        before, after = getattr(full, field), getattr(subnet, field)
        table.add_row(label, f"{before:,}", f"{after:,} ({after / before:.0%})")
    table.add_row("test accuracy", f"{full.test_accuracy:.2%}", f"{subnet.test_accuracy:.2%}")
    table.add_row(
        "seconds of training", *(f"{results.seconds[part]:.1f}" for part in ("full training", "H2SPG training"))
    )
    for part in ("search space", "construction"):
        table.add_row(f"seconds of {part}", "", f"{results.seconds[part]:.1f}")
    table.add_section()
    table.add_row("removed", "", "\n".join(results.removed))
    table.add_row("largest output difference", "", f"{results.largest_difference:.1e} of {results.largest_output:.1f}")
    return table


def main() -> None:
    """Runs the job with the command line's settings."""
    config = tyro.cli(Config)
    try:
        results = run(config)
    except (DataError, OSError, jasgnas.JasgnasError) as error:
        raise SystemExit(f"error: {error}") from error
    rich.print(results_table(config, results))
    print(f"Saved in {config.output_dir}")


def _network(config: Config, dataset: Dataset) -> DemoNet:
    return DemoNet(dataset.num_classes, width=config.width, rngs=nnx.Rngs(config.seed))


def _example(dataset: Dataset) -> jax.ShapeDtypeStruct:
    images = dataset.test.images
    return jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)


def _optimizers(
    config: Config, dataset: Dataset, space: jasgnas.SearchSpace
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Returns the recipe of both trainings, and the link that H2SPG adds to its end."""
    steps = _num_steps(config, dataset)
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    sgd = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, momentum=config.momentum))
    h2spg = jasgnas.h2spg(
        space,
        learning_rate=schedule,
        target_groups=config.target_groups,
        warmup_steps=round(config.warmup_fraction * steps),
        projection_steps=round(config.projection_fraction * steps),
    )
    return sgd, h2spg


def _num_steps(config: Config, dataset: Dataset) -> int:
    return config.epochs * steps_per_epoch(dataset.train, config.batch_size)


def _train(
    config: Config,
    dataset: Dataset,
    tx: optax.GradientTransformation,
    progress: Progress,
    description: str,
    status: Callable[[nnx.Optimizer], str],
) -> tuple[DemoNet, nnx.Optimizer]:
    """Trains a new network; `status` adds what the optimizer has to say to the progress bar."""
    model = _network(config, dataset)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    task = progress.add_task(description, total=_num_steps(config, dataset), status="compiling")
    for metrics in train(
        model, optimizer, dataset.train, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed
    ):
        text = f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}  {status(optimizer)}"
        progress.update(task, advance=1, status=text)
    return model, optimizer


def _sparsity_status(space: jasgnas.SearchSpace, optimizer: nnx.Optimizer) -> str:
    state = jasgnas.h2spg_state(optimizer.opt_state)
    return f"{PHASES[int(state.phase)]}, {int(state.zero.sum())}/{len(space.groups)} zero"


def _compare(
    config: Config,
    dataset: Dataset,
    full: nnx.Module,
    sparse: nnx.Module,
    subnet: nnx.Module,
    removed: list[str],
    seconds: dict[str, float],
) -> Results:
    """Evaluates the networks on the test images; the sub-network must return what the sparse network returns."""
    full_logits, sparse_logits, subnet_logits = (
        logits(network, dataset.test, batch_size=config.batch_size) for network in (full, sparse, subnet)
    )
    largest_output = float(np.abs(sparse_logits).max())
    largest_difference = float(np.abs(sparse_logits - subnet_logits).max())
    if not largest_difference <= OUTPUT_TOLERANCE * largest_output:  # refuses NaN, too
        raise jasgnas.VerificationError(
            f"the sub-network's outputs differ from the sparse network's by up to {largest_difference:.3g}, where "
            f"{OUTPUT_TOLERANCE:g} of the largest output, {largest_output:.3g}, would pass for rounding"
        )
    return Results(
        full=_network_results(full, dataset, full_logits),
        subnet=_network_results(subnet, dataset, subnet_logits),
        removed=removed,
        largest_output=largest_output,
        largest_difference=largest_difference,
        seconds=seconds,
        device=jax.devices()[0].device_kind,
    )


def _network_results(network: nnx.Module, dataset: Dataset, logits: np.ndarray) -> NetworkResults:
    return NetworkResults(
        num_params=jasgnas.count_params(network),
        macs=jasgnas.count_macs(network, _example(dataset)),
        test_accuracy=accuracy(logits, dataset.test.labels),
    )


def _progress_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[status]}"),
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Writes the wall time of its body to `seconds[part]`."""
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def _prepare_output(config: Config) -> None:
    """Makes the output folder and saves the config; an earlier run's results must not pass for this one's."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "results.json").unlink(missing_ok=True)
    _write_json(config.output_dir / "config.json", config)


def _write_json(path: Path, record: Config | Results) -> None:
    path.write_text(json.dumps(dataclasses.asdict(record), indent=2, default=str) + "\n")


def _variables(network: nnx.Module) -> dict[str, Any]:
    """Returns parameters and batch statistics by key path."""
    state = nnx.state(network, (nnx.Param, nnx.BatchStat))
    return {"/".join(map(str, keys)): np.asarray(variable[...]) for keys, variable in nnx.to_flat_state(state)}


if __name__ == "__main__":
    main()
