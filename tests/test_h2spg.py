"""H2SPG against its oracle, in every company an optax transformation can find itself in."""

import dataclasses
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from h2spg_oracle import BRANCHES, Adam, Oracle, Sgd
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jasgnas.errors import ArgumentError, TargetError, TreeMismatchError
from jasgnas.h2spg import ADAM_DEFAULTS, DONE, PROJECTION, WARMUP, H2SPGState, h2spg, h2spg_metrics, h2spg_state
from jasgnas.scores import SCORES, GroupStats
from jasgnas.validity import SegmentTopology, is_valid

# A space like DemoNet's: three branches into a concatenation, whose batch norm is divided among them, and two addends.
# Segments: stem 0; branches 1, 2, 3; concatenation 4; conv6 5; conv7 6; conv8 7; sum 8; head 9.
TOPOLOGY = SegmentTopology(
    senders=np.array([0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8], np.int32),
    receivers=np.array([1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 9], np.int32),
    additive=np.isin(np.arange(10), [4, 8]),
    num_external=(np.arange(10) == 0).astype(np.int32),
    outputs=np.array([9], np.int32),
    group=np.array([-1, 0, 1, 2, -1, -1, 3, 4, -1, -1], np.int32),
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


class LeafSlice(NamedTuple):
    path: str
    axis: int | None = None
    start: int = 0
    stop: int = 0


@dataclasses.dataclass
class Group:
    index: int
    num_params: int
    slices: tuple[LeafSlice, ...]


SPACE = SimpleNamespace(
    groups=(
        Group(0, 15, (LeafSlice("conv2/kernel"), LeafSlice("norm/scale", 0, 0, 3))),
        Group(1, 15, (LeafSlice("conv3/kernel"), LeafSlice("norm/scale", 0, 3, 6))),
        Group(2, 23, (LeafSlice("conv4/bias"), LeafSlice("conv4/kernel"), LeafSlice("norm/scale", 0, 6, 9))),
        Group(3, 9, (LeafSlice("mixed/kernel", 1, 0, 3),)),
        Group(4, 13, (LeafSlice("mixed/kernel", 1, 4, 8), LeafSlice("gain"))),
    ),
    topology=TOPOLOGY,
    leaves=tuple(SimpleNamespace(path=path, shape=shape) for path, shape in SHAPES.items()),
)
INDICES = [
    [(part.path, (slice(None),) * (part.axis or 0) + (slice(part.start, part.stop),) if part.stop else ...)
     for part in group.slices]
    for group in SPACE.groups
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
        SPACE,
        learning_rate=learning_rate,
        target_groups=target_groups,
        warmup_steps=warmup_steps,
        projection_steps=projection_steps,
        **options,
    )


def make_chain(**options):
    return optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9), make_h2spg(**options))


def make_step(tx, grads_fn=jax_grads):
    def step(params, opt_state, number):
        updates, opt_state = tx.update(grads_fn(params, number), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def train(tx, params, num_steps, grads_fn=jax_grads, opt_state=None, start=0):
    """Runs steps `start` … `num_steps` − 1 jitted; returns parameters and state after each, and the last of them."""
    step = jax.jit(make_step(tx, grads_fn))
    opt_state = tx.init(params) if opt_state is None else opt_state
    history = []
    for number in range(start, num_steps):
        params, opt_state = step(params, opt_state, number)
        history.append((params, opt_state))
    return history


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# --- The oracle --------------------------------------------------------------------------------------------------------

SGD, MOMENTUM = partial(Sgd), partial(Sgd, momentum=0.9, weight_decay=1e-3)
OPTAX_BASE = {
    SGD: optax.sgd,
    MOMENTUM: lambda lr: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(lr, momentum=0.9)),
    Adam: optax.adam,
}


def warmup_then_decay(step):
    """A learning rate that starts at 0."""
    return 0.002 * step * 0.99**step


def constant(step):
    return 0.01 + 0.0 * step


ORACLE_CASES = {
    "sgd": (SGD, constant, {}),
    "sgd-strong": (SGD, constant, {"lmbda": 0.3, "amplify": 1.5, "hat": 3.0, "guarantee_target": False}),
    "sgd-weak": (
        SGD,
        constant,
        {"lmbda": 0.05, "amplify": 1.1, "hat": 100.0, "epsilon": 0.95, "projection_steps": 250},
    ),
    "sgd-periods": (SGD, warmup_then_decay, {"lmbda": 0.02, "periods": 3, "omega": 0.7}),
    "momentum": (MOMENTUM, constant, {"guarantee_target": False}),
    "momentum-schedule": (MOMENTUM, warmup_then_decay, {"lmbda": 0.1, "epsilon": 0.3, "num_redundant": 2}),
    "momentum-periods": (MOMENTUM, constant, {"periods": 2, "guarantee_target": False, "lmbda": 0.2}),
    "adam": (Adam, constant, dict(ADAM_DEFAULTS)),
    "adam-periods": (Adam, warmup_then_decay, {**ADAM_DEFAULTS, "periods": 3}),
    "adam-unguaranteed": (Adam, constant, {**ADAM_DEFAULTS, "guarantee_target": False}),
}


def make_oracle(base, learning_rate, options):
    options = {"num_redundant": 3, "warmup_steps": 40, "projection_steps": 160, **options}
    return Oracle(
        INDICES, lambda removed: is_valid(TOPOLOGY, np.isin(np.arange(5), list(removed))), base(), learning_rate, **options
    )  # fmt: skip


ORACLE_STEPS = 300
SILENCED_AT = 60  # before this step group 2 is set to zero by hand, whatever it was going to be


@pytest.fixture(scope="module")
def oracle_runs():
    """For every case the oracle's final state and, after each step, what it held: parameters, scores, redundant, zero."""
    runs = {}
    for seed, (case, (base, learning_rate, options)) in enumerate(ORACLE_CASES.items()):
        oracle, grads = make_oracle(base, learning_rate, options), make_problem(seed)
        params = jax.tree.map(np.float64, make_params(seed))
        history = []
        for number in range(ORACLE_STEPS):
            if number == SILENCED_AT:
                params = jax.tree.map(np.array, params)
                oracle.write(params, 2, np.zeros(23))
            params = oracle.step(params, grads(params, number))
            history.append((params, oracle.scores, mask(oracle.redundant), mask(oracle.zero)))
        runs[case] = oracle, jax.tree.map(lambda *steps: np.stack(steps), *history)
    return runs


def mask(groups):
    return np.isin(np.arange(5), list(groups))


@pytest.mark.parametrize("case", ORACLE_CASES)
def test_iterates_agree_with_oracle(case, oracle_runs):
    base, learning_rate, options = ORACLE_CASES[case]
    options = {"warmup_steps": 40, "projection_steps": 160, **options}
    options["target_groups"] = options.pop("num_redundant", 3)
    seed = list(ORACLE_CASES).index(case)
    with jax.enable_x64(True):
        tx = optax.chain(OPTAX_BASE[base](learning_rate), make_h2spg(learning_rate, **options))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), make_params(seed))
        step = make_step(tx, partial(make_problem(seed), sin=jnp.sin))

        def body(carry, number):
            params, opt_state = carry
            silenced = {path: params[path].at[index].multiply(number != SILENCED_AT) for path, index in INDICES[2]}
            params = {**params, **silenced}
            params, opt_state = step(params, opt_state, number)
            state = h2spg_state(opt_state)
            return (params, opt_state), (params, state.scores, state.redundant, state.zero)

        _, found = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(ORACLE_STEPS)))((params, tx.init(params)))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-10), found, oracle_runs[case][1])


def test_oracle_cases_meet_every_branch(oracle_runs):
    met = sum((oracle.branches for oracle, _ in oracle_runs.values()), Counter())
    assert set(met) == BRANCHES
