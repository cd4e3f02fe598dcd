"""Recurrent layers and other loops whose state starts at zero; the groups are written down by hand."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from tests.space.removals import check_all_sets, drawn, held

X, OTHER = drawn(x=(2, 3, 5, 4))["x"]
OUTSIDE = drawn(stem=(4, 4), head=(4, 2))


class LinenBranch(nn.Module):
    """A recurrent layer beside the identity."""

    cell: type

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="stem")(x)
        return nn.Dense(2, name="head")(h + nn.RNN(self.cell(4), name="rnn")(h))


class LinenBothWays(nn.Module):
    """Two directions, each a structure, since what is concatenated can lose an input."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="stem")(x)
        both = nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.GRUCell(2)), name="both")(h)
        return nn.Dense(2, name="head")(both)


class NnxBranch(nnx.Module):
    def __init__(self, cell, rngs):
        self.stem, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.rnn = nnx.RNN(cell(4, 4, rngs=rngs))

    def __call__(self, x):
        h = self.stem(x)
        return self.head(h + self.rnn(h))


class NnxBothWays(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)
        self.both = nnx.Bidirectional(
            nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs), rngs=rngs), nnx.RNN(nnx.GRUCell(4, 2, rngs=rngs), rngs=rngs)
        )

    def __call__(self, x):
        return self.head(self.both(self.stem(x)))


def moved(params):
    """No parameter is what it is initialised with, biases are not zero."""
    leaves, tree = jax.tree.flatten(params)
    noise = [0.2 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    return tree.unflatten([leaf + each for leaf, each in zip(leaves, noise, strict=True)])


def linen(module):
    variables = moved(jax.jit(module.init)(jax.random.key(0), X))
    return module.apply, variables


def of_nnx(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda p, x: nnx.merge(graphdef, p, rest, copy=True)(x), moved(nnx.to_pure_dict(params))


def equinox(make, has_cell=False):
    arrays, static = eqx.partition(make(4, 4, key=jax.random.key(0)), eqx.is_array)

    def fn(p, x):
        cell, h = eqx.combine(p["cell"], static), x @ p["stem"]

        def step(state, a):
            state = cell(a, state)
            return state, state[0] if has_cell else state

        start = (jnp.zeros(4), jnp.zeros(4)) if has_cell else jnp.zeros(4)
        return (h + jax.vmap(lambda h: jax.lax.scan(step, start, h)[1])(h)) @ p["head"]

    return fn, moved(OUTSIDE | {"cell": arrays})


def haiku(make):
    def fn(x):
        h = hk.Linear(4, name="stem")(x)
        cell = make(4)
        return hk.Linear(2, name="head")(
            h + hk.dynamic_unroll(cell, h, cell.initial_state(len(x)), time_major=False)[0]
        )

    transformed = hk.without_apply_rng(hk.transform(fn))
    return transformed.apply, moved(jax.jit(transformed.init)(jax.random.key(0), X))


def reversed_twice(p, x):
    """One cell in both directions: what is shared is one group over both loops."""
    h = x @ p["stem"]

    def cell(c, a):
        return (jnp.tanh(a @ p["wi"] + c @ p["wh"] + p["b"]),) * 2

    start = jnp.zeros((len(x), 4))
    rows = h.swapaxes(0, 1)
    ways = [jax.lax.scan(cell, start, rows, reverse=each)[1].swapaxes(0, 1) for each in (False, True)]
    return (h + ways[0] + ways[1]) @ p["head"]


def learned_start(p, x):
    """The state that a loop starts from is part of its group."""
    h = x @ p["stem"]
    start = jnp.broadcast_to(p["start"], (len(x), 4))
    cell = lambda c, a: (jnp.tanh(a @ p["wi"] + c @ p["wh"]),) * 2  # noqa: E731
    return (h + jax.lax.scan(cell, start, h.swapaxes(0, 1))[1].swapaxes(0, 1)) @ p["head"]


def last_state(p, x):
    """Only the last state is read, as by a classifier of sequences; with a gate of an LSTM written out."""
    h = x @ p["stem"]

    def cell(carry, a):
        c, y = carry
        f, i = jax.nn.sigmoid(a @ p["f"]), jnp.tanh(a @ p["i"] + y @ p["r"])
        c = f * c + (1 - f) * i
        return (c, jnp.tanh(c)), None

    start = (jnp.zeros((len(x), 4)),) * 2
    return (h.mean(1) + jax.lax.scan(cell, start, h.swapaxes(0, 1))[0][1]) @ p["head"]


def until_small(p, x):
    """A loop that stops when it likes keeps zeros as well."""
    h = x @ p["stem"]
    rows = jnp.tanh(h @ p["in"])
    return (h + jax.lax.while_loop(lambda c: jnp.abs(c).max() > 0.5, lambda c: 0.5 * c, rows)) @ p["head"]


def counted(p, x):
    """A loop with a counter of its own, as a `while` that reads rows has one; nothing reads where it ends."""
    h = x @ p["stem"]

    def cell(carry):
        i, y = carry
        return i + 1, jnp.tanh(h[:, i] @ p["wi"] + y @ p["wh"])

    start = 0, jnp.zeros((len(x), 4))
    return (h.mean(1) + jax.lax.while_loop(lambda carry: carry[0] < x.shape[1], cell, start)[1]) @ p["head"]


def under_a_condition(p, x):
    h = x @ p["stem"]
    return (h + jax.lax.cond(h.sum() > 1e9, jnp.tanh, jnp.sin, h @ p["a"])) @ p["head"]


def depth_by_loop(p, x):
    """No loop over time: the same block, three times."""
    block = lambda _, h: h + jnp.tanh(h @ p["wi"]) @ p["wh"]  # noqa: E731
    return jax.lax.fori_loop(0, 3, block, x @ p["stem"]) @ p["head"]


def depth_by_scan(p, x):
    """Two branches in a block, of which all intermediate results are returned."""

    def block(h, _):
        h = h + jnp.tanh(h @ p["wi"])
        return h + jnp.sin(h @ p["wh"]), h

    last, all_of_them = jax.lax.scan(block, x @ p["stem"], None, length=2)
    return (last + all_of_them.sum(0)) @ p["head"]


class LinenDepth(nn.Module):
    """Layers that share their weights, as in ALBERT (arXiv 1909.11942)."""

    @nn.compact
    def __call__(self, x):
        def block(module, h, _):
            return h + nn.Dense(4, name="down")(nn.gelu(nn.Dense(5, name="up")(h))), None

        shared = nn.scan(block, variable_broadcast="params", split_rngs={"params": False}, length=3)
        return nn.Dense(2, name="head")(shared(self, nn.Dense(4, name="stem")(x), None)[0])


PLAIN = OUTSIDE | drawn(wi=(4, 4), wh=(4, 4), b=(4,), start=(4,), f=(4, 4), i=(4, 4), r=(4, 4), a=(4, 4))
PLAIN["in"] = PLAIN["a"]


def plain(fn, *names):
    return fn, {name: PLAIN[name] for name in ("stem", "head", *names)}


LSTM = [{"ii", "if", "ig", "io", "hi", "hf", "hg", "ho"}]
NETWORKS = {
    "linen GRU": (lambda: linen(LinenBranch(nn.GRUCell)), [{"ir", "iz", "in", "hr", "hz", "hn"}]),
    "linen vanilla": (lambda: linen(LinenBranch(nn.SimpleCell)), [{"i", "h"}]),
    "linen both ways": (lambda: linen(LinenBothWays()), [*LSTM, {"ir", "iz", "in", "hr", "hz", "hn"}]),
    "nnx LSTM": (lambda: of_nnx(NnxBranch(nnx.OptimizedLSTMCell, nnx.Rngs(0))), [{"dense_i", "dense_h"}]),
    "nnx GRU": (lambda: of_nnx(NnxBranch(nnx.GRUCell, nnx.Rngs(0))), [{"dense_i", "dense_h"}]),
    "nnx vanilla": (lambda: of_nnx(NnxBranch(nnx.SimpleCell, nnx.Rngs(0))), [{"dense_i", "dense_h"}]),
    "nnx both ways": (
        lambda: of_nnx(NnxBothWays(nnx.Rngs(0))),
        [{"ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"}, {"dense_i", "dense_h"}],
    ),
    "equinox LSTM": (lambda: equinox(eqx.nn.LSTMCell, has_cell=True), [{"weight_ih", "weight_hh", "bias"}]),
    "equinox GRU": (lambda: equinox(eqx.nn.GRUCell), [{"weight_ih", "weight_hh", "bias", "bias_n"}]),
    "haiku LSTM": (lambda: haiku(hk.LSTM), [{"linear"}]),
    "haiku GRU": (lambda: haiku(hk.GRU), [{"w_i", "w_h", "b"}]),
    "haiku vanilla": (lambda: haiku(hk.VanillaRNN), [{"linear", "linear_1"}]),
    "one cell in both directions": (lambda: plain(reversed_twice, "wi", "wh", "b"), [{"wi", "wh", "b"}]),
    "learned start": (lambda: plain(learned_start, "wi", "wh", "start"), [{"wi", "wh", "start"}]),
    "last state": (lambda: plain(last_state, "f", "i", "r"), [{"f", "i", "r"}]),
    "while": (lambda: plain(until_small, "in"), [{"in"}]),
    "while with a counter": (lambda: plain(counted, "wi", "wh"), [{"wi", "wh"}]),
    "depth by a loop": (lambda: plain(depth_by_loop, "wi", "wh"), [{"wi", "wh"}]),
    "depth by a scan": (lambda: plain(depth_by_scan, "wi", "wh"), [{"wi"}, {"wh"}]),
    "linen depth": (lambda: linen(LinenDepth()), [{"up", "down"}]),
    "condition": (lambda: plain(under_a_condition, "a"), [{"a"}]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_whose_state_stays_zero_is_a_structure(name):
    make, expected = NETWORKS[name]
    fn, params = make()
    space = jasgnas.search_space(fn, X, params=params)
    modules = [{_module(path, own) for path in own} for own in held(space)]
    assert modules == expected
    assert check_all_sets(space, fn, params, (X,), (OTHER,)) == 2 ** len(expected) - 1 - (
        "both" in name and "ways" in name
    )


def _module(path, group):
    """Returns the last name of a path, or that of the module where each module holds several parameters."""
    *modules, name = path.split("/")
    return modules[-1] if name in ("kernel", "b" if len(group) != 3 else "", "w", "bias") and len(modules) > 1 else name


def test_a_loop_is_as_large_as_it_is_beside_channels():
    fn, params = plain(last_state, "f", "i", "r")
    space = jasgnas.search_space(fn, X, params=params, channels=True)
    assert len(space.structures) == 1
    for removed in ((), (0,)):
        subnet, left = jasgnas.construct_subnet(space, space.zero(params, removed), allow_nothing=True)
        sizes = jasgnas.count_params(left), jasgnas.count_macs(subnet, X, params=left)
        assert space.subnet_size(removed) == sizes


def test_a_state_that_does_not_start_at_zero_is_no_zero():
    def fn(p, x):
        h = x @ p["stem"]
        cell = lambda c, a: (0.5 * c * jnp.exp(a @ p["a"]),) * 2  # noqa: E731
        return (h + jax.lax.scan(cell, jnp.ones((len(x), 4)), h.swapaxes(0, 1))[1].swapaxes(0, 1)) @ p["head"]

    with pytest.raises(jasgnas.NoRemovableStructureError, match="scan is not zero where its parameters are"):
        jasgnas.search_space(fn, X, params=plain(fn, "a")[1])


def test_a_state_is_zero_only_if_all_that_is_carried_into_it_is():
    """The second state takes over the first one, which counts up, an iteration later."""

    def fn(p, x):
        h = x @ p["stem"]

        def cell(carry, a):
            first, second = carry
            return (first + 1, first), jnp.maximum(a @ p["a"], second)

        start = jnp.zeros(()), jnp.zeros(())
        return (h + jax.lax.scan(cell, start, h)[1]) @ p["head"]

    with pytest.raises(jasgnas.NoRemovableStructureError):
        jasgnas.search_space(fn, X, params=plain(fn, "a")[1])
    _, params = plain(fn, "a")
    zeroed = params | {"a": 0 * params["a"]}
    h = X @ params["stem"]
    assert np.abs(fn(zeroed, X) - h @ params["head"]).max() > 1
