"""One training of the super-network, and the cell that is left of it."""

import dataclasses
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
from experiments.common.errors import ConfigError, DivergedError
from experiments.data import Augmentation, Dataset, TrainBatches, open_dataset
from experiments.data.files import read_files
from experiments.engine.config import Config
from experiments.engine.networks import Network
from experiments.engine.presets import CELL_EDGE, CELL_OPERATION, CELL_OTHERS
from experiments.engine.steps import StepOptions, TrainStep, init_state, make_train_step
from jasgnas.space.ties import PathPattern
from models.nasbench201 import EDGES, Cells, NasBench201


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and how; by default what fits one GPU."""

    dataset: str = "cifar10"
    """Name of the data set: the embedded digits, or one that `experiments.prepare` has made ready."""
    data_dir: Path | None = None
    """Folder of the data sets."""
    files: Path | None = None
    """Folder of the files that the data sets are published in, as `python -m experiments.bundle_gpu` collects them, in
    place of prepared data sets."""
    image_size: int | None = None
    """Height and width to bring the images to, where they differ in size."""
    num_train: int | None = None
    """Train on so many images; None for all."""
    features: int = 16
    """Channels of the first stage."""
    num_cells: int = 5
    """Cells of each stage."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 0.05
    """Where the learning rate starts to fall along a cosine."""
    weight_decay: float = 5e-4
    """Strength of the weight decay."""
    warmup: float = 0.7
    """Part of the steps after which operations are selected; the scores are averaged over the second half of them."""
    projection: float = 0.2
    """Part of the steps over which these go to zero."""
    periods: int = 1
    """Rounds of selection; what is left is measured anew in each."""
    forward_passes: float = 0.5
    """How many evaluations of the loss `ablation` costs per scored step, on average."""

    def __post_init__(self) -> None:
        """Refuses settings that no search could meet."""
        if not 0 < self.warmup < 1 or not 0 < self.projection <= 1 - self.warmup + 1e-9:
            raise ConfigError(
                "warmup and projection must be positive parts of the steps that add up to at most 1, got "
                f"{self.warmup} and {self.projection}"
            )
        if min(self.features, self.num_cells, self.epochs, self.batch_size, self.periods) < 1:
            raise ConfigError("features, num_cells, epochs, batch_size and periods must be at least 1")


class Found(NamedTuple):
    """What one training found.

    Attributes:
        cell: the operation that is left on each edge, none where none is.
        rises: by operation, as `0_1/skip_connect`, minus its score at the end: by how much the loss rises without it.
        loss: mean training loss of the last tenth of the steps before the selection.
        seconds: how long it took.
    """

    cell: Cells
    rises: dict[str, float]
    loss: float
    seconds: float


def operations(space: jasgnas.SearchSpace) -> list[tuple[str, str]]:
    """Returns the edge, as `0_1`, and the name of the operation that each group is, in a space as `Search` makes it."""
    pattern = PathPattern(CELL_OPERATION)
    found = (dict(pattern.captures(group.paths) or ()) for group in space.groups)
    return [(each["edge"], each["op"]) for each in found]


def cell_without(space: jasgnas.SearchSpace, removed: Iterable[int]) -> Cells:
    """Returns the operation that is left on each edge, given the indices of the groups that are gone."""
    gone = set(removed)
    left = {edge: name for index, (edge, name) in enumerate(operations(space)) if index not in gone}
    return {(source, target): left.get(f"{source}_{target}", "none") for source, target in EDGES}


class Search:
    """Trains super-networks of one size, each with a seed and a score of its own.

    Attributes:
        space: the search space: 24 groups, the operations of the six edges.
    """

    def __init__(self, settings: Settings):
        """Opens the data set and makes the search space.

        Raises:
            DataError: there is no such data set, or it is not prepared.
        """
        self._settings = settings
        dataset = (
            open_dataset(settings.dataset, settings.data_dir, settings.image_size)
            if settings.files is None
            else read_files(settings.dataset, settings.files)
        )
        self._dataset: Dataset = dataset.take(settings.num_train, None)
        image = jax.ShapeDtypeStruct((1, *self._dataset.image_shape), jnp.float32)
        self._image = image
        self._steps = lru_cache(self._make_steps)
        self.space = jasgnas.search_space(self._module(0), image, tie=CELL_OPERATION, keep=CELL_OTHERS)

    def random_cell(self, seed: int) -> Cells:
        """Returns the cell that is left if scores are random numbers."""
        scores = np.random.default_rng(seed).uniform(size=len(self.space.groups))
        return cell_without(self.space, self.space.select(scores, at_most={CELL_EDGE: 1}))

    def train(self, seed: int, score: str) -> Found:
        """Trains a super-network once, until one operation of each edge is left, or none.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        started = time.perf_counter()
        batches = self._batches(seed)
        warmup, projection = self._phases(batches.num_steps)
        tx, step = self._steps(score)
        state, losses = init_state(Network.variables(self._module(seed)), tx, 0.0), []
        for _, batch in zip(range(warmup + projection), batches, strict=False):
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
        values = np.array(losses, np.float64)
        if not np.all(np.isfinite(values)):
            raise DivergedError(f"the loss of step {int(np.argmin(np.isfinite(values))) + 1} is not finite")
        end = jasgnas.h2spg_state(state.opt_state)
        assert np.array_equal(end.zero, end.redundant)
        rises = {"/".join(each): -float(own) for each, own in zip(operations(self.space), end.scores, strict=True)}
        before = values[:warmup]
        loss = float(before[-max(1, len(before) // 10) :].mean())
        return Found(cell_without(self.space, np.flatnonzero(end.zero)), rises, loss, time.perf_counter() - started)

    def _make_steps(self, score: str) -> tuple[optax.GradientTransformation, TrainStep]:
        """Returns the optimizer and the step of all trainings by one score, compiled once for all seeds."""
        settings, num_steps = self._settings, self._batches(0).num_steps
        warmup, projection = self._phases(num_steps)
        schedule = optax.cosine_decay_schedule(settings.learning_rate, num_steps)
        tx = optax.chain(
            optax.clip_by_global_norm(5.0),
            optax.add_decayed_weights(settings.weight_decay),
            optax.sgd(schedule, momentum=0.9, nesterov=True),
            jasgnas.h2spg(
                self.space,
                learning_rate=schedule,
                at_most={CELL_EDGE: 1},
                warmup_steps=warmup,
                projection_steps=projection,
                periods=settings.periods,
                score=score,
                forward_passes=settings.forward_passes,
            ),
        )
        train_step = make_train_step(Network(self._module(0)), tx, StepOptions.of(Config(), self._dataset), None)
        return tx, jax.jit(train_step, donate_argnums=0)

    def _phases(self, num_steps: int) -> tuple[int, int]:
        """Returns how many steps there are before the selection, and how many until what is selected is gone."""
        projection = max(self._settings.periods, round(self._settings.projection * num_steps))
        return max(1, round(self._settings.warmup * num_steps)), projection

    def _batches(self, seed: int) -> TrainBatches:
        settings = self._settings
        return TrainBatches(
            self._dataset, settings.batch_size, seed=seed, epochs=settings.epochs, augmentation=Augmentation()
        )

    def _module(self, seed: int) -> nnx.Module:
        module = NasBench201(
            self._dataset.num_classes,
            features=self._settings.features,
            num_cells=self._settings.num_cells,
            in_channels=self._dataset.image_shape[-1],
            rngs=nnx.Rngs(seed),
        )
        module.eval()
        return jasgnas.gated(module, self._image)
