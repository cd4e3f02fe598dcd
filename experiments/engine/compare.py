"""The check that a sub-network returns what the sparse network that it was made from returns."""

import dataclasses

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

import jasgnas
from experiments.engine.networks import Network
from experiments.engine.runs import Run
from experiments.engine.steps import StepOptions

OUTPUT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference between two networks' outputs, relative to the largest output, that passes for rounding."""

_NUM_COMPARED = 10_000
"""Test images whose outputs are compared, at most."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A sparse network, which still has the structures that are zero, and the sub-network constructed from it.

    Attributes:
        largest_output: largest absolute logit of the sparse network.
        largest_difference: largest absolute difference between its logits and the sub-network's.
        sparse_accuracy: fraction of the compared test images that the sparse network classifies rightly.
        subnet_accuracy: fraction that the sub-network does.
    """

    largest_output: float
    largest_difference: float
    sparse_accuracy: float
    subnet_accuracy: float


def compare(run: Run, sparse: nnx.Module, subnet: nnx.Module) -> Comparison:
    """Calls both networks on the test images.

    Contractions run in full float32, so that accelerators do not blur the comparison.

    Raises:
        jasgnas.VerificationError: their logits differ by more than rounding.
    """
    options = StepOptions.of(run.config, run.dataset)
    networks = [(Network(module), Network.variables(module)) for module in (sparse, subnet)]

    @jax.jit
    def outputs(variables: list, images: jax.Array) -> list[jax.Array]:
        images = options.normalised(images)
        return [network.evaluate(own, images) for (network, _), own in zip(networks, variables, strict=True)]

    largest_output = difference = 0.0
    num_images, hits = 0, np.zeros(2, int)
    variables = [own for _, own in networks]
    with jax.default_matmul_precision("highest"):
        for batch in run.eval_batches(_NUM_COMPARED):
            logits = np.asarray(outputs(variables, batch.images), np.float32)
            expected, found = logits
            largest_output = max(largest_output, float(np.abs(expected).max()))
            difference = np.maximum(difference, np.abs(expected - found).max())  # unlike max, it passes NaN on
            num_images += np.sum(batch.labels >= 0)
            hits += np.sum(logits.argmax(axis=-1) == batch.labels, axis=-1)  # padding is labelled −1
    largest_output, difference = _over_processes(largest_output, difference).max(axis=0).tolist()
    accuracies = np.divide(*np.split(_over_processes(*hits, num_images).sum(axis=0), [2])).tolist()
    tolerance = OUTPUT_TOLERANCE[run.config.model.dtype]
    if not difference <= tolerance * largest_output:
        raise jasgnas.VerificationError(
            f"the sub-network's outputs differ from the sparse network's by up to {difference:.3g}, where "
            f"{tolerance:g} of the largest output, {largest_output:.3g}, would pass for rounding"
        )
    return Comparison(largest_output, difference, *accuracies)


def _over_processes(*values: float) -> np.ndarray:
    """Returns the values of all processes, `[processes, values]`."""
    return np.asarray(multihost_utils.process_allgather(np.array(values, np.float32))).reshape(-1, len(values))
