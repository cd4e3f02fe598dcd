"""Trees that hold arrays of a network, carried over to its sub-network."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import jax
import numpy as np
import optax
from jax.tree_util import GetAttrKey, SequenceKey

from jasgnas.pytree import leaves_by_path, path_str

Keys = tuple[Any, ...]

GONE: Final = object()
"""What `carried` is told to put in the place of an array that a sub-network does not have."""


def carried(
    tree: Any,
    shapes: Mapping[str, tuple[int, ...]],
    move: Callable[[str | None, Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda _: False,
) -> Any:
    """Returns a tree that holds arrays of a network, or arrays like them, as the same tree of a sub-network.

    Where a leaf is gone its key is gone, and so are keys with nothing left below them; in a sequence, or as a field of
    a tuple or a dataclass, it is None. All else stays as it is, empty containers too.

    Args:
        tree: parameters, or a tree in which nodes are like them: an optimizer state, averaged parameters.
        shapes: shapes of the network's leaves, by path.
        move: what becomes of the array at a path, or of the empty node in its place, `GONE` if nothing; the path is
            None for what lies at none.
        is_leaf: nodes that are not looked into.
    """
    result = _Carrier(shapes, move, is_leaf).walk(tree, (), False)
    if result is not GONE:
        return result
    return _mapping_like(tree, {}) if isinstance(tree, Mapping) else None  # nothing is left of a model with one array


def pruned(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns a tree of parameters with the arrays of a sub-network, without what it does not have."""
    shapes = {path: np.shape(leaf) for path, leaf in leaves_by_path(tree).items()}
    return carried(tree, shapes, lambda path, node: node if path is None else arrays.get(path, GONE))


class _Carrier:
    """Walks through a tree; the arguments are those of `carried`.

    Nodes are outside of the network, as the fields of an optimizer state are, until one is found that lies in it: every
    array below has the path of a leaf, as the tree of momenta has. All below is inside.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        move: Callable[[str | None, Any], Any],
        is_leaf: Callable[[Any], bool],
    ) -> None:
        self._shapes = shapes
        self._move = move
        self._is_leaf = is_leaf
        # The leaves at and below each path of the network.
        self._below: dict[str, list[str]] = {}
        for path in shapes:
            keys = path.split("/")
            for length in range(len(keys) + 1):
                self._below.setdefault("/".join(keys[:length]), []).append(path)

    def walk(self, node: Any, keys: Keys, is_inside: bool) -> Any:
        """Returns what becomes of a node; its keys are those in the network where it is inside."""
        if not is_inside and (place := self._place_of(node, keys)) is not None:
            keys, is_inside = place, True
        children, treedef = self._children_of(node)
        if children:
            values = [self.walk(child, (*keys, *key), is_inside) for key, child in children]
            return _put_together(node, children, treedef, values)
        if not is_inside or children is None:
            return self._move(path_str(keys) if is_inside else None, node)
        replaced = [self._move(path, node) for path in self._below.get(path_str(keys), ())]
        return GONE if replaced and all(value is GONE for value in replaced) else node

    def _children_of(self, node: Any) -> tuple[list[tuple[Keys, Any]] | None, Any]:
        """Returns the children of a node with their keys, None for an array, and what puts them together."""
        children, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
        is_array = self._is_leaf(node) or (len(children) == 1 and not children[0][0])
        return None if is_array else children, treedef

    def _place_of(self, node: Any, keys: Keys) -> Keys | None:
        """Returns the keys at which a node lies in the network: at its root, or else at names that lead to the node."""
        starts = [len(keys), *(start for start, key in enumerate(keys) if not isinstance(key, SequenceKey))]
        return next((keys[start:] for start in starts if self._lies_at(node, keys[start:])), None)

    def _lies_at(self, node: Any, keys: Keys) -> bool:
        """Tells whether a node lies in the network at some keys.

        Single numbers in the places of arrays do only where there is one for each parameter, as NovoGrad has them: the
        step counter of Adam is not what belongs to a parameter called `count`.
        """
        verdicts = self._verdicts(node, keys)
        if not (next(verdicts, False) and all(verdicts)):
            return False
        children, _ = self._children_of(node)
        prefix = path_str(keys)
        below = {path.removeprefix(prefix).strip("/").partition("/")[0] for path in self._below[prefix]}
        is_whole = {path_str(key) for key, _ in children or ()} == below
        return is_whole or not self._holds_numbers(node, keys)

    def _holds_numbers(self, node: Any, keys: Keys) -> bool:
        """Tells whether a single number is where the network has an array."""
        children, _ = self._children_of(node)
        if children is not None:
            return any(self._holds_numbers(child, (*keys, *key)) for key, child in children)
        return getattr(node, "shape", None) == () != self._shapes.get(path_str(keys), ())

    def _verdicts(self, node: Any, keys: Keys) -> Iterator[bool]:
        """Tells of the arrays and empty nodes in a node at some keys whether they lie where the network has leaves."""
        children, _ = self._children_of(node)
        path = path_str(keys)
        if children:
            for key, child in children:
                yield from self._verdicts(child, (*keys, *key))
        elif children is None:
            yield path in self._shapes
        elif isinstance(node, optax.MaskedNode):
            yield path in self._below
        elif path in self._below:
            # None may stand for arrays; an `optax.EmptyState` is the state of a link, never a parameter.
            yield node is None


def _put_together(node: Any, children: list[tuple[Keys, Any]], treedef: Any, values: list[Any]) -> Any:
    """Returns a node with other children, some of which may be gone."""
    if all(value is not GONE for value in values):
        return jax.tree.unflatten(treedef, values)
    if [key for key, _ in children] == [(GetAttrKey("value"),)]:
        return GONE  # and so is what wraps an array, such as a box of Linen
    if not isinstance(node, Mapping):
        return jax.tree.unflatten(treedef, [None if value is GONE else value for value in values])
    named = zip((key[-1].key for key, _ in children), values, strict=True)
    left = {key: value for key, value in named if value is not GONE}
    return _mapping_like(node, left) if left else GONE


def _mapping_like(node: Mapping[Any, Any], left: dict[Any, Any]) -> Any:
    """Returns a mapping of the same kind with other entries."""
    if isinstance(node, defaultdict):
        return defaultdict(node.default_factory, left)
    kind: Any = type(node)
    return kind(left)
