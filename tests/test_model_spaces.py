"""Random valid sets of every registered network give sub-networks that return the same and train on the same."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import arrays, error, randomize
from small_models import SMALL

import jasgnas
import models
from experiments.paper_subnets import PAPER_SIZES, Size, find_removal

TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def float64():
    """Batch norms over few positions are ill-conditioned: in float32 a deep network would lose most of its digits."""
    with jax.enable_x64(True):
        yield


@functools.cache
def space_of(name: str, shape: tuple[int, ...], **overrides: Any) -> tuple[nnx.Module, jasgnas.SearchSpace]:
    """A network with no array at its initial value, so that nothing is zero or one by chance, and its search space."""
    graphdef, abstract = nnx.split(models.create_abstract(name, param_dtype=jnp.float64, **overrides))
    model = nnx.merge(graphdef, randomize(abstract, dtype=jnp.float64))
    return model, jasgnas.search_space(model, jax.ShapeDtypeStruct(shape, batch(name, shape).dtype))


def batch(name: str, shape: tuple[int, ...]) -> jax.Array:
    rng = np.random.default_rng(0)
    if models.example_input(name).dtype == jnp.int32:
        return jnp.asarray(rng.integers(5, size=shape), jnp.int32)
    return jnp.asarray(rng.normal(size=shape))


def evaluate_and_train(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> tuple[Any, nnx.State]:
    """Outputs in inference and in training mode, and all arrays after one step of SGD."""
    model = nnx.merge(graphdef, state, copy=True)
    model.eval()
    inferred = model(x)
    model.train()

    def loss_fn(model: nnx.Module) -> tuple[jax.Array, jax.Array]:
        outputs = model(x)
        labels = jnp.arange(outputs.size // outputs.shape[-1]).reshape(outputs.shape[:-1]) % outputs.shape[-1]
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(), outputs

    (_, trained), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    params = jax.tree.map(lambda p, g: p - 0.01 * g, nnx.state(model, nnx.Param), grads)
    nnx.update(model, params)
    return (inferred, trained), nnx.state(model)


compile_for_speed = jax.jit(evaluate_and_train, static_argnums=0)
# Small networks spend their time in the compiler, and run quickly enough without its optimisations.
compile_quickly = jax.jit(evaluate_and_train, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def take_step(model: nnx.Module, x: jax.Array) -> Any:
    """Trains a network for one step, in place, and returns its outputs before it in both modes."""
    step = compile_quickly if jasgnas.count_params(model) < 1e5 else compile_for_speed
    outputs, state = step(*nnx.split(model), x)
    nnx.update(model, state)
    return outputs


def check_subnet(model: nnx.Module, space: jasgnas.SearchSpace, removed: tuple[int, ...], x: jax.Array) -> None:
    """Compares full and sub-network in both modes, in a training step, and in both modes after it."""
    full = space.zero(model, removed)
    subnet = jasgnas.construct_subnet(space, full)
    whole_params, whole_macs = space.subnet_size(())
    params, macs = space.subnet_size(removed)
    assert whole_params == jasgnas.count_params(full)
    assert whole_params - jasgnas.count_params(subnet) >= whole_params - params > 0
    assert jasgnas.count_macs(full, x) - jasgnas.count_macs(subnet, x) >= whole_macs - macs

    assert error(take_step(subnet, x), take_step(full, x)) < TOLERANCE
    # The full network goes on without the redundant groups only if they are held at zero, as H2SPG does.
    full = space.zero(full, removed)
    expected, found = arrays(full), arrays(subnet)
    for path, array in found.items():
        assert array.shape != expected[path].shape or error(array, expected[path]) < TOLERANCE, path
    assert error(take_step(subnet, x), take_step(full, x)) < TOLERANCE
    assert any(error(array, found[path]) > 0 for path, array in arrays(subnet).items() if path.endswith("kernel"))


ROWS = [
    *SMALL,
    ("regnet_x_200mf", {"config": models.regnet.RegNetConfig(2, 8, 8.0, 2.0, 8)}, (4, 16, 16, 3)),
    ("darts_14", {"num_cells": 3, "features": 4, "genotype": models.darts.DARTS_V2}, (4, 32, 32, 3)),
]


IDS = [name for name, _, _ in ROWS]


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(("name", "overrides", "shape"), ROWS, ids=IDS)
def test_random_subnet_returns_and_learns_the_same(
    name: str, overrides: dict[str, Any], shape: tuple[int, ...], share: float
) -> None:
    model, space = space_of(name, shape, num_classes=5, **overrides)
    removed = space.random_redundant(jax.random.key(0), math.ceil(share * len(space.largest_removal)))
    check_subnet(model, space, removed, batch(name, shape))


LABELS = [pytest.param(label, marks=[pytest.mark.slow] * (label == "DARTS, 14 cells")) for label in PAPER_SIZES]


@pytest.mark.parametrize("label", LABELS)
def test_space_holds_a_subnet_of_the_papers_size(label: str) -> None:
    name, size = PAPER_SIZES[label]
    model, x = models.create_abstract(name), models.example_input(name)
    space = jasgnas.search_space(model, x)
    if label == "DARTS, 8 cells":
        assert jasgnas.count_params(model) == pytest.approx(4.05e6, rel=0.05)
        assert jasgnas.count_macs(model, x) == pytest.approx(614e6, rel=0.05)
    removed = find_removal(space, size)
    assert space.is_valid(removed)
    params, macs = space.subnet_size(removed)
    assert params == pytest.approx(size.num_params, rel=0.05)
    assert size.macs is None or macs == pytest.approx(size.macs, rel=0.05)


def test_size_out_of_reach_is_refused() -> None:
    space = jasgnas.search_space(models.create_abstract("demo_net"), models.example_input("demo_net"))
    with pytest.raises(jasgnas.TargetError, match=r"num_params=1000.* within 5%"):
        find_removal(space, Size(1000), attempts=2)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", models.list_models())
def test_random_subnet_of_real_size_returns_and_learns_the_same(name: str, share: float) -> None:
    shape = models.example_input(name, batch_size=2).shape
    model, space = space_of(name, shape)
    removed = space.random_redundant(jax.random.key(0), math.ceil(share * len(space.largest_removal)))
    check_subnet(model, space, removed, batch(name, shape))
