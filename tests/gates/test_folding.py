"""Trained gates are folded into parameters where that is exact, and stay where it is not; in float64."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jasgnas
from jasgnas.errors import GatesLeftWarning
from jasgnas.pytree import leaves_by_path, path_str
from tests.networks import build, error, random_input, randomize

SIZE = 6
SHAPES = {name: (SIZE, SIZE) for name in ("w", "v", "branch", "head")} | {name: (SIZE,) for name in ("bias", "gain")}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x():
    return random_input((4, 5, SIZE), jnp.float64)


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def pooled(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 1), (1, 1, 1), "SAME") / 3


def max_pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 1), (1, 1, 1), "SAME")


def dense(p, x):
    return x @ p["w"] + p["bias"]


def same(h):
    return h


# What the gated edge starts from, what lies on it, and the shapes of the gates that the parameters can take up.
VECTOR, SCALAR = (SIZE,), ()
BOTH, NEITHER = {VECTOR, SCALAR}, set()
ROWS = {
    "linear": (lambda p, x: x @ p["w"], same, BOTH),
    "linear_with_bias": (dense, same, BOTH),
    "transposed_kernel": (lambda p, x: jnp.einsum("bti,oi->bto", x, p["w"]), same, BOTH),
    "sum_of_two": (lambda p, x: dense(p, x) + jnp.tanh(x) @ p["v"], same, BOTH),
    "norm_with_affine": (lambda p, x: normalized(x @ p["w"]) * p["gain"] + p["bias"], pooled, BOTH),
    "layer_scale": (lambda p, x: dense(p, x) * p["gain"], same, BOTH),
    "pooling": (dense, pooled, BOTH),
    "relu_and_max_pooling": (dense, lambda h: max_pooled(jax.nn.relu(h)), BOTH),
    "norm_without_affine": (dense, normalized, NEITHER),
    "constant_beside": (lambda p, x: x @ p["w"] + 1, same, NEITHER),
    "square": (dense, jnp.square, NEITHER),
    "tanh": (dense, jnp.tanh, NEITHER),
    "no_parameters": (lambda p, x: jnp.cumsum(x, 1), same, NEITHER),
    "shared_kernel": (lambda p, x: x @ p["head"], same, NEITHER),
    # All features are made of all: one number can be taken up, one for each feature cannot.
    "features_reversed": (dense, lambda h: h[..., ::-1], {SCALAR}),
    "features_mixed": (dense, lambda h: h - h.mean(-1, keepdims=True), {SCALAR}),
    # That the features are taken apart and put together again is not followed index by index.
    "split_into_heads": (lambda p, x: dense(p, x).reshape(4, 5, 2, 3), lambda h: h.reshape(4, 5, SIZE), {SCALAR}),
    "concatenation": (lambda p, x: jnp.concatenate([x @ p["v"][:, 2:], x @ p["w"][:, :2]], -1), same, {SCALAR}),
}


def joined(h, y, params):
    """The sum of a gated edge and a branch, without which nothing but the edge reads where both start.

    What reads the sum is in no proportion to it, so that gates can be taken up before it alone.
    """
    return jnp.tanh(y + jnp.tanh(h.reshape(y.shape) @ params["branch"])) @ params["head"]


def network(start, edge, params, x):
    h = start(params, x)
    return joined(h, edge(h), params)


def draw_params():
    draw = np.random.default_rng(0).normal
    return {name: jnp.asarray(draw(size=shape)) for name, shape in SHAPES.items()}


def trained_gates(tree, sign=1):
    """The same parameters with gates that are not 1."""
    draw = np.random.default_rng(1).uniform

    def change(keys, leaf):
        return jnp.asarray(sign * draw(0.5, 2, leaf.shape)) if "gates" in path_str(keys) else leaf

    return jax.tree_util.tree_map_with_path(change, tree)


def gates_left(tree):
    return [path for path in leaves_by_path(tree) if "gates/" in path]


def branches(space):
    return [group.index for group in space.groups if group.name.startswith("branch")]


def construct(space, full):
    """The sub-network, and the text of the warning of gates that are left."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", GatesLeftWarning)
        subnet = jasgnas.construct_subnet(space, full, allow_nothing=True)
    return subnet, "".join(str(each.message) for each in said if each.category is GatesLeftWarning)


def check(fn, params, x, is_folded, scalar=False, sign=1, is_alone=True, keep=()):
    gated, own = jasgnas.gated(fn, x, params=params, scalar=scalar)
    space = jasgnas.search_space(gated, x, params=own, keep=keep)
    full = space.zero(trained_gates(own, sign), branches(space) if is_alone else [])
    (sub_fn, left), said = construct(space, full)
    assert error(sub_fn(left, x), gated(full, x)) < 1e-10
    assert (not gates_left(left)) is is_folded
    assert all(path in said for path in gates_left(left))
    assert bool(said) is not is_folded


@pytest.mark.parametrize("scalar", [False, True], ids=["vector", "scalar"])
@pytest.mark.parametrize("name", ROWS)
def test_gates_are_folded_where_that_is_exact_alone(name, scalar, x):
    start, edge, shapes = ROWS[name]
    is_folded = (SCALAR if scalar else VECTOR) in shapes
    check(lambda p, x: network(start, edge, p, x), draw_params(), x, is_folded, scalar)


def test_gates_stay_that_are_not_positive_or_for_parameters_that_are_kept(x):
    fn = lambda p, x: network(dense, same, p, x)  # noqa: E731
    check(fn, draw_params(), x, False, sign=-1)
    check(fn, draw_params(), x, False, keep="bias")


@pytest.mark.parametrize("scalar", [False, True], ids=["vector", "scalar"])
def test_gates_stay_where_something_else_reads_what_they_multiply(scalar, x):
    check(lambda p, x: network(dense, same, p, x), draw_params(), x, False, scalar, is_alone=False)

    def with_features(p, x):
        h = dense(p, x)
        return joined(h, h, p), h

    check(with_features, draw_params(), x, False, scalar)


def test_narrowed_networks_take_up_what_is_left_of_a_gate(x):
    fn = lambda p, x: network(dense, jax.nn.relu, p, x)  # noqa: E731
    gated, own = jasgnas.gated(fn, x, params=draw_params())
    space = jasgnas.search_space(gated, x, params=own, channels=True)
    channels = [group.index for group in space.groups if group.kind == "channel" and "w[" in group.name][1:4]
    for params in (own, trained_gates(own)):
        full = space.zero(params, channels + branches(space))
        (sub_fn, left), said = construct(space, full)
        assert {path: array.shape for path, array in leaves_by_path(left).items()} == {
            "w": (SIZE, SIZE - 3), "bias": (SIZE - 3,), "head": (SIZE - 3, SIZE)
        }  # fmt: skip
        assert not said
        assert error(sub_fn(left, x), gated(full, x)) < 1e-10


class Block(nnx.Module):
    """A convolution and a batch norm; a pooling that is gated, and a branch beside it; statistics of what they read."""

    def __init__(self, rngs, watches):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.branch = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.branch_norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.watches = watches
        self.watched = nnx.BatchStat(jnp.zeros(4)) if watches else None

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x)))
        y = nnx.avg_pool(x, (3, 3), (1, 1), "SAME") + jax.nn.relu(self.branch_norm(self.branch(x)))
        y = self.head(jnp.tanh(y).mean((1, 2)))
        if self.watched is None:
            return y
        if self.norm.use_running_average:
            return y + self.watched[...].sum()
        self.watched[...] = x.mean((0, 1, 2)) if self.watches == "values" else 2 * self.norm.scale[...]
        return y


@pytest.mark.parametrize("watches", [None, "values", "scale"])
def test_batch_norms_take_up_gates_unless_a_statistic_of_another_mode_reads_them_or_what_they_compute(watches):
    x = random_input((4, 6, 6, 3), jnp.float64)
    model = build(Block, dtype=jnp.float64, watches=watches)
    model.eval()
    gated = jasgnas.gated(model, x)
    nnx.update(gated, trained_gates(nnx.state(gated)))
    space = jasgnas.search_space(gated, x)
    full = space.zero(gated, branches(space))
    subnet, _ = construct(space, full)
    assert bool(gates_left(nnx.state(subnet))) is (watches is not None)
    for training in (False, True):
        for each in (full, subnet):
            each.train() if training else each.eval()
        assert error(subnet(x), full(x)) < 1e-10
        assert error(subnet.norm.var[...], full.norm.var[...]) < 1e-10
        assert not watches or error(subnet.watched[...], full.watched[...]) < 1e-10


def test_what_is_given_stays_as_it_was_and_several_gates_are_taken_up_together():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, dtype=jnp.float64)(nn.Dense(4, param_dtype=jnp.float64)(x))
            for index in range(2):
                x = nn.relu(x) + jnp.tanh(nn.Dense(4, param_dtype=jnp.float64, name=f"branch{index}")(x))
            return nn.Dense(2, param_dtype=jnp.float64)(x)

    x = random_input((6, 3), jnp.float64)
    variables = randomize(Net().init(jax.random.key(0), x), dtype=jnp.float64)
    gated, own = jasgnas.gated(Net(), x, variables=variables)
    space = jasgnas.search_space(gated, x, variables=own)
    full = space.zero(trained_gates(own), branches(space))
    before = jax.tree.map(np.array, full)
    (module, left), said = construct(space, full)
    assert len(gates_left(full)) == 2 and not gates_left(left) and not said
    assert error(full, before) == 0
    for train in (False, True):
        run = lambda module, own: module.apply(own, x, train=train, mutable="batch_stats")  # noqa: B023, E731
        outputs, after = run(module, left)
        expected, expected_after = run(gated, full)
        assert error(outputs, expected) < 1e-10
        assert error(after, expected_after) < 1e-10


def test_the_embedding_of_a_transformer_with_layer_scale_takes_up_the_gates_of_blocks_that_are_gone():
    def block(p, x):
        y = normalized(x) * p["scale"]
        weights = jax.nn.softmax(jnp.einsum("bqi,bki->bqk", y @ p["q"], y @ p["k"]))
        x = x + weights @ y @ p["o"] * p["gain"]
        return x + jax.nn.gelu(normalized(x) @ p["up"]) @ p["down"] * p["gain_down"]

    def fn(params, x):
        x = x @ params["embed"]
        for name in ("first", "second"):
            x = block(params[name], x)
        return normalized(x) @ params["head"]

    draw = np.random.default_rng(0).normal
    shapes = {name: (SIZE, SIZE) for name in ("q", "k", "o", "up", "down")}
    shapes |= {name: (SIZE,) for name in ("scale", "gain", "gain_down")}
    params = {each: {name: jnp.asarray(draw(size=s)) for name, s in shapes.items()} for each in ("first", "second")}
    params |= {name: jnp.asarray(draw(size=(SIZE, SIZE))) for name in ("embed", "head")}
    x = random_input((2, 3, SIZE), jnp.float64)
    gated, own = jasgnas.gated(fn, x, params=params)
    space = jasgnas.search_space(gated, x, params=own)
    full = space.zero(trained_gates(own), [each.index for each in space.groups if each.name.startswith("first")])
    (sub_fn, left), said = construct(space, full)
    assert "first" not in left
    assert len(gates_left(full)) == 4
    # The second block reads its input twice.
    assert all("second" in path or "head" in path for path in gates_left(left)) and len(gates_left(left)) == 2
    assert error(sub_fn(left, x), gated(full, x)) < 1e-10
