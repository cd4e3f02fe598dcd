"""Arrays of which only some entries are stored."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.program.masks import NOTHING, Layout, depth, everything, filled, flattened, stored_shape


class Sliced(NamedTuple):
    """An array of which only the entries of a layout are stored; the others are zero, or needed by nobody.

    Attributes:
        array: the stored entries, None where the layout is `NOTHING`.
        layout: which entries they are.
        aval: shape and dtype of the full array.
    """

    array: Any
    layout: Layout
    aval: Any

    def to(self, layout: Layout) -> "Sliced":
        """Returns the same value in another layout: entries are dropped, or zeros put back."""
        if layout == NOTHING:
            return Sliced(None, NOTHING, self.aval)
        if self.layout == NOTHING:
            return Sliced(jnp.zeros(stored_shape(self.aval.shape, layout), self.aval.dtype), layout, self.aval)
        most = max(depth(self.layout), depth(layout))
        shape, before = flattened(self.aval.shape, self.layout, most)
        _, after = flattened(self.aval.shape, layout, most)
        array = self.array if most == 1 else self.array.reshape(stored_shape(shape, before))
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if old is not new:
                array = _restore(array, axis, filled(old, shape[axis]), filled(new, shape[axis]))
        array = array if most == 1 else array.reshape(stored_shape(self.aval.shape, layout))
        return Sliced(array, layout, self.aval)

    def full(self) -> Any:
        """Returns the array with its zeros put back, of shape `aval.shape`."""
        return self.to(everything(len(self.aval.shape))).array


def on_host(change: Callable[[Any], Any], array: Any) -> Any:
    """Returns a changed array, changed by NumPy where it lies on one device outside any transformation.

    JAX would compile the change for every shape anew, which for hundreds of small arrays takes minutes.
    """
    if isinstance(array, np.ndarray):
        return _put(change(array))
    is_known = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    if not is_known or not isinstance(array.dtype, np.dtype) or len(array.devices()) > 1:
        return change(array)
    changed = _put(change(np.asarray(array)))
    return changed if changed.devices() == array.devices() else jax.device_put(changed, array.sharding)


def _put(array: Any) -> jax.Array:
    # jnp.asarray compiles a program for every shape. Of what shares memory with another array nothing could be donated.
    return jax.device_put(np.array(array))


def _restore(array: Any, axis: int, old: np.ndarray, new: np.ndarray) -> Any:
    """Moves one axis from the entries `old` to the entries `new`."""
    if np.array_equal(old, new):
        return array
    # Position in the stored array of each wanted entry; -1 where it is a zero to be put back.
    source = np.where(old, np.cumsum(old) - 1, -1)[new]
    runs = np.split(source, np.flatnonzero(np.diff(source) != np.where(source[:-1] < 0, 0, 1)) + 1)
    if isinstance(array, np.ndarray) or len(runs) > _MOST_PIECES:
        xp = np if isinstance(array, np.ndarray) else jnp
        if not array.shape[axis]:
            return xp.zeros((*array.shape[:axis], len(source), *array.shape[axis + 1 :]), array.dtype)
        taken = xp.take(array, np.maximum(source, 0), axis=axis)
        shown = np.reshape(source >= 0, [-1 if i == axis else 1 for i in range(array.ndim)])
        return taken if shown.all() else xp.where(shown, taken, xp.zeros((), array.dtype))
    if not len(source):
        return jax.lax.slice_in_dim(array, 0, 0, axis=axis)
    pieces = []
    for run in runs:
        if run[0] < 0:
            shape = (*array.shape[:axis], len(run), *array.shape[axis + 1 :])
            pieces.append(jnp.zeros(shape, array.dtype))
        else:
            pieces.append(jax.lax.slice_in_dim(array, int(run[0]), int(run[-1]) + 1, axis=axis))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)


# Beyond this many contiguous runs one gather is cheaper to compile than a concatenation of slices.
_MOST_PIECES = 16
