"""What tests compute by NumPy is what JAX computes."""

import jax
import numpy as np
import pytest

from tests.numpy_programs import PRIMITIVES, computed
from tests.rules.rule_rows import ROWS, F

DTYPES = (F, np.dtype(bool), np.dtype(np.int32))


def is_meant(row):
    """Neither empty arrays nor other dtypes are among what the programs of tests compute."""
    args = jax.tree.leaves(row.args)
    if row.primitive not in PRIMITIVES or not all(x.size and x.dtype in DTYPES for x in args):
        return False
    with jax.enable_x64(True):
        results = jax.tree.leaves(jax.eval_shape(row.fn, *row.args))
    # What a negative number is as an unsigned one, each machine decides for itself.
    return not any(np.issubdtype(x.dtype, np.unsignedinteger) for x in results)


@pytest.mark.parametrize("row", list(filter(is_meant, ROWS)), ids=lambda row: f"{row.primitive}: {row.meaning}")
def test_numpy_computes_what_jax_does(row):
    rng = np.random.default_rng(0)
    numbers = {F: lambda size: np.asarray(rng.normal(size=size)), np.int32: lambda size: rng.integers(1, 4, size)}
    args = jax.tree.map(lambda x: numbers.get(x.dtype.type, numbers[F])(x.shape).astype(x.dtype), row.args)
    with jax.enable_x64(True):
        found, expected = computed(row.fn, *args), jax.jit(row.fn)(*args)
        for each, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(each, other, rtol=1e-12, atol=1e-12)
            assert each.dtype == other.dtype
