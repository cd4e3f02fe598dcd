"""Trains rows of the papers' tables with everything on the device: images, their augmentation, and an epoch per call.

Every row is trained in full, with H2SPG, and with a random valid selection of the same size. The images of a batch and
what is changed of them are those of `experiments.train` with the same seed.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jasgnas
from experiments.common.errors import DivergedError
from experiments.data import Dataset, EvalBatches
from experiments.data.augment import uniforms
from experiments.data.pipeline import changed_batch, drawn_shares, epoch_order, mean_color
from experiments.engine.config import Config
from experiments.engine.networks import Network, create_module
from experiments.engine.optimizers import add_h2spg, make_optimizer, make_schedule
from experiments.engine.runs import make_space
from experiments.engine.steps import StepOptions, TrainState, init_state, make_train_step

_TEST_BATCH = 500


class Variant(NamedTuple):
    """One way to train a row.

    Attributes:
        name: what it is called.
        score: H2SPG's score; None trains the full network.
        kinds: what it may remove, as `H2SPGConfig.kinds`.
    """

    name: str
    score: str | None
    kinds: str = "structures"


FULL = Variant("full", None)
ERASING = (FULL, Variant("h2spg", "default"), Variant("random", "random"))
SLIMMING = (
    FULL,
    Variant("erase and slim", "default", "both"),
    Variant("erase", "default"),
    Variant("slim", "default", "channels"),
    Variant("random erase and slim", "random", "both"),
)


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


class Program(NamedTuple):
    """A compiled training.

    Attributes:
        epoch: makes the steps of an epoch, given the state, which it keeps, the learning rates, the places and the
            seed; returns the state and the mean loss.
        optimizer: makes the optimizer that a state begins with.
        epochs: length of the training.
        space: what H2SPG chooses from, None for the full network.
        seconds: what compilation took.
    """

    epoch: Callable[[TrainState, np.ndarray, Places, np.int32], tuple[TrainState, jax.Array]]
    optimizer: Optimizer
    epochs: int
    space: jasgnas.SearchSpace | None
    seconds: float


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
            self._module = create_module(config, dataset.num_classes, dataset.image_shape[-1])
        self._network = Network(self._module)
        self._options = StepOptions.of(config, dataset)
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        self._train = jax.device_put(dataset.train.load(np.arange(len(dataset.train))))
        self._test = jax.device_put(np.stack([batch.images for batch in EvalBatches(dataset.test, _TEST_BATCH)]))
        self._labels = dataset.test.load(np.arange(len(dataset.test)))[1]
        self._logits = jax.jit(partial(self._test_logits, self._network))

    @cached_property
    def full_size(self) -> tuple[int, int]:
        """Parameters and multiply-adds of the full network."""
        return jasgnas.count_params(self._module), jasgnas.count_macs(self._module, self._images)

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

    def compile(self, variant: Variant, epochs: int) -> Program:
        """Compiles an epoch of a training of so many; the full network's epoch is the same for any number."""
        if variant.score is None:
            return self._full._replace(epochs=epochs)
        space = make_space(self._module, self._dataset.image_shape, variant.kinds)
        return self._compiled(space, variant.score, epochs)

    @cached_property
    def _full(self) -> Program:
        return self._compiled(None, None, 1)

    def _compiled(self, space: jasgnas.SearchSpace | None, score: str | None, epochs: int) -> Program:
        optimizer = partial(self._optimizer, space, score, epochs)
        state = jax.eval_shape(lambda: self._state(optimizer, 0))
        given = np.zeros(self.steps_per_epoch, np.float32), self.places(0, 0), np.int32(0)
        started = time.perf_counter()
        lowered = jax.jit(partial(self._epoch, optimizer), donate_argnums=0).lower(state, *given, *self._train)
        executable = lowered.compile()
        seconds = time.perf_counter() - started
        return Program(lambda *each: executable(*each, *self._train), optimizer, epochs, space, seconds)

    def train(self, program: Program, seed: int) -> tuple[TrainState, float]:
        """Trains from the start to the end.

        Args:
            program: what `compile` returns.
            seed: decides initialisation, order, changes and the random score.

        Returns:
            The last state, and the seconds of an epoch.

        Raises:
            DivergedError: the loss is not finite.
        """
        epochs = program.epochs
        steps = np.arange(epochs * self.steps_per_epoch)
        rates = np.asarray(jax.vmap(self._schedule(epochs))(steps), np.float32)
        with jax.default_device(self._host):
            state = self._state(program.optimizer, seed)
        state = jax.device_put(state, jax.devices()[0])
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.places, seed, 0)
            for number, part in enumerate(np.split(rates, epochs)):
                places = coming.result()
                coming = ahead.submit(self.places, seed, number + 1)
                state, loss = program.epoch(state, part, places, np.int32(seed))
            if not np.isfinite(loss):
                raise DivergedError(f"the loss of the last epoch is {loss}")
        return state, (time.perf_counter() - started) / epochs

    def test(self, state: TrainState) -> tuple[np.ndarray, float]:
        """Returns the logits of the test images, float32 `[size, classes]`, and the accuracy in percent."""
        return self._tested(self._logits(state.result, self._test))

    def test_subnet(self, space: jasgnas.SearchSpace, state: TrainState) -> tuple[np.ndarray, float, tuple[int, int]]:
        """Constructs the sub-network, and returns what `test` does of it, and its parameters and multiply-adds."""
        with jax.default_device(self._host):
            sparse = self._network.module(jax.device_get(state.result))
            subnet = jasgnas.construct_subnet(space, sparse)
            size = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, self._images)
            network, variables = Network(subnet), Network.variables(subnet)
        variables = jax.device_put(variables, jax.devices()[0])
        return *self._tested(jax.jit(partial(self._test_logits, network))(variables, self._test)), size

    def _tested(self, logits: jax.Array) -> tuple[np.ndarray, float]:
        values = np.asarray(logits).reshape(-1, logits.shape[-1])[: len(self._labels)]
        return values, 100 * float(np.mean(values.argmax(axis=1) == self._labels))

    def _test_logits(self, network: Network, variables: Any, images: jax.Array) -> jax.Array:
        return jax.lax.map(lambda each: network.evaluate(variables, self._options.normalised(each)), images)

    def _schedule(self, epochs: int) -> optax.Schedule:
        """Returns the learning rates of a training; the warm-up takes a tenth of it at most, as in the tables."""
        config = self._config.optimizer
        config = dataclasses.replace(config, warmup_epochs=min(config.warmup_epochs, epochs / 10))
        return make_schedule(config, self.steps_per_epoch, epochs * self.steps_per_epoch)

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
        h2spg = dataclasses.replace(config.h2spg, score=score)
        schedule, num_steps = self._schedule(epochs), epochs * self.steps_per_epoch
        return add_h2spg(tx, space, h2spg, config.optimizer.name, schedule, num_steps, 0 if seed is None else seed)

    def _state(self, optimizer: Optimizer, seed: int) -> TrainState:
        config = dataclasses.replace(self._config, seed=seed)
        module = create_module(config, self._dataset.num_classes, self._dataset.image_shape[-1])
        return init_state(Network.variables(module), optimizer(), config.ema)

    def _epoch(
        self,
        optimizer: Optimizer,
        state: TrainState,
        rates: jax.Array,
        places: Places,
        seed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[TrainState, jax.Array]:
        train_step = make_train_step(self._network, optimizer(rates, seed), self._options, None)
        augmentation, fill = self._config.data.augmentation, mean_color(self._dataset)

        def step(state: TrainState, place: Places) -> tuple[TrainState, jax.Array]:
            chosen = images[place.indices], labels[place.indices]
            batch = changed_batch(*chosen, place.uniforms, place.shares, augmentation, fill)
            state, metrics = train_step(state, batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(step, state, places)
        return state, losses.mean()
