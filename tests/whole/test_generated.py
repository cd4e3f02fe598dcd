"""Networks that nobody thought of: random graphs of operators, each searched, reduced and compared.

The first forty are the same in every run. The others are new in every run, but where the variable CI is set: pytest's
header and the output of a failed test name the seed that draws them again, `JASGNAS_SEED=7 pytest tests`. More of them
are tried with `JASGNAS_NETWORKS=1000`, and more with channels with `JASGNAS_CHANNELS=1000`. Each takes about half a
second: NumPy computes most of it, since XLA would spend seconds on compiling operators at new shapes.
"""

import os
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas.program.jaxpr import Literal
from tests.networks import error, random_input
from tests.numpy_programs import computed, results, run
from tests.toy_models import conv, norm

NUM_FIXED = 40
NUM_NEW = int(os.environ.get("JASGNAS_NETWORKS", "20"))
NUM_CHANNELS = int(os.environ.get("JASGNAS_CHANNELS", "100"))
SEED = int(os.environ["JASGNAS_SEED"])  # drawn by conftest.py unless it is given, once for all processes
NUM_PARTS = 5
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
        return self.walk(params, x, applied)

    def computed(self, params, x):
        """What it returns, by NumPy."""
        return self.walk(params, x, computed_by_numpy)

    def walk(self, params, x, results_of):
        values = [x]
        for op in self.ops:
            values += results_of(op.kind, self.operands(op, params, values), op.options)
        first, *others = (values[index] for index in self.outputs)
        return {"main": first, "auxiliary": {str(number): value for number, value in enumerate(others)}}

    def operands(self, op, params, values):
        """What an operator is applied to, given the values before it."""
        return [*(values[i] for i in op.sources), *(params[name] for name in op.params)]


def applied(kind, operands, options):
    """The results of an operator."""
    result = OPERATORS[kind](*operands, *options)
    return result if isinstance(result, tuple) else (result,)


def computed_by_numpy(kind, operands, options):
    return run(traced(kind, tuple(map(np.shape, operands)), options), operands)


@cache
def traced(kind, shapes, options):
    """An operator on operands of some shapes, which many networks have in common, as a program."""
    avals = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    return jax.make_jaxpr(lambda *operands: applied(kind, operands, options))(*avals)


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


def attention(x, context, q, k, v, o):
    """Two heads; each token of `x` looks at the tokens of `context`."""
    heads = [(y @ w).reshape(*y.shape[:-1], 2, -1) for y, w in ((x, q), (context, k), (context, v))]
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, heads[2]).reshape(*x.shape[:-1], -1) @ o


def scan_layers(x, w, b):
    return jax.lax.scan(lambda x, layer: (x + jnp.tanh(x @ layer[0] + layer[1]), None), x, (w, b))[0]


@partial(jax.jit, static_argnames="is_reverse")
def recurrent(x, w, u, b, is_reverse):
    """A gated cell along the first axis after that of the batch; its state starts at zero."""

    def cell(state, row):
        gate = jax.nn.sigmoid(row + state)
        state = gate * state + (1 - gate) * jnp.tanh(row @ w + state @ u + b)
        return state, state

    rows = jnp.moveaxis(x, 1, 0)
    return jnp.moveaxis(jax.lax.scan(cell, jnp.zeros_like(rows[0]), rows, reverse=is_reverse)[1], 0, 1)


@partial(jax.jit, static_argnames="is_reverse")
def residual_cell(x, w, u, v, is_reverse):
    """A cell that adds to its input: branches inside of a loop."""

    def cell(state, row):
        state = jnp.tanh(row @ w + state @ u)
        return state, row + state @ v

    rows = jnp.moveaxis(x, 1, 0)
    return jnp.moveaxis(jax.lax.scan(cell, jnp.zeros_like(rows[0]), rows, reverse=is_reverse)[1], 0, 1)


def class_token(x, token):
    return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])), x], 1)


OPERATORS = {
    "dense": lambda x, w, b: x @ w + b,
    "linear": lambda x, w: x @ w,
    "embed": lambda x, w: w[jnp.argmax(x, -1)],
    "conv": lambda x, w, b: conv(x, w) + b,
    "strided conv": lambda x, w: conv(x, w, window_strides=(2, 2)),
    "transposed conv": lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "SAME"),
    "grouped conv": lambda x, w, groups: conv(x, w, feature_group_count=groups),
    "dilated conv": lambda x, w: conv(x, w, rhs_dilation=(2, 2)),
    "batch norm": lambda x, mean, var, scale, bias: (x - mean) * (jax.lax.rsqrt(jnp.square(var) + 1e-3) * scale) + bias,
    "layer norm": norm,
    "rms norm": lambda x, scale: x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-3) * scale,
    "group norm": partial(group_norm, groups=2),
    "instance norm": lambda x, scale, bias: group_norm(x, scale, bias, x.shape[-1]),
    "scale": lambda x, scale: x * scale,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "relu6": jax.nn.relu6,
    "softmax": jax.nn.softmax,
    "max pool": lambda x: pool(x, jax.lax.max, -np.inf),
    "avg pool": lambda x: pool(x, jax.lax.add, 0.0) / 9,
    "mean": lambda x: jnp.mean(x, tuple(range(1, x.ndim - 1))),
    "flatten": lambda x: x.reshape(x.shape[0], -1),
    "tokens": lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
    "transpose": lambda x: jnp.swapaxes(x, 1, 2),
    "resize": lambda x: jax.image.resize(x, (x.shape[0], 6 - x.shape[1], 6 - x.shape[2], x.shape[3]), "bilinear"),
    "shuffle": shuffle,
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "sort": lambda x: jnp.sort(x, 1),
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "drop path": lambda x, rate: x * (jnp.arange(x.shape[0]) % rate != 0).reshape(-1, *(1,) * (x.ndim - 1)),
    "concat": lambda *xs: jnp.concatenate(xs, -1),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": jnp.maximum,
    "sum": lambda *xs: sum(xs),
    "gate": lambda x, w: x * jax.nn.sigmoid(jnp.mean(x, tuple(range(1, x.ndim - 1)), keepdims=True) @ w),
    "glu": jax.nn.glu,
    "halves": lambda x: x[..., : x.shape[-1] // 2] * x[..., x.shape[-1] // 2 :],
    "rolled product": lambda x: x * jnp.roll(x, x.shape[-1] // 2, -1),
    "inner": lambda a, b: jnp.einsum("...i,...i->...", a, b)[..., None],
    "swiglu": lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down,
    "attention": lambda x, *ws: attention(x, x, *ws),
    "cross attention": attention,
    "class token": class_token,
    "first token": lambda x: x[:, 0],
    "scan": scan_layers,
    "recurrent": recurrent,
    "residual cell": residual_cell,
    "roll": lambda x: jnp.roll(x, 1, -1),
    "mask": lambda x: x * (jnp.mean(x, -1, keepdims=True) > 0),
    "split": lambda x: tuple(jnp.split(x, 2, -1)),
    "pad": lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)]),
    "slice": lambda x: x[..., 1:],
}  # fmt: skip
PARAMETERS = {
    "dense": lambda c, n: [(c, n), (n,)],
    "linear": lambda c, n: [(c, n)],
    "embed": lambda c, n: [(c, n)],
    "conv": lambda c, n: [(3, 3, c, n), (n,)],
    "strided conv": lambda c, n: [(3, 3, c, n)],
    "transposed conv": lambda c, n: [(3, 3, c, n)],
    "dilated conv": lambda c, n: [(3, 3, c, n)],
    "batch norm": lambda c, _: [(c,)] * 4,
    "layer norm": lambda c, _: [(c,)] * 2,
    "rms norm": lambda c, _: [(c,)],
    "group norm": lambda c, _: [(c,)] * 2,
    "instance norm": lambda c, _: [(c,)] * 2,
    "scale": lambda c, _: [(c,)],
    "gate": lambda c, _: [(c, c)],
    "swiglu": lambda c, _: [(c, 4), (c, 4), (4, c)],
    "attention": lambda c, _: [(c, 4), (c, 4), (c, 4), (4, c)],
    "cross attention": lambda c, _: [(c, 4), (c, 4), (c, 4), (4, c)],
    "class token": lambda c, _: [(1, 1, c)],
    "scan": lambda c, _: [(2, c, c), (2, c)],
    "recurrent": lambda c, _: [(c, c), (c, c), (c,)],
    "residual cell": lambda c, _: [(c, c), (c, c), (c, c)],
}
# Joints that a lost input does not kill; every other operator needs all that it reads.
ADDITIVE = ("concat", "add", "sub", "sum")
# Kinds by the number of axes of what they read.
ANY = ("dense", "linear", "embed", "relu", "gelu", "sigmoid", "silu", "tanh", "relu6", "softmax", "where", "drop path",
       "batch norm", "layer norm", "rms norm", "group norm", "scale", "concat", "add", "sub", "mul", "maximum",
       "concat", "add", "mul", "residual", "residual", "tied", "shared", "dense", "swiglu", "glu", "split", "shuffle",
       "pad", "slice", "gate", "scan", "halves", "rolled product", "inner", "roll", "mask")  # fmt: skip
TOKENS = (
    *ANY,
    "mean",
    "flatten",
    "cumsum",
    "sort",
    "recurrent",
    "residual cell",
    *("attention", "cross attention", "class token", "first token") * 2,
)
IMAGES = (*ANY, "mean", "flatten", "cumsum", "recurrent", *("conv", "grouped conv") * 2, "dilated conv", "strided conv",
          "transposed conv", "instance norm", "max pool", "avg pool", "transpose", "resize", "tokens",
          "tokens", "residual cell")  # fmt: skip
KINDS = {2: ANY, 3: TOKENS, 4: IMAGES}


class Builder:
    """Grows a network operator by operator; every choice is one that hypothesis can make smaller."""

    def __init__(self, draw):
        self._draw = draw
        self.ops, self.params, self.values = [], {}, [(BATCH, 4, 4, 3)]
        self.used = set()
        # The kinds and parameters of residual branches, by the number of channels.
        self.branches = {}

    def choose(self, options):
        return self._draw(st.sampled_from(list(options)))

    def put(self, kind, *sources, params=None, width=None, options=()):
        """Appends an operator, its parameters new ones unless given, and returns the index of its first result."""
        shape = self.values[sources[0]]
        if params is None:
            new = PARAMETERS.get(kind, lambda *_: [])(shape[-1], width)
            params = tuple(f"p{len(self.params) + i}_{kind.replace(' ', '_')}" for i in range(len(new)))
            self.params.update(zip(params, new, strict=True))
        self.ops.append(Op(kind, sources, tuple(params), options))
        self.used.update(sources)
        operands = (*(self.values[i] for i in sources), *(self.params[name] for name in params))
        shapes = [aval.shape for aval in traced(kind, operands, options).out_avals]
        self.values += shapes
        return len(self.values) - len(shapes)

    def step(self):
        source = self.choose(range(max(0, len(self.values) - 6), len(self.values)))
        shape = self.values[source]
        kind = self.possible(self.choose(KINDS[len(shape)]), shape)
        channels = shape[-1]
        width = self.choose((2, 4))
        if kind in ("concat", "add", "sub", "mul", "maximum", "inner"):
            self.join(kind, source, [i for i, s in enumerate(self.values) if s[:-1] == shape[:-1]])
        elif kind == "cross attention":
            others = [i for i, s in enumerate(self.values) if len(s) == 3 and s[-1] == channels]
            self.branch(source, kind, source, self.choose(others))
        elif kind in ("attention", "swiglu"):
            self.branch(source, kind, source)
        elif kind == "recurrent":
            again = [op for op in self.ops if op.kind == kind and self.params[op.params[0]][0] == channels]
            params = self.choose((None, None, *again)) and self.choose(again).params
            result = self.put(kind, source, params=params, options=(self.choose((False, True)),))
            self.put("add", source, result)
        elif kind == "residual cell":
            self.put(kind, source, options=(self.choose((False, True)),))
        elif kind == "residual":
            self.residual(source, self.choose(("relu", "silu", "sigmoid")), width)
        elif kind == "tied":
            if again := self.branches.get(channels):
                self.residual(source, *self.choose(again))
        elif kind == "shared":
            again = [op for op in self.ops if op.kind == "dense" and self.params[op.params[0]][0] == channels]
            if again:
                self.put("dense", source, params=self.choose(again).params)
        elif kind == "grouped conv":
            groups = self.choose([g for g in (1, 2, 4, channels) if channels % g == 0])
            name = f"p{len(self.params)}_grouped"
            self.params[name] = (3, 3, channels // groups, groups * self.choose((1, 2)))
            self.put(kind, source, params=(name,), options=(groups,))
        elif kind in ("shuffle", "drop path"):
            self.put(kind, source, options=(2,))
        else:
            self.put(kind, source, width=width)

    def possible(self, kind, shape):
        """Returns the kind, or another one if the shape does not allow it."""
        channels = shape[-1]
        if kind in ("strided conv", "tokens") and shape[1] == 2:
            return "transposed conv"
        if kind == "transposed conv" and shape[1] == 4:
            return "strided conv"
        if kind == "flatten" and np.prod(shape[1:]) > 64:
            return "gelu"
        if kind in ("shuffle", "split", "glu", "halves", "group norm") and (channels % 2 or channels < 4):
            return "relu"
        if kind in ("layer norm", "softmax", "embed") and channels < 3:
            return "rms norm"
        if kind == "class token" and shape[1] > 16:
            return "first token"
        return "pad" if kind == "slice" and channels < 3 else kind

    def branch(self, source, kind, *sources):
        """Puts an operator that keeps the shape of the first source, beside a shortcut most of the time."""
        result = self.put(kind, *sources)
        if self.choose((True, True, False)):
            self.put("add", source, result)

    def residual(self, source, activation, width, first=None, second=None):
        """Puts a branch of two dense layers beside the identity, of parameters that another one has, too, if given."""
        inner = self.put("dense", source, width=width, params=first)
        first = self.ops[-1].params
        inner = self.put(activation, inner)
        self.put("add", source, self.put("dense", inner, width=self.values[source][-1], params=second))
        self.branches.setdefault(self.values[source][-1], []).append((activation, width, first, self.ops[-2].params))

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
    for _ in range(draw(st.integers(3, 34))):
        builder.step()
    return builder.finish(draw(st.integers(1, 3)))


def draw_params(network, seed):
    rng = np.random.default_rng(seed)
    return {
        name: jax.device_put(rng.normal(size=shape) * (2 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.5))
        for name, shape in network.shapes.items()
    }


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def check_network(network, seed):
    params = draw_params(network, seed)
    x = random_input((BATCH, 4, 4, 3), jnp.float64, seed)
    brute = Brute(network, x)
    try:
        space = jasgnas.search_space(network, jax.ShapeDtypeStruct(x.shape, x.dtype), params=params)
    except jasgnas.NoRemovableStructureError:
        return
    except jasgnas.DisconnectedOutputError:
        assert not brute.is_valid(lambda params: params)
        return
    assert_disjoint(space, params)
    assert_zero_invariant(space, params, x)
    for removed in sample_sets(space, seed):
        assert space.is_valid(removed) == brute.is_valid(partial(space.zero, indices=removed)), removed
        if space.is_valid(removed):
            space.require_valid(removed)  # the zeros followed through the whole network do not say otherwise
    largest = tuple(sorted(space.largest_removal))
    for removed in sorted({largest, random_valid(space, seed)}):
        zeroed = space.zero(params, removed)
        sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed)
        # One of the two as it is used; it is called often, too.
        call = jax.jit(sub_fn) if removed == largest else partial(computed, sub_fn)
        assert error(call(sub_params, x), network.computed(zeroed, x)) < 1e-10, removed
        assert jasgnas.count_params(sub_params) <= space.subnet_size(removed)[0]
        if removed == largest:
            assert_nothing_idle(network, call, sub_params, x)


@pytest.mark.parametrize("part", range(NUM_PARTS))
@pytest.mark.parametrize(("num", "seed"), [(NUM_FIXED, 0), (NUM_NEW, SEED)], ids=["fixed", "new"])
def test_generated_networks(num, seed, part):
    """Each part draws networks of its own and can run on a core of its own."""
    print(f"JASGNAS_SEED={SEED} JASGNAS_NETWORKS={NUM_NEW} draws these networks again")

    @hypothesis.seed(seed * NUM_PARTS + part)
    @hypothesis.settings(
        max_examples=-(-num // NUM_PARTS),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(network=networks(), seed=st.integers(0, 2**16))
    def check(network, seed):
        check_network(network, seed)

    check()


def check_channels(network, seed):
    """Of each dimension some channels go, and some structures: what is left is exact, valid and as large as said."""
    params = draw_params(network, seed)
    x = random_input((BATCH, 4, 4, 3), jnp.float64, seed)
    try:
        space = jasgnas.search_space(network, jax.ShapeDtypeStruct(x.shape, x.dtype), params=params, channels=True)
    except (jasgnas.NoRemovableStructureError, jasgnas.DisconnectedOutputError):
        return
    brute = Brute(network, x)
    for number in range(2):
        removed = random_mixture(space, seed + number)
        assert space.is_valid(removed)
        assert brute.is_valid(partial(space.zero, indices=removed)), removed
        zeroed = space.zero(params, removed)
        sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed, allow_nothing=True)
        assert error(computed(sub_fn, sub_params, x), network.computed(zeroed, x)) < 1e-10, removed
        assert jasgnas.count_params(sub_params) <= space.subnet_size(removed)[0], removed
    rng = np.random.default_rng(seed)
    for share in (0.3, 0.6):
        structures = np.flatnonzero(rng.random(len(space.structures)) < share).tolist()
        removed = structures + random_channels(space, rng)
        assert space.is_valid(removed) == brute.is_valid(partial(space.zero, indices=removed)), removed
    for dimension in space.dimensions:
        assert space.is_valid(dimension.groups[1:])
        if space.is_valid(dimension.groups):
            # A product of what pads leave apart is zero anyway: all that makes channels of it may go.
            for drawn, shown in brute.draws:
                zeroed = space.zero(drawn, dimension.groups)
                assert error(network.computed(zeroed, shown), network.computed(drawn, shown)) < 1e-12


def random_mixture(space, seed):
    """About half of the structures that can go together, and a part of each dimension."""
    rng = np.random.default_rng(seed)
    removed = []
    for index in rng.permutation(len(space.structures)).tolist():
        if rng.random() < 0.5 and space.is_valid([*removed, index]):
            removed.append(index)
    return removed + random_channels(space, rng)


def random_channels(space, rng):
    removed = []
    for dimension in space.dimensions:
        removed += rng.permutation(dimension.groups)[: rng.integers(0, dimension.size)].tolist()
    return removed


def random_valid(space, seed):
    chosen = ()
    for index in np.random.default_rng(seed).permutation(len(space.groups)):
        if space.is_valid((*chosen, index)) and len(chosen) < 1 + seed % len(space.groups):
            chosen = (*chosen, int(index))
    return tuple(sorted(chosen))


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_generated_networks_with_channels(part):

    @hypothesis.seed(part)
    @hypothesis.settings(
        max_examples=-(-NUM_CHANNELS // NUM_PARTS),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(network=networks(), seed=st.integers(0, 2**16))
    def check(network, seed):
        check_channels(network, seed)

    check()


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


def assert_zero_invariant(space, params, x):
    """With a group at zero, the output of its structure is zero, whatever it reads."""
    program = space.graph.program
    values = dict(program.constants)
    # Where a loop has been looked into, the number of the iteration is an input, too.
    values.update(zip(program.inputs, [*(params[leaf.path] for leaf in space.leaves), x * 3 + 1, 0], strict=False))
    evaluate(program.equations, values)
    for group, segment in [(each, segment) for each in space.groups for segment in each.segments]:
        operators = [space.graph.operators[index] for index in space.graph.segments[segment].operators]
        own = {position for operator in operators for position in operator.equations}
        zeroed = space.zero(params, [group.index])
        paths = {part.path for part in group.slices}
        env = dict(values)
        changed = set()
        for var, leaf in zip(program.inputs, space.leaves, strict=False):
            if leaf.path in paths:
                env[var] = zeroed[leaf.path]
                changed.add(var)
        for position, eqn in enumerate(program.equations):
            on_leaves = all(var in space.graph.independent for var in eqn.outputs)
            if position in own or (on_leaves and not changed.isdisjoint(eqn.inputs)):
                evaluate([eqn], env)
                changed.update(eqn.outputs)
        assert not any(np.any(env[var]) for var in program.equations[max(own)].outputs), group.paths


def evaluate(equations, env):
    """Evaluates equations, in order."""
    for eqn in equations:
        operands = [np.asarray(atom.value if isinstance(atom, Literal) else env[atom]) for atom in eqn.inputs]
        found = results(eqn.primitive, eqn.params, operands, eqn.out_avals, eqn.bind)
        env.update(zip(eqn.outputs, found, strict=True))


class Brute:
    """Judges validity by running a network, operator by operator, and seeing what still varies with the input.

    What varies does so between the examples of a batch. An operator that is not additive has lost an input if that is
    no longer present: then its result counts for nothing either, though it may vary still (a product of which one
    factor is left, scaled by the biases that are left of the other). What is present is seen in a second run, in which
    the class tokens vary as well: they are there whatever is removed, only not made from the input.
    """

    def __init__(self, network, x):
        self.network = network
        # Inputs of either sign alone, too: the least entry of what a relu returns is hardly ever but zero. And inputs
        # of which another channel is the largest in each example, and many of them: an index of the largest hardly
        # varies.
        spread = 4 * random_input((BATCH, 1, 1, x.shape[-1]), x.dtype, 7)
        shifts = (0.0, 0.0, 3.0, -3.0, spread, -spread)
        number = 24 if any(op.kind == "embed" for op in network.ops) else len(shifts)
        self.draws = [(draw_params(network, 1000 + seed), x + shifts[seed % len(shifts)]) for seed in range(number)]

    @cached_property
    def full(self):
        """Which values are present in the full network; an instance norm may make a constant of anything."""
        return np.logical_or.reduce([self.run(params, x)[0] for params, x in self.draws[:2]])

    def is_valid(self, change):
        # Relus may all be off with some parameters.
        missing = np.ones(len(self.network.outputs), bool)
        for params, x in self.draws:
            missing &= ~self.run(change(params), x, self.full)[1][list(self.network.outputs)]
            if not missing.any():
                return True
        return False

    def run(self, params, x, full=None):
        """Tells which values are present, and which vary with the input."""
        present, depends = [True], [True]
        values, shown = [x], [x]
        for op in self.network.ops:
            lost = full is not None and op.kind not in ADDITIVE and any(full[i] and not present[i] for i in op.sources)
            # What a gated cell takes of its input is a product, lost without the factor that it makes of it.
            lost |= full is not None and op.kind == "recurrent" and not np.any(params[op.params[0]])
            for seen, found, tokens in ((shown, present, True), (values, depends, False)):
                made = computed_by_numpy(op.kind, self.network.operands(op, params, seen), op.options)
                if tokens and op.kind == "class token":
                    token = random_input((BATCH, 1, made[0].shape[-1]), x.dtype)
                    made = [np.concatenate([token, made[0][:, 1:]], 1)]
                if lost:
                    made = [np.broadcast_to(y[:1], y.shape) for y in made]
                seen += made
                found += [not lost and varies(y) for y in made]
        return np.array(present), np.array(depends)


def varies(y):
    return bool(np.ptp(y, axis=0).max() > 1e-12 * np.abs(y).max())


def sample_sets(space, seed):
    """Sets of groups, valid and not: the largest, some with one more, and random ones."""
    rng = np.random.default_rng(seed)
    largest = set(space.largest_removal)
    chosen = [largest, *(largest | {int(rng.integers(len(space.groups)))} for _ in range(2))]
    chosen += [set(np.flatnonzero(rng.random(len(space.groups)) < share).tolist()) for share in (0.3, 0.5, 0.7)]
    return sorted({tuple(sorted(groups)) for groups in chosen})


def assert_nothing_idle(network, sub_fn, sub_params, x):
    """Every parameter matters that matters in the network: with another value of it alone, the output is another one.

    Not all do: an image of 2 × 2 pixels is constant after a mean over 3 × 3, and an instance norm of it has no use for
    its scale.
    """
    if idle := idle_params(sub_fn, sub_params, x):
        idle -= idle_params(network.computed, {name: np.zeros(shape) for name, shape in network.shapes.items()}, x)
    assert not idle, f"the sub-network ignores {sorted(idle)}"


def idle_params(network_fn, params, x):
    """The names of the parameters without which no output changes, whatever their values.

    Some are small and some large: of a maximum one side may always be the larger, and a tanh is one soon.
    """
    idle = set(params)
    for seed in range(30):
        rng = np.random.default_rng(seed)

        def draw(shape, rng=rng):
            return rng.choice([0.03, 0.3, 3.0]) * rng.normal(size=shape)

        drawn = {name: jax.device_put(draw(array.shape)) for name, array in params.items()}
        outputs = jax.tree.leaves(network_fn(drawn, x))
        for name in sorted(idle):
            changed = jax.tree.leaves(network_fn(drawn | {name: drawn[name] + draw(drawn[name].shape)}, x))
            if any(np.any(a != b) for a, b in zip(outputs, changed, strict=True)):
                idle.remove(name)
        if not idle:
            break
    return idle


def test_generator_makes_what_it_promises():
    """The networks hold every operator, and most of them have several groups."""
    seen, sizes = set(), []

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=900, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(network=networks())
    def collect(network):
        seen.update(op.kind for op in network.ops)
        sizes.append(len(network.ops))

    collect()
    assert seen == set(OPERATORS)
    assert max(sizes) > 40
