"""Gates against networks with a gate: the flat program, with what a structure hands on multiplied by a number.

Where a gate is claimed, multiplying its parameters by a positive number must do to all outputs what multiplying the
edge by that number does. Of small networks all sets of parameters are tried, so that no gate is overlooked either.
"""

from functools import partial
from itertools import chain, combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
import models
from jasgnas.program.jaxpr import Literal
from jasgnas.space.groups import NOBODY
from models.demo_net import DemoNet
from tests.networks import arrays, build, combination, error, random_input, randomize
from tests.small_models import SMALL
from tests.toy_models import TOYS, affine, conv, norm

FACTOR = 2.0


def edges_of(space, group):
    """What hands the result of a structure on: variables, each with the first index on its last axis and the one after.

    A range that reaches parameters of the gate beyond the structure is handed on by the operators that read them.
    """
    graph = space.graph
    if all(each.axis is None for each in group.gate):
        last = graph.segments[group.segments[0]].operators[-1]
        return {(var, 0, graph.program.avals[var].shape[-1]) for var in graph.results(last)}
    edges = set()
    for each in group.gate:
        if each.axis is not None:
            (reader,) = (o.index for o in graph.operators if each.path in paths_of(space, o))
            edges |= {(var, each.start, each.stop) for var in graph.results(reader)}
    return edges


def paths_of(space, operator):
    return {space.leaves[space.graph.parts[part].leaf].path for part in operator.parts}


class Gated:
    """A network whose groups have a gate each, and a random combination of its outputs as a loss."""

    def __init__(self, space, *inputs):
        self._space = space
        self._inputs = inputs
        self._edges = {}
        for group in space.groups:
            for var, start, stop in edges_of(space, group):
                self._edges.setdefault(var, []).append((group.index, start, stop))
        trainable = {leaf.path for leaf in space.leaves if leaf.trainable}

        def run(leaves, gates):
            params = {path: leaf for path, leaf in leaves.items() if path in trainable}

            def loss(params, gates):
                outputs = self._outputs(leaves | params, gates)
                return combination(outputs), outputs

            (_, outputs), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, gates)
            return outputs, gradients

        self._run = jax.jit(run)

    def __call__(self, leaves, gate=None):
        """Returns the outputs, with one gate at `FACTOR` or all at one, and gradients by leaf and by gate."""
        gates = np.ones(len(self._space.groups), np.float32)
        if gate is not None:
            gates[gate] = FACTOR
        return self._run(leaves, gates)

    def _outputs(self, leaves, gates):
        program = self._space.graph.program
        given = [*(leaves[leaf.path] for leaf in self._space.leaves), *self._inputs]
        values = dict(zip(program.inputs, given, strict=True)) | program.constants
        for eqn in program.equations:
            operands = [atom.value if isinstance(atom, Literal) else values[atom] for atom in eqn.inputs]
            for var, value in zip(eqn.outputs, eqn.bind(*operands), strict=True):
                for group, start, stop in self._edges.get(var, ()):
                    value = value.at[..., start:stop].multiply(gates[group].astype(value.dtype))
                values[var] = value
        return [values[atom] for atom in program.outputs]


def scaled(leaves, slices):
    leaves = {path: np.array(leaf) for path, leaf in leaves.items()}
    for each in slices:
        leaves[each.path][each.indices] *= FACTOR
    return leaves


def sums_over_gates(space, params, gradients):
    """The inner product of parameters and gradients over the gate of each group."""
    sums = np.zeros(len(space.groups))
    for path, owners in space.candidates.gates.items():
        products = np.asarray(params[path], np.float64) * np.asarray(gradients[path], np.float64)
        for own in owners:
            groups = np.broadcast_to(own.over(own.groups, products.ndim), products.shape)
            np.add.at(sums, groups[groups != NOBODY], products[groups != NOBODY])
    return sums


def check_gates(space, leaves, *inputs):
    """Compares every gate that is claimed with one at the edge, forwards and in the gradient."""
    run = Gated(space, *inputs)
    before, (gradients, expected) = run(leaves)
    found = sums_over_gates(space, leaves, gradients)
    for group in space.groups:
        assert set(group.gate) <= set(group.slices)
        if group.gate:
            with_gate, _ = run(leaves, group.index)
            assert error(run(scaled(leaves, group.gate))[0], with_gate) < 1e-4
            assert error(with_gate, before) > 1e-3
            held = group.gate
            np.testing.assert_allclose(found[group.index], expected[group.index], rtol=5e-3, atol=1e-3)
        else:
            held = group.slices  # All of the group stands in.
        products = [np.sum((leaves[s.path] * gradients[s.path])[s.indices]) for s in held]
        np.testing.assert_allclose(found[group.index], sum(products), rtol=1e-3, atol=1e-3)
    return run


# Small networks. Those without a range beyond the structure are asked for every set of the parameters of a group.


class Case(NamedTuple):
    fn: Any
    shapes: dict[str, tuple[int, ...]]
    gates: list[set[str]]
    x: tuple[int, ...] = (3, 4)


D, K = 4, (3, 3, 4, 4)
IMAGES = (2, 5, 5, D)
SQUARE, VECTOR = (D, D), (D,)


def batch_norm(x, scale, bias):
    """In training mode."""
    return norm(x, scale, bias, axes=tuple(range(x.ndim - 1)))


def weight_norm(v, g):
    """As Flax has it: a matrix of zeros is not divided by zero."""
    return v * jax.lax.rsqrt(jnp.sum(v * v, 0) + 1e-12) * g


def serial_norms(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    once = jax.nn.relu(batch_norm(both, p["scale1"], p["bias1"]))
    return jnp.abs(batch_norm(once, p["scale2"], p["bias2"])) @ p["head"]


def parallel_norms(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    one = jax.nn.relu(batch_norm(both, p["scale1"], p["bias1"])) @ p["head1"]
    # A longer way: two norms one after the other.
    two = batch_norm(jax.nn.relu(batch_norm(both, p["scale2"], p["bias2"])), p["scale3"], p["bias3"])
    return one, two @ p["head2"]


def norm_on_one_way_only(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    return batch_norm(both, p["scale"], p["bias"]) @ p["head1"] + both @ p["head2"]


def bias_after_concat(p, x):
    both = jnp.concatenate([x @ p["a"], jnp.tanh(x @ p["b"])], -1)
    return jax.nn.relu(both + p["bias"]) @ p["head"]


def tanh_after_norm(p, x):
    both = jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    return jnp.tanh(affine(both, p["scale"], p["bias"])) @ p["head"]


def shares_of_channels(p, x):
    """Each channel grows with its share in all of them: it does so in proportion only if there is no other one."""
    both = jnp.concatenate([jnp.abs(x @ p["a"]), jnp.abs(x @ p["b"])], -1)
    shares = both**2 / jnp.sum(both, -1, keepdims=True)
    return jax.nn.relu(shares + p["bias"]) @ p["head"]


def range_read_twice(p, x):
    both = jnp.concatenate([x @ p["a"], jnp.tanh(x @ p["b"])], -1)
    return jnp.concatenate([both * p["scale"], jax.nn.relu(both)], -1) @ p["head"]


def mean_of_channels(p, x):
    both = jnp.concatenate([conv(x, p["a"]), conv(x, p["b"])], -1)
    return jnp.mean(jax.nn.relu(batch_norm(both, p["scale"], p["bias"])), (1, 2)) @ p["head"]


def ranges(names, *intervals):
    """The gates of groups that are ranges of the same vectors."""
    return [{f"{name}[{start}:{stop}]" for name in names} for start, stop in intervals]


CASES = {
    "convolution, norm": Case(
        lambda p, x: x + jax.nn.relu(batch_norm(conv(x, p["k"]), p["scale"], p["bias"])),
        {"k": K, "scale": VECTOR, "bias": VECTOR},
        [{"scale", "bias"}],
        IMAGES,
    ),
    "convolution with a bias": Case(
        lambda p, x: x + jax.nn.leaky_relu(conv(x, p["k"]) + p["bias"]),
        {"k": K, "bias": VECTOR},
        [{"k", "bias"}],
        IMAGES,
    ),
    "convolution, norm, convolution": Case(
        lambda p, x: x + conv(jax.nn.relu(batch_norm(conv(x, p["k"]), p["scale"], p["bias"])), p["last"]),
        {"k": K, "scale": VECTOR, "bias": VECTOR, "last": K},
        [{"last"}],
        IMAGES,
    ),
    "convolution, norm without parameters": Case(
        lambda p, x: x + jax.nn.relu(batch_norm(conv(x, p["k"]), 1.0, 0.0)), {"k": K}, [set()], IMAGES
    ),
    "two convolutions, none with a bias": Case(
        lambda p, x: x + conv(jax.nn.relu(conv(x, p["k"])), p["last"]), {"k": K, "last": K}, [{"last"}], IMAGES
    ),
    "pooling and resizing": Case(
        lambda p, x: x + jax.image.resize(nnx.max_pool(conv(x, p["k"]), (2, 2), (2, 2)), x.shape, "bilinear"),
        {"k": K},
        [{"k"}],
        IMAGES,
    ),
    "tanh": Case(lambda p, x: x + jnp.tanh(x @ p["a"]), {"a": SQUARE}, [set()]),
    "a matrix used twice": Case(lambda p, x: x + (x @ p["a"]) @ p["a"], {"a": SQUARE}, [set()]),
    "a matrix used twice before another": Case(
        lambda p, x: x + jax.nn.relu((x @ p["a"]) @ p["a"]) @ p["b"], {"a": SQUARE, "b": SQUARE}, [{"b"}]
    ),
    "a learned slope": Case(
        lambda p, x: x + jnp.where((y := x @ p["a"] + p["bias"]) > 0, y, p["slope"] * y),
        {"a": SQUARE, "bias": VECTOR, "slope": VECTOR},
        [{"a", "bias"}],
    ),
    "a scale, and a bias by itself": Case(
        lambda p, x: x + jax.nn.relu(jax.nn.relu((x @ p["a"]) * p["scale"]) + p["bias"]),
        {"a": SQUARE, "scale": VECTOR, "bias": VECTOR},
        [{"scale", "bias"}],
    ),
    "a layer scale": Case(
        lambda p, x: x + jax.nn.relu(x @ p["a"] + p["bias"]) * p["gamma"],
        {"a": SQUARE, "bias": VECTOR, "gamma": VECTOR},
        [{"gamma"}],
    ),
    "a product of matrices": Case(
        lambda p, x: x + (x @ (p["a"] @ p["b"]) + p["bias"]),
        {"a": (D, 2), "b": (2, D), "bias": VECTOR},
        [{"b", "bias"}],
    ),
    "a root of a square": Case(lambda p, x: x + jnp.sqrt((x @ p["a"]) ** 2), {"a": SQUARE}, [{"a"}]),
    "a root": Case(lambda p, x: x + jnp.sqrt(jnp.abs((x @ p["a"]) @ p["b"])), {"a": SQUARE, "b": SQUARE}, [{"a", "b"}]),
    "a normalised matrix": Case(
        lambda p, x: x + jax.nn.relu(x @ weight_norm(p["v"], p["g"]) + p["bias"]),
        {"v": SQUARE, "g": VECTOR, "bias": VECTOR},
        [{"g", "bias"}],
    ),
    "a cube": Case(lambda p, x: x + (x @ p["a"]) ** 3, {"a": SQUARE}, [set()]),
    "a stopped gradient": Case(
        lambda p, x: x + jax.lax.stop_gradient(x @ p["a"]) * p["scale"], {"a": SQUARE, "scale": VECTOR}, [{"scale"}]
    ),
    "stacked layers": Case(
        lambda p, x: jax.lax.scan(lambda x, p: (x + jax.nn.relu(x @ p["a"]) @ p["b"], None), x, p)[0],
        {"a": (2, D, D), "b": (2, D, D)},
        [{"b[0]"}, {"b[1]"}],
    ),
    "one norm after the other": Case(
        serial_norms,
        {"a": (D, 3), "b": (D, 2), **dict.fromkeys(("scale1", "bias1", "scale2", "bias2"), (5,)), "head": (5, D)},
        ranges(("scale2", "bias2"), (0, 3), (3, 5)),
    ),
    "norms beside each other": Case(
        parallel_norms,
        {
            **{"a": (D, 3), "b": (D, 2), "head1": (5, D), "head2": (5, D)},
            **{f"{name}{i}": (5,) for name in ("scale", "bias") for i in (1, 2, 3)},
        },
        ranges(("scale1", "bias1", "scale3", "bias3"), (0, 3), (3, 5)),
    ),
    "a norm on one of two ways": Case(
        norm_on_one_way_only,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "bias": (5,), "head1": (5, D), "head2": (5, D)},
        [set(), set(), {"head1"}, {"head2"}],
    ),
    "a bias after a concatenation": Case(
        bias_after_concat,
        {"a": (D, 3), "b": (D, 2), "bias": (5,), "head": (5, D)},
        [{"a", "bias[0:3]"}, set()],
    ),
    "tanh after a norm": Case(
        tanh_after_norm,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "bias": (5,), "head": (5, D)},
        [set(), set()],
    ),
    "channels divided by their sum": Case(
        shares_of_channels,
        {"a": (D, 3), "b": (D, 2), "bias": (5,), "head": (5, D)},
        [set(), set()],
    ),
    "a range that comes twice, once with a scale": Case(
        range_read_twice,
        {"a": (D, 3), "b": (D, 2), "scale": (5,), "head": (10, D)},
        [{"a"}, set()],
    ),
    "a mean after a norm": Case(
        mean_of_channels,
        {"a": (*K[:3], 3), "b": (*K[:3], 2), "scale": (5,), "bias": (5,), "head": (5, D)},
        ranges(("scale", "bias"), (0, 3), (3, 5)),
        IMAGES,
    ),
}


def space_of(fn, shapes, x):
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return jasgnas.search_space(fn, jax.ShapeDtypeStruct(x, jnp.float32), params=params), randomize(params)


@pytest.mark.parametrize("name", CASES)
def test_gates_of_small_networks(name):
    fn, shapes, gates, x = CASES[name]
    space, params = space_of(fn, shapes, x)
    assert [set(map(str, group.gate)) for group in space.groups] == gates
    run = check_gates(space, params, random_input(x))
    for group in space.groups:
        if any(each.axis is not None for each in group.slices):
            continue
        expected, _ = run(params, group.index)
        sets = chain.from_iterable(combinations(group.slices, size) for size in range(1, len(group.slices) + 1))
        exact = [set(own) for own in sets if error(run(scaled(params, own))[0], expected) < 1e-5]
        assert set(group.gate) in exact if group.gate else not exact


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TOYS)
def test_gates_of_toys(name):
    toy = TOYS[name]
    space, params = space_of(toy.fn, toy.shapes, toy.x)
    check_gates(space, params, random_input(toy.x))


# Networks.

CORE = ("resnet18_cifar", "regnet_y_200mf_cifar", "densenet121", "convnext_tiny", "decoder_small")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CORE else pytest.mark.exhaustive) for name, *_ in SMALL]
)
def test_gates_of_networks(name):
    ((_, options, shape),) = (each for each in SMALL if each[0] == name)
    graphdef, abstract = nnx.split(models.create_abstract(name, **options))
    model = nnx.merge(graphdef, randomize(abstract))
    model.eval()
    dtype = models.example_input(name).dtype
    x = jnp.arange(np.prod(shape)).reshape(shape) % 5 if dtype == jnp.int32 else random_input(shape)
    space = jasgnas.search_space(model, x)
    assert all(group.gate for group in space.groups)
    check_gates(space, arrays(model), x)


def test_gates_of_demo_net_are_gates_set_by_hand():
    model = build(DemoNet, width=0.1)
    model.eval()
    x = random_input((2, 8, 8, 1))
    space = jasgnas.search_space(model, x)
    assert [set(map(str, group.gate)) for group in space.groups] == [
        {f"bn{index}/scale", f"bn{index}/bias"} for index in (2, 3, 5, 7, 8)
    ]

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients_of(params, gates):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        for index, gate in zip((2, 3, 5, 7, 8), gates, strict=True):
            bn = getattr(merged, f"bn{index}")
            setattr(merged, f"bn{index}", lambda x, bn=bn, gate=gate: gate * bn(x))
        return combination(merged(x))

    gradients, expected = gradients_of(params, jnp.ones(5))
    found = sums_over_gates(space, arrays(params), arrays(gradients))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_explain_tells_the_gate():
    space, _ = space_of(CASES["norms beside each other"].fn, *CASES["norms beside each other"][1::2])
    assert space.explain("a").endswith("removable, group 0 (gate bias1[0:3], scale1[0:3], 2 more)")
    space, _ = space_of(CASES["tanh"].fn, {"a": SQUARE}, (3, D))
    assert space.explain("a").endswith("removable, group 0 (first order, not exact)")
