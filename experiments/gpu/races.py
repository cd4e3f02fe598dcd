"""Which rows are trained, for how long, and what becomes of it in the minutes there are."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import jasgnas
from experiments.common.errors import DataError
from experiments.data import Dataset
from experiments.engine.config import Config, DataConfig, essential_settings
from experiments.engine.presets import DIGITS, PRESETS
from experiments.gpu.journal import Journal, Thing
from experiments.gpu.training import (
    CELLS,
    ERASING,
    ERASING_OR_SLIMMING,
    FULL,
    SLIMMING,
    Program,
    Trainer,
    Training,
    Variant,
)
from experiments.nasbench201.search import cell_without
from experiments.nasbench201.table import look_up, read_table
from experiments.tables.rows import ROWS, Size
from models.nasbench201 import cell_to_string

SEEDS = (0, 1, 2)
LEAST_EPOCHS = 2
_SLOWER = 1.25
"""How much longer than the full network's an epoch with H2SPG is taken to last, before it is known."""
_SPARE = 10.0
"""Seconds that are left for what is not foreseen."""
_HOPE = 0.25
"""What part of the time all seeds at once are hoped to save; they are not tried where compiling takes longer."""
_AHEAD = 2
"""Programs that are compiled at once, beside the training; a GPU on which much is tried out is slow at all of it."""


class Deadline:
    """The moment at which the command is to end."""

    def __init__(self, minutes: float):
        """Counts from now."""
        self._seconds = 60 * minutes
        self._end = time.perf_counter() + self._seconds

    @property
    def remaining(self) -> float:
        """Seconds that are left."""
        return self._end - time.perf_counter()

    @property
    def passed(self) -> float:
        """Share of the time that has passed."""
        return 1 - self.remaining / self._seconds


class Race(NamedTuple):
    """A row, and what it is cut down to.

    Attributes:
        name: name of the row.
        config: its settings.
        native_size: height and width of the images that they are for.
        smoke: how it is made small, to try the command out.
        variants: ways to train it, the full network first.
        read: returns further figures of what was found, given the space and the indices of the groups that are gone.
    """

    name: str
    config: Config
    native_size: int
    smoke: Size
    variants: tuple[Variant, ...]
    read: Callable[[jasgnas.SearchSpace, list[int]], dict[str, Any]] = lambda space, removed: {}

    @property
    def small(self) -> "Race":
        """The same, small enough to try the command out on a CPU, with other images."""
        config = self.smoke.apply(self.config, self.native_size)
        size = self.smoke.image_size or self.native_size
        data = replace(config.data, name=DIGITS.data.name, image_size=size)
        # A CPU compiles and computes bfloat16 slowly.
        return self._replace(config=replace(config, data=data, model=replace(config.model, dtype="float32")))

    @property
    def plan(self) -> Thing:
        """The number of epochs, the same for all trainings of these settings on a device."""
        # A setting at its default is left out: with one that is added later, nothing recorded becomes another thing.
        usual = essential_settings(Config())
        settings = {key: value for key, value in essential_settings(self.config).items() if value != usual.get(key)}
        return Thing("plan", self.name, settings)

    def training(self, variant: str, seed: int, epochs: int) -> Thing:
        """Returns one training.

        Args:
            variant: name of the variant.
            seed: the seed.
            epochs: number of epochs that is planned.
        """
        how = next(each for each in self.variants if each.name == variant)
        given = {f"variant.{key}": value for key, value in how._asdict().items() if value is not None}
        settings = self.plan.settings | given | {"seed": seed, "epochs": epochs}
        return Thing("training", f"{self.name}, {variant}, seed {seed}", settings)


_SMOKE = Size(epochs=2, num_train=64, num_test=64, batch_size=16, image_size=16)


def _row(name: str, variants: tuple[Variant, ...] = ERASING, *, dataset: str | None = None, **h2spg: Any) -> Race:
    """Returns a row of the tables, computed in bfloat16, with a target that random selections can be held against.

    Args:
        name: name of the row.
        variants: ways to train it.
        dataset: the images to take in the place of its own; the name says so.
        **h2spg: the target, and what else differs.
    """
    row = ROWS[name]
    smoke = replace(_SMOKE, options=row.sizes["smoke"].options)
    config = replace(
        row.config,
        model=replace(row.config.model, dtype="bfloat16"),
        data=replace(row.config.data, name=dataset or row.config.data.name),
        h2spg=replace(row.config.h2spg.with_target(), **h2spg),
    )
    return Race(f"{name}-on-{dataset}" if dataset else name, config, row.native_size, smoke, variants)


def _cells() -> Race:
    """Returns the search of NAS-Bench-201's cells at the width that it was published with, computed in bfloat16."""
    name = "nasbench201-cifar10"
    config = PRESETS[name][1]
    smoke = replace(_SMOKE, options={"features": 4, "num_cells": 1})
    return Race(name, replace(config, model=replace(config.model, dtype="bfloat16")), 32, smoke, CELLS, _cell_left)


def _cell_left(space: jasgnas.SearchSpace, removed: list[int]) -> dict[str, Any]:
    """Returns the cell, and its published accuracy where the table is at hand."""
    cell = cell_without(space, removed)
    try:
        table = read_table()
    except DataError:  # its package is not installed; the cell can be looked up anywhere
        return {"cell": cell_to_string(cell)}
    found = look_up(table, cell)
    return {"cell": found["cell"], "cell_accuracy": found["accuracy"], "cell_rank": found["rank"]}


RACES = (
    # The papers' sets meet these: 454,458 of 818,250 parameters, and here 0.630 of the multiply-adds.
    _row("demonet-fashion-mnist", ERASING_OR_SLIMMING, target_params=0.56, multiple_of=8),
    _row("stacked-unets-cifar10", target_macs=0.64),
    _row("super-resnet-1m-cifar10", target_macs=0.35),
    _row("regnet-cifar10", target_macs=0.6),
    _row("stacked-unets-svhn", dataset="svhn_test10k", target_macs=0.64),
    # Convolutions of bfloat16 want multiples of eight channels.
    _row("resnet18-cifar10", SLIMMING, target_macs=0.5, multiple_of=8),
    _cells(),
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
            budget = deadline.remaining / (len(self._races) - place)
            if budget < _SPARE or prepared is None:
                return
            missing = self._missing(race)
            plan = self._journal.do(race.plan, partial(_plan, prepared, missing, budget))
            if plan is not None:
                _Heats(race, prepared.result(), self._journal, plan, deadline).run(missing)

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
        """Returns the trainings that are not done, those of a seed together; what follows from others comes last."""
        trainings = [(variant, seed) for seed in SEEDS for variant in race.variants]
        trainings.sort(key=lambda each: each[0].follows)
        plan = self._journal.figures(race.plan)
        if plan is None:
            return trainings
        return [
            (variant, seed)
            for variant, seed in trainings
            if self._journal.figures(race.training(variant.name, seed, plan["epochs"])) is None
        ]


class _Heats:
    """The trainings of a row: while one makes its epochs, others become smaller, and programs are compiled."""

    def __init__(self, race: Race, trainer: Trainer, journal: Journal, plan: dict[str, Any], deadline: Deadline):
        """Has nothing trained yet.

        Args:
            race: the row.
            trainer: its network and images.
            journal: where every training becomes a line.
            plan: what `_plan` returns.
            deadline: the moment after which nothing is begun.
        """
        self._race, self._trainer, self._journal, self._deadline = race, trainer, journal, deadline
        self._epochs, self._epoch_seconds = plan["epochs"], plan["epoch_seconds"]
        self._saved_at_once = self._epoch_seconds - plan.get("epoch_seconds_at_once", np.inf)
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._programs: dict[Variant, Future[Program]] = {}
        self._programs_at_once: dict[Variant, Future[Program]] = {}
        self._begun: deque[tuple[Variant, int, Future[Training]]] = deque()

    def run(self, trainings: list[tuple[Variant, int]]) -> None:
        """Makes the trainings in order, as far as there is time for them."""
        while trainings:
            variant, seed = trainings[0]
            self._compile_ahead(trainings, _AHEAD)
            while self._begun and (self._begun[0][2].done() or not self._may_begin(variant)):
                self._end_first()
            self._compile_ahead(trainings, 1)
            if variant not in self._programs or self._deadline.remaining < self._estimate(variant, 1):
                break
            begun = self._begin(variant, seed)
            self._begun += ((variant, each, coming) for each, coming in begun.items())
            trainings = [each for each in trainings if each[0] != variant or each[1] not in begun]
        while self._begun:
            self._end_first()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _may_begin(self, variant: Variant) -> bool:
        """Tells whether the trainings that a variant follows from have ended."""
        return self._length(variant) is not None and all(each.name != variant.as_large_as for each, *_ in self._begun)

    def _length(self, variant: Variant) -> int | None:
        """Returns the number of epochs, None if it follows from trainings that have not ended."""
        if variant.as_long_as is None:
            return self._epochs
        full, other = self._median_seconds(FULL.name), self._median_seconds(variant.as_long_as)
        return None if full is None or other is None else max(LEAST_EPOCHS, int(self._epochs * full / other))

    def _median_seconds(self, variant: str) -> float | None:
        """Returns how long the trainings of a variant take; single ones may have waited for a compilation."""
        found = [self._found(variant, seed) for seed in SEEDS]
        return None if None in found else float(np.median([each["train_seconds"] for each in found if each]))

    def _found(self, variant: str, seed: int) -> dict[str, Any] | None:
        """Returns what came of a training, None if it has not ended or failed."""
        return self._journal.figures(self._race.training(variant, seed, self._epochs))

    def _compile_ahead(self, trainings: list[tuple[Variant, int]], number: int) -> None:
        for variant, _ in trainings[:number]:
            if variant in self._programs or (length := self._length(variant)) is None:
                continue
            self._programs[variant] = self._pool.submit(self._trainer.compile, variant, length)
            if self._saves_time(variant, length) and _all_seeds_of(variant, trainings):
                at_once = self._pool.submit(self._trainer.compile, variant, length, len(SEEDS))
                self._programs_at_once[variant] = at_once

    def _saves_time(self, variant: Variant, length: int) -> bool:
        """Tells whether all seeds at once may be faster, with another program that is to be compiled.

        H2SPG's steps gain no more than plain ones: of each condition both sides are computed then.
        """
        compiling = 0 if variant == FULL else self._trainer.compile(FULL, 1).seconds
        return len(SEEDS) * length * self._saved_at_once > compiling

    def _estimate(self, variant: Variant, num_seeds: int) -> float:
        """Returns the seconds after which trainings that begin now have ended, and all that have begun already."""
        length = self._length(variant) or 0
        return (num_seeds * length + len(self._begun) * self._epochs) * _SLOWER * self._epoch_seconds + _SPARE

    def _begin(self, variant: Variant, seed: int) -> dict[int, Future[Training]]:
        """Trains with a seed, or with all of them where that is faster, until the networks are to become smaller.

        What goes wrong becomes a line, and the rest goes on.
        """
        with suppress(Exception):  # the memory may be too small, or one of the seeds at fault: each is trained alone
            if program := self._faster_at_once(variant):
                return self._advanced(program, variant, SEEDS)
        try:
            return self._advanced(self._programs[variant].result(), variant, (seed,))
        except Exception as error:
            return {seed: _ended(error)}

    def _faster_at_once(self, variant: Variant) -> Program | None:
        """Returns the program for all seeds, once, if there is one that is faster and there is time for it."""
        coming = self._programs_at_once.pop(variant, None)
        if coming is None or self._deadline.remaining < self._estimate(variant, len(SEEDS)):
            return None
        alone, at_once = self._programs[variant].result(), coming.result()
        # The full network's were measured for the plan.
        if variant == FULL or _epoch_seconds(self._trainer, at_once) < _epoch_seconds(self._trainer, alone):
            return at_once
        return None

    def _advanced(self, program: Program, variant: Variant, seeds: Sequence[int]) -> dict[int, Future[Training]]:
        """Trains with some seeds; the networks become smaller beside the next training."""
        begun = [self._trainer.start(program, seed, self._draw(variant, seed)) for seed in seeds]
        trainings = self._trainer.advance_at_once(program, begun)
        return {
            each.seed: self._pool.submit(self._shrunk, each) if each.is_to_shrink else _ended(each)
            for each in trainings
        }

    def _draw(self, variant: Variant, seed: int) -> int | None:
        """Returns what draws the random selection of a variant that is to be as large as another one."""
        if variant.as_large_as is None:
            return None
        other = self._found(variant.as_large_as, seed)
        return None if other is None else self._trainer.nearest_draw(variant.kinds, other["predicted_size"][1], seed)

    def _shrunk(self, training: Training) -> Training:
        # What the full network returns is asked for while there is one.
        logits = self._trainer.logits(training) if training.seed == SEEDS[0] else None
        smaller = self._trainer.shrunk(training)
        if logits is None:
            return smaller
        error = float(np.abs(self._trainer.logits(smaller) - logits).max() / np.abs(logits).max())
        return smaller._replace(subnet_error=error)

    def _end_first(self) -> None:
        variant, seed, coming = self._begun.popleft()
        training = self._race.training(variant.name, seed, self._epochs)
        self._journal.do(training, partial(self._figures, variant, seed, coming))

    def _figures(self, variant: Variant, seed: int, coming: Future[Training]) -> dict[str, Any]:
        """Trains to the end, and returns what came of it."""
        training, trainer = coming.result(), self._trainer
        if training.epoch < training.program.recipe.epochs:
            training = trainer.advance(training)
        recipe = training.program.recipe
        figures = {
            "row": self._race.name,
            "plan": self._race.plan.settings_id,
            "variant": variant.name,
            "seed": seed,
            "dtype": self._race.config.model.dtype,
            "epochs": recipe.epochs,
            "steps": recipe.epochs * trainer.steps_per_epoch,
            "accuracy": trainer.accuracy(training),
            "train_seconds": training.seconds,
            "epoch_seconds": training.epoch_seconds,
            "at_once": training.at_once,
            "shrinks_after": recipe.shrinks_after,
            "compile_seconds": training.program.seconds,
            "full_size": trainer.full_size,
            "size": training.program.size,
        }
        if recipe.space is None:
            return figures
        space, h2spg = recipe.space, jasgnas.h2spg_state(training.state.opt_state)
        removed = np.flatnonzero(np.asarray(h2spg.zero)).tolist()
        figures |= {
            "predicted_size": space.subnet_size(removed),
            "removed": [space.name_of(index) for index in removed if index < len(space.structures)],
            "num_removed": len(removed),
            "num_groups": len(space.groups),
            "selected_at": int(h2spg.selected_at),
        }
        figures |= self._race.read(space, removed)
        if variant.as_large_as is not None:
            figures["draw"] = training.draw
        return figures if training.subnet_error is None else figures | {"subnet_error": training.subnet_error}


def _all_seeds_of(variant: Variant, missing: list[tuple[Variant, int]]) -> bool:
    """Tells whether no training of a variant is done, so that all of them can be made at once."""
    return all((variant, seed) in missing for seed in SEEDS)


def _epoch_seconds(trainer: Trainer, program: Program) -> float:
    """Measures an epoch, and returns how long it takes for a seed."""
    # Of two epochs: the first may find the device cold.
    short = program._replace(recipe=program.recipe._replace(epochs=2, shrinks_after=None))
    trainings = [trainer.start(short, seed) for seed in SEEDS[: program.num_seeds]]
    return trainer.advance_at_once(short, trainings)[0].epoch_seconds[0]


def _ended(result: Training | Exception) -> Future[Training]:
    """Returns what has come to an end, well or not, as what is under way is returned."""
    found: Future[Training] = Future()
    if isinstance(result, Exception):
        found.set_exception(result)
    else:
        found.set_result(result)
    return found


def _plan(prepared: Future[Trainer], missing: list[tuple[Variant, int]], budget: float) -> dict[str, Any]:
    """Measures an epoch, and returns for how many there is time."""
    trainer = prepared.result()
    program = trainer.compile(FULL, 1)
    seconds = _epoch_seconds(trainer, program)
    num_full = sum(variant == FULL or variant.as_long_as is not None for variant, _ in missing)
    whole = seconds * (num_full + _SLOWER * (len(missing) - num_full))
    # H2SPG's steps, and those of the last smaller network, are compiled while nothing can be trained.
    epochs = int((budget - 3 * program.seconds - _SPARE) / whole)
    epochs = min(max(epochs, LEAST_EPOCHS), trainer.full_epochs)
    plan = {"epochs": epochs, "epoch_seconds": seconds}
    if _all_seeds_of(FULL, missing) and _HOPE * epochs * whole > program.seconds:
        with suppress(Exception):  # the memory may be too small
            plan["epoch_seconds_at_once"] = _epoch_seconds(trainer, trainer.compile(FULL, 1, len(SEEDS)))
    return plan
