"""What must hold on any device: sub-networks return what the full network does, and H2SPG selects what the CPU does."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
import models
from experiments.engine.compare import OUTPUT_TOLERANCE
from experiments.engine.networks import Network
from experiments.gpu.journal import Thing, Work, called_with
from experiments.gpu.networks import random_network

_BATCH = 4
_STEPS = 4

_UNTUNED = {"xla_gpu_autotune_level": 0}
"""Else a GPU's compiler tries out kernels for every shape, one program after the other: in vain for a single call."""

NETWORKS = ("demo_net", "resnet18_cifar", "stacked_unets", "regnet_x_200mf_cifar", "vit_s16", "decoder_small")
"""Convolutions in blocks, grouped, in a U-Net; attention with and without a mask."""

SELECTIONS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("demo_net", False, {"target_groups": 2}),
    ("resnet18_cifar", True, {"target_macs": 0.5}),
)
"""Networks, whether their spaces have channels, and targets."""


def checks(*, tiny: bool) -> Iterator[tuple[Thing, Work]]:
    """Yields each check, and the work that returns its figures."""
    for name in NETWORKS[:1] if tiny else NETWORKS:
        for dtype in ("float32", "bfloat16"):
            yield called_with("exactness", f"{name}, {dtype}", check_exactness, name=name, dtype=dtype)
    for name, channels, target in SELECTIONS[:1] if tiny else SELECTIONS:
        yield called_with("selection", name, check_selection, name=name, channels=channels, target=target)


def check_exactness(name: str, dtype: str) -> dict[str, Any]:
    """Removes a random valid set of a network, and compares the sub-network with the full one on the device.

    Parameters and statistics are random, none near zero. The full network has zeros where the groups were.

    Raises:
        jasgnas.VerificationError: the outputs differ by more than rounding.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        model = random_network(name, dtype=jnp.dtype(dtype))
        x = models.example_input(name, batch_size=_BATCH)
        space = jasgnas.search_space(model, x)
        removed = space.random_redundant(jax.random.key(0), (len(space.largest_removal) + 1) // 2)
        zeroed = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, zeroed)
        inputs = _inputs(x)
    full, found = (np.asarray(_outputs(each, inputs, dtype), np.float32) for each in (zeroed, subnet))
    error = float(np.abs(found - full).max() / np.abs(full).max())
    if not error <= OUTPUT_TOLERANCE[dtype]:
        raise jasgnas.VerificationError(f"the outputs differ by {error:.1e} of the largest one")
    return {
        "error": error,
        "removed": len(removed),
        "groups": len(space.groups),
        "params": [jasgnas.count_params(each) for each in (model, subnet)],
    }


def check_selection(name: str, channels: bool, target: dict[str, Any]) -> dict[str, Any]:
    """Lets H2SPG select after the same gradients on the CPU and on the device.

    Raises:
        jasgnas.VerificationError: the two differ.
    """
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        model = random_network(name)
        space = jasgnas.search_space(model, models.example_input(name), channels=channels)
    params = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model, nnx.Param)))
    rng = np.random.default_rng(0)
    grads = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params) for _ in range(_STEPS)]
    tx = optax.chain(
        optax.sgd(1e-3),
        jasgnas.h2spg(space, learning_rate=1e-3, warmup_steps=_STEPS - 1, projection_steps=_STEPS, **target),
    )

    def selected(device: jax.Device) -> np.ndarray:
        with jax.default_device(device):
            state, values = tx.init(params), params
            update = jax.jit(lambda grads, state, params: tx.update(grads, state, params, grad=grads))
            for grad in grads:
                updates, state = update(grad, state, values)
                values = optax.apply_updates(values, updates)
            return np.asarray(jasgnas.h2spg_state(state).redundant)

    on_host, on_device = selected(host), selected(jax.devices()[0])
    if not np.array_equal(on_host, on_device):
        raise jasgnas.VerificationError(
            f"{int((on_host != on_device).sum())} of {len(on_host)} groups are selected otherwise"
        )
    return {"selected": int(on_host.sum()), "groups": len(on_host)}


def _inputs(x: jax.ShapeDtypeStruct) -> np.ndarray:
    rng = np.random.default_rng(1)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return rng.normal(size=x.shape).astype(x.dtype)
    return rng.integers(0, 16, x.shape).astype(x.dtype)


def _outputs(model: nnx.Module, inputs: np.ndarray, dtype: str) -> jax.Array:
    network, variables = Network(model), Network.variables(model)
    # Otherwise products of float32 are rounded to fewer digits, in an order that depends on the width.
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        variables = jax.device_put(variables, jax.devices()[0])
        return jax.jit(network.evaluate, compiler_options=_UNTUNED)(variables, inputs)
