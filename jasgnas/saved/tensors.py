"""Named arrays as the bytes of a safetensors file, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from jasgnas.errors import ArgumentError
from jasgnas.program.jaxpr import key_implementation

# The names that the format has for dtypes, of those that a reader who knows NumPy alone can read.
_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}


def is_key(dtype: Any) -> bool:
    """Tells whether a dtype is that of typed random keys."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def raw(value: Any) -> Any:
    """Returns an array as it is, typed random keys as the numbers they are made of."""
    return jax.random.key_data(value) if is_key(value.dtype) else value


def raw_aval(aval: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of what `raw` returns."""
    return jax.eval_shape(jax.random.key_data, aval) if is_key(aval.dtype) else aval


def typed(array: Any, aval: Any) -> Any:
    """Returns an array of some dtype, given its numbers."""
    if not is_key(aval.dtype):
        return jnp.asarray(array)
    return jax.random.wrap_key_data(jnp.asarray(array), impl=key_implementation(aval.dtype))


def to_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Returns a safetensors file that holds some arrays, typed random keys as the numbers they are made of.

    Raises:
        ArgumentError: the format has no such dtype.
    """
    held = {name: np.asarray(raw(array), order="C") for name, array in arrays.items()}
    for name, array in held.items():
        if array.dtype not in _DTYPES.values():
            raise ArgumentError(
                f"{name} is of dtype {array.dtype}, which cannot be written: convert it to one of "
                + ", ".join(str(dtype) for dtype in _DTYPES.values())
            )
    return save(held)


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file, by name; what it holds is checked by the library that reads it."""
    return {
        name: np.frombuffer(each["data"], _DTYPES[each["dtype"]]).reshape(each["shape"])
        for name, each in safetensors.deserialize(data)
    }
