"""Networks to search in, each in a file of its own, and a registry that makes them by name.

Nothing here knows of jasgnas: these are ordinary Flax NNX networks, and nothing in them says what is removable.
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets

__all__ = ["DemoNet", "StackedUnets", "create", "example_input", "list_models"]


class _Entry(NamedTuple):
    """What the registry holds of one network.

    Attributes:
        build: constructor, called with `num_classes` where given, the overrides and `rngs`.
        input_shape: shape of one example without the batch axis.
        input_dtype: dtype of an example.
    """

    build: Callable[..., nnx.Module]
    input_shape: tuple[int, ...]
    input_dtype: DTypeLike = jnp.float32


_REGISTRY: dict[str, _Entry] = {
    "demo_net": _Entry(DemoNet, (28, 28, 1)),
    "stacked_unets": _Entry(StackedUnets, (32, 32, 3)),
}


def list_models() -> list[str]:
    """Returns the names that `create` and `example_input` know, sorted."""
    return sorted(_REGISTRY)


def create(name: str, *, num_classes: int | None = None, rngs: nnx.Rngs | None = None, **overrides: Any) -> nnx.Module:
    """Returns a freshly initialised network.

    Args:
        name: one of `list_models()`.
        num_classes: number of outputs; None takes the network's own default.
        rngs: random streams of the initialisation; None means `nnx.Rngs(0)`.
        **overrides: further keyword arguments of the network's constructor, such as `dtype`.

    Raises:
        ValueError: no network has this name.
    """
    build = _find(name).build
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return build(rngs=nnx.Rngs(0) if rngs is None else rngs, **overrides)


def example_input(name: str, *, batch_size: int = 1) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a batch of inputs that the network called `name` was sized for.

    Raises:
        ValueError: no network has this name.
    """
    entry = _find(name)
    return jax.ShapeDtypeStruct((batch_size, *entry.input_shape), entry.input_dtype)


def _find(name: str) -> _Entry:
    """Returns the registry's entry called `name`, or raises a `ValueError` that lists the nearest names."""
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.4) or list_models()
        raise ValueError(f"no network is called {name!r}; the nearest names are {', '.join(near)} (see list_models())")
    return _REGISTRY[name]
