"""How large a network is without some structures and channels, as a polynomial in what is left of its axes.

A kernel `[3, 3, 16, 32]` has 9·a·b parameters and a convolution with it 9·a·b multiply-adds per pixel, where a is how
many input channels are left and b how many output channels. So every part of a leaf and every contraction is a term: a
coefficient, the axes whose sizes are multiplied with it, and the segment that it goes with.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph
from jasgnas.program.jaxpr import Equation, inline
from jasgnas.program.macs import equation_macs
from jasgnas.program.scans import scan_arity
from jasgnas.space.alignment import Aligner, kept_axes
from jasgnas.space.dimensions import Place
from jasgnas.space.groups import NOBODY
from jasgnas.space.invariance import Effect, effects_of_parts
from jasgnas.space.sharing import Sharing

Removers = tuple[np.ndarray, ...]
"""For each index of an axis the groups, each of which removes it: arrays int `[size]`, `NOBODY` for no group."""


class Terms(NamedTuple):
    """The terms of one measure of size.

    Attributes:
        coefficients: int64 `[num_terms]`.
        segments: int32 `[num_terms]`, the segment without which a term is zero, or what several of them share, see
            `Sharing`; `NOBODY` for none.
        axes: int32 `[num_terms, most]`, the axes whose live sizes are its factors, `NOBODY` for none.
    """

    coefficients: np.ndarray
    segments: np.ndarray
    axes: np.ndarray


class Widths(NamedTuple):
    """The size of a network as a polynomial.

    Attributes:
        axes: what removes the indices of each axis; axes that are alike are listed once.
        measures: the terms, by the names of the measures: `params`, `macs`, and `elements` of the results of operators.
    """

    axes: tuple[Removers, ...]
    measures: Mapping[str, Terms]

    def live(self, removed: np.ndarray) -> np.ndarray:
        """Returns how many indices of each axis are left without some groups, bool `[num_groups]`."""
        gone = np.append(removed, False)  # NOBODY takes the last entry
        return np.array([np.count_nonzero(~np.any([gone[own] for own in axis], axis=0)) for axis in self.axes], int)

    def by_segment(self, measure: str, removed: np.ndarray, num_segments: int) -> np.ndarray:
        """Returns the size of each segment without some groups, where all segments are left, float `[num_segments]`.

        What several of them share counts nowhere.
        """
        terms = self.measures[measure]
        values = terms.coefficients * np.append(self.live(removed), 1)[terms.axes].prod(1)
        own = np.where(terms.segments < num_segments, terms.segments, NOBODY)
        return np.bincount(own % (num_segments + 1), values, num_segments + 1)[:-1]

    def size(self, measure: str, removed: np.ndarray, counted: np.ndarray) -> int:
        """Returns the size without some groups, at most, given the segments that are left, bool `[num_segments]`."""
        terms = self.measures[measure]
        factors = np.append(self.live(removed), 1)[terms.axes].prod(1)
        return int((terms.coefficients * factors * np.append(counted, True)[terms.segments]).sum())

    def with_latency(self, fixed: np.ndarray, macs: np.ndarray, elements: np.ndarray) -> "Widths":
        """Returns the same with a measure `latency`.

        Args:
            fixed: what each segment counts as long as it is left, float `[num_segments]`.
            macs: what it counts in proportion to its multiply-adds.
            elements: what it counts in proportion to its elements.
        """
        num_segments = len(fixed)
        sizes = np.array([len(axis[0]) for axis in self.axes] + [1])
        constant = Terms(fixed, np.arange(num_segments), np.zeros((num_segments, 0), int))
        parts = [constant]
        for name, own in (("macs", macs), ("elements", elements)):
            terms = self.measures[name]
            values = terms.coefficients * sizes[terms.axes].prod(1)
            full = np.bincount(terms.segments % (num_segments + 1), values, num_segments + 1)
            rates = np.append(own, 0) / np.maximum(full, 1)
            parts.append(terms._replace(coefficients=terms.coefficients * rates[terms.segments]))
        most = max(part.axes.shape[1] for part in parts)
        latency = Terms(
            np.rint(np.concatenate([part.coefficients for part in parts])).astype(np.int64),
            np.concatenate([part.segments for part in parts]).astype(np.int32),
            np.concatenate([_padded(part.axes, most) for part in parts]).astype(np.int32),
        )
        return self._replace(measures={**self.measures, "latency": latency})

    def savings(self, measure: str, num_groups: int) -> np.ndarray:
        """Returns what the indices that each group removes count in the full network, float64 `[num_groups]`."""
        terms = self.measures[measure]
        sizes = np.array([len(axis[0]) for axis in self.axes] + [1])
        values = terms.coefficients * sizes[terms.axes].prod(1)
        per_index = (
            np.bincount(terms.axes.ravel() % len(sizes), np.repeat(values, terms.axes.shape[1]), len(sizes)) / sizes
        )
        saved = np.zeros(num_groups + 1)
        for axis, value in zip(self.axes, per_index, strict=False):
            for groups in axis:
                np.add.at(saved, groups, value)
        return saved[:-1]


class WidthCounter:
    """Counts a network as a polynomial."""

    def __init__(
        self,
        graph: Graph,
        leaves: Sequence[Leaf],
        effects: Sequence[Effect],
        places: Mapping[Place, np.ndarray],
        kept: frozenset[int],
        aligner: Aligner,
        sharing: Sharing,
    ):
        """Prepares a network.

        Args:
            graph: operators and segments.
            leaves: the arrays of the model.
            effects: what the removal of structures saves in other segments than their own.
            places: for every axis of a variable that channels lie along, the group of each index.
            kept: indices of the leaves that stay whatever is removed.
            aligner: what knows which axes are the same.
            sharing: what several segments share.
        """
        self._graph, self._leaves, self._kept, self._places = graph, leaves, kept, places
        self._aligner, self._sharing = aligner, sharing
        self._makers = {var: eqn for eqn in graph.program.equations for var in eqn.outputs}
        # By the variable that holds a part, and an axis of it, which structures remove which indices.
        self._ranges: dict[Place, list[np.ndarray]] = {}
        for (part, axis), groups in effects_of_parts(graph, effects).items():
            for var in graph.part_vars[part]:
                self._ranges.setdefault((var, axis), []).append(groups)
        self._axes: dict[tuple[bytes, ...], int] = {}
        self._removers: list[Removers] = []

    def count(self) -> Widths:
        """Returns the terms of all measures."""
        counted = {"params": self._params(), "macs": self._macs(), "elements": self._elements()}
        measures = {name: _terms(terms) for name, terms in counted.items()}
        return Widths(tuple(self._removers), measures)

    def _params(self) -> Iterable[tuple[int, int, list[int]]]:
        graph = self._graph
        for part in (*graph.users, *sorted(graph.returned - graph.users.keys())):
            leaf = self._leaves[graph.parts[part].leaf]
            if not leaf.trainable or leaf.is_gate:
                continue
            # What outputs alone are computed from, such as a temperature, is there whatever goes.
            is_kept = graph.parts[part].leaf in self._kept or part not in graph.users
            segment = NOBODY if is_kept else self._sharing.number_of(part)
            var = graph.part_vars[part][0]
            shape = graph.program.avals[var].shape
            axes = [] if is_kept else [((var, axis),) for axis in range(len(shape))]
            yield self._term(math.prod(shape), segment, axes)

    def _macs(self) -> Iterable[tuple[int, int, list[int]]]:
        for position, segment in self._sharing.contractions:
            for macs, axes in self._products(self._graph.program.equations[position]):
                if macs:
                    yield self._term(macs, segment, axes)

    def _products(self, eqn: Equation) -> Iterable[tuple[int, Iterable[tuple[Place, ...]]]]:
        """Yields the multiply-adds of an equation, and the axes that each number of them is proportional to.

        In a loop that is one operator only the axes of what every iteration reads, the parameters, are known.
        """
        if eqn.primitive != "scan":
            yield equation_macs(eqn), self._iterated(eqn)
            return
        body = inline(eqn.inner[0])
        num_consts, _ = scan_arity(eqn, body)
        held = dict(zip(body.inputs[:num_consts], eqn.inputs, strict=False))
        for inner in body.equations:
            read = [(held[atom], aval) for atom, aval in zip(inner.inputs, inner.in_avals, strict=True) if atom in held]
            places = [(var, axis) for var, aval in read if isinstance(var, int) for axis in range(len(aval.shape))]
            yield eqn.repeats * eqn.params["length"] * equation_macs(inner), [(place,) for place in places]

    def _elements(self) -> Iterable[tuple[int, int, list[int]]]:
        for operator in self._graph.operators:
            for var in self._graph.results(operator.index):
                shape = self._graph.program.avals[var].shape
                axes = [((var, axis),) for axis in range(len(shape))]
                yield self._term(math.prod(shape), self._graph.segment_of[operator.index], axes)

    def _term(self, total: int, segment: int, axes: Iterable[tuple[Place, ...]]) -> tuple[int, int, list[int]]:
        """Returns a term, given its value for the full network and the axes it is proportional to."""
        numbers = []
        for axis in axes:
            removers = self._removers_of(axis)
            if removers:
                total //= len(removers[0])
                key = tuple(own.tobytes() for own in removers)
                if key not in self._axes:
                    self._axes[key] = len(self._removers)
                    self._removers.append(removers)
                numbers.append(self._axes[key])
        return total, segment, numbers

    def _removers_of(self, axis: Iterable[Place]) -> Removers:
        """Returns what removes the indices of an axis, given all places where it is."""
        found = {}
        for place in axis:
            own = [] if place not in self._places else [self._places[place]]
            for groups in own + self._ranges.get(self._origin(place), []):
                found[groups.astype(np.int64).tobytes()] = groups.astype(np.int64)
        return tuple(found.values())

    def _origin(self, place: Place) -> Place:
        """Returns the axis of the part of a leaf that an axis of something computed from it alone is, or the same."""
        while place not in self._ranges and place[0] in self._graph.independent and place[0] in self._makers:
            before = [old for old, new in self._same(self._makers[place[0]]) if new == place]
            if not before:
                break
            place = before[0]
        return place

    def _same(self, eqn: Equation) -> Iterable[tuple[Place, Place]]:
        """Yields the axes of operands that are, index by index, axes of results or of other operands."""
        variables = (*eqn.inputs, *eqn.outputs)
        operands = [self._graph.full.read(atom) for atom in eqn.inputs]
        if eqn.primitive == "reshape":
            yield from kept_axes(eqn)
            return
        for alignment in self._aligner.alignments(eqn, operands):
            one, other = variables[alignment.first[0]], variables[alignment.second[0]]
            if isinstance(one, int) and isinstance(other, int) and alignment.is_identity:
                yield (one, alignment.first[1]), (other, alignment.second[1])

    def _iterated(self, eqn: Equation) -> Iterable[tuple[Place, ...]]:
        """Yields the axes that a contraction iterates over, each as all places where it is."""
        if eqn.inner:
            return  # A loop is evaluated at full width.
        (result,) = eqn.outputs
        axes = {(result, axis): [(result, axis)] for axis in range(len(eqn.out_avals[0].shape))}
        reached = {
            alignment.first
            for alignment in self._aligner.alignments(eqn, [self._graph.full.read(atom) for atom in eqn.inputs])
            if not alignment.is_summed
        }
        for old, new in self._same(eqn):
            axes.setdefault(new, [new]).append(old)
        for number, (atom, aval) in enumerate(zip(eqn.inputs, eqn.in_avals, strict=True)):
            if isinstance(atom, int) and atom in self._graph.independent:
                for axis in range(len(aval.shape)):
                    place = atom, axis
                    if (number, axis) not in reached and not any(place in own for own in axes.values()):
                        axes[place] = [place]
        yield from map(tuple, axes.values())


def _padded(axes: np.ndarray, most: int) -> np.ndarray:
    """Returns axes of terms, int `[num_terms, n]`, in `most` columns."""
    return np.pad(axes, ((0, 0), (0, most - axes.shape[1])), constant_values=NOBODY)


def _terms(listed: Iterable[tuple[int, int, list[int]]]) -> Terms:
    coefficients, segments, axes = zip(*listed, strict=True)
    most = max(map(len, axes), default=0)
    return Terms(
        np.array(coefficients, np.int64),
        np.array(segments, np.int32),
        np.array([[*own, *[NOBODY] * (most - len(own))] for own in axes], np.int32).reshape(len(axes), most),
    )
