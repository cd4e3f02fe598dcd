"""At most so many of some groups stay: against a plain choice by score, and what no choice can meet."""

import re
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas.errors import ArgumentError, TargetError

EDGES, OPS = ("e01", "e02", "e12"), ("a", "b", "c")
X = jnp.ones((2, 3))


def edge(params, x):
    return reduce(add, (jnp.tanh(x @ params[op]["w"]) for op in OPS))


def cell(params, x):
    """Node 1 reads node 0, and node 2 both; without the last edge into a node, that is gone."""
    first = edge(params["e01"], x)
    return edge(params["e02"], x) + edge(params["e12"], first)


@pytest.fixture(scope="module")
def space():
    params = {name: {op: {"w": jnp.ones((3, 3))} for op in OPS} for name in EDGES}
    return jasgnas.search_space(cell, X, params=params)


def names(space, indices):
    return {space.groups[index].paths[0].removesuffix("/w") for index in indices}


def scores_of(space, rng):
    return rng.permutation(len(space.groups)).astype(float)


def test_of_each_edge_the_group_with_the_lowest_score_stays(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = scores_of(space, rng)
        stay = names(space, set(range(9)) - set(space.select(scores, at_most={"{edge}/*/w": 1})))
        best = {}
        for group in space.groups:
            own = group.paths[0].removesuffix("/w")
            best.setdefault(own[:3], []).append((scores[group.index], own))
        assert stay == {min(each)[1] for each in best.values()}
    assert len(space.select(scores, at_most={"**/{op}/w": 2})) == 3
    assert len(space.select(scores, at_most={"{edge}/*/w": 2, "*/{op}/w": 1})) == 6


def test_fewer_stay_only_if_the_loss_falls_without_and_the_network_stays_valid(space):
    by_name = {group.paths[0].removesuffix("/w"): group.index for group in space.groups}
    scores = np.ones(9)
    for op, rise in zip(OPS, (1.0, 2.0, 3.0), strict=True):
        scores[by_name[f"e02/{op}"]] = -rise
    # All of e01 and e12 can go: the path through e02 is enough.
    useless = {f"{name}/{op}" for name in ("e01", "e12") for op in OPS}
    selected = space.select(scores, at_most={"{edge}/*/w": 1}, per_cost=True)
    assert names(space, selected) == useless | {"e02/a", "e02/b"}
    assert len(space.select(scores, at_most={"{edge}/*/w": 1})) == 6
    # With all of them to be gone, one way through stays.
    assert space.is_valid(space.select(np.arange(1.0, 10.0), at_most={"{edge}/*/w": 1}, per_cost=True))


def test_a_node_keeps_the_best_operations_of_its_best_edges():
    """One operation of an edge and two of a node, as in DARTS: a limit is met before the next one is looked at."""
    edges = [f"from{i}_{op}_{size}" for i in range(3) for op in "ab" for size in (3, 5)]
    params = {name: {"w": jnp.ones((3, 3))} for name in edges}
    space = jasgnas.search_space(
        lambda params, x: reduce(add, (jnp.tanh(x @ own["w"]) for own in params.values())), X, params=params
    )
    rng = np.random.default_rng(2)
    for _ in range(5):
        scores = scores_of(space, rng)
        removed = space.select(scores, at_most={"from{source}_*/w": 1, "*/w": 2})
        best = {}
        for group in space.groups:
            best.setdefault(group.paths[0][:5], []).append((scores[group.index], group.paths[0].removesuffix("/w")))
        expected = sorted(map(min, best.values()))[:2]
        assert names(space, set(range(12)) - set(removed)) == {name for _, name in expected}


def test_another_target_is_met_as_well(space):
    scores = scores_of(space, np.random.default_rng(1))
    alone = set(space.select(scores, at_most={"{edge}/*/w": 1}))
    more = set(space.select(scores, at_most={"{edge}/*/w": 1}, target_groups=7))
    assert alone < more
    assert len(more) == 7
    small = set(space.select(scores, at_most={"{edge}/*/w": 1}, target_macs=18, per_cost=True))
    assert space.subnet_size(small)[1] <= 18
    assert space.is_valid(small)


def deep_cell(params, x):
    """The cell with operations of two layers each, so that they have channels inside."""

    def edge(own, x):
        return reduce(add, (jnp.tanh(x @ own[op]["up"]) @ own[op]["down"] for op in OPS))

    return edge(params["e02"], x) + edge(params["e12"], edge(params["e01"], x))


@pytest.fixture(scope="module")
def deep_spaces():
    """The same network with channels and without."""
    shapes = {"up": (3, 4), "down": (4, 3)}
    params = {n: {op: {k: jnp.ones(s) for k, s in shapes.items()} for op in OPS} for n in EDGES}
    return [jasgnas.search_space(deep_cell, X, params=params, channels=each) for each in (True, False)]


def test_limits_hold_beside_channels(deep_spaces):
    """Structures go as they do without channels, and channels on top of that to meet a size."""
    mixed, plain = deep_spaces
    num = len(plain.groups)
    assert [group.name for group in mixed.groups[:num]] == [group.name for group in plain.groups]
    assert len(mixed.groups) == num + 9 * 4 + 3
    at_most = {"{edge}/*/*": 1}
    rng = np.random.default_rng(4)
    for _ in range(4):
        scores = rng.permutation(len(mixed.groups)).astype(float)
        alone = mixed.select(scores, at_most=at_most)
        assert alone == plain.select(scores[:num], at_most=at_most)
        for target in ({"target_macs": 0.2}, {"target_groups": {"structure": 7, "channel": 2}}):
            removed = set(mixed.select(scores, at_most=at_most, **target))
            assert removed >= set(alone)
            assert mixed.is_valid(removed)
            assert "target_macs" in target or len(removed) == 9
            assert "target_groups" in target or mixed.subnet_size(removed)[1] <= 0.2 * mixed.subnet_size(())[1]
    # With a size that is met by any one operation less, the limits decide all the same.
    assert set(mixed.select(scores, at_most=at_most, target_macs=0.95)) == set(alone)
    # Of an edge nothing stays where the loss falls without it.
    rises = np.ones(len(mixed.groups))
    rises[[group.index for group in plain.groups if group.paths[0].startswith("e01")]] = -1.0
    useful = mixed.select(-rises, at_most=at_most, per_cost=True)
    assert useful == plain.select(-rises[:num], at_most=at_most, per_cost=True)
    assert names(plain, useful) >= {f"e01/{op}/down" for op in OPS}


def test_what_cannot_be_met_beside_channels_is_said(deep_spaces):
    mixed, _ = deep_spaces
    scores = np.arange(float(len(mixed.groups)))
    for message, kind, options in (
        (
            "removes 5 groups, and at_most={'{edge}/\\*/\\*': 1} asks for 6",
            TargetError,
            {"target_groups": {"structure": 5}},
        ),
        ("at most 0 of the groups .* with edge=e02 were to stay, and 1 are", TargetError, {"at_most": 0}),
        ("matches no group", ArgumentError, {"at_most": 1, "pattern": "x/**"}),
    ):
        at_most = {options.pop("pattern", "{edge}/*/*"): options.pop("at_most", 1)}
        with pytest.raises(kind, match=message):
            mixed.select(scores, at_most=at_most, **options)


def test_what_cannot_be_met_is_said(space):
    scores = np.arange(9.0)
    for message, kind, options in (
        ("target_groups=5 removes 5 groups, and at_most=.* asks for 6", TargetError, {"target_groups": 5}),
        ("at most 0 of the groups {edge}/\\*/w with edge=e02 were to stay, and 1 are", TargetError, {"at_most": 0}),
        ("must be an int, at least 0", ArgumentError, {"at_most": -1}),
    ):
        options = {"at_most": {"{edge}/*/w": options.pop("at_most", 1)}} | options
        with pytest.raises(kind, match=message):
            space.select(scores, **options)
    with pytest.raises(
        ArgumentError,
        match=re.escape(
            "at_most={'x/**': 1} matches no group, of structures and gates; a pattern must match all paths of one. "
            "They look like e0"
        ),
    ):
        space.select(scores, at_most={"x/**": 1})
    with pytest.raises(ArgumentError, match="must map patterns"):
        space.select(scores, at_most=1)


@pytest.mark.parametrize("target", [{}, {"target_groups": 7}, {"target_params": 0.5}, {"target_macs": 0.5}])
def test_a_transformation_may_be_made_while_its_caller_is_traced(space, target):
    rng = np.random.default_rng(0)
    params = {name: {op: {"w": rng.normal(size=(3, 3)).astype(np.float32)} for op in OPS} for name in EDGES}

    def selected(params):
        tx = jasgnas.h2spg(
            space,
            learning_rate=0.1,
            at_most={"{edge}/*/w": 1},
            warmup_steps=1,
            projection_steps=1,
            score="magnitude",
            **target,
        )
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(params, state, params)
        return state.redundant

    expected = selected(params)
    assert int(expected.sum()) >= 6
    np.testing.assert_array_equal(jax.jit(selected)(params), expected)
