"""Trains once without a stop and once killed again and again, each start in a process of its own, and compares.

Run as `python -m tests.experiments.killed_runs FOLDER NUM_KILLS SEED`. Processes are forked from this one before it
touches JAX, which saves the imports; nothing else is shared. Prints a line of JSON: where the kills fell, whether the
ends agree.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from rich.console import Console

from experiments.data import Augmentation, open_dataset
from experiments.engine import training
from experiments.engine.checkpoints import Checkpoints, Position
from experiments.engine.config import Config, DataConfig, H2SPGConfig, OptimizerConfig, ParallelConfig
from experiments.engine.logs import PlainDisplay
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule
from experiments.engine.parallel import start
from experiments.engine.runs import Run, make_space
from tests.branches import Branches

CONFIG = Config(
    data=DataConfig("digits", augmentation=Augmentation(pad_crop=1, flip=True, mixup=0.2)),
    optimizer=OptimizerConfig(warmup_epochs=0.5, nesterov=True),
    h2spg=H2SPGConfig(target_groups=1),
    parallel=ParallelConfig(devices=1),
    epochs=12,
    batch_size=256,
    ema=0.9,
    log_every=3,
    eval_every=0,
    shrink=True,
)
STEPS_PER_EPOCH = 5


DATASET = open_dataset("digits")


def train(config: Config) -> training.Trained:
    run = Run(config, DATASET, start(config.parallel))
    module = Branches(nnx.Rngs(0))
    space = make_space(module, DATASET.image_shape)
    batches = run.train_batches()
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    tx = make_optimizer(config.optimizer, schedule)
    tx = add_h2spg(tx, space, config.h2spg, "sgd", schedule, batches.num_steps)
    return training.Training(run, "h2spg", module, tx, schedule, space).train(PlainDisplay(Console(quiet=True)))


def in_own_process(task: Callable[[], object]) -> int:
    """Returns how the process ended: 0, or the number of the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the training failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(step: int, config: Config) -> None:
    """Trains until a step is under way."""
    add = training._Window.add
    counted = iter(range(1, 1000))

    def add_or_die(window, metrics) -> None:
        if window._first + len(window._metrics) + 1 >= step and next(counted):
            kill_self()
        add(window, metrics)

    training._Window.add = add_or_die
    train(config)


def killed_while_saving(step: int, delay: float, config: Config) -> None:
    """Trains until the first checkpoint from a step on is being written."""
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, state, position: Position) -> None:
        save(self, state, position)
        if position.step >= step:
            threading.Timer(delay, kill_self).start()

    training.Checkpoints.save = save_and_die
    train(config)


def final_checkpoint(folder: Path) -> tuple[Position, dict[str, np.ndarray]]:
    """Returns where the training ended, and all arrays of its last checkpoint."""
    with Checkpoints(folder / "h2spg" / "checkpoints", 2) as checkpoints:
        position = checkpoints.latest()
        record, arrays = checkpoints._read(position.step)
    assert position.step == CONFIG.epochs * STEPS_PER_EPOCH, position
    return position, arrays


def main(folder: Path, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    whole, parts = (dataclasses.replace(CONFIG, output_dir=folder / name) for name in ("whole", "parts"))
    in_own_process(lambda: train(whole))
    num_steps = CONFIG.epochs * STEPS_PER_EPOCH
    kills = []
    for number, step in enumerate(sorted(rng.sample(range(2, num_steps - 1), num_kills))):
        if number % 2:
            delay = rng.uniform(0, 0.05)
            ended = in_own_process(lambda step=step, delay=delay: killed_while_saving(step, delay, parts))
            kills.append((step, f"while saving, after {1000 * delay:.0f} ms", ended))
        else:
            ended = in_own_process(lambda step=step: killed_at(step, parts))
            kills.append((step, "", ended))
    in_own_process(lambda: train(parts))
    (expected_end, expected), (found_end, found) = (final_checkpoint(each.output_dir) for each in (whole, parts))
    differing = [path for path in expected if expected[path].tobytes() != found[path].tobytes()]
    logs = [(each.output_dir / "h2spg" / "log.jsonl").read_text().splitlines() for each in (whole, parts)]
    losses = [[(r["step"], r["train/loss"], r["num_zero"]) for r in map(json.loads, log)] for log in logs]
    same_paths = expected.keys() == found.keys()
    same_log = losses[0] == losses[1]
    print(
        json.dumps(
            {
                "kills": kills,
                "differing": differing,
                "same_paths": same_paths,
                "same_log": same_log,
                "num_arrays": len(expected),
                "comparisons": [dataclasses.asdict(end.comparison) for end in (expected_end, found_end)],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
