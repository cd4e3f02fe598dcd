"""The check that a sub-network returns what the network that it was made from returns."""

import jax
import numpy as np
from flax import nnx

import jasgnas
from experiments.networks import Network
from experiments.runs import Run
from experiments.steps import StepOptions

OUTPUT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference between two networks' outputs, relative to the largest output, that passes for rounding."""

_NUM_COMPARED = 10_000
"""Test images whose outputs are compared, at most."""


def largest_difference(run: Run, sparse: nnx.Module, subnet: nnx.Module) -> tuple[float, float]:
    """Returns the largest output of a network over the test images, and by how much the sub-network's differ at most.

    Contractions run in full float32, so that accelerators do not blur the comparison.

    Raises:
        jasgnas.VerificationError: it is more than rounding.
    """
    options = StepOptions.of(run.config, run.dataset)
    networks = [(Network(module), Network.variables(module)) for module in (sparse, subnet)]

    @jax.jit
    def outputs(variables: list, images: jax.Array) -> list[jax.Array]:
        images = options.normalised(images)
        return [network.evaluate(own, images) for (network, _), own in zip(networks, variables, strict=True)]

    largest_output = difference = 0.0
    variables = [own for _, own in networks]
    with jax.default_matmul_precision("highest"):
        for batch in run.eval_batches(_NUM_COMPARED):
            expected, found = (np.asarray(each, np.float32) for each in outputs(variables, batch.images))
            largest_output = max(largest_output, float(np.abs(expected).max()))
            difference = np.maximum(difference, np.abs(expected - found).max())  # unlike max, it passes NaN on
    tolerance = OUTPUT_TOLERANCE[run.config.model.dtype]
    if not difference <= tolerance * largest_output:
        raise jasgnas.VerificationError(
            f"the sub-network's outputs differ from the sparse network's by up to {difference:.3g}, where "
            f"{tolerance:g} of the largest output, {largest_output:.3g}, would pass for rounding"
        )
    return largest_output, float(difference)
