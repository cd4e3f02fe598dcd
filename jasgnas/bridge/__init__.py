"""All knowledge of how a model is written: a model of any flavour becomes a pure function of its leaves."""

import inspect
from typing import Any

from flax import linen as nn
from flax import nnx

from jasgnas.bridge.base import GONE, Leaf, Model, matched
from jasgnas.bridge.linen_model import LinenModel
from jasgnas.bridge.nnx_model import NNXModel
from jasgnas.bridge.plain_model import PlainModel
from jasgnas.errors import ArgumentError

__all__ = ["GONE", "Leaf", "LinenModel", "Model", "NNXModel", "PlainModel", "argument_names", "matched", "open_model"]


def open_model(model: Any, *, variables: Any = None, params: Any = None, method: Any = None) -> Model:
    """Returns the description of a model of any flavour.

    Args:
        model: an `nnx.Module`, a Linen module, or a function `fn(params, *inputs)`.
        variables: the variables of a Linen module.
        params: the parameter pytree of a function.
        method: the method of a Linen module that is called, instead of `__call__`.

    Raises:
        ArgumentError: the model is none of these, or what goes with it is missing or superfluous.
    """
    given = {"variables": variables, "params": params, "method": method}
    if isinstance(model, nnx.Module):
        _require(given, (), "an nnx.Module holds its own parameters")
        return NNXModel.of(model)
    if isinstance(model, nn.Module):
        _require(given, ("variables",), "a Linen module needs its variables, as module.init(…) returns them")
        return LinenModel.of(model, variables, method)
    if callable(model) and not isinstance(model, type):
        _require(given, ("params",), "a function fn(params, x) needs its parameters")
        return PlainModel.of(model, params)
    raise ArgumentError(
        "expected an nnx.Module, a Linen module with `variables=`, or a function fn(params, x) with `params=`; got "
        + (f"the class {model.__name__}: pass an instance of it" if isinstance(model, type) else repr(type(model)))
    )


def argument_names(model: Any, method: Any = None) -> tuple[str, ...]:
    """Returns the names of the positional arguments that a model is called with, as far as they are known."""
    is_module = isinstance(model, nnx.Module | nn.Module)
    called = method if callable(method) else getattr(model, method or "__call__") if is_module else model
    try:
        parameters = inspect.signature(called).parameters.values()
    except ValueError:  # a built-in
        return ()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    # What is no method of an instance takes the module or the parameters first.
    return tuple(names if is_module and not inspect.isfunction(called) else names[1:])


def _require(given: dict[str, Any], needed: tuple[str, ...], why: str) -> None:
    missing = [name for name in needed if given[name] is None]
    excess = [name for name, value in given.items() if value is not None and name not in (*needed, "method")]
    if missing or excess:
        advice = [f"pass `{name}=`" for name in missing] + [f"leave out `{name}=`" for name in excess]
        raise ArgumentError(f"{why}: {' and '.join(advice)}")
