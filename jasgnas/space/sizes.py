"""How large a network is without some groups: nothing is constructed, the sizes of its segments are added up."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph
from jasgnas.program.macs import equation_macs
from jasgnas.space.groups import NOBODY
from jasgnas.space.invariance import Effect, effects_of_parts
from jasgnas.space.sharing import Sharing
from jasgnas.space.structures import num_params
from jasgnas.space.validity import DependenceGraph

UNITS = {"params": "parameters", "macs": "multiply-adds"}
"""What the measures of size count, by their names."""


class Measure(NamedTuple):
    """What counts in one measure of size.

    Attributes:
        fixed: size of what is there whatever goes: parameters that are to be kept.
        segments: int64 `[num_segments]`, size of each segment, and then of what several of them share, see `Sharing`.
        savings: int64 `[num_savings]`, what each saving saves.
    """

    fixed: int
    segments: np.ndarray
    savings: np.ndarray


class Costs(NamedTuple):
    """What each segment contributes to the size of a sub-network.

    What several segments share is a segment among others, after those of the network.

    A segment counts if it is not zero and an output depends on it. It is zero if its group is removed, if it is an
    additive joint of zeros, or if it reads a zero along an edge that passes zeros on. What the removal of a group saves
    in a segment that counts is subtracted.

    Attributes:
        saving_segment: int32 `[num_savings]`, segment in which something is saved.
        saving_group: int32 `[num_savings]`, group whose removal saves it.
        measures: the sizes, by the names of their measures.
    """

    saving_segment: np.ndarray
    saving_group: np.ndarray
    measures: Mapping[str, Measure]

    @property
    def num_segments(self) -> int:
        """Number of segments, and of what they share."""
        return len(next(iter(self.measures.values())).segments)

    def of_groups(self, group_of: np.ndarray, num_groups: int, measure: str) -> np.ndarray:
        """Returns what each group holds and saves in a measure, `[num_groups]`, given the group of each segment."""
        own = self.measures[measure]
        has_group = group_of != NOBODY
        held = np.bincount(group_of[has_group], own.segments[has_group], num_groups)
        return held + np.bincount(self.saving_group, own.savings, num_groups)


def build_costs(
    graph: Graph, leaves: Sequence[Leaf], effects: Sequence[Effect], kept: frozenset[int], sharing: Sharing
) -> Costs:
    """Returns what each segment contributes to the size of a sub-network.

    Args:
        graph: operators and segments.
        leaves: the arrays of the model.
        effects: what the groups save in other segments than their own.
        kept: indices of the leaves that stay whatever is removed.
        sharing: what several segments share.
    """
    params = np.zeros(sharing.num_all, np.int64)
    macs = np.zeros(sharing.num_all, np.int64)
    fixed = sum(num_params(graph.parts[part], leaves) for part in graph.returned - graph.users.keys())
    for index in graph.users:
        size = num_params(graph.parts[index], leaves)
        if graph.parts[index].leaf in kept:
            fixed += size
        else:
            params[sharing.number_of(index)] += size
    # By operator, what of it is of no use without each group: a part of its parameters takes the same part of its
    # multiply-adds with it.
    shares: dict[tuple[int, int], float] = {}
    for effect in effects:
        for group, count in _counts(effect.groups):
            share = count / len(effect.groups)
            shares[effect.operator, group] = max(shares.get((effect.operator, group), 0.0), share)
    for position, number in sharing.contractions:
        macs[number] += equation_macs(graph.program.equations[position])
    # By segment and group, the parameters and multiply-adds that are saved.
    saved: dict[tuple[int, int], np.ndarray] = {}
    for (index, group), share in shares.items():
        for position, number in sharing.numbers_of(graph.operators[index].equations):
            own = saved.setdefault((number, group), np.zeros(2, np.int64))
            own[1] += round(share * equation_macs(graph.program.equations[position]))
    for (index, _), groups in effects_of_parts(graph, effects).items():
        held = graph.parts[index]
        size = 0 if held.leaf in kept else num_params(held, leaves) // len(groups)
        for group, count in _counts(groups):
            own = saved.setdefault((sharing.number_of(index), group), np.zeros(2, np.int64))
            own[0] += size * count
    saved_params, saved_macs = np.array(list(saved.values()), np.int64).reshape(-1, 2).T
    return Costs(
        saving_segment=np.array([segment for segment, _ in saved], np.int32),
        saving_group=np.array([group for _, group in saved], np.int32),
        measures={"params": Measure(fixed, params, saved_params), "macs": Measure(0, macs, saved_macs)},
    )


def _counts(groups: np.ndarray) -> list[tuple[int, int]]:
    """Returns how often each group occurs, given one for each index, `NOBODY` for none."""
    found, counts = np.unique(groups[groups != NOBODY], return_counts=True)
    return list(zip(found.tolist(), counts.tolist(), strict=True))


def counted_segments(graph: DependenceGraph, removed: np.ndarray, num_segments: int) -> np.ndarray:
    """Returns which segments are left in the sub-network without some groups, bool `[num_segments]`.

    Where a branch is dead but not zero, as when only its biases are left, it is counted in full: the sub-network is
    never larger than this.
    """
    num_vertices = len(graph.group)
    inputs: list[list[tuple[int, bool]]] = [[] for _ in range(num_vertices)]
    for sender, receiver, passes in zip(graph.senders, graph.receivers, graph.passes_zeros, strict=True):
        inputs[receiver].append((int(sender), bool(passes)))
    zero = np.append(removed, False)[graph.group]
    for vertex, read in enumerate(inputs):
        if graph.additive[vertex]:
            zero[vertex] |= not graph.num_external[vertex] and all(zero[sender] for sender, _ in read)
        else:
            zero[vertex] |= any(passes and zero[sender] for sender, passes in read)
    useful = np.zeros(num_vertices, bool)
    useful[graph.outputs] = True
    for vertex in reversed(range(num_vertices)):
        if useful[vertex] and not zero[vertex]:
            useful[[sender for sender, _ in inputs[vertex]]] = True
    counted = np.zeros(num_segments, bool)
    counted[graph.segment[useful & ~zero]] = True
    return counted


def subnet_size(graph: DependenceGraph, costs: Costs, removed: np.ndarray) -> dict[str, int]:
    """Returns the size of the sub-network without some groups, bool `[num_groups]`, at most, in every measure."""
    counted = counted_segments(graph, removed, costs.num_segments)
    saved = removed[costs.saving_group] & counted[costs.saving_segment]
    return {
        name: int(measure.fixed + measure.segments[counted].sum() - measure.savings[saved].sum())
        for name, measure in costs.measures.items()
    }
