"""All knowledge of how a model is written: a model of any flavour becomes a pure function of its leaves."""

from typing import Any

from flax import nnx

from jasgnas.bridge.base import Leaf, Model, matched
from jasgnas.bridge.nnx_model import NNXModel
from jasgnas.bridge.plain_model import PlainModel
from jasgnas.errors import ArgumentError

__all__ = ["Leaf", "Model", "NNXModel", "PlainModel", "matched", "open_model"]


def open_model(model: Any, params: Any = None) -> Model:
    """Returns the description of a model of any flavour.

    Args:
        model: an `nnx.Module`, or a function `fn(params, *inputs)`.
        params: the pytree of parameters, for a function.

    Raises:
        ArgumentError: the model is none of these, or parameters are missing or superfluous.
    """
    if isinstance(model, nnx.Module):
        if params is not None:
            raise ArgumentError("an nnx.Module holds its own parameters; leave out `params=`")
        return NNXModel.of(model)
    if callable(model):
        if params is None:
            raise ArgumentError(f"{model} is a function: pass its parameters as `params=`")
        return PlainModel.of(model, params)
    raise ArgumentError(
        f"expected an nnx.Module or a function fn(params, x) with `params=`, got {type(model).__name__}"
    )
