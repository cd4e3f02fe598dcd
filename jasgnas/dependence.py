"""Which segments an output depends on, told apart by what is read of them: the graph that validity is judged on.

A segment is a vertex once for every part of it that others read in its own right: the class token of a transformer and
its other tokens are different things, of which one may have lost the network input and the other not. Where nothing is
read in parts, the graph is the segment graph.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.graph import INPUT, Graph, Segment
from jasgnas.groups import Group
from jasgnas.invariance import Prover
from jasgnas.masks import NOTHING, Need, everything
from jasgnas.rules import rule_for
from jasgnas.rules.indexing import DynamicSlice, Gather
from jasgnas.rules.shape import Pad, Slice, Split, Unstack
from jasgnas.validity import SegmentTopology

# Operators that may need a part of their operand only, although all of their result is needed.
_SELECTIVE = (DynamicSlice, Gather, Pad, Slice, Split, Unstack)

# A segment that is read in more different parts than this is taken as a whole.
_MOST_PARTS = 16

Needs = dict[int, Need]


class _Read(NamedTuple):
    """What some part of a segment depends on.

    Attributes:
        sources: the segments, each with the part of it that is read.
        num_external: number of network inputs that are read.
    """

    sources: tuple[tuple[int, Hashable], ...]
    num_external: int


def build_dependence(graph: Graph, groups: Sequence[Group]) -> SegmentTopology:
    """Returns the graph as index arrays; `segments` of the topology are parts of segments here.

    Args:
        graph: operators and segments.
        groups: the groups.
    """
    group = np.full(len(graph.segments), -1, np.int32)
    for each in groups:
        group[each.segment] = each.index
    reader = _Reader(graph)
    reads = reader.read_all()
    vertices: dict[Hashable, int] = {}
    # The vertex of each part, or None if it depends on no network input whatever goes: it is a constant then, and no
    # input that a product could miss.
    vertex_of: dict[tuple[int, Hashable], int | None] = {}
    rows: list[tuple[int, bool, int]] = []
    edges: list[tuple[int, int]] = []
    for segment in graph.segments:
        for part, read in reads[segment.index].items():
            found = dict.fromkeys(vertex_of[source] for source in read.sources)
            senders = tuple(sender for sender in found if sender is not None)
            is_constant = not (senders or read.num_external)
            if is_constant and (segment.index, part) not in reader.outputs:
                vertex_of[segment.index, part] = None
                continue
            # Parts that depend on the same things live and die together.
            number = vertices.setdefault((segment.index, senders, read.num_external > 0), len(vertices))
            vertex_of[segment.index, part] = number
            if number == len(rows):
                rows.append((segment.index, segment.additive or is_constant, read.num_external))
                edges += [(sender, number) for sender in senders]
    pairs = np.array(edges, np.int32).reshape(-1, 2)
    outputs = {vertex for vertex in map(vertex_of.__getitem__, reader.outputs) if vertex is not None}
    return SegmentTopology(
        senders=pairs[:, 0],
        receivers=pairs[:, 1],
        additive=np.array([additive for _, additive, _ in rows], bool),
        num_external=np.array([num_external for *_, num_external in rows], np.int32),
        outputs=np.array(sorted(outputs), np.int32),
        group=group[[segment for segment, *_ in rows]],
    )


class _Reader:
    """Follows what is needed from the outputs back to the inputs, segment by segment."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._prover = Prover(graph)
        self._avals = graph.program.avals
        inputs = set(graph.program.inputs) - graph.static_parts.keys()
        self._inputs = frozenset(inputs)
        # What is needed of the results of each segment, by part; then what that depends on.
        self._parts: list[dict[Hashable, Needs]] = [{} for _ in graph.segments]
        self.outputs: list[tuple[int, Hashable]] = []

    def read_all(self) -> list[dict[Hashable, _Read]]:
        """Returns, for each segment, what each part of it depends on."""
        data = [atom for atom in self._graph.program.outputs if isinstance(atom, int)]
        data = [var for var in data if var not in self._graph.static_parts]
        for var, operator in zip(data, self._graph.outputs, strict=True):
            if operator != INPUT:
                self.outputs.append(self._ask(self._graph.segment_of[operator], {var: self._whole(var)}))
        reads: list[dict[Hashable, _Read]] = [{} for _ in self._graph.segments]
        for segment in reversed(self._graph.segments):
            parts = self._parts[segment.index]
            if len(parts) > _MOST_PARTS:
                read = self._read(segment, {var: self._whole(var) for var in self._results(segment.index)})
                reads[segment.index] = dict.fromkeys(parts, read)
            else:
                reads[segment.index] = {part: self._read(segment, needs) for part, needs in parts.items()}
        return reads

    def _ask(self, segment: int, needs: Needs) -> tuple[int, Hashable]:
        """Notes that some entries of the results of a segment are needed; returns the segment and the part."""
        part = tuple(_signature(needs.get(var, NOTHING)) for var in self._results(segment))
        self._parts[segment].setdefault(part, needs)
        return segment, part

    def _read(self, segment: Segment, results: Needs) -> _Read:
        first = self._graph.operators[segment.operators[0]]
        read = self._prover.inputs(first)
        if self._is_selective(segment) or not all(_is_whole(need) for need in results.values()):
            needs = results
            for operator in reversed(segment.operators):
                needs = self._prover.needs(self._graph.operators[operator], needs, {})
        else:
            needs = {var: self._whole(var) for var in read}
        sources = []
        for source in dict.fromkeys(s for s in segment.sources if s != INPUT):
            asked = {var: needs.get(var, NOTHING) for var in self._results(source)}
            if any(need != NOTHING for need in asked.values()):
                sources.append(self._ask(source, asked))
        external = [var for var in read if var in self._inputs and needs.get(var, NOTHING) != NOTHING]
        return _Read(tuple(sources), len(external))

    def _results(self, segment: int) -> tuple[int, ...]:
        return self._prover.output(self._graph.segments[segment].operators[-1])

    def _whole(self, var: int) -> Need:
        return everything(len(self._avals[var].shape))

    def _is_selective(self, segment: Segment) -> bool:
        positions = (p for operator in segment.operators for p in self._graph.operators[operator].equations)
        return any(isinstance(rule_for(self._graph.program.equations[p].primitive), _SELECTIVE) for p in positions)


def _is_whole(need: Need) -> bool:
    return need != NOTHING and all(mask is None for mask in need)


def _signature(need: Need) -> Hashable:
    return need if need == NOTHING else tuple(None if mask is None else mask.tobytes() for mask in need)
