"""Drawings: as many vertices and edges as the graphs have, marks, plain SVG, PNG, and errors."""

import os
import re
import struct
import subprocess
import sys
import threading
from xml.etree import ElementTree

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jasgnas
from jasgnas import ArgumentError, JasgnasError
from jasgnas.pages import drawing
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import build

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=["demo_net", "unets"])
def space(request):
    network, shape = {"demo_net": (DemoNet, (1, 8, 8, 1)), "unets": (StackedUnets, (1, 16, 16, 3))}[request.param]
    return jasgnas.search_space(build(network, width=0.1), jax.ShapeDtypeStruct(shape, jnp.float32))


def elements(svg, *classes):
    root = ElementTree.fromstring(svg)
    return [each for each in root.iter() if set(classes) <= set(each.get("class", "").split())]


def test_segments(space):
    svg = jasgnas.draw(space)
    nodes = elements(svg, "node")
    assert sorted(int(node.get("data-segment")) for node in nodes) == list(range(len(space.graph.segments)))
    graph = space.segment_graph
    edges = [(int(edge.get("data-from")), int(edge.get("data-to"))) for edge in elements(svg, "edge")]
    assert sorted(edges) == sorted(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    assert len(elements(svg, "removable")) == len(space.groups)
    assert not elements(svg, "redundant")
    titles = {node.find(f"{SVG}title").text.partition(":")[0] for node in nodes}
    assert titles == set(space.segment_names)


def test_operators(space):
    svg = jasgnas.draw(space, view="operators")
    operators = [int(each.get("data-operator")) for each in elements(svg) if each.get("data-operator") is not None]
    assert sorted(operators) == list(range(space.trace_graph.n_node[0]))
    assert len(elements(svg, "edge")) + len(elements(svg, "link")) == space.trace_graph.n_edge[0]


def test_everything_is_drawn_below_what_it_reads(space):
    svg = jasgnas.draw(space)
    places = {
        int(node.get("data-segment")): tuple(map(float, re.findall(r"[\d.]+", node.get("transform"))))
        for node in elements(svg, "node")
    }
    assert len(set(places.values())) == len(places)
    for edge in elements(svg, "edge"):
        above, below = places[int(edge.get("data-from"))], places[int(edge.get("data-to"))]
        assert above[1] < below[1]


def test_a_long_sum_is_a_row():
    def fn(params, x):
        return sum(x @ params[f"{i:02}"] for i in range(20)) @ params["head"]

    params = {name: np.ones((4, 4), np.float32) for name in [*(f"{i:02}" for i in range(20)), "head"]}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    joints = elements(jasgnas.draw(space), "joint")
    heights = {re.findall(r"[\d.]+", joint.get("transform"))[1] for joint in joints}
    assert len(joints) >= 19 and len(heights) == 1


def test_marks_of_a_removal():
    model = build(DemoNet, width=0.1)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    svg = jasgnas.draw(space, (0, 2, 4))
    redundant = elements(svg, "redundant")
    assert {int(node.get("data-segment")) for node in redundant} == {
        space.groups[index].segments[0] for index in (0, 2, 4)
    }
    assert all(node.findall(f"{SVG}path[@class='cross']") for node in redundant)
    assert len(elements(svg, "cross")) == 3
    left = elements(jasgnas.draw(space, (0, 2, 4), view="subnet"), "node")
    names = ["conv1-bn1", "conv3-bn3", "conv6-bn6", "conv7-bn7", "fc1-fc2"]
    assert [space.segment_names[int(node.get("data-segment"))] for node in left] == names
    # Joints with one input left are gone: a chain.
    assert len(elements(jasgnas.draw(space, (0, 2, 4), view="subnet"), "edge")) == len(names) - 1


def test_svg_needs_no_style_of_the_page(space):
    assert "var(" not in jasgnas.draw(space)


def test_files(space, tmp_path):
    svg = jasgnas.draw(space, path=tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text("utf-8") == svg
    jasgnas.draw(space, path=tmp_path / "graph.png")
    png = (tmp_path / "graph.png").read_bytes()
    root = ElementTree.fromstring(svg)
    assert png.startswith(b"\x89PNG\r\n")
    assert struct.unpack(">II", png[16:24]) == (2 * int(root.get("width")), 2 * int(root.get("height")))


IN_A_NOTEBOOK = """
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
import jax.numpy as jnp
import jasgnas

params = {name: jnp.ones((4, 4)) for name in "abc"}
space = jasgnas.search_space(lambda p, x: (x @ p["a"] + x @ p["b"]) @ p["c"], jnp.ones((2, 4)), params=params)


async def cell():
    return jasgnas.draw(space)


def thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(jasgnas.draw, space).result()


run = {"loop": lambda: asyncio.run(cell()), "thread": thread, "plain": lambda: jasgnas.draw(space)}
print(len({str(run[name]()) for name in sys.argv[1:]}))
"""


@pytest.mark.parametrize("order", [("loop", "plain", "loop"), ("plain", "loop"), ("thread", "loop", "plain")], ids=str)
def test_within_an_event_loop(order):
    """The layout engine is made by the first drawing, so that each order needs a program of its own."""
    run = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK, *order],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "1\n", "")


def test_a_notebook_shows_an_image(space):
    svg = jasgnas.draw(space)
    assert isinstance(svg, str) and svg._repr_svg_() == svg and type(svg._repr_svg_()) is str
    assert ElementTree.fromstring(svg._repr_svg_()).tag == f"{SVG}svg"
    assert space._repr_svg_() == svg


class Branches(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second, self.head = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        return self.head(jnp.tanh(self.first(x)) + self.second(x) + x)


class LinenBranches(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(jnp.tanh(linen.Dense(4)(x)) + linen.Dense(4)(x) + x)


class EquinoxBranches(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jnp.tanh(self.first(x)) + self.second(x) + x)


def branches_fn(params, x):
    return (jnp.tanh(x @ params["first"]) + x @ params["second"] + x) @ params["head"]


def branches(flavour):
    """A network of two branches beside a shortcut: its space, and what it leaves without the first of them."""
    x = jnp.ones((2, 4))
    if flavour == "nnx":
        model = Branches(nnx.Rngs(0))
        space = jasgnas.search_space(model, x)
        return space, jasgnas.construct_subnet(space, space.zero(model, [0]))
    if flavour == "equinox":
        model = EquinoxBranches(*(eqx.nn.Linear(4, 4, key=jax.random.key(i)) for i in range(3)))
        space = jasgnas.search_space(model, x[0])
        return space, jasgnas.construct_subnet(space, space.zero(model, [0]))
    if flavour == "linen":
        module = LinenBranches()
        variables = module.init(jax.random.key(0), x)
        space = jasgnas.search_space(module, x, variables=variables)
        return space, jasgnas.construct_subnet(space, space.zero(variables, [0]))[0]
    if flavour == "haiku":
        transform = hk.transform(lambda x: hk.Linear(4)(jnp.tanh(hk.Linear(4)(x)) + hk.Linear(4)(x) + x))
        transform = hk.without_apply_rng(transform)
        params = transform.init(jax.random.key(0), x)
        space = jasgnas.search_space(transform, x, params=params)
        return space, jasgnas.construct_subnet(space, space.zero(params, [0]))[0]
    params = {name: jnp.ones((4, 4)) for name in ("first", "second", "head")}
    space = jasgnas.search_space(branches_fn, x, params=params)
    return space, jasgnas.construct_subnet(space, space.zero(params, [0]))[0]


@pytest.mark.parametrize("flavour", ["nnx", "linen", "equinox", "haiku", "function"])
def test_a_subnetwork_is_drawn_without_its_space(flavour):
    space, subnet = branches(flavour)
    svg = jasgnas.draw(subnet)
    assert svg == jasgnas.draw(space, [0], view="subnet")
    left = [space.segment_names[int(node.get("data-segment"))] for node in elements(svg, "node")]
    assert set(space.segment_names).difference(left) == {space.groups[0].name}
    assert jasgnas.draw(subnet, view="segments") == jasgnas.draw(space, [0])
    # Shown by itself wherever its class is not of another library.
    assert flavour == "haiku" or subnet._repr_svg_() == svg
    # What treescope shows of a module is not in the way of that, and the other way round.
    assert not hasattr(subnet, "_repr_html_")


def test_what_has_been_shrunk_is_drawn_as_it_is():
    model = Branches(nnx.Rngs(0))
    space = jasgnas.search_space(model, jnp.ones((2, 4)))
    subnet, _ = jasgnas.shrink(space, space.zero(model, [1]), (), removed=[1])
    assert subnet._repr_svg_() == jasgnas.draw(space, [1], view="subnet")


def test_what_is_no_subnetwork_is_not_drawn_as_one():
    model = Branches(nnx.Rngs(0))
    space, subnet = branches("nnx")
    with pytest.raises(ArgumentError, match="a search space, or a sub-network as .* got Branches"):
        jasgnas.draw(model)
    with pytest.raises(ArgumentError, match="knows what was removed of it"):
        jasgnas.draw(subnet, [1])
    gated = jasgnas.gated(model, jnp.ones((2, 4)))
    assert gated._repr_svg_() is None  # the full network with gates


def test_a_notebook_does_not_trace_a_large_network_unasked(monkeypatch):
    _, subnet = branches("function")
    monkeypatch.setattr(drawing, "_MOST_TRACED", 2)
    assert subnet._repr_svg_() is None and jasgnas.draw(subnet).startswith("<svg")


def test_an_engine_that_does_not_start_is_told(monkeypatch):
    def broken():
        raise OSError("made for another machine")

    monkeypatch.setattr("py_mini_racer.mini_racer", broken)
    with pytest.raises(OSError, match="made for another machine"):
        drawing._layout_engine.__wrapped__()


def test_large_drawings_make_no_larger_png(tmp_path):
    def fn(params, x):
        for i in range(80):
            x = x + jnp.tanh(x @ params[f"{i:02}"])
        return x @ params["head"]

    params = {name: np.ones((4, 4), np.float32) for name in [*(f"{i:02}" for i in range(80)), "head"]}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    root = ElementTree.fromstring(jasgnas.draw(space, path=tmp_path / "graph.png"))
    png = (tmp_path / "graph.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert int(root.get("height")) > 4096 and height == 8192
    assert space._repr_svg_() is None  # too large to be read in a notebook
    assert width == pytest.approx(int(root.get("width")) * 8192 / int(root.get("height")), abs=1)


def test_names_are_text():
    names = ["a<b>&\"'", "]]><script>", "c\x00d"]

    def fn(params, x):
        return sum(x @ params[name] for name in names) @ params["head"]

    params = {name: np.ones((4, 4), np.float32) for name in [*names, "head"]}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    svg = jasgnas.draw(space)
    titles = {node.find(f"{SVG}title").text.rpartition(": ")[0] for node in elements(svg, "box")}
    assert {"a<b>&\"'", "]]><script>", "c\ufffdd"} <= titles
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))


@pytest.mark.parametrize(
    ("options", "match"), [({"view": "all"}, "view must be one of"), ({"redundant": [99]}, "no group 99")]
)
def test_wrong_arguments(space, options, match):
    with pytest.raises(ArgumentError, match=match):
        jasgnas.draw(space, **options)


@pytest.mark.parametrize(
    ("module", "package", "suffix"), [("py_mini_racer", "mini-racer", "svg"), ("resvg_py", "resvg-py", "png")]
)
def test_a_missing_extra_is_named(space, tmp_path, monkeypatch, module, package, suffix):
    drawing._layout_engine.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JasgnasError, match=rf"needs the package {package} .*pip install 'jasgnas\[draw\]'"):
        jasgnas.draw(space, path=tmp_path / f"graph.{suffix}")
    assert (space._repr_svg_() is None) is (suffix == "svg")
    drawing._layout_engine.cache_clear()


def test_the_layout_engine_is_stopped_when_the_program_ends(monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    before = set(threading.enumerate())
    run = drawing._layout_engine.__wrapped__()
    started = set(threading.enumerate()) - before
    assert run("1 + 1") == 2 and started
    (close,) = at_exit
    close()
    assert not started & set(threading.enumerate())
