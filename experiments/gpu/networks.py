"""Networks with random parameters, which are there at once: initialising one compiles a program for each shape."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import models


def random_network(name: str, **options: Any) -> nnx.Module:
    """Returns a network of the zoo in inference mode, with random parameters and statistics, none near zero.

    Args:
        name: its name.
        **options: arguments of its constructor.
    """
    model = models.create_abstract(name, **options)
    split: Any = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)
    graphdef, variables, others = split
    model = nnx.merge(graphdef, random_parameters(variables), others)
    model.eval()
    return model


def random_parameters(variables: Any) -> Any:
    """Returns arrays of the same shapes and dtypes with random values, none near zero, scaled by the fan-in."""
    rng = np.random.default_rng(0)

    def drawn(path: Any, variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        leaf = variable.get_value()
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        # The variance of a batch norm is positive.
        signs = 1 if "var" in path else rng.choice([-1, 1], leaf.shape)
        return variable.replace(jnp.asarray((rng.random(leaf.shape) + 0.1) * signs / np.sqrt(fan_in), leaf.dtype))

    return nnx.map_state(drawn, variables)
