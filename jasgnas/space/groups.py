"""Minimal removal structures: for every segment, whether it may be removed, and which parameters its group holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.build import Graph, Operator, Part, Segment
from jasgnas.graph.names import operator_label, segment_label
from jasgnas.program.masks import Zeros, join, unknown, zero, zeros
from jasgnas.rules import unknown_in
from jasgnas.space.invariance import Effect, Prover, Range


class LeafSlice(NamedTuple):
    """A leaf, one row of a leaf that stacks the parameters of several layers, or a range of one axis of a leaf.

    Attributes:
        path: path of the leaf.
        axis: the axis, or None for the whole leaf or a row.
        start: first index of the range along the axis.
        stop: index after the last one.
        row: indices of the row along the leading axes; none where it is no row.
    """

    path: str
    axis: int | None = None
    start: int = 0
    stop: int = 0
    row: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Returns the path, with the row or range as in NumPy indexing."""
        if self.row:
            return f"{self.path}[{', '.join(map(str, self.row))}]"
        if self.axis is None:
            return self.path
        return f"{self.path}[{':, ' * self.axis}{self.start}:{self.stop}]"

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the slice is less than the leaf."""
        return tuple(range(len(self.row))) if self.axis is None else (self.axis,)

    @property
    def taken(self) -> tuple[slice | int, ...]:
        """What is taken along these axes."""
        return self.row if self.axis is None else (slice(self.start, self.stop),)

    @property
    def indices(self) -> tuple[slice | int, ...]:
        """The index that takes the row or range out of the leaf."""
        return (*(slice(None),) * (self.axis or 0), *self.taken)


@dataclass(frozen=True)
class Group:
    """The parameters of one minimal removal structure.

    Attributes:
        index: its position in the search space.
        name: the modules it covers.
        slices: the leaves and ranges of leaves it holds.
        num_params: number of parameters in them.
        operators: names of the operators of its structure, in order.
        segment: index of its structure in the segment graph.
    """

    index: int
    name: str
    slices: tuple[LeafSlice, ...]
    num_params: int
    operators: tuple[str, ...]
    segment: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaf paths; where only a range of a leaf belongs to the group, it follows as in NumPy indexing."""
        return tuple(map(str, self.slices))


class Saving(NamedTuple):
    """What a segment that stays saves when a group goes, beside the group's own structure.

    Attributes:
        segment: index of the segment.
        group: index of the group.
        params: trainable parameters saved.
        macs: multiply-adds saved.
    """

    segment: int
    group: int
    params: int
    macs: int


class FoundGroups(NamedTuple):
    """The removal structures of a network.

    Attributes:
        groups: the parameters of each.
        reasons: for each segment, why it is or is not removable.
        savings: what they save in other segments.
    """

    groups: tuple[Group, ...]
    reasons: tuple[str, ...]
    savings: tuple[Saving, ...]


def find_groups(graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]) -> FoundGroups:
    """Finds the removal structures of a network.

    Args:
        graph: its operators and segments.
        leaves: its arrays.
        kept: indices of leaves that must not be candidates.
    """
    finder = _GroupFinder(graph, leaves, kept)
    groups = finder.find()
    return FoundGroups(groups, tuple(finder.reasons), tuple(finder.savings))


class _GroupFinder:
    """Decides for every segment whether it is a minimal removal structure, and which parameters make its group."""

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]):
        self._graph = graph
        self._leaves = leaves
        self._kept = kept
        self._shapes = {leaf.path: leaf.shape for leaf in leaves}
        self._prover = Prover(graph)
        self._users: dict[int, list[int]] = {}
        for operator in graph.operators:
            for part in operator.parts:
                self._users.setdefault(part, []).append(operator.index)
        # Axis and indices of parts that belong to groups of structures further up.
        self._claimed: dict[int, tuple[int, np.ndarray]] = {}
        self.reasons: list[str] = []
        self.savings: list[Saving] = []

    def find(self) -> tuple[Group, ...]:
        """Returns the groups, in the order of their segments; `reasons` says why the other segments have none."""
        groups: list[Group] = []
        names: set[str] = set()
        # Structures come before those that read them, so a claim on a leaf is known when its own segment is judged.
        for segment in self._graph.segments:
            parts = self._parts(segment, len(groups))
            if isinstance(parts, str):
                self.reasons.append(f"not removable: {parts}")
                continue
            name = _unique(segment_label(segment, self._graph, self._leaves), names)
            self.reasons.append(f"removable, group {len(groups)}")
            groups.append(
                Group(
                    index=len(groups),
                    name=name,
                    slices=tuple(parts),
                    num_params=sum(self._size(part) for part in parts),
                    operators=tuple(self._graph.operators[index].name for index in segment.operators),
                    segment=segment.index,
                )
            )
        return tuple(groups)

    def _parts(self, segment: Segment, group: int) -> list[LeafSlice] | str:
        """Returns the parameters of a segment, which are to be a group, or why they are not."""
        last = segment.operators[-1]
        operators = [self._graph.operators[index] for index in segment.operators]
        used = {part for operator in segment.operators for part in self._graph.operators[operator].parts}
        trainable = {part for part in used if self._leaf(part).trainable}
        if len(self._graph.operators[segment.operators[0]].sources) > 1:
            return "it joins several inputs"
        if last in self._graph.outputs:
            return "it computes a network output"
        if (reader := next((r for r in self._readers(last) if not r.additive), None)) is not None:
            what = "a product" if len(reader.sources) > 1 else "another operator"
            return f"it feeds {what} ({operator_label(reader, self._graph, self._leaves)})"
        if not trainable:
            return "it has no trainable parameters"
        if unknown := unknown_in(self._graph.program.equations[p] for each in operators for p in each.equations):
            return f"it contains the unknown operator {', '.join(unknown)}"
        if kept := sorted({self._leaf(part).path for part in used if self._graph.parts[part].leaf in self._kept}):
            return f"{', '.join(kept)} is to be kept"
        members = set(segment.operators)
        shared = {part for part in trainable if not members.issuperset(self._users[part])}
        own = sorted(trainable - shared - self._claimed.keys())
        known = self._prover.zeros_of(segment.operators, own)
        if self._is_broken(last, known):
            # A weight that is divided by its own norm cannot be zero itself, but the gain it is multiplied by can.
            own = [part for part in own if not self._is_broken(last, self._prover.zeros_of(segment.operators, [part]))]
            known = self._prover.zeros_of(segment.operators, own)
        if not all(known[var].everywhere for var in self._prover.output(last)):
            return self._why_not_invariant(segment, known, shared, trainable)
        slices = [self._slice(part) for part in own]
        for effect in self._prover.follow(last, known, self._eligible):
            self._note_saving(effect, group)
            if effect.joins:
                slices += [each for found in effect.ranges for each in self._claim(found)]
        return slices

    def _is_broken(self, operator: int, known: Mapping[int, Zeros]) -> bool:
        return any(known[var].is_broken for var in self._prover.output(operator))

    @cached_property
    def _eligible(self) -> frozenset[int]:
        """Parts of which a range may join the group of a structure further up."""
        whole = (part for part, users in self._users.items() if len(users) == 1 and not self._graph.parts[part].row)
        return frozenset(
            part for part in whole if self._leaf(part).trainable and self._graph.parts[part].leaf not in self._kept
        )

    def _note_saving(self, effect: Effect, group: int) -> None:
        operator = self._graph.operators[effect.operator]
        params = 0
        share = 0.0
        for each in effect.ranges:
            part = self._graph.parts[each.part]
            taken = int(each.mask.sum())
            if part.leaf not in self._kept:
                params += num_params(part, self._leaves) // len(each.mask) * taken
            share = max(share, taken / len(each.mask))
        macs = round(share * operator.macs)
        if params or macs:
            self.savings.append(Saving(self._graph.segment_of[effect.operator], group, params, macs))

    def _why_not_invariant(
        self, segment: Segment, known: Mapping[int, Zeros], shared: set[int], trainable: set[int]
    ) -> str:
        if shared:
            paths = ", ".join(sorted(str(self._slice(part)) for part in shared))
            return f"{paths} is shared with other operators"
        if claimed := trainable & self._claimed.keys():
            paths = ", ".join(sorted(self._leaf(part).path for part in claimed))
            return f"parts of {paths} belong to the structures before it"
        operators = [self._graph.operators[index] for index in segment.operators]
        is_zero = [all(known[var].everywhere for var in self._prover.output(each.index)) for each in operators]
        if True not in is_zero:
            first = next(each for each in operators if not trainable.isdisjoint(each.parts))
            return f"not zero-invariant: {first.name} is not zero where its parameters are"
        last = len(is_zero) - 1 - is_zero[::-1].index(True)
        return f"not zero-invariant: {operators[last + 1].name} does not keep zeros"

    def _readers(self, operator: int) -> list[Operator]:
        return [self._graph.operators[reader] for reader in self._graph.consumers[operator]]

    def _leaf(self, part: int) -> Leaf:
        return self._leaves[self._graph.parts[part].leaf]

    def _slice(self, part: int) -> LeafSlice:
        return LeafSlice(self._leaf(part).path, row=self._graph.parts[part].row)

    def _claim(self, each: Range) -> list[LeafSlice]:
        """Takes a range of a part into the group, except for what belongs to another one already."""
        axis, taken = self._claimed.get(each.part, (each.axis, np.zeros_like(each.mask)))
        if axis != each.axis:
            return []
        free = each.mask & ~taken
        self._claimed[each.part] = axis, taken | free
        edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
        path = self._leaf(each.part).path
        return [LeafSlice(path, axis, int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def _size(self, part: LeafSlice) -> int:
        return np.broadcast_to(False, self._shapes[part.path])[part.indices].size


def num_params(part: Part, leaves: Sequence[Leaf]) -> int:
    """Returns the number of trainable parameters in a part."""
    leaf = leaves[part.leaf]
    return int(np.prod(leaf.shape[len(part.row) :])) if leaf.trainable else 0


def _unique(name: str, taken: set[str]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return unique


def leaf_zeros(groups: Sequence[Group], leaves: Sequence[Leaf], removed: Iterable[int]) -> list[Zeros]:
    """Returns what is known to be zero in each leaf when some groups, given by their indices, are."""
    found = {leaf.path: unknown(len(leaf.shape)) for leaf in leaves}
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    for index in removed:
        for part in groups[index].slices:
            found[part.path] = join([found[part.path], slice_zeros(part, shapes[part.path])])
    return list(found.values())


def slice_zeros(part: LeafSlice, shape: Sequence[int]) -> Zeros:
    """Returns what is known to be zero in a leaf of some shape when a slice of it is."""
    if not part.axes:
        return zero(len(shape))
    mask = np.zeros([shape[axis] for axis in part.axes], bool)
    mask[part.taken] = True
    return zeros(mask if axis == part.axes[0] else None for axis in range(len(shape)))
