"""Structures whose zeros pass products, masks and gathers on the way to a sum; the groups are written down by hand."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jasgnas

Params = dict[str, jax.Array]


def drawn(**shapes: tuple[int, ...]) -> Params:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def held(space: jasgnas.SearchSpace) -> list[set[str]]:
    return [{each.path for each in group.slices} for group in space.groups]


def check_all_sets(space: jasgnas.SearchSpace, fn: Any, params: Any, args: tuple[Any, ...]) -> None:
    """Constructs every valid set, and compares with the full network whose parameters are zero; others are refused."""
    for number in range(1, len(space.groups) + 1):
        for removed in itertools.combinations(range(len(space.groups)), number):
            if not space.is_valid(removed):
                continue
            zeroed = space.zero(params, removed)
            subnet, left = jasgnas.construct_subnet(space, zeroed)
            expected, found = fn(zeroed, *args), subnet(left, *args)
            np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))
            assert sum(leaf.size for leaf in jax.tree.leaves(left)) == space.subnet_size(removed)[0]
            # Another input, another output: the network is not a constant.
            moved = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, args)
            assert float(jnp.abs(fn(zeroed, *moved) - expected).max()) > 0


x34 = drawn(x=(3, 4))["x"]
EDGES = {"senders": jnp.array([0, 1, 2, 0]), "receivers": jnp.array([1, 2, 0, 2])}


def gated(p: Params, x: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    return (h + jax.nn.sigmoid(h @ p["gate"]) * jnp.tanh(h @ p["value"])) @ p["head"]


def highway(p: Params, x: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    t = jax.nn.sigmoid(h @ p["transform"])
    return (t * jax.nn.relu(h @ p["value"]) + (1 - t) * h) @ p["head"]


def masked(p: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    return (h + jnp.where(mask[:, None], jax.nn.relu(h @ p["a"]), 0.0) - mask[:, None] * (h @ p["b"])) @ p["head"]


def routed(p: Params, x: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    shares = jax.nn.softmax(h @ p["router"])
    return (h + sum(shares[:, e : e + 1] * (jax.nn.relu(h @ p[f"in{e}"]) @ p[f"out{e}"]) for e in range(2))) @ p["head"]


def messages(p: Params, x: jax.Array, senders: jax.Array, receivers: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    sent = jax.nn.relu(h[senders] @ p["edge"])
    return (h + jax.ops.segment_sum(sent, receivers, len(x))) @ p["head"]


def rolled(p: Params, x: jax.Array) -> jax.Array:
    h = x @ p["stem"]
    return (h + jnp.roll(jax.nn.relu(jnp.roll(h, -1, 0) @ p["branch"]), 1, 0)) @ p["head"]


def two_products(p: Params, x: jax.Array) -> jax.Array:
    """Without `both` two products are zero, and more is saved than without the other factor of either."""
    h = x @ p["stem"]
    both = jnp.tanh(h @ p["both"])
    return (h + (h @ p["one"]) * both + both * (h @ p["other"])) @ p["head"]


SQUARE = (4, 4)
CASES: dict[str, tuple[Callable[..., jax.Array], Params, tuple[Any, ...], list[set[str]]]] = {
    "gated": (gated, drawn(stem=SQUARE, gate=SQUARE, value=SQUARE, head=(4, 2)), (x34,), [{"value"}]),
    "highway": (highway, drawn(stem=SQUARE, transform=SQUARE, value=SQUARE, head=(4, 2)), (x34,), [{"value"}]),
    "masked": (
        masked,
        drawn(stem=SQUARE, a=SQUARE, b=SQUARE, head=(4, 2)),
        (x34, jnp.array([True, False, True])),
        [{"a"}, {"b"}],
    ),
    "routed": (
        routed,
        drawn(stem=SQUARE, router=(4, 2), in0=(4, 6), in1=(4, 6), out0=(6, 4), out1=(6, 4), head=(4, 2)),
        (x34,),
        [{"in0", "out0"}, {"in1", "out1"}],
    ),
    "messages": (messages, drawn(stem=SQUARE, edge=SQUARE, head=(4, 2)), (x34, *EDGES.values()), [{"edge"}]),
    "rolled": (rolled, drawn(stem=SQUARE, branch=SQUARE, head=(4, 2)), (x34,), [{"branch"}]),
    "two products": (
        two_products,
        drawn(stem=SQUARE, one=SQUARE, both=SQUARE, other=SQUARE, head=(4, 2)),
        (x34,),
        [{"both"}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_structures_before_products_are_found_and_exact(name: str) -> None:
    fn, params, args, expected = CASES[name]
    space = jasgnas.search_space(fn, *args, params=params)
    assert held(space) == expected
    check_all_sets(space, fn, params, args)


def test_of_two_factors_one_is_the_structure_and_the_other_says_why_it_is_none() -> None:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        return (x + jnp.tanh(x @ p["a"]) * jax.nn.relu(x @ p["b"])) @ p["head"]

    params = drawn(a=SQUARE, b=SQUARE, head=(4, 2))
    space = jasgnas.search_space(fn, x34, params=params)
    assert held(space) == [{"a"}]
    assert "what it feeds goes with" in space.explain("b")
    check_all_sets(space, fn, params, (x34,))


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: (x * (x @ p["a"])) @ p["b"],
        lambda p, x: (x + (x * (x @ p["a"])) @ p["b"]) @ p["head"],
        lambda p, x: x + jnp.exp(x @ p["a"]) * x @ p["b"],
        lambda p, x: (x + jax.nn.sigmoid(x @ p["a"]) * x) @ p["b"],
        lambda p, x: (lambda h: jnp.concatenate([h, 2 * h], 1))(x @ p["a"])[:, 2:6] @ p["b"],
    ],
    ids=["an output", "parameters of another segment", "no zeros pass", "not zero itself", "all that a joint reads"],
)
def test_what_vanishes_with_no_sum_is_no_structure(fn: Callable[..., jax.Array]) -> None:
    params = drawn(a=SQUARE, b=SQUARE, head=SQUARE)
    space = jasgnas.search_space(lambda p, x: (fn(p, x) + x @ p["c"])[:, :1], x34, params=params | drawn(c=SQUARE))
    assert {"a"} not in held(space)


class GatedBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.gate, self.value = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nnx.sigmoid(self.gate(x)) * nnx.relu(self.value(x))


class Gated(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([GatedBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_gated_blocks_of_a_module_go_with_their_gates() -> None:
    model = Gated(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3, state))
    space = jasgnas.search_space(model, x34)
    assert held(space) == [{f"blocks/{i}/value/bias", f"blocks/{i}/value/kernel"} for i in range(2)]
    zeroed = space.zero(model, [1])
    subnet = jasgnas.construct_subnet(space, zeroed)
    np.testing.assert_allclose(subnet(x34), zeroed(x34), atol=1e-5)
    assert jasgnas.count_params(subnet) == jasgnas.count_params(model) - 40, "the gate of the block is gone, too"


class LinenExperts(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shares = linen.softmax(linen.Dense(2)(x))
        experts = [linen.Dense(4, use_bias=False)(linen.relu(linen.Dense(6)(x))) for _ in range(2)]
        return linen.Dense(2)(x + sum(shares[:, i : i + 1] * each for i, each in enumerate(experts)))


def test_experts_of_a_linen_module_are_structures() -> None:
    module = LinenExperts()
    variables = jax.tree.map(lambda leaf: leaf + 0.1, module.init(jax.random.key(0), x34))
    space = jasgnas.search_space(module, x34, variables=variables)
    assert len(space.groups) == 2
    for removed in ([0], [1], [0, 1]):
        zeroed = space.zero(variables, removed)
        subnet, left = jasgnas.construct_subnet(space, zeroed)
        np.testing.assert_allclose(subnet.apply(left, x34), module.apply(zeroed, x34), atol=1e-5)


def test_training_takes_a_gated_branch_to_zero() -> None:
    fn, params, args, _ = CASES["gated"]
    space = jasgnas.search_space(fn, *args, params=params)
    tx = optax.chain(
        optax.sgd(0.01),
        jasgnas.h2spg(space, learning_rate=0.01, target_groups=1, warmup_steps=3, projection_steps=3),
    )
    state = tx.init(params)

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any]:
        grads = jax.grad(lambda p: jnp.mean(fn(p, *args) ** 2))(params)
        updates, state = tx.update(grads, state, params, grad=grads)
        return optax.apply_updates(params, updates), state

    for _ in range(8):
        params, state = step(params, state)
    subnet, left = jasgnas.construct_subnet(space, params)
    assert sorted(left) == ["head", "stem"]
    np.testing.assert_allclose(subnet(left, *args), fn(params, *args), atol=1e-5)
