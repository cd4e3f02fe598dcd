"""Small dependence graphs, made by hand and at random, and the slow and obvious judgement on them."""

import jax
import numpy as np

from jasgnas.space.selection import SizeCosts, to_digits
from jasgnas.space.sizes import Costs, Measure
from jasgnas.space.validity import DependenceGraph, largest_removal

NUM_SEGMENTS, NUM_GROUPS = 14, 7


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
        required=np.array(outputs, np.int32),
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
    alive, before = np.ones(graph.group.size, bool), None
    while not np.array_equal(alive, before):
        before = alive.copy()
        for segment in range(alive.size):
            inputs = alive[graph.senders[graph.receivers == segment]].tolist()
            inputs += [True] * graph.num_external[segment]
            fed = any(inputs) if graph.additive[segment] else all(inputs)
            gone = graph.group[segment] >= 0 and removed[graph.group[segment]]
            alive[segment] = fed and not gone
    return alive


def random_chain(rng, num_segments, num_groups):
    """A chain of sums, each of one branch and a shortcut, or of two branches; almost everything may go together."""
    segments, groups = [], rng.permutation(num_groups).tolist()
    while groups:
        before = [len(segments) - 1] if segments else []
        branches = [groups.pop() for _ in range(min(rng.integers(1, 3), len(groups)))]
        rows = [(before, False, int(not before), group) for group in branches]
        shortcut = before if len(branches) == 1 else []
        joined = [len(segments) + index for index in range(len(branches))]
        segments += [*rows, (joined + shortcut, True, int(not before and len(branches) == 1), -1)]
    while len(segments) < num_segments:
        segments.append(([len(segments) - 1], False, 0, -1))
    return make_graph(segments, [num_segments - 1])


def random_cases(rng, num_cases, draw=random_graph):
    """Random graphs with scores, a fallback and a part of it that is accepted already."""
    cases = []
    while len(cases) < num_cases:
        graph = draw(rng, NUM_SEGMENTS, NUM_GROUPS)
        largest = np.isin(np.arange(NUM_GROUPS), largest_removal(graph, NUM_GROUPS))
        if largest.any():
            # Few distinct scores, so that ties are common, and now and then NaN.
            scores = rng.choice([0.0, 0.5, 1.0, 2.0, np.inf, np.nan], NUM_GROUPS, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
            accepted = np.zeros(NUM_GROUPS, bool)
            accepted[rng.choice(np.flatnonzero(largest), rng.choice([0, largest.sum() // 2]), replace=False)] = True
            cases.append((graph, scores, largest, accepted))
    return cases


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
        required=np.resize(graph.outputs, num_outputs),
        group=np.append(graph.group, -1),
        segment=np.append(graph.segment, graph.segment.max() + 1),
    )


def random_costs(rng, graph, decades=13):
    """Costs of many magnitudes; savings are part of what their segments cost, some of which are two vertices."""
    graph = graph._replace(
        passes_zeros=rng.random(graph.senders.size) < 0.7,
        segment=np.maximum(graph.segment - (rng.random(graph.segment.size) < 0.2), 0).astype(np.int32),
    )
    num_segments, num_savings = int(graph.segment.max()) + 1, 5
    sizes = (10 ** rng.uniform(0, decades, (2, num_segments))).astype(np.int64)
    savings = (10 ** rng.uniform(0, decades, (2, num_savings))).astype(np.int64)
    segments, groups = rng.integers(0, num_segments, num_savings), rng.integers(0, NUM_GROUPS, num_savings)
    for size, saving in zip(sizes, savings, strict=True):
        np.add.at(size, segments, saving)
    names = zip(("params", "macs"), sizes, savings, strict=True)
    return graph, Costs(
        segments, groups, {name: Measure(int(rng.integers(0, 100)), size, saving) for name, size, saving in names}
    )


def size_costs_of(costs, measure):
    """What the segments of a graph of `random_graph` count, and that which `pad_graph` adds, nothing."""
    own = costs.measures[measure]
    segments = np.zeros(NUM_SEGMENTS + 1, np.int64)
    segments[: len(own.segments)] = own.segments
    return SizeCosts(to_digits(segments), costs.saving_segment, costs.saving_group, to_digits(own.savings))


def stack(trees):
    """The arrays of equal pytrees, stacked for `jax.vmap`."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
