"""Minimal removal structures: for every segment, whether it may be removed, and which parameters its group holds."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import INPUT, Graph, Operator, Part, Segment
from jasgnas.graph.names import operator_label, segment_label
from jasgnas.program.masks import zero
from jasgnas.rules import unknown_in
from jasgnas.rules.flow import ZeroFlow
from jasgnas.space.edges import Way, outdone, way_of
from jasgnas.space.gates import GateFinder
from jasgnas.space.groups import NOBODY, Group, LeafSlice
from jasgnas.space.invariance import Effect, RangeFollower
from jasgnas.space.ties import shared_ties, tied_by_patterns, united


class FoundGroups(NamedTuple):
    """The removal structures of a network.

    Attributes:
        groups: the parameters of each.
        reasons: for each segment, why it is or is not removable.
        effects: what they do to parameters of other segments.
    """

    groups: tuple[Group, ...] = ()
    reasons: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()


def find_groups(graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int], tie: Sequence[str] = ()) -> FoundGroups:
    """Finds the removal structures of a network.

    Args:
        graph: its operators and segments.
        leaves: its arrays.
        kept: indices of leaves that must not be candidates.
        tie: patterns of the paths of structures that are to be one group, see `ties.tied_by_patterns`.

    Raises:
        ArgumentError: a pattern ties nothing.
    """
    finder = _GroupFinder(graph, leaves, kept)
    groups = finder.find(tie)
    return FoundGroups(groups, tuple(finder.reasons), tuple(finder.effects))


class _GroupFinder:
    """Decides for every segment whether it is a minimal removal structure, and which parameters make its group.

    Every segment that may go is a structure, with a number. The structures that are tied to each other are one group.
    """

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]):
        self._graph = graph
        self._leaves = leaves
        self._kept = kept
        self._shapes = {leaf.path: leaf.shape for leaf in leaves}
        self._segments_of = {
            part: frozenset(graph.segment_of[operator] for operator in users) for part, users in graph.users.items()
        }
        # The segments that each of those goes with that share parts which they need to be zero.
        self._tied: dict[int, tuple[int, ...]] = {}
        # What each structure holds, its parts by the operators that read them, and the parts whose ranges belong to
        # structures further up; and the structures that are edges with a gate.
        self._slices: list[list[LeafSlice]] = []
        self._gates: set[int] = set()
        self._parts: list[dict[int, list[int]]] = []
        self._claimed: set[int] = set()
        # The operators whose zeros end where those of a better structure end.
        self._others: dict[int, int] = {}
        self.reasons: list[str] = []
        self.effects: list[Effect] = []

    def find(self, tie: Sequence[str]) -> tuple[Group, ...]:
        """Returns the groups, in the order of their segments, gates last; `reasons` says why others have none."""
        segments: list[Segment] = []
        self._tie()
        self._others = self._better_ones()
        follower = RangeFollower(self._graph, self._eligible)
        # Structures come before those that read them, so a claim on a leaf is known when its own segment is judged.
        for segment in self._graph.segments:
            for operator in segment.operators:
                for effect in follower.through(operator):
                    self._note(effect)
            own = self._own_parts(segment)
            if isinstance(own, str):
                self.reasons.append(f"not removable: {own}")
                continue
            self.reasons.append("removable")
            follower.start(segment.operators[-1], len(segments))
            segments.append(segment)
            self._slices.append(list(map(self._whole, own)))
            if any(self._leaf(part).is_gate for part in own):
                self._gates.add(len(segments) - 1)
            read = {index: [p for p in self._graph.operators[index].parts if p in own] for index in segment.operators}
            self._parts.append({operator: parts for operator, parts in read.items() if parts})
        finder = GateFinder(self._graph, follower.ranges)
        gates = [finder.find(i, each.operators, self._parts[i]) for i, each in enumerate(segments)]
        # Gates come after all other structures, which have the same indices without them.
        members = sorted(self._members(segments, tie), key=self._gates.issuperset)
        names: set[str] = set()
        groups = tuple(
            self._group(index, each, [segments[i] for i in each], self._common_gate(each, gates), names)
            for index, each in enumerate(members)
        )
        number_of = np.zeros(len(segments) + 1, int)  # NOBODY finds the last entry
        number_of[-1] = NOBODY
        for index, structures in enumerate(members):
            number_of[list(structures)] = index
        self.effects = [effect._replace(groups=number_of[effect.groups]) for effect in self.effects]
        return groups

    def _group(
        self, index: int, structures: Sequence[int], segments: Sequence[Segment], gate: frozenset[int], names: set[str]
    ) -> Group:
        """Returns the group of some structures, under a name that is not among `names` yet."""
        slices = tuple(dict.fromkeys(each for structure in structures for each in self._slices[structure]))
        chosen = {(self._leaf(part).path, self._graph.parts[part].row) for part in gate}
        labels = list(dict.fromkeys(segment_label(segment, self._graph, self._leaves) for segment in segments))
        group = Group(
            index=index,
            name=_unique(" + ".join(labels if len(labels) <= 4 else [labels[0], "…", labels[-1]]), names),
            slices=slices,
            num_params=sum(map(self._size, slices)),
            operators=tuple(self._graph.operators[each].name for segment in segments for each in segment.operators),
            segments=tuple(segment.index for segment in segments),
            gate=tuple(each for each in slices if (each.path, each.row) in chosen),
            kind="gate" if self._gates.issuperset(structures) else "structure",
        )
        others = f", together with {len(segments) - 1} more" if len(segments) > 1 else ""
        for segment in group.segments:
            self.reasons[segment] += f", group {index}{others} ({_listed(group.gate)})"
        return group

    def _tie(self) -> None:
        """Finds the segments that shared parts tie together."""
        shared = {
            part: segments
            for part, segments in self._segments_of.items()
            if len(segments) > 1 and self._leaf(part).trainable
        }
        for tied in shared_ties(shared, self._needed):
            self._tied |= dict.fromkeys(tied, tied)
            is_whole = not any(isinstance(self._own_parts(self._graph.segments[each]), str) for each in tied)
            if not is_whole or self._cuts_off(tied):
                for each in tied:
                    del self._tied[each]

    def _cuts_off(self, tied: Sequence[int]) -> bool:
        """Tells whether an output that must stay is lost without some segments, which one by one could be missed."""
        alive: list[bool] = []
        for segment in self._graph.segments:
            fed = [source == INPUT or alive[source] for source in segment.sources]
            alive.append(segment.index not in tied and (any(fed) if segment.additive else all(fed)))
        return not all(alive[self._graph.segment_of[each]] for each in self._graph.ends if each != INPUT)

    def _needed(self, index: int, allowed: frozenset[int]) -> frozenset[int] | None:
        """Returns which of some shared parts a segment must be without to be zero, see `shared_ties`."""
        segment = self._graph.segments[index]
        if self._why_not(segment) is not None:
            return None
        trainable = self._trainable(segment)
        own = {part for part in trainable if len(self._segments_of[part]) == 1}
        if self._is_removed(segment, own):
            return frozenset()
        needed = trainable & allowed
        if not self._is_removed(segment, own | needed):
            return None
        for part in sorted(needed, key=lambda part: (-len(self._segments_of[part]), part)):
            if self._is_removed(segment, own | needed - {part}):
                needed -= {part}
        return frozenset(needed)

    def _members(self, segments: Sequence[Segment], tie: Sequence[str]) -> list[tuple[int, ...]]:
        """Returns the structures that each group consists of, given the segments of the structures."""
        place = {segment.index: number for number, segment in enumerate(segments)}
        by_leaves = united(len(segments), [[place[each] for each in own] for own in self._tied.values()])
        # A range belongs to what a concatenation is read by: its path says nothing of the structure.
        paths = [[each.path for i in own for each in self._slices[i] if each.axis is None] for own in by_leaves]
        return [
            tuple(sorted(structure for number in own for structure in by_leaves[number]))
            for own in united(len(by_leaves), tied_by_patterns(tie, paths))
        ]

    def _better_ones(self) -> dict[int, int]:
        """Returns the operators whose zeros end where those of a better structure do, and the operator of that one.

        They tie nothing then: they are no structures.
        """
        lasts = {}
        for segment in self._graph.segments:
            tied = [self._graph.segments[each] for each in self._tied.get(segment.index, (segment.index,))]
            if tied[0] == segment and any(map(self._passes_others, tied)):
                lasts[segment.operators[-1]] = [each.operators[-1] for each in tied]
        ways = {}
        for first, own in lasts.items():
            several = [way_of(self._graph, each) for each in own]
            edges = tuple(edge for way in several for edge in way.edges)
            ways[first] = Way(edges, (*own, *(each for way in several for each in way.operators)), None)
        others = {each: other for first, other in outdone(self._graph, ways).items() for each in lasts[first]}
        for operator in others:
            self._tied.pop(self._graph.segment_of[operator], None)
        return others

    def _passes_others(self, segment: Segment) -> bool:
        """Tells whether a segment is a structure whose zeros pass products, masks or the like."""
        direct = all(reader.additive for reader in self._readers(segment.operators[-1]))
        return not direct and not isinstance(self._own_parts(segment), str)

    def _common_gate(self, structures: Sequence[int], gates: Sequence[frozenset[int]]) -> frozenset[int]:
        """Returns the parts that the results of some structures all grow in proportion with, none if there are none."""
        common = frozenset[int]().union(*(gates[each] for each in structures))
        for each in structures:
            held = {part for parts in self._parts[each].values() for part in parts}
            # A part that several of them read must do in each of them what it does in one.
            if not gates[each] or common & held != gates[each]:
                return frozenset()
        return common

    def _why_not(self, segment: Segment) -> str | None:
        """Returns why a segment is no structure whatever its parameters are, None if it may be one."""
        last = segment.operators[-1]
        operators = [self._graph.operators[index] for index in segment.operators]
        if len(self._graph.operators[segment.operators[0]].sources) > 1:
            return "it joins several inputs"
        if last in self._graph.ends:
            return "it computes a network output"
        reader = next((each for each in self._readers(last) if not each.additive), None)
        if reader is not None and way_of(self._graph, last).end is not None:
            what = "a product" if len(reader.sources) > 1 else "another operator"
            return f"it feeds {what} ({operator_label(reader, self._graph, self._leaves)})"
        if not self._trainable(segment):
            return "it has no trainable parameters"
        if (other := self._others.get(last)) is not None:
            return f"what it feeds goes with {operator_label(self._graph.operators[other], self._graph, self._leaves)}"
        if unknown := unknown_in(self._graph.program.equations[p] for each in operators for p in each.equations):
            return f"it contains the unknown operator {', '.join(unknown)}"
        used = (self._graph.parts[part].leaf for operator in operators for part in operator.parts)
        if kept := sorted({self._leaves[leaf].path for leaf in used if leaf in self._kept}):
            return f"{', '.join(kept)} is to be kept"
        return None

    def _own_parts(self, segment: Segment) -> list[int] | str:
        """Returns the parameters of a segment, which are to be its part of a group, or why they are not."""
        if (reason := self._why_not(segment)) is not None:
            return reason
        members = set(self._tied.get(segment.index, (segment.index,)))
        trainable = self._trainable(segment)
        shared = {part for part in trainable if not members.issuperset(self._segments_of[part])}
        own, flow = self._zeroed(segment, trainable - shared - self._claimed)
        if not self._is_zero(segment.operators[-1], flow):
            return self._why_not_invariant(segment, flow, shared, trainable)
        return own

    def _is_removed(self, segment: Segment, parts: Iterable[int]) -> bool:
        """Tells whether the result of a segment is zero without some of its parameters."""
        return self._is_zero(segment.operators[-1], self._zeroed(segment, parts)[1])

    def _zeroed(self, segment: Segment, parts: Iterable[int]) -> tuple[list[int], ZeroFlow]:
        """Returns which of some parameters of a segment can be zero, and what is known of its results then."""
        last = segment.operators[-1]
        own = sorted(parts)
        flow = self._flow_without(segment, own)
        if self._is_broken(last, flow):
            # A weight that is divided by its own norm cannot be zero itself, but the gain it is multiplied by can.
            own = [part for part in own if not self._is_broken(last, self._flow_without(segment, [part]))]
            flow = self._flow_without(segment, own)
        return own, flow

    def _trainable(self, segment: Segment) -> set[int]:
        """Returns the parameters that a segment reads."""
        used = {part for index in segment.operators for part in self._graph.operators[index].parts}
        return {part for part in used if self._leaf(part).trainable}

    def _flow_without(self, segment: Segment, parts: Iterable[int]) -> ZeroFlow:
        """Returns what is known of the results of a segment when parts are zero, whatever its input."""
        held = [var for part in parts for var in self._graph.part_vars[part]]
        return self._graph.zeros_through(segment.operators, {var: zero(self._graph.ndim(var)) for var in held})

    def _is_broken(self, operator: int, flow: ZeroFlow) -> bool:
        return any(flow.zeros[var].is_broken for var in self._read_results(operator))

    def _is_zero(self, operator: int, flow: ZeroFlow) -> bool:
        return all(flow.zeros[var].everywhere for var in self._read_results(operator))

    def _read_results(self, operator: int) -> list[int]:
        return [var for var in self._graph.results(operator) if var in self._graph.read]

    @cached_property
    def _eligible(self) -> frozenset[int]:
        """Parts of which a range may join the group of a structure further up."""
        whole = (
            part for part, users in self._graph.users.items() if len(users) == 1 and not self._graph.parts[part].row
        )
        return frozenset(
            part
            for part in whole
            if self._leaf(part).trainable
            and self._graph.parts[part].leaf not in self._kept
            # Structures that are tied go as a whole or not at all: nothing else may claim parts of one of them.
            and self._tied.keys().isdisjoint(self._segments_of[part])
        )

    def _note(self, effect: Effect) -> None:
        """Keeps an effect, and gives each group the range of a part that joins it."""
        self.effects.append(effect)
        if effect.joins:
            self._claimed.add(effect.part)
            changes = np.flatnonzero(np.diff(effect.groups, prepend=NOBODY, append=NOBODY))
            path = self._leaf(effect.part).path
            for start, stop in zip(changes, changes[1:], strict=False):
                if (group := effect.groups[start]) != NOBODY:
                    self._slices[group].append(LeafSlice(path, effect.axis, int(start), int(stop)))
                    joined = self._parts[group].setdefault(effect.operator, [])
                    joined += [] if effect.part in joined else [effect.part]

    def _why_not_invariant(self, segment: Segment, flow: ZeroFlow, shared: set[int], trainable: set[int]) -> str:
        if shared:
            paths = ", ".join(sorted(str(self._whole(part)) for part in shared))
            return f"{paths} is shared with other operators"
        if claimed := trainable & self._claimed:
            paths = ", ".join(sorted(self._leaf(part).path for part in claimed))
            return f"parts of {paths} belong to the structures before it"
        operators = [self._graph.operators[index] for index in segment.operators]
        is_zero = [self._is_zero(each.index, flow) for each in operators]
        if True not in is_zero:
            first = next(each for each in operators if not trainable.isdisjoint(each.parts))
            return f"not zero-invariant: {first.name} is not zero where its parameters are"
        last = len(is_zero) - 1 - is_zero[::-1].index(True)
        return f"not zero-invariant: {operators[last + 1].name} does not keep zeros"

    def _readers(self, operator: int) -> list[Operator]:
        return [self._graph.operators[reader] for reader in self._graph.consumers[operator]]

    def _leaf(self, part: int) -> Leaf:
        return self._leaves[self._graph.parts[part].leaf]

    def _whole(self, part: int) -> LeafSlice:
        return LeafSlice(self._leaf(part).path, row=self._graph.parts[part].row)

    def _size(self, each: LeafSlice) -> int:
        return np.broadcast_to(False, self._shapes[each.path])[each.indices].size


def num_params(part: Part, leaves: Sequence[Leaf]) -> int:
    """Returns the number of trainable parameters in a part; a gate counts nothing, since those that stay vanish."""
    leaf = leaves[part.leaf]
    return int(np.prod(leaf.shape[len(part.row) :])) if leaf.trainable and not leaf.is_gate else 0


def _listed(gate: Sequence[LeafSlice], most: int = 2) -> str:
    """Returns the first of the slices of a gate, and how many more there are."""
    if not gate:
        return "first order, not exact"
    more = [f"{len(gate) - most} more"] if len(gate) > most else []
    return f"gate {', '.join([*map(str, gate[:most]), *more])}"


def _unique(name: str, taken: set[str]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return unique
