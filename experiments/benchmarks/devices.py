"""A training step on 1 to 8 devices, with H2SPG and without: `python -m experiments.bench_devices`.

Without accelerators the CPU is divided into simulated devices. These share its cores, so that a step cannot
become faster; what is seen is whether devices and collectives cost more with H2SPG than without.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optax
from rich.table import Table

from experiments.benchmarks.measure import interleaved_seconds
from experiments.data import open_dataset
from experiments.engine.config import ParallelConfig
from experiments.engine.networks import Network, create_module
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule
from experiments.engine.parallel import start
from experiments.engine.presets import DIGITS
from experiments.engine.runs import Run, make_space
from experiments.engine.steps import StepOptions, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Config:
    """Times training steps of the main job."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices."""
    batch_size: int = 64
    """Images per step, over all devices."""
    repeats: int = 20
    """Timed steps of every variant."""
    output: Path | None = None
    """Where to write the table as JSON."""


def run(config: Config) -> Iterator[Table]:
    """Yields the table."""
    title = f"DemoNet on digits, batch {config.batch_size}"
    table = Table("mode", "devices", "SGD ms", "H2SPG ms", "ratio", title=title)
    modes: tuple[Literal["pmap", "sharded-jit"], ...] = ("pmap", "sharded-jit")
    for mode in modes:
        for devices in config.devices:
            steps = {name: _make_step(config.batch_size, mode, devices, name == "H2SPG") for name in ("SGD", "H2SPG")}
            seconds = interleaved_seconds(steps, config.repeats, warm_up=2)
            ratio = seconds["H2SPG"] / seconds["SGD"]
            table.add_row(mode, str(devices), *(f"{1e3 * each:.1f}" for each in seconds.values()), f"{ratio:.3f}")
    yield table


def _make_step(
    batch_size: int, mode: Literal["pmap", "sharded-jit"], devices: int, with_h2spg: bool
) -> Callable[[], Any]:
    """Returns a call of the compiled step, the first one of a training, on one batch."""
    config = dataclasses.replace(DIGITS, batch_size=batch_size, parallel=ParallelConfig(mode, devices))
    run = Run(config, open_dataset(config.data.name, None, None), start(config.parallel))
    batches = run.train_batches()
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    tx: optax.GradientTransformation = make_optimizer(config.optimizer, schedule)
    module = create_module(config, run.dataset.num_classes, run.dataset.image_shape)
    if with_h2spg:
        space = make_space(module, run.dataset.image_shape)
        tx = add_h2spg(tx, space, config.h2spg, config.optimizer.name, schedule, batches.num_steps)
    parallel, options = run.parallel, StepOptions.of(config, run.dataset)
    train_step = make_train_step(Network(module, None), tx, options, parallel.axis_name)
    state = parallel.place_state(init_state(Network.variables(module), tx, config.ema))
    return partial(parallel.compile(train_step, donate=False), state, parallel.place_batch(next(iter(batches))))
