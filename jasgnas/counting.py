"""How large a network is: its parameters, and the multiply-adds of a forward pass."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from jasgnas.bridge import open_model
from jasgnas.macs import program_macs
from jasgnas.trace import Call, trace_model


def count_params(holder: Any) -> int:
    """Returns the number of trainable parameters.

    Args:
        holder: an `nnx.Module`, of which `nnx.Param`s count; or a pytree of parameters, of which every array counts.

    Example:
        >>> import numpy as np
        >>> count_params({"dense": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}})
        16
    """
    tree = nnx.state(holder, nnx.Param) if isinstance(holder, nnx.Module) else holder
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def count_macs(model: Any, *inputs: Any, params: Any = None, **kwargs: Any) -> int:
    """Returns the multiply-adds of one forward pass in inference mode: those of convolutions and matrix products.

    Arguments are those of `jasgnas.search_space`. Nothing is computed: the model is traced with abstract values.

    Args:
        model: an `nnx.Module`, or a function `fn(params, *inputs)`.
        *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s; the count is for their batch size.
        params: the parameter pytree of a function.
        **kwargs: further arguments of the call.

    Raises:
        ArgumentError: the model is of an unknown kind, or an argument is missing.
    """
    opened = open_model(model, params).in_mode(training=False)
    return program_macs(trace_model(opened, Call.of(inputs, kwargs)).program)
