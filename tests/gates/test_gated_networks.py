"""Gated networks of several families in float64: equal to the networks themselves, and to what is left of them."""

import warnings
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
from jasgnas.errors import ArgumentError, DisconnectedOutputError, GatesLeftWarning, NoRemovableStructureError
from jasgnas.pytree import leaves_by_path, path_str
from models import CountedKeys
from models.darts import DARTS_V2, Darts
from models.nasbench201 import NasBench201
from models.stacked_unets import StackedUnets
from tests.gates.test_folding import gates_left, trained_gates
from tests.networks import build, error, random_input
from tests.whole.test_generated import draw_params, networks

MODULES = {
    "stacked_unets": partial(StackedUnets, width=0.08),
    "darts": partial(Darts, features=2, num_cells=3, genotype=DARTS_V2),
    # The whole super-network; with counted keys it is made in seconds, not minutes.
    "darts_8": lambda rngs: Darts(features=2, num_cells=8, rngs=CountedKeys()),
    "nasbench201": partial(NasBench201, features=2, num_cells=1),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def called(module, x, training):
    """The outputs and the state after a call, compiled as a whole."""
    module.train() if training else module.eval()
    graphdef, state = nnx.split(module)

    def run(state, x):
        own = nnx.merge(graphdef, state)
        return own(x), nnx.to_pure_dict(nnx.state(own, nnx.BatchStat))

    return jax.jit(run)(state, x)


def gated_module(name):
    """A module, the same with gates, its search space, and an input."""
    model = build(MODULES[name], dtype=jnp.float64)
    model.eval()
    x = random_input((2, 8, 8, 3), jnp.float64)
    gated = jasgnas.gated(model, x)
    return model, gated, jasgnas.search_space(gated, x), x


each_module = pytest.mark.parametrize(
    "name",
    [
        "stacked_unets",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("darts", "nasbench201")),
        pytest.param("darts_8", marks=pytest.mark.slow),
    ],
)


@each_module
def test_modules_are_exact_with_gates_and_without_what_is_gone(name):
    model, gated, space, x = gated_module(name)
    gates = [group.index for group in space.groups if group.kind == "gate"]
    assert gates
    assert gates == list(range(len(space.groups) - len(gates), len(space.groups)))
    outputs, statistics = called(gated, x, True)
    expected, expected_statistics = called(model, x, True)
    assert error(outputs, expected) < 1e-10
    assert error(statistics, expected_statistics) < 1e-10
    removed = space.random_redundant(jax.random.key(1), max(2, len(space.largest_removal) // 2))
    assert set(removed) & set(gates)
    full = space.zero(gated, removed)
    subnet = jasgnas.construct_subnet(space, full)
    assert not gates_left(nnx.state(subnet))
    for training in (False, True) if name == "stacked_unets" else (True,):
        assert error(called(subnet, x, training)[0], called(full, x, training)[0]) < 1e-10


@each_module
def test_modules_are_exact_where_parameters_have_taken_up_trained_gates(name):
    _, gated, space, x = gated_module(name)
    nnx.update(gated, trained_gates(nnx.state(gated)))
    # The sums of a cell of NAS-Bench-201 have so many operands that few are left with one before.
    part = 0.9 if name == "nasbench201" else 0.5
    full = space.zero(gated, space.random_redundant(jax.random.key(1), int(part * len(space.largest_removal))))
    with warnings.catch_warnings(action="ignore", category=GatesLeftWarning):
        subnet = jasgnas.construct_subnet(space, full)
    arrays = leaves_by_path(nnx.state(full))
    living = [path for path in gates_left(nnx.state(full)) if np.any(arrays[path])]
    assert len(gates_left(nnx.state(subnet))) < len(living)
    assert error(called(subnet, x, True)[0], called(full, x, True)[0]) < 1e-10


def decoder(params, x):
    """Two blocks whose branches are scaled by gains of their own (LayerScale, arXiv 2103.17239)."""

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale

    for block in params["blocks"]:
        y = norm(x, block["scale1"])
        q, k, v = (jnp.reshape(y @ block[each], (*y.shape[:2], 2, -1)) for each in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ block["o"] * block["gain1"]
        x = x + jax.nn.gelu(norm(x, block["scale2"]) @ block["up"]) @ block["down"] * block["gain2"]
    return x @ params["head"]


def decoder_params():
    shapes = {name: (4, 4) for name in "qkvo"} | {"up": (4, 8), "down": (8, 4)}
    shapes |= {name: (4,) for name in ("scale1", "scale2", "gain1", "gain2")}
    draw = np.random.default_rng(0).normal
    return {"blocks": [{name: jnp.asarray(draw(size=s)) for name, s in shapes.items()} for _ in range(2)],
            "head": jnp.asarray(draw(size=(4, 3)))}  # fmt: skip


def check_function(fn, params, x, seed):
    """Compares a function with its gated one, with gates at one and at other values, and with what is left of both."""
    gated, own = jasgnas.gated(fn, x, params=params)
    run = jax.jit(lambda params: gated(params, x))
    assert error(run(own), jax.jit(fn)(params, x)) < 1e-10
    space = jasgnas.search_space(gated, x, params=own)
    removed = space.random_redundant(jax.random.key(seed), max(1, len(space.largest_removal) // 2))
    rng = np.random.default_rng(seed)

    def changed(keys, leaf):
        # Of a gate all numbers are positive, so that parameters may take it up, or some are not.
        return jnp.asarray(rng.uniform(rng.choice([-1, 0.5]), 2, leaf.shape)) if "gates" in path_str(keys) else leaf

    for trained in (own, jax.tree_util.tree_map_with_path(changed, own)):
        full = space.zero(trained, removed)
        with warnings.catch_warnings(action="ignore", category=GatesLeftWarning):
            sub_fn, left = jasgnas.construct_subnet(space, full, allow_nothing=True)
        assert error(jax.jit(sub_fn)(left, x), run(full)) < 1e-10
        if trained is own:
            assert "gates" not in left


def test_a_transformer_with_layer_scale_is_exact():
    check_function(decoder, decoder_params(), random_input((2, 3, 4), jnp.float64), 3)


@hypothesis.settings(max_examples=3, derandomize=True, deadline=None, database=None, phases=[hypothesis.Phase.generate])
@hypothesis.given(networks())
def test_generated_networks_are_exact(network):
    params, x = draw_params(network, 0), random_input((6, 4, 4, 3), jnp.float64)
    try:
        check_function(network, params, x, 1)
    except (ArgumentError, DisconnectedOutputError, NoRemovableStructureError):
        hypothesis.reject()
