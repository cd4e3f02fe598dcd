"""Helpers that tests of several modules share: networks with nothing left at its initial value, comparisons."""

from contextlib import contextmanager
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jasgnas.pytree import leaves_by_path, path_str


@contextmanager
def optimized():
    """Has XLA optimise what it compiles, other than conftest.py says: for what depends on it, or runs for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def randomize(tree, seed=0, dtype=None):
    """Returns random values in place of all floating-point arrays, positive ones for those called `var`.

    They take the given dtype, running statistics too, which Flax makes float32 whatever the parameters are.
    """
    rng = np.random.default_rng(seed)

    def draw(keys, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # Signals grow a little from layer to layer, so that biases do not decide alone which relus are on.
        values = rng.normal(size=leaf.shape) * (3 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.5)
        values = np.abs(values) + 0.5 if path_str(keys).endswith("var") else values
        return jnp.asarray(values, dtype or leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def build(constructor, seed=0, dtype=None, **options):
    """Builds an `nnx.Module` without computing its initial values: every array is random."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: constructor(rngs=nnx.Rngs(0), **options)))
    return nnx.merge(graphdef, randomize(abstract, seed, dtype))


def random_input(shape, dtype=jnp.float32, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def error(found, expected):
    """The largest difference between two pytrees of arrays, relative to the largest entry of the expected array."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    worst = 0.0
    for a, b in zip(map(np.asarray, found), map(np.asarray, expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{a.shape} {a.dtype} and {b.shape} {b.dtype}"
        assert np.isfinite(b).all()
        difference = np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), np.finfo(b.dtype).tiny)
        worst = max(worst, float(difference) if np.isfinite(difference) else np.inf)
    return worst


def subsets(num):
    """All subsets of `range(num)`, small ones first."""
    return [subset for size in range(num + 1) for subset in combinations(range(num), size)]


def sampled(cases, every):
    """Cases of a sweep as parameters of a test: one in `every` runs with all tests, the others with `-m sweep`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.sweep] if i % every else [])
        for i, case in enumerate(cases)
    ]


def arrays(holder):
    """The arrays of a module or pytree by path."""
    return leaves_by_path(nnx.state(holder) if isinstance(holder, nnx.Module) else holder)


def parameters(model):
    return leaves_by_path(nnx.state(model, nnx.Param))


def gradients(model, x, seed=0, wrt=nnx.Param):
    """Gradients of a random combination of all outputs with respect to the parameters, by path."""
    return leaves_by_path(_gradients(*nnx.split(model, wrt, ...), x, seed))


@partial(jax.jit, static_argnames=("graphdef", "seed"))
def _gradients(graphdef, params, rest, x, seed):
    return jax.grad(lambda params: combination(nnx.merge(graphdef, params, rest, copy=True)(x), seed))(params)


def combination(outputs, seed=0):
    """A random linear combination of all entries of all outputs."""
    rng = np.random.default_rng(seed)
    return sum(jnp.vdot(jnp.asarray(rng.normal(size=y.shape), y.dtype), y) for y in jax.tree.leaves(outputs))


def idle_indices(gradients):
    """Paths, axes and indices of parameters on which the gradient is zero throughout."""
    found = []
    for path, gradient in gradients.items():
        for axis in range(gradient.ndim):
            others = tuple(i for i in range(gradient.ndim) if i != axis)
            found += [(path, axis, int(i)) for i in np.flatnonzero(~np.any(np.asarray(gradient), others))]
    return found


def primitives(graph, operators):
    """The primitives that some operators of a graph consist of."""
    return [graph.program.equations[position].primitive for operator in operators for position in operator.equations]
