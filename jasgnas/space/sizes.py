"""How large a network is without some groups: nothing is constructed, the sizes of its segments are added up."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph
from jasgnas.space.groups import NOBODY
from jasgnas.space.invariance import Effect
from jasgnas.space.structures import num_params
from jasgnas.space.validity import DependenceGraph

UNITS = {"params": "parameters", "macs": "multiply-adds"}
"""What the measures of size count, by their names."""


class Measure(NamedTuple):
    """What counts in one measure of size.

    Attributes:
        fixed: size of what is there whatever goes: parameters that several segments share, or that are to be kept.
        segments: int64 `[num_segments]`, size of each segment.
        savings: int64 `[num_savings]`, what each saving saves.
    """

    fixed: int
    segments: np.ndarray
    savings: np.ndarray


class Costs(NamedTuple):
    """What each segment contributes to the size of a sub-network.

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
        """Number of segments."""
        return len(next(iter(self.measures.values())).segments)

    def of_groups(self, segments: np.ndarray, measure: str) -> np.ndarray:
        """Returns what each group holds and saves in a measure, `[num_groups]`, given the segment of each."""
        own = self.measures[measure]
        return own.segments[segments] + np.bincount(self.saving_group, own.savings, len(segments))


def build_costs(graph: Graph, leaves: Sequence[Leaf], effects: Sequence[Effect], kept: frozenset[int]) -> Costs:
    """Returns what each segment contributes to the size of a sub-network.

    Args:
        graph: operators and segments.
        leaves: the arrays of the model.
        effects: what the groups save in other segments than their own.
        kept: indices of the leaves that stay whatever is removed.
    """
    users: dict[int, list[int]] = {}
    for operator in graph.operators:
        for part in operator.parts:
            users.setdefault(part, []).append(operator.index)
    params = np.zeros(len(graph.segments), np.int64)
    fixed = sum(num_params(graph.parts[part], leaves) for part in graph.returned - users.keys())
    for index, operators in users.items():
        segments = {graph.segment_of[operator] for operator in operators}
        size = num_params(graph.parts[index], leaves)
        if len(segments) > 1 or graph.parts[index].leaf in kept:
            fixed += size
        else:
            params[segments.pop()] += size
    macs = np.array([sum(graph.operators[o].macs for o in s.operators) for s in graph.segments], np.int64)
    saved: dict[tuple[int, int], tuple[int, float]] = {}
    for effect in effects:
        held = graph.parts[effect.part]
        # What is of no use to one operator may be needed by another one that reads it.
        stays = held.leaf in kept or len(users[effect.part]) > 1
        size = 0 if stays else num_params(held, leaves) // len(effect.groups)
        groups, counts = np.unique(effect.groups[effect.groups != NOBODY], return_counts=True)
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            before, share = saved.get((effect.operator, group), (0, 0.0))
            saved[effect.operator, group] = before + size * count, max(share, count / len(effect.groups))
    # A part of an operator's parameters that is of no use takes the same part of its multiply-adds with it.
    saved_macs = [round(share * graph.operators[operator].macs) for (operator, _), (_, share) in saved.items()]
    return Costs(
        saving_segment=np.array([graph.segment_of[operator] for operator, _ in saved], np.int32),
        saving_group=np.array([group for _, group in saved], np.int32),
        measures={
            "params": Measure(fixed, params, np.array([size for size, _ in saved.values()], np.int64)),
            "macs": Measure(0, macs, np.array(saved_macs, np.int64)),
        },
    )


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
