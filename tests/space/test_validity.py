"""Validity and selection, each against the slow and obvious version of itself."""

from functools import partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas.space import validity
from jasgnas.space.selection import falling_order, select_redundant, take_number, take_to_size, to_digits
from jasgnas.space.sizes import subnet_size
from jasgnas.space.validity import alive_vertices, critical_vertices, is_valid, largest_removal
from tests.space.dependence_graphs import (
    DEMO_NET,
    NUM_GROUPS,
    brute_alive,
    make_graph,
    pad_graph,
    random_cases,
    random_costs,
    random_graph,
    size_costs_of,
    stack,
)

# A product of two sums, the first of which also reads the network input; the second output is one addend itself.
PRODUCT = make_graph(
    [
        ([], False, 1, 0),
        ([], False, 1, 1),
        ([0], True, 1, -1),
        ([0, 1], True, 0, -1),
        ([2, 3], False, 0, -1),
    ],
    [4, 1],
)
# One segment read twice by a joint: both edges die together.
TWICE = make_graph([([], False, 1, 0), ([0, 0], True, 0, -1)], [1])
# Two branches that only together kill the output, the second through the first.
CASCADE = make_graph(
    [
        ([], False, 1, 0),
        ([], False, 1, 1),
        ([0, 1], True, 0, -1),
        ([2], False, 0, 2),
        ([2], False, 0, 3),
        ([3, 4], True, 0, -1),
    ],
    [5],
)


def brute_greedy(graph, scores, is_enough, fallback, accepted):
    """Sorts, tries, keeps, gives back, judging on the host. Also returns whether the fallback was needed."""
    num_groups = len(scores)
    visits = sorted(range(num_groups), key=lambda g: (not accepted[g], np.isnan(scores[g]), -scores[g], g))
    for eligible in (np.ones(num_groups, bool), fallback):
        removed = accepted.copy()
        for group in visits:
            if not is_enough(removed) and eligible[group]:
                removed[group] = True
                removed[group] = accepted[group] or is_valid(graph, removed)
        if is_enough(removed):
            for group in visits[::-1]:
                fewer = removed & (np.arange(num_groups) != group)
                if removed[group] and not accepted[group] and is_enough(fewer):
                    removed = fewer
            return removed, eligible is fallback
    raise AssertionError("the fallback must be enough")


@pytest.mark.parametrize(
    ("graph", "removed", "valid"),
    [
        pytest.param(DEMO_NET, [], True, id="nothing"),
        pytest.param(DEMO_NET, [0, 1, 4], True, id="two-branches-and-one-addend"),
        pytest.param(DEMO_NET, [0, 1, 2], False, id="every-branch"),
        pytest.param(DEMO_NET, [3, 4], False, id="both-addends"),
        pytest.param(PRODUCT, [0], True, id="sum-with-network-input"),
        pytest.param(PRODUCT, [1], False, id="second-output"),
        pytest.param(TWICE, [0], False, id="read-twice"),
        pytest.param(CASCADE, [0, 1], False, id="cascade"),
        pytest.param(CASCADE, [1, 2], True, id="one-of-each"),
    ],
)
def test_is_valid(graph, removed, valid):
    num_groups = graph.group.max() + 1
    assert is_valid(graph, np.isin(np.arange(num_groups), removed)) is valid


def test_alive_vertices_match_definition():
    rng = np.random.default_rng(0)
    for _ in range(300):
        graph = random_graph(rng, 14, 8)
        removed = rng.random(8) < 0.4
        np.testing.assert_array_equal(alive_vertices(graph, removed), brute_alive(graph, removed))


def test_critical_vertices_are_those_whose_death_alone_kills_an_output():
    rng = np.random.default_rng(1)
    for _ in range(100):
        graph = random_graph(rng, 12, 6)
        # One group per segment turns "this segment dies" into "this group is removed".
        each = graph._replace(group=np.arange(12, dtype=np.int32))
        expected = [not is_valid(each, np.arange(12) == segment) for segment in range(12)]
        if is_valid(each, np.zeros(12, bool)):
            np.testing.assert_array_equal(critical_vertices(graph), expected)


@pytest.mark.parametrize(("graph", "largest"), [(DEMO_NET, 3), (PRODUCT, 1), (TWICE, 0), (CASCADE, 2)], ids=str)
def test_largest_removal_by_hand(graph, largest):
    num_groups = graph.group.max() + 1
    removal = largest_removal(graph, num_groups)
    assert len(removal) == largest
    assert is_valid(graph, np.isin(np.arange(num_groups), removal))


def test_largest_removal_is_largest_on_small_graphs():
    rng = np.random.default_rng(2)
    for _ in range(40):
        graph = random_graph(rng, 16, 8)
        removal = largest_removal(graph, 8)
        assert is_valid(graph, np.isin(np.arange(8), removal))
        larger = combinations(range(8), len(removal) + 1)
        assert not any(is_valid(graph, np.isin(np.arange(8), groups)) for groups in larger)


def test_largest_removal_is_maximal_even_if_it_forgets_alternatives(monkeypatch):
    # (0 or 1) and (1 or 2): one at a time, 0 and 1 look as good as any, but 1 alone will do.
    graph = make_graph(
        [
            ([], False, 1, 0),
            ([], False, 1, 1),
            ([], False, 1, 2),
            ([0, 1], True, 0, -1),
            ([1, 2], True, 0, -1),
            ([3, 4], False, 0, -1),
        ],
        [5],
    )
    monkeypatch.setattr(validity, "_MAX_ALTERNATIVES", 1)
    assert largest_removal(graph, 3) == (0, 2)


def test_largest_removal_is_largest_by_size_on_small_graphs():
    rng = np.random.default_rng(5)
    for _ in range(40):
        graph = random_graph(rng, 14, 6)
        sizes = rng.permutation([64, *rng.integers(1, 65, 5)])
        removed = np.isin(np.arange(6), largest_removal(graph, 6, sizes.tolist()))
        subsets = np.array(list(product([False, True], repeat=6)))
        if is_valid(graph, removed):
            largest = max(sizes @ subset for subset in subsets if is_valid(graph, subset))
            assert sizes @ removed == largest
        else:
            assert not is_valid(graph, np.zeros(6, bool))


def test_largest_removal_with_many_equal_alternatives():
    # Twelve pairs of addends, each sum alone in a product: 2¹² sets of groups keep the output alive.
    pairs = [([], False, 1, group) for group in range(24)]
    sums = [([2 * pair, 2 * pair + 1], True, 0, -1) for pair in range(12)]
    graph = make_graph([*pairs, *sums, (list(range(24, 36)), False, 0, -1)], [36])
    assert len(largest_removal(graph, 24)) == 12


def select_in_all(cases, take, targets):
    """Selects in all graphs with one compilation: `take(graph, order, eligible, target)`, targets stacked."""
    graphs, *vectors = zip(*cases, strict=True)
    num_edges = max(graph.senders.size for graph in graphs)
    padded = [pad_graph(graph, num_edges, 3) for graph in graphs]
    critical = [np.append(critical_vertices(graph), False) for graph in graphs]

    def select(graph, critical, target, scores, fallback, accepted):
        return select_redundant(graph, critical, scores, partial(take, graph, target), fallback, accepted)

    return jax.jit(jax.vmap(select))(stack(padded), np.stack(critical), targets, *map(np.stack, vectors))


def test_selection_of_a_number_matches_brute_force_greedy():
    rng = np.random.default_rng(3)
    cases = random_cases(rng, 2000)
    targets = np.array([
        rng.choice([rng.integers(max(1, accepted.sum()), largest.sum() + 1), *[largest.sum()] * 3])
        for _, _, largest, accepted in cases
    ])  # fmt: skip
    selected = select_in_all(cases, lambda graph, num, order, eligible: take_number(order, eligible, num), targets)
    num_short = 0
    for (graph, scores, largest, accepted), num, found in zip(cases, targets, selected, strict=True):
        expected, is_short = brute_greedy(
            graph, scores, lambda removed, num=num: removed.sum() == num, largest, accepted
        )
        np.testing.assert_array_equal(found, expected)
        assert is_valid(graph, np.asarray(found))
        num_short += is_short
    assert num_short > 10  # the fallback was needed, and compared, often enough


def test_selection_to_a_size_matches_brute_force_greedy():
    rng = np.random.default_rng(4)
    cases, all_costs, sizes = [], [], []
    for case in random_cases(rng, 1000):
        graph, _, largest, _ = case
        graph, costs = random_costs(rng, graph)
        least, full = (subnet_size(graph, costs, removed)["macs"] for removed in (largest, np.zeros(NUM_GROUPS, bool)))
        if least < full:
            cases.append((graph, *case[1:]))
            all_costs.append(costs)
            sizes.append(rng.choice([least, full - 1, rng.integers(least, full)]))
    assert len(cases) > 500
    size_costs = stack([size_costs_of(costs, "macs") for costs in all_costs])
    sizes = np.array(sizes)
    targets = sizes - [costs.measures["macs"].fixed for costs in all_costs]
    selected = select_in_all(
        cases,
        lambda graph, target, order, eligible: take_to_size(graph, target[0], order, eligible, target[1]),
        (size_costs, to_digits(targets)),
    )
    num_short = 0
    for (graph, scores, largest, accepted), costs, size, found in zip(cases, all_costs, sizes, selected, strict=True):
        expected, is_short = brute_greedy(
            graph,
            scores,
            lambda removed, graph=graph, costs=costs, size=size: subnet_size(graph, costs, removed)["macs"] <= size,
            largest,
            accepted,
        )
        np.testing.assert_array_equal(found, expected)
        assert is_valid(graph, np.asarray(found))
        num_short += is_short
    assert num_short > 10


def test_selection_refuses_the_second_addend_of_demo_net():
    scores = jnp.array([0.1, 0.2, 0.3, 1.0, 0.9])  # conv7 first, so conv8 must be refused
    selected = select_redundant(
        DEMO_NET,
        critical_vertices(DEMO_NET),
        scores,
        partial(take_number, num=3),
        jnp.zeros(5, bool),
        jnp.zeros(5, bool),
    )
    assert np.flatnonzero(selected).tolist() == [1, 2, 3]


def test_order_puts_accepted_first_and_nan_last_and_breaks_ties_by_index():
    scores = jnp.array([jnp.nan, 1.0, -jnp.inf, 1.0, jnp.inf, -1.0])
    accepted = jnp.array([False, False, False, False, False, True])
    assert falling_order(scores, accepted).tolist() == [5, 4, 1, 3, 2, 0]
    saved = jnp.array([9.0, 1.0, 9.0, 2.0, 0.0, 0.0])
    assert falling_order(scores, accepted, saved).tolist() == [5, 4, 3, 1, 2, 0]


@pytest.mark.parametrize("given", [{"target_groups": 1}, {"target_macs": 0.99}, {"target_params": 0.99}])
@pytest.mark.parametrize("per_cost", [False, True])
def test_of_equal_scores_the_largest_saving_goes_first(given, per_cost):
    params = {name: jnp.ones(shape) for name, shape in {"small": (3, 4), "wide": (3, 6), "wider": (3, 9)}.items()}
    params |= {f"{name}_out": jnp.ones((leaf.shape[1], 2)) for name, leaf in params.items()}
    space = jasgnas.search_space(
        lambda params, x: sum(
            jnp.tanh(x @ params[name]) @ params[f"{name}_out"] for name in ("small", "wide", "wider")
        ),
        jnp.ones((2, 3)),
        params=params,
    )
    (index,) = space.select(jnp.full(len(space.groups), -0.5), per_cost=per_cost, **given)
    assert "wider" in space.groups[index].name


@pytest.mark.parametrize(("num", "expected", "is_met"), [(2, [True, False, False, True], True), (9, [True] * 4, False)])
def test_a_number_is_taken_in_order_from_what_there_is(num, expected, is_met):
    order, eligible = jnp.array([2, 0, 3, 1]), jnp.array([True, True, False, True])
    taken, found = take_number(order, eligible, num)
    assert taken.tolist() == (np.array(expected) & np.asarray(eligible)).tolist()
    assert bool(found) is is_met
