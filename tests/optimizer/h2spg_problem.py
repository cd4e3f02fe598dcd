"""A few groups made by hand, a problem on them, and ways to train it; shared by the tests of H2SPG."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.optimizer.h2spg import h2spg
from jasgnas.space.candidates import Candidates
from jasgnas.space.groups import Group, LeafSlice, gate_table, owner_table
from jasgnas.space.sizes import Costs
from jasgnas.space.validity import DependenceGraph

NO_COSTS = Costs(np.zeros(0, np.int32), np.zeros(0, np.int32), {})

# Groups like DemoNet's: three branches into a concatenation, whose batch norm is divided among them, and two addends.
# Segments: stem 0; branches 1, 2, 3; concatenation 4; conv6 5; conv7 6; conv8 7; sum 8; head 9.
GRAPH = DependenceGraph(
    senders=np.array([0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8], np.int32),
    receivers=np.array([1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 9], np.int32),
    passes_zeros=np.ones(12, bool),
    additive=np.isin(np.arange(10), [4, 8]),
    num_external=(np.arange(10) == 0).astype(np.int32),
    outputs=np.array([9], np.int32),
    required=np.array([9], np.int32),
    group=np.array([-1, 0, 1, 2, -1, -1, 3, 4, -1, -1], np.int32),
    segment=np.arange(10, dtype=np.int32),
)
SHAPES = {
    "stem/kernel": (2, 4),
    "conv2/kernel": (4, 3),
    "conv3/kernel": (4, 3),
    "conv4/bias": (4,),
    "conv4/kernel": (4, 4),
    "norm/scale": (10,),  # 3 + 3 entries of the first two branches, 3 of the third, and one of nobody
    "mixed/kernel": (3, 8),  # conv7 has columns 0-2, conv8 columns 4-7
    "gain": (),
}


def make_candidates(slices, shapes, graph, fingerprint, costs=NO_COSTS):
    """Candidates made by hand: the slices of each group, the shapes of the leaves, and what depends on what."""
    groups = [Group(index, "", tuple(own), 0, (), (0,)) for index, own in enumerate(slices)]
    owners = owner_table(groups, shapes)
    num_params = [sum(np.ones(shapes[each.path])[each.indices].size for each in own) for own in slices]
    gates = gate_table(groups, owners)
    return Candidates(np.array(num_params), graph.group, shapes, owners, gates, graph, costs, fingerprint)


SLICES = (
    (LeafSlice("conv2/kernel"), LeafSlice("norm/scale", 0, 0, 3)),
    (LeafSlice("conv3/kernel"), LeafSlice("norm/scale", 0, 3, 6)),
    (LeafSlice("conv4/bias"), LeafSlice("conv4/kernel"), LeafSlice("norm/scale", 0, 6, 9)),
    (LeafSlice("mixed/kernel", 1, 0, 3),),
    (LeafSlice("mixed/kernel", 1, 4, 8), LeafSlice("gain")),
)
CANDIDATES = make_candidates(SLICES, SHAPES, GRAPH, fingerprint=3_456_789_012)
INDICES = [
    [(part.path, (slice(None),) * (part.axis or 0) + (slice(part.start, part.stop),) if part.stop else ...)
     for part in own]
    for own in SLICES
]  # fmt: skip


def make_params(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), dtype) for path, shape in SHAPES.items()}


def make_problem(seed=0):
    """A quadratic that moves about: `grads(params, step)`, for NumPy and JAX arrays alike."""
    rng = np.random.default_rng(seed)
    curvature = {path: rng.uniform(0.1, 1.0, shape) for path, shape in SHAPES.items()}
    centre = {path: 0.5 * rng.normal(size=shape) for path, shape in SHAPES.items()}
    phase = {path: rng.uniform(0, 6, shape) for path, shape in SHAPES.items()}

    def grads(params, step, sin=np.sin):
        return {
            path: curvature[path] * (x - centre[path]) + 0.3 * sin(0.7 * step + phase[path])
            for path, x in params.items()
        }

    return grads


def jax_grads(params, step):
    """The gradients of `make_problem()`, traceable and in the dtype of the parameters."""
    grads = make_problem()(jax.tree.map(lambda x: x.astype(jnp.float32), params), step, sin=jnp.sin)
    return jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, params)


def group_arrays(params, group):
    return [np.asarray(params[path])[index] for path, index in INDICES[group]]


def zero_groups(params):
    """The groups all of whose parameters are exactly zero."""
    return [group for group in range(5) if not any(array.any() for array in group_arrays(params, group))]


def make_h2spg(learning_rate=0.1, target_groups=3, warmup_steps=4, projection_steps=6, **options):
    if "target_sparsity" in options:
        target_groups = None
    return h2spg(
        CANDIDATES,
        learning_rate=learning_rate,
        target_groups=target_groups,
        warmup_steps=warmup_steps,
        projection_steps=projection_steps,
        **{"score": "magnitude", **options},
    )


def make_chain(**options):
    return optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9), make_h2spg(**options))


DEFAULT = make_chain()


def make_step(tx, grads_fn=jax_grads):
    def step(params, opt_state, number):
        grads = grads_fn(params, number)
        updates, opt_state = tx.update(grads, opt_state, params, grad=grads)
        return optax.apply_updates(params, updates), opt_state

    return step


@cache
def jit_step(tx, grads_fn):
    return jax.jit(make_step(tx, grads_fn))


def train(tx, params, num_steps, grads_fn=jax_grads, opt_state=None, start=0):
    """Runs steps `start` … `num_steps` − 1 jitted; returns parameters and state after each of them."""
    step = jit_step(tx, grads_fn)
    opt_state = tx.init(params) if opt_state is None else opt_state
    history = []
    for number in range(start, num_steps):
        params, opt_state = step(params, opt_state, number)
        history.append((params, opt_state))
    return history


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def mask(groups):
    return np.isin(np.arange(5), list(groups))


@cache
def default_history():
    """Parameters and state after each of 16 steps of the default chain: 4 of warm-up, 6 of projection, 6 after."""
    return train(DEFAULT, make_params(), 16)
