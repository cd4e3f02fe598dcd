"""What the library needs to know of a model, whatever it is written in."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import jax
import numpy as np
from jax.tree_util import GetAttrKey

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
            holder: the full model, its variables or its parameters, or those of a larger sub-network.
            arrays: the arrays of the sub-network, by path.
        """

    def carry(self, state: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]) -> Any:
        """Returns an optimizer state for the parameters of a sub-network, see `carried`."""


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


GONE: Final = object()
"""What `carried` is told to put in the place of an array that a sub-network does not have."""


def carried(
    tree: Any,
    paths: Container[str],
    move: Callable[[str | None, Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda _: False,
    rename: Callable[[Any], Any] = lambda key: key,
) -> Any:
    """Returns a tree of arrays that lie at the paths of a network, or below other keys at these, as a sub-network's.

    Where a leaf is gone its key is gone, and so are keys with nothing left below them; in a sequence, or as a field of
    a tuple or a dataclass, it is None.

    Args:
        tree: parameters, or a tree that holds arrays like them: an optimizer state, averaged parameters.
        paths: paths of the network's leaves.
        move: what becomes of the array (or of an empty node) at a path, `GONE` if nothing; the path is None for what
            lies at none.
        is_leaf: nodes that are not looked into.
        rename: what becomes of the keys of mappings.
    """

    def walk(node: Any, keys: tuple[Any, ...]) -> Any:
        children, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
        if is_leaf(node) or not children or (len(children) == 1 and not children[0][0]):
            # The longest path: the others are those of leaves that are called like the end of this one.
            names = (path_str(keys[start:]) for start in range(len(keys)))
            path = next((name for name in names if name in paths), None)
            return move(path, node)
        values = [walk(child, (*keys, *below)) for below, child in children]
        if values[0] is GONE and [below for below, _ in children] == [(GetAttrKey("value"),)]:
            return GONE  # and so is what wraps an array, such as an `nnx.Variable`
        if not isinstance(node, Mapping):
            return jax.tree.unflatten(treedef, [None if value is GONE else value for value in values])
        named = zip((rename(below[-1].key) for below, _ in children), values, strict=True)
        left = {key: value for key, value in named if value is not GONE}
        kind: Any = type(node)
        return kind(left) if left else GONE

    result = walk(tree, ())
    return type(tree)() if result is GONE else result


def pruned(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns a tree of parameters with the arrays of a sub-network, without what it does not have."""
    return carried(tree, leaves_by_path(tree), lambda path, node: node if path is None else arrays.get(path, GONE))
