"""Key paths as strings: the one place that knows how a leaf of a pytree is named.

A path is the sequence of keys that leads to a leaf, joined by `/`: `conv1/kernel`. The same parameter has the
same path in an `nnx.State`, in the pure tree of arrays that `nnx.Optimizer` hands to optax, and in a Linen or
plain-JAX parameter dictionary.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jasgnas.errors import ArgumentError


def key_str(key: Any) -> str:
    """Returns one key of a key path as it appears in a path string."""
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name) | GetAttrKey(name=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
        case _:
            return str(key)


def path_str(keys: Sequence[Any]) -> str:
    """Returns a key path as a string, keys joined by `/`.

    A trailing `.value`, with which an `nnx.Variable` wraps its array, is not part of the name.

    Example:
        >>> import jax
        >>> [path_str(keys) for keys, _ in jax.tree_util.tree_leaves_with_path({"a": [0, {"b": 1}]})]
        ['a/0', 'a/1/b']
    """
    if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return "/".join(map(key_str, keys))


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree keyed by path string, in tree order.

    Raises:
        ArgumentError: two leaves have the same path, as of `{"a/b": …, "a": {"b": …}}`.

    Example:
        >>> leaves_by_path({"dense": {"bias": 0, "kernel": 1}})
        {'dense/bias': 0, 'dense/kernel': 1}
    """
    found: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = path_str(keys)
        if path in found:
            raise ArgumentError(
                f"two leaves of the tree have the path {path!r}: paths are keys joined by '/'. Rename one of the keys"
            )
        found[path] = leaf
    return found
