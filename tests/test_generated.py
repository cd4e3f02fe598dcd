"""Networks that nobody thought of: random graphs of operators, each searched, reduced and compared.

By default there are 500, at about a second each, most of which XLA spends on compiling operators at ever new shapes;
`JASGNAS_NETWORKS=5000 pytest -n auto tests/test_generated.py` tries more.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import combination, error, quick_compilation, random_input
from toy_models import conv, norm

import jasgnas
from jasgnas.jaxpr import Literal

NUM_NETWORKS = int(os.environ.get("JASGNAS_NETWORKS", "500"))
NUM_PARTS = 10
BATCH = 6


class Op(NamedTuple):
    """One operator: what it is called, the values it reads, its parameters by name, and its options."""

    kind: str
    sources: tuple[int, ...]
    params: tuple[str, ...] = ()
    options: tuple = ()


@dataclass(frozen=True, eq=False)
class Network:
    """Operators in order; each one's results are appended to the values, of which the input is the first."""

    ops: tuple[Op, ...]
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[int, ...]

    def __call__(self, params, x):
        values = [x]
        for op in self.ops:
            result = OPERATORS[op.kind](
                *(values[i] for i in op.sources), *(params[name] for name in op.params), *op.options
            )
            values += result if isinstance(result, tuple) else (result,)
        return {f"output{number}": values[index] for number, index in enumerate(self.outputs)}


def group_norm(x, scale, bias, groups):
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    mean = jnp.mean(grouped, axes, keepdims=True)
    var = jnp.var(grouped, axes, keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(var + 1e-3)).reshape(x.shape) * scale + bias


def pool(x, reducer, init):
    ones = (1,) * (x.ndim - 3)
    return jax.lax.reduce_window(x, np.asarray(init, x.dtype)[()], reducer, (1, 3, 3, *ones), (1,) * x.ndim, "SAME")


def shuffle(x, groups):
    split = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(split, -1, -2).reshape(x.shape)


OPERATORS = {
    "dense": lambda x, w, b: x @ w + b,
    "linear": lambda x, w: x @ w,
    "conv": lambda x, w, b: conv(x, w) + b,
    "grouped conv": lambda x, w, groups: conv(x, w, feature_group_count=groups),
    "dilated conv": lambda x, w: conv(x, w, rhs_dilation=(2, 2)),
    "batch norm": lambda x, mean, var, scale, bias: (x - mean) * (jax.lax.rsqrt(jnp.square(var) + 1e-3) * scale) + bias,
    "layer norm": norm,
    "rms norm": lambda x, scale: x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-3) * scale,
    "group norm": group_norm,
    "scale": lambda x, scale: x * scale,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "max pool": lambda x: pool(x, jax.lax.max, -np.inf),
    "avg pool": lambda x: pool(x, jax.lax.add, 0.0) / 9,
    "mean": lambda x: jnp.mean(x, tuple(range(1, x.ndim - 1))),
    "flatten": lambda x: x.reshape(x.shape[0], -1),
    "tokens": lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
    "transpose": lambda x: jnp.swapaxes(x, 1, 2),
    "shuffle": shuffle,
    "concat": lambda *xs: jnp.concatenate(xs, -1),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "sum": lambda *xs: sum(xs),
    "gate": lambda x, w: x * jax.nn.sigmoid(jnp.mean(x, tuple(range(1, x.ndim - 1)), keepdims=True) @ w),
    "split": lambda x: tuple(jnp.split(x, 2, -1)),
    "pad": lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)]),
    "slice": lambda x: x[..., 1:],
}  # fmt: skip
PARAMETERS = {
    "dense": lambda c, n, _: [(c, n), (n,)],
    "linear": lambda c, n, _: [(c, n)],
    "conv": lambda c, n, _: [(3, 3, c, n), (n,)],
    "dilated conv": lambda c, n, _: [(3, 3, c, n)],
    "batch norm": lambda c, *_: [(c,)] * 4,
    "layer norm": lambda c, *_: [(c,)] * 2,
    "rms norm": lambda c, *_: [(c,)],
    "group norm": lambda c, *_: [(c,)] * 2,
    "scale": lambda c, *_: [(c,)],
    "gate": lambda c, *_: [(c, c)],
}
STEMS = ("dense", "linear", "conv", "grouped conv", "dilated conv")
CHEAP = ("relu", "gelu", "sigmoid", "silu", "tanh")
NORMS = ("batch norm", "layer norm", "rms norm", "group norm", "scale")
JOINS = ("concat", "add", "sub", "mul")
MOVES = ("max pool", "avg pool", "transpose", "shuffle", "split", "pad", "slice", "tokens", "gate")
KINDS = (*STEMS, *STEMS, *CHEAP, *NORMS, *JOINS, *JOINS, *MOVES, "residual", "residual", "shared", "mean", "flatten")


class Builder:
    """Grows a network operator by operator; every choice is one that hypothesis can make smaller."""

    def __init__(self, draw):
        self._draw = draw
        self.ops, self.params, self.values = [], {}, [(BATCH, 4, 4, 3)]
        self.used = set()

    def choose(self, options):
        return self._draw(st.sampled_from(list(options)))

    def put(self, kind, *sources, params=None, width=None, options=()):
        """Appends an operator, its parameters new ones unless given, and returns the index of its first result."""
        shape = self.values[sources[0]]
        if params is None:
            new = PARAMETERS.get(kind, lambda *_: [])(shape[-1], width, None)
            params = tuple(f"p{len(self.params) + i}_{kind.replace(' ', '_')}" for i in range(len(new)))
            self.params.update(zip(params, new, strict=True))
        self.ops.append(Op(kind, sources, tuple(params), options))
        self.used.update(sources)
        operands = [jax.ShapeDtypeStruct(self.values[i], jnp.float32) for i in sources]
        leaves = [jax.ShapeDtypeStruct(self.params[name], jnp.float32) for name in params]
        result = jax.eval_shape(lambda *args: OPERATORS[kind](*args, *options), *operands, *leaves)
        self.values += [value.shape for value in (result if isinstance(result, tuple) else (result,))]
        return len(self.values) - (len(result) if isinstance(result, tuple) else 1)

    def step(self):
        kind = self.choose(KINDS)
        recent = range(max(0, len(self.values) - 6), len(self.values))
        source = self.choose(recent)
        shape = self.values[source]
        channels, image = shape[-1], len(shape) == 4
        width = self.choose((2, 4))
        if (
            kind in ("conv", "dilated conv", "grouped conv", "max pool", "avg pool", "transpose", "tokens")
            and not image
        ):
            kind = "relu"
        if kind in ("mean", "flatten", "tokens") and len(shape) == 2:
            kind = "tanh"
        if kind in ("flatten",) and np.prod(shape[1:]) > 64:
            kind = "gelu"
        if kind in ("shuffle", "split", "group norm") and (channels % 2 or channels < 4):
            kind = "relu"
        if kind == "layer norm" and channels < 3:
            kind = "rms norm"
        if kind == "slice" and channels < 3:
            kind = "pad"
        if kind in JOINS:
            self.join(kind, source, [i for i, s in enumerate(self.values) if s[:-1] == shape[:-1]])
        elif kind == "residual":
            inner = self.put("dense", source, width=width)
            inner = self.put(self.choose(("relu", "silu", "sigmoid")), inner)
            self.put("add", source, self.put("dense", inner, width=channels))
        elif kind == "shared":
            again = [op for op in self.ops if op.kind == "dense" and self.params[op.params[0]][0] == channels]
            if again:
                self.put("dense", source, params=self.choose(again).params)
        elif kind == "grouped conv":
            groups = self.choose([g for g in (1, 2, 4, channels) if channels % g == 0])
            name = f"p{len(self.params)}_grouped"
            self.params[name] = (3, 3, channels // groups, groups * self.choose((1, 2)))
            self.put(kind, source, params=(name,), options=(groups,))
        elif kind in ("group norm", "shuffle"):
            self.put(kind, source, options=(2,))
        else:
            self.put(kind, source, width=width)

    def join(self, kind, source, others):
        other = self.choose(others)
        if kind == "concat":
            if self.values[source][-1] + self.values[other][-1] <= 12:
                self.put("concat", source, other)
            return
        # A difference always has parameters of its own, or it might be zero for all parameters.
        if self.values[other] != self.values[source] or kind == "sub":
            other = self.put("linear", other, width=self.values[source][-1])
        self.put(kind, source, other)

    def finish(self, num_outputs):
        """Reads every value that nothing has read, so that every parameter matters to some output."""
        loose = [i for i in range(len(self.values)) if i not in self.used]
        outputs = []
        for number in range(min(num_outputs, len(loose))):
            share = loose[number::num_outputs]
            vectors = [self.put("mean", i) if len(self.values[i]) > 2 else i for i in share]
            if len(vectors) > 1 and self.choose((True, False)):
                vectors = [self.put("sum", *(self.put("linear", i, width=3) for i in vectors))]
            joined = self.put("concat", *vectors) if len(vectors) > 1 else vectors[0]
            outputs.append(self.put("dense", joined, width=2))
        return Network(tuple(self.ops), dict(self.params), tuple(outputs))


@st.composite
def networks(draw):
    builder = Builder(draw)
    for _ in range(draw(st.integers(3, 40))):
        builder.step()
    return builder.finish(draw(st.integers(1, 3)))


def draw_params(network, seed):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape) * (2 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.5))
        for name, shape in network.shapes.items()
    }


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True), quick_compilation():
        yield


def check_network(network, seed):
    try:
        space = jasgnas.search_space(
            network, jax.ShapeDtypeStruct((BATCH, 4, 4, 3), jnp.float64), params=draw_params(network, seed)
        )
    except jasgnas.NoRemovableStructureError:
        return
    params = draw_params(network, seed)
    x = random_input((BATCH, 4, 4, 3), jnp.float64, seed)
    assert_disjoint(space, params)
    for group in space.groups:
        assert_zero_invariant(space, group, space.zero(params, [group.index]), x)
    largest = tuple(sorted(space.largest_removal))
    for removed in sorted({largest, random_valid(space, seed)}):
        zeroed = space.zero(params, removed)
        expected = network(zeroed, x)
        sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed)
        assert error(sub_fn(sub_params, x), expected) < 1e-10, removed
        assert_varied(network, space, removed, expected, x)
        if removed == largest:  # gradients take longest
            assert_nothing_idle(sub_fn, sub_params, x)


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_generated_networks(part):
    """Each part draws networks of its own, the same ones every time, and can run on a core of its own."""

    @hypothesis.seed(part)
    @hypothesis.settings(
        max_examples=-(-NUM_NETWORKS // NUM_PARTS),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(network=networks(), seed=st.integers(0, 2**16))
    def check(network, seed):
        check_network(network, seed)

    check()


def random_valid(space, seed):
    chosen = ()
    for index in np.random.default_rng(seed).permutation(len(space.groups)):
        if space.is_valid((*chosen, index)) and len(chosen) < 1 + seed % len(space.groups):
            chosen = (*chosen, int(index))
    return tuple(sorted(chosen))


def assert_disjoint(space, params):
    """No entry of a parameter belongs to two groups; so none contains another."""
    covered = {name: np.zeros(array.shape, int) for name, array in params.items()}
    for group in space.groups:
        assert group.slices
        for part in group.slices:
            covered[part.path][part.indices] += 1
    assert all(np.max(count, initial=0) <= 1 for count in covered.values())
    total = sum(int(count.sum()) for count in covered.values())
    assert total == sum(group.num_params for group in space.groups)


def assert_zero_invariant(space, group, params, x):
    """With the group at zero, its structure's output is zero, whatever the input."""
    program = space.graph.program
    operator = space.graph.operators[space.graph.segments[group.segment].operators[-1]]
    env = dict(program.constants)
    leaves = [params[leaf.path] for leaf in space.leaves]
    env.update(zip(program.inputs, [*leaves, x * 3 + 1], strict=True))
    for position, eqn in enumerate(program.equations):
        results = eqn.bind(*(atom.value if isinstance(atom, Literal) else env[atom] for atom in eqn.inputs))
        env.update(zip(eqn.outputs, results, strict=True))
        if position == operator.equations[-1]:
            assert not np.any(results[0]), group.paths
            return


def assert_varied(network, space, removed, outputs, x):
    """Every output still varies with the input: it differs between the examples of a batch."""
    for seed in range(8):
        still = [name for name, y in outputs.items() if np.ptp(np.asarray(y), axis=0).max() <= 1e-13 * np.abs(y).max()]
        if not still:
            return
        # Relus may all be off with some parameters.
        outputs = network(space.zero(draw_params(network, 1000 + seed), removed), x)
    raise AssertionError(f"{removed} is said to be valid, but {still} does not vary with the input")


def assert_nothing_idle(sub_fn, sub_params, x):
    idle = set(sub_params)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = {name: jnp.asarray(rng.normal(size=array.shape)) for name, array in sub_params.items()}
        grads = jax.grad(lambda params: combination(sub_fn(params, x)))(drawn)
        idle &= {name for name, grad in grads.items() if not np.any(grad)}
        if not idle:
            return
    raise AssertionError(f"the sub-network ignores {sorted(idle)}")


def test_generator_makes_what_it_promises():
    """The networks hold every operator, and most of them have several groups."""
    seen, sizes = set(), []

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=300, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(network=networks())
    def collect(network):
        seen.update(op.kind for op in network.ops)
        sizes.append(len(network.ops))

    collect()
    assert seen == set(OPERATORS)
    assert max(sizes) > 40
