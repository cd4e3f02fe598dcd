"""Which rows are trained, for how long, and what becomes of it in the minutes there are."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import jasgnas
from experiments.data import Dataset
from experiments.engine.config import Config, DataConfig
from experiments.engine.presets import DIGITS
from experiments.gpu.journal import Journal
from experiments.gpu.training import ERASING, FULL, SLIMMING, Program, Trainer, Variant
from experiments.tables.rows import ROWS, Size

SEEDS = (0, 1, 2)
LEAST_EPOCHS = 2
_SLOWER = 1.25
"""How much longer than the full network's an epoch with H2SPG is taken to last, before it is known."""
_SPARE = 10.0
"""Seconds that are left for what is not foreseen."""


class Deadline:
    """The moment at which the command is to end."""

    def __init__(self, minutes: float):
        """Counts from now."""
        self._end = time.perf_counter() + 60 * minutes

    @property
    def remaining(self) -> float:
        """Seconds that are left."""
        return self._end - time.perf_counter()


class Race(NamedTuple):
    """A row, and what it is cut down to.

    Attributes:
        name: name of the row.
        config: its settings.
        native_size: height and width of the images that they are for.
        smoke: how it is made small, to try the command out.
        variants: ways to train it, the full network first.
    """

    name: str
    config: Config
    native_size: int
    smoke: Size
    variants: tuple[Variant, ...]

    @property
    def small(self) -> "Race":
        """The same, small enough to try the command out on a CPU, with other images."""
        config = self.smoke.apply(self.config, self.native_size)
        size = self.smoke.image_size or self.native_size
        return self._replace(config=replace(config, data=replace(config.data, name=DIGITS.data.name, image_size=size)))


_SMOKE = Size(epochs=2, num_train=64, num_test=64, batch_size=16, image_size=16)


def _row(name: str, variants: tuple[Variant, ...] = ERASING, **target: float) -> Race:
    """Returns a row of the tables, with a target that random selections can be held against."""
    row = ROWS[name]
    smoke = replace(_SMOKE, options=row.sizes["smoke"].options)
    config = replace(row.config, h2spg=row.config.h2spg.with_target(**target))
    return Race(name, config, row.native_size, smoke, variants)


RACES = (
    # The papers' sets meet these: 454,458 of 818,250 parameters, and here 0.630 of the multiply-adds.
    _row("demonet-fashion-mnist", target_params=0.56),
    _row("stacked-unets-cifar10", target_macs=0.64),
    _row("resnet18-cifar10", SLIMMING, target_macs=0.5),
    _row("regnet-cifar10", target_macs=0.6),
    _row("super-resnet-1m-cifar10", target_macs=0.35),
)
"""In order of value."""


class Races:
    """The rows that are not done; while one is trained, the next one's images are loaded and its step is compiled."""

    def __init__(self, races: Iterable[Race], journal: Journal, open_dataset: Callable[[DataConfig], Dataset]):
        """Begins to prepare the first row that is not done.

        Args:
            races: the rows, in order of value.
            journal: where every training becomes a line.
            open_dataset: returns the images that a row's settings name.
        """
        self._journal, self._open_dataset = journal, open_dataset
        self._races = [race for race in races if self._missing(race)]
        self._pool = ThreadPoolExecutor(1)
        self._prepared = self._prepare(0)

    def run(self, deadline: Deadline) -> None:
        """Trains three seeds of each variant of each row, as long as there is time.

        How many epochs a row gets follows from the time that one takes, and from the time that is left. They are
        recorded, so that a later command goes on with as many.
        """
        for place, race in enumerate(self._races):
            prepared, self._prepared = self._prepared, self._prepare(place + 1)
            # The first rows get more: the last ones may have to wait for another command.
            budget = deadline.remaining / min(len(self._races) - place, 2)
            if budget < _SPARE or prepared is None:
                return
            missing = self._missing(race)
            plan = self._journal.do("plan", race.name, partial(_plan, prepared, missing, budget))
            if plan is not None:
                self._train(race, prepared.result(), missing, plan, deadline)

    def _prepare(self, place: int) -> Future[Trainer] | None:
        if place >= len(self._races):
            return None
        race = self._races[place]

        def prepare() -> Trainer:
            trainer = Trainer(race.config, self._open_dataset(race.config.data))
            trainer.compile(FULL, 1)
            return trainer

        return self._pool.submit(prepare)

    def _missing(self, race: Race) -> list[tuple[Variant, int]]:
        """Returns the trainings that are not done, those of a seed together."""
        trainings = [(variant, seed) for seed in SEEDS for variant in race.variants]
        return [each for each in trainings if self._journal.figures("training", _name(race, *each)) is None]

    def _train(
        self, race: Race, trainer: Trainer, missing: list[tuple[Variant, int]], plan: dict[str, Any], deadline: Deadline
    ) -> None:
        epochs = plan["epochs"]
        lasts: dict[Variant, float] = {}
        pool = ThreadPoolExecutor(len(race.variants))
        programs = {
            variant: pool.submit(trainer.compile, variant, epochs) for variant in dict.fromkeys(v for v, _ in missing)
        }
        for variant, seed in missing:
            if deadline.remaining < epochs * lasts.get(variant, _SLOWER * plan["epoch_seconds"]) + _SPARE:
                break
            work = partial(_figures, race, trainer, variant, programs[variant], seed)
            figures = self._journal.do("training", _name(race, variant, seed), work)
            if figures is not None:
                lasts[variant] = figures["epoch_seconds"]
        pool.shutdown(cancel_futures=True)


def _name(race: Race, variant: Variant, seed: int) -> str:
    return f"{race.name}, {variant.name}, seed {seed}"


def _plan(prepared: Future[Trainer], missing: list[tuple[Variant, int]], budget: float) -> dict[str, Any]:
    """Measures an epoch, and returns for how many there is time."""
    trainer = prepared.result()
    program = trainer.compile(FULL, 2)  # of two epochs, the first may find the device cold
    _, seconds = trainer.train(program, 0)
    whole = seconds * sum(1 if variant == FULL else _SLOWER for variant, _ in missing)
    # What H2SPG's steps take to compile is about as long as the full network's, beside whose training it is done.
    epochs = int((budget - 1.5 * program.seconds - _SPARE) / whole)
    return {"epochs": min(max(epochs, LEAST_EPOCHS), trainer.full_epochs), "epoch_seconds": seconds}


def _figures(race: Race, trainer: Trainer, variant: Variant, coming: Future[Program], seed: int) -> dict[str, Any]:
    """Trains once, and returns what came of it."""
    program = coming.result()
    state, epoch_seconds = trainer.train(program, seed)
    logits, accuracy = trainer.test(state)
    figures = {
        "row": race.name,
        "variant": variant.name,
        "seed": seed,
        "epochs": program.epochs,
        "steps": program.epochs * trainer.steps_per_epoch,
        "accuracy": accuracy,
        "epoch_seconds": epoch_seconds,
        "compile_seconds": program.seconds,
        "full_size": trainer.full_size,
        "size": trainer.full_size,
    }
    if program.space is None:
        return figures
    space, h2spg = program.space, jasgnas.h2spg_state(state.opt_state)
    removed = np.flatnonzero(np.asarray(h2spg.zero)).tolist()
    figures |= {
        "size": space.subnet_size(removed),
        "removed": [space.name_of(index) for index in removed if index < len(space.structures)],
        "num_removed": len(removed),
        "num_groups": len(space.groups),
        "selected_at": int(h2spg.selected_at),
    }
    if seed == SEEDS[0]:
        subnet_logits, subnet_accuracy, subnet_size = trainer.test_subnet(space, state)
        error = float(np.abs(subnet_logits - logits).max() / np.abs(logits).max())
        figures |= {"subnet_accuracy": subnet_accuracy, "subnet_error": error, "subnet_size": subnet_size}
    return figures
