"""How many steps with H2SPG take as long as the training of the full network."""

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import Batch, open_dataset
from experiments.engine.config import Config
from experiments.engine.networks import create_module
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule, round_ends
from experiments.engine.parallel import start
from experiments.engine.runs import Run, make_space
from experiments.engine.training import Training

_TIMED_STEPS = 120
"""Steps of the short trainings that are timed. In fewer, there are too few with a score to tell what these cost."""

_STANDSTILL = 10
"""A step that takes so many times the median was stopped by something else."""


class Pace(NamedTuple):
    """How fast a training with H2SPG is beside that of the full network, compilation and construction left out.

    A step is all that a training does again and again, the loading of its batch included: where networks are small,
    that is a good part of it.

    Attributes:
        before: duration of a step with H2SPG while the network has its full size, in steps of the full network.
        after: the same once the network has become smaller.
        num_steps: number of steps, with the network becoming smaller on the way, that take as long as the full
            network's training does.
    """

    before: float
    after: float
    num_steps: int


def measure_pace(config: Config) -> Pace:
    """Times both trainings side by side, a step of one and a step of the other, so that a busy machine slows both.

    They are as the settings say, but short; the phases of H2SPG have the same shares of it as of the whole training.

    Raises:
        ExperimentError: settings or data are unfit.
        jasgnas.JasgnasError: the target cannot be met.
    """
    dataset = open_dataset(config.data.name, config.data.data_dir, config.data.image_size)
    # As few test images as can be: all that they are for here is the comparison when the network becomes smaller.
    run = Run(config, dataset.take(config.data.num_train, config.batch_size), start(config.parallel))
    module = create_module(config, dataset.num_classes, dataset.image_shape)
    space = make_space(module, dataset.image_shape, config.h2spg.kinds, config.h2spg.tie, config.h2spg.keep)
    batches = run.train_batches()
    length = min(_TIMED_STEPS, batches.num_steps)
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    tx = make_optimizer(config.optimizer, schedule)
    h2spg = add_h2spg(tx, space, config.h2spg, config.optimizer.name, schedule, length, config.seed)
    full, sparse = Training(run, "full", module, tx, schedule), Training(run, "h2spg", module, h2spg, schedule, space)
    due = max(round_ends(config.h2spg, length))
    seconds: list[tuple[float, float]] = []
    # One after the other takes a batch, so that during each step another one is loaded, as in a training.
    coming = itertools.chain(batches, batches)
    for number in range(length):
        if number == due:
            sparse.shrink_if_due()
        seconds.append((_seconds(full, coming), _seconds(sparse, coming)))
    # The first step of each network is compiled, and does not count.
    before, after = (_ratio(part[1:]) for part in (seconds[:due], seconds[due:]))
    share = due / length
    return Pace(before, after, round(batches.num_steps / (share * before + (1 - share) * after)))


def _seconds(training: Training, batches: Iterator[Batch]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(training.step(next(batches)))
    return time.perf_counter() - started


def _ratio(seconds: list[tuple[float, float]]) -> float:
    """Returns what the second of each pair takes, in units of the first, pairs in which all stood still left out.

    It is a ratio of sums: steps with a score differ in how long they take.
    """
    each = np.array(seconds)
    usual = np.all(each < _STANDSTILL * np.median(each, axis=0), axis=1)
    full, sparse = each[usual].sum(axis=0)
    return float(sparse / full)
