"""From a flat program to operators and segments: what the network is made of, as a reader of its code would say it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from jasgnas.graph.graph import ADDITIVE, INPUT, Graph, Operator, Part, Segment
from jasgnas.graph.names import operator_name
from jasgnas.program.jaxpr import Equation, Program
from jasgnas.program.macs import equation_macs
from jasgnas.rules import is_known, rule_for
from jasgnas.rules.contraction import Convolution, DotGeneral
from jasgnas.rules.elementwise import Elementwise
from jasgnas.rules.indexing import Gather
from jasgnas.rules.reduction import Reduce
from jasgnas.rules.shape import Broadcast, Concatenate, Reshape, Reverse, Slice, Split, Squeeze, Transpose


def build_graph(
    program: Program, num_leaves: int, trainable: Sequence[bool], required: Sequence[bool] | None = None
) -> Graph:
    """Finds the operators and segments of a flat program.

    Args:
        program: an inlined program; its first `num_leaves` inputs are the leaves, the others the network inputs.
        num_leaves: number of leaves.
        trainable: for each leaf, whether it is a trainable parameter; others are state, such as a running mean.
        required: for each output of the program, whether it is to stay connected to a network input; by default all.
    """
    return _Builder(program, num_leaves, trainable).build(required or [True] * len(program.outputs))


class _Builder:
    """The steps from equations to segments, each a method; what they find is kept by equation position."""

    def __init__(self, program: Program, num_leaves: int, trainable: Sequence[bool]):
        self.program = program
        self.trainable = trainable
        self.parts, self.part_vars = _find_parts(program, num_leaves)
        self.holds_part = {var: part for part, held in enumerate(self.part_vars) for var in held}
        self.independent: dict[int, frozenset[int]] = {
            var: frozenset([self.holds_part[var]] if var in self.holds_part else [])
            for var in (*program.constants, *program.inputs[:num_leaves])
        }
        # Vertex that produces each data-dependent variable: the position of an equation, or a negative number, which
        # is a network input.
        self.producer: dict[int, int] = {var: -1 - i for i, var in enumerate(program.inputs[num_leaves:])}
        # Data-dependent equations, and the vertices each of them reads, in operand order.
        self.reads: dict[int, list[int]] = {}
        for position, eqn in enumerate(program.equations):
            self._classify(position, eqn)
        self.readers: dict[int, list[int]] = {position: [] for position in self.reads}
        for position, sources in self.reads.items():
            for source in dict.fromkeys(sources):
                if source >= 0:
                    self.readers[source].append(position)
        self.returned = {self.producer[a] for a in program.outputs if isinstance(a, int) and a in self.producer}
        # Each equation's operator, named by one of its equations: a forest of pointers.
        self.leader = {position: position for position in self.reads}

    def _classify(self, position: int, eqn: Equation) -> None:
        operands = [atom for atom in eqn.inputs if isinstance(atom, int)]
        sources = [self.producer[var] for var in operands if var in self.producer]
        if sources:
            self.reads[position] = sources
            self.producer.update((var, position) for var in eqn.outputs)
        else:
            parts = frozenset().union(*(self.independent[var] for var in operands))
            for var in eqn.outputs:
                self.independent[var] = frozenset([self.holds_part[var]]) if var in self.holds_part else parts

    def build(self, required: Sequence[bool]) -> Graph:
        self._merge_regions()
        self._merge_chains()
        operators = self._operators()
        place = {position: operator.index for operator in operators for position in operator.equations}
        computed = [
            (INPUT if self.producer[atom] < 0 else place[self.producer[atom]], is_required)
            for atom, is_required in zip(self.program.outputs, required, strict=True)
            if isinstance(atom, int) and atom in self.producer
        ]
        outputs, is_required = zip(*computed, strict=True) if computed else ((), ())
        segments = _segments(operators, outputs)
        return Graph(
            self.program, self.parts, self.part_vars, self.independent, operators, segments, outputs, is_required
        )

    # Single-entry, single-exit regions of elementwise, broadcast and reduction equations are one operator. So is what
    # slices a value and puts the slices together again: a roll, the rotation of half of the channels, a shuffle.

    def _merge_regions(self) -> None:
        dominator = self._dominators()
        for position, sources in self.reads.items():
            entry = dominator[position]
            if len(sources) > 1 and entry is not None and _in_region(self.program.equations[position]):
                for member in self._region(position, entry):
                    self.leader[self._find(member)] = position

    def _dominators(self) -> dict[int, int | None]:
        """Returns, for each vertex, the last one that all paths to it pass; None if they share no vertex."""
        dominator: dict[int, int | None] = dict.fromkeys(self.producer.values())
        depth: dict[int | None, int] = {None: 0} | dict.fromkeys(dominator, 1)
        for position, sources in self.reads.items():
            common: int | None = sources[0]
            for other in sources[1:]:
                source: int | None = other
                while common != source:
                    if depth[common] >= depth[source]:
                        common = None if common is None else dominator[common]
                    else:
                        source = None if source is None else dominator[source]
            dominator[position] = common
            depth[position] = depth[common] + 1
        return dominator

    def _region(self, end: int, entry: int) -> set[int]:
        """Returns the equations after `entry` up to `end` if they make a region, or none."""
        region = {end}
        pending = [end]
        while pending:
            for source in self.reads[pending.pop()]:
                if source == entry or source in region:
                    continue
                if source in self.returned or not _in_region(self.program.equations[source]):
                    return set()
                region.add(source)
                pending.append(source)
        inside = all(reader in region for member in region - {end} for reader in self.readers[member])
        return region if inside else set()

    def _find(self, position: int) -> int:
        while self.leader[position] != position:
            position = self.leader[position]
        return position

    # Equations that a reader takes for one operator join the one they follow.

    def _merge_chains(self) -> None:
        frames = self._plain_calls()
        parts: dict[int, list[int]] = {}
        for position in self.reads:
            parts.setdefault(self._find(position), []).append(position)
        # An operator is complete when its last equation has been reached.
        for leader in sorted(parts, key=lambda leader: parts[leader][-1]):
            equations = parts[leader]
            sources = self._sources(equations)
            if len(sources) != 1 or min(sources) < 0:
                continue
            previous = self._find(min(sources))
            before = parts[previous]
            if set(self._outside_readers(before)) != {leader} or not self.returned.isdisjoint(before):
                continue
            if self._continues(before, equations, frames):
                self.leader[previous] = leader
                parts[leader] = sorted(parts.pop(previous) + equations)
        # Point every equation at its operator's last equation.
        for position in self.reads:
            self.leader[position] = self._find(position)

    def _sources(self, equations: Iterable[int]) -> dict[int, None]:
        """Returns the vertices that some equations read, each once, in order; operators are named by their leader."""
        own = {self._find(position) for position in equations}
        sources = (source for position in equations for source in self.reads[position])
        found = dict.fromkeys(source if source < 0 else self._find(source) for source in sources)
        return {source: None for source in found if source not in own}

    def _outside_readers(self, equations: Sequence[int]) -> list[int]:
        own = {self._find(position) for position in equations}
        readers = (self._find(reader) for position in equations for reader in self.readers[position])
        return [reader for reader in readers if reader not in own]

    def _continues(self, before: Sequence[int], equations: Sequence[int], frames: dict[int, int | None]) -> bool:
        """Tells whether equations carry on the operator before them; both are single chains."""
        eqn = self.program.equations[equations[0]]
        last = self.program.equations[before[-1]]
        if len(self._sources(before)) > 1:
            return False
        if all(self.program.equations[p].primitive in _NO_OPS for p in equations):
            return True
        if frames[equations[0]] is not None and frames[equations[0]] == frames[before[-1]]:
            return True
        if len(equations) > 1:
            return False
        used = self._own_parts([equations[0]])
        if eqn.primitive in ("add", "sub") and self._has_stem(before) and used:
            return all(map(self._is_trainable, used)) and not self._is_affine(last)
        if isinstance(rule_for(eqn.primitive), Elementwise) and not self._has_stem(before):
            if used and eqn.primitive in ("add", "sub", "mul", "div"):
                return self._is_affine(last) or self._has_reduction(before)
            averages = eqn.primitive in ("div", "mul") and last.primitive in ("reduce_sum", "reduce_window_sum")
            return averages and not used
        return False

    def _plain_calls(self) -> dict[int, int | None]:
        """Returns, for each equation, the outermost call around it that uses no leaf and no joint, if there is one."""
        tainted: set[int] = set()
        for position in self.reads:
            if self._own_parts([position]) or len(self._sources([position])) > 1:
                tainted.update(number for number, _ in self.program.equations[position].calls)
        return {
            position: next((n for n, _ in self.program.equations[position].calls if n not in tainted), None)
            for position in self.reads
        }

    def _own_parts(self, equations: Iterable[int]) -> list[int]:
        found: set[int] = set()
        for position in equations:
            for atom in self.program.equations[position].inputs:
                if isinstance(atom, int):
                    found |= self.independent.get(atom, frozenset())
        return sorted(found)

    def _has_stem(self, equations: Iterable[int]) -> bool:
        return any(self._is_stem(position) for position in equations)

    def _is_stem(self, position: int) -> bool:
        """A contraction, or a table lookup, of the data with trainable parameters."""
        eqn = self.program.equations[position]
        if not isinstance(rule_for(eqn.primitive), Convolution | DotGeneral | Gather) or len(self.reads[position]) > 1:
            return False
        return any(map(self._is_trainable, self._own_parts([position])))

    def _is_trainable(self, part: int) -> bool:
        return self.trainable[self.parts[part].leaf]

    def _is_affine(self, eqn: Equation) -> bool:
        # State may be among the leaves, or a constant that a function has closed over.
        return eqn.primitive in ("add", "sub", "mul", "div") and any(atom in self.independent for atom in eqn.inputs)

    def _has_reduction(self, equations: Sequence[int]) -> bool:
        return any(isinstance(rule_for(self.program.equations[p].primitive), Reduce) for p in equations)

    # Operators.

    def _operators(self) -> tuple[Operator, ...]:
        parts: dict[int, list[int]] = {}
        for position in self.reads:
            parts.setdefault(self.leader[position], []).append(position)
        # In the order of their last equations, which are their leaders, every operator follows its sources.
        place = {leader: index for index, leader in enumerate(sorted(parts))}
        return tuple(self._operator(index, parts[leader], place) for leader, index in place.items())

    def _operator(self, index: int, equations: Sequence[int], place: dict[int, int]) -> Operator:
        sources = tuple(INPUT if source < 0 else place[source] for source in self._sources(equations))
        eqns = [self.program.equations[position] for position in equations]
        if not all(is_known(eqn.primitive) for eqn in eqns):
            kind = "unknown"
        elif len(sources) > 1:
            kind = "joint"
        elif self._has_stem(equations):
            kind = "stem"
        else:
            kind = "accessory"
        parts = tuple(self._own_parts(equations))
        return Operator(
            index=index,
            kind=kind,
            name=operator_name(eqns, kind, [not self._is_trainable(part) for part in parts]),
            equations=tuple(equations),
            sources=sources,
            additive=kind == "joint" and len(eqns) == 1 and eqns[0].primitive in ADDITIVE,
            parts=parts,
            macs=sum(equation_macs(eqn) for eqn in eqns),
            shape=tuple(eqns[-1].out_avals[0].shape),
        )


def _find_parts(program: Program, num_leaves: int) -> tuple[tuple[Part, ...], tuple[tuple[int, ...], ...]]:
    """Divides leaves into parts: a leaf that is only ever read row by row is one part per row, any other a whole.

    Returns:
        The parts, and the variables that hold each of them.
    """
    readers: dict[int, list[Equation]] = {}
    for eqn in program.equations:
        for var in {atom for atom in eqn.inputs if isinstance(atom, int)}:
            readers.setdefault(var, []).append(eqn)

    def rows(var: int, single: int = 0) -> dict[tuple[int, ...], list[int]]:
        """Returns the rows in which a variable is read and what holds each, or () if it is read in another way.

        Args:
            var: the variable.
            single: number of its leading axes along which a single index has been taken; they are still to be dropped.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for eqn in readers.get(var, ()):
            taken = _dropped(eqn, single) if single else _row_taken(eqn)
            if taken is None or var in program.outputs:
                return {(): [var]}
            for row, held in rows(eqn.outputs[0], len(taken)).items():
                found.setdefault(taken + row, []).extend(held)
        return found or {(): [var]}

    parts: dict[Part, list[int]] = {}
    for leaf, var in enumerate(program.inputs[:num_leaves]):
        found = rows(var)
        overlap = any(row[:length] in found for row in found for length in range(len(row)))
        if len(found) == 1 or overlap:
            found = {(): [var]}
        parts.update((Part(leaf, row), found[row]) for row in sorted(found))
    return tuple(parts), tuple(map(tuple, parts.values()))


def _row_taken(eqn: Equation) -> tuple[int, ...] | None:
    """Returns the indices along the leading axes at which an equation takes a row of its operand, if it does that."""
    if eqn.primitive != "slice":
        return None
    old, new = eqn.in_avals[0].shape, eqn.out_avals[0].shape
    length = max([1, *(axis + 1 for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)])
    return tuple(eqn.params["start_indices"][:length]) if new[:length] == (1,) * length else None


def _dropped(eqn: Equation, single: int) -> tuple[()] | None:
    """Returns no index if all that an equation does is to drop leading axes of size one."""
    is_dropping = eqn.primitive in ("squeeze", "reshape") and eqn.out_avals[0].shape == eqn.in_avals[0].shape[single:]
    return () if is_dropping else None


_NO_OPS = ("convert_element_type", "copy", "name", "optimization_barrier", "stop_gradient")
_REGION_RULES = (Elementwise, Reduce, Broadcast, Reshape, Squeeze, Transpose, Slice, Split, Reverse, Concatenate)


def _in_region(eqn: Equation) -> bool:
    return isinstance(rule_for(eqn.primitive), _REGION_RULES)


def _segments(operators: Sequence[Operator], outputs: Sequence[int]) -> tuple[Segment, ...]:
    """Grows segments: a chain ends at a vertex with several consumers and before a vertex with several inputs."""
    readers = Counter(source for operator in operators for source in set(operator.sources))
    readers.update(outputs)
    chains: list[list[int]] = []
    chain_of: dict[int, int] = {}
    for operator in operators:
        previous = operator.sources[0]
        alone = len(operator.sources) > 1 or previous == INPUT or len(operators[previous].sources) > 1
        if not alone and readers[previous] == 1:
            chain_of[operator.index] = chain_of[previous]
        else:
            chain_of[operator.index] = len(chains)
            chains.append([])
        chains[chain_of[operator.index]].append(operator.index)
    return tuple(
        Segment(
            index,
            tuple(chain),
            tuple(INPUT if s == INPUT else chain_of[s] for s in operators[chain[0]].sources),
            operators[chain[0]].additive,
        )
        for index, chain in enumerate(chains)
    )
