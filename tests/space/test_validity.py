"""Validity and selection, each against the slow and obvious version of itself."""

from functools import partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.space import validity
from jasgnas.space.selection import SizeCosts, falling_order, select_redundant, take_number, take_to_size, to_digits
from jasgnas.space.sizes import Costs, Measure, subnet_size
from jasgnas.space.validity import DependenceGraph, alive_vertices, critical_vertices, is_valid, largest_removal


def make_graph(segments, outputs):
    """A graph from rows `(senders, additive, num_external, group)`, one per segment."""
    edges = [(sender, receiver) for receiver, row in enumerate(segments) for sender in row[0]]
    senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
    _, additive, num_external, group = zip(*segments, strict=True)
    return DependenceGraph(
        senders=senders,
        receivers=receivers,
        passes_zeros=np.ones(len(edges), bool),
        additive=np.array(additive, bool),
        num_external=np.array(num_external, np.int32),
        outputs=np.array(outputs, np.int32),
        group=np.array(group, np.int32),
        segment=np.arange(len(segments), dtype=np.int32),
    )


# DemoNet: stem 0; branches 1, 2, 3 joined by the concatenation 4; conv6 5; conv7 6 and conv8 7 added in 8; head 9.
DEMO_NET = make_graph(
    [
        ([], False, 1, -1),
        ([0], False, 0, 0),
        ([0], False, 0, 1),
        ([0], False, 0, 2),
        ([1, 2, 3], True, 0, -1),
        ([4], False, 0, -1),
        ([5], False, 0, 3),
        ([5], False, 0, 4),
        ([6, 7], True, 0, -1),
        ([8], False, 0, -1),
    ],
    [9],
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


def random_graph(rng, num_segments, num_groups):
    """A random AND–OR graph, as dense in traps as can be: repeated inputs, external inputs, several outputs."""
    groups = np.full(num_segments, -1)
    groups[rng.choice(num_segments, num_groups, replace=False)] = rng.permutation(num_groups)
    segments = []
    for segment in range(num_segments):
        senders = rng.integers(0, segment, rng.integers(1, 5)).tolist() if segment else []
        segments.append((senders, bool(segment and rng.random() < 0.6), int(rng.random() < 0.1), int(groups[segment])))
    return make_graph(segments, [num_segments - 1, *rng.integers(0, num_segments, rng.integers(0, 3))])


def brute_alive(graph, removed):
    """Iterates the definition from all alive until nothing changes."""
    alive = np.ones(graph.group.size, bool)
    for _ in range(alive.size + 1):
        for segment in range(alive.size):
            inputs = alive[graph.senders[graph.receivers == segment]].tolist()
            inputs += [True] * graph.num_external[segment]
            fed = any(inputs) if graph.additive[segment] else all(inputs)
            gone = graph.group[segment] >= 0 and removed[graph.group[segment]]
            alive[segment] = fed and not gone
    return alive


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


NUM_SEGMENTS, NUM_GROUPS = 14, 7


def random_cases(rng, num_cases):
    """Random graphs with scores, a fallback and a part of it that is accepted already."""
    cases = []
    while len(cases) < num_cases:
        graph = random_graph(rng, NUM_SEGMENTS, NUM_GROUPS)
        largest = np.isin(np.arange(NUM_GROUPS), largest_removal(graph, NUM_GROUPS))
        if largest.any():
            # Few distinct scores, so that ties are common, and now and then NaN.
            scores = rng.choice([0.0, 0.5, 1.0, 2.0, np.inf, np.nan], NUM_GROUPS, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
            accepted = np.zeros(NUM_GROUPS, bool)
            accepted[rng.choice(np.flatnonzero(largest), rng.choice([0, largest.sum() // 2]), replace=False)] = True
            cases.append((graph, scores, largest, accepted))
    return cases


def select_in_all(cases, take, targets):
    """Selects in all graphs with one compilation: `take(graph, order, eligible, target)`, targets stacked."""
    graphs, *vectors = zip(*cases, strict=True)
    num_edges = max(graph.senders.size for graph in graphs)
    padded = [pad_graph(graph, num_edges, 3) for graph in graphs]
    critical = [np.append(critical_vertices(graph), False) for graph in graphs]

    def select(graph, critical, target, scores, fallback, accepted):
        return select_redundant(graph, critical, scores, partial(take, graph, target), fallback, accepted)

    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *padded)
    return jax.jit(jax.vmap(select))(stacked, np.stack(critical), targets, *map(np.stack, vectors))


def pad_graph(graph, num_edges, num_outputs):
    """The same graph with further edges into an extra segment that nothing reads, and outputs repeated."""
    extra = graph.group.size
    missing = num_edges - graph.senders.size
    return DependenceGraph(
        senders=np.append(graph.senders, np.zeros(missing, np.int32)),
        receivers=np.append(graph.receivers, np.full(missing, extra, np.int32)),
        passes_zeros=np.append(graph.passes_zeros, np.zeros(missing, bool)),
        additive=np.append(graph.additive, False),
        num_external=np.append(graph.num_external, 0),
        outputs=np.resize(graph.outputs, num_outputs),
        group=np.append(graph.group, -1),
        segment=np.append(graph.segment, graph.segment.max() + 1),
    )


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


def random_costs(rng, graph):
    """Costs of all magnitudes; savings are part of what their segments cost, some of which are two vertices."""
    graph = graph._replace(
        passes_zeros=rng.random(graph.senders.size) < 0.7,
        segment=np.maximum(graph.segment - (rng.random(graph.segment.size) < 0.2), 0).astype(np.int32),
    )
    num_segments, num_savings = int(graph.segment.max()) + 1, 5
    sizes = (10 ** rng.uniform(0, 13, (2, num_segments))).astype(np.int64)
    savings = (10 ** rng.uniform(0, 13, (2, num_savings))).astype(np.int64)
    segments, groups = rng.integers(0, num_segments, num_savings), rng.integers(0, NUM_GROUPS, num_savings)
    for size, saving in zip(sizes, savings, strict=True):
        np.add.at(size, segments, saving)
    names = zip(("params", "macs"), sizes, savings, strict=True)
    return graph, Costs(
        segments, groups, {name: Measure(int(rng.integers(0, 100)), size, saving) for name, size, saving in names}
    )


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
    num_segments = NUM_SEGMENTS + 1
    size_costs = [
        SizeCosts(
            to_digits(np.resize(np.append(costs.measures["macs"].segments, np.zeros(num_segments, int)), num_segments)),
            costs.saving_segment,
            costs.saving_group,
            to_digits(costs.measures["macs"].savings),
        )
        for costs in all_costs
    ]
    sizes = np.array(sizes)
    targets = sizes - [costs.measures["macs"].fixed for costs in all_costs]
    selected = select_in_all(
        cases,
        lambda graph, target, order, eligible: take_to_size(graph, target[0], order, eligible, target[1]),
        (jax.tree.map(lambda *arrays: np.stack(arrays), *size_costs), to_digits(targets)),
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


@pytest.mark.parametrize(("num", "expected", "is_met"), [(2, [True, False, False, True], True), (9, [True] * 4, False)])
def test_a_number_is_taken_in_order_from_what_there_is(num, expected, is_met):
    order, eligible = jnp.array([2, 0, 3, 1]), jnp.array([True, True, False, True])
    taken, found = take_number(order, eligible, num)
    assert taken.tolist() == (np.array(expected) & np.asarray(eligible)).tolist()
    assert bool(found) is is_met
