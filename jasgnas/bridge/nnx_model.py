"""Flax NNX modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from flax import nnx

from jasgnas.bridge.base import Leaf, leaf_of
from jasgnas.pytree import leaves_by_path


@dataclass(frozen=True, eq=False)
class NNXModel:
    """An `nnx.Module`.

    Attributes:
        graphdef: its static part.
        abstract: its state, shapes and dtypes only.
    """

    graphdef: Any
    abstract: nnx.State

    @classmethod
    def of(cls, module: nnx.Module) -> "NNXModel":
        """Splits a module; its arrays are only looked at for their shapes."""
        graphdef, state = nnx.split(module)
        return cls(graphdef, jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state))

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Its arrays; `nnx.Param`s are trainable."""
        params = leaves_by_path(nnx.filter_state(self.abstract, nnx.Param))
        return tuple(leaf_of(path, value, path in params) for path, value in leaves_by_path(self.abstract).items())

    @property
    def static(self) -> Any:
        """The graph definition."""
        return self.graphdef

    def in_mode(self, training: bool) -> "NNXModel":
        """Returns the module after `.train()` or `.eval()`."""
        module = nnx.merge(self.graphdef, self.abstract)
        module.train() if training else module.eval()
        return replace(self, graphdef=nnx.graphdef(module))

    def tree(self, holder: Any) -> Any:
        """Returns the state of a module; a state or pure pytree as it is."""
        return nnx.state(holder) if isinstance(holder, nnx.Module) else holder

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns a copy of the module with another state, or that state."""
        return nnx.merge(nnx.graphdef(holder), tree, copy=True) if isinstance(holder, nnx.Module) else tree

    def apply(self, values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Calls a copy of the module."""
        state = jax.tree.unflatten(jax.tree.structure(self.abstract), values)
        module = nnx.merge(self.graphdef, state, copy=True)
        outputs = module(*args, **kwargs)
        after = leaves_by_path(nnx.state(module))
        return nnx.as_pure(outputs), [after[leaf.path] for leaf in self.leaves]
