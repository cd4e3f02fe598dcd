"""What depends on what: from a network to the graph that validity is judged on and sizes are counted on.

Its vertices are the segments. A segment is divided into *sections* where others read parts of it in their own right:
the class token of a transformer and its other tokens are different things, of which one may depend on the network input
and the other not. Of each section there are two things to be said, and a vertex for each where they differ:

- it is *present*, unless its group is removed or what it reads is missing: a joint that can lose an input needs one of
  them, any other segment needs all. Constants, such as a class token, are always present;
- it *depends* on the network input if it is present and any section that it reads does.

Where no constant is read and no sum takes away again what it adds, what is present depends on the input, and the graph
is the segment graph.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, zip_longest
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import INPUT, Graph, Segment
from jasgnas.program.jaxpr import Literal
from jasgnas.program.masks import NOTHING, Need, everything, filled, same, without, zero
from jasgnas.rules import rule_for
from jasgnas.rules.indexing import DynamicSlice, Gather
from jasgnas.rules.shape import Pad, Slice, Split, Unstack
from jasgnas.space.groups import NOBODY, OwnerTable
from jasgnas.space.nonzero import Cell, Survival, Unit
from jasgnas.space.sharing import Sharing
from jasgnas.space.sums import Sums
from jasgnas.space.validity import DependenceGraph

# Operators that may need a part of their operand only, although all of their result is needed.
_SELECTIVE = (DynamicSlice, Gather, Pad, Slice, Split, Unstack)

# The sections of a segment that is read in more different ones than this are not told apart.
_MOST_SECTIONS = 64

Needs = dict[int, Need]
Section = tuple[int, Hashable]
"""A segment, and what is read of its results in its own right."""
_INPUT: Section = (INPUT, True)
_CONSTANT: Section = (INPUT, False)


class _Read(NamedTuple):
    """What a section depends on.

    Attributes:
        sources: the sections that are read.
        passes_zeros: for each of them, whether this section is zero when that one is.
        num_inputs: number of network inputs that are read and that outputs are to stay connected to.
        num_constants: number of other network inputs that are read, such as random keys.
        additive: whether any of these is enough.
        present: alternatives beside that, sets of sections and of groups, given by their indices: this section is only
            present if all of one set are.
        varying: the same for depending on the network input: all of one set must be present, and one of the sections
            that stand beside the set must depend on it. None for both if the above says it all.
    """

    sources: tuple[Section, ...] = ()
    passes_zeros: tuple[bool, ...] = ()
    num_inputs: int = 0
    num_constants: int = 0
    additive: bool = False
    present: Sequence[Sequence[Section | int]] | None = None
    varying: Sequence[tuple[Sequence[Section | int], Sequence[Section]]] | None = None

    def units(self) -> Iterator[Section | int]:
        """Yields all that stands in the sets of `present` and `varying`."""
        for units in (*(self.present or ()), *(units for units, _ in self.varying or ())):
            yield from units


def build_dependence(
    graph: Graph, sharing: Sharing, owners: OwnerTable, leaves: Sequence[Leaf], connected: Sequence[bool]
) -> DependenceGraph:
    """Returns what depends on what, as index arrays.

    Args:
        graph: operators and segments.
        sharing: the groups of segments, and what several segments share.
        owners: what they hold of the leaves.
        leaves: the arrays of the model.
        connected: for each network input, whether it is one of those that outputs are to stay connected to.
    """
    num_groups = 1 + max(sharing.group_of.values(), default=-1)
    reader = _Reader(graph, len(leaves), sharing.group_of, Survival(graph, owners, leaves, num_groups), connected)
    reads = reader.read_all()
    builder = _Builder(sharing, reads)
    for segment, own in zip(graph.segments, reads, strict=True):
        for part_read, read in own.items():
            builder.add((segment.index, part_read), read)
    return builder.graph(reader.outputs, reader.required)


class _Vertex(NamedTuple):
    """A row of the graph; equal ones are one vertex."""

    segment: int
    senders: tuple[int, ...] = ()
    passes_zeros: tuple[bool, ...] = ()
    additive: bool = False
    num_external: int = 0
    group: int = -1


class _Builder:
    """Makes vertices of sections, in topological order."""

    def __init__(self, sharing: Sharing, reads: Sequence[Mapping[Hashable, _Read]]):
        """Prepares what groups and segments have in common; `reads` are the sections of each segment."""
        self._sharing = sharing
        # Groups of which there is more than one section, or which others ask for. They have a vertex of their own that
        # all of these read: other than any of these, it is only gone if the group is.
        num_sections = Counter(group for s, own in enumerate(reads) for _ in own if (group := self._group(s)) != NOBODY)
        asked = (unit for own in reads for read in own.values() for unit in read.units() if isinstance(unit, int))
        self._apart = {group for group, number in (num_sections + Counter(asked)).items() if number > 1}
        self._numbers: dict[_Vertex, int] = {}
        # The vertex that says whether a section is present, and the one that says whether it depends on the network
        # input, None if it never does.
        self._present: dict[Section, int] = {}
        self._depends: dict[Section, int | None] = {}
        # The vertices that are present whatever is removed.
        self._always: set[int] = set()

    def add(self, section: Section, read: _Read) -> None:
        """Adds a section; those that it reads are known."""
        segment, _ = section
        group = self._group(segment)
        num_external = read.num_inputs + read.num_constants
        present = tuple(self._present[source] for source in read.sources)
        depends = [self._depends[source] for source in read.sources]
        # A range of a concatenation that is a constant reads nothing, and is always there.
        additive = read.additive and len(present) + num_external > 0
        own = self._own(_Vertex(segment, present, read.passes_zeros, additive, num_external, group))
        is_fed = [*(vertex in self._always for vertex in present), *[True] * num_external]
        if group < 0 and (any(is_fed) if additive else all(is_fed)):
            self._always.add(own)
        varies = [*(a == b for a, b in zip(present, depends, strict=True)), *[True] * read.num_inputs]
        varies += [False] * read.num_constants
        # Where all that is read is needed, what is present depends on the input as soon as any of that always does.
        if varies and (all(varies) if additive else any(varies)):
            varying: int | None = own
        elif read.num_inputs or any(vertex is not None for vertex in depends):
            varying = self._all_of(segment, [self._any_of(segment, depends, read.num_inputs), own])
        else:
            varying = None
        if read.present is not None:
            own, varying = self._restricted(segment, read, own, varying)
        self._present[section], self._depends[section] = own, varying

    def _group(self, segment: int) -> int:
        return self._sharing.group_of.get(segment, NOBODY)

    def _own(self, vertex: _Vertex) -> int:
        """Returns the vertex of a section, which reads what is shared with others beside what it reads of the data."""
        shared = [
            self._number(_Vertex(each, group=self._group(each))) for each in self._sharing.read_by(vertex.segment)
        ]
        if vertex.group in self._apart:
            if all(self._group(each) != vertex.group for each in self._sharing.read_by(vertex.segment)):
                shared.append(self._number(_Vertex(vertex.segment, group=vertex.group)))
            vertex = vertex._replace(group=NOBODY)
        if not shared:
            return self._number(vertex)
        passes = (True,) * len(shared)
        if vertex.additive:
            # A joint can lose any input, but not what it shares, a class token that is put beside its inputs.
            return self._number(_Vertex(vertex.segment, (self._number(vertex), *shared), (True, *passes)))
        senders, passes = (*vertex.senders, *shared), (*vertex.passes_zeros, *passes)
        return self._number(vertex._replace(senders=senders, passes_zeros=passes))

    def _restricted(self, segment: int, read: _Read, own: int, varying: int | None) -> tuple[int, int | None]:
        """Returns the vertices of a section of which something must be present, and vary, beside what it reads."""
        sets = [self._units(segment, units) for units in read.present or ()]
        if all(sets):
            enough = self._any_of(segment, [self._all_of(segment, units) for units in sets])
            # What keeps the section from being zero may not have been found in full: it passes on no zeros.
            own = self._number(_Vertex(segment, (enough, own), (False, True)))
        if varying is None:
            return own, None
        reached = []
        for units, sections in read.varying or ():
            depends = [vertex for each in sections if (vertex := self._depends.get(each)) is not None]
            if depends or _INPUT in sections:
                any_of_them = self._any_of(segment, depends, sections.count(_INPUT))
                reached.append(self._all_of(segment, [*self._units(segment, units), any_of_them]))
        if read.varying is not None:
            varying = self._all_of(segment, [self._any_of(segment, reached), varying])
        return own, self._all_of(segment, [varying, own])

    def _units(self, segment: int, units: Sequence[Section | int]) -> list[int]:
        """Returns the vertices that say whether each of some sections and groups is present, if it can be missing."""
        found = [
            self._number(_Vertex(segment, group=unit)) if isinstance(unit, int) else self._present.get(unit)
            for unit in units
        ]
        return [vertex for vertex in found if vertex is not None and vertex not in self._always]

    def _any_of(self, segment: int, vertices: Iterable[int | None], num_inputs: int = 0) -> int:
        known = tuple(dict.fromkeys(vertex for vertex in vertices if vertex is not None))
        if len(known) == 1 and not num_inputs:
            return known[0]
        return self._number(_Vertex(segment, known, (False,) * len(known), additive=True, num_external=num_inputs))

    def _all_of(self, segment: int, vertices: Iterable[int | None]) -> int:
        known = tuple(sorted({vertex for vertex in vertices if vertex is not None}))
        if len(known) == 1:
            return known[0]
        return self._number(_Vertex(segment, known, (True,) * len(known)))

    def _number(self, vertex: _Vertex) -> int:
        return self._numbers.setdefault(vertex, len(self._numbers))

    def graph(self, outputs: Sequence[Section], required: Sequence[bool]) -> DependenceGraph:
        """Returns all vertices as arrays."""
        # An output that never depends on the input is a joint of nothing, which is dead.
        ends = [
            self._number(_Vertex(output[0], additive=True)) if (vertex := self._depends[output]) is None else vertex
            for output in outputs
        ]
        edges = [
            (sender, receiver, passes)
            for receiver, vertex in enumerate(self._numbers)
            for sender, passes in zip(vertex.senders, vertex.passes_zeros, strict=True)
        ]
        senders, receivers, passes_zeros = np.array(edges, np.int32).reshape(-1, 3).T
        return DependenceGraph(
            senders=senders,
            receivers=receivers,
            passes_zeros=passes_zeros.astype(bool),
            additive=np.array([vertex.additive for vertex in self._numbers], bool),
            num_external=np.array([vertex.num_external for vertex in self._numbers], np.int32),
            outputs=np.array(sorted(set(ends)), np.int32),
            required=np.array(sorted(set(compress(ends, required))), np.int32),
            group=np.array([vertex.group for vertex in self._numbers], np.int32),
            segment=np.array([vertex.segment for vertex in self._numbers], np.int32),
        )


class _Reader:
    """Follows what is needed from the outputs back to the inputs, segment by segment."""

    def __init__(
        self,
        graph: Graph,
        num_leaves: int,
        group_of: Mapping[int, int],
        survival: Survival,
        connected: Sequence[bool],
    ):
        self._graph = graph
        self._group_of = group_of
        self._survival = survival
        self._sums = Sums(graph.program, graph.independent)
        # Whether the outputs are to stay connected to it, for each network input; never to the number of an iteration.
        inputs = graph.program.inputs[num_leaves:]
        self._inputs = dict(zip_longest(inputs, connected, fillvalue=False))
        equations = enumerate(graph.program.equations)
        self._producer = {var: position for position, eqn in equations for var in eqn.outputs}
        # Whether anything in a segment can become zero: of a sum only all of it, of a concatenation each of its ranges.
        self._can_vanish: list[bool] = []
        for segment in graph.segments:
            read = [source != INPUT and self._can_vanish[source] for source in segment.sources]
            first = graph.program.equations[graph.operators[segment.operators[0]].equations[0]]
            is_sum = segment.additive and first.primitive not in ("concatenate", "stack")
            # What is zero whatever is removed, as a state at the start of a loop, keeps no sum from being zero.
            is_zero = all(graph.full.zeros[var].everywhere for var in self._results(segment.index))
            self._can_vanish.append(is_zero or segment.index in group_of or (all(read) if is_sum else any(read)))
        # What is needed of the results of each segment, by section.
        self._sections: list[dict[Hashable, Needs]] = [{} for _ in graph.segments]
        # The outputs that are computed, and which of them are to stay connected.
        self.outputs: list[Section] = []
        self.required: list[bool] = []

    def read_all(self) -> list[dict[Hashable, _Read]]:
        """Returns, for each segment, what each section of it depends on."""
        data = [atom for atom in self._graph.program.outputs if isinstance(atom, int)]
        data = [var for var in data if var not in self._graph.independent]
        for var, operator, is_required in zip(data, self._graph.outputs, self._graph.required, strict=True):
            if operator != INPUT:
                self.required.append(is_required)
                self.outputs.append(self._ask(self._graph.segment_of[operator], {var: self._whole(var)}))
        reads: list[dict[Hashable, _Read]] = [{} for _ in self._graph.segments]
        for segment in reversed(self._graph.segments):
            sections = self._sections[segment.index]
            if len(sections) > _MOST_SECTIONS:
                # Then any section is called lost if anything before it goes: in doubt a set is not valid.
                read = self._read(segment, self._all_results(segment.index))
                reads[segment.index] = dict.fromkeys(sections, read._replace(present=[self._groups_before(segment)]))
            else:
                reads[segment.index] = {section: self._read(segment, needs) for section, needs in sections.items()}
        return reads

    def _groups_before(self, segment: Segment) -> tuple[int, ...]:
        pending, seen = [segment.index], {segment.index}
        while pending:
            found = {s for s in self._graph.segments[pending.pop()].sources if s != INPUT} - seen
            pending += found
            seen |= found
        return tuple(sorted(self._group_of[each] for each in seen if each in self._group_of))

    def _ask(self, segment: int, needs: Needs) -> Section:
        """Notes that some entries of the results of a segment are needed; returns the section."""
        section = tuple(_signature(needs.get(var, NOTHING)) for var in self._results(segment))
        self._sections[segment].setdefault(section, needs)
        return segment, section

    def _read(self, segment: Segment, results: Needs) -> _Read:
        """Returns what some entries of the results of a segment depend on."""
        if all(need == NOTHING for need in results.values()):
            return _Read(additive=True, present=[], varying=[])  # It is zero whatever is removed, as padding is.
        operands = self._graph.operands(segment.operators[0])
        if self._is_selective(segment) or not all(same(need, self._whole(var)) for var, need in results.items()):
            needs = self._graph.needs_before(segment.operators, results)
        else:
            needs = {var: self._whole(var) for var in operands}
        sources = []
        for source in dict.fromkeys(s for s in segment.sources if s != INPUT):
            asked = {var: needs.get(var, NOTHING) for var in self._results(source)}
            if any(need != NOTHING for need in asked.values()):
                sources.append(self._ask(source, asked))
        external = [self._inputs[v] for v in operands if v in self._inputs and needs.get(v, NOTHING) != NOTHING]
        read = _Read(
            sources=tuple(sources),
            passes_zeros=tuple(
                self._can_vanish[source] and not segment.additive and self._passes(source, segment, results)
                for source, _ in sources
            ),
            num_inputs=sum(external),
            num_constants=len(external) - sum(external),
            additive=segment.additive,
        )
        if (iterations := self._of_iterations(segment, results)) is not None:
            # What is computed goes by all iterations, what depends on what only by those that these entries are of.
            return read._replace(
                present=[[each] for each in iterations], varying=[([each], [each]) for each in iterations]
            )
        if (remainder := self._remainder(segment)) is not None:
            # Where nothing is left there is a constant from the start, which no removal takes from those that read it.
            return read._replace(
                present=[[*through, each] for through, each in remainder] or [[]],
                varying=[([*through, each], [each]) for through, each in remainder],
            )
        if (keepers := self._survival.keepers(segment, results)) is None:
            return read
        return read._replace(
            present=[self._units(units) for units in keepers.present],
            varying=[(self._units(units), list(map(self._cell, cells))) for units, cells in keepers.varying],
        )

    def _passes(self, source: int, segment: Segment, results: Needs) -> bool:
        """Tells whether some entries of a segment's results are zero where what it reads of another segment is."""
        known = {var: zero(self._graph.ndim(var)) for var in self._results(source)}
        flow = self._graph.zeros_through(segment.operators, known)
        return all(without(need, flow.zeros[var]) == NOTHING for var, need in results.items())

    def _units(self, units: Iterable[Unit]) -> list[Section | int]:
        """Asks for the entries of a value that one of several sets needs; a group is what it is."""
        return [unit if isinstance(unit, int) else self._cell(unit) for unit in units]

    def _cell(self, unit: Cell) -> Section:
        if unit.var in self._inputs:
            return self._section_of(unit.var)
        return self._ask(self._segment_with(unit.var), {unit.var: unit.need})

    def _of_iterations(self, segment: Segment, results: Needs) -> list[Section] | None:
        """Returns what some entries of the results of a loop that has been unfolded are, None of another segment."""
        eqn = self._graph.program.equations[self._graph.operators[segment.operators[0]].equations[0]]
        if eqn.primitive not in ("loop_state", "loop_end", "loop_rows"):
            return None
        (need,) = (results[var] for var in eqn.outputs)
        read = np.array(eqn.params["read"])
        assert need != NOTHING
        if eqn.primitive == "loop_rows":
            read, need = read[filled(need[0], len(read))], need[1:]
        atoms = [eqn.inputs[iteration] for iteration in np.unique(read)]
        return [
            _CONSTANT
            if isinstance(atom, Literal) or atom in self._graph.independent
            else self._cell(Cell(atom, without(need, self._graph.full.zeros[atom])))
            for atom in atoms
        ]

    def _remainder(self, segment: Segment) -> list[tuple[list[Section], Section]] | None:
        """Returns what is left of a sum that takes away again what it adds, None if there is no such in a segment.

        Each part with those that it reaches the sum through. A variable inside a segment comes and goes with it.
        """
        results = (var for operator in reversed(segment.operators) for var in self._graph.results(operator))
        for left in map(self._sums.remainder, results):
            if left is None or segment.index in (self._segment_with(addend.var) for addend in left):
                continue
            parts: dict[tuple[Section, ...], None] = {}
            for var, maps in left:
                through = {self._segment_with(each) for each in maps} - {segment.index}
                parts[self._section_of(var), *map(self._ask_whole, sorted(through))] = None
            return [(through, part) for part, *through in parts]
        return None

    def _section_of(self, var: int) -> Section:
        """Asks for all results of the segment that a variable is in, unless it is a network input."""
        if var in self._inputs:
            return _INPUT if self._inputs[var] else _CONSTANT
        return self._ask_whole(self._segment_with(var))

    def _ask_whole(self, segment: int) -> Section:
        return self._ask(segment, self._all_results(segment))

    def _segment_with(self, var: int) -> int:
        """Returns the segment that a variable is computed in."""
        return self._graph.segment_of[self._graph.operator_of[self._producer[var]]] if var in self._producer else INPUT

    def _results(self, segment: int) -> tuple[int, ...]:
        return self._graph.results(self._graph.segments[segment].operators[-1])

    def _all_results(self, segment: int) -> Needs:
        return {var: self._whole(var) for var in self._results(segment)}

    def _whole(self, var: int) -> Need:
        """Returns the need of a variable as a whole; nobody needs what is zero anyway."""
        return without(everything(self._graph.ndim(var)), self._graph.full.zeros[var])

    def _is_selective(self, segment: Segment) -> bool:
        positions = (p for operator in segment.operators for p in self._graph.operators[operator].equations)
        return any(isinstance(rule_for(self._graph.program.equations[p].primitive), _SELECTIVE) for p in positions)


def _signature(need: Need) -> Hashable:
    return need if need == NOTHING else tuple(None if mask is None else mask.tobytes() for mask in need)
