"""All knowledge of how a model is written: a model of any flavour becomes a pure function of its leaves."""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from jasgnas.bridge.base import Leaf, Model, matched
from jasgnas.bridge.carry import GONE
from jasgnas.errors import ArgumentError

__all__ = ["GONE", "Leaf", "Model", "argument_names", "flavour_of", "flavours", "is_module", "matched", "open_model"]

# Each flavour by the library that its models are written in. The last one takes what is of no other.
_FLAVOURS = {
    "flax.nnx": ("jasgnas.bridge.nnx_model", "NNXModel"),
    "equinox": ("jasgnas.bridge.equinox_model", "EquinoxModel"),
    "flax.linen": ("jasgnas.bridge.linen_model", "LinenModel"),
    "haiku": ("jasgnas.bridge.haiku_model", "HaikuModel"),
    "jax": ("jasgnas.bridge.plain_model", "PlainModel"),
}


def flavours() -> Iterator[type[Model]]:
    """Yields the flavours that there can be models of: those whose library is loaded."""
    for library, (module, name) in _FLAVOURS.items():
        if library in sys.modules:
            yield getattr(import_module(module), name)


def flavour_of(model: Any) -> type[Model]:
    """Returns the flavour of a model.

    Raises:
        ArgumentError: it is of none.
    """
    if (flavour := next((each for each in flavours() if each.owns(model)), None)) is not None:
        return flavour
    raise ArgumentError(
        "expected an nnx.Module, an Equinox module, a Linen module with `variables=`, or a Haiku transform or a "
        "function fn(params, x) with `params=`; got "
        + (f"the class {model.__name__}: pass an instance of it" if isinstance(model, type) else repr(type(model)))
    )


def is_module(model: Any) -> bool:
    """Tells whether a model is a module, as opposed to a function of parameters."""
    return any(flavour.owns(model) for flavour in flavours() if flavour.is_module)


def open_model(model: Any, **given: Any) -> Model:
    """Returns the description of a model of any flavour.

    Args:
        model: an `nnx.Module`, an Equinox module, a Linen module, a Haiku transform, or a function
            `fn(params, *inputs)`.
        **given: what goes with it, None for what is not given: the `variables` of a Linen module or the state of an
            Equinox module, and the `method` that is called instead of `__call__`; the `params` of a function.

    Raises:
        ArgumentError: the model is none of these, or what goes with it is missing or superfluous.
    """
    flavour = flavour_of(model)
    given = {name: value for name, value in given.items() if value is not None}
    advice = [f"pass `{name}=`" for name in flavour.needs if name not in given]
    advice += [f"leave out `{name}=`" for name in given if name not in (*flavour.needs, *flavour.options)]
    if advice:
        raise ArgumentError(f"{flavour.why}: {' and '.join(advice)}")
    return flavour.of(model, **given)


def argument_names(model: Any, method: Any = None) -> tuple[str, ...]:
    """Returns the names of the positional arguments that a model is called with, as far as they are known."""
    return flavour_of(model).argument_names(model, method)
