"""Minimal removal structures: for every segment, whether it may be removed, and which parameters its group holds."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph, Operator, Part, Segment
from jasgnas.graph.names import operator_label, segment_label
from jasgnas.program.masks import zero
from jasgnas.rules import unknown_in
from jasgnas.rules.flow import ZeroFlow
from jasgnas.space.edges import outdone, way_of
from jasgnas.space.gates import GateFinder
from jasgnas.space.groups import NOBODY, Group, LeafSlice
from jasgnas.space.invariance import Effect, RangeFollower


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


def find_groups(graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]) -> FoundGroups:
    """Finds the removal structures of a network.

    Args:
        graph: its operators and segments.
        leaves: its arrays.
        kept: indices of leaves that must not be candidates.
    """
    finder = _GroupFinder(graph, leaves, kept)
    groups = finder.find()
    return FoundGroups(groups, tuple(finder.reasons), tuple(finder.effects))


class _GroupFinder:
    """Decides for every segment whether it is a minimal removal structure, and which parameters make its group."""

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]):
        self._graph = graph
        self._leaves = leaves
        self._kept = kept
        self._shapes = {leaf.path: leaf.shape for leaf in leaves}
        self._users: dict[int, list[int]] = {}
        for operator in graph.operators:
            for part in operator.parts:
                self._users.setdefault(part, []).append(operator.index)
        self._follower = RangeFollower(graph, self._eligible)
        # What each group holds, its parts by the operators that read them, and the parts whose ranges belong to
        # structures further up.
        self._slices: list[list[LeafSlice]] = []
        self._parts: list[dict[int, list[int]]] = []
        self._claimed: set[int] = set()
        # The operators whose zeros end where those of a better structure end.
        self._others: dict[int, int] = {}
        self.reasons: list[str] = []
        self.effects: list[Effect] = []

    def find(self) -> tuple[Group, ...]:
        """Returns the groups, in the order of their segments; `reasons` says why the other segments have none."""
        segments: list[Segment] = []
        self._others = self._better_ones()
        # Structures come before those that read them, so a claim on a leaf is known when its own segment is judged.
        for segment in self._graph.segments:
            for operator in segment.operators:
                for effect in self._follower.through(operator):
                    self._note(effect)
            own = self._own_parts(segment)
            if isinstance(own, str):
                self.reasons.append(f"not removable: {own}")
                continue
            self.reasons.append("removable")
            self._follower.start(segment.operators[-1], len(segments))
            segments.append(segment)
            self._slices.append(list(map(self._whole, own)))
            read = {index: [p for p in self._graph.operators[index].parts if p in own] for index in segment.operators}
            self._parts.append({operator: parts for operator, parts in read.items() if parts})
        names: set[str] = set()
        gates = GateFinder(self._graph, self._follower.ranges)
        groups = tuple(
            Group(
                index=index,
                name=_unique(segment_label(segment, self._graph, self._leaves), names),
                slices=tuple(self._slices[index]),
                num_params=sum(self._size(each) for each in self._slices[index]),
                operators=tuple(self._graph.operators[operator].name for operator in segment.operators),
                segment=segment.index,
                gate=self._gate(index, gates.find(index, segment.operators, self._parts[index])),
            )
            for index, segment in enumerate(segments)
        )
        for group in groups:
            self.reasons[group.segment] += f", group {group.index} ({_listed(group.gate)})"
        return groups

    def _better_ones(self) -> dict[int, int]:
        """Returns the operators whose zeros end where those of a better structure do, and the operator of that one."""
        last = (segment.operators[-1] for segment in self._graph.segments if self._passes_others(segment))
        ways = {each: way_of(self._graph, each) for each in last}
        return outdone(self._graph, ways)

    def _passes_others(self, segment: Segment) -> bool:
        """Tells whether a segment is a structure whose zeros pass products, masks or the like."""
        direct = all(reader.additive for reader in self._readers(segment.operators[-1]))
        return not direct and not isinstance(self._own_parts(segment), str)

    def _gate(self, group: int, parts: frozenset[int]) -> tuple[LeafSlice, ...]:
        """Returns those of a group's slices that are of some parts."""
        chosen = {(self._leaf(part).path, self._graph.parts[part].row) for part in parts}
        return tuple(each for each in self._slices[group] if (each.path, each.row) in chosen)

    def _own_parts(self, segment: Segment) -> list[int] | str:
        """Returns the parameters of a segment, which are to be a group, or why they are not."""
        last = segment.operators[-1]
        operators = [self._graph.operators[index] for index in segment.operators]
        used = {part for operator in operators for part in operator.parts}
        trainable = {part for part in used if self._leaf(part).trainable}
        if len(self._graph.operators[segment.operators[0]].sources) > 1:
            return "it joins several inputs"
        if last in self._graph.ends:
            return "it computes a network output"
        reader = next((each for each in self._readers(last) if not each.additive), None)
        if reader is not None and way_of(self._graph, last).end is not None:
            what = "a product" if len(reader.sources) > 1 else "another operator"
            return f"it feeds {what} ({operator_label(reader, self._graph, self._leaves)})"
        if not trainable:
            return "it has no trainable parameters"
        if (other := self._others.get(last)) is not None:
            return f"what it feeds goes with {operator_label(self._graph.operators[other], self._graph, self._leaves)}"
        if unknown := unknown_in(self._graph.program.equations[p] for each in operators for p in each.equations):
            return f"it contains the unknown operator {', '.join(unknown)}"
        if kept := sorted({self._leaf(part).path for part in used if self._graph.parts[part].leaf in self._kept}):
            return f"{', '.join(kept)} is to be kept"
        members = set(segment.operators)
        shared = {part for part in trainable if not members.issuperset(self._users[part])}
        own = sorted(trainable - shared - self._claimed)
        flow = self._flow_without(segment, own)
        if self._is_broken(last, flow):
            # A weight that is divided by its own norm cannot be zero itself, but the gain it is multiplied by can.
            own = [part for part in own if not self._is_broken(last, self._flow_without(segment, [part]))]
            flow = self._flow_without(segment, own)
        if not self._is_zero(last, flow):
            return self._why_not_invariant(segment, flow, shared, trainable)
        return own

    def _flow_without(self, segment: Segment, parts: Iterable[int]) -> ZeroFlow:
        """Returns what is known of the results of a segment when parts are zero, whatever its input."""
        held = [var for part in parts for var in self._graph.part_vars[part]]
        return self._graph.zeros_through(segment.operators, {var: zero(self._graph.ndim(var)) for var in held})

    def _is_broken(self, operator: int, flow: ZeroFlow) -> bool:
        return any(flow.zeros[var].is_broken for var in self._graph.results(operator))

    def _is_zero(self, operator: int, flow: ZeroFlow) -> bool:
        return all(flow.zeros[var].everywhere for var in self._graph.results(operator))

    @cached_property
    def _eligible(self) -> frozenset[int]:
        """Parts of which a range may join the group of a structure further up."""
        whole = (part for part, users in self._users.items() if len(users) == 1 and not self._graph.parts[part].row)
        return frozenset(
            part for part in whole if self._leaf(part).trainable and self._graph.parts[part].leaf not in self._kept
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
    """Returns the number of trainable parameters in a part."""
    leaf = leaves[part.leaf]
    return int(np.prod(leaf.shape[len(part.row) :])) if leaf.trainable else 0


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
