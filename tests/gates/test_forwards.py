"""Trained gates are folded into what is behind them where that is exact, and stay where it is not; in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
from tests.gates.test_folding import (
    BOTH,
    NEITHER,
    SCALAR,
    SIZE,
    VECTOR,
    check,
    construct,
    gates_left,
    max_pooled,
    normalized,
    pooled,
    trained_gates,
)
from tests.networks import build, error, random_input

WIDE = 2 * SIZE
SHAPES = {
    "a": (SIZE, SIZE), "branch": (SIZE, SIZE), "few": (SIZE, 3), "half": (SIZE // 2, 3), "rows": (5, 3),
    "out": (WIDE, WIDE), "other": (WIDE, 3), "gain": (WIDE,), "twice": (2 * WIDE, 3), "low": (WIDE, 2),
    "rank": (2, WIDE), "conv": (3, WIDE, 4), "depthwise": (3, 1, WIDE), "groups": (3, 4, 3),
}  # fmt: skip


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def draw_params():
    draw = np.random.default_rng(0).normal
    return {name: jnp.asarray(draw(size=shape)) for name, shape in SHAPES.items()}


def convolved(h, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        h, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


def concatenated(p, x):
    """A network input, which has no parameters to take up a gate, between two branches."""
    h = jnp.tanh(x @ p["a"])
    return jnp.concatenate([h[..., :2], x, h[..., 2:]], -1)


def summed(p, x):
    """A network input and a branch, without which it is alone."""
    return x + jnp.tanh(x @ p["branch"])


def beside_kernel(p, y):
    row = jnp.broadcast_to(p["out"][0, :2], (4, 5, 2))
    return jnp.concatenate([y[..., 2:], row], -1) @ p["out"]


def of_relu(p, y):
    h = jax.nn.relu(y)
    return h @ p["out"], jnp.tanh(h @ p["other"])


# What the gated edge goes into, what reads that, and the shapes of the gates that the parameters of it can take up.
ROWS = {
    "dense": (concatenated, lambda p, y: y @ p["out"], BOTH),
    "transposed_kernel": (concatenated, lambda p, y: jnp.einsum("bti,oi->bto", y, p["out"]), BOTH),
    "product_of_kernels": (concatenated, lambda p, y: y @ (p["low"] @ p["rank"]), BOTH),
    "relu_and_convolution": (concatenated, lambda p, y: convolved(jax.nn.relu(y), p["conv"]), BOTH),
    "depthwise_convolution": (concatenated, lambda p, y: convolved(y, p["depthwise"], WIDE), BOTH),
    "scale": (concatenated, lambda p, y: jnp.tanh(y * p["gain"]), BOTH),
    "pooling": (concatenated, lambda p, y: pooled(y).mean(1) @ p["out"], BOTH),
    "max_pooling": (concatenated, lambda p, y: max_pooled(jax.nn.leaky_relu(y)) @ p["out"], BOTH),
    "padding": (concatenated, lambda p, y: jnp.pad(y, ((0, 0), (1, 1), (0, 0))) @ p["out"], BOTH),
    "transposed": (concatenated, lambda p, y: jnp.swapaxes(y, 0, 1) @ p["out"], BOTH),
    "reversed": (concatenated, lambda p, y: y[..., ::-1] @ p["out"], BOTH),
    "rolled": (concatenated, lambda p, y: jnp.roll(y, 3, -1) @ p["out"], BOTH),
    "kernel_that_it_scales": (concatenated, lambda p, y: y @ (p["out"] * y.sum((0, 1))), BOTH),
    "several_readers": (concatenated, lambda p, y: (y @ p["out"], jnp.tanh(y[:, ::2] @ p["other"])), BOTH),
    "several_readers_of_a_relu": (concatenated, of_relu, BOTH),
    "sum_left_with_one": (summed, lambda p, y: (y @ p["few"], jnp.tanh(y @ p["a"])), BOTH),
    "max_over_features": (summed, lambda p, y: y.max(-1) @ p["rows"], {SCALAR}),
    "features_mixed": (summed, lambda p, y: (y - y.mean(-1, keepdims=True)) @ p["few"], {SCALAR}),
    "pairs_added": (summed, lambda p, y: (y[..., ::2] + y[..., 1::2]) @ p["half"], {SCALAR}),
    "kernel_that_is_shared": (summed, lambda p, y: jnp.tanh(y @ p["a"] @ p["few"]) @ p["a"][:3], {SCALAR}),
    # An index of what is concatenated meets others, or something that is not concatenated.
    "max_over_concatenated": (concatenated, lambda p, y: y.max(-1) @ p["rows"], NEITHER),
    "mixed_with_concatenated": (concatenated, lambda p, y: (y - y.mean(-1, keepdims=True)) @ p["out"], NEITHER),
    "grouped_convolution": (concatenated, lambda p, y: convolved(y, p["groups"], 3), NEITHER),
    "at_two_places": (concatenated, lambda p, y: jnp.concatenate([y, y], -1) @ p["twice"], NEITHER),
    # It is in no proportion.
    "norm": (concatenated, lambda p, y: normalized(y) @ p["out"], NEITHER),
    "tanh": (concatenated, lambda p, y: jnp.tanh(y) @ p["out"], NEITHER),
    "square": (concatenated, lambda p, y: y**2 @ p["out"], NEITHER),
    "constant_beside": (concatenated, lambda p, y: (y + 1) @ p["out"], NEITHER),
    # Something else reads it, or the parameters.
    "output": (concatenated, lambda p, y: (y @ p["out"], y), NEITHER),
    "reader_without_parameters": (concatenated, lambda p, y: (y @ p["out"], jnp.tanh(y)), NEITHER),
    "kernel_beside_it": (concatenated, beside_kernel, NEITHER),
    "shared_kernel": (concatenated, lambda p, y: jnp.tanh(y @ p["out"]) @ p["out"], NEITHER),
}


@pytest.mark.parametrize("scalar", [False, True], ids=["vector", "scalar"])
@pytest.mark.parametrize("name", ROWS)
def test_gates_are_folded_forwards_where_that_is_exact_alone(name, scalar):
    joint, reader, shapes = ROWS[name]
    x = random_input((4, 5, SIZE), jnp.float64)
    check(lambda p, x: reader(p, joint(p, x)), draw_params(), x, (SCALAR if scalar else VECTOR) in shapes, scalar)


def test_gates_stay_that_are_not_positive_or_before_parameters_that_are_kept():
    fn = lambda p, x: jax.nn.relu(concatenated(p, x)) @ p["out"]  # noqa: E731
    x = random_input((4, 5, SIZE), jnp.float64)
    check(fn, draw_params(), x, False, sign=-1)
    check(fn, draw_params(), x, False, keep="out")


class Stem(nnx.Module):
    """A pooling of the input beside a convolution, and a relu and a convolution with batch norm that read both."""

    def __init__(self, rngs, norm_first):
        self.beside = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(7, 4, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(7 if norm_first else 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.norm_first = norm_first

    def __call__(self, x):
        pool = nnx.avg_pool(x, (3, 3), (1, 1), "SAME")
        x = jnp.concatenate([jnp.tanh(self.beside(x)), pool], -1)
        x = self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(jax.nn.relu(x)))
        return self.head(jnp.tanh(x).mean((1, 2)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_stems_take_up_gates_of_what_they_read_in_both_modes_unless_a_batch_norm_is_before(norm_first):
    x = random_input((4, 6, 6, 3), jnp.float64)
    model = build(Stem, dtype=jnp.float64, norm_first=norm_first)
    model.eval()
    gated = jasgnas.gated(model, x)
    nnx.update(gated, trained_gates(nnx.state(gated)))
    subnet, _ = construct(jasgnas.search_space(gated, x), gated)
    assert bool(gates_left(nnx.state(subnet))) is norm_first
    for training in (False, True):
        for each in (gated, subnet):
            each.train() if training else each.eval()
        assert error(subnet(x), gated(x)) < 1e-10
        assert error(subnet.norm.mean[...], gated.norm.mean[...]) < 1e-10
        assert error(subnet.norm.var[...], gated.norm.var[...]) < 1e-10
