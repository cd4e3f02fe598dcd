"""What the library needs to know of a model, whatever it is written in."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from jasgnas.bridge.carry import carried, pruned
from jasgnas.errors import ArgumentError, TreeMismatchError
from jasgnas.program.jaxpr import abstract
from jasgnas.pytree import leaves_by_path, path_str


class Leaf(NamedTuple):
    """One array of a model.

    Attributes:
        path: its path, keys joined by `/`.
        shape: its shape.
        dtype: its dtype.
        trainable: whether it is a trainable parameter; running statistics and random states are not.
        is_gate: whether it is a factor that `jasgnas.gated` has put on an edge.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    trainable: bool
    is_gate: bool = False

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class Recipe(Protocol):
    """How to compute a network that is made of another one: what it computes, from arrays of its own."""

    @property
    def gate_paths(self) -> Collection[str]:
        """Paths of the gates among the arrays."""

    def apply(
        self, model: "Model", arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the network outputs, and the arrays that the call has changed, by path."""


class Shown:
    """A sub-network that notebooks show as a drawing, where nothing shows it in a richer form, as treescope does."""

    def _repr_svg_(self) -> str | None:
        """Returns a drawing of what is left."""
        from jasgnas.pages.drawing import picture  # here, because drawings are made of sub-networks

        return picture(self)


class Model(ABC):
    """A model of any flavour, as a pure function of its leaves.

    Attributes:
        needs: the arguments of `search_space` that must come with a model of this flavour.
        options: those that may come with it.
        why: what to tell a user who has left out what is needed, or given more.
        kind: what its models are called.
        is_module: whether its models are modules, as opposed to functions of parameters.
        abstract: the pytree of its arrays, shapes and dtypes only.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    why: ClassVar[str]
    kind: ClassVar[str]
    is_module: ClassVar[bool] = True

    abstract: Any

    def __reduce__(self) -> Any:
        """Copies and pickles what it was made from, and nothing that was found out since."""
        return type(self), tuple(getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]

    @staticmethod
    @abstractmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is of this flavour."""

    @classmethod
    @abstractmethod
    def of(cls, *args: Any, **kwargs: Any) -> "Model":
        """Describes a model, given what must and may come with it; arrays are only looked at for their shapes."""

    @staticmethod
    def initial(model: Any, inputs: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what goes with a module that stands alone, given the arguments of a call; nothing is computed."""
        del model, inputs, settings
        return {}

    @staticmethod
    def argument_names(model: Any, method: Any) -> tuple[str, ...]:
        """Returns the names of the positional arguments that a module is called with, as far as they are known."""
        called = method if callable(method) else getattr(model, method or "__call__")
        names = positional_names(called)
        # What is no method of an instance takes the module first.
        return names[1:] if inspect.isfunction(called) else names

    @staticmethod
    def parameters(holder: Any) -> Any:
        """Returns the trainable parameters in what a user of this flavour holds, None for what is of another one.

        Variables of a Linen module are known by their collection `params`, also where Linen is not loaded, as after
        reading a checkpoint.
        """
        return holder["params"] if is_variables(holder) else holder

    @staticmethod
    @abstractmethod
    def recipe_of(subnet: Any) -> "tuple[Any, Model] | None":
        """Returns how a sub-network of this flavour computes, and its full model; None for what is no such thing."""

    @property
    def is_apart(self) -> bool:
        """Whether a user holds arrays beside the model."""
        return bool(self.needs)

    def holder(self, model: Any, apart: Any) -> Any:
        """Returns what a user holds: the model, or what is held beside it, None for nothing."""
        return model if apart is None else apart

    def given(self) -> dict[str, Any]:
        """Returns what must and may come with the model, arrays as shapes and dtypes only."""
        return {}

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Its arrays, in the order of its pytree."""
        trainable = leaves_by_path(self.trainable())
        found = leaves_by_path(self.abstract).items()
        gates = self.gate_paths()
        return tuple(
            Leaf(path, tuple(value.shape), value.dtype, path in trainable, path in gates) for path, value in found
        )

    def trainable(self) -> Any:
        """Returns the part of its pytree that is trained; all of it where nothing else is known."""
        return self.abstract

    def gate_paths(self) -> Collection[str]:
        """Returns the paths of the gates among its arrays, see `jasgnas.gated`."""
        own = self.recipe_of(self.called(None))
        return () if own is None else own[0].gate_paths

    @abstractmethod
    def called(self, holder: Any) -> Any:
        """Returns what is called when the model is: a module or a function, that of a holder where it is one."""

    def holder_of(self, arrays: Mapping[str, Any]) -> Any:
        """Returns what a user holds of the model, given its arrays by path."""
        return pruned(self.abstract, arrays)

    @property
    def static(self) -> Any:
        """What is no array in it, hashable; nothing where the mode is an argument of the call."""
        return None

    def part_name(self, path: str) -> str:
        """Returns what a part of the model is called in its code, empty where nothing is known; the path "" is all."""
        del path
        return ""

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the positional arguments that the model is called with, as far as they are known."""
        return ()

    def path_in_module(self, path: str) -> str:
        """Returns the path that an array has in a module that is written with an attribute for each layer."""
        return path

    def in_mode(self, training: bool) -> "Model":
        """Returns the model in training or inference mode; itself where the mode is an argument of the call."""
        del training
        return self

    def tree(self, holder: Any) -> Any:
        """Returns the pytree of arrays that a model, its variables or its parameters hold."""
        return holder

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns the same kind of object as `holder`, holding other arrays in the same tree structure."""
        del holder
        return tree

    def switched(self, holder: Any, training: bool) -> Any:
        """Returns what a user holds in training or inference mode, a module changed in place.

        It is as it was where the mode is an argument of the call.
        """
        del training
        return holder

    def stored(self, holder: Any, changed: Mapping[str, Any]) -> Any:
        """Returns what a user holds with other arrays at some paths, a module changed in place."""

        def change(keys: Any, leaf: Any) -> Any:
            return changed.get(path_str(keys), leaf)

        return self.like(holder, jax.tree_util.tree_map_with_path(change, self.tree(holder)))

    def apply(self, values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Calls the model; returns its outputs and all leaves after the call."""
        outputs, after = self.call(jax.tree.unflatten(jax.tree.structure(self.abstract), values), args, kwargs)
        found = leaves_by_path(after)
        return outputs, [found[leaf.path] for leaf in self.leaves]

    @abstractmethod
    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls the model with a pytree of its arrays; returns its outputs and that pytree after the call."""

    @abstractmethod
    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        """Returns the sub-network in the flavour of the model.

        Args:
            recipe: how the sub-network computes.
            holder: the full model, its variables or its parameters, or those of a larger sub-network.
            arrays: the arrays of the sub-network, by path.
            added: parameters that the full model has not, nested dictionaries of arrays by top-level key.
        """

    def carry(
        self, state: Any, subnet: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]
    ) -> Any:
        """Returns an optimizer state for the parameters of a sub-network, see `carried`."""
        del subnet
        return carried(state, {leaf.path: leaf.shape for leaf in self.leaves}, move, is_leaf=is_leaf)


def positional_names(called: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the names of the positional arguments of a function, as far as they are known."""
    try:
        parameters = inspect.signature(called).parameters.values()
    except ValueError:  # a built-in
        return ()
    return tuple(each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD))


def abstracted(tree: Any) -> Any:
    """Returns shapes and dtypes of a pytree of arrays, concrete or abstract; dtypes as JAX has them.

    Raises:
        ArgumentError: a leaf is no array.
    """
    others = [f"{path} ({value!r})" for path, value in leaves_by_path(tree).items() if not hasattr(value, "dtype")]
    if others:
        raise ArgumentError(f"every leaf of a model must be an array, but not so {', '.join(others)}: use jnp.asarray")
    return jax.tree.map(abstract, tree)


def matched(leaves: Sequence[Leaf], tree: Any) -> list[Any]:
    """Returns the leaves of a pytree in the order of `leaves`.

    Raises:
        TreeMismatchError: a leaf is missing, superfluous or of another shape; all of them are named.
    """
    found = leaves_by_path(tree)
    faults = [f"{path}: not in the search space" for path in found.keys() - {leaf.path for leaf in leaves}]
    for leaf in leaves:
        if leaf.path not in found:
            faults.append(f"{leaf.path}: missing")
        elif np.shape(found[leaf.path]) != leaf.shape:
            faults.append(f"{leaf.path}: shape {np.shape(found[leaf.path])}, expected {leaf.shape}")
    if faults:
        raise TreeMismatchError(
            "these arrays do not match the search space:\n  "
            + "\n  ".join(sorted(faults))
            + "\nPass the model that the space was made for, or make a new space with jasgnas.search_space."
        )
    return [found[leaf.path] for leaf in leaves]


def is_variables(holder: Any) -> bool:
    """Tells whether something is the variables of a Linen module: collections, of which `params` is one."""
    is_mapping = isinstance(holder, Mapping) and "params" in holder
    return is_mapping and all(isinstance(collection, Mapping) for collection in holder.values())
