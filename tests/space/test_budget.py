"""Selection by cost per unit saved, against a slow and obvious version of it, and against the best there is."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas import ArgumentError, TargetError
from jasgnas.space import budget
from jasgnas.space.budget import select_by_cost
from jasgnas.space.groups import LeafSlice
from jasgnas.space.selection import to_digits
from jasgnas.space.sizes import Costs, Measure
from jasgnas.space.targets import resolve_target
from jasgnas.space.validity import critical_vertices
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import build, subsets
from tests.optimizer.h2spg_problem import make_candidates
from tests.space.dependence_graphs import (
    NUM_GROUPS,
    brute_alive,
    make_graph,
    pad_graph,
    random_cases,
    random_chain,
    random_costs,
    random_graph,
    size_costs_of,
    stack,
)

NOTHING = np.zeros(0, np.int64)


def brute_size(graph, costs, removed):
    """Iterates the definition of what is zero and what is of use until nothing changes; multiply-adds of the rest."""
    vertices = range(graph.group.size)
    edges = list(zip(graph.senders.tolist(), graph.receivers.tolist(), graph.passes_zeros.tolist(), strict=True))
    zero = [group >= 0 and bool(removed[group]) for group in graph.group]
    useful = [True for _ in vertices]
    before = None
    while before != (zero, useful):
        before = zero.copy(), useful.copy()
        for vertex in vertices:
            inputs = [(zero[sender], passes) for sender, receiver, passes in edges if receiver == vertex]
            if graph.additive[vertex]:
                zero[vertex] |= not graph.num_external[vertex] and all(is_zero for is_zero, _ in inputs)
            else:
                zero[vertex] |= any(is_zero and passes for is_zero, passes in inputs)
            readers = [receiver for sender, receiver, _ in edges if sender == vertex]
            useful[vertex] &= vertex in graph.outputs or any(useful[each] and not zero[each] for each in readers)
    counted = {int(graph.segment[vertex]) for vertex in vertices if useful[vertex] and not zero[vertex]}
    own = costs.measures["macs"]
    savings = zip(costs.saving_segment, costs.saving_group, own.savings, strict=True)
    saved = sum(int(saving) for segment, group, saving in savings if segment in counted and removed[group])
    return own.fixed + sum(int(own.segments[segment]) for segment in counted) - saved


EVENTS = ("refused", "fallback", "given back", "exchanged", "given back after an exchange", "better by cost alone")


class Brute:
    """The selection in plain Python: sets of groups, judged by `is_valid` and `size_of`, which are given sets.

    Where groups are ordered, not judged, numbers are rounded as the library says: to float32, from digits of 12 bits.
    """

    def __init__(self, num_groups, rises, is_valid, size_of, num_renewals=32, max_candidates=32, max_passes=6):
        self.groups, self.is_valid, self.size_of = range(num_groups), is_valid, size_of
        self.rises = np.asarray(rises, np.float32)
        self.interval = max(1, num_groups // num_renewals)
        self.max_candidates, self.max_passes = max_candidates, max_passes
        self.events = set()

    def select(self, size, share, fallback, accepted):
        """Returns what is planned, this round's share, and the runner-up."""
        planned = self.best(size, accepted, self.groups, self.groups)
        if planned is None:
            self.events.add("fallback")
            planned = self.best(size, accepted, fallback, self.groups)
        redundant = self.best(share, accepted, planned, planned) if share != size else planned
        order = self.order([group for group in self.groups if group not in planned], planned, True)
        return planned, redundant, next((group for group in order if self.is_valid(planned | {group})), -1)

    def best(self, *goal):
        by_ratio, by_cost = (self.take(*goal, choice) for choice in (True, False))
        if by_ratio is None or by_cost is None:
            return by_ratio or by_cost
        rises = np.where(np.isnan(self.rises), np.inf, self.rises)
        totals = [sum(rises[list(taken)], np.float32(0)) for taken in (by_ratio, by_cost)]
        if totals[1] < totals[0]:
            self.events.add("better by cost alone")
        return by_cost if totals[1] < totals[0] else by_ratio

    def take(self, size, start, eligible, exchangeable, by_ratio):
        taken, open_groups, num_taken, until = start, [g for g in eligible if g not in start], 0, 0
        while open_groups and self.size_of(taken) > size:
            if num_taken == until:
                order, until = self.order(open_groups, taken, by_ratio), num_taken + self.interval
                self.savings = self.all_savings(taken)
            group = order.pop(0)
            open_groups.remove(group)
            if self.is_valid(taken | {group}):
                taken, num_taken = taken | {group}, num_taken + 1
            else:
                self.events.add("refused")
        if self.size_of(taken) > size:
            return None
        return self.improve(taken, size, start, exchangeable)

    def improve(self, taken, size, start, exchangeable):
        falling = np.argsort(self.rises, stable=True)[::-1].tolist()
        for number in range(1, self.max_passes + 1):
            before = taken
            for group in falling:
                if group not in taken or group in start:
                    continue
                fewer = taken - {group}
                if self.size_of(fewer) <= size:
                    self.events.add("given back" if number == 1 else "given back after an exchange")
                    taken = fewer
                elif 1 < number < self.max_passes:
                    taken = self.exchange(fewer, group, size, exchangeable)
            if number > 1 and taken == before:
                break
        return taken

    def exchange(self, fewer, group, size, exchangeable):
        rises = np.where(np.isnan(self.rises), np.inf, self.rises)
        cheaper = [g for g in exchangeable if g not in fewer and rises[g] < rises[group]]
        needed = rounded(self.size_of(fewer) - size)
        cheaper = sorted(cheaper, key=lambda g: (self.savings[g] < needed, rises[g], g))[: self.max_candidates]
        possible = [g for g in cheaper if self.size_of(fewer | {g}) <= size and self.is_valid(fewer | {g})]
        if possible:
            self.events.add("exchanged")
        return fewer | {min(possible, key=lambda g: (rises[g], g), default=group)}

    def all_savings(self, taken):
        return [rounded(self.size_of(taken) - self.size_of(taken | {group})) for group in self.groups]

    def order(self, groups, taken, by_ratio):
        savings = self.all_savings(taken)
        if not by_ratio:

            def by_cost(group):
                is_unknown = bool(np.isnan(self.rises[group]))
                return is_unknown, 0 if is_unknown else self.rises[group], -savings[group], group

            return sorted(groups, key=by_cost)
        largest = max(*savings, np.float32(1))

        def key(group):
            rise, saving = self.rises[group], savings[group]
            if np.isnan(rise):
                return 3, 0, -saving, group
            if rise <= 0:
                return 0, 0, -saving, group
            return (1, rise / (saving / largest), -saving, group) if saving > 0 else (2, rise, 0, group)

        return sorted(groups, key=key)


def rounded(number):
    value = np.float32(0)
    for place in range(6):
        value += np.float32(number >> 12 * place & 4095) * np.float32(2.0 ** (12 * place))
    return value


def members(mask):
    return frozenset(np.flatnonzero(mask).tolist())


def make_cases(rng, num_cases):
    """Random graphs, costs and rises, what is accepted already, and the sizes of a target and of a round's share."""
    rises = [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, np.inf, np.nan]
    cases = []
    while len(cases) < num_cases:
        for graph, _, fallback, accepted in random_cases(rng, 20, random_graph if rng.random() < 0.2 else random_chain):
            graph, costs = random_costs(rng, graph, decades=rng.choice([2, 13]))
            full, least, now = (brute_size(graph, costs, each) for each in (np.zeros(NUM_GROUPS), fallback, accepted))
            if least < min(full, now):
                size = rng.choice([least, rng.integers(least, full)])
                share = rng.choice([size, rng.integers(size, full)])
                own = rng.choice(rises, NUM_GROUPS, p=[0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 0.15, 0.05, 0.05])
                own = own * rng.choice([1, rng.uniform(0.5, 2)], NUM_GROUPS)
                cases.append((graph, costs, own.astype(np.float32), size, share, fallback, accepted))
    return cases[:num_cases]


def padded(cases):
    """The arguments of `select_by_cost`, stacked."""
    graphs, costs, rises, sizes, shares, fallbacks, accepted = zip(*cases, strict=True)
    num_edges = max(graph.senders.size for graph in graphs)
    fixed = np.array([each.measures["macs"].fixed for each in costs])
    return (
        stack([pad_graph(graph, num_edges, 3) for graph in graphs]),
        np.stack([np.append(critical_vertices(graph), False) for graph in graphs]),
        stack([size_costs_of(each, "macs") for each in costs]),
        -np.stack(rises),
        to_digits(sizes - fixed),
        to_digits(shares - fixed),
        np.stack(fallbacks),
        np.stack(accepted),
    )


@pytest.mark.parametrize("bounds", [(32, 32, 6), (2, 2, 3)], ids=["exhaustive", "bounded"])
def test_selection_matches_brute_force(bounds, monkeypatch):
    for name, bound in zip(("_NUM_RENEWALS", "_MAX_CANDIDATES", "_MAX_PASSES"), bounds, strict=True):
        monkeypatch.setattr(budget, name, bound)
    cases = make_cases(np.random.default_rng(0), 160)
    arguments = padded(cases)
    select = jax.jit(lambda *arguments: select_by_cost(*arguments))  # its own, for the bounds of its own
    events = []
    for number, (graph, costs, rises, size, share, fallback, accepted) in enumerate(cases):
        planned, redundant, runner_up = select(*jax.tree.map(lambda array, number=number: array[number], arguments))

        @cache
        def is_valid(groups, graph=graph):
            return bool(brute_alive(graph, np.isin(range(NUM_GROUPS), list(groups)))[graph.outputs].all())

        @cache
        def size_of(groups, graph=graph, costs=costs):
            return brute_size(graph, costs, np.isin(range(NUM_GROUPS), list(groups)))

        brute = Brute(NUM_GROUPS, rises, is_valid, size_of, *bounds)
        expected = brute.select(size, share, members(fallback), members(accepted))
        assert (members(planned), members(redundant), runner_up) == expected
        assert is_valid(members(planned)) and size_of(members(planned)) <= size
        events += brute.events
    counts = {event: events.count(event) for event in EVENTS}
    assert min(counts.values()) >= 1, counts  # each of them was needed, and compared


@cache
def space_of(cls):
    x = jax.ShapeDtypeStruct((2, 8, 8, 1 if cls is DemoNet else 3), jnp.float32)
    return jasgnas.search_space(build(cls, width=0.1), x)


@partial(jax.jit, static_argnames=("by_cost", "hierarchical"))
def select_jitted(target, scores, number, planned, accepted, by_cost, hierarchical):
    return target.select(scores, number, planned, accepted, by_cost=by_cost, hierarchical=hierarchical)


def select(target, scores, by_cost, number=-1, planned=None, accepted=None, hierarchical=True):
    """Selects for a target, from scratch if nothing is planned yet; compiled once for networks of equal size."""
    nothing = np.zeros(scores.shape, bool)
    planned = np.isin(range(len(scores)), target.reachable) if planned is None else planned
    accepted = nothing if accepted is None else accepted
    target = replace(target, reachable=())
    return select_jitted(target, scores, number, planned, accepted, by_cost=by_cost, hierarchical=hierarchical)


def selected(target, rises, **options):
    return np.flatnonzero(select(target, -np.asarray(rises, np.float32), **options).redundant).tolist()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("cls", "bound"), [(DemoNet, 2), (StackedUnets, 12)])
def test_a_selection_by_cost_is_never_worse_than_by_falling_score_and_mostly_the_best(cls, bound):
    space = space_of(cls)
    num_groups = len(space.groups)
    valid = [np.isin(range(num_groups), each) for each in subsets(num_groups) if space.is_valid(each)]
    macs = np.array([space.subnet_size(np.flatnonzero(removed))[1] for removed in valid])
    least = max(space.subnet_size(space.candidates.largest_removal(measure))[1] for measure in (None, "macs"))
    rng = np.random.default_rng(0)
    factors = []
    for _ in range(100):
        size = int(rng.integers(least, macs.max()))
        rises = rng.lognormal(size=num_groups).astype(np.float32)
        target = resolve_target(space.candidates, {"target_macs": size}, 1, True)
        falling, by_cost = (selected(target, rises, by_cost=by_cost) for by_cost in (False, True))
        assert space.is_valid(by_cost) and space.subnet_size(by_cost)[1] <= size
        assert not any(space.subnet_size(set(by_cost) - {group})[1] <= size for group in by_cost)
        best = min(rises @ removed for removed, left in zip(valid, macs, strict=True) if left <= size)
        factors.append((rises[by_cost].sum() / best, rises[falling].sum() / best))
    by_cost, falling = np.array(factors).T
    assert (by_cost <= falling * (1 + 1e-6)).all() and by_cost.max() <= bound
    assert np.mean(by_cost < 1 + 1e-6) >= 0.95 > np.mean(falling < 1 + 1e-6)


def make_chain(sizes):
    """Candidates of a chain of blocks, each a group of a size beside a shortcut, and a stem of size 7."""
    num_groups = len(sizes)
    rows = [([], False, 1, -1)]
    for group in range(num_groups):
        rows += [([2 * group], False, 0, group), ([2 * group, 2 * group + 1], True, 0, -1)]
    macs = np.array([7] + [part for size in sizes for part in (size, 0)])
    slices = [(LeafSlice(str(group)),) for group in range(num_groups)]
    shapes = {str(group): (4,) for group in range(num_groups)}
    costs = Costs(NOTHING, NOTHING, {"macs": Measure(0, macs, NOTHING)})
    return make_candidates(slices, shapes, make_graph(rows, [2 * num_groups]), 0, costs)


@pytest.mark.parametrize(
    ("rises", "sizes", "saved", "expected"),
    [
        # By cost per unit 0, 1 and then enough; but 0 is not needed beside 1.
        pytest.param([1, 20, 50], [10, 100, 100], 100, [1], id="given-back"),
        # By cost per unit 0 and 1; 2 takes the place of 1, which saves more than is needed.
        pytest.param([3, 8, 5], [60, 80, 45], 100, [0, 2], id="exchanged"),
        # 0 is the best by its ratio, 1 and 2 together cost less.
        pytest.param([5, 2, 2], [100, 30, 30], 60, [1, 2], id="by-cost-alone"),
        # What costs nothing goes first, although 0 would do at a tiny cost; of that, what saves most.
        pytest.param([0.01, 5, 0, -1], [1000, 1, 30, 20], 50, [2, 3], id="free-first"),
        pytest.param([-1, 9, -1, 9], [50, 20, 60, 90], 60, [2], id="of-the-free-the-largest"),
        # Nothing saved: never before what saves something, whatever it costs.
        pytest.param([1e-6, 5, 1], [0, 50, 50], 100, [1, 2], id="saves-nothing"),
        pytest.param([np.nan, 5, np.inf], [90, 20, 90], 20, [1], id="nan-last"),
        pytest.param([np.nan, 5, np.inf], [90, 20, 90], 100, [1, 2], id="infinite-before-nan"),
        # So small that cost per unit would be rounded to zero.
        pytest.param([3e-36, 1e-36, 2e-36], [10**12, 10**12, 10**12], 10**12, [1], id="tiny"),
    ],
)
def test_selection_by_hand(rises, sizes, saved, expected):
    candidates = make_chain(sizes)
    target = resolve_target(candidates, {"target_macs": 7 + sum(sizes) - saved}, 1, True)
    assert selected(target, rises, by_cost=True) == expected


def test_selection_is_the_same_where_jax_counts_in_int64():
    candidates = make_chain([60, 80, 45])
    target = resolve_target(candidates, {"target_macs": 92}, 1, True)
    with jax.enable_x64(True):
        assert selected(target, [3, 8, 5], by_cost=True) == [0, 2]


def test_rounds_nest_and_each_meets_its_share():
    space, periods = space_of(StackedUnets), 3
    target = resolve_target(space.candidates, {"target_macs": 0.4}, periods, True)
    full, num_groups = space.subnet_size(())[1], len(space.groups)
    rng, lengths = np.random.default_rng(1), []
    for _ in range(10):
        planned, redundant, number_taken = None, None, []
        for number in range(periods):
            # Scores change between the rounds.
            rises = rng.normal(1, 1, num_groups).astype(np.float32)
            before = set() if redundant is None else set(np.flatnonzero(redundant).tolist())
            planned, redundant, runner_up = select(target, -rises, True, number, planned, redundant)
            taken, whole = np.flatnonzero(redundant).tolist(), np.flatnonzero(planned).tolist()
            assert before <= set(taken) <= set(whole)
            assert space.is_valid(whole) and space.subnet_size(whole)[1] <= int(0.4 * full)
            assert space.subnet_size(taken)[1] <= full - (full - int(0.4 * full)) * (number + 1) // periods
            assert runner_up == -1 or space.is_valid([*whole, int(runner_up)]) and runner_up not in whole
            number_taken.append(len(taken))
        assert taken == whole
        lengths.append(number_taken)
    assert sum(first < last for first, *_, last in lengths) >= 5


@pytest.mark.exhaustive
def test_same_selection_each_time_and_under_vmap():
    cases = make_cases(np.random.default_rng(3), 4)
    arguments = padded(cases)
    together = jax.jit(jax.vmap(select_by_cost))(*arguments)
    one = jax.jit(select_by_cost)
    for number in range(len(cases)):
        own = jax.tree.map(lambda array, number=number: array[number], arguments)
        first, second = one(*own), one(*own)
        for each in (first, second):
            jax.tree.map(np.testing.assert_array_equal, each, jax.tree.map(lambda x, i=number: x[i], together))


@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_runner_up_is_the_next_that_could_have_gone(by_cost, hierarchical):
    # Group 0 saves most per cost and goes; 1 is the next in order, but beside 0 nothing would be left of its sum.
    rows = [([], False, 1, 0), ([], False, 1, 1), ([0, 1], True, 0, -1), ([2], False, 0, 2), ([2, 3], True, 0, -1)]
    costs = Costs(NOTHING, NOTHING, {"macs": Measure(0, np.array([50, 50, 1, 50, 1]), NOTHING)})
    slices = [(LeafSlice(str(group)),) for group in range(3)]
    candidates = make_candidates(slices, {str(group): (4,) for group in range(3)}, make_graph(rows, [4]), 0, costs)
    target = resolve_target(candidates, {"target_macs": 102}, 1, hierarchical)
    found = select(target, -jnp.array([1.0, 2.0, 3.0]), by_cost, hierarchical=hierarchical)
    assert np.flatnonzero(found.redundant).tolist() == [0]
    assert found.runner_up == (2 if hierarchical else 1) and found.runner_up.dtype == jnp.int32
    everything = resolve_target(candidates, {"target_macs": 52}, 1, hierarchical)
    assert select(everything, -jnp.array([1.0, 2.0, 3.0]), by_cost, hierarchical=True).runner_up == -1


def test_a_number_of_groups_is_selected_by_falling_score_whatever_scores_mean():
    space = space_of(StackedUnets)
    target = resolve_target(space.candidates, {"target_groups": 3}, 1, True)
    for seed in range(5):
        rises = np.random.default_rng(seed).normal(size=len(space.groups))
        assert selected(target, rises, by_cost=True) == selected(target, rises, by_cost=False)


def test_space_selects_what_h2spg_would():
    space = space_of(DemoNet)
    assert space.select([5, 1, 2, 4, 3], target_groups=2) == (0, 3)
    assert space.select(jnp.array([3, 1, 2, 5, 4]), target_sparsity=0.6) == (0, 2, 3)
    assert space.select([1, 1, 1, 5, 4], target_groups=2, hierarchical=False) == (3, 4)
    assert not space.is_valid((3, 4))
    # Group 2 is nearly as large as 0 and 1, and costs less than the two of them.
    scores = [-2.0, -2.0, -3.0, np.nan, -np.inf]
    size = space.subnet_size([2])[1]
    assert space.select(scores, target_macs=size) == (0, 1)
    assert space.select(scores, target_macs=size, per_cost=True) == (2,)
    assert space.subnet_size(space.select(np.arange(5), target_params=0.6))[0] <= 0.6 * space.subnet_size(())[0]


@pytest.mark.parametrize(
    ("scores", "options", "error", "match"),
    [
        ([1.0, 2.0], {"target_groups": 1}, ArgumentError, r"expected scores of shape .* here \(5,\), got float64 of"),
        (np.ones((5, 1)), {"target_groups": 1}, ArgumentError, r"of shape \(5, 1\)"),
        (list("abcde"), {"target_groups": 1}, ArgumentError, "expected scores .* got <U1"),
        ([np.nan] * 5, {"target_groups": 1}, ArgumentError, "all scores are NaN"),
        (np.ones(5), {}, ArgumentError, "expected exactly one of target_groups"),
        (np.ones(5), {"target_groups": 4}, TargetError, "at most 3 can go together"),
    ],
    ids=str,
)
def test_selection_of_a_space_is_checked(scores, options, error, match):
    with pytest.raises(error, match=match):
        space_of(DemoNet).select(scores, **options)
