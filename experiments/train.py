"""The training loop: one for full training and for H2SPG, which differ in their optimizer alone."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import Split, eval_batches, train_batches


class Metrics(NamedTuple):
    """What one training step reports, over its batch and before its update.

    Attributes:
        loss: mean cross-entropy, scalar.
        accuracy: fraction of right predictions, scalar.
    """

    loss: jax.Array
    accuracy: jax.Array


@nnx.jit(donate_argnums=(0, 1))
def train_step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Split) -> Metrics:
    """Updates the model and the optimizer in place, on memory that is donated and so used again."""

    def loss_fn(model: nnx.Module) -> tuple[jax.Array, jax.Array]:
        logits = model(batch.images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return loss.mean(), jnp.mean(logits.argmax(axis=-1) == batch.labels)

    (loss, accuracy), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return Metrics(loss, accuracy)


@nnx.jit
def predict(model: nnx.Module, images: jax.typing.ArrayLike) -> jax.Array:
    """Returns the logits `[batch, num_classes]` of a batch of images."""
    return model(images)


def train(
    model: nnx.Module, optimizer: nnx.Optimizer, split: Split, *, epochs: int, batch_size: int, seed: int
) -> Iterator[Metrics]:
    """Trains a model in place, one step whenever the next metrics are asked for.

    Args:
        model: the model; it is put in training mode.
        optimizer: the optimizer of `model`.
        split: the training images.
        epochs: passes over `split`.
        batch_size: images per step.
        seed: fixes the order of the images.

    Yields:
        The metrics of every step.
    """
    model.train()
    for epoch in range(epochs):
        for batch in train_batches(split, batch_size, seed=seed, epoch=epoch):
            yield train_step(model, optimizer, batch)


def logits(model: nnx.Module, split: Split, *, batch_size: int) -> np.ndarray:
    """Returns the logits `[size, num_classes]` of a whole split, with the model put in inference mode.

    Contractions run in full float32, so that accelerators do not blur the comparison of two networks.
    """
    model.eval()
    with jax.default_matmul_precision("highest"):
        outputs = [predict(model, images) for images, _ in eval_batches(split, batch_size)]
    return np.concatenate(outputs)[: len(split.labels)]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of right predictions.

    Example:
        >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        0.5
    """
    return float(np.mean(logits.argmax(axis=-1) == labels))
