"""Operators and segments of a network, and how zeros and needs pass through them.

Operators are the vertices of the trace graph: an equation, or several that belong together (a convolution and its
bias, the equations of a batch norm, the body of a softmax). Segments are the vertices of the segment graph: maximal
chains of operators (arXiv 2305.18030, section 3.1).
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import NamedTuple

from jasgnas.program.jaxpr import Atom, Equation, Program
from jasgnas.program.masks import Need, Zeros, coarsened
from jasgnas.rules.degrees import Degree
from jasgnas.rules.flow import DegreeFlow, NeedFlow, RememberedAnswers, ZeroFlow, propagate_zeros

KINDS = ("stem", "joint", "accessory", "unknown")
ADDITIVE = ("add", "sub", "add_any", "concatenate", "stack", "loop_state", "loop_rows", "loop_end")

# The network input, where a vertex is expected.
INPUT = -1


class Part(NamedTuple):
    """What one operator may own: a leaf, or one row of a leaf that stacks the parameters of several layers.

    Attributes:
        leaf: index of the leaf.
        row: indices along the leading axes, as many as the layers are stacked along; none for the whole leaf.
    """

    leaf: int
    row: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Operator:
    """A vertex of the trace graph.

    Attributes:
        index: its position in the order of the trace.
        kind: one of `KINDS`.
        name: what a reader would call it (`conv`, `batch_norm`, `relu`, `add`).
        equations: positions of its data-dependent equations in the program.
        sources: operators whose outputs it reads, each once, in operand order; `INPUT` for each network input.
        additive: whether it is a joint that can lose an input (add, subtract, concatenate).
        parts: indices of the parts of leaves it reads, in leaf order.
        macs: multiply-adds of one evaluation at the traced shapes.
        shape: shape of its (first) result.
    """

    index: int
    kind: str
    name: str
    equations: tuple[int, ...]
    sources: tuple[int, ...]
    additive: bool
    parts: tuple[int, ...]
    macs: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """A vertex of the segment graph.

    Attributes:
        index: its position in the order of the trace.
        operators: indices of its operators, in order.
        sources: segments whose outputs it reads, in operand order, `INPUT` for a network input.
        additive: whether it is a joint that can lose an input.
    """

    index: int
    operators: tuple[int, ...]
    sources: tuple[int, ...]
    additive: bool


@dataclass(frozen=True, eq=False)
class Graph:
    """The operators and segments of a program.

    Attributes:
        program: the flat program.
        parts: the parts that the leaves consist of.
        part_vars: the variables that hold each part.
        independent: for each variable that does not depend on the network input, the parts that it depends on.
        operators: vertices of the trace graph.
        segments: vertices of the segment graph.
        outputs: for each network output, the operator that computes it, or `INPUT`.
        required: for each network output, whether it is to stay connected to the network input.
    """

    program: Program
    parts: tuple[Part, ...]
    part_vars: tuple[tuple[int, ...], ...]
    independent: dict[int, frozenset[int]]
    operators: tuple[Operator, ...]
    segments: tuple[Segment, ...]
    outputs: tuple[int, ...]
    required: tuple[bool, ...]

    @cached_property
    def ends(self) -> frozenset[int]:
        """The operators that compute outputs which are to stay connected."""
        return frozenset(compress(self.outputs, self.required))

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """For each part that operators read, these, in order."""
        found: dict[int, list[int]] = {}
        for operator in self.operators:
            for part in operator.parts:
                found.setdefault(part, []).append(operator.index)
        return found

    @cached_property
    def returned(self) -> frozenset[int]:
        """The parts that outputs depend on which do not depend on the network input, such as a temperature."""
        data = [atom for atom in self.program.outputs if isinstance(atom, int)]
        return frozenset().union(*(self.independent.get(var, ()) for var in data))

    @cached_property
    def read(self) -> frozenset[Atom]:
        """The variables that equations read or that are outputs; the counter of a loop may be a result of no use."""
        return frozenset(atom for eqn in self.program.equations for atom in eqn.inputs).union(self.program.outputs)

    @cached_property
    def full(self) -> ZeroFlow:
        """What is zero in the full network, whatever its parameters and inputs are: padding, for example.

        Values that are computed alike share what is known of them: the masks of all attentions, for example.
        """
        return propagate_zeros(self.program, answers=RememberedAnswers())

    def zeros_through(self, operators: Iterable[int], known: Mapping[int, Zeros]) -> ZeroFlow:
        """Follows zeros through some operators, given those of variables where more is known than in the full network.

        The equations on leaves alone that the operators depend on, such as the reshape of a bias, are followed, too.
        """
        return ZeroFlow(ChainMap(dict(known), self.full.zeros)).through(self._equations(operators))

    def degrees_through(self, operators: Iterable[int], known: Mapping[int, Degree]) -> DegreeFlow:
        """Follows degrees of homogeneity through some operators, given those of variables that are not constant."""
        return DegreeFlow(self.full, dict(known)).through(self._equations(operators))

    def needs_before(
        self, operators: Iterable[int], results: Mapping[int, Need], flow: ZeroFlow | None = None
    ) -> dict[int, Need]:
        """Returns which entries of what some operators read and compute some entries of their results depend on.

        Args:
            operators: the operators.
            results: the needed entries, by variable.
            flow: the zeros, those of the full network by default.
        """
        found = NeedFlow(flow or self.full).add(results, results.values()).back_through(self._equations(operators))
        return {var: coarsened(need) for var, need in found.needs.items()}

    def _equations(self, operators: Iterable[int]) -> list[tuple[int, Equation]]:
        positions = set().union(*(self._positions[operator] for operator in operators))
        return [(position, self.program.equations[position]) for position in sorted(positions)]

    @cached_property
    def _positions(self) -> list[list[int]]:
        """For each operator its equations, and those on leaves and constants alone that it depends on."""
        held = {var for variables in self.part_vars for var in variables}
        producer = {
            var: position
            for position, eqn in enumerate(self.program.equations)
            for var in eqn.outputs
            if var in self.independent and var not in held
        }
        found = []
        for operator in self.operators:
            positions = dict.fromkeys(operator.equations)
            pending: list[Atom] = [a for p in operator.equations for a in self.program.equations[p].inputs]
            while pending:
                atom = pending.pop()
                position = producer.get(atom) if isinstance(atom, int) else None
                if position is not None and position not in positions:
                    positions[position] = None
                    pending.extend(self.program.equations[position].inputs)
            found.append(list(positions))
        return found

    @cached_property
    def prepared(self) -> dict[int, list[int]]:
        """For each equation on leaves alone, such as the product of two of them, the operators that depend on it."""
        found: dict[int, list[int]] = {}
        for operator, positions in zip(self.operators, self._positions, strict=True):
            for position in positions:
                # What constants alone make is computed once for all.
                outputs = self.program.equations[position].outputs
                if any(self.independent.get(var) for var in outputs):
                    found.setdefault(position, []).append(operator.index)
        return found

    def results(self, operator: int) -> tuple[int, ...]:
        """Returns the variables that an operator hands on."""
        return self.program.equations[self.operators[operator].equations[-1]].outputs

    def operands(self, operator: int) -> list[int]:
        """Returns the data-dependent variables that an operator reads from others."""
        equations = [self.program.equations[position] for position in self.operators[operator].equations]
        own = {var for eqn in equations for var in eqn.outputs}
        read = dict.fromkeys(atom for eqn in equations for atom in eqn.inputs if isinstance(atom, int))
        return [var for var in read if var not in own and var not in self.independent]

    def ndim(self, var: int) -> int:
        """Returns the number of axes of a variable."""
        return len(self.program.avals[var].shape)

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For each operator, the operators that read it, in order and without repetition."""
        found: list[dict[int, None]] = [{} for _ in self.operators]
        for operator in self.operators:
            for source in operator.sources:
                if source != INPUT:
                    found[source][operator.index] = None
        return [list(readers) for readers in found]

    def leaves_of(self, operator: int) -> list[int]:
        """Returns the indices of the leaves that an operator reads, in order."""
        return sorted({self.parts[part].leaf for part in self.operators[operator].parts})

    @cached_property
    def segment_of(self) -> dict[int, int]:
        """The segment of each operator."""
        return {operator: segment.index for segment in self.segments for operator in segment.operators}

    @cached_property
    def operator_of(self) -> dict[int, int]:
        """The operator of each data-dependent equation."""
        return {equation: operator.index for operator in self.operators for equation in operator.equations}
