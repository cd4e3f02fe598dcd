"""What the outputs depend on, judged part by part: the graph that validity is judged on.

A segment is divided where others read parts of it in their own right: the class token of a transformer and its other
tokens are different things, of which one may depend on the network input and the other not. Of each part there are two
things to be said, and a vertex for each where they differ:

- it is *present*, unless it is removed or a segment before it is missing: the AND–OR judgement, in which constants such
  as a class token are always present;
- it *depends* on the network input if it is present and any part that it reads does.

Where no constant is read and no sum takes away again what it adds, what is present depends on the input, and the graph
is the segment graph.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.build import INPUT, Graph, Segment
from jasgnas.program.masks import NOTHING, Need, everything, without
from jasgnas.rules import rule_for
from jasgnas.rules.indexing import DynamicSlice, Gather
from jasgnas.rules.shape import Pad, Slice, Split, Unstack
from jasgnas.space.groups import Group
from jasgnas.space.invariance import Prover
from jasgnas.space.nonzero import Cell, Survival, Unit
from jasgnas.space.sums import Sums
from jasgnas.space.validity import SegmentTopology

# Operators that may need a part of their operand only, although all of their result is needed.
_SELECTIVE = (DynamicSlice, Gather, Pad, Slice, Split, Unstack)

# The parts of a segment that is read in more different ones than this are not told apart.
_MOST_PARTS = 64

Needs = dict[int, Need]
_Part = tuple[int, Hashable]
"""A segment, and what is read of its results."""
_INPUT_PART: _Part = (INPUT, True)
_CONSTANT_PART: _Part = (INPUT, False)


class _Read(NamedTuple):
    """What some part of a segment depends on.

    Attributes:
        sources: the segments, each with the part of it that is read.
        num_inputs: number of network inputs that are read and that outputs are to stay connected to.
        num_constants: number of other network inputs that are read, such as random keys.
        additive: whether any of these is enough.
        present: sets of parts of segments and of groups, given by their indices, of which one must be present whole
            beside, and
        varying: sets of which one must be present whole, with those of its parts of which one must depend on the
            network input; None for both if the above says it all.
    """

    sources: tuple[_Part, ...]
    num_inputs: int
    num_constants: int
    additive: bool
    present: Sequence[Sequence[_Part | int]] | None = None
    varying: Sequence[tuple[Sequence[_Part | int], Sequence[_Part]]] | None = None


def build_dependence(
    graph: Graph, groups: Sequence[Group], leaves: Sequence[Leaf], connected: Sequence[bool]
) -> SegmentTopology:
    """Returns the graph as index arrays; the segments of the topology are the vertices described above.

    Args:
        graph: operators and segments.
        groups: the groups.
        leaves: the arrays of the model.
        connected: for each network input, whether it is one of those that outputs are to stay connected to.
    """
    reader = _Reader(graph, groups, leaves, connected)
    reads = reader.read_all()
    builder = _Builder({each.segment: each.index for each in groups})
    for segment in graph.segments:
        for part, read in reads[segment.index].items():
            builder.add(segment, part, read)
    return builder.topology(reader.outputs)


class _Vertex(NamedTuple):
    """A row of the topology; equal ones are one vertex."""

    segment: int
    senders: tuple[int, ...]
    additive: bool
    num_external: int
    group: int


class _Builder:
    """Makes vertices of parts, in topological order."""

    def __init__(self, groups: dict[int, int]):
        self._groups = groups
        self._numbers: dict[_Vertex, int] = {}
        # Whether a part is present: its vertex, or None if it always is.
        self._present: dict[_Part, int | None] = {}
        # Whether a part depends on the network input: its vertex, or None if it never does.
        self._depends: dict[_Part, int | None] = {}

    def add(self, segment: Segment, part: Hashable, read: _Read) -> None:
        """Adds one part of a segment; the parts that it reads are known."""
        number, group, key = segment.index, self._groups.get(segment.index, -1), (segment.index, part)
        constants: list[int | None] = [None] * read.num_constants
        present = [self._present[source] for source in read.sources] + constants
        depends = [self._depends[source] for source in read.sources] + constants
        known = _known(present)
        is_fed = not (read.num_inputs or known) or (read.additive and None in present)
        if is_fed:
            self._present[key] = None if group < 0 else self._vertex(number, (), False, 0, group)
        else:
            self._present[key] = self._vertex(number, known, read.additive, read.num_inputs, group)
        if not (read.num_inputs or _known(depends)):
            self._depends[key] = None
        elif present == depends and not is_fed:
            self._depends[key] = self._present[key]
        else:
            any_of_them = self._vertex(number, _known(depends), True, read.num_inputs, -1)
            self._depends[key] = self._all_of(number, [any_of_them, self._present[key]])
        if read.present is not None:
            whole = [self._all_of(number, self._units(number, units)) for units in read.present]
            if None not in whole:
                self._present[key] = self._all_of(number, [self._any_of(number, whole), self._present[key]])
        if read.varying is not None and self._depends[key] is not None:
            sets = []
            for units, parts in read.varying:
                depending = _known([self._depends.get(each) for each in parts])
                if depending or _INPUT_PART in parts:
                    any_of_them = self._vertex(number, depending, True, parts.count(_INPUT_PART), -1)
                    sets.append(self._all_of(number, [*self._units(number, units), any_of_them]))
            self._depends[key] = self._all_of(
                number, [self._any_of(number, sets), self._depends[key], self._present[key]]
            )

    def _units(self, segment: int, units: Sequence[_Part | int]) -> list[int | None]:
        """Returns the vertices that say whether each unit is present."""
        return [
            self._vertex(segment, (), False, 0, unit) if isinstance(unit, int) else self._present.get(unit)
            for unit in units
        ]

    def _any_of(self, segment: int, vertices: Sequence[int | None]) -> int:
        known = _known(vertices)
        return known[0] if len(known) == 1 else self._vertex(segment, known, True, 0, -1)

    def _all_of(self, segment: int, vertices: Sequence[int | None]) -> int | None:
        """Returns a vertex for all of some vertices, None if all of these are always present."""
        known = tuple(sorted(_known(vertices)))
        if len(known) < 2:
            return known[0] if known else None
        return self._vertex(segment, known, False, 0, -1)

    def _vertex(self, segment: int, senders: tuple[int, ...], additive: bool, num_external: int, group: int) -> int:
        return self._numbers.setdefault(_Vertex(segment, senders, additive, num_external, group), len(self._numbers))

    def topology(self, outputs: Sequence[_Part]) -> SegmentTopology:
        """Returns all vertices as arrays."""
        # An output that never depends on the input is a joint of nothing, which is dead.
        found = [self._depends[output] for output in outputs]
        ends = {self._vertex(-1, (), True, 0, -1) if vertex is None else vertex for vertex in found}
        edges = [(sender, receiver) for receiver, vertex in enumerate(self._numbers) for sender in vertex.senders]
        pairs = np.array(edges, np.int32).reshape(-1, 2)
        return SegmentTopology(
            senders=pairs[:, 0],
            receivers=pairs[:, 1],
            additive=np.array([vertex.additive for vertex in self._numbers], bool),
            num_external=np.array([vertex.num_external for vertex in self._numbers], np.int32),
            outputs=np.array(sorted(ends), np.int32),
            group=np.array([vertex.group for vertex in self._numbers], np.int32),
        )


def _known(vertices: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(vertex for vertex in vertices if vertex is not None))


class _Reader:
    """Follows what is needed from the outputs back to the inputs, segment by segment."""

    def __init__(self, graph: Graph, groups: Sequence[Group], leaves: Sequence[Leaf], connected: Sequence[bool]):
        self._graph = graph
        self._group_of = {each.segment: each.index for each in groups}
        self._prover = Prover(graph)
        self._survival = Survival(graph, groups, leaves, self._prover)
        self._sums = Sums(graph.program, graph.static_parts)
        self._avals = graph.program.avals
        # Whether the outputs are to stay connected to it, for each network input.
        self._inputs = dict(zip(graph.program.inputs[len(leaves) :], connected, strict=True))
        equations = enumerate(graph.program.equations)
        self._producer = {var: position for position, eqn in equations for var in eqn.outputs}
        # What is needed of the results of each segment, by part; then what that depends on.
        self._parts: list[dict[Hashable, Needs]] = [{} for _ in graph.segments]
        self.outputs: list[_Part] = []

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
                # Then any part is called lost if anything before it goes: in doubt a set is not valid.
                read = self._read(segment, {var: self._whole(var) for var in self._results(segment.index)})
                reads[segment.index] = dict.fromkeys(parts, read._replace(present=[self._groups_before(segment)]))
            else:
                reads[segment.index] = {part: self._read(segment, needs) for part, needs in parts.items()}
        return reads

    def _groups_before(self, segment: Segment) -> tuple[int, ...]:
        pending, seen = [segment.index], {segment.index}
        while pending:
            found = {s for s in self._graph.segments[pending.pop()].sources if s != INPUT} - seen
            pending += found
            seen |= found
        return tuple(sorted(self._group_of[each] for each in seen if each in self._group_of))

    def _ask(self, segment: int, needs: Needs) -> _Part:
        """Notes that some entries of the results of a segment are needed; returns the segment and the part."""
        part = tuple(_signature(needs.get(var, NOTHING)) for var in self._results(segment))
        self._parts[segment].setdefault(part, needs)
        return segment, part

    def _read(self, segment: Segment, results: Needs) -> _Read:
        if all(without(need, self._graph.zeros[var]) == NOTHING for var, need in results.items()):
            return _Read((), 0, 0, additive=True, present=[], varying=[])  # It is zero whatever is removed, as padding.
        if (sum_of := self._read_sum(segment)) is not None:
            return sum_of
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
        external = [self._inputs[var] for var in read if var in self._inputs and needs.get(var, NOTHING) != NOTHING]
        read_as = _Read(tuple(sources), sum(external), len(external) - sum(external), segment.additive)
        if (keepers := self._survival.keepers(segment, results)) is None:
            return read_as
        unit_of = {
            unit: self._unit(unit) for each in (*keepers.present, *(s for s, _ in keepers.varying)) for unit in each
        }
        return read_as._replace(
            present=[[unit_of[unit] for unit in each] for each in keepers.present],
            varying=[
                ([unit_of[unit] for unit in each], [self._cell(cell) for cell in cells])
                for each, cells in keepers.varying
            ],
        )

    def _unit(self, unit: Unit) -> _Part | int:
        """Asks for the entries of a value that one of several sets needs; a group is what it is."""
        return unit if isinstance(unit, int) else self._cell(unit)

    def _cell(self, unit: Cell) -> _Part:
        if unit.var in self._inputs:
            return _INPUT_PART if self._inputs[unit.var] else _CONSTANT_PART
        operator = self._graph.operator_of[self._producer[unit.var]]
        return self._ask(self._graph.segment_of[operator], {unit.var: unit.need})

    def _read_sum(self, segment: Segment) -> _Read | None:
        """Returns what a segment depends on through a sum that takes away again what it adds, None if there is none.

        A variable inside a segment comes and goes with it.
        """
        results = (var for operator in reversed(segment.operators) for var in self._prover.output(operator))
        for left in map(self._sums.remainder, results):
            if left is None:
                continue
            computed = [self._graph.operator_of[self._producer[var]] for var in left if var in self._producer]
            segments = dict.fromkeys(self._graph.segment_of[operator] for operator in computed)
            if segment.index not in segments:
                sources = [self._ask(each, {var: self._whole(var) for var in self._results(each)}) for each in segments]
                inputs = [self._inputs[var] for var in left if var not in self._producer]
                return _Read(tuple(sources), sum(inputs), len(inputs) - sum(inputs), additive=True)
        return None

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
