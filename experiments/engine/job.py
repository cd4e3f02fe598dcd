"""What every run does: it trains, constructs the sub-network, compares it with the network it came from, and saves."""

import contextlib
import dataclasses
import importlib.metadata
import json
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import jasgnas
from experiments.common.files import write_atomically
from experiments.data import open_dataset
from experiments.engine.compare import Comparison, compare
from experiments.engine.config import Config
from experiments.engine.logs import Display, LiveDisplay, PlainDisplay
from experiments.engine.networks import create_module, inference_params
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule
from experiments.engine.parallel import start
from experiments.engine.runs import (
    RESULTS,
    Run,
    arrays_of,
    check_folder,
    claimed_folder,
    make_space,
    noted_fault,
    save_full,
    save_subnet,
    start_from,
    subnet_with,
)
from experiments.engine.training import Trained, Training

_NOT_DRAWN = ("epoch", "num_groups", "seconds")
"""Columns of the log that say what others say."""


@dataclasses.dataclass(frozen=True)
class NetworkResults:
    """Figures of one network.

    Attributes:
        num_params: number of trainable parameters, those of an auxiliary classifier left out.
        macs: multiply-adds of one forward pass of one image.
        test_accuracy: fraction of the test images classified rightly.
        test_top5: fraction of the test images whose class is among the five likeliest.
        test_loss: mean cross-entropy of the test images.
        training_seconds: wall time of the training, compilation and shrinking on the way included.
    """

    num_params: int
    macs: int
    test_accuracy: float
    test_top5: float
    test_loss: float
    training_seconds: float


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        full: the full network after full training, None if it was not trained.
        subnet: the sub-network constructed after training with H2SPG, None if there was no such training.
        removed: names of the structures that went, and what is left of each dimension that was narrowed.
        num_groups: number of all structures and channels that could go.
        full_params: parameters of the full network.
        full_macs: its multiply-adds.
        comparison: of the sparse network and the sub-network, when it was last shrunk or at the end; None if nothing
            was removed.
        seconds: wall time of the search space, in the latest start; and of construction and comparison, in all rounds
            and starts. Where the network shrank during its training, they are a part of that.
        dataset: the images and where they come from.
        image_shape: height, width and channels of the images.
        num_train: number of training images.
        num_test: number of test images.
        num_steps: number of steps of each training.
        device: kind and number of the devices.
        versions: versions of the libraries that the result depends on.
    """

    full: NetworkResults | None
    subnet: NetworkResults | None
    removed: list[str]
    num_groups: int
    full_params: int
    full_macs: int
    comparison: Comparison | None
    seconds: dict[str, float]
    dataset: str
    image_shape: list[int]
    num_train: int
    num_test: int
    num_steps: int
    device: str
    versions: dict[str, str]


def run(config: Config) -> Results:
    """Runs the job, or what is left of it, shows its progress, and saves what it makes in `config.output_dir`.

    Raises:
        ExperimentError: settings, folder, data or checkpoints are unfit, the training diverged or was interrupted.
        jasgnas.JasgnasError: the target cannot be met, or the sub-network differs from the sparse network.
        OSError: the output folder cannot be written to the end.
    """
    parallel = start(config.parallel)
    dataset = open_dataset(config.data.name, config.data.data_dir, config.data.image_size)
    dataset = dataset.take(config.data.num_train, config.data.num_test)
    run = Run(config, dataset, parallel)
    check_folder(config)
    results_path = run.folder / RESULTS
    if results_path.exists() and not config.restart:
        return _read_results(results_path.read_text())

    seconds: dict[str, float] = {}
    module = create_module(config, dataset.num_classes, dataset.image_shape)
    if config.pretrained is not None:
        start_from(config.pretrained, module)
    with _timed(seconds, "search space"):
        space = make_space(module, dataset.image_shape, config.h2spg.kinds, config.h2spg.tie, config.h2spg.keep)
    batches = run.train_batches()
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    tx = make_optimizer(config.optimizer, schedule)
    h2spg = tx
    if config.train_h2spg:  # before any training, so that a target out of reach costs nothing
        h2spg = add_h2spg(tx, space, config.h2spg, config.optimizer.name, schedule, batches.num_steps, config.seed)
    with claimed_folder(config), noted_fault(run.folder):
        write_atomically(run.folder / "search_space.txt", f"{space}\n")
        full = sparse = subnet_results = comparison = None
        removed: tuple[int, ...] = ()
        example = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
        with _display(config) as display:
            if config.train_full:
                full = Training(run, "full", module, tx, schedule).train(display)
            if config.train_h2spg:
                sparse = Training(run, "h2spg", module, h2spg, schedule, space).train(display)
        if full is not None:
            save_full(run, full.module)
        if sparse is not None:
            removed, subnet, comparison, seconds["construction and comparison"] = _construct(run, space, module, sparse)
            save_subnet(run, space, removed, subnet)
            subnet_results = _network_results(subnet, example, sparse)
        results = Results(
            full=None if full is None else _network_results(full.module, example, full),
            subnet=subnet_results,
            removed=_in_words(space, removed),
            num_groups=len(space.groups),
            full_params=inference_params(module),
            full_macs=space.subnet_size(())[1],
            comparison=comparison,
            seconds=seconds,
            dataset=f"{dataset.name}: {dataset.origin}",
            image_shape=list(dataset.image_shape),
            num_train=len(dataset.train),
            num_test=len(dataset.test),
            num_steps=batches.num_steps,
            device=f"{parallel.num_devices} × {jax.devices()[0].device_kind}",
            versions={name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        )
        _write_report(run, space, results, full, sparse)
        write_atomically(results_path, json.dumps(dataclasses.asdict(results), indent=2) + "\n")
        return results


def _display(config: Config) -> Display:
    if jax.process_index() > 0:
        return PlainDisplay(Console(quiet=True))
    return PlainDisplay() if config.quiet else LiveDisplay()


def _construct(
    run: Run, space: jasgnas.SearchSpace, module: nnx.Module, sparse: Trained
) -> tuple[tuple[int, ...], nnx.Module, Comparison | None, float]:
    """Returns the groups that are gone, the sub-network, how it compares with the sparse network, and the seconds."""
    removed = tuple(np.flatnonzero(jasgnas.h2spg_state(sparse.opt_state, space).zero).tolist())
    if run.config.shrink:
        subnet = sparse.module
        if run.config.model.gated:  # what has shrunk during its training holds its gates still
            subnet = subnet_with(space, module, removed, arrays_of(subnet))
        return removed, subnet, sparse.comparison, sparse.construction_seconds
    started = time.perf_counter()
    # Averaged weights of a group go to zero more slowly than the weights themselves.
    module = space.zero(sparse.module, removed)
    subnet = jasgnas.construct_subnet(space, module)
    comparison = compare(run, module, subnet)
    return removed, subnet, comparison, time.perf_counter() - started


def _in_words(space: jasgnas.SearchSpace, removed: tuple[int, ...]) -> list[str]:
    """Returns the names of the structures among some groups, and what is left of each dimension that was narrowed."""
    structures = [space.groups[index].name for index in removed if index < len(space.structures)]
    narrowed = [
        f"{dimension.name}: {left} of {dimension.size} channels left"
        for dimension, left in zip(space.dimensions, space.channels_left(removed), strict=True)
        if 0 < left < dimension.size
    ]
    return structures + narrowed


def _network_results(module: nnx.Module, example: jax.ShapeDtypeStruct, trained: Trained) -> NetworkResults:
    module.eval()
    return NetworkResults(
        num_params=inference_params(module),
        macs=jasgnas.count_macs(module, example),
        test_accuracy=trained.evaluation.top1,
        test_top5=trained.evaluation.top5,
        test_loss=trained.evaluation.loss,
        training_seconds=trained.seconds,
    )


def _write_report(
    run: Run, space: jasgnas.SearchSpace, results: Results, full: Trained | None, sparse: Trained | None
) -> None:
    """Writes the page that shows the search space, what went and how the training came to it."""

    def figures(network: NetworkResults | None) -> dict[str, str | float] | None:
        if network is None:
            return None
        return {
            "parameters": network.num_params,
            "multiply-adds": network.macs,
            "test accuracy": f"{network.test_accuracy:.2%}",
            "seconds of training": round(network.training_seconds, 1),
        }

    shown, built = sparse or full, results.comparison
    assert shown is not None  # a config asks for one of the two at least
    history = [{name: value for name, value in record.items() if name not in _NOT_DRAWN} for record in shown.history]
    jasgnas.report(
        space,
        path=run.folder / "report.html",
        title=f"{run.config.model.name} on {run.config.data.name}",
        opt_state=None if sparse is None else sparse.opt_state,
        history=history,
        full=figures(results.full),
        construction=None if built is None else {"test accuracy": f"{built.subnet_accuracy:.2%}"},
        sub=figures(results.subnet),
        settings=_settings(run.config),
        command=shlex.join(["python", *sys.orig_argv[1:]]),
    )


def _settings(config: Config) -> dict[str, Any]:
    """Returns what a reader of the report wants to know of a config; all of it is in `config.json`."""
    chosen = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.learning_rate,
        "weight_decay": config.optimizer.weight_decay,
        "seed": config.seed,
    }
    own = dataclasses.asdict(config.h2spg)
    return chosen | {name: value for name, value in own.items() if value not in (None, {}, ())}


def _read_results(text: str) -> Results:
    record = json.loads(text)
    networks = {name: record[name] and NetworkResults(**record[name]) for name in ("full", "subnet")}
    comparison = record["comparison"] and Comparison(**record["comparison"])
    return Results(**record | networks | {"comparison": comparison})


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Writes the wall time of its body to `seconds[part]`."""
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started
