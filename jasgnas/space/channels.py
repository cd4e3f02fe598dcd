"""Finds channel groups: what acts on one index of axes that are the same axis everywhere, and on nothing else.

The output features of a convolution are the features of the batch norm after it, of the addition that follows, and so
of every other layer whose results are added there. Channel groups are the connected components of the indices of all
axes of a program, where indices are connected that `alignment.py` says to belong together: dependency graphs (arXiv
2301.12900) over primitives instead of layers. Those that the same leaves make are a dimension.

Of the entries of leaves on a channel those that make it must be zero: output features of convolutions, scales, biases,
embeddings. The others, input features of the next convolution for example, only meet zeros. That nothing else is needed
is proved by what `construct_subnet` goes by: with a channel zero, none of its entries may be needed.

Where that fails, factors may be told apart: a product needs none of its factors if one is zero. Of a mixture of
experts, a sum of w[e] · expert[e], the weights are needed whatever experts are zero, since each divides by the sum of
all, and so an index of the experts' axis is a channel of the experts alone.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph
from jasgnas.program.jaxpr import Equation, Program, depending
from jasgnas.program.masks import NOTHING, coarsened, filled, zero_at
from jasgnas.rules.base import describe
from jasgnas.rules.flow import RememberedAnswers, ZeroFlow, all_needed, propagate_needs
from jasgnas.space.alignment import Aligner, regrouping
from jasgnas.space.dimensions import Channels, Dimension, LeafAxis, Place
from jasgnas.space.groups import NOBODY


def find_channels(graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int], first: int, aligner: Aligner) -> Channels:
    """Returns the channel groups of a network.

    Args:
        graph: the network.
        leaves: the arrays of the model.
        kept: indices of leaves that are never candidates.
        first: index of the first channel group.
        aligner: what knows which axes are the same.
    """
    apart: frozenset[Place] = frozenset()
    while True:
        connector = _Connector(graph, leaves, aligner, apart)
        sorter = _Sorter(graph, leaves, kept, first, connector.connect())
        channels = sorter.channels()
        failed, needed = _unproved(graph, leaves, channels)
        if not any(failed):
            return channels
        factors = apart | connector.factors_after(needed)
        if factors == apart:
            return sorter.channels(failed)
        apart = factors


_PRODUCTS = ("mul", "dot_general")


class _Connected(NamedTuple):
    """Which indices of axes belong together.

    Attributes:
        labels: for each axis of more than one index of a variable, the component of each index.
        makes: the axes of leaves, and of what is computed from leaves alone, that axes of data come from. On others the
            entries only meet those of data.
        num: number of components.
        alone: the components of axes of which a single index is read by itself. What becomes of it is not followed: an
            axis of size one has no nodes.
    """

    labels: Mapping[Place, np.ndarray]
    makes: set[Place]
    num: int
    alone: set[int]


class _Choice(NamedTuple):
    """An axis that a reshape merges from several or splits into several, of which one is to be followed.

    Attributes:
        nodes: its nodes.
        options: the nodes of each of these axes.
        indices: for each of these axes, the index along it of each index of the one axis.
    """

    nodes: np.ndarray
    options: list[np.ndarray]
    indices: tuple[np.ndarray, ...]


class _Connector:
    """Connects the nodes of a program. A node is an index of an axis of a variable.

    Axes that are the same axis, such as those before and after an activation, have the same nodes: most have.
    """

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], aligner: Aligner, apart: frozenset[Place]):
        """Prepares the nodes; the factors `apart` are not connected with what they are multiplied with."""
        self._graph, self._leaves, self._aligner, self._apart = graph, leaves, aligner, apart
        # The axes of data that is multiplied with other data, in pairs, and which axes of operands go to which of
        # results.
        self._factors: list[tuple[Place, Place]] = []
        self._passed: list[tuple[Place, Place]] = []
        self._program = graph.program
        self._first: dict[Place, int] = {}
        self._num_nodes = 0
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._choices: list[_Choice] = []
        self._mixed: list[Place] = []
        self._alone: list[Place] = []

    def connect(self) -> _Connected:
        """Returns which indices belong together."""
        passed = self._passed
        for eqn in self._program.equations:
            passed += self._reshape(eqn) if eqn.primitive == "reshape" else self._align(eqn)
            self._alone += self._read_alone(eqn)
        first_of = {place: self._nodes(place)[0] for var in self._program.avals for place in self._places(var)}
        self._choose()
        independent, makes = self._graph.independent, set()
        for old, new in reversed(passed):
            if old[0] in independent and (new[0] not in independent or new in makes):
                makes.add(old)
        labels = self._components()
        alone = {int(label) for place in self._alone for label in labels[self._nodes(place)]}
        # Places with the same nodes share one array.
        arrays = {first: labels[self._nodes(place)] for place, first in first_of.items()}
        found = {place: arrays[first] for place, first in first_of.items()}
        return _Connected(found, makes, labels.max(initial=0) + 1, alone)

    def factors_after(self, needed: Collection[Place]) -> set[Place]:
        """Returns the factors that come from what is needed, where parameters make the other factor zero by themselves.

        Args:
            needed: axes of which indices are needed though what makes them is zero.
        """
        held = [place for var in self._program.inputs[: len(self._leaves)] for place in self._places(var)]
        after, made = (set(places) for places in (needed, held))
        for old, new in self._passed:
            for reached in (after, made):
                reached.update([new] if old in reached else [])
        pairs = [*self._factors, *((second, first) for first, second in self._factors)]
        return {one for one, other in pairs if one in after and other not in after and other in made}

    def _read_alone(self, eqn: Equation) -> list[Place]:
        """Returns the axes of operands of which an equation reads a single index."""
        operands = [self._graph.full.read(atom) for atom in eqn.inputs]
        found = [(eqn.inputs[operand], axis) for operand, axis in self._aligner.read_alone(eqn, operands)]
        return [(var, axis) for var, axis in found if isinstance(var, int)]

    def _reserve(self, size: int) -> np.ndarray:
        self._num_nodes += size
        return np.arange(self._num_nodes - size, self._num_nodes)

    def _nodes(self, place: Place) -> np.ndarray:
        size = self._program.avals[place[0]].shape[place[1]]
        if place not in self._first:
            self._first[place] = self._reserve(size)[0]
        return np.arange(self._first[place], self._first[place] + size)

    def _identify(self, place: Place, nodes: np.ndarray) -> None:
        """Says that the nodes of a place are these."""
        if self._first.setdefault(place, nodes[0]) != nodes[0]:
            self._edges.append((self._nodes(place), nodes))

    def _align(self, eqn: Equation) -> list[tuple[Place, Place]]:
        """Connects what an equation aligns; returns which axes of operands go to which of results."""
        variables = (*eqn.inputs, *eqn.outputs)
        left = {place for var in eqn.inputs if isinstance(var, int) for place in self._places(var)}
        goes: list[tuple[Place, Place]] = []
        operands = [self._graph.full.read(atom) for atom in eqn.inputs]
        data = {atom for atom in eqn.inputs if isinstance(atom, int) and atom not in self._graph.independent}
        is_product = eqn.primitive in _PRODUCTS and len(data) > 1
        apart = left & self._apart if is_product else set()
        sources: dict[Place, Place] = {}
        for each in self._aligner.alignments(eqn, operands) if left else ():
            one, other = variables[each.first[0]], variables[each.second[0]]
            if not (isinstance(one, int) and isinstance(other, int)):
                continue
            old, new = (one, each.first[1]), (other, each.second[1])
            if is_product and (each.is_summed or sources.setdefault(new, old) != old):
                self._factors.append((old, new if each.is_summed else sources[new]))
            if old in apart or new in apart:
                continue
            if each.is_identity:
                known, unknown = (new, old) if new in self._first else (old, new)
                self._identify(unknown, self._nodes(known))
            else:
                heads, members = np.concatenate([self._nodes(old), self._nodes(new)])[each.links]
                self._edges.append((heads, members))
            if not each.is_summed:
                goes.append((old, new))
                left.discard(old)
            elif one in self._graph.independent or other in self._graph.independent:
                left -= {old, new}
        self._mixed += left
        return goes

    def _places(self, var: int) -> list[Place]:
        return [(var, axis) for axis, size in enumerate(self._program.avals[var].shape) if size > 1]

    def _reshape(self, eqn: Equation) -> list[tuple[Place, Place]]:
        """Connects axes that a reshape leaves as they are, and notes choices where it merges or splits them."""
        if not isinstance(eqn.inputs[0], int):
            return []
        variables = (eqn.inputs[0], eqn.outputs[0])
        sizes, axes = regrouping(eqn)
        consists = {(variables[position], axis): parts for (position, axis), parts in axes.items()}
        virtual: dict[int, np.ndarray] = {}
        for place, parts in consists.items():
            if len(parts) > 1:
                continue
            if parts[0] in virtual:
                self._identify(place, virtual[parts[0]])
            else:
                virtual[parts[0]] = self._nodes(place)
        for place, parts in consists.items():
            if len(parts) > 1:
                runs = [sizes[part] for part in parts]
                for part, size in zip(parts, runs, strict=True):
                    if part not in virtual:
                        virtual[part] = self._reserve(size)
                indices = np.unravel_index(np.arange(math.prod(runs)), runs)
                self._choices.append(_Choice(self._nodes(place), [virtual[part] for part in parts], indices))
        before, after = ({p: own for p, own in consists.items() if p[0] == var} for var in variables)
        self._mixed += [place for place in self._places(variables[0]) if place not in before]
        return [(old, new) for old, own in before.items() for new, others in after.items() if {*own} & {*others}]

    def _choose(self) -> None:
        """Follows one of the axes that a merged axis consists of.

        Not one that is mixed later, or that is the network's input or output: of heads × size the heads, of groups ×
        size the groups of a group norm, of height × width × features the features.
        """
        if not self._choices:
            return
        labels = self._components()
        is_bad, has_leaf = np.zeros((2, labels.max(initial=0) + 1), bool)
        for place in [
            *self._mixed,
            *(place for var in ends_of(self._program, self._leaves) for place in self._places(var)),
        ]:
            is_bad[labels[self._nodes(place)]] = True
        for leaf, var in zip(self._leaves, self._program.inputs, strict=False):
            for place in self._places(var) if leaf.trainable else ():
                has_leaf[labels[self._nodes(place)]] = True
        touched = np.zeros(len(is_bad), int)
        for choice in self._choices:
            for option in choice.options:
                touched[np.unique(labels[option])] += 1
        for nodes, options, indices in self._choices:
            own = [labels[option] for option in options]
            possible = [number for number, each in enumerate(own) if not is_bad[each].any()]
            if possible:
                best = max(possible, key=lambda i: (has_leaf[own[i]].any(), touched[own[i]].max(), -i))
                self._edges.append((nodes, options[best][indices[best]]))

    def _components(self) -> np.ndarray:
        rows = np.concatenate([np.zeros(0, int), *(first for first, _ in self._edges)])
        columns = np.concatenate([np.zeros(0, int), *(second for _, second in self._edges)])
        graph = coo_array((np.ones(len(rows), bool), (rows, columns)), (self._num_nodes, self._num_nodes))
        return connected_components(graph, directed=False)[1]


def ends_of(program: Program, leaves: Sequence[Leaf]) -> list[int]:
    """Returns the variables that are inputs or outputs of the network."""
    return [*program.inputs[len(leaves) :], *(atom for atom in program.outputs if isinstance(atom, int))]


class _Sorter:
    """Sorts components into dimensions."""

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int], first: int, connected: _Connected):
        self._graph, self._leaves, self._kept, self._first = graph, leaves, kept, first
        self._labels = connected.labels
        self._num_labels = connected.num
        self._alone = connected.alone
        program = graph.program
        held = dict(zip(program.inputs, range(len(leaves)), strict=False))
        # The axes of leaves as leaf, axis and whether it makes what lies along it, in the order of the trace.
        places = [(held[var], axis) for var in self._in_order(held) for axis in range(len(program.avals[var].shape))]
        self._axes = [
            (leaf, axis, (program.inputs[leaf], axis) in connected.makes and leaves[leaf].trainable)
            for leaf, axis in places
            if (program.inputs[leaf], axis) in self._labels
        ]
        ends = [np.zeros(0, int)]
        for var in ends_of(program, leaves):
            ends += [self._labels[place] for place in self._labels if place[0] == var]
        self._ends = set(np.concatenate(ends).tolist())

    def _in_order(self, held: Mapping[int, int]) -> list[int]:
        """Returns the variables that hold leaves, in the order in which the program reads them."""
        read = (atom for eqn in self._graph.program.equations for atom in eqn.inputs if isinstance(atom, int))
        return list(dict.fromkeys(var for var in read if var in held))

    def channels(self, failed: Sequence[str] = ()) -> Channels:
        """Returns the channels.

        Args:
            failed: for each dimension that would be found without it, why it is none, or an empty string.
        """
        dimensions: list[Dimension] = []
        reasons: dict[tuple[int, int], str] = {}
        group_of = np.full(self._num_labels, NOBODY)
        names: dict[str, int] = {}
        number = 0
        start = self._first
        for makers, members in self._candidates.items():
            reason = self._why_not(makers, members)
            members = members[~np.isin(members, self._reserved)]
            if not reason and len(members) < 2:
                reason = "one index of each part that is read by itself stays, and nothing is left beside these"
            if not reason:
                reason = failed[number] if failed else ""
                number += 1
            if reason:
                reasons.update((self._axes[maker][:2], reason) for maker in makers)
                continue
            group_of[members] = np.arange(start, start + len(members))
            paths = tuple(dict.fromkeys(self._leaves[self._axes[maker][0]].path for maker in makers))
            name = paths[0].rpartition("/")[0] or paths[0]
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name}.{names[name]}"
            dimensions.append(Dimension(name, paths, len(members), range(start, start + len(members))))
            start += len(members)
        # Places with the same components share one array of groups.
        groups_of = {id(labels): group_of[labels] for labels in self._labels.values()}
        places = {place: groups_of[id(labels)] for place, labels in self._labels.items()}
        in_any = {id(groups) for groups in groups_of.values() if (groups != NOBODY).any()}
        places = {place: groups for place, groups in places.items() if id(groups) in in_any}
        axes = [
            LeafAxis(leaf, axis, makes, places[self._graph.program.inputs[leaf], axis])
            for leaf, axis, makes in self._axes
            if (self._graph.program.inputs[leaf], axis) in places
        ]
        return Channels(self._first, tuple(dimensions), tuple(axes), places, reasons)

    def _along(self, number: int) -> np.ndarray:
        leaf, axis, _ = self._axes[number]
        return self._labels[self._graph.program.inputs[leaf], axis]

    @cached_property
    def _candidates(self) -> dict[tuple[int, ...], np.ndarray]:
        """Returns the components by the axes of leaves that make them, in the order of the first of these axes."""
        makers: list[tuple[int, ...]] = [()]
        made_by = np.zeros(self._num_labels, int)
        along = {number: self._along(number) for number, (_, _, makes) in enumerate(self._axes) if makes}
        for number, labels in along.items():
            own = np.unique(labels)
            before, each = np.unique(made_by[own], return_inverse=True)
            made_by[own] = len(makers) + each
            makers += [(*makers[other], number) for other in before]
        found: dict[tuple[int, ...], np.ndarray] = {}
        for number, labels in along.items():
            labels = labels[np.sort(np.unique(labels, return_index=True)[1])]
            same, first = np.unique(made_by[labels], return_index=True)
            for each in same[np.argsort(first)]:
                if makers[each][0] == number:
                    found[makers[each]] = labels[made_by[labels] == each]
        return found

    @cached_property
    def _reserved(self) -> np.ndarray:
        """The components that stay, so that of any axis something does.

        A channel of each dimension stays. Where a part of a dimension is read by itself, as by one of two heads that
        share a layer, that one may be of the other part, so a channel of this part stays, too.
        """
        found = [members for makers, members in self._candidates.items() if not self._why_not(makers, members)]
        dimension_of = np.full(self._num_labels, NOBODY)
        for number, members in enumerate(found):
            dimension_of[members] = number
        sizes = np.array([len(members) for members in found], int)
        parts = []
        for labels in {id(labels): labels for labels in self._labels.values()}.values():
            own = np.unique(labels)
            dimensions = dimension_of[own]
            if NOBODY not in dimensions and not np.any(np.bincount(dimensions, minlength=len(sizes)) == sizes):
                parts.append(own)
        reserved = np.zeros(self._num_labels, bool)
        for part in sorted(parts, key=len):
            # The first of the smallest part is in the larger ones that hold this part, too.
            reserved[part[0]] |= not reserved[part].any()
        return np.flatnonzero(reserved)

    def _why_not(self, makers: Sequence[int], members: np.ndarray) -> str:
        """Says why some components are no dimension, as far as that is known without following any zeros."""
        if not self._ends.isdisjoint(members.tolist()):
            return "its indices are those of a network input or output"
        if not self._alone.isdisjoint(members.tolist()):
            return "one of its indices is read by itself"
        if any(self._axes[maker][0] in self._kept for maker in makers):
            return "keep= names a parameter that makes it"
        return "all of its indices belong together" if len(members) == 1 else ""


def _unproved(graph: Graph, leaves: Sequence[Leaf], channels: Channels) -> tuple[list[str], set[Place]]:
    """Says of each dimension why it is not enough for a channel that what makes it is zero; empty if it is.

    Returns:
        What it says, and the axes of which indices are needed all the same.
    """
    dimension_of = channels.dimension_of
    sizes = np.array([dimension.size for dimension in channels.dimensions], int)
    position = np.arange(len(channels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    failed = [""] * len(sizes)
    found: set[Place] = set()
    prover = _Prover(graph, leaves, channels)
    for number, marked in enumerate(_separating(sizes.tolist())):
        # Without all channels of a dimension nothing might be needed at all: one is left.
        is_full = np.bincount(dimension_of, marked, len(sizes)) == sizes
        marked &= ~(is_full[dimension_of] & (position == number % sizes[dimension_of]))
        removed = np.concatenate([np.zeros(channels.first, bool), marked, [False]])
        # The last that is needed says most: what is before it is needed for it.
        needed = list(prover.needed(removed))
        found.update(place for place, _ in needed)
        for (var, _), groups in sorted(needed, key=lambda found: -found[0][0]):
            for each in np.unique(dimension_of[groups - channels.first]).tolist():
                failed[each] = failed[each] or f"with what makes a channel at zero, {_described(graph, var)} is needed"
    return failed, found


def _described(graph: Graph, var: int) -> str:
    maker = next((eqn for eqn in graph.program.equations if var in eqn.outputs), None)
    return f"the result of {describe(maker)}" if maker else "its parameter"


class _Prover:
    """Follows the zeros of channels through a network, and what is needed then."""

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], channels: Channels):
        self._graph, self._leaves, self._channels = graph, leaves, channels
        self._answers = RememberedAnswers()
        self._makers = [each for each in channels.axes if each.makes]
        self._equations = depending(graph.program, {graph.program.inputs[each.leaf] for each in self._makers})
        self._outputs = [self._answers.one(need) for need in all_needed(graph.program)]

    def needed(self, removed: np.ndarray) -> Iterator[tuple[Place, np.ndarray]]:
        """Yields the axes along which removed channels are needed though what makes them is zero, and these."""
        program = self._graph.program
        zeros: dict[int, list[np.ndarray | None]] = {}
        for each in self._makers:
            masks = zeros.setdefault(program.inputs[each.leaf], [None] * len(self._leaves[each.leaf].shape))
            masks[each.axis] = removed[each.groups]
        known = {var: self._answers.one(zero_at(masks)) for var, masks in zeros.items()}
        flow = ZeroFlow({**self._graph.full.zeros, **known}, answers=self._answers).through(self._equations)
        needs = propagate_needs(program, flow, self._outputs)
        # Places with the same channels and the same need are looked at once.
        left: dict[tuple[int, int, int], np.ndarray] = {}
        for (var, axis), groups in self._channels.places.items():
            need = needs.read(var)
            if need == NOTHING:
                continue
            key = id(need), axis, id(groups)
            if key not in left:
                axes = coarsened(need)
                assert axes != NOTHING
                left[key] = groups[filled(axes[axis], len(groups)) & removed[groups]]
            if left[key].size:
                yield (var, axis), left[key]


def _separating(sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields sets of channels, bool `[num_channels]`, such that of two channels each is in a set without the other.

    That holds of any two of a dimension, and of those of the same index of two dimensions: each is in half of the sets,
    and no two are in the same half (a Sperner family), as few sets as that takes. A channel shares its sets with one of
    each other dimension at most, which is enough: what needs another dimension fails with any of its channels.

    Args:
        sizes: numbers of channels of the dimensions.
    """
    num_words = max([*sizes, len(sizes)])
    num_sets = next(k for k in itertools.count() if math.comb(k, k // 2) >= num_words)
    words = np.arange(1 << num_sets)
    counts = sum(words >> bit & 1 for bit in range(num_sets))
    halves = words[counts == num_sets // 2]
    dealt = [halves[(shift + np.arange(size)) % len(halves)] for shift, size in enumerate(sizes)]
    chosen = np.concatenate([np.zeros(0, int), *dealt])
    for bit in range(num_sets):
        yield (chosen >> bit & 1).astype(bool)
