"""The segment graph as the index arrays that validity and the size of a sub-network are judged on."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.build import INPUT, Graph, Operator, Segment
from jasgnas.program.masks import NOTHING, Need, everything
from jasgnas.space.groups import Group, Saving, num_params
from jasgnas.space.invariance import Prover
from jasgnas.space.validity import SegmentTopology

# Primitives that can leave out some of the ranges that a concatenation has put together.
_SELECTIVE = ("dynamic_slice", "gather", "slice", "split", "unstack")


class SegmentCosts(NamedTuple):
    """What each segment contributes to the size of a sub-network.

    A segment counts if it is not zero and an output depends on it. It is zero if its group is removed, if it is an
    additive joint of zeros, or if it reads a zero along an edge that passes zeros on. What the removal of a group saves
    in a segment that counts is subtracted.

    Attributes:
        params: int64 `[num_segments]`, trainable parameters of each segment.
        macs: int64 `[num_segments]`, multiply-adds of each segment at the traced shapes.
        fixed_params: trainable parameters that several segments share, or that are to be kept; counted always.
        passes_zeros: bool `[num_edges]`, whether the receiver is zero when the sender is, in the order of the topology.
        saving_segment: int32 `[num_savings]`, segment in which something is saved.
        saving_group: int32 `[num_savings]`, group whose removal saves it.
        saving_params: int64 `[num_savings]`, trainable parameters saved.
        saving_macs: int64 `[num_savings]`, multiply-adds saved.
    """

    params: np.ndarray
    macs: np.ndarray
    fixed_params: int
    passes_zeros: np.ndarray
    saving_segment: np.ndarray
    saving_group: np.ndarray
    saving_params: np.ndarray
    saving_macs: np.ndarray


def build_topology(graph: Graph, groups: Sequence[Group]) -> SegmentTopology:
    """Returns the index arrays of a segment graph."""
    group = np.full(len(graph.segments), -1, np.int32)
    for each in groups:
        group[each.segment] = each.index
    reads = _Reads(graph)
    sources = [reads.sources(segment) for segment in graph.segments]
    edges = [(source, receiver) for receiver, own in enumerate(sources) for source in own if source != INPUT]
    senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
    outputs = {graph.segment_of[operator] for operator in graph.outputs if operator != INPUT}
    return SegmentTopology(
        senders=senders,
        receivers=receivers,
        additive=np.array([segment.additive for segment in graph.segments], bool) | reads.selective,
        num_external=np.array([list(own).count(INPUT) for own in sources], np.int32),
        outputs=np.array(sorted(outputs), np.int32),
        group=group,
    )


class _Reads:
    """Finds what a segment really reads where a concatenation is taken apart again.

    A slice of a concatenation depends only on the branches whose ranges it overlaps, and on any one of them: it is a
    joint of these branches.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._prover = Prover(graph)
        # Segments that read some of the branches of a concatenation only, bool `[num_segments]`.
        self.selective = np.zeros(len(graph.segments), bool)

    def sources(self, segment: Segment) -> Sequence[int]:
        """Returns the segments that a segment depends on, `INPUT` for a network input."""
        head = self._head(segment)
        if len(segment.sources) > 1 or not any(map(self._is_selective, head)):
            return segment.sources
        needs: dict[int, Need] = {
            var: everything(len(self._graph.program.avals[var].shape)) for var in self._prover.output(head[-1].index)
        }
        pending = [-operator.index for operator in head]
        heapq.heapify(pending)
        seen = {operator.index for operator in head}
        found: dict[int, None] = {}
        selective = False
        while pending:
            operator = self._graph.operators[-heapq.heappop(pending)]
            needs = self._prover.needs(operator, needs, {})
            for source in operator.sources:
                if source != INPUT and self._is_unneeded(source, needs):
                    selective = True
                elif source != INPUT and self._looks_through(source):
                    if source not in seen:
                        seen.add(source)
                        heapq.heappush(pending, -source)
                else:
                    found[INPUT if source == INPUT else self._graph.segment_of[source]] = None
        if not (selective and found):
            return segment.sources
        self.selective[segment.index] = True
        return list(found)

    def _head(self, segment: Segment) -> list[Operator]:
        """Returns the operators of a segment before its first stem."""
        head: list[Operator] = []
        for index in segment.operators:
            if self._graph.operators[index].kind != "accessory":
                break
            head.append(self._graph.operators[index])
        return head

    def _is_selective(self, operator: Operator) -> bool:
        return any(self._graph.program.equations[p].primitive in _SELECTIVE for p in operator.equations)

    def _is_unneeded(self, operator: int, needs: dict[int, Need]) -> bool:
        return all(needs.get(var, NOTHING) == NOTHING for var in self._prover.output(operator))

    def _looks_through(self, index: int) -> bool:
        operator = self._graph.operators[index]
        primitive = self._graph.program.equations[operator.equations[0]].primitive
        concatenates = operator.additive and primitive in ("concatenate", "stack")
        # What is looked through does not count, so it must have no parameters.
        return concatenates or (operator.kind == "accessory" and not operator.parts)


def build_costs(
    graph: Graph,
    leaves: Sequence[Leaf],
    topology: SegmentTopology,
    savings: Sequence[Saving],
    kept: frozenset[int],
) -> SegmentCosts:
    """Returns what each segment contributes to the size of a sub-network.

    Args:
        graph: operators and segments.
        leaves: the arrays of the model.
        topology: the segment graph as index arrays.
        savings: what the groups save in other segments than their own.
        kept: indices of the leaves that stay whatever is removed.
    """
    prover = Prover(graph)
    users: dict[int, set[int]] = {}
    for operator in graph.operators:
        for part in operator.parts:
            users.setdefault(part, set()).add(graph.segment_of[operator.index])
    params = np.zeros(len(graph.segments), np.int64)
    fixed = 0
    for part, segments in users.items():
        size = num_params(graph.parts[part], leaves)
        if len(segments) > 1 or graph.parts[part].leaf in kept:
            fixed += size
        else:
            params[segments.pop()] += size
    passes = []
    for sender, receiver in zip(topology.senders, topology.receivers, strict=True):
        # What is read through a concatenation is no direct edge, and is taken to pass nothing on.
        direct = sender in graph.segments[receiver].sources
        chain = graph.segments[receiver].operators
        passes.append(direct and prover.passes_zeros(chain, graph.segments[sender].operators[-1]))
    return SegmentCosts(
        params=params,
        macs=np.array([sum(graph.operators[o].macs for o in s.operators) for s in graph.segments], np.int64),
        fixed_params=fixed,
        passes_zeros=np.array(passes, bool),
        saving_segment=np.array([saving.segment for saving in savings], np.int32),
        saving_group=np.array([saving.group for saving in savings], np.int32),
        saving_params=np.array([saving.params for saving in savings], np.int64),
        saving_macs=np.array([saving.macs for saving in savings], np.int64),
    )


def counted_segments(topology: SegmentTopology, costs: SegmentCosts, removed: np.ndarray) -> np.ndarray:
    """Returns which segments are left in the sub-network without some groups, bool `[num_segments]`.

    Where a branch is dead but not zero, as when only its biases are left, it is counted in full: the sub-network is
    never larger than this.

    Args:
        topology: the segment graph.
        costs: what each segment contributes.
        removed: bool `[num_groups]`.
    """
    num_segments = len(topology.group)
    inputs: list[list[tuple[int, bool]]] = [[] for _ in range(num_segments)]
    for sender, receiver, passes in zip(topology.senders, topology.receivers, costs.passes_zeros, strict=True):
        inputs[receiver].append((int(sender), bool(passes)))
    gone = np.append(removed, False)[topology.group]
    zero = np.zeros(num_segments, bool)
    for segment, read in enumerate(inputs):
        if topology.additive[segment]:
            silent = not topology.num_external[segment] and all(zero[sender] for sender, _ in read)
        else:
            silent = any(passes and zero[sender] for sender, passes in read)
        zero[segment] = gone[segment] or silent
    useful = np.zeros(num_segments, bool)
    useful[topology.outputs] = True
    for segment in reversed(range(num_segments)):
        if useful[segment] and not zero[segment]:
            useful[[sender for sender, _ in inputs[segment]]] = True
    return useful & ~zero


def subnet_size(topology: SegmentTopology, costs: SegmentCosts, removed: np.ndarray) -> tuple[int, int]:
    """Returns the parameters and multiply-adds of the sub-network without some groups, at most; runs on the host.

    Args:
        topology: the segment graph.
        costs: what each segment contributes.
        removed: bool `[num_groups]`.
    """
    counted = counted_segments(topology, costs, removed)
    saved = removed[costs.saving_group] & counted[costs.saving_segment]
    params = costs.fixed_params + costs.params[counted].sum() - costs.saving_params[saved].sum()
    macs = costs.macs[counted].sum() - costs.saving_macs[saved].sum()
    return int(params), int(macs)
