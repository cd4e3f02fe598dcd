"""What the library needs to know of a model, whatever it is written in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jasgnas.errors import TreeMismatchError
from jasgnas.pytree import leaves_by_path, path_str


class Leaf(NamedTuple):
    """One array of a model.

    Attributes:
        path: its path, keys joined by `/`.
        shape: its shape.
        dtype: its dtype.
        trainable: whether it is a trainable parameter; running statistics and random states are not.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    trainable: bool


class Recipe(Protocol):
    """How to compute what the full network computes from the arrays of a sub-network."""

    def apply(
        self, model: "Model", arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the network outputs, and the arrays that the call has changed, by path."""


class Model(Protocol):
    """A model of any flavour, as a pure function of its leaves."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Its arrays, in the order of its pytree."""

    @property
    def static(self) -> Any:
        """What tells its modes apart, hashable."""

    def in_mode(self, training: bool) -> "Model":
        """Returns the model in training or inference mode."""

    def tree(self, holder: Any) -> Any:
        """Returns the pytree of arrays that a model, its variables or its parameters hold."""

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns the same kind of object as `holder`, holding other arrays in the same tree structure."""

    def apply(self, values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Calls the model; returns its outputs and all leaves after the call."""

    def wrap_subnet(self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any]) -> Any:
        """Returns the sub-network in the flavour of the model.

        Args:
            recipe: how the sub-network computes.
            holder: the full model, its variables or its parameters.
            arrays: the arrays of the sub-network, by path.
        """


def leaf_of(path: str, value: Any, trainable: bool) -> Leaf:
    """Describes an array, concrete or abstract."""
    return Leaf(path, tuple(np.shape(value)), value.dtype, trainable)


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


def pruned(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns a tree with the arrays of a sub-network; other leaves are None, keys with nothing below them are gone."""
    return _without_empty(jax.tree_util.tree_map_with_path(lambda keys, _: arrays.get(path_str(keys)), tree))


def _without_empty(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    children = {key: _without_empty(value) for key, value in tree.items()}
    return {key: value for key, value in children.items() if jax.tree.leaves(value)}
