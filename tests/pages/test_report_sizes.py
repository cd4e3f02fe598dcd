"""What a report says is left of every part, against the network that is really constructed."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
import models
from models.demo_net import DemoNet
from tests.networks import arrays, build, randomize
from tests.pages.joined import joined_data
from tests.pages.opened import row_of
from tests.pages.scanned import ScannedDecoder
from tests.small_models import SMALL


def data_of(space, redundant):
    return joined_data(space, jasgnas.Run(redundant=redundant))


def require_sizes(data, subnet, params, macs):
    """Requires that the shapes of all parts are those of the arrays, and that sizes add up over every kind of node."""
    parts = data["parts"]
    shapes = {path: array.shape for path, array in arrays(subnet).items()}
    whole = {path: shape for path, shape in zip(parts["path"], parts["subShape"], strict=True) if not row_of(path)[1]}
    assert {path: shape for path, shape in whole.items() if shape is not None} == {
        path: shape for path, shape in shapes.items() if path in whole
    }
    rows: dict[str, list[tuple[int, ...]]] = {}
    for path, shape in zip(parts["path"], parts["subShape"], strict=True):
        leaf, row = row_of(path)
        if row is not None and shape is not None:
            rows.setdefault(leaf, []).append(tuple(shape))
    assert {leaf: sum(map(math.prod, own)) for leaf, own in rows.items()} == {
        leaf: math.prod(shape) for leaf, shape in shapes.items() if leaf not in whole
    }
    for nodes in ("operators", "segments"):
        assert (sum(data[nodes]["subParams"]), sum(data[nodes]["subMacs"])) == (params, macs)
    assert [row["sub"] for row in data["networks"]] == [params, macs]


NETWORKS = ("demo_net", "stacked_unets", "darts_8", "resnet18_cifar", "densenet121")


@pytest.mark.parametrize(("name", "options", "shape"), [row for row in SMALL if row[0] in NETWORKS], ids=NETWORKS)
def test_every_size_is_that_of_the_constructed_network(name, options, shape):
    graphdef, abstract = nnx.split(models.create_abstract(name, **options))
    model = nnx.merge(graphdef, randomize(abstract))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    space = jasgnas.search_space(model, x)
    redundant = space.largest_removal[::2]
    subnet = jasgnas.construct_subnet(space, space.zero(model, redundant))
    require_sizes(data_of(space, redundant), subnet, jasgnas.count_params(subnet), jasgnas.count_macs(subnet, x))


def test_rows_of_scanned_layers():
    model = ScannedDecoder(nnx.Rngs(0))
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    space = jasgnas.search_space(model, tokens)
    assert len(space.groups) == 8
    for redundant in (space.largest_removal, space.largest_removal[::2]):
        subnet = jasgnas.construct_subnet(space, space.zero(model, redundant))
        sizes = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, tokens)
        data = data_of(space, redundant)
        require_sizes(data, subnet, *sizes)
        rows = dict(zip(data["parts"]["path"], data["parts"]["subShape"], strict=True))
        assert all(rows[path] is None for index in redundant for path in space.groups[index].paths)


def test_what_reads_the_removed_is_narrower():
    model = build(DemoNet)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
    names = ("conv2-bn2", "conv3-bn3", "conv8-bn8")
    data = data_of(space, [group.index for group in space.groups if group.name in names])
    params = dict(zip(data["segments"]["name"], data["segments"]["subParams"], strict=True))
    shapes = dict(zip(data["parts"]["path"], data["parts"]["subShape"], strict=True))
    assert params["conv6-bn6"] == 56_784
    assert shapes["conv6/kernel"] == (3, 3, 56, 112)
    assert shapes["conv2/kernel"] is None


# Parts whose inputs are gone, and parts that nothing needs.


@pytest.fixture(scope="module")
def branches():
    """A network of which more is dead than what is removed, its parameters, and the groups to remove."""

    def fn(p, x):
        y = x @ p["a"] + x @ p["b"]
        constant = jnp.tanh(y @ p["c"] + p["bias"])
        product = (x @ p["d"]) * (y @ p["e"])
        return (x @ p["stays"] + constant + jnp.tanh(y @ p["f"]) + product) @ p["head"]

    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in ("a", "b", "c", "d", "e", "f", "head")}
    params |= {"stays": params["a"] + 1, "bias": np.ones(4, np.float32)}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    return space, params, [group.index for group in space.groups if group.name in ("a", "b")]


def test_every_dead_part_says_why(branches):
    space, _, removed = branches
    segments = data_of(space, removed)["segments"]
    found = {
        name: (fate, reason, params)
        for name, fate, reason, params in zip(
            *(segments[column] for column in ("name", "fate", "fateReason", "subParams")), strict=True
        )
        if name != "add"
    }
    first, second = removed
    gone = "its inputs are all gone"
    assert found == {
        "a": ("redundant", f"group {first} is removed", 0),
        "b": ("redundant", f"group {second} is removed", 0),
        "bias-c": ("dead", f"{gone}: a constant is left of it", 4),
        "d": ("dead", "nothing that is left needs it", 0),
        "e": ("dead", gone, 0),
        "mul": ("dead", "it needs e, which went", 0),
        "f": ("dead", gone, 0),
        "stays": ("kept", "", 16),
        "head": ("kept", "", 16),
    }
    sums = [fate for name, fate in zip(segments["name"], segments["fate"], strict=True) if name == "add"]
    assert sums == ["dead", "kept", "passing", "passing"]


def test_what_is_left_of_the_dead_is_counted(branches):
    space, params, removed = branches
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, removed))
    macs = jasgnas.count_macs(sub_fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=sub_params)
    require_sizes(data_of(space, removed), sub_params, jasgnas.count_params(sub_params), macs)


def test_the_drawing_of_the_subnetwork_shows_its_sizes(branches):
    space, _, removed = branches
    drawing = jasgnas.draw(space, removed, view="subnet")
    nodes = re.findall(r'<g class="node ([^"]*)"[^>]*><title>([\w-]+):', drawing)
    assert ("box removable dead", "bias-c") in nodes
    assert {name for _, name in nodes} == {"add", "bias-c", "stays", "head"}
    amounts = re.findall(r'class="subtitle amount"[^>]*>([^<]*)<', drawing)
    assert sorted(amounts) == ["16", "16", "4"]
