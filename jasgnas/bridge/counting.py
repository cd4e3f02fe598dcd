"""How large a network is: its parameters, and the multiply-adds of a forward pass."""

import warnings
from typing import Any

import jax
import numpy as np

from jasgnas.bridge import flavours, open_model
from jasgnas.bridge.trace import Call, trace_model
from jasgnas.checks import NUMBERS
from jasgnas.errors import ArgumentError
from jasgnas.program.macs import has_uncounted_loop, program_macs


def count_params(holder: Any) -> int:
    """Returns the number of trainable parameters.

    Args:
        holder: an `nnx.Module`, of which `nnx.Param`s count; an Equinox module, of which arrays of floating-point
            numbers count; the variables of a Linen module, of which the collection `params` counts; or a pytree of
            parameters, of which every array counts.

    Raises:
        ArgumentError: there is no array in it, and something else is.

    Example:
        >>> import numpy as np
        >>> count_params({"dense": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}})
        16
    """
    found = (flavour.parameters(holder) for flavour in flavours())
    leaves = jax.tree.leaves(next((tree for tree in found if tree is not None), None))
    # The function that comes with the parameters of a sub-network is none of them.
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape") or isinstance(leaf, NUMBERS)]
    if (leaves and not arrays) or holder is None:
        raise ArgumentError(f"expected a module, its variables or a pytree of parameters, got {type(holder).__name__}")
    return sum(int(np.size(leaf)) for leaf in arrays)


def count_macs(
    model: Any, *inputs: Any, variables: Any = None, params: Any = None, method: Any = None, **kwargs: Any
) -> int:
    """Returns the multiply-adds of one forward pass in inference mode: those of convolutions and matrix products.

    Arguments are those of `jasgnas.search_space`. Nothing is computed: the model is traced with abstract values.
    Multiplications with padding count like all others; elementwise work and reductions do not. XLA's cost analysis of a
    compiled pass does the opposite of both, so that half its count can lie on either side of this one. A complex
    multiply-add counts as its four real ones. Of the branches of a `cond` or `switch` the largest counts, the body of a
    `scan` as often as it runs, and that of a `while` loop not at all, since nobody knows how often it runs: a
    `UserWarning` says so.

    Args:
        model: an `nnx.Module`, an Equinox module, a Linen module, a Haiku transform, or a function
            `fn(params, *inputs)`.
        *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s; the count is for their batch size.
        variables: the variables of a Linen module, as `module.init` returns them, or the state of an Equinox module.
        params: the parameter pytree of a function, or what the `init` of a Haiku transform returned.
        method: the method of a Linen or Equinox module that is called, instead of `__call__`.
        **kwargs: further arguments of the call (`train=False`, for a Linen module also `rngs`).

    Raises:
        ArgumentError: the model is of an unknown kind, or an argument is missing.
    """
    opened = open_model(model, variables=variables, params=params, method=method).in_mode(training=False)
    program = trace_model(opened, Call.of(inputs, kwargs)).program
    if has_uncounted_loop(program):
        warnings.warn(
            "the multiply-adds in a while loop are not counted, since nobody knows how often it runs. Count one pass "
            "of its body by itself, or write the loop as a scan.",
            stacklevel=2,
        )
    return program_macs(program)
