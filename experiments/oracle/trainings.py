"""Trains: one network to its end, with a snapshot and scores on the way, and sets from that snapshot."""

import time
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import jasgnas
from experiments.common.errors import DivergedError
from experiments.common.files import save_arrays
from experiments.data import Batch, Dataset, EvalBatches, TrainBatches
from experiments.engine.networks import Network, create_module
from experiments.engine.optimizers import make_optimizer, make_schedule
from experiments.engine.runs import make_space
from experiments.engine.steps import (
    Hits,
    Metrics,
    StepOptions,
    TrainState,
    cross_entropy,
    init_state,
    make_eval_step,
    make_train_step,
    soft_targets,
)
from experiments.oracle.settings import Settings
from jasgnas.optimizer.scores import SCORES

_TEST_BATCH = 500


class Scored(NamedTuple):
    """What the scores said at one point, see `records.ScoresRecord`."""

    point: float
    scores: dict[str, list[float]]
    loss_rises: list[float]
    seconds: float


class Chosen(NamedTuple):
    """What is chosen by the loss without whole sets, see `records.ChoiceRecord`."""

    budget: float
    removed: tuple[int, ...]
    seconds: float


class Trained(NamedTuple):
    """What a training ended with, see `records.SetRecord`."""

    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float


class Trainer:
    """Trains the networks of one oracle.

    Attributes:
        space: the search space.
        num_steps: steps of each training.
        start: steps before the snapshot.
    """

    def __init__(self, settings: Settings, dataset: Dataset, folder: Path):
        """Prepares the trainings; what is compiled is compiled once for all seeds.

        Args:
            settings: what to train.
            dataset: the images.
            folder: where snapshots are kept.
        """
        self._settings = settings
        self._folder = folder
        self._dataset = dataset
        config = settings.config(0)
        module = create_module(config, dataset.num_classes, dataset.image_shape)
        self.space = make_space(module, dataset.image_shape)
        self._network = Network(module)
        batches = self._train_batches(0)
        self.num_steps = batches.num_steps
        self.start = self._step_at(settings.snapshot)
        self._schedule = make_schedule(config.optimizer, batches.steps_per_epoch, self.num_steps)
        self._tx = make_optimizer(config.optimizer, self._schedule)
        self._options = StepOptions.of(config, dataset)
        self._full_step = jax.jit(make_train_step(self._network, self._tx, self._options, None), donate_argnums=0)
        self._set_step = jax.jit(self._step_of_set, donate_argnums=0, static_argnames="num_groups")
        self._eval_step = jax.jit(make_eval_step(self._network, self._options, None))
        # Random numbers of images depend on the seed: those of the latest one are kept.
        self._batches = lru_cache(1)(lambda seed: list(self._train_batches(seed)))
        self._snapshot = lru_cache(1)(self._read_snapshot)

    @property
    def chance(self) -> float:
        """Accuracy in percent of an output that does not depend on the image."""
        return 100 / self._dataset.num_classes

    def train_full(self, seed: int) -> tuple[Trained, list[Scored | Chosen]]:
        """Trains the full network to its end, and keeps its snapshot.

        Returns:
            What it ended with, what the scores said at the points of the settings and at the snapshot, and what the
            loss without sets chooses there.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        started = time.perf_counter()
        settings, batches = self._settings, self._batches(seed)
        points: dict[int, list[float]] = {}
        for point in sorted({*settings.points, settings.snapshot}):
            points.setdefault(self._step_at(point), []).append(point)
        state, losses = self._initial_state(seed), []
        found: list[Scored | Chosen] = []
        for step, batch in enumerate(batches, start=1):
            state, metrics = self._full_step(state, batch)
            losses.append(metrics.loss)
            if step == self.start:
                self._write_snapshot(seed, state)
            if step in points:
                measured = self._scored(state, seed, step)
                found += [measured._replace(point=point) for point in points[step]]
            if step == self.start:
                found += [self._chosen(state, seed, budget) for budget in settings.budgets]
        measuring = sum(each.seconds for each in found)
        return self._trained(state, losses, started + measuring), found

    def train_set(self, removed: tuple[int, ...], seed: int) -> Trained:
        """Trains on from the snapshot while H2SPG takes a set to zero.

        It is the only one that H2SPG can choose: its groups have the score 1, all others 0, and so many must go.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        started = time.perf_counter()
        scores = np.isin(np.arange(len(self.space.groups)), removed).astype(np.float32)
        state = self._snapshot(seed)
        tx = self._with_h2spg(scores, len(removed))
        state = state._replace(opt_state=(state.opt_state, tx.init(state.variables.params)[1]))
        losses = []
        for batch in self._batches(seed)[self.start :]:
            state, metrics = self._set_step(state, batch, scores, num_groups=len(removed))
            losses.append(metrics.loss)
        zero = np.asarray(jasgnas.h2spg_state(state.opt_state).zero)
        assert np.array_equal(zero, scores > 0), f"{removed} was to go, and {np.flatnonzero(zero)} went"
        return self._trained(state, losses, started)

    def _step_at(self, part: float) -> int:
        """Returns the number of steps that are a part of all, at least one."""
        return max(1, round(part * self.num_steps))

    def _with_h2spg(self, scores: Any, num_groups: int) -> optax.GradientTransformation:
        """Returns the chain that goes on with the optimizer's state of the snapshot; scores may be traced."""
        h2spg = jasgnas.h2spg(
            self.space,
            learning_rate=lambda step: self._schedule(self.start + step),
            target_groups=num_groups,
            warmup_steps=1,  # the fewest there can be
            projection_steps=min(self._step_at(self._settings.projection), self.num_steps - self.start - 1),
            score=lambda stats: jax.numpy.asarray(scores),
        )
        return optax.chain(self._tx, h2spg)

    def _step_of_set(
        self, state: TrainState, batch: Batch, scores: jax.Array, num_groups: int
    ) -> tuple[TrainState, Metrics]:
        """Makes a step; the scores are an argument, so that sets of equally many groups share what is compiled."""
        tx = self._with_h2spg(scores, num_groups)
        return make_train_step(self._network, tx, self._options, None)(state, batch)

    def _trained(self, state: TrainState, losses: list[jax.Array], started: float) -> Trained:
        values = np.array(losses, np.float64)
        if not np.all(np.isfinite(values)):
            raise DivergedError(f"the loss of step {int(np.argmin(np.isfinite(values))) + 1} is not finite")
        counted = [self._eval_step(state.variables, batch) for batch in self._test_batches]
        total = Hits(*np.sum([jax.device_get(hits) for hits in counted], axis=0))
        loss, accuracy = (float(each) / len(self._dataset.test) for each in (total.loss, total.top1))
        last = values[-max(1, self.num_steps // 10) :]
        return Trained(float(last.mean()), loss, accuracy, time.perf_counter() - started)

    def _scored(self, state: TrainState, seed: int, step: int) -> Scored:
        """Measures all scores on the latest batches, and the rise of the loss on test batches."""
        started = time.perf_counter()
        number, size = self._settings.score_batches, self._settings.batch_size
        module = self._network.module(state.variables)
        seen = self._latest_batches(seed, step)
        held_out = [batch for batch, _ in zip(EvalBatches(self._dataset.test, size), range(number), strict=False)]
        held_out = [batch for batch in held_out if np.all(batch.labels >= 0)]  # without the one that is filled up
        measure = partial(jasgnas.score_groups, self.space, module, self._loss, train=True)
        scores = {name: measure(seen, score=name).tolist() for name in SCORES}
        rises = (-measure(held_out, score="ablation")).tolist()
        return Scored(step / self.num_steps, scores, rises, time.perf_counter() - started)

    def _chosen(self, state: TrainState, seed: int, budget: float) -> Chosen:
        """Chooses by the loss without whole sets on the latest batches before the snapshot."""
        started = time.perf_counter()
        module, batches = self._network.module(state.variables), self._latest_batches(seed, self.start)
        removed = jasgnas.select_groups(self.space, module, self._loss, batches, target_macs=budget, train=True)
        return Chosen(budget, removed, time.perf_counter() - started)

    def _latest_batches(self, seed: int, step: int) -> list[Batch]:
        """Returns the batches before a step that scores are averaged over."""
        return self._batches(seed)[max(0, step - self._settings.score_batches) : step]

    def _loss(self, module: nnx.Module, batch: Batch) -> jax.Array:
        """Returns the loss of the main classifier."""
        outputs = module(self._options.normalised(batch.images))
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return cross_entropy(logits, soft_targets(batch, self._options.num_classes, self._options.label_smoothing))

    def _initial_state(self, seed: int) -> TrainState:
        module = create_module(self._settings.config(seed), self._dataset.num_classes, self._dataset.image_shape)
        return init_state(Network.variables(module), self._tx, 0.0)

    def _snapshot_path(self, seed: int) -> Path:
        return self._folder / f"snapshot-{seed}.npz"

    def _write_snapshot(self, seed: int, state: TrainState) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        save_arrays(self._snapshot_path(seed), {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))})

    def _read_snapshot(self, seed: int) -> TrainState:
        """Returns the state at the snapshot as NumPy arrays, which no step can give away; trains to it if need be."""
        state = self._initial_state(seed)
        if not self._snapshot_path(seed).exists():
            for batch in self._batches(seed)[: self.start]:
                state, _ = self._full_step(state, batch)
            self._write_snapshot(seed, state)
        with np.load(self._snapshot_path(seed)) as arrays:
            leaves = [arrays[str(index)] for index in range(len(arrays.files))]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)

    def _train_batches(self, seed: int) -> TrainBatches:
        settings = self._settings
        return TrainBatches(
            self._dataset,
            settings.batch_size,
            seed=seed,
            epochs=settings.epochs,
            augmentation=settings.data.augmentation,
            workers=settings.data.workers,
        )

    @cached_property
    def _test_batches(self) -> list[Batch]:
        return list(EvalBatches(self._dataset.test, min(_TEST_BATCH, len(self._dataset.test))))
