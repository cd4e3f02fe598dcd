"""Targets in parameters and multiply-adds: what `h2spg` leaves of a network, counted in the constructed sub-network."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
from jasgnas import ArgumentError, TargetError
from jasgnas.optimizer.h2spg import h2spg
from jasgnas.optimizer.state import DONE, h2spg_state
from jasgnas.space.groups import LeafSlice
from jasgnas.space.sizes import Costs, Measure
from jasgnas.space.targets import resolve_target
from jasgnas.space.validity import DependenceGraph
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import build
from tests.optimizer.h2spg_problem import make_candidates

CHANNELS = {DemoNet: 1, StackedUnets: 3}
COUNTS = {
    "target_params": lambda model, x: jasgnas.count_params(model),
    "target_macs": lambda model, x: jasgnas.count_macs(model, x),
}


@cache
def network(cls):
    """A small network, its input and its search space."""
    model, x = build(cls, width=0.1), jax.ShapeDtypeStruct((2, 8, 8, CHANNELS[cls]), jnp.float32)
    return model, x, jasgnas.search_space(model, x)


def order_of(scores):
    """A score that prefers groups in this order, whatever their parameters."""
    return lambda stats: jnp.asarray(scores) + 0 * stats.x_norm


def train(tx, params, num_steps):
    """Steps without gradients, so that only H2SPG moves the parameters; the state after each of them."""
    step = jax.jit(lambda params, state: tx.update(jax.tree.map(jnp.zeros_like, params), state, params))
    state, states = tx.init(params), []
    for _ in range(num_steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        states.append(h2spg_state(state))
    return params, states


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("cls", [DemoNet, StackedUnets])
def test_subnet_meets_the_budget_with_no_group_too_many(cls, name):
    model, x, space = network(cls)
    kind = list(COUNTS).index(name)
    scores = np.random.default_rng(len(space.groups)).permutation(len(space.groups)).astype(np.float32)
    full, least = COUNTS[name](model, x), space.subnet_size(space.largest_removal)[kind]
    target = (2 * full + least) // 3
    tx = h2spg(space, learning_rate=0.1, warmup_steps=1, projection_steps=1, score=order_of(scores), **{name: target})
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, states = train(tx, params, 2)
    redundant = np.flatnonzero(states[-1].redundant)
    assert int(states[-1].phase) == DONE and space.is_valid(redundant)
    subnet = jasgnas.construct_subnet(space, nnx.merge(graphdef, params, rest))
    assert COUNTS[name](subnet, x) <= target < full
    assert all(space.subnet_size(np.setdiff1d(redundant, group))[kind] > target for group in redundant)


# A chain of blocks, each a group beside a shortcut: block i costs 10^i parameters, and multiply-adds beyond int32.
NUM_BLOCKS = 5
NOTHING = np.zeros(0, np.int64)
CHAIN = make_candidates(
    [(LeafSlice(str(i)),) for i in range(NUM_BLOCKS)],
    {str(i): (4,) for i in range(NUM_BLOCKS)},
    DependenceGraph(
        senders=np.array([s for i in range(NUM_BLOCKS) for s in (2 * i, 2 * i, 2 * i + 1)], np.int32),
        receivers=np.array([r for i in range(NUM_BLOCKS) for r in (2 * i + 1, 2 * i + 2, 2 * i + 2)], np.int32),
        passes_zeros=np.array([True, True, True] * NUM_BLOCKS),
        additive=np.array([False, *[False, True] * NUM_BLOCKS]),
        num_external=np.array([1] + [0] * 2 * NUM_BLOCKS, np.int32),
        outputs=np.array([2 * NUM_BLOCKS], np.int32),
        required=np.array([2 * NUM_BLOCKS], np.int32),
        group=np.array([-1] + [g for i in range(NUM_BLOCKS) for g in (i, -1)], np.int32),
        segment=np.arange(2 * NUM_BLOCKS + 1, dtype=np.int32),
    ),
    fingerprint=2**32 - 1,
    costs=Costs(
        saving_segment=np.zeros(0, np.int32),
        saving_group=np.zeros(0, np.int32),
        measures={
            "params": Measure(100, np.array([7] + [p for i in range(NUM_BLOCKS) for p in (10**i, 0)]), NOTHING),
            "macs": Measure(0, np.array([7] + [p for i in range(NUM_BLOCKS) for p in (10 ** (i + 9), 0)]), NOTHING),
        },
    ),
)
CHAIN_PARAMS = {str(i): jnp.ones(4) for i in range(NUM_BLOCKS)}


def make_chain_h2spg(**options):
    return h2spg(
        CHAIN, **{"learning_rate": 0.1, "warmup_steps": 1, "projection_steps": 4, "score": "magnitude", **options}
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("target_params", 11_217, [0]),
        ("target_params", 11_216, [1]),
        ("target_params", 107, [0, 1, 2, 3, 4]),
        ("target_macs", 7 + 11_111 * 10**9 - 1, [0]),
        ("target_macs", 7 + 11_100 * 10**9, [0, 1]),
        ("target_macs", 7 + 11_100 * 10**9 - 1, [2]),
    ],
)
@pytest.mark.parametrize("hierarchical", [True, False])
def test_budgets_are_exact_to_the_last_unit(name, size, expected, hierarchical):
    target = resolve_target(CHAIN, {name: size}, 1, hierarchical)
    taken, is_met = target.take(-1)(jnp.arange(NUM_BLOCKS), jnp.ones(NUM_BLOCKS, bool))
    assert bool(is_met) and np.flatnonzero(taken).tolist() == expected


def test_smallest_network_need_not_be_without_most_groups():
    # One large group, or two small ones side by side in a chain of their own: the output needs either.
    graph = DependenceGraph(
        senders=np.array([0, 0, 2, 1, 3], np.int32),
        receivers=np.array([1, 2, 3, 4, 4], np.int32),
        passes_zeros=np.ones(5, bool),
        additive=np.array([False, False, False, False, True]),
        num_external=np.array([1, 0, 0, 0, 0], np.int32),
        outputs=np.array([4], np.int32),
        required=np.array([4], np.int32),
        group=np.array([-1, 0, 1, 2, -1], np.int32),
        segment=np.arange(5, dtype=np.int32),
    )
    nothing = np.zeros(0, np.int32)
    measures = {"params": Measure(0, np.array([5, 900, 10, 10, 0]), NOTHING)}
    slices = [(LeafSlice(str(i)),) for i in range(3)]
    space = make_candidates(slices, CHAIN.shapes, graph, 0, Costs(nothing, nothing, measures))
    assert resolve_target(space, {"target_groups": 2}, 1, True).reachable == (1, 2)
    assert resolve_target(space, {"target_params": 25}, 1, True).reachable == (0,)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"target_params": 106}, TargetError, "target_params=106: the smallest .* has 107 of its 11,218 parameters"),
        ({"target_macs": 6}, TargetError, "the smallest .* has 7 of its 11,111,000,000,007 multiply-adds"),
        ({"target_params": 11_218}, TargetError, "nothing has to go .* the full network has 11,218 parameters"),
        ({"target_params": 0}, ArgumentError, "target_params must be an int, at least 1, or a fraction .* got 0"),
        ({"target_macs": 1e9}, ArgumentError, "target_macs must be an int"),
        ({"target_params": jnp.int32(200)}, ArgumentError, "static_args"),
        ({"target_params": 200, "target_macs": 200}, ArgumentError, "exactly one of .*, got target_params=200, target"),
        ({"target_params": 200, "periods": 5}, ArgumentError, "projection_steps must be an int, at least 5"),
    ],
    ids=str,
)
def test_budgets_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        make_chain_h2spg(**options)


def test_rounds_keep_what_has_gone_already():
    tx = make_chain_h2spg(score=order_of([1.0, 2, 3, 4, 0]), periods=2, target_macs=7 + 10_000 * 10**9)
    _, states = train(tx, CHAIN_PARAMS, 6)
    # 556e9 are gone with group 3 alone, the rest takes all others but the last.
    assert [np.flatnonzero(state.redundant).tolist() for state in states] == [[], [3], [3], *[[0, 1, 2, 3]] * 3]
    assert [int(state.phase) for state in states] == [0, 1, 1, 1, DONE, DONE]


@cache
def gated_chain():
    """Three residual blocks, of each of which either the block or the skip around it can go."""

    def chain(params, x):
        x = x @ params["stem"]
        for block in "abc":
            x = x + jnp.tanh(x @ params[block])
        return x @ params["head"]

    x, params = jnp.ones((2, 6)), {name: jnp.ones((6, 6)) for name in ("stem", "a", "b", "c", "head")}
    fn, params = jasgnas.gated(chain, x, params=params)
    return params, jasgnas.search_space(fn, x, params=params)


NUMBERS = [
    dict(zip(("structure", "gate"), pair, strict=True)) for pair in itertools.product(range(4), repeat=2) if any(pair)
]


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_so_many_of_each_kind_go_wherever_that_is_possible(numbers):
    _, space = gated_chain()
    kinds = [group.kind for group in space.groups]
    assert sorted(kinds) == ["gate"] * 3 + ["structure"] * 3

    def has_enough(groups):
        return all([kinds[group] for group in groups].count(kind) >= number for kind, number in numbers.items())

    every = itertools.chain.from_iterable(itertools.combinations(range(6), size) for size in range(7))
    if not any(space.is_valid(groups) and has_enough(groups) for groups in every):
        with pytest.raises(TargetError, match="cannot remove"):
            space.select(np.zeros(6), target_groups=numbers)
        return
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.permutation(6).astype(float)
        removed = space.select(scores, target_groups=numbers)
        assert space.is_valid(removed) and has_enough(removed) and len(removed) == sum(numbers.values())
        # By falling score what may go beside those before, unless enough of its kind do: that is the choice wherever it
        # ends with enough of each.
        greedy = []
        for group in np.argsort(-scores).tolist():
            is_full = [kinds[each] for each in greedy].count(kinds[group]) == numbers[kinds[group]]
            if not is_full and space.is_valid([*greedy, group]):
                greedy.append(group)
        assert not has_enough(greedy) or removed == tuple(sorted(greedy))


def test_h2spg_takes_so_many_of_each_kind():
    params, space = gated_chain()
    tx = h2spg(
        space,
        learning_rate=0.1,
        target_groups={"structure": 1, "gate": 2},
        warmup_steps=2,
        projection_steps=2,
        score=order_of([5.0, 3, 4, 2, 1, 0]),
    )
    _, states = train(tx, params, 5)
    # The first block goes, and then no skip around it.
    gone = [space.groups[index].name for index in np.flatnonzero(states[-1].zero)]
    assert gone == ["a", "gates/c/input0", "gates/head/input0"] and int(states[-1].phase) == DONE
