"""Small networks, each with one wiring that matters, and what a reading by hand finds in it.

All are plain functions `fn(params, x)`; `groups` lists the paths of every group, in order, and `left` says for one
removal which shapes the parameters of the sub-network have.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Toy(NamedTuple):
    """A network, its groups, and one removal.

    Attributes:
        fn: the network.
        shapes: shapes of its parameters.
        x: shape of its input.
        groups: paths of each group.
        removed: group indices that go in the example.
        left: shapes of the parameters that are then smaller; None for those that go.
    """

    fn: Any
    shapes: dict[str, tuple[int, ...]]
    x: tuple[int, ...]
    groups: list[set[str]]
    removed: tuple[int, ...] = (0,)
    left: dict[str, tuple[int, ...] | None] = {}


def conv(x, kernel, **options):
    ndim = kernel.ndim - 2
    spatial = "HWD"[:ndim]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    options = {"window_strides": (1,) * ndim, "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


def norm(x, scale, bias, axes=(-1,)):
    mean = jnp.mean(x, axes, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias


def affine(x, scale, bias):
    """What a batch norm does in inference mode."""
    return x * scale + bias


def residual(p, x):
    return (x + jax.nn.relu(x @ p["up"] + p["b"]) @ p["down"]) @ p["head"]


def relu_of_concat(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    return jax.nn.relu(affine(both, p["scale"], p["bias"])) @ p["head"]


def dense_net(p, x):
    """Every layer reads the concatenation of all before it, through its own norm (arXiv 1608.06993)."""
    stem = x @ p["stem"]
    one = jax.nn.relu(affine(stem, p["s1"], p["t1"])) @ p["w1"]
    both = jnp.concatenate([stem, one], -1)
    two = jax.nn.relu(affine(both, p["s2"], p["t2"])) @ p["w2"]
    all_three = jnp.concatenate([both, two], -1)
    return jax.nn.relu(affine(all_three, p["s3"], p["t3"])) @ p["head"]


def concat_then_layer_norm(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    return norm(both, p["scale"], p["bias"]) @ p["head"]


def grouped_after_concat(p, x):
    both = jnp.concatenate([conv(x, p["a"]), conv(x, p["b"])], -1)
    return conv(jax.nn.relu(conv(both, p["grouped"], feature_group_count=4)), p["head"])


def depthwise_after_concat(p, x):
    both = jnp.concatenate([conv(x, p["a"]), conv(x, p["b"])], -1)
    return conv(jax.nn.relu(conv(both, p["depthwise"], feature_group_count=8)), p["head"])


def flatten_after_concat(p, x):
    both = jnp.concatenate([conv(x, p["a"]), conv(x, p["b"])], -1)
    return jax.nn.relu(both).reshape(x.shape[0], -1) @ p["head"]


def split_after_concat(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    left, right = jnp.split(both, 2, -1)
    return jnp.tanh(left) @ p["left"] + jnp.tanh(right) @ p["right"]


def gated(p, x):
    hidden = jax.nn.silu(x @ p["gate"]) * (x @ p["up"])
    return (x + hidden @ p["down"]) @ p["head"]


def attention(p, x):
    q, k, v = (jnp.reshape(norm(x, p["scale"], p["bias"]) @ p[name], (*x.shape[:2], 2, -1)) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0, -1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    return (x + mixed @ p["out"]) @ p["head"]


def shared_twice(p, x):
    return ((x + jnp.tanh(x @ p["shared"]) @ p["shared"]) + x @ p["own"]) @ p["head"]


def sigmoid_branch(p, x):
    return (x @ p["a"] + jax.nn.sigmoid(x @ p["b"]) + jnp.cos(x @ p["c"])) @ p["head"]


def squeeze_excite(p, x):
    gate = jax.nn.sigmoid(jnp.mean(x, 1, keepdims=True) @ p["gate"])
    return (x + (x * gate) @ p["out"]) @ p["head"]


def standardized(p, x):
    """Weight standardisation (arXiv 1903.10520): the parameters are transformed before use."""
    kernel = p["w"] - jnp.mean(p["w"], 0)
    return (x + x @ kernel) @ p["head"]


def weight_normalized(p, x):
    """Weight normalisation (arXiv 1602.07868) without an epsilon: a matrix that is zero would be divided by zero."""
    kernel = p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"]
    return (x + jax.nn.relu6(x @ kernel)) @ p["head"]


def message_passing(p, x):
    """Nodes of a graph gather from their neighbours and scatter to them."""
    senders, receivers = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 2, 3, 4, 0, 2])
    messages = jax.nn.relu(x[:, senders] @ p["message"])
    x = x + jnp.zeros((*x.shape[:2], 6), x.dtype).at[:, receivers].add(messages) @ p["update"]
    return (x + jnp.fft.fft(x @ p["mix"], axis=1).real) @ p["head"]


def two_outputs(p, x):
    shared = x + x @ p["a"]
    return {"logits": (shared + shared @ p["b"]) @ p["head"], "auxiliary": (shared + x @ p["c"]) @ p["aux"]}


def transposed_unet(p, x):
    down = jax.nn.relu(conv(x, p["down"], window_strides=(2, 2)))
    up = jax.lax.conv_transpose(down, p["up"], (2, 2), "SAME")
    return conv(jnp.concatenate([up, conv(x, p["skip"])], -1), p["head"])


@jax.custom_vjp
def clipped(x):
    """The identity, with its gradient clipped."""
    return x * 1.0


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def custom_gradients(p, x):
    one = jax.checkpoint(lambda w: jax.nn.relu(x @ w))(p["a"])
    both = jnp.concatenate([one, clipped(x @ p["b"])], -1)
    return jax.nn.relu(affine(both, p["scale"], p["bias"])) @ p["head"]


D = 4
SQUARE = (D, D)
K = (3, 3)
TOYS = {
    "residual": Toy(
        residual,
        {"up": (D, 6), "b": (6,), "down": (6, D), "head": SQUARE},
        (3, D),
        [{"up", "b", "down"}],
        (0,),
        {"up": None, "b": None, "down": None},
    ),
    "relu of a concatenation": Toy(
        relu_of_concat,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "bias": (5,), "head": (5, D)},
        (3, D),
        [{"a", "scale[0:3]", "bias[0:3]"}, {"b", "scale[3:5]", "bias[3:5]"}],
        (0,),
        {"a": None, "scale": (2,), "bias": (2,), "head": (2, D)},
    ),
    "DenseNet": Toy(
        dense_net,
        {
            **{"stem": (D, 5), "w1": (5, 3), "w2": (8, 2), "head": (10, D)},
            **{f"{name}{layer}": (size,) for name in "st" for layer, size in ((1, 5), (2, 8), (3, 10))},
        },
        (3, D),
        # What the first layer adds is read by two norms; the stem feeds a norm, so it must stay.
        [{"w1", "s1", "t1", "s2[5:8]", "t2[5:8]", "s3[5:8]", "t3[5:8]"}, {"w2", "s3[8:10]", "t3[8:10]"}],
        (0,),
        {
            **{"w1": None, "s1": None, "t1": None, "w2": (5, 2), "head": (7, D)},
            **{"s2": (5,), "t2": (5,), "s3": (7,), "t3": (7,)},
        },
    ),
    "layer norm over a concatenation": Toy(
        concat_then_layer_norm,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "bias": (5,), "head": (5, D)},
        (3, D),
        [{"a", "scale[0:3]", "bias[0:3]"}, {"b", "scale[3:5]", "bias[3:5]"}],
        (1,),
        {"b": None, "scale": (3,), "bias": (3,), "head": (3, D)},
    ),
    "grouped convolution after a concatenation": Toy(
        grouped_after_concat,
        {"a": (*K, D, 4), "b": (*K, D, 4), "grouped": (*K, 2, 8), "head": (1, 1, 8, D)},
        (2, 5, 5, D),
        [{"a", "grouped[:, :, :, 0:4]"}, {"b", "grouped[:, :, :, 4:8]"}],
        (0,),
        {"a": None, "grouped": (*K, 2, 4), "head": (1, 1, 4, D)},
    ),
    "depthwise convolution after a concatenation": Toy(
        depthwise_after_concat,
        {"a": (*K, D, 3), "b": (*K, D, 5), "depthwise": (*K, 1, 8), "head": (1, 1, 8, D)},
        (2, 5, 5, D),
        [{"a", "depthwise[:, :, :, 0:3]"}, {"b", "depthwise[:, :, :, 3:8]"}],
        (1,),
        {"b": None, "depthwise": (*K, 1, 3), "head": (1, 1, 3, D)},
    ),
    "flattened concatenation": Toy(
        flatten_after_concat,
        {"a": (*K, D, 3), "b": (*K, D, 2), "head": (45, D)},
        (2, 3, 3, D),
        [{"a"}, {"b"}],
        (0,),
        {"a": None, "head": (18, D)},
    ),
    "split concatenation": Toy(
        split_after_concat,
        {"a": (D, 2), "b": (D, 4), "left": (3, D), "right": (3, D)},
        (3, D),
        [{"a"}, {"b"}, {"left"}, {"right"}],
        (0, 3),
        {"a": None, "b": (D, 1), "left": (1, D), "right": None},
    ),
    "gated unit": Toy(
        gated,
        {"gate": (D, 6), "up": (D, 6), "down": (6, D), "head": SQUARE},
        (3, D),
        [{"down"}],
        (0,),
        {"gate": None, "up": None, "down": None},
    ),
    "attention": Toy(
        attention,
        {"scale": (D,), "bias": (D,), "q": SQUARE, "k": SQUARE, "v": SQUARE, "out": SQUARE, "head": SQUARE},
        (2, 5, D),
        [{"out"}],
        (0,),
        {name: None for name in ("scale", "bias", "q", "k", "v", "out")},
    ),
    "a matrix used twice": Toy(
        shared_twice,
        {"shared": SQUARE, "own": SQUARE, "head": SQUARE},
        (3, D),
        [{"shared"}, {"own"}],
        (0, 1),
        {"shared": None, "own": None},
    ),
    "sigmoid": Toy(
        sigmoid_branch,
        {"a": SQUARE, "b": SQUARE, "c": SQUARE, "head": SQUARE},
        (3, D),
        [{"a"}],
        (0,),
        {"a": None},
    ),
    "squeeze and excitation": Toy(
        squeeze_excite,
        {"gate": SQUARE, "out": SQUARE, "head": SQUARE},
        (2, 5, D),
        [{"out"}],
        (0,),
        {"gate": None, "out": None},
    ),
    "standardised weight": Toy(standardized, {"w": SQUARE, "head": SQUARE}, (3, D), [{"w"}], (0,), {"w": None}),
    "normalised weight": Toy(
        weight_normalized, {"v": SQUARE, "g": (D,), "head": SQUARE}, (3, D), [{"g"}], (0,), {"v": None, "g": None}
    ),
    "messages between nodes": Toy(
        message_passing,
        {"message": (D, 6), "update": (6, D), "mix": SQUARE, "head": SQUARE},
        (2, 5, D),
        [{"message", "update"}, {"mix"}],
        (0,),
        {"message": None, "update": None},
    ),
    "two outputs": Toy(
        two_outputs,
        {"a": SQUARE, "b": SQUARE, "c": SQUARE, "head": SQUARE, "aux": SQUARE},
        (3, D),
        [{"a"}, {"b"}, {"c"}],
        (0, 2),
        {"a": None, "c": None},
    ),
    "U-net with a transposed convolution": Toy(
        transposed_unet,
        {"down": (*K, D, 6), "up": (*K, 6, 2), "skip": (*K, D, 3), "head": (*K, 5, D)},
        (2, 6, 6, D),
        [{"down", "up"}, {"skip"}],
        (0,),
        {"down": None, "up": None, "head": (*K, 3, D)},
    ),
    "custom gradients": Toy(
        custom_gradients,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "bias": (5,), "head": (5, D)},
        (3, D),
        [{"a", "scale[0:3]", "bias[0:3]"}, {"b", "scale[3:5]", "bias[3:5]"}],
        (1,),
        {"b": None, "scale": (3,), "bias": (3,), "head": (3, D)},
    ),
}


def toy_params(toy, dtype=np.float32, seed=0):
    """Random parameters of a toy network."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), dtype)
        for name, shape in toy.shapes.items()
    }
