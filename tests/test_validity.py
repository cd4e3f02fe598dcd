"""Validity and selection, each against the slow and obvious version of itself."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas import validity
from jasgnas.validity import (
    SegmentTopology,
    alive_segments,
    critical_segments,
    falling_order,
    first_in_order,
    is_valid,
    largest_removal,
    select_redundant,
)


def make_topology(segments, outputs):
    """A topology from rows `(senders, additive, num_external, group)`, one per segment."""
    edges = [(sender, receiver) for receiver, row in enumerate(segments) for sender in row[0]]
    senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
    _, additive, num_external, group = zip(*segments, strict=True)
    return SegmentTopology(
        senders,
        receivers,
        np.array(additive, bool),
        np.array(num_external, np.int32),
        np.array(outputs, np.int32),
        np.array(group, np.int32),
    )


# DemoNet: stem 0; branches 1, 2, 3 joined by the concatenation 4; conv6 5; conv7 6 and conv8 7 added in 8; head 9.
DEMO_NET = make_topology(
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
PRODUCT = make_topology(
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
TWICE = make_topology([([], False, 1, 0), ([0, 0], True, 0, -1)], [1])
# Two branches that only together kill the output, the second through the first.
CASCADE = make_topology(
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


def random_topology(rng, num_segments, num_groups):
    """A random AND–OR graph, as dense in traps as can be: repeated inputs, external inputs, several outputs."""
    groups = np.full(num_segments, -1)
    groups[rng.choice(num_segments, num_groups, replace=False)] = rng.permutation(num_groups)
    segments = []
    for segment in range(num_segments):
        senders = rng.integers(0, segment, rng.integers(1, 5)).tolist() if segment else []
        segments.append((senders, bool(segment and rng.random() < 0.6), int(rng.random() < 0.1), int(groups[segment])))
    return make_topology(segments, [num_segments - 1, *rng.integers(0, num_segments, rng.integers(0, 3))])


def brute_alive(topology, removed):
    """Iterates the definition from all alive until nothing changes."""
    alive = np.ones(topology.group.size, bool)
    for _ in range(alive.size + 1):
        for segment in range(alive.size):
            inputs = alive[topology.senders[topology.receivers == segment]].tolist()
            inputs += [True] * topology.num_external[segment]
            fed = any(inputs) if topology.additive[segment] else all(inputs)
            gone = topology.group[segment] >= 0 and removed[topology.group[segment]]
            alive[segment] = fed and not gone
    return alive


def brute_greedy(topology, scores, num_redundant, accepted):
    """Sorts, tries, keeps; looks at every output each time."""
    visits = sorted(range(len(scores)), key=lambda g: (not accepted[g], np.isnan(scores[g]), -scores[g], g))
    removed = np.zeros(len(scores), bool)
    for group in visits:
        if removed.sum() < num_redundant:
            removed[group] = True
            removed[group] = brute_alive(topology, removed)[topology.outputs].all()
    return removed


@pytest.mark.parametrize(
    ("topology", "removed", "valid"),
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
def test_is_valid(topology, removed, valid):
    num_groups = topology.group.max() + 1
    assert is_valid(topology, np.isin(np.arange(num_groups), removed)) is valid


def test_alive_segments_match_definition():
    rng = np.random.default_rng(0)
    for _ in range(300):
        topology = random_topology(rng, 14, 8)
        removed = rng.random(8) < 0.4
        np.testing.assert_array_equal(alive_segments(topology, removed), brute_alive(topology, removed))


def test_critical_segments_are_those_whose_death_alone_kills_an_output():
    rng = np.random.default_rng(1)
    for _ in range(100):
        topology = random_topology(rng, 12, 6)
        # One group per segment turns "this segment dies" into "this group is removed".
        each = topology._replace(group=np.arange(12, dtype=np.int32))
        expected = [not is_valid(each, np.arange(12) == segment) for segment in range(12)]
        if is_valid(each, np.zeros(12, bool)):
            np.testing.assert_array_equal(critical_segments(topology), expected)


@pytest.mark.parametrize(("topology", "largest"), [(DEMO_NET, 3), (PRODUCT, 1), (TWICE, 0), (CASCADE, 2)], ids=str)
def test_largest_removal_by_hand(topology, largest):
    num_groups = topology.group.max() + 1
    removal = largest_removal(topology, num_groups)
    assert len(removal) == largest
    assert is_valid(topology, np.isin(np.arange(num_groups), removal))


def test_largest_removal_is_largest_on_small_graphs():
    rng = np.random.default_rng(2)
    for _ in range(40):
        topology = random_topology(rng, 16, 8)
        removal = largest_removal(topology, 8)
        assert is_valid(topology, np.isin(np.arange(8), removal))
        larger = combinations(range(8), len(removal) + 1)
        assert not any(is_valid(topology, np.isin(np.arange(8), groups)) for groups in larger)


def test_largest_removal_is_maximal_even_if_it_forgets_alternatives(monkeypatch):
    # (0 or 1) and (1 or 2): one at a time, 0 and 1 look as good as any, but 1 alone will do.
    topology = make_topology(
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
    assert largest_removal(topology, 3) == (0, 2)


def test_largest_removal_with_many_equal_alternatives():
    # Twelve pairs of addends, each sum alone in a product: 2¹² sets of groups keep the output alive.
    pairs = [([], False, 1, group) for group in range(24)]
    sums = [([2 * pair, 2 * pair + 1], True, 0, -1) for pair in range(12)]
    topology = make_topology([*pairs, *sums, (list(range(24, 36)), False, 0, -1)], [36])
    assert len(largest_removal(topology, 24)) == 12


def test_selection_matches_brute_force_greedy():
    num_graphs, num_segments, num_groups = 2000, 14, 7
    rng = np.random.default_rng(3)
    topologies, cases = [], []
    while len(topologies) < num_graphs:
        topology = random_topology(rng, num_segments, num_groups)
        largest = np.isin(np.arange(num_groups), largest_removal(topology, num_groups))
        if largest.any():
            topologies.append(topology)
            num_redundant = rng.choice([rng.integers(1, largest.sum() + 1), largest.sum()])
            # Few distinct scores, so that ties are common, and now and then NaN.
            scores = rng.choice([0.0, 0.5, 1.0, 2.0, np.inf, np.nan], num_groups, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
            accepted = first_members(rng.permutation(num_groups), largest, rng.choice([0, num_redundant // 2]))
            cases.append((scores, num_redundant, largest, accepted))

    # One compilation for all graphs: edges are padded with edges into an extra segment that nothing reads.
    num_edges = max(topology.senders.size for topology in topologies)
    padded = [pad_topology(topology, num_edges, 3) for topology in topologies]
    select = jax.jit(jax.vmap(select_redundant))
    selected = select(
        jax.tree.map(lambda *arrays: np.stack(arrays), *padded),
        np.stack([np.append(critical_segments(topology), False) for topology in topologies]),
        *(np.stack(values) for values in zip(*cases, strict=True)),
    )

    num_short = 0
    for topology, (scores, num_redundant, largest, accepted), found in zip(topologies, cases, selected, strict=True):
        expected = brute_greedy(topology, scores, num_redundant, accepted)
        if expected.sum() < num_redundant:
            num_short += 1
            visits = sorted(np.flatnonzero(largest), key=lambda g: (not accepted[g], np.isnan(scores[g]), -scores[g]))
            expected = np.isin(np.arange(num_groups), visits[:num_redundant])
        np.testing.assert_array_equal(found, expected)
        assert is_valid(topology, np.asarray(found))
    assert num_short > 10  # the fallback was needed, and compared, often enough


def first_members(order, eligible, num):
    """The first `num` groups of `order` that are eligible, as a mask."""
    return np.isin(np.arange(eligible.size), [group for group in order if eligible[group]][:num])


def pad_topology(topology, num_edges, num_outputs):
    extra = topology.group.size
    missing = num_edges - topology.senders.size
    return SegmentTopology(
        np.append(topology.senders, np.zeros(missing, np.int32)),
        np.append(topology.receivers, np.full(missing, extra, np.int32)),
        np.append(topology.additive, False),
        np.append(topology.num_external, 0),
        np.resize(topology.outputs, num_outputs),
        np.append(topology.group, -1),
    )


def test_selection_refuses_the_second_addend_of_demo_net():
    scores = jnp.array([0.1, 0.2, 0.3, 1.0, 0.9])  # conv7 first, so conv8 must be refused
    selected = select_redundant(
        DEMO_NET, critical_segments(DEMO_NET), scores, 3, jnp.zeros(5, bool), jnp.zeros(5, bool)
    )
    assert np.flatnonzero(selected).tolist() == [1, 2, 3]


def test_order_puts_accepted_first_and_nan_last_and_breaks_ties_by_index():
    scores = jnp.array([jnp.nan, 1.0, -jnp.inf, 1.0, jnp.inf, -1.0])
    accepted = jnp.array([False, False, False, False, False, True])
    assert falling_order(scores, accepted).tolist() == [5, 4, 1, 3, 2, 0]


def test_first_in_order_takes_what_there_is():
    order, eligible = jnp.array([2, 0, 3, 1]), jnp.array([True, True, False, True])
    assert first_in_order(order, eligible, 2).tolist() == [True, False, False, True]
    assert first_in_order(order, eligible, 9).tolist() == eligible.tolist()
