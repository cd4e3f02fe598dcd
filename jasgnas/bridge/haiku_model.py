"""Haiku transforms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import haiku as hk
import jax
from jax.tree_util import tree_map_with_path

from jasgnas.bridge.base import Model, Recipe, abstracted, positional_names
from jasgnas.bridge.carry import pruned
from jasgnas.errors import ArgumentError
from jasgnas.pytree import leaves_by_path, path_str

_STATE = "~state"
"""Under what the state is in the tree of arrays: no name of a Haiku module."""


@dataclass(frozen=True, eq=False)
class HaikuModel(Model):
    """A transformed function with its parameters and, where it has one, its state.

    The paths of parameters are theirs (`linear/w`); those of the state start with `~state`.

    Attributes:
        transformed: the pair of functions that `hk.transform` or `hk.transform_with_state` returned.
        abstract: parameters and state as one tree, shapes and dtypes only.
    """

    needs = ("params",)
    why = "a Haiku transform needs what its init returned, its parameters or the pair (params, state)"
    kind = "Haiku transform"
    is_module = False

    transformed: hk.Transformed | hk.TransformedWithState
    abstract: Any

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is a transformed function."""
        return isinstance(model, hk.Transformed | hk.TransformedWithState)

    @classmethod
    def of(cls, transformed: hk.Transformed | hk.TransformedWithState, params: Any) -> "HaikuModel":
        """Describes a transformed function; arrays are only looked at for their shapes.

        Raises:
            ArgumentError: one with a state comes with something else than the pair of parameters and state.
        """
        if isinstance(transformed, hk.TransformedWithState) and not _is_pair(params):
            raise ArgumentError(
                "a transform_with_state needs its parameters and its state, as its init returns them: "
                f"params=(params, state); got {type(params).__name__}"
            )
        return cls(transformed, abstracted(_as_tree(params)))

    @staticmethod
    def initial(model: Any, inputs: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters of a transformed function, shapes and dtypes only."""
        # What `apply` takes after the parameters, `init` takes after a key; the key of `apply` is its own.
        names = positional_names(model.apply)[2 if isinstance(model, hk.TransformedWithState) else 1 :]
        inputs = inputs[1:] if names[:1] == ("rng",) else inputs
        key = jax.random.key(0)
        return {"params": jax.eval_shape(lambda *xs: model.init(key, *xs, **settings), *inputs)}

    @staticmethod
    def argument_names(model: Any, method: Any) -> tuple[str, ...]:
        """Returns the names of the positional arguments of `apply`, without parameters and state."""
        del method
        return positional_names(model.apply)[2 if isinstance(model, hk.TransformedWithState) else 1 :]

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, HaikuModel] | None":
        """Returns what a sub-network computes with."""
        if not HaikuModel.owns(subnet) or not isinstance(subnet.apply, _Apply):
            return None
        return subnet.apply.recipe, subnet.apply.full

    @property
    def has_state(self) -> bool:
        """Whether the function has a state."""
        return isinstance(self.transformed, hk.TransformedWithState)

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of `apply`."""
        return self.argument_names(self.transformed, None)

    def called(self, holder: Any) -> Any:
        """Returns the transformed function."""
        del holder
        return self.transformed

    def holder_of(self, arrays: Mapping[str, Any]) -> Any:
        """Returns the parameters, or the pair of parameters and state, with these arrays."""
        return self._as_holder(super().holder_of(arrays))

    def given(self) -> dict[str, Any]:
        """Returns the parameters, and the state."""
        return {"params": self._as_holder(self.abstract)}

    def trainable(self) -> Any:
        """Returns the parameters."""
        return {name: value for name, value in self.abstract.items() if name != _STATE}

    def tree(self, holder: Any) -> Any:
        """Returns parameters, or the pair of parameters and state, as one tree."""
        return _as_tree(holder)

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns parameters, or the pair, with the arrays of a tree."""
        return self._as_holder(tree) if _is_pair(holder) else tree

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls `apply`."""
        holder = self._as_holder(tree)
        if not self.has_state:
            return self.transformed.apply(holder, *args, **kwargs), tree
        params, state = holder
        outputs, state = self.transformed.apply(params, state, *args, **kwargs)
        return outputs, _as_tree((params, state))

    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Any, Any]:
        """Returns a transformed function, whose `init` refuses, and its parameters, or the pair with its state."""
        left = {**pruned(self.tree(holder), arrays), **added}
        return type(self.transformed)(init=_no_init, apply=_Apply(recipe, self)), self._as_holder(left)

    def _as_holder(self, tree: Mapping[str, Any]) -> Any:
        params = {name: value for name, value in tree.items() if name != _STATE}
        return (params, tree.get(_STATE, {})) if self.has_state else params


@dataclass(frozen=True, eq=False)
class _Apply:
    """The `apply` of a sub-network; pickled if the full one can be.

    Attributes:
        recipe: how the sub-network computes.
        full: the full function.
    """

    recipe: Recipe
    full: HaikuModel

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full function would, with the new state where it has one."""
        if not self.full.has_state:
            return self.recipe.apply(self.full, leaves_by_path(params), args, kwargs)[0]
        tree = _as_tree((params, args[0]))
        outputs, changed = self.recipe.apply(self.full, leaves_by_path(tree), args[1:], kwargs)
        after = tree_map_with_path(lambda keys, value: changed.get(path_str(keys), value), tree)
        return outputs, after[_STATE]


def _no_init(*args: Any, **kwargs: Any) -> Any:
    raise ArgumentError("a sub-network is not initialised: use the parameters that construct_subnet returned")


def _is_pair(holder: Any) -> bool:
    return isinstance(holder, tuple) and len(holder) == 2 and all(isinstance(each, Mapping) for each in holder)


def _as_tree(holder: Any) -> dict[str, Any]:
    return {**holder[0], _STATE: holder[1]} if _is_pair(holder) else holder
