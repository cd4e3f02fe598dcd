"""Residual branches inside of the cells of recurrent layers; the groups are written down by hand."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from tests.space.removals import check_all_sets, drawn, held

X, OTHER = drawn(x=(2, 3, 5, 4))["x"]
PLAIN = drawn(stem=(4, 4), head=(4, 2), w=(4, 4), u=(4, 4), b=(4,), up=(4, 6), down=(6, 4), start=(4, 4), gate=(4, 4))


def over_time(cell, start, x, **options):
    return jax.lax.scan(cell, start, x.swapaxes(0, 1), **options)[1].swapaxes(0, 1)


def around_a_cell(p, x):
    """y = x + f(x, h): what the cell adds of its input, and of its state, goes by itself; the biases stay."""

    def cell(h, a):
        h = jnp.tanh(a @ p["w"] + h @ p["u"] + p["b"])
        return h, a + h

    return over_time(cell, jnp.zeros((len(x), 4)), x @ p["stem"]) @ p["head"]


def of_the_state(p, x):
    """h' = h + f(h), from the last row to the first."""

    def cell(h, a):
        h = h * 0.5 + a @ p["w"]
        h = h + jnp.tanh(h @ p["up"]) @ p["down"]
        return h, h

    return over_time(cell, jnp.zeros((len(x), 4)), x @ p["stem"], reverse=True) @ p["head"]


def gated_in_a_cell(p, x):
    """The product with a gate dies with the branch, and the gate is of no use then."""

    def cell(h, a):
        h = h + a
        return h + jax.nn.sigmoid(h @ p["gate"]) * jnp.tanh(h @ p["up"] @ p["down"]), None

    return jax.lax.scan(cell, x[:, 0] @ p["start"], x.swapaxes(0, 1))[0] @ p["head"]


def many_iterations(p, x):
    """A block that is applied too often to be unrolled."""
    return jax.lax.fori_loop(0, 100, lambda _, h: h + 0.01 * jnp.tanh(h @ p["w"]), x @ p["stem"]) @ p["head"]


def delayed(p, x):
    """What is carried is returned an iteration, and another one, later: the first rows are constants."""

    def cell(carry, a):
        first, second = carry
        return (a + jnp.tanh(a @ p["w"]), first + first @ p["u"]), second

    return over_time(cell, (jnp.ones((len(x), 4)),) * 2, x @ p["stem"]) @ p["head"]


def of_use_at_the_end(p, x):
    """What is carried beside the state is computed in every iteration, and read after the last."""

    def cell(carry, a):
        h = 0.5 * carry[0] + a
        h = h + jnp.tanh(h @ p["u"])
        return (h, h + jnp.tanh(h @ p["w"])), None

    return jax.lax.scan(cell, (jnp.ones((len(x), 4)),) * 2, (x @ p["stem"]).swapaxes(0, 1))[0][1] @ p["head"]


def only_at_first(p, x):
    """Without `w` the branch is zero but in the first iteration, in which the state is what the loop starts from."""

    def cell(h, a):
        return a @ p["w"], a + jnp.tanh(h @ p["u"])

    return over_time(cell, x[:, 0] @ p["start"], x) @ p["head"]


def in_turn(p, x):
    """One of two states is zero in every other iteration, the other one in those between: never both are there."""

    def cell(carry, a):
        g, h = carry
        return (jnp.tanh(h @ p["u"]), g @ p["w"]), a + (g * h) @ p["gate"]

    return over_time(cell, (x[:, 0] @ p["start"], jnp.zeros((len(x), 4))), x) @ p["head"]


def in_a_cycle(length):
    """Three states take turns: what was carried in one of them is there again every third iteration."""

    def fn(p, x):
        def cell(carry, a):
            g, h, i = carry
            return (h, i, g + jnp.tanh(a @ p["w"])), None

        rows = jnp.resize(x.swapaxes(0, 1), (length, *x[:, 0].shape))
        ones = jnp.ones((len(x), 4))
        return jax.lax.scan(cell, (rows[0] @ p["start"], ones, ones), rows)[0][0] @ p["head"]

    return fn


def row_of_a_cycle(row, reverse):
    """A single row of what such a loop returns."""

    def fn(p, x):
        def cell(carry, a):
            g, h, i = carry
            return (h, i, g + jnp.tanh(a @ p["w"])), g

        ones = jnp.ones((len(x), 4))
        return over_time(cell, (x[:, 2] @ p["start"], ones, ones), x, reverse=reverse)[:, row] @ p["head"]

    return fn


def shifted(length):
    """A buffer of the last four rows, of which the oldest is read."""

    def fn(p, x):
        def cell(buffer, a):
            a = a + jnp.tanh(a @ p["w"])
            return jnp.concatenate([buffer[1:], a[None]]), None

        rows = jnp.resize(x.swapaxes(0, 1), (length, *x[:, 0].shape))
        return jax.lax.scan(cell, jnp.ones((4, len(x), 4)), rows)[0][0] @ p["head"]

    return fn


class LinenCell(nn.RNNCellBase):
    @nn.compact
    def __call__(self, h, x):
        h = nn.tanh(nn.Dense(4, name="i")(x) + nn.Dense(4, name="h", use_bias=False)(h))
        y = x + h
        return h, y + nn.Dense(4, name="down")(nn.gelu(nn.Dense(6, name="up")(nn.LayerNorm(name="norm")(y))))

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        del rng
        return jnp.zeros((*input_shape[:-1], 4))

    @property
    def num_feature_axes(self):
        return 1


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.RNN(LinenCell(), name="rnn")(nn.Dense(4, name="stem")(x)))


class NnxCell(nnx.Module):
    def __init__(self, rngs):
        self.i, self.h = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, h, x):
        h = h + nnx.tanh(self.i(x) + self.h(h))
        return h, h + self.down(nnx.gelu(self.up(h)))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.cell = NnxCell(rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda h, cell, x: cell(h, x), in_axes=(nnx.Carry, None, 1), out_axes=(nnx.Carry, 1))
        return self.head(scan(jnp.zeros((len(x), 4)), self.cell, self.stem(x))[1])


class EquinoxNetwork(eqx.Module):
    stem: eqx.nn.Linear
    gru: eqx.nn.GRUCell
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        self.stem, self.head = eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 2, key=key)
        self.gru = eqx.nn.GRUCell(4, 4, key=key)
        self.up, self.down = eqx.nn.Linear(4, 6, key=key), eqx.nn.Linear(6, 4, key=key)

    def __call__(self, x):
        def cell(h, a):
            h = self.gru(a, h)
            return h, h + self.down(jax.nn.gelu(self.up(h)))

        return jax.vmap(self.head)(jax.lax.scan(cell, jnp.zeros(4), jax.vmap(self.stem)(x))[1])


class HaikuCell(hk.RNNCore):
    def __call__(self, x, state):
        y, state = hk.VanillaRNN(4, name="rnn")(x, state)
        return y + hk.Linear(4, name="down")(jax.nn.gelu(hk.Linear(6, name="up")(y))), state

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, 4))


def haiku_network(x):
    h, cell = hk.Linear(4, name="stem")(x), HaikuCell()
    return hk.Linear(2, name="head")(hk.dynamic_unroll(cell, h, cell.initial_state(len(x)), time_major=False)[0])


def plain(fn, *names):
    return lambda: (fn, {name: PLAIN[name] for name in ("head", *names)})


def random_like(tree):
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    return treedef.unflatten([jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype) for leaf in leaves])


def linen():
    module = LinenNetwork()
    return module.apply, random_like(jax.eval_shape(module.init, jax.random.key(0), X))


def of_nnx():
    graphdef, params = nnx.split(nnx.eval_shape(lambda: NnxNetwork(nnx.Rngs(0))))
    return lambda p, x: nnx.merge(graphdef, p)(x), random_like(params)


def equinox():
    arrays, static = eqx.partition(EquinoxNetwork(jax.random.key(0)), eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), random_like(arrays)


def haiku():
    transformed = hk.without_apply_rng(hk.transform(haiku_network))
    return transformed.apply, random_like(jax.eval_shape(transformed.init, jax.random.key(0), X))


BRANCH = {"up", "down"}
NETWORKS = {
    "around a cell": (plain(around_a_cell, "stem", "w", "u", "b"), [{"w"}, {"u"}], 3),
    "of the state": (plain(of_the_state, "stem", "w", "up", "down"), [{"w"}, BRANCH], 1),
    "gated": (plain(gated_in_a_cell, "start", "up", "down", "gate"), [{"start"}, BRANCH], 3),
    "many iterations": (plain(many_iterations, "stem", "w"), [{"w"}], 1),
    "delayed": (plain(delayed, "stem", "w", "u"), [{"w"}, {"u"}], 3),
    "of use at the end": (plain(of_use_at_the_end, "stem", "w", "u"), [{"stem"}, {"u"}, {"w"}], 3),
    "only at first": (plain(only_at_first, "w", "u", "start"), [{"w"}, {"u"}], 3),
    "in turn": (plain(in_turn, "w", "u", "start", "gate"), [{"u"}, {"w"}, {"gate"}], 7),
    **{
        f"in a cycle, {length} iterations": (plain(in_a_cycle(length), "start", "w"), [{"start"}, {"w"}], num_valid)
        for length, num_valid in ((5, 1), (6, 2), (41, 1), (42, 2))
    },
    "a row of a cycle": (plain(row_of_a_cycle(3, reverse=False), "start", "w"), [{"start"}, {"w"}], 2),
    "another row": (plain(row_of_a_cycle(4, reverse=False), "start", "w"), [{"start"}, {"w"}], 1),
    "the first row, the last computed": (plain(row_of_a_cycle(0, reverse=True), "start", "w"), [{"start"}, {"w"}], 1),
    "shifted": (plain(shifted(5), "w"), [{"w"}], 1),
    "linen": (linen, [{"i"}, {"h"}, {"norm"} | BRANCH], 7),
    "nnx": (of_nnx, [{"i"}, {"h"}, BRANCH], 3),
    "equinox": (equinox, [{"gru"}, BRANCH], 1),
    "haiku": (haiku, [{"linear"}, {"linear_1"}, BRANCH], 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_inside_a_cell_is_a_structure(name):
    make, expected, num_valid = NETWORKS[name]
    fn, params = make()
    space = jasgnas.search_space(fn, X, params=params)
    assert [{_module(path) for path in own} for own in held(space)] == expected
    assert check_all_sets(space, fn, params, (X,), (OTHER,)) == num_valid


def _module(path):
    parts = [part for part in path.split("/") if part not in ("kernel", "bias", "scale", "w", "b", "weight", "value")]
    return next((part for part in reversed(parts) if not part.startswith(("weight_", "bias_"))), path)


def test_sequences_of_any_length_run_through_the_smaller_cell():
    fn, params = plain(of_the_state, "stem", "w", "up", "down")()
    space = jasgnas.search_space(fn, X, params=params)
    zeroed = space.zero(params, [1])
    subnet, left = jasgnas.construct_subnet(space, zeroed)
    assert left.keys() == {"stem", "w", "head"}
    for length in (1, 70):
        x = jax.random.normal(jax.random.key(length), (2, length, 4))
        np.testing.assert_allclose(subnet(left, x), fn(zeroed, x), rtol=1e-4, atol=1e-5)
    # It stays a loop, and what is left of it is trained as before.
    assert [eqn.primitive.name for eqn in jax.make_jaxpr(subnet)(left, X).eqns].count("scan") == 1
    loss = lambda fn: lambda p: jnp.sum(fn(p, X) ** 2)  # noqa: E731
    for name, gradient in jax.grad(loss(subnet))(left).items():
        np.testing.assert_allclose(gradient, jax.grad(loss(fn))(zeroed)[name], rtol=1e-3)


def test_the_width_of_a_state_is_narrowed_in_all_iterations():
    fn, params = plain(of_the_state, "stem", "w", "up", "down")()
    space = jasgnas.search_space(fn, X, params=params, channels=True)
    assert [(each.size, each.paths) for each in space.dimensions] == [(4, ("stem",)), (4, ("w", "down")), (6, ("up",))]
    rng = np.random.default_rng(0)
    for _ in range(4):
        removed = [each.groups[i] for each in space.dimensions for i in rng.permutation(each.size)[:2]]
        zeroed = space.zero(params, removed)
        subnet, left = jasgnas.construct_subnet(space, zeroed)
        np.testing.assert_allclose(subnet(left, X), fn(zeroed, X), rtol=1e-4, atol=1e-5)
        assert left["down"].shape == (4, 2)
        sizes = jasgnas.count_params(left), jasgnas.count_macs(subnet, X, params=left)
        assert space.subnet_size(removed) == sizes


def test_what_was_carried_at_first_is_of_no_account_after_the_loop():
    """The last row is carried out of the loop: what is zero of the rows is zero of it, whatever was there before."""

    def fn(p, x):
        start = jnp.broadcast_to(p["start"][0], (len(x), 4))
        last, rows = jax.lax.scan(lambda _, a: (a, a + jnp.tanh(a @ p["w"])), start, (x @ p["stem"]).swapaxes(0, 1))
        return rows @ p["head"], last @ p["gate"][:, :2]

    params = {name: PLAIN[name] for name in ("stem", "w", "start", "head", "gate")}
    space = jasgnas.search_space(fn, X, params=params, channels=True)
    removed = space.dimensions[0].groups[1:3]
    zeroed = space.zero(params, removed)
    subnet, left = jasgnas.construct_subnet(space, zeroed)
    assert left["gate"].shape[0] == left["head"].shape[0] == 2
    for found, expected in zip(subnet(left, X), fn(zeroed, X), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert space.subnet_size(removed) == (jasgnas.count_params(left), jasgnas.count_macs(subnet, X, params=left))


def test_h2spg_takes_a_branch_out_of_a_cell():
    fn, params = plain(of_the_state, "stem", "w", "up", "down")()
    target = fn(params | {"down": 0.05 * params["down"]}, X)
    space = jasgnas.search_space(fn, X, params=params)
    options = jasgnas.ADAM_DEFAULTS | {"target_groups": 1, "warmup_steps": 5, "projection_steps": 10}
    tx = optax.chain(optax.adam(1e-2), jasgnas.h2spg(space, learning_rate=1e-2, **options))
    loss_fn = lambda p: jnp.mean((fn(p, X) - target) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, grad=grads, value=loss, value_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(20):
        params, state = step(params, state)
    subnet, left = jasgnas.construct_subnet(space, params, opt_state=state, verify=True)
    assert left.keys() == {"stem", "w", "head"}
    np.testing.assert_allclose(subnet(left, X), fn(params, X), rtol=1e-4, atol=1e-5)


def test_a_loop_inside_a_cell_is_one_operator():
    """What a loop inside of a loop adds is not looked into."""

    def fn(p, x):
        def cell(h, a):
            h = jax.lax.scan(lambda h, b: (jnp.tanh(h + b @ p["u"]), None), h, jnp.stack([a, a]))[0]
            return h, a + h @ p["w"]

        return over_time(cell, jnp.zeros((len(x), 4)), x @ p["stem"]) @ p["head"]

    params = {name: PLAIN[name] for name in ("stem", "head", "w", "u")}
    space = jasgnas.search_space(fn, X, params=params)
    assert held(space) == [{"w"}]
    assert check_all_sets(space, fn, params, (X,), (OTHER,)) == 1


def test_a_loop_that_repeats_itself_too_late_is_one_operator():
    """Twelve states in a cycle; a buffer of which nobody knows when it is full."""

    def cycle(p, x):
        rows = jnp.resize(x.swapaxes(0, 1), (100, *x[:, 0].shape))
        start = (jnp.ones((len(x), 4)),) * 12
        last = jax.lax.scan(lambda c, a: ((*c[1:], c[0] + jnp.tanh(a @ p["w"])), None), start, rows)[0][0]
        return (last + jnp.tanh(last @ p["u"])) @ p["head"]

    def buffer(p, x):
        last = shifted(100)(p | {"head": jnp.eye(4)}, x)
        return (last + jnp.tanh(last @ p["u"])) @ p["head"]

    params = {name: PLAIN[name] for name in ("w", "u", "head")}
    for fn in (cycle, buffer):
        space = jasgnas.search_space(fn, X, params=params)
        assert held(space) == [{"u"}]
        assert "more than 64 iterations of the loop would have to be told apart" in space.explain("w")
        assert check_all_sets(space, fn, params, (X,), (OTHER,)) == 1
