"""How fast images come, against how fast a training step takes them, and what the loop costs beside the step.

Prints, for each recipe, the images per second of the input pipeline with the recipe's augmentation and of the training
step of its network; then the loop's own overhead on DemoNet at batch 128: the time per step of the whole loop over that
of the compiled step on a batch that is on the device already.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.cli import check_names
from experiments.common.errors import DataError
from experiments.data import Batch, Dataset, TrainBatches, open_dataset
from experiments.engine.config import Config
from experiments.engine.logs import PlainDisplay
from experiments.engine.networks import create_module
from experiments.engine.optimizers import make_optimizer, make_schedule
from experiments.engine.parallel import start
from experiments.engine.presets import DEMONET_FASHION_MNIST, PRESETS
from experiments.engine.runs import Run
from experiments.engine.training import Training

_STANDS_IN = {"svhn_cropped": "svhn_test10k", "stl10": "imagenette_96", "imagenet2012": "imagenette_96"}
"""Data sets that are measured where the one that a recipe names is not prepared."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures the input pipeline, the training step and the loop around it."""

    recipes: tuple[str, ...] = tuple(name for name, (_, config) in PRESETS.items() if not config.model.gated)
    """Named settings to measure; gates change nothing about the images."""
    data_dir: Path | None = None
    """Folder of the TFDS copies."""
    seconds: float = 5.0
    """How long to measure each pipeline."""
    num_steps: int = 2
    """Training steps to measure for each network; 0 leaves them out."""
    step_batch: int = 16
    """Images of these steps, few enough for the largest network."""
    overhead_steps: int = 30
    """Steps of the loop to measure on DemoNet; 0 leaves it out."""
    workers: int = 0
    """Processes that decode and augment."""
    output: Path | None = None
    """Where to write the tables as JSON."""


def pipeline_rate(config: Config, dataset: Dataset, seconds: float, workers: int) -> float:
    """Returns the images per second of the input pipeline."""
    augmentation = config.data.augmentation
    batches = TrainBatches(dataset, config.batch_size, seed=0, epochs=1000, augmentation=augmentation, workers=workers)
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    taken = sum(1 for _ in itertools.takewhile(lambda _: time.perf_counter() - started < seconds, iterator))
    return taken * config.batch_size / (time.perf_counter() - started)


def step_seconds(run: Run, num_steps: int) -> float:
    """Returns the seconds of one compiled step on a batch that is on the device already."""
    training = make_training(run)
    batch = run.parallel.place_batch(next(iter(run.train_batches())))
    return training.time_steps(batch, num_steps)


def loop_seconds(run: Run) -> float:
    """Returns the seconds per step of everything in the loop but the compiled step: the median over log entries."""
    training = make_training(run)
    training.skip_steps()
    with PlainDisplay(Console(quiet=True)) as display:
        history = training.train(display).history
    return run.config.batch_size / float(np.median([record["images_per_second"] for record in history[:-1]]))


class _Measured(Training):
    """A training whose compiled step can be measured alone, or left out."""

    def time_steps(self, batch: Batch, num_steps: int) -> float:
        """Returns the seconds of one step on a batch."""
        self._state, metrics = self._train_step(self._state, batch)
        jax.block_until_ready(metrics)
        started = time.perf_counter()
        for _ in range(num_steps):
            self._state, metrics = self._train_step(self._state, batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - started) / num_steps

    def skip_steps(self) -> None:
        """Makes one real step, and puts what it returned in the place of all others."""
        run = self._run
        state, metrics = self._train_step(self._state, run.parallel.place_batch(next(iter(run.train_batches()))))
        self._state = state
        self._train_step = lambda state, batch: (state, metrics)


def make_training(run: Run) -> _Measured:
    """Returns the training of a run's full network."""
    config, dataset = run.config, run.dataset
    module = create_module(config, dataset.num_classes, dataset.image_shape)
    batches = run.train_batches()
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    return _Measured(run, "full", module, make_optimizer(config.optimizer, schedule), schedule)


def measure(settings: Settings) -> Iterator[Table]:
    """Yields a table of the recipes, then one of the loop."""
    check_names("recipe", settings.recipes, PRESETS)
    columns = ("recipe", "data set", "pipeline, images/s", "step, images/s", "pipeline / step")
    table = Table(
        *columns, title="input pipelines and training steps", caption=f"steps of {settings.step_batch} images"
    )
    for name in settings.recipes:
        _, config = PRESETS[name]
        try:
            dataset = _open(config, settings.data_dir)
        except DataError as error:
            table.add_row(name, f"not measured: {str(error).partition('.')[0]}", "", "", "")
            continue
        rate = pipeline_rate(config, dataset, settings.seconds, settings.workers)
        row = [name, dataset.name, f"{rate:,.0f}"]
        if settings.num_steps:
            small = dataclasses.replace(config, batch_size=settings.step_batch)
            run = Run(small, dataset, start(config.parallel))
            step_rate = small.batch_size / step_seconds(run, settings.num_steps)
            row += [f"{step_rate:,.2f}" if step_rate < 10 else f"{step_rate:,.0f}", f"{rate / step_rate:,.1f}"]
        table.add_row(*row)
    yield table
    if settings.overhead_steps:
        yield _overhead(settings)


def _open(config: Config, data_dir: Path | None) -> Dataset:
    try:
        return open_dataset(config.data.name, data_dir, config.data.image_size)
    except DataError:
        if config.data.name not in _STANDS_IN:
            raise
        return open_dataset(_STANDS_IN[config.data.name], data_dir, config.data.image_size)


def _overhead(settings: Settings) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            DEMONET_FASHION_MNIST, output_dir=Path(folder), epochs=1, eval_every=0, ema=0.0, log_every=20
        )
        dataset = open_dataset(config.data.name, settings.data_dir).take(20 * 20 * 128, 1000)
        run = Run(config, dataset, start(config.parallel))
        loop = loop_seconds(run)
        step = step_seconds(run, settings.overhead_steps)
    table = Table("step, ms", "loop around it, ms", "loop / step", title="the training loop: DemoNet at batch 128")
    table.add_row(f"{1000 * step:.1f}", f"{1000 * loop:.2f}", f"{loop / step:.2%}")
    return table
