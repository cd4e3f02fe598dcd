"""Trains rows of the papers' tables with everything on the device: images, their augmentation, and an epoch per call.

Every row is trained in full, with H2SPG, and with a random valid selection of the same size. The images of a batch and
what is changed of them are those of `experiments.train` with the same seed. As soon as all that is redundant is zero,
a training goes on with the smaller network.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
from experiments.common.errors import DivergedError
from experiments.data import Dataset, EvalBatches
from experiments.data.augment import uniforms
from experiments.data.pipeline import changed_batch, drawn_shares, epoch_order, mean_color
from experiments.engine.config import Config, H2SPGConfig
from experiments.engine.networks import Network, create_module, inference_params
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule, random_scores, round_ends
from experiments.engine.runs import make_space
from experiments.engine.steps import StepOptions, TrainState, init_state, make_train_step

_TEST_BATCH = 500
NUM_DRAWS = 100
"""Random selections of which the nearest in size to another one is taken."""


class Variant(NamedTuple):
    """One way to train a row.

    Attributes:
        name: what it is called.
        score: H2SPG's score; None trains the full network.
        kinds: what it may remove, as `H2SPGConfig.kinds`.
        as_long_as: another variant, in as many epochs as take as long as the full network's training, as far as that
            variant's times tell; None makes as many steps as the full network.
        as_large_as: another variant, which it is to have as many multiply-adds left as with the same seed, as nearly as
            random draws come to them.
    """

    name: str
    score: str | None
    kinds: str = "structures"
    as_long_as: str | None = None
    as_large_as: str | None = None

    @property
    def follows(self) -> bool:
        """Tells whether it begins after all trainings of another variant."""
        return self.as_long_as is not None or self.as_large_as is not None


FULL = Variant("full", None)
_H2SPG, _BOTH = Variant("h2spg", "default"), Variant("erase and slim", "default", "both")
_AS_LARGE = Variant("random", "random", as_large_as=_H2SPG.name)
_AS_LONG = Variant("h2spg, equal time", "default", as_long_as=_H2SPG.name)
_SLIM = Variant("slim", "default", "channels")
ERASING = (FULL, _H2SPG, _AS_LARGE, _AS_LONG)
"""Structures are few and large: sets within one budget may differ much in their multiply-adds."""
ERASING_OR_SLIMMING = (*ERASING, _SLIM, Variant("random slim", "random", "channels", as_large_as=_SLIM.name))
SLIMMING = (
    FULL,
    _BOTH,
    Variant("erase", "default"),
    _SLIM,
    Variant("random erase and slim", "random", "both"),
    Variant("erase and slim, equal time", "default", "both", as_long_as=_BOTH.name),
)

CELLS = (FULL, _H2SPG._replace(score="gate"), _AS_LARGE, _AS_LONG._replace(score="gate"))
"""Where operations of a cell do much the same, and what a batch says of one of them is little. As many of them are left
whatever their size: only a random cell that is as large as another one can be held against it."""


class Places(NamedTuple):
    """Which images an epoch shows, and how they are changed; the axes `[steps, batch]` come first.

    Attributes:
        indices: int32, index of each image.
        uniforms: float32 `[…, NUM_UNIFORMS]`, its random numbers.
        shares: float32, the share of its own label.
    """

    indices: np.ndarray
    uniforms: np.ndarray
    shares: np.ndarray


Optimizer = Callable[..., optax.GradientTransformation]
"""Makes the optimizer, given the learning rates of an epoch and the seed; its state does not depend on them."""


class Recipe(NamedTuple):
    """A training as it is planned.

    Attributes:
        variant: the way to train.
        epochs: its length.
        shrinks_after: number of epochs after which the network becomes smaller, None for never.
        space: what H2SPG chooses from, None for the full network.
        optimizer: makes the optimizer.
    """

    variant: Variant
    epochs: int
    shrinks_after: int | None
    space: jasgnas.SearchSpace | None
    optimizer: Optimizer


class Program(NamedTuple):
    """A training, compiled for a network.

    Attributes:
        recipe: the training.
        network: the full network, or a smaller one.
        size: its parameters, without gates, and multiply-adds.
        num_seeds: how many trainings, each with a seed of its own, it advances at once.
        epoch: makes the steps of an epoch, given the state, which it keeps, the learning rates, the places and what
            decides the random score; returns the state and the mean loss. With several seeds they are the first axis of
            all arrays but the learning rates.
        logits: returns those of the test images, given the variables of one training.
        seconds: what compilation took.
    """

    recipe: Recipe
    network: Network
    size: tuple[int, int]
    num_seeds: int
    epoch: Callable[[TrainState, np.ndarray, Places, np.ndarray], tuple[TrainState, jax.Array]]
    logits: Callable[[Any], jax.Array]
    seconds: float


class Training(NamedTuple):
    """How far a training is.

    Attributes:
        program: what goes on with it.
        seed: decides initialisation, order and changes of the images.
        draw: decides the random score.
        state: the arrays.
        epoch: number of epochs made.
        epoch_seconds: what each of them took on average: those of the full network, then those of the smaller one; of
            trainings that were advanced at once, its part.
        at_once: with how many seeds at once, its own among them, it was advanced before the network became smaller.
        subnet_error: largest difference between what the network returned before it became smaller, and after that, as
            a part of the largest logit; None if they were not compared.
    """

    program: Program
    seed: int
    draw: int
    state: TrainState
    epoch: int = 0
    epoch_seconds: tuple[float, ...] = ()
    at_once: int = 1
    subnet_error: float | None = None

    @property
    def is_to_shrink(self) -> bool:
        """Tells whether the network is to become smaller now."""
        recipe = self.program.recipe
        return self.epoch == recipe.shrinks_after and len(self.epoch_seconds) == 1

    @property
    def seconds(self) -> float:
        """What all epochs took, compilation and construction aside."""
        recipe = self.program.recipe
        first = recipe.epochs if recipe.shrinks_after is None else recipe.shrinks_after
        numbers = first, recipe.epochs - first
        return sum(number * each for number, each in zip(numbers, self.epoch_seconds, strict=False))


class Trainer:
    """Trains one network on one data set; what is compiled is compiled once for all seeds."""

    def __init__(self, config: Config, dataset: Dataset):
        """Puts the images on the device.

        Args:
            config: the settings; epochs and seed are those of each training.
            dataset: the images, in memory.
        """
        dataset = dataset.take(config.data.num_train, config.data.num_test)
        self._config, self._dataset = config, dataset
        self._images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
        self.full_epochs = config.epochs
        self._host = jax.devices("cpu")[0]
        with jax.default_device(self._host):
            self._module = create_module(config, dataset.num_classes, dataset.image_shape)
        self._options = StepOptions.of(config, dataset)
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        self._train = jax.device_put(dataset.train.load(np.arange(len(dataset.train))))
        self._test = jax.device_put(np.stack([batch.images for batch in EvalBatches(dataset.test, _TEST_BATCH)]))
        self._labels = dataset.test.load(np.arange(len(dataset.test)))[1]
        self._space = lru_cache(
            partial(make_space, self._module, dataset.image_shape, tie=config.h2spg.tie, keep=config.h2spg.keep)
        )
        self._rates = lru_cache(self._make_rates)
        self._full = lru_cache(self._compile_full)
        self._shrunk: dict[tuple[Any, ...], Future[Program]] = {}
        self._lock = threading.Lock()

    @property
    def full_size(self) -> tuple[int, int]:
        """Parameters and multiply-adds of the full network."""
        return self._full(1).size

    def places(self, seed: int, epoch: int) -> Places:
        """Returns what an epoch shows, the same as `experiments.data.TrainBatches`."""
        size, batch = self.steps_per_epoch, self._config.batch_size
        indices = epoch_order(seed, epoch, len(self._dataset.train))[: size * batch]
        numbers = uniforms(seed, np.full_like(indices, epoch), indices)
        shares = drawn_shares(numbers, self._config.data.augmentation)
        return Places(
            indices.reshape(size, batch).astype(np.int32),
            numbers.reshape(size, batch, -1).astype(np.float32),
            shares.reshape(size, batch),
        )

    def compile(self, variant: Variant, epochs: int, num_seeds: int = 1) -> Program:
        """Compiles a training of so many epochs; the full network's is the same for any number.

        Args:
            variant: the way to train.
            epochs: its length.
            num_seeds: with how many seeds at once, by `jax.vmap`.
        """
        if variant.score is None:
            full = self._full(num_seeds)
            return full._replace(recipe=full.recipe._replace(epochs=epochs))
        space = self._space(variant.kinds)
        last_zero = max(round_ends(self._config.h2spg, epochs * self.steps_per_epoch))
        shrinks_after = min(-(-last_zero // self.steps_per_epoch), epochs)
        optimizer = partial(self._optimizer, space, variant.score, epochs)
        return self._begun(Recipe(variant, epochs, shrinks_after, space, optimizer), num_seeds)

    def _compile_full(self, num_seeds: int) -> Program:
        return self._begun(Recipe(FULL, 1, None, None, partial(self._optimizer, None, None, 1)), num_seeds)

    def _begun(self, recipe: Recipe, num_seeds: int) -> Program:
        """Returns the program that a training begins with."""
        return self._compiled(recipe, self._module, jax.eval_shape(lambda: self._state(recipe.optimizer, 0)), num_seeds)

    def _compiled(self, recipe: Recipe, module: nnx.Module, state: TrainState, num_seeds: int = 1) -> Program:
        network = Network(module)
        steps = partial(self._epoch, network, recipe.optimizer)
        given = state, self.places(0, 0), np.int32(0)
        if num_seeds > 1:
            steps = jax.vmap(steps, (0, None, 0, 0, None, None))
            given = jax.eval_shape(lambda *each: stacked([each] * num_seeds), *given)
        whole, places, seed = given
        started = time.perf_counter()
        rates = np.zeros(self.steps_per_epoch, np.float32)
        epoch = jax.jit(steps, donate_argnums=0).lower(whole, rates, places, seed, *self._train).compile()
        logits = jax.jit(partial(self._test_logits, network)).lower(state.result, self._test).compile()
        seconds = time.perf_counter() - started
        return Program(
            recipe,
            network,
            (inference_params(module), jasgnas.count_macs(module, self._images)),
            num_seeds,
            lambda *each: epoch(*each, *self._train),
            lambda variables: logits(variables, self._test),
            seconds,
        )

    def start(self, program: Program, seed: int, draw: int | None = None) -> Training:
        """Returns a training before its first step; the random score is drawn with its seed, unless told otherwise."""
        with jax.default_device(self._host):
            state = self._state(program.recipe.optimizer, seed)
        state = jax.device_put(state, jax.devices()[0])
        return Training(program, seed, seed if draw is None else draw, state, at_once=program.num_seeds)

    def nearest_draw(self, kinds: str, macs: int, seed: int) -> int:
        """Returns what draws the random selection whose multiply-adds are nearest to a number.

        Args:
            kinds: what may be removed, as `H2SPGConfig.kinds`.
            macs: the number.
            seed: decides which `NUM_DRAWS` draws are tried.
        """
        space = self._space(kinds)
        h2spg = self._removal(space)

        def distance(draw: int) -> int:
            removed = space.select(
                random_scores(draw, (len(space.groups),)),
                **h2spg.targets,
                at_most=h2spg.at_most or None,
                min_channels=h2spg.min_channels,
                multiple_of=h2spg.multiple_of,
            )
            return abs(space.subnet_size(removed)[1] - macs)

        with jax.default_device(self._host):
            return min(range(seed * NUM_DRAWS, (seed + 1) * NUM_DRAWS), key=distance)

    def advance(self, training: Training) -> Training:
        """Trains until the network is to become smaller, or to the end.

        Raises:
            DivergedError: the loss is not finite.
        """
        return self.advance_at_once(training.program, [training])[0]

    def advance_at_once(self, program: Program, trainings: Sequence[Training]) -> list[Training]:
        """Does so for the trainings of as many seeds as the program takes at once, all of which have come as far."""
        begin, epochs, due = trainings[0].epoch, program.recipe.epochs, program.recipe.shrinks_after
        assert len(trainings) == program.num_seeds and {each.epoch for each in trainings} == {begin}
        end = due if due is not None and begin < due else epochs
        rates = np.split(self._rates(epochs), epochs)
        join, part = (stacked, parts) if program.num_seeds > 1 else (itemgetter(0), lambda tree: [tree])
        draws = join([np.int32(each.draw) for each in trainings])

        def shown(epoch: int) -> Places:
            return join([self.places(each.seed, epoch) for each in trainings])

        state, loss = join([each.state for each in trainings]), jnp.float32(0)
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(shown, begin)
            for number in range(begin, end):
                places = coming.result()
                coming = ahead.submit(shown, number + 1)
                state, loss = program.epoch(state, rates[number], places, draws)
            if not np.all(np.isfinite(loss)):
                raise DivergedError(f"the loss of epoch {end} is {loss}")
        seconds = (time.perf_counter() - started) / max(1, end - begin) / len(trainings)
        return [
            each._replace(state=state, epoch=end, epoch_seconds=(*each.epoch_seconds, seconds))
            for each, state in zip(trainings, part(state), strict=True)
        ]

    def shrunk(self, training: Training) -> Training:
        """Returns a training that goes on with the smaller network."""
        recipe, state = training.program.recipe, training.state
        assert recipe.space is not None  # nothing is removed without H2SPG
        with jax.default_device(self._host):
            step, variables, *carried = jax.device_get(state)
            module, carried = jasgnas.shrink(recipe.space, training.program.network.module(variables), carried)
            state = TrainState(step, Network.variables(module), *carried)
        key = recipe.variant, recipe.epochs, jasgnas.h2spg_state(state.opt_state).remainder.removed
        with self._lock:
            is_new = key not in self._shrunk
            coming = self._shrunk.setdefault(key, Future())
        if is_new:  # no other training has come to the same network
            try:
                coming.set_result(self._compiled(recipe, module, state))
            except BaseException as error:
                coming.set_exception(error)
        return training._replace(program=coming.result(), state=jax.device_put(state, jax.devices()[0]))

    def accuracy(self, training: Training) -> float:
        """Returns the share of test images that are told right, in percent, by averaged weights if there are some."""
        logits = self._logits(training.program, training.state.result)
        return 100 * float(np.mean(logits.argmax(axis=1) == self._labels))

    def logits(self, training: Training) -> np.ndarray:
        """Returns the logits of the test images, float32 `[size, classes]`, by the weights themselves.

        Of a group that is zero the average is not: it goes there later.
        """
        return self._logits(training.program, training.state.variables)

    def _logits(self, program: Program, variables: Any) -> np.ndarray:
        logits = program.logits(variables)
        return np.asarray(logits).reshape(-1, logits.shape[-1])[: len(self._labels)]

    def _test_logits(self, network: Network, variables: Any, images: jax.Array) -> jax.Array:
        return jax.lax.map(lambda each: network.evaluate(variables, self._options.normalised(each)), images)

    def _schedule(self, epochs: int) -> optax.Schedule:
        """Returns the learning rates of a training; the warm-up takes a tenth of it at most, as in the tables."""
        config = self._config.optimizer
        config = dataclasses.replace(config, warmup_epochs=min(config.warmup_epochs, epochs / 10))
        return make_schedule(config, self.steps_per_epoch, epochs * self.steps_per_epoch)

    def _make_rates(self, epochs: int) -> np.ndarray:
        """Returns the learning rate of each step, float32."""
        steps = np.arange(epochs * self.steps_per_epoch)
        return np.asarray(jax.vmap(self._schedule(epochs))(steps), np.float32)

    def _optimizer(
        self,
        space: jasgnas.SearchSpace | None,
        score: str | None,
        epochs: int,
        rates: jax.Array | None = None,
        seed: jax.Array | None = None,
    ) -> optax.GradientTransformation:
        """Returns the optimizer; its state depends on neither learning rates nor seed."""
        config = self._config

        def rate(step: jax.Array) -> jax.Array:
            return jnp.float32(0) if rates is None else rates[step % self.steps_per_epoch]

        tx = make_optimizer(config.optimizer, rate)
        if space is None or score is None:
            return tx
        h2spg = dataclasses.replace(self._removal(space), score=score)
        schedule, num_steps = self._schedule(epochs), epochs * self.steps_per_epoch
        return add_h2spg(tx, space, h2spg, config.optimizer.name, schedule, num_steps, 0 if seed is None else seed)

    def _removal(self, space: jasgnas.SearchSpace) -> H2SPGConfig:
        """Returns the row's settings of H2SPG; what they say about channels is for variants that have some."""
        h2spg = self._config.h2spg
        return h2spg if space.dimensions else dataclasses.replace(h2spg, min_channels=None, multiple_of=None)

    def _state(self, optimizer: Optimizer, seed: int) -> TrainState:
        config = dataclasses.replace(self._config, seed=seed)
        module = create_module(config, self._dataset.num_classes, self._dataset.image_shape)
        return init_state(Network.variables(module), optimizer(), config.ema)

    def _epoch(
        self,
        network: Network,
        optimizer: Optimizer,
        state: TrainState,
        rates: jax.Array,
        places: Places,
        seed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[TrainState, jax.Array]:
        train_step = make_train_step(network, optimizer(rates, seed), self._options, None)
        augmentation, fill = self._config.data.augmentation, mean_color(self._dataset)

        def step(state: TrainState, place: Places) -> tuple[TrainState, jax.Array]:
            chosen = images[place.indices], labels[place.indices]
            batch = changed_batch(*chosen, place.uniforms, place.shares, augmentation, fill)
            state, metrics = train_step(state, batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(step, state, places)
        return state, losses.mean()


def stacked(trees: Sequence[Any]) -> Any:
    """Returns one tree, each array of which has those of the trees along a new first axis."""
    return jax.tree.map(lambda *each: (np if isinstance(each[0], np.generic | np.ndarray) else jnp).stack(each), *trees)


def parts(tree: Any) -> list[Any]:
    """Returns the trees that were stacked."""
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, each) for each in zip(*leaves, strict=True)]
