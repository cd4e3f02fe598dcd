"""Gates without a gate: the parameters that the result of a structure grows in proportion with.

If the result e of a structure were multiplied by a gate z, ∂L/∂z at z = 1 would say to first order what the structure
does for the loss L (arXiv 1906.10771). No gate is needed where there are parameters x_S with e(s·x_S) = s·e(x_S) for
every s > 0: then ⟨x_S, ∇L⟩ is ∂L/∂z, by Euler's theorem. Nothing is looked up by the name of a layer: degrees of
homogeneity are followed through the equations of operators (see `rules/degrees.py`).

Example: in convolution → batch norm → relu → addition, the result has degree 1 in scale and bias of the norm together,
and no degree in the kernel, since the norm adds an epsilon to the variance. In convolution → relu → convolution it has
degree 1 in either kernel; the last one is taken. After a tanh there are no such parameters.

A range of channels that a concatenation makes of the result, and that entries of a later norm belong to, has its gate
after that norm, and after each of them where several norms read it.

What is said holds of the mode that the network is traced in, and where gradients are those of what is computed: not so
of a `custom_vjp` between these parameters and the result that makes up its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jasgnas.graph.graph import Graph
from jasgnas.program.masks import same, zero_at
from jasgnas.rules import rule_for
from jasgnas.rules.degrees import ANY, CONSTANT, Degree, is_constant
from jasgnas.rules.elementwise import Elementwise
from jasgnas.rules.flow import DegreeFlow
from jasgnas.space.groups import NOBODY
from jasgnas.space.ranges import Ranges

_IN_PROPORTION = 1.0

_Parts = Mapping[int, Sequence[int]]
"""Parts of leaves that a group holds, or a range of, by the operator that reads them."""


class _Way(NamedTuple):
    """Where the result of a structure goes.

    Attributes:
        group: the group of the structure.
        segment: its operators.
        operators: these and all others that its range passes, in order.
        ends: the variables with which its range is read by any other operator, by the operator that computes them.
    """

    group: int
    segment: frozenset[int]
    operators: Sequence[int]
    ends: Mapping[int, Sequence[int]]


class GateFinder:
    """Finds the gates of the groups of a network."""

    def __init__(self, graph: Graph, ranges: Mapping[int, Ranges]):
        """Prepares a network.

        Args:
            graph: the network.
            ranges: by variable, the group whose range each index lies in: of the results of operators beyond the
                structures, and of the parameters of which entries belong to groups further up.
        """
        self._graph = graph
        self._ranges = ranges
        self._operands: dict[int, list[int]] = {}
        # What is found of an operator is the same for all structures whose results, or ranges of them, pass it.
        self._known: dict[tuple[int, tuple[Degree, ...], tuple[int, ...], bool], tuple[Degree, ...]] = {}

    def find(self, group: int, segment: Sequence[int], parts: _Parts) -> frozenset[int]:
        """Returns the parts of a group that its gate is made of, none if there is no gate.

        They are those that the last operators read: those of the last one on each way of the range that has any, or
        together with those of the one before it (a scale and a bias that are operators of their own), and so on.

        Args:
            group: index of the group.
            segment: operators of its structure.
            parts: what the group holds.
        """
        way = self._way(group, segment, parts)
        for chosen in self._candidates(way, parts):
            # A part may be read by several operators.
            scaled = {operator: tuple(part for part in own if part in chosen) for operator, own in parts.items()}
            is_gate = self._is_gate(way, {operator: own for operator, own in scaled.items() if own})
            if is_gate:
                return chosen
            if is_gate is None:
                break
        return frozenset()

    def _way(self, group: int, segment: Sequence[int], parts: _Parts) -> _Way:
        own = frozenset(segment)
        if parts.keys() <= own:
            # Joints read the result itself.
            return _Way(group, own, segment, {segment[-1]: self._graph.results(segment[-1])})
        operators = sorted(own.union(self._passed[group]))
        passed = frozenset(operators)
        ends: dict[int, list[int]] = {}
        for operator in operators:
            others = [reader for reader in self._graph.consumers[operator] if reader not in passed]
            if others or operator in self._graph.outputs:
                read = {var for reader in others for var in self._operands_of(reader)} | self._returned
                ends[operator] = [
                    var for var in self._graph.results(operator) if var in read and self._holds(var, group)
                ]
        return _Way(group, own, operators, ends)

    @cached_property
    def _returned(self) -> set[Any]:
        return set(self._graph.program.outputs)

    def _holds(self, var: int, group: int) -> bool:
        return group in self._held.get(var, ())

    @cached_property
    def _held(self) -> dict[int, frozenset[int]]:
        """The groups whose ranges each variable holds."""
        axes = {var: [axis.tolist() for axis in own if axis is not None] for var, own in self._ranges.items()}
        return {var: frozenset[int]().union(*own) - {NOBODY} for var, own in axes.items()}

    @cached_property
    def _passed(self) -> dict[int, list[int]]:
        """For each group the operators whose results hold its range."""
        found: dict[int, list[int]] = {}
        for operator in self._graph.operators:
            held = (self._held.get(var, frozenset()) for var in self._graph.results(operator.index))
            for group in frozenset[int]().union(*held):
                found.setdefault(group, []).append(operator.index)
        return found

    def _operands_of(self, operator: int) -> list[int]:
        if operator not in self._operands:
            self._operands[operator] = self._graph.operands(operator)
        return self._operands[operator]

    def _candidates(self, way: _Way, parts: _Parts) -> Iterator[frozenset[int]]:
        """Yields sets of parts that may be a gate, from the end of the way backwards."""
        # How many operators with parts of the group there are from an operator on, on the longest way from it.
        heights: dict[int, int] = {}
        layers: dict[int, list[int]] = {}
        for operator in reversed(way.operators):
            height = max((heights.get(reader, 0) for reader in self._graph.consumers[operator]), default=0)
            if operator in parts:
                height += 1
                layers.setdefault(height, []).append(operator)
            heights[operator] = height
        last = frozenset[int]()
        for height in sorted(layers):
            growing = (self._growing(way, operator, tuple(parts[operator])) for operator in layers[height])
            before = frozenset[int]().union(*growing)
            yield from [last | before, before] if last else [before]
            last = before

    def _growing(self, way: _Way, operator: int, parts: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the parts of an operator without one that it is not homogeneous in, a matrix that is normalised."""
        given = (CONSTANT,) * len(self._operands_of(operator))
        for tried in (parts, *(tuple(part for part in parts if part != other) for other in parts)):
            results = self._degrees_after(way, operator, given, tried)
            if None not in results and not all(map(is_constant, results)):
                return tried
        return parts

    def _is_gate(self, way: _Way, scaled: Mapping[int, tuple[int, ...]]) -> bool | None:
        """Tells whether all ends of the range grow in proportion with parts; None if with none further up either."""
        first = min(scaled)
        if any(operator < first for operator in way.ends):
            return False
        degrees: dict[int, Degree] = {}
        for operator in way.operators[way.operators.index(first) :]:
            operands = self._operands_of(operator)
            given = tuple(degrees[v] if v in degrees else self._before(way, operator, v) for v in operands)
            results = self._degrees_after(way, operator, given, scaled.get(operator, ()))
            if None in results:
                # In one operand all degrees grow with that of the operand: with another one they are not known either.
                return False if operator in scaled or len(given) > 1 else None
            degrees.update(zip(self._graph.results(operator), results, strict=True))
        return all(degrees[var] == _IN_PROPORTION for ends in way.ends.values() for var in ends)

    def _before(self, way: _Way, operator: int, var: int) -> Degree:
        """Returns the degree of an operand that is not computed with any of the parts."""
        # What a sum or concatenation adds to the range, or puts beside it, has no say.
        is_beside = self._graph.operators[operator].additive and not self._holds(var, way.group)
        return ANY if is_beside else CONSTANT

    def _degrees_after(
        self, way: _Way, operator: int, given: tuple[Degree, ...], scaled: tuple[int, ...]
    ) -> tuple[Degree, ...]:
        """Returns the degrees of an operator's results, given those of its operands and the parts that are scaled.

        Beyond a structure all values are looked at as if they consisted of its range alone.
        """
        is_beyond = operator not in way.segment
        key = operator, given, scaled, is_beyond
        if key not in self._known:
            known = dict(zip(self._operands_of(operator), given, strict=True))
            known |= {var: _IN_PROPORTION for part in scaled for var in self._graph.part_vars[part]}
            flow = self._graph.degrees_through([operator], known)
            results = tuple(flow.read(var) for var in self._graph.results(operator))
            is_mixed = is_beyond and None not in results and self._mixes(way.group, operator, flow)
            self._known[key] = (None,) * len(results) if is_mixed else results
        return self._known[key]

    def _mixes(self, group: int, operator: int, flow: DegreeFlow) -> bool:
        """Tells whether an operator computes something inside that grows with a range and with what is beside it.

        Such as the sum over all channels by which each of them is divided: unlike the range it is not zero without it.
        """
        graph = self._graph
        equations = [graph.program.equations[position] for position in graph.operators[operator].equations[:-1]]
        mixing = [eqn for eqn in equations if not isinstance(rule_for(eqn.primitive), Elementwise)]
        inner = [var for eqn in mixing for var in eqn.outputs if not is_constant(flow.read(var))]
        if not inner:
            return False
        held = [var for part in graph.operators[operator].parts for var in graph.part_vars[part]]
        given = {var: self._ranges[var] for var in (*self._operands_of(operator), *held) if var in self._ranges}
        zeros = graph.zeros_through(
            [operator],
            {var: zero_at(None if axis is None else axis == group for axis in own) for var, own in given.items()},
        ).zeros
        full = graph.full.zeros
        return any(not zeros[var].everywhere and same(zeros[var].axes, full[var].axes) for var in inner)
