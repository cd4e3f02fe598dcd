"""Pytrees as JSON: containers and shapes, none of the numbers, and nothing that would have to be run to be read."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.program.jaxpr import is_array, key_implementation

Json = Any
"""What `json` reads and writes."""


def dtype_name(dtype: Any) -> str:
    """Returns the name of a dtype, `key:` and the implementation for typed random keys."""
    if not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return np.dtype(dtype).name
    return f"key:{key_implementation(dtype)}"


def dtype_of(name: str) -> Any:
    """Returns the dtype of a name.

    Raises:
        ValueError: there is no such dtype, or it is none of numbers.
    """
    if name.startswith("key:"):
        implementation = name.removeprefix("key:")
        return jax.eval_shape(lambda: jax.random.key(0, impl=implementation)).dtype
    dtype = jax.numpy.dtype(name)
    if dtype != np.bool_ and not jax.dtypes.issubdtype(dtype, np.number):
        raise ValueError(f"{name!r} is no dtype of numbers")
    return dtype


def described_array(aval: Any) -> dict[str, Json]:
    """Describes the shape and dtype of an array; sizes that are symbols are strings."""
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return {"shape": shape, "dtype": dtype_name(aval.dtype)}


def array_of(node: Mapping[str, Json]) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype that were described.

    Raises:
        ValueError: this is no description of an array whose sizes are numbers.
    """
    shape = node["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{shape!r} is no shape")
    return jax.ShapeDtypeStruct(tuple(shape), dtype_of(node["dtype"]))


def described(tree: Any) -> Json:
    """Describes a pytree of arrays and of settings that are numbers or strings.

    Raises:
        ArgumentError: it holds anything else, or containers other than dictionaries, lists and tuples.
    """
    if tree is None:
        return None
    if type(tree) is dict and all(type(key) in (str, int) for key in tree):
        return {"dict": [[key, described(child)] for key, child in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: list(map(described, tree))}
    if is_array(tree):
        return described_array(tree)
    if type(tree) in (bool, int, str) or (type(tree) is float and math.isfinite(tree)):
        return {"value": tree}
    raise ArgumentError(
        f"{tree!r} cannot be written down without code: only arrays, numbers and strings in dictionaries, lists and "
        "tuples can"
    )


def rebuilt(node: Json) -> Any:
    """Returns the pytree that was described, arrays as shapes and dtypes.

    Raises:
        ValueError: this is no description of a pytree.
    """
    match node:
        case None:
            return None
        case {"dict": list(items)} if all(type(key) in (str, int) for key, _ in items):
            return {key: rebuilt(child) for key, child in items}
        case {"list": list(items)}:
            return list(map(rebuilt, items))
        case {"tuple": list(items)}:
            return tuple(map(rebuilt, items))
        case {"value": bool() | int() | float() | str() as value}:
            return value
        case {"shape": _, "dtype": str()}:
            return array_of(node)
    raise ValueError(f"{node!r} describes no pytree")
