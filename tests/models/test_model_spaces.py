"""Random valid sets of every registered network give sub-networks that return the same and train on the same."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
import models
from experiments.benchmarks.paper_subnets import PAPER_SIZES, Config, Size, find_removal, run
from tests.networks import arrays, error, optimized, randomize, sampled
from tests.small_models import SHORT_CELLS, SMALL

TOLERANCE = 1e-9
# Attention takes its softmax in float32, whatever its operands are: `jax.nn.dot_product_attention`.
FLOAT32_TOLERANCE = 1e-5


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


compiled = jax.jit(evaluate_and_train, static_argnums=0)


def take_step(model: nnx.Module, x: jax.Array) -> Any:
    """Trains a network for one step, in place, and returns its outputs before it in both modes."""
    # Thousands of operators together take XLA many minutes; one by one they are compiled once for each shape.
    step = compiled if len(arrays(model)) < 1000 else evaluate_and_train
    outputs, state = step(*nnx.split(model), x)
    nnx.update(model, state)
    return outputs


def check_subnet(
    model: nnx.Module,
    space: jasgnas.SearchSpace,
    removed: tuple[int, ...],
    x: jax.Array,
) -> None:
    """Compares full and sub-network in both modes, in a training step, and in both modes after it."""
    full = space.zero(model, removed)
    subnet = jasgnas.construct_subnet(space, full)
    has_attention = isinstance(model, models.VisionTransformer | models.DecoderTransformer)
    tolerance = FLOAT32_TOLERANCE if has_attention else TOLERANCE
    whole_params, whole_macs = space.subnet_size(())
    params, macs = space.subnet_size(removed)
    assert whole_params == jasgnas.count_params(full)
    assert whole_params - jasgnas.count_params(subnet) >= whole_params - params > 0
    assert jasgnas.count_macs(full, x) - jasgnas.count_macs(subnet, x) >= whole_macs - macs

    before = arrays(subnet)
    assert error(take_step(subnet, x), take_step(full, x)) < tolerance
    # The full network goes on without the redundant groups only if they are held at zero, as H2SPG does.
    full = space.zero(full, removed)
    expected, found = arrays(full), arrays(subnet)
    assert any(error(array, before[path]) > 0 for path, array in found.items() if path.endswith("kernel"))
    for path, array in found.items():
        assert array.shape != expected[path].shape or error(array, expected[path]) < tolerance, path
    assert error(take_step(subnet, x), take_step(full, x)) < tolerance


ROWS = [
    *SMALL,
    ("darts_14", {"num_cells": 3, "features": 4, "genotype": SHORT_CELLS}, (4, 32, 32, 3)),
]


SHARES = (0.5, 1.0)
# With all tests, each network with one of the shares, in turns.
CASES = [(*row, share) for i, row in enumerate(ROWS) for share in (SHARES if i % 2 else SHARES[::-1])]


@pytest.mark.parametrize(
    ("name", "overrides", "shape", "share"), sampled(CASES, 2), ids=[f"{name}-{share}" for name, _, _, share in CASES]
)
def test_random_subnet_returns_and_learns_the_same(
    name: str, overrides: dict[str, Any], shape: tuple[int, ...], share: float
) -> None:
    model, space = space_of(name, shape, num_classes=5, **overrides)
    removed = space.random_redundant(jax.random.key(0), math.ceil(share * len(space.largest_removal)))
    check_subnet(model, space, removed, batch(name, shape))


LABELS = [pytest.param(label, marks=[pytest.mark.slow] * (label == "DARTS, 14 cells")) for label in PAPER_SIZES]
RECORDS = json.loads((Path(__file__).parents[2] / "experiments/results/paper_subnets/results.json").read_text())


@pytest.mark.parametrize("label", LABELS)
def test_recorded_subnet_is_valid_and_has_the_papers_size(label: str) -> None:
    (name, size), record = PAPER_SIZES[label], RECORDS[label]
    assert record["network"] == name
    space = jasgnas.search_space(models.create_abstract(name), models.example_input(name))
    if label == "DARTS, 8 cells":
        assert space.subnet_size(()) == (pytest.approx(4.05e6, rel=0.05), pytest.approx(614e6, rel=0.05))
    assert {group.name for group in space.groups} >= set(record["kept"])
    removed = [group.index for group in space.groups if group.name not in record["kept"]]
    assert space.is_valid(removed)
    params, macs = space.subnet_size(removed)
    assert params == pytest.approx(size.num_params, rel=0.05)
    assert size.macs is None or macs == pytest.approx(size.macs, rel=0.05)


def test_subnet_of_the_papers_size_is_found_and_exact(tmp_path: Path) -> None:
    found = run(Config(("DemoNet",), output=tmp_path))["DemoNet"]
    assert found.num_groups - len(found.kept) == 3
    assert found.size == (pytest.approx(0.45e6, rel=0.05), pytest.approx(107e6, rel=0.05))
    assert found.difference < TOLERANCE
    assert json.loads((tmp_path / "results.json").read_text())["DemoNet"]["kept"] == list(found.kept)


def test_size_out_of_reach_is_refused() -> None:
    space = jasgnas.search_space(models.create_abstract("demo_net"), models.example_input("demo_net"))
    with pytest.raises(jasgnas.TargetError, match=r"num_params=1000.* within 5%"):
        find_removal(space, Size(1000), attempts=2)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", models.list_models())
def test_random_subnet_of_real_size_returns_and_learns_the_same(name: str, share: float) -> None:
    batch_size = 1 if name == "darts_14" else 2  # Two would take ten gigabytes.
    shape = models.example_input(name, batch_size=batch_size).shape
    model, space = space_of(name, shape)
    removed = space.random_redundant(jax.random.key(0), math.ceil(share * len(space.largest_removal)))
    with optimized():
        check_subnet(model, space, removed, batch(name, shape))
