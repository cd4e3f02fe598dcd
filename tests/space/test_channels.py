"""Channel groups: dimensions read by hand, entries that do not matter, mixtures that are exact and as large as said."""

import itertools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jasgnas
import models
from jasgnas import ArgumentError, NoRemovableStructureError
from jasgnas.pytree import leaves_by_path
from models.convnext import ConvNeXt
from models.decoder import DecoderTransformer
from models.demo_net import DemoNet
from models.densenet import DenseNet
from models.mobilenet import MOBILENET_V3_SMALL, MobileNetV3, MobileNetV3Spec
from models.regnet import RegNet, RegNetConfig
from models.resnet import ResNet
from models.stacked_unets import StackedUnets
from models.vit import VisionTransformer
from tests.networks import build


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def conv(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def norm(x, p, name):
    mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(square - mean**2 + 1e-3) * p[f"{name}_scale"] + p[f"{name}_bias"]


def grouped(p, x):
    return conv(conv(conv(x, p["a"]), p["b"], groups=3), p["c"]).mean((1, 2))


def depthwise(p, x):
    return conv(conv(conv(x, p["a"]), p["b"], groups=6), p["c"]).mean((1, 2))


def flatten(p, x):
    return jax.nn.relu(conv(x, p["a"])).reshape(2, -1) @ p["b"]


def group_norm(p, x):
    y = conv(x, p["a"]).reshape(2, 4, 4, 4, 3)
    y = y / jnp.sqrt((y * y).mean((1, 2, 4), keepdims=True) + 1e-3)
    y = y.reshape(2, 4, 4, 12) * p["scale"] + p["bias"]
    return conv(jax.nn.relu(y), p["b"]).mean((1, 2))


def squeeze_and_excitation(p, x):
    y = conv(x, p["a"])
    gate = jax.nn.sigmoid(jax.nn.relu(y.mean((1, 2)) @ p["down"]) @ p["up"] + p["bias"])
    return conv(y * gate[:, None, None], p["b"]).mean((1, 2))


def depth_to_space(p, x):
    y = conv(x, p["a"]).reshape(2, 4, 4, 2, 2, 4)
    return conv(y.transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 4), p["b"]).mean((1, 2))


def pixel_shuffle(p, x):
    y = conv(x, p["a"]).reshape(2, 4, 4, 4, 2, 2)
    return conv(y.transpose(0, 1, 4, 2, 5, 3).reshape(2, 8, 8, 4), p["b"]).mean((1, 2))


def concatenated(p, x):
    x = conv(x, p["a"])
    for name in "bc":
        y = jax.nn.relu(x * p[f"scale_{name}"] + p[f"bias_{name}"])
        x = jnp.concatenate([x, conv(y, p[name])], -1)
    return jax.nn.relu(x).mean((1, 2)) @ p["d"]


def attend(query, key, value):
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key) / 2, -1)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


def transformer(p, x, *, heads=3, shared=1, is_fused=False):
    x = x @ p["embed"]
    y = norm(x, p, "first")
    if is_fused:
        query, key, value = (each[:, :, 0] for each in jnp.split((y @ p["qkv"]).reshape(2, 5, 3, heads, 4), 3, 2))
    else:
        query, key, value = ((y @ p[name]).reshape(2, 5, -1, 4) for name in ("query", "key", "value"))
    key, value = jnp.repeat(key, shared, 2), jnp.repeat(value, shared, 2)
    x = x + attend(query, key, value).reshape(2, 5, heads * 4) @ p["out"]
    y = norm(x, p, "second")
    x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["hidden"])) @ p["project"]
    return norm(x, p, "last").mean(1) @ p["head"]


def apart(p, x):
    x = x @ p["embed"]
    query, key, value = (jnp.einsum("btc,chd->bthd", x, p[name]) for name in ("query", "key", "value"))
    return (x + jnp.einsum("bthd,hdc->btc", attend(query, key, value), p["out"])).mean(1) @ p["head"]


def tied(p, tokens):
    x = p["embedding"][tokens] + p["positions"]
    x = x + jax.nn.gelu(norm(x, p, "first") @ p["hidden"]) @ p["project"]
    return norm(x, p, "last") @ p["embedding"].T


def stacked(p, x):
    def layer(x, own):
        return x + jax.nn.relu(x @ own[0]) @ own[1], None

    return lax.scan(layer, x @ p["embed"], (p["a"], p["b"]))[0].mean(1) @ p["head"]


def lstm(p, x):
    state = cell = jnp.zeros((2, 6))
    for time in range(3):
        parts = jnp.split(x[:, time] @ p["a"] + state @ p["b"] + p["bias"], 4, -1)
        cell = jax.nn.sigmoid(parts[1]) * cell + jax.nn.sigmoid(parts[0]) * jnp.tanh(parts[2])
        state = jax.nn.sigmoid(parts[3]) * jnp.tanh(cell)
    return state @ p["head"]


def split_gate(p, x):
    y = x @ p["a"]
    return (y[..., :6] * jax.nn.sigmoid(y[..., 6:])) @ p["b"]


def maxout(p, x):
    return (x @ p["a"]).reshape(2, 5, 6, 3).max(-1) @ p["b"]


def mixer(p, x):
    x = x @ p["embed"]
    return (x + jnp.swapaxes(jax.nn.relu(jnp.swapaxes(x, 1, 2) @ p["a"]) @ p["b"], 1, 2)).mean(1) @ p["head"]


class Case(NamedTuple):
    """A network, the shapes of its parameters and input, and its dimensions: what makes each, and its size."""

    fn: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    x: Any
    dimensions: list[tuple[str, int]]


IMAGE, SERIES = (2, 4, 4, 3), (2, 5, 12)
NORMS = {f"{name}_{part}": (10,) for name in ("first", "second", "last") for part in ("scale", "bias")}
OTHERS = NORMS | {"gate": (10, 14), "hidden": (10, 14), "project": (14, 10), "head": (10, 5), "embed": (12, 10)}
RESIDUAL = " ".join(["embed", *NORMS, "out", "project"])
CASES = {
    "grouped": Case(grouped, {"a": (3, 3, 3, 12), "b": (3, 3, 4, 6), "c": (1, 1, 6, 5)}, IMAGE, [("a b", 3)]),
    "depthwise": Case(depthwise, {"a": (3, 3, 3, 6), "b": (3, 3, 1, 12), "c": (1, 1, 12, 5)}, IMAGE, [("a b", 6)]),
    "flatten": Case(flatten, {"a": (3, 3, 3, 6), "b": (96, 5)}, IMAGE, [("a", 6)]),
    "group norm": Case(
        group_norm,
        {"a": (3, 3, 3, 12), "scale": (12,), "bias": (12,), "b": (1, 1, 12, 5)},
        IMAGE,
        [("a bias scale", 4)],
    ),
    "squeeze and excitation": Case(
        squeeze_and_excitation,
        {"a": (3, 3, 3, 6), "down": (6, 4), "up": (4, 6), "bias": (6,), "b": (1, 1, 6, 5)},
        IMAGE,
        [("a bias up", 6), ("down", 4)],
    ),
    "depth to space": Case(depth_to_space, {"a": (3, 3, 3, 16), "b": (3, 3, 4, 5)}, IMAGE, [("a", 4)]),
    "pixel shuffle": Case(pixel_shuffle, {"a": (3, 3, 3, 16), "b": (3, 3, 4, 5)}, IMAGE, [("a", 4)]),
    "concatenated": Case(
        concatenated,
        {"a": (3, 3, 3, 6), "scale_b": (6,), "bias_b": (6,), "b": (3, 3, 6, 4), "scale_c": (10,), "bias_c": (10,)}
        | {"c": (3, 3, 10, 4), "d": (14, 5)},
        IMAGE,
        [("a bias_b bias_c scale_b scale_c", 6), ("b bias_c scale_c", 4), ("c", 4)],
    ),
    "heads": Case(
        transformer,
        {"query": (10, 12), "key": (10, 12), "value": (10, 12), "out": (12, 10)} | OTHERS,
        SERIES,
        [(RESIDUAL, 10), ("key query value", 3), ("gate hidden", 14)],
    ),
    "heads in one kernel": Case(
        lambda p, x: transformer(p, x, is_fused=True),
        {"qkv": (10, 36), "out": (12, 10)} | OTHERS,
        SERIES,
        [(RESIDUAL, 10), ("qkv", 3), ("gate hidden", 14)],
    ),
    "grouped queries": Case(
        lambda p, x: transformer(p, x, heads=4, shared=2),
        {"query": (10, 16), "key": (10, 8), "value": (10, 8), "out": (16, 10)} | OTHERS,
        SERIES,
        [(RESIDUAL, 10), ("key query value", 2), ("gate hidden", 14)],
    ),
    "heads and sizes apart": Case(
        apart,
        {name: (10, 3, 4) for name in ("query", "key", "value")}
        | {"out": (3, 4, 10), "embed": (12, 10), "head": (10, 5)},
        SERIES,
        [("embed out", 10), ("key query value", 3), ("key query", 4), ("value", 4)],
    ),
    "tied": Case(
        tied,
        {"embedding": (11, 10), "positions": (5, 10), "hidden": (10, 6), "project": (6, 10)}
        | {name: shape for name, shape in NORMS.items() if not name.startswith("second")},
        (2, 5),
        [("embedding first_bias first_scale last_bias last_scale positions project", 10), ("hidden", 6)],
    ),
    "stacked": Case(
        stacked, {"embed": (12, 8), "a": (3, 8, 6), "b": (3, 6, 8), "head": (8, 5)}, SERIES, [("b embed", 8), ("a", 6)]
    ),
    "lstm": Case(lstm, {"a": (12, 24), "b": (6, 24), "bias": (24,), "head": (6, 5)}, SERIES, [("a b bias", 6)]),
    "split gate": Case(split_gate, {"a": (12, 12), "b": (6, 5)}, SERIES, [("a", 6)]),
    "maxout": Case(maxout, {"a": (12, 18), "b": (6, 5)}, SERIES, [("a", 6)]),
    "mixer": Case(
        mixer, {"embed": (12, 8), "a": (5, 7), "b": (7, 5), "head": (8, 5)}, SERIES, [("embed", 8), ("a", 7)]
    ),
}


def made(case):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in case.shapes.items()}
    x = jnp.asarray(rng.integers(0, 11, case.x) if case.fn is tied else rng.normal(size=case.x))
    return params, x, jasgnas.search_space(case.fn, x, params=params, channels=True)


def mixture(space, seed, *, share=1.0):
    """A random valid set of structures, and of a random number of channels of every dimension."""
    rng = np.random.default_rng(seed)
    removed = []
    for index in rng.permutation(len(space.structures)).tolist():
        if rng.random() < 0.5 and space.is_valid([*removed, index]):
            removed.append(index)
    for dimension in space.dimensions:
        number = rng.integers(0, 1 + int(share * (dimension.size - 1)))
        removed += [dimension.groups[int(i)] for i in rng.permutation(dimension.size)[:number]]
    return removed


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * float(jnp.abs(b).max()))


def two_heads(p, x):
    """Of one layer each head reads a half of its own."""
    y = jax.nn.relu(conv(x, p["a"]))
    return {"first": y[..., :3].mean((1, 2)) @ p["b"], "second": conv(y[..., 3:], p["c"]).mean((1, 2))}


def one_head(p, x):
    """Queries and keys are a part of one kernel's features, and values another one."""
    query, key, value = jnp.split((x @ p["a"]).reshape(2, 5, 1, 9), 3, -1)
    return attend(query, key, value)[:, :, 0].mean(1) @ p["b"]


@pytest.mark.parametrize(
    ("fn", "shapes", "shape", "left", "kept"),
    [
        (two_heads, {"a": (1, 1, 3, 6), "b": (3, 2), "c": (1, 1, 3, 2)}, IMAGE, 4, 2),
        (one_head, {"a": (12, 9), "b": (3, 2)}, SERIES, 4, 3),  # of queries and keys one each, and of values
    ],
)
def test_of_each_part_that_is_read_by_itself_a_channel_stays(fn, shapes, shape, left, kept):
    params, x, space = made(Case(fn, shapes, shape, []))
    (dimension,) = space.dimensions
    assert dimension.size == left
    assert f"can be narrowed, but for {kept} of its {shapes['a'][-1]} indices" in space.explain("a")
    for number in range(dimension.size):
        for removed in itertools.combinations(dimension.groups, number):
            assert space.is_valid(removed)
            space.require_valid(removed)
            zeroed = space.zero(params, removed)
            for output, other in zip(*map(jax.tree.leaves, (fn(zeroed, x), fn(zeroed, -x))), strict=True):
                assert float(jnp.abs(output - other).max()) > 1e-6, removed
            sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed, allow_nothing=True)
            assert_close(sub_fn(sub_params, x), fn(zeroed, x))
            assert jasgnas.count_params(sub_params) <= space.subnet_size(removed)[0]


@pytest.mark.parametrize("name", CASES)
def test_dimensions_are_those_read_by_hand(name):
    _, _, space = made(CASES[name])
    found = {(" ".join(sorted(dimension.paths)), dimension.size) for dimension in space.dimensions}
    assert found == {(" ".join(sorted(paths.split())), size) for paths, size in CASES[name].dimensions}
    ends = np.cumsum([len(space.structures), *(dimension.size for dimension in space.dimensions)]).tolist()
    assert [each.groups for each in space.dimensions] == [range(*pair) for pair in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("name", CASES)
def test_what_only_meets_channels_at_zero_does_not_matter(name):
    """The definition, tried out with numbers: with the channels at zero, their other entries may be anything."""
    params, x, space = made(CASES[name])
    rng = np.random.default_rng(1)
    for seed in range(3):
        removed = mixture(space, seed)
        zeroed = dict(space.zero(params, removed))
        expected = CASES[name].fn(zeroed, x)
        for axis in space.channels.axes:
            if not axis.makes:
                path = space.leaves[axis.leaf].path
                shape = [-1 if i == axis.axis else 1 for i in range(zeroed[path].ndim)]
                is_met = np.isin(axis.groups, removed).reshape(shape)
                zeroed[path] = jnp.where(is_met, rng.normal(size=zeroed[path].shape), zeroed[path])
        assert_close(CASES[name].fn(zeroed, x), expected)


@pytest.mark.parametrize("name", CASES)
def test_mixtures_are_exact_and_as_large_as_said(name):
    params, x, space = made(CASES[name])
    fn = CASES[name].fn
    for seed in range(3):
        removed = mixture(space, seed)
        assert space.is_valid(removed)
        zeroed = space.zero(params, removed)
        subnet, left = jasgnas.construct_subnet(space, zeroed, allow_nothing=True)
        assert_close(subnet(left, x), fn(zeroed, x))
        assert space.subnet_size(removed) == (jasgnas.count_params(left), jasgnas.count_macs(subnet, x, params=left))


NETWORKS = {
    "demo_net": (DemoNet, {"width": 0.2}, (2, 16, 16, 1)),
    "stacked_unets": (StackedUnets, {"width": 0.2}, (2, 16, 16, 3)),
    "resnet": (ResNet, {"depths": (1, 1, 1, 1), "small_images": True}, (2, 8, 8, 3)),
    "densenet": (DenseNet, {"depths": (2, 2, 1, 1), "growth": 8}, (2, 64, 64, 3)),
    "mobilenet": (MobileNetV3, {"spec": MobileNetV3Spec(MOBILENET_V3_SMALL.blocks[:4], 32)}, (2, 32, 32, 3)),
    "regnet": (RegNet, {"config": RegNetConfig(4, 24, 36.44, 2.49, 8, 0.25), "small_images": True}, (2, 8, 8, 3)),
    "vit": (VisionTransformer, {"features": 24, "num_heads": 3, "depth": 2, "image_size": 32}, (2, 32, 32, 3)),
    "convnext": (ConvNeXt, {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}, (2, 32, 32, 3)),
    "decoder": (DecoderTransformer, {"features": 32, "num_heads": 4, "depth": 2}, (2, 7)),
}


apply = nnx.jit(lambda model, x: model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_mixtures_of_networks_are_exact_and_as_large_as_said(name):
    constructor, options, shape = NETWORKS[name]
    model = build(constructor, dtype=jnp.float64, **options)
    model.eval()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 200, shape) if len(shape) == 2 else rng.normal(size=shape))
    space = jasgnas.search_space(model, x, channels=True)
    assert space.subnet_size(()) == (jasgnas.count_params(model), jasgnas.count_macs(model, x))
    for seed in range(3):
        removed = mixture(space, seed)
        zeroed = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, zeroed)
        assert_close(apply(subnet, x), apply(zeroed, x))
        params, macs = space.subnet_size(removed)
        assert params == jasgnas.count_params(subnet)
        # Without its last attention a transformer computes its class token alone, which is not predicted.
        assert macs >= jasgnas.count_macs(subnet, x) if name == "vit" else macs == jasgnas.count_macs(subnet, x)


def test_resnet_18_has_the_channels_of_the_paper():
    """OTOv2 (arXiv 2303.06862) reports 2,880 groups of this network."""
    space = jasgnas.search_space(
        models.create_abstract("resnet18_cifar"), models.example_input("resnet18_cifar"), channels=True
    )
    sizes = [dimension.size for dimension in space.dimensions]
    assert sizes == [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
    trunk = space.dimensions[0]
    assert {path.split("/")[-2] for path in trunk.paths} == {"conv", "norm"}
    blocks = {path.rsplit("/", 2)[0] for path in trunk.paths}
    assert blocks == {"stem", "blocks/0/conv2", "blocks/1/conv2"}
    assert len(space.groups) == len(space.structures) + 2880
    assert [group.name for group in space.groups[:11]] == [group.name for group in space.structures]


@pytest.fixture(scope="module")
def demo():
    model = build(DemoNet, width=0.2)
    return model, jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), channels=True)


def test_a_channel_group_says_what_it_is(demo):
    _, space = demo
    dimension = space.dimensions[0]
    group = space.groups[dimension.groups[2]]
    assert (group.kind, group.name, group.index) == ("channel", "conv1[2]", dimension.groups[2])
    assert group.paths == ("conv1/kernel[:, :, :, 2:3]", "conv1/bias[2:3]", "bn1/scale[2:3]", "bn1/bias[2:3]")
    assert group.num_params == 9 + 3
    assert space.groups[-1].index == len(space.groups) - 1
    assert {group.kind for group in space.structures} == {"structure"}
    with pytest.raises(IndexError):
        space.groups[len(space.groups)]


def test_an_emptied_dimension_needs_its_structure(demo):
    """The second branch of DemoNet is one convolution: without all of its channels it is gone, as a structure is."""
    _, space = demo
    structure = next(group for group in space.structures if "conv2/kernel" in group.paths)
    inner = next(dimension for dimension in space.dimensions if "conv2/kernel" in dimension.paths)
    outer = next(dimension for dimension in space.dimensions if "conv1/kernel" in dimension.paths)
    assert space.is_valid(inner.groups[1:])
    assert not space.is_valid(inner.groups)
    assert space.is_valid([structure.index, *inner.groups])
    assert not space.is_valid([structure.index, *outer.groups])


def test_random_sets_are_valid(demo):
    _, space = demo
    for seed, number in enumerate((1, 20, 60)):
        drawn = space.random_redundant(jax.random.key(seed), number)
        assert len(drawn) == number
        assert space.is_valid(drawn)
    assert space.is_valid(space.largest_removal)


def test_structures_are_those_of_a_space_without_channels(demo):
    model, space = demo
    alone = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    assert tuple(space.structures) == tuple(alone.groups)
    assert alone.dimensions == ()
    narrow = jasgnas.search_space(
        model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), structures=False, channels=True
    )
    assert len(narrow.groups) == len(space.groups) - len(space.structures)
    assert narrow.subnet_size(narrow.dimensions[0].groups[1:]) == space.subnet_size(space.dimensions[0].groups[1:])


def test_a_space_with_channels_can_be_pickled(demo):
    model, space = demo
    again = pickle.loads(pickle.dumps(space))
    assert again.dimensions == space.dimensions
    assert again.candidates.fingerprint == space.candidates.fingerprint
    alone = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    assert alone.candidates.fingerprint != space.candidates.fingerprint


def test_axes_that_cannot_be_narrowed_say_why():
    def fn(p, x):
        y = jax.nn.sigmoid(x @ p["a"]) @ p["b"]
        y = (y - y.mean(-1, keepdims=True)) / jnp.std(y, -1, keepdims=True) * p["scale"]
        return jax.nn.relu(y @ p["c"]) @ p["d"]

    shapes = {"a": (4, 6), "b": (6, 5), "scale": (5,), "c": (5, 7), "d": (7, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    space = jasgnas.search_space(fn, jnp.ones((2, 4)), params=params, channels=True)
    assert [dimension.name for dimension in space.dimensions] == ["c"]
    assert "the result of logistic" in space.explain("a")
    assert "is needed" in space.explain("scale")  # the variance is of differences to the mean, which are not zero
    assert "c, axis 1: the dimension c: can be narrowed" in space.explain("c")
    assert "input or output" in space.explain("d")
    kept = jasgnas.search_space(DemoNet(rngs=nnx.Rngs(0)), jnp.ones((1, 8, 8, 1)), channels=True, keep="conv7/*")
    assert "keep=" in kept.explain("conv8/kernel")
    assert not any("conv8/kernel" in dimension.paths for dimension in kept.dimensions)


def test_nothing_to_find_is_an_error_that_says_why():
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((6, 3))}
    with pytest.raises(NoRemovableStructureError, match="the result of logistic"):
        jasgnas.search_space(
            lambda p, x: jax.nn.sigmoid(x @ p["a"]) @ p["b"], jnp.ones((2, 4)), params=params, channels=True
        )
    with pytest.raises(ArgumentError, match="channels=True"):
        jasgnas.search_space(DemoNet(rngs=nnx.Rngs(0)), jnp.ones((1, 8, 8, 1)), structures=False)


def test_what_does_not_look_at_channels_says_so(demo):
    _, space = demo
    with pytest.raises(ArgumentError, match="target_macs"):
        space.select(np.zeros(len(space.groups)), target_groups=3)


@pytest.mark.parametrize("target", [{"target_macs": 0.5}, {"target_params": 0.3}, {"target_macs": 0.2}])
@pytest.mark.parametrize("per_cost", [False, True])
def test_a_size_is_met_by_structures_and_channels(demo, target, per_cost):
    _, space = demo
    scores = -np.random.default_rng(0).random(len(space.groups))
    scores[: len(space.structures)] *= 20
    removed = space.select(scores, per_cost=per_cost, **target)
    assert space.is_valid(removed)
    full, left = space.subnet_size(()), space.subnet_size(removed)
    index = 0 if "target_params" in target else 1
    (limit,) = target.values()
    assert left[index] <= int(limit * full[index])
    # Whatever channel is given back, the one with the lowest score first, the size is not met any more; but for those
    # of dimensions whose structure is gone.
    kept = [group for group in removed if group >= len(space.structures)]
    if kept and not per_cost:
        fewer = set(removed) - {min(kept, key=scores.__getitem__)}
        assert space.subnet_size(fewer)[index] > int(limit * full[index])


def test_channels_alone_go_by_falling_score(demo):
    """With no structure worth taking, what goes is a prefix of the order, but for what each dimension must keep."""
    _, space = demo
    scores = np.random.default_rng(1).random(len(space.groups))
    scores[: len(space.structures)] = -1
    removed = space.select(scores, target_macs=0.6)
    assert min(removed) >= len(space.structures)
    last = min(removed, key=scores.__getitem__)
    expected = set()
    for index in np.argsort(-scores).tolist():
        if index < len(space.structures):
            continue
        dimension = next(each for each in space.dimensions if index in each.groups)
        if len(expected & set(dimension.groups)) < dimension.size - 1:
            expected.add(index)
        if index == last:
            break
    assert set(removed) == expected


def test_scores_of_channels_are_those_of_their_entries(demo):
    model, space = demo
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)

    def loss_fn(model, batch):
        return jnp.mean(model(batch) ** 2)

    model.eval()
    magnitude = jasgnas.score_groups(space, model, loss_fn, [batch], score="magnitude")
    gate = jasgnas.score_groups(space, model, loss_fn, [batch], score="gate")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    grads = jax.grad(lambda params: loss_fn(nnx.merge(graphdef, params, rest, copy=True), batch))(params)
    xs, gs = leaves_by_path(params), leaves_by_path(grads)
    for dimension in space.dimensions:
        for index in (dimension.groups[0], dimension.groups[-1]):
            slices = [(each.path, each.indices) for each in space.groups[index].slices]
            square = sum(float(jnp.sum(xs[path][at] ** 2)) for path, at in slices)
            slope = sum(float(jnp.sum(xs[path][at] * gs[path][at])) for path, at in slices)
            assert magnitude[index] == pytest.approx(-(square**0.5), rel=1e-4)
            assert gate[index] == pytest.approx(-(slope**2), rel=1e-3, abs=1e-9)
    removed = space.select(gate, target_macs=0.5, per_cost=True)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    assert jasgnas.count_macs(subnet, batch[:1]) <= 0.5 * jasgnas.count_macs(model, batch[:1])


def test_what_is_left_in_words(demo):
    _, space = demo
    first, second = space.dimensions[:2]
    removed = [0, *first.groups[:4]]
    assert space.names_of(removed) == f"0 (conv2-bn2), 4 of {first.size} channels of conv1"
    lines = space.describe(removed).splitlines()
    assert lines[0] == f"1 of {len(space.structures)} structures go: conv2-bn2"
    widths = {line.split()[0]: line.split()[1:3] for line in lines[4 : 4 + len(space.dimensions)]}
    assert widths["conv1"] == [str(first.size), str(first.size - 4)]
    assert widths[second.name] == [str(second.size), "0"]  # it goes with the structure
    assert lines[-1].startswith(f"{space.subnet_size(removed)[1]:,} of {space.subnet_size(())[1]:,} multiply-adds")


def test_print_shows_dimensions(demo):
    _, space = demo
    text = str(space)
    assert "dimension" in text
    assert f"{len(space.channels):,} channel groups in {len(space.dimensions)} dimensions" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(("size", "is_narrowed"), [(2, False), (4, True)])
def test_channels_that_are_multiplied_with_each_other(size, is_narrowed):
    """Pairs go together; of two channels each is rolled by itself, and nothing is left without either."""
    params = {"a": jnp.ones((3, size)), "b": jnp.ones((size, 5)), "c": jnp.ones((3, 4)), "d": jnp.ones((4, 5))}

    def fn(params, x):
        h = x @ params["a"]
        return (h * jnp.roll(h, size // 2, -1)) @ params["b"] + jnp.tanh(x @ params["c"]) @ params["d"]

    space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params, channels=True, structures=False)
    assert [(each.name, each.size) for each in space.dimensions] == [("a", 2)] * is_narrowed + [("c", 4)]
    assert is_narrowed or "one of its indices is read by itself" in space.explain("a")


@pytest.mark.parametrize("pick", [lambda h, i: h[:, i], lambda h, i: h[:, i : i + 1], lambda h, i: h.T[i]])
def test_an_axis_of_which_an_index_is_read_by_itself_is_not_narrowed(pick):
    """What becomes of the index is not followed: here the first channel keeps all others alive."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 5)), "c": jnp.ones((3, 4)), "d": jnp.ones((4, 5))}

    def fn(params, x):
        h = x @ params["a"]
        return (h @ params["b"]) * pick(h, 0).reshape(-1, 1) + jnp.tanh(x @ params["c"]) @ params["d"]

    space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params, channels=True, structures=False)
    assert [each.name for each in space.dimensions] == ["c"]
    assert "one of its indices is read by itself" in space.explain("a")
