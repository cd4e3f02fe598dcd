"""Plain functions `fn(params, *inputs)` of a pytree of parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from jasgnas.bridge.base import Leaf, leaf_of, matched
from jasgnas.pytree import leaves_by_path


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A function and the pytree of its parameters.

    Attributes:
        fn: called as `fn(params, *inputs, **kwargs)`.
        abstract: the parameters, shapes and dtypes only.
    """

    fn: Callable[..., Any]
    abstract: Any

    @classmethod
    def of(cls, fn: Callable[..., Any], params: Any) -> "PlainModel":
        """Describes a function; the parameters are only looked at for their shapes."""
        return cls(fn, jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), params))

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The parameters; all are trainable."""
        return tuple(leaf_of(path, value, True) for path, value in leaves_by_path(self.abstract).items())

    @property
    def static(self) -> Any:
        """The function."""
        return self.fn

    def in_mode(self, training: bool) -> "PlainModel":
        """Returns itself: a function has no modes."""
        del training
        return self

    def values(self, holder: Any) -> list[Any]:
        """Returns the leaves of a parameter pytree."""
        return matched(self.leaves, holder, "parameter pytree")

    def replace(self, holder: Any, values: Sequence[Any]) -> Any:
        """Returns the parameter pytree with other leaves."""
        return jax.tree.unflatten(jax.tree.structure(holder), values)

    def apply(self, values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Calls the function."""
        params = jax.tree.unflatten(jax.tree.structure(self.abstract), values)
        return self.fn(params, *args, **kwargs), list(values)
