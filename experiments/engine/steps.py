"""One training step and one evaluation step, as pure functions of a state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Batch, Dataset
from experiments.engine.config import Config
from experiments.engine.networks import Network, Variables

TrainStep = Callable[["TrainState", Batch], tuple["TrainState", "Metrics"]]


class TrainState(NamedTuple):
    """All arrays that training changes.

    Attributes:
        step: int32, number of steps made.
        variables: the network's.
        opt_state: the optimizer's.
        average: moving average of the network's variables, None without.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    average: Variables | None

    @property
    def result(self) -> Variables:
        """The variables to test and to construct from."""
        return self.variables if self.average is None else self.average


class Metrics(NamedTuple):
    """What one step reports of its batch, before its update: scalars, float32.

    Attributes:
        loss: the loss.
        accuracy: fraction of right predictions.
    """

    loss: jax.Array
    accuracy: jax.Array


class Hits(NamedTuple):
    """What one evaluation step counts, int32 scalars but for the loss.

    Attributes:
        loss: sum of the cross-entropies, float32.
        top1: images whose class has the largest logit.
        top5: images whose class is among the five largest.
    """

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array


class StepOptions(NamedTuple):
    """What the steps need to know of a run.

    Attributes:
        mean: mean of each colour, float32 `[channels]`, in [0, 255].
        std: its standard deviation.
        num_classes: number of classes.
        label_smoothing: share of every label that is spread over all classes.
        auxiliary_weight: weight of the auxiliary classifiers' losses.
        accumulate: parts that a batch is divided into.
        ema: decay of the averaged variables, 0 for none.
    """

    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    label_smoothing: float
    auxiliary_weight: float
    accumulate: int
    ema: float

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> "StepOptions":
        """Returns the options that a config asks for."""
        mean, std = (np.array(values, np.float32) * 255 for values in dataset.normalisation)
        return cls(
            mean,
            std,
            dataset.num_classes,
            config.label_smoothing,
            config.model.auxiliary_weight,
            config.accumulate,
            config.ema,
        )

    def normalised(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Returns uint8 images as the network takes them."""
        return (jnp.asarray(images, jnp.float32) - self.mean) / self.std


def init_state(variables: Variables, tx: optax.GradientTransformation, ema: float) -> TrainState:
    """Returns the state before the first step."""
    # The average is a copy: two arrays in one place could not be donated.
    average = jax.tree.map(jnp.copy, variables) if ema else None
    return TrainState(jnp.zeros([], jnp.int32), variables, tx.init(variables.params), average)


def make_train_step(
    network: Network, tx: optax.GradientTransformation, options: StepOptions, axis_name: str | None
) -> TrainStep:
    """Returns the function that makes one step.

    Args:
        network: the network.
        tx: its optimizer.
        options: what the run asks for.
        axis_name: axis of the devices that each see a part of the batch, None where the function sees all of it.
    """
    tx = optax.with_extra_args_support(tx)

    def average_over_devices(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def loss_fn(
        params: Any, statistics: Any, batch: Batch, seeds: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        images = options.normalised(batch.images)
        (logits, *auxiliary), statistics = network.train(Variables(params, statistics), images, seeds)
        targets = soft_targets(batch, options.num_classes, options.label_smoothing)
        loss = cross_entropy(logits, targets)
        total = loss + options.auxiliary_weight * sum(cross_entropy(each, targets) for each in auxiliary)
        return total, (statistics, Metrics(total, jnp.mean(logits.argmax(axis=-1) == batch.labels)))

    def gradients(state: TrainState, batch: Batch) -> tuple[Any, Any, Metrics]:
        """Returns gradients, new statistics and metrics, over all parts of the batch."""
        params, statistics = state.variables
        grad_fn = jax.grad(loss_fn, has_aux=True)
        seeds = (state.step,) if axis_name is None else (state.step, jax.lax.axis_index(axis_name))
        if options.accumulate == 1:
            grads, (statistics, metrics) = grad_fn(params, statistics, batch, seeds)
            return grads, statistics, metrics

        def add_part(carry: tuple[Any, Any, Metrics], part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            grads, statistics, metrics = carry
            number, batch = part
            new_grads, (statistics, new_metrics) = grad_fn(params, statistics, batch, (*seeds, number))
            grads, metrics = jax.tree.map(jnp.add, (grads, metrics), (new_grads, new_metrics))
            return (grads, statistics, metrics), None

        nothing = jax.tree.map(jnp.zeros_like, params), statistics, Metrics(jnp.float32(0), jnp.float32(0))
        parts = jnp.arange(options.accumulate), jax.tree.map(divided, batch)
        (grads, statistics, metrics), _ = jax.lax.scan(add_part, nothing, parts)
        grads, metrics = jax.tree.map(lambda total: total / options.accumulate, (grads, metrics))
        return grads, statistics, metrics

    def loss_of(state: TrainState, batch: Batch, params: Any) -> jax.Array:
        """Returns the loss of the batch with other parameters, in the mode and with the randomness of the step."""
        seeds = (state.step,) if axis_name is None else (state.step, jax.lax.axis_index(axis_name))

        def of_part(part: tuple[tuple[jax.Array, ...], Batch]) -> jax.Array:
            number, batch = part
            return loss_fn(params, state.variables.statistics, batch, (*seeds, *number))[0]

        if options.accumulate == 1:
            return average_over_devices(of_part(((), batch)))
        parts = (jnp.arange(options.accumulate),), jax.tree.map(divided, batch)
        return average_over_devices(jnp.mean(jax.lax.map(of_part, parts)))

    def divided(array: jax.Array) -> jax.Array:
        """Returns a batch in parts, each of which takes images from all over it and so from all devices."""
        return array.reshape(-1, options.accumulate, *array.shape[1:]).swapaxes(0, 1)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, statistics, metrics = gradients(state, batch)
        grads, statistics, metrics = average_over_devices((grads, statistics, metrics))
        given = {"grad": grads, "value": metrics.loss, "value_fn": partial(loss_of, state, batch)}
        updates, opt_state = tx.update(grads, state.opt_state, state.variables.params, **given)
        variables = Variables(optax.apply_updates(state.variables.params, updates), statistics)
        average = state.average
        if average is not None:
            # Early on the average would hold mostly the initialisation.
            decay = jnp.minimum(options.ema, (1 + state.step) / (10 + state.step))
            # In this form a gate, which is held at 1, has an average of exactly 1.
            average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, variables)
        return TrainState(state.step + 1, variables, opt_state, average), metrics

    return train_step


def make_eval_step(network: Network, options: StepOptions, axis_name: str | None) -> Callable[[Variables, Batch], Hits]:
    """Returns the function that evaluates one batch; padding counts nothing. Arguments as for `make_train_step`."""

    def eval_step(variables: Variables, batch: Batch) -> Hits:
        logits = network.evaluate(variables, options.normalised(batch.images)).astype(jnp.float32)
        is_image = batch.labels >= 0
        labels = jnp.maximum(batch.labels, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        rank = jnp.sum(logits > own, axis=1)
        is_first = logits.argmax(axis=1) == labels
        hits = Hits(
            jnp.sum(jnp.where(is_image, losses, 0)), jnp.sum(is_first & is_image), jnp.sum((rank < 5) & is_image)
        )
        return hits if axis_name is None else jax.lax.psum(hits, axis_name)

    return eval_step


def soft_targets(batch: Batch, num_classes: int, label_smoothing: float) -> jax.Array:
    """Returns the probabilities that the network is to predict, `[batch, num_classes]`."""
    own, other = (jax.nn.one_hot(labels, num_classes) for labels in (batch.labels, batch.other_labels))
    shares = jnp.asarray(batch.shares)[:, None]
    return optax.smooth_labels(shares * own + (1 - shares) * other, label_smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, in float32 whatever the network computes in."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()
