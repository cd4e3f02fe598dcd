"""Search spaces: DemoNet and StackedUnets read by hand, names, validity, `keep=`, `explain`, errors."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
from jasgnas import (
    ArgumentError,
    DisconnectedOutputError,
    LeafSlice,
    NoRemovableStructureError,
    TargetError,
    TreeMismatchError,
)
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import arrays, build, primitives, subsets


def space_of(cls, *, width=0.1, channels=1, **options):
    model = build(cls, width=width)
    return jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32), **options)


@pytest.fixture(scope="module")
def demo_net():
    return build(DemoNet, width=0.1)


@pytest.fixture(scope="module")
def demo_space(demo_net):
    return jasgnas.search_space(demo_net, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))


@pytest.fixture(scope="module")
def unets_space():
    return space_of(StackedUnets, channels=3)


def layers(*names):
    """The leaf paths of some layers; all have two."""
    return {f"{name}/{leaf}" for name in names for leaf in (("scale", "bias") if "bn" in name else ("kernel", "bias"))}


# DemoNet, read off its description (arXiv 2305.18030): 56 channels up to the concatenation but 72 between conv4 and
# conv5, then 112 and 192. Each group: its layers, its operators, and its parameters at full width.
DEMO_GROUPS = [
    (layers("conv2", "bn2"), ["conv", "batch_norm"], 9 * 56 * 56 + 56 + 2 * 56),
    (layers("conv3", "bn3"), ["max_pool", "conv", "batch_norm"], 9 * 56 * 56 + 56 + 2 * 56),
    (
        layers("conv4", "bn4", "conv5", "bn5"),
        ["avg_pool", "conv", "batch_norm", "conv", "batch_norm"],
        9 * 56 * 72 + 72 + 2 * 72 + 9 * 72 * 56 + 56 + 2 * 56,
    ),
    (layers("conv7", "bn7"), ["conv", "batch_norm"], 9 * 112 * 192 + 192 + 2 * 192),
    (layers("conv8", "bn8"), ["conv", "batch_norm"], 9 * 112 * 192 + 192 + 2 * 192),
]


def test_demo_net_has_the_five_structures():
    model = nnx.eval_shape(lambda: DemoNet(rngs=nnx.Rngs(0)))
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
    found = [(set(group.paths), list(group.operators), group.num_params) for group in space.groups]
    assert found == DEMO_GROUPS
    assert [group.index for group in space.groups] == list(range(5))
    assert all(len(group.paths) == len(set(group.paths)) for group in space.groups)


def demo_valid(removed):
    """Something must be left to concatenate, and something to add."""
    return not {0, 1, 2} <= set(removed) and not {3, 4} <= set(removed)


@pytest.mark.parametrize("removed", subsets(5), ids=str)
def test_demo_net_validity(demo_space, removed):
    assert demo_space.is_valid(removed) is demo_valid(removed)


def test_most_of_demo_net_that_can_go(demo_space):
    assert len(demo_space.largest_removal) == 3
    assert demo_valid(demo_space.largest_removal)


@pytest.mark.parametrize("k", range(4))
def test_random_redundant_draws_valid_sets(demo_space, k):
    drawn = {demo_space.random_redundant(jax.random.key(seed), k) for seed in range(20)}
    assert all(len(set(groups)) == k and list(groups) == sorted(groups) and demo_valid(groups) for groups in drawn)
    assert drawn <= {groups for groups in subsets(5) if len(groups) == k}
    assert len(drawn) > 1 or k == 0
    assert demo_space.random_redundant(jax.random.key(3), k) == demo_space.random_redundant(jax.random.key(3), k)


@pytest.mark.parametrize("removed", [(), (0, 2), (4,)], ids=str)
def test_zero_clears_exactly_the_groups(demo_net, demo_space, removed):
    before = arrays(demo_net)
    cleared = {path for index in removed for path in DEMO_GROUPS[index][0]}
    for holder in (demo_net, nnx.state(demo_net), nnx.to_pure_dict(nnx.state(demo_net))):
        zeroed = demo_space.zero(holder, removed)
        assert type(zeroed) is type(holder)
        after = arrays(zeroed)
        assert after.keys() == before.keys()
        for path, array in after.items():
            np.testing.assert_array_equal(array, np.zeros_like(before[path]) if path in cleared else before[path])
    assert all(array is before[path] for path, array in arrays(demo_net).items())


def test_zero_clears_parameters_alone(demo_net, demo_space):
    params = nnx.state(demo_net, nnx.Param)
    zeroed = demo_space.zero(params, [0])
    assert not np.any(zeroed["conv2"]["kernel"].get_value()) and np.any(zeroed["conv3"]["kernel"].get_value())


# StackedUnets, read off its description: the numbers are the authors'. A segment ends at an operator that several
# read, and before an addition; an addition stands alone.
UNETS_SEGMENTS = [
    {0: "conv", 1: "batch_norm", 2: "relu", 3: "conv"},
    {4: "max_pool", 5: "conv", 6: "relu", 7: "conv", 8: "relu", 9: "batch_norm"},
    {10: "max_pool", 11: "conv", 12: "conv"},
    {13: "max_pool", 14: "conv", 15: "conv", 19: "resize"},
    {20: "add"},
    {24: "resize"},
    {25: "add"},
    {26: "conv", 27: "conv", 28: "batch_norm", 29: "relu", 33: "resize"},
    {34: "add"},
    {35: "relu", 36: "conv", 37: "relu", 38: "batch_norm"},
    {39: "conv", 40: "batch_norm", 41: "relu"},
    {42: "conv", 43: "conv", 44: "relu"},
    {45: "conv", 46: "relu", 47: "batch_norm", 48: "conv", 49: "conv"},
    {50: "conv", 51: "conv", 52: "conv", 56: "resize"},
    {57: "add"},
    {61: "resize"},
    {62: "add"},
    {63: "conv", 64: "conv", 65: "batch_norm", 66: "relu", 70: "resize"},
    {71: "add"},
    {72: "relu", 73: "conv", 74: "relu", 75: "batch_norm"},
    {76: "add"},
    {77: "global_avg_pool", 78: "dense"},
]
# First and last operator of the segments, as edges between them.
UNETS_EDGES = [
    *[(3, 4), (3, 34), (9, 10), (9, 25), (12, 13), (12, 20), (19, 20), (20, 24), (24, 25), (25, 26), (33, 34)],
    *[(34, 35), (38, 76)],
    *[(41, 42), (41, 71), (44, 45), (44, 62), (49, 50), (49, 57), (56, 57), (57, 61), (61, 62), (62, 63), (70, 71)],
    *[(71, 72), (75, 76), (76, 77)],
]
# Those with parameters that only additions read. conv3, bn9, conv12 and their like are also read by a pooling or a
# strided convolution; the resizes 24 and 61 have no parameters.
UNETS_GROUPS = [
    ((13, 14, 15, 19), layers("conv14", "conv15")),
    ((26, 27, 28, 29, 33), layers("conv26", "conv27", "bn28")),
    ((35, 36, 37, 38), layers("conv36", "bn38")),
    ((50, 51, 52, 56), layers("conv50", "conv51", "conv52")),
    ((63, 64, 65, 66, 70), layers("conv63", "conv64", "bn65")),
    ((72, 73, 74, 75), layers("conv73", "bn75")),
]
# The authors' redundant set, as group indices, and the operators that it takes with it: the whole second U-net, for
# nothing reads what is left of it, the deepest path of the first, and the two additions left with one input.
AUTHORS_REDUNDANT = (0, 3, 4, 5)
AUTHORS_GONE = {13, 14, 15, 19, 20, *range(39, 77)}
NUMBERS = [number for segment in UNETS_SEGMENTS for number in segment]


def test_unets_segments(unets_space):
    graph = unets_space.graph
    found = [[graph.operators[index].name for index in segment.operators] for segment in graph.segments]
    assert found == [list(segment.values()) for segment in UNETS_SEGMENTS]
    edges = [(NUMBERS[a], NUMBERS[b]) for b, operator in enumerate(graph.operators) for a in operator.sources if a >= 0]
    inside = [pair for segment in UNETS_SEGMENTS for pair in zip(segment, list(segment)[1:], strict=False)]
    assert sorted(edges) == sorted(UNETS_EDGES + inside)


def test_unets_removal_structures(unets_space):
    operators = unets_space.graph.segments
    found = [
        (tuple(NUMBERS[index] for index in operators[group.segments[0]].operators), set(group.paths))
        for group in unets_space.groups
    ]
    assert found == UNETS_GROUPS


@pytest.mark.parametrize("removed", subsets(6), ids=str)
def test_unets_validity(unets_space, removed):
    # Every inner addition also has an input that cannot go; the last one has the two U-nets.
    assert unets_space.is_valid(removed) is not ({2, 5} <= set(removed))


def test_unets_after_the_authors_removal():
    model = build(StackedUnets, width=0.1)
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    space = jasgnas.search_space(model, x)
    subnet = jasgnas.construct_subnet(space, space.zero(model, AUTHORS_REDUNDANT))
    left = layers(*["conv0", "bn1", "conv3", "conv5", "conv7", "bn9", "conv11", "conv12"])
    left |= layers(*["conv26", "conv27", "bn28", "conv36", "bn38"], "fc")
    norms = [path.removesuffix("/scale") for path in left if path.endswith("/scale")]
    assert arrays(subnet).keys() == left | {f"{norm}/{leaf}" for norm in norms for leaf in ("mean", "var")}
    full = arrays(model)
    assert all(array.shape == full[path].shape for path, array in arrays(subnet).items())
    # What is left is computed as before, operator for operator: the additions went with their second input.
    survivors = [
        operator for operator, number in zip(space.graph.operators, NUMBERS, strict=True) if number not in AUTHORS_GONE
    ]
    left = jasgnas.search_space(subnet, x).graph
    assert primitives(left, left.operators) == primitives(space.graph, survivors)


# What a person reads.


def test_print_lists_groups_and_totals(demo_space):
    text = str(demo_space)
    for group in demo_space.groups:
        assert re.search(
            rf"^ *{group.index}  {group.name} +{group.num_params:,} +[\d,]+  {', '.join(group.operators)}$", text, re.M
        )
    total = jasgnas.count_params(build(DemoNet, width=0.1))
    inside = sum(group.num_params for group in demo_space.groups)
    assert f"5 groups hold {inside:,} of {total:,} parameters; at most 3 can go together." in text
    assert "25 operators in 10 segments" in text
    assert "nknown" not in text


def test_print_lists_unknown_operators():
    def fn(params, x):
        return (x @ params["a"] + jnp.linalg.cholesky(x @ params["b"])) @ params["head"]

    params = {name: np.ones((4, 4), np.float32) for name in ("a", "b", "head")}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((4, 4), jnp.float32), params=params)
    assert re.search("Unknown operators, kept as they are: .*cholesky", str(space))
    assert [group.paths for group in space.groups] == [("a",)]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("conv2/kernel", "conv2-bn2 .*: removable, group 0"),
        ("bn8/*", "conv8-bn8 .*: removable, group 4"),
        ("conv1/kernel", "conv1-bn1 .*: not removable: it feeds another operator"),
        ("fc*", "fc1-fc2 .*: not removable: it computes a network output"),
    ],
)
def test_explain_one_path(demo_space, path, reason):
    text = demo_space.explain(path)
    assert re.fullmatch(reason + ".*", text)


def test_explain_everything(demo_space):
    lines = demo_space.explain().splitlines()
    assert len(lines) == 10
    assert sum("group" in line for line in lines) == 5
    assert sum("it joins several inputs" in line for line in lines) == 2


# keep=


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("bn7/*", [0, 1, 2, 4]),
        (re.compile("conv[45]/"), [0, 1, 3, 4]),
        (("conv2/kernel", re.compile(r"bn8/scale$")), [1, 2, 3]),
        ((), [0, 1, 2, 3, 4]),
    ],
)
def test_keep_takes_structures_out(keep, left):
    space = space_of(DemoNet, keep=keep)
    assert [set(group.paths) for group in space.groups] == [DEMO_GROUPS[index][0] for index in left]


def test_kept_parameters_keep_their_shape():
    # fc1 reads nothing that could go, and neither does conv6 without its columns: keep= must hold them whole.
    model = build(DemoNet, width=0.1)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), keep=("conv6/*",))
    subnet = jasgnas.construct_subnet(space, space.zero(model, (0, 1, 3)))
    assert subnet.conv6.kernel.shape == model.conv6.kernel.shape
    without = space_of(DemoNet)
    thinner = jasgnas.construct_subnet(without, without.zero(model, (0, 1, 3)))
    assert thinner.conv6.kernel.shape[2] * 3 == model.conv6.kernel.shape[2]


# The same space everywhere.

_DESCRIBE = """
import json, sys
import jax, jax.numpy as jnp
from flax import nnx
import jasgnas
from models.stacked_unets import StackedUnets
model = nnx.eval_shape(lambda: StackedUnets(width=0.1, rngs=nnx.Rngs(0)))
space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))
graph = space.candidates.dependence
print(json.dumps([str(space), space.explain(), space.operator_names, [g.paths for g in space.groups],
    graph.senders.tolist(), graph.receivers.tolist(), space.largest_removal]))
"""


def test_same_space_in_another_process():
    # Two processes at a time, so that their hash seeds differ whatever this one's is.
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DESCRIBE],
            env=os.environ | {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert json.loads(first)[3] == [list(group.paths) for group in space_of(StackedUnets, channels=3).groups]


def test_groups_do_not_depend_on_batch_or_image_size():
    model = build(DemoNet, width=0.1)
    spaces = [
        jasgnas.search_space(model, jax.ShapeDtypeStruct(shape, jnp.float32))
        for shape in ((1, 8, 8, 1), (5, 28, 20, 1))
    ]
    assert spaces[0].groups == spaces[1].groups


def test_arrays_and_abstract_inputs_give_the_same_space(demo_net, demo_space):
    assert jasgnas.search_space(demo_net, jnp.ones((2, 8, 8, 1))).groups == demo_space.groups


# Errors.


def chain(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def residual(params, x):
    return (x + chain(params, x)) @ params["head"]


PARAMS = {name: np.ones((4, 4), np.float32) for name in ("a", "b", "head")}
X = jax.ShapeDtypeStruct((2, 4), jnp.float32)


def test_plain_chain():
    with pytest.raises(NoRemovableStructureError, match="plain chain without an addition or concatenation"):
        jasgnas.search_space(chain, X, params=PARAMS)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda p, x: x + jax.nn.sigmoid(x @ p["a"]), "not zero-invariant: sigmoid does not keep zeros"),
        (lambda p, x: (x + jnp.exp(x @ p["a"] * (x @ p["b"]))) @ p["head"], "it feeds a product"),
        (lambda p, x: ((x @ p["a"]) @ p["a"] + x) @ p["a"], "a is shared with other operators"),
        (lambda p, x: (x + jnp.cumsum(x, 1)) @ p["a"], "it has no trainable parameters"),
    ],
)
def test_nothing_removable_says_why(fn, reason):
    with pytest.raises(NoRemovableStructureError, match=f"(?s)What was found of its segments.*{reason}"):
        jasgnas.search_space(fn, X, params=PARAMS)


def test_everything_kept_says_so():
    with pytest.raises(NoRemovableStructureError, match="is to be kept"):
        jasgnas.search_space(residual, X, params=PARAMS, keep="*")


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda p, x: p["a"], "the network output output does not depend on any network input"),
        (lambda p, x: {"logits": residual(p, x), "norm": jnp.sum(p["a"])}, "the network output norm does not depend"),
        (lambda p, x: (residual(p, x), 3.0), "the network output 1 does not depend"),
    ],
)
def test_disconnected_output(fn, match):
    with pytest.raises(DisconnectedOutputError, match=match):
        jasgnas.search_space(fn, X, params=PARAMS)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jasgnas.search_space(residual, X), "needs its parameters: pass `params=`"),
        (lambda: jasgnas.search_space(3, X, params=PARAMS), "expected an nnx.Module.* got .*int"),
        (lambda: jasgnas.search_space(residual, params=PARAMS), "no network input was given"),
        (lambda: space_of(DemoNet, params=PARAMS), "an nnx.Module holds its own parameters"),
        (lambda: jasgnas.search_space(residual, X, params=PARAMS, keep="c"), "keep='c' matches no parameter path"),
        (lambda: jasgnas.count_macs(residual, X), "needs its parameters: pass `params=`"),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(ArgumentError, match=match):
        call()


@pytest.mark.parametrize(
    ("indices", "match"),
    [([5], "no group 5: .* groups 0 to 4"), ([-1], "no group -1"), ([True], "got True"), (["conv2"], "got 'conv2'")],
)
def test_wrong_group_indices(demo_net, demo_space, indices, match):
    with pytest.raises(ArgumentError, match=match):
        demo_space.is_valid(indices)
    with pytest.raises(ArgumentError, match=match):
        demo_space.zero(demo_net, indices)


@pytest.mark.parametrize("k", [4, -1])
def test_more_redundant_groups_than_can_go(demo_space, k):
    with pytest.raises(TargetError, match=f"{k} redundant groups were asked for; at most 3 of the 5 groups can go"):
        demo_space.random_redundant(jax.random.key(0), k)


def test_explain_of_no_parameter(demo_space):
    with pytest.raises(ArgumentError, match="no operator owns a parameter path that matches 'conv9'"):
        demo_space.explain("conv9")


@pytest.mark.parametrize("holder", [{"conv2": {"kernel": jnp.ones((3, 3))}}, {"other": jnp.ones(3)}])
def test_zero_refuses_another_tree(demo_space, holder):
    with pytest.raises(TreeMismatchError, match="conv2/kernel.* missing or have another shape"):
        demo_space.zero(holder, [0])


def test_leaf_slices_read_like_numpy_indices():
    assert str(LeafSlice("bn/scale")) == "bn/scale"
    assert str(LeafSlice("bn/scale", 0, 4, 8)) == "bn/scale[4:8]"
    assert str(LeafSlice("conv/kernel", 2, 0, 3)) == "conv/kernel[:, :, 0:3]"


def _random_params(**shapes):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_what_is_saved_in_a_parameter_that_others_read_is_not_counted():
    def network(p, x):
        joined = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
        return jnp.tanh(joined @ p["shared"]) @ p["head"] + jnp.tanh(jnp.tanh(x @ p["c"]) @ p["shared"]) @ p["head"]

    params = _random_params(a=(3, 4), b=(3, 4), c=(3, 8), shared=(8, 5), head=(5, 2))
    space = jasgnas.search_space(network, jax.ShapeDtypeStruct((2, 3), jnp.float32), params=params)
    for removed in ((0,), (1,)):
        assert space.is_valid(removed)
        _, left = jasgnas.construct_subnet(space, space.zero(params, removed))
        assert left["shared"].shape == (8, 5)
        assert jasgnas.count_params(left) == space.subnet_size(removed)[0]


def test_what_is_saved_in_one_of_the_layers_that_an_array_holds_is_not_counted():
    def network(p, x):
        joined = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
        # What is zero in the first layer is no longer in the second.
        last = jax.lax.scan(lambda h, w: (h[..., ::-1] + jnp.tanh(h @ w), None), joined, p["layers"])[0]
        return last @ p["head"]

    x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    params = _random_params(a=(3, 4), b=(3, 2), layers=(2, 6, 6), head=(6, 2))
    space = jasgnas.search_space(network, x, params=params)
    indices = [group.index for group in space.groups if group.paths in (("a",), ("b",))]
    assert len(indices) == 2
    for index in indices:
        assert space.is_valid([index])
        subnet, left = jasgnas.construct_subnet(space, space.zero(params, [index]))
        size = jasgnas.count_params(left), jasgnas.count_macs(subnet, x, params=left)
        assert size == space.subnet_size([index])


def test_a_range_is_followed_through_a_norm_that_all_of_the_vector_must_not_be_zero_for():
    def network(p, x):
        joined = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
        normed = joined / jnp.sqrt(jnp.sum(joined * joined, -1, keepdims=True)) * p["scale"] + p["bias"]
        return normed @ p["head"]

    params = _random_params(a=(3, 4), b=(3, 4), scale=(8,), bias=(8,), head=(8, 2))
    space = jasgnas.search_space(network, jax.ShapeDtypeStruct((2, 3), jnp.float32), params=params)
    assert [set(group.paths) for group in space.groups] == [
        {"a", "bias[0:4]", "scale[0:4]"},
        {"b", "bias[4:8]", "scale[4:8]"},
    ]
