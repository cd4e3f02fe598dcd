"""What the library needs to know of a model, whatever it is written in."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.tree_util import GetAttrKey, SequenceKey

from jasgnas.errors import ArgumentError, TreeMismatchError
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

    def carry(
        self, state: Any, subnet: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]
    ) -> Any:
        """Returns an optimizer state for the parameters of a sub-network, see `carried`."""


def abstracted(tree: Any) -> Any:
    """Returns shapes and dtypes of a pytree of arrays, concrete or abstract.

    Raises:
        ArgumentError: a leaf is no array.
    """
    others = [f"{path} ({value!r})" for path, value in leaves_by_path(tree).items() if not hasattr(value, "dtype")]
    if others:
        raise ArgumentError(f"every leaf of a model must be an array, but not so {', '.join(others)}: use jnp.asarray")
    return jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), tree)


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
    paths: Collection[str],
    move: Callable[[str | None, Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda _: False,
) -> Any:
    """Returns a tree that holds arrays of a network, or arrays like them, as the same tree of a sub-network.

    Where a leaf is gone its key is gone, and so are keys with nothing left below them; in a sequence, or as a field of
    a tuple or a dataclass, it is None. All else stays as it is, empty containers too.

    Args:
        tree: parameters, or a tree in which nodes are like them: an optimizer state, averaged parameters.
        paths: paths of the network's leaves.
        move: what becomes of the array at a path, or of the empty node in its place, `GONE` if nothing; the path is
            None for what lies at none.
        is_leaf: nodes that are not looked into.
    """
    below: dict[str, list[str]] = {}
    for path in paths:
        keys = path.split("/")
        for length in range(len(keys) + 1):
            below.setdefault("/".join(keys[:length]), []).append(path)

    def children_of(node: Any) -> tuple[list[tuple[Any, Any]] | None, Any]:
        """Returns the children of a node with their keys, None for an array, and what puts them together."""
        children, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
        is_array = is_leaf(node) or (len(children) == 1 and not children[0][0])
        return None if is_array else children, treedef

    def verdicts(node: Any, keys: tuple[Any, ...]) -> Iterator[bool | None]:
        """Tells of all arrays and empty nodes in a node at some keys whether they lie where the network has leaves."""
        children, _ = children_of(node)
        path = path_str(keys)
        if children:
            for key, child in children:
                yield from verdicts(child, (*keys, *key))
        elif children is None:
            yield path in paths
        elif isinstance(node, optax.MaskedNode):
            yield path in below
        elif path in below:
            # None may stand for arrays; an `optax.EmptyState` is the state of a link, never a parameter.
            yield node is None
        else:
            yield None

    def lies_at(node: Any, keys: tuple[Any, ...]) -> bool:
        """Tells whether a node lies in the network at some keys."""
        is_sure = False
        for verdict in verdicts(node, keys):
            if verdict is False:
                return False
            is_sure = is_sure or verdict is True
        return is_sure

    def place_of(node: Any, keys: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Returns the keys at which a node lies in the network: at its root, or else at names that lead to the node."""
        starts = [len(keys), *(start for start, key in enumerate(keys) if not isinstance(key, SequenceKey))]
        return next((keys[start:] for start in starts if lies_at(node, keys[start:])), None)

    def walk(node: Any, keys: tuple[Any, ...], is_inside: bool) -> Any:
        if not is_inside and (place := place_of(node, keys)) is not None:
            keys, is_inside = place, True
        children, treedef = children_of(node)
        if not children:
            if not is_inside or children is None:
                return move(path_str(keys) if is_inside else None, node)
            replaced = [move(path, node) for path in below.get(path_str(keys), ())]
            return GONE if replaced and all(value is GONE for value in replaced) else node
        values = [walk(child, (*keys, *key), is_inside) for key, child in children]
        if all(value is not GONE for value in values):
            return jax.tree.unflatten(treedef, values)
        if [key for key, _ in children] == [(GetAttrKey("value"),)]:
            return GONE  # and so is what wraps an array, such as a box of Linen
        if not isinstance(node, Mapping):
            return jax.tree.unflatten(treedef, [None if value is GONE else value for value in values])
        named = zip((key[-1].key for key, _ in children), values, strict=True)
        left = {key: value for key, value in named if value is not GONE}
        kind: Any = type(node)
        return kind(left) if left else GONE

    result = walk(tree, (), False)
    return type(tree)() if result is GONE else result


def pruned(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns a tree of parameters with the arrays of a sub-network, without what it does not have."""
    return carried(tree, leaves_by_path(tree), lambda path, node: node if path is None else arrays.get(path, GONE))
