"""What keeps a part of a value from being zero, when some of what it is computed from is.

Reachability alone would call a product alive whose factors are alive. Of `concat(a, b) * concat(c, d)` nothing is left
without `a` and `d`, though both factors are still there; and a slice of a norm of `concat(a, b)` is gone with the scale
and bias of that slice, though the norm reads `b` still. So an operator of which that may happen is run on the zeros of
parts of its operands, and the least sets of parts that keep its result from being zero are found.

Owns these sets; which operators they are asked of, and what they make of validity, is the business of `dependence.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import ADDITIVE, Graph, Segment
from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Need, Zeros, join, normalize, unknown, without, zero, zero_at
from jasgnas.rules import rule_for, zeros_of
from jasgnas.rules.elementwise import Elementwise
from jasgnas.rules.flow import propagate_zeros
from jasgnas.rules.reduction import ReduceProduct
from jasgnas.space.groups import NOBODY, OwnerTable, leaf_zeros, zeros_of_leaves

# Sets of more cells or groups than this, or after as many tries, are not looked for: what is not found does not count.
_MOST_CELLS = 3
_MOST_GROUPS = 2
_MOST_TRIES = 2048

Labels = tuple[np.ndarray | None, ...]
"""For each axis of a value, to which block each index belongs, as numbers; None where the axis is one block."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Entries of a value that are zero together, or not.

    Attributes:
        var: the variable.
        need: which entries they are.
    """

    var: int
    need: Need


Unit = Cell | int
"""What can be zero by itself: some entries of what an operator reads, or the parameters of a group (its index)."""


class Keepers(NamedTuple):
    """What keeps some entries from being zero or constant.

    Attributes:
        present: sets of units, any of which keeps the entries from being zero if none of its units is. The empty one
            is among them if they are never zero.
        varying: the same for being constant: sets of units none of which may be zero, and those cells among them of
            which one must vary.
    """

    present: list[frozenset[Unit]]
    varying: list[tuple[frozenset[Unit], list[Cell]]]


class Survival:
    """Finds the least sets of units that keep the results of segments from being zero."""

    def __init__(self, graph: Graph, owners: OwnerTable, leaves: Sequence[Leaf], num_groups: int):
        """Prepares a network.

        Args:
            graph: its operators and segments.
            owners: which entries of its leaves belong to which group.
            leaves: its arrays.
            num_groups: number of groups.
        """
        self._graph = graph
        self._program = graph.program
        self._owners = owners
        self._leaves = leaves
        self._num_groups = num_groups
        # By path, the owners of ranges of leaves that are read as a whole.
        rows = {leaves[part.leaf].path for part in graph.parts if part.row}
        ranges = {path: [each for each in own if each.axes] for path, own in owners.items() if path not in rows}
        self._ranges = {path: own for path, own in ranges.items() if own}

    def keepers(self, segment: Segment, results: Mapping[int, Need]) -> Keepers | None:
        """Returns what keeps some entries of a segment's results from being zero, and from being constant.

        Args:
            segment: the segment.
            results: the entries, by variable.

        Returns:
            None if reachability says it all: if these entries are zero only where all that they are computed from is,
            or never.
        """
        divided = self._divided(segment)
        can_cancel = self._can_cancel(segment)
        if not (divided or can_cancel):
            return None
        needs = self._graph.needs_before(segment.operators, results)
        if not (can_cancel or any(_is_partial(needs.get(var, NOTHING)) for var in divided)):
            return None
        claims = self._claims(divided)
        read = [var for var in self._graph.operands(segment.operators[0]) if needs.get(var, NOTHING) != NOTHING]
        cells = [cell for var in read for cell in self._cells(var, needs[var])]

        def run(chosen: Sequence[Unit]) -> tuple[bool, list[Cell]]:
            """Tells whether the results are not zero if nothing else is, and which of the cells they depend on then."""
            own = [unit for unit in chosen if isinstance(unit, Cell)]
            known = {var: self._outside(var, [cell for cell in own if cell.var == var]) for var in read}
            for group, ranges in claims.items():
                for var, value in ranges.items() if group not in chosen else ():
                    known[var] = join([known.get(var, value), value])
            flow = self._graph.zeros_through(segment.operators, known)
            needs = self._graph.needs_before(segment.operators, results, flow)
            is_nonzero = any(without(need, flow.zeros[var]) != NOTHING for var, need in results.items())
            return is_nonzero, [cell for cell in own if not _disjoint(needs.get(cell.var, NOTHING), cell.need)]

        return _least(cells, list(claims), run)

    def _divided(self, segment: Segment) -> dict[int, Leaf]:
        """Returns the variables that hold leaves that a segment reads and of which groups hold ranges."""
        parts = dict.fromkeys(part for o in segment.operators for part in self._graph.operators[o].parts)
        held = (
            (var, self._leaves[self._graph.parts[part].leaf]) for part in parts for var in self._graph.part_vars[part]
        )
        return {var: leaf for var, leaf in held if leaf.path in self._ranges}

    def _claims(self, divided: Mapping[int, Leaf]) -> dict[int, dict[int, Zeros]]:
        """Returns the groups that hold ranges of some leaves, and what each makes zero of these, by variable."""
        found: dict[int, dict[int, Zeros]] = {}
        for var, leaf in divided.items():
            owners = self._ranges[leaf.path]
            for group in np.setdiff1d(np.concatenate([each.groups.reshape(-1) for each in owners]), NOBODY).tolist():
                own = leaf_zeros(owners, np.arange(self._num_groups) == group, len(leaf.shape))
                found.setdefault(group, {})[var] = own
        return found

    def _can_cancel(self, segment: Segment) -> bool:
        """Tells whether results may be zero though none of what the segment reads is.

        Some of that must be zero in parts, and an operator read several values of which that may be so, or multiply the
        entries of one.
        """
        products = [eqn for eqn in self._equations(segment) if self._is_product(eqn)]
        read = self._graph.operands(segment.operators[0]) if products else ()
        results = (var for eqn in products for var in eqn.outputs)
        return any(map(self._is_divided, read)) and any(self._largest_zeros[var].anywhere for var in results)

    def _is_product(self, eqn: Equation) -> bool:
        # The same variable may be read twice, as in x * x, and another one be computed from it, as in x * roll(x). What
        # does not depend on data may be zero in parts, too, as a mask is.
        variables = [atom for atom in eqn.inputs if isinstance(atom, int)]
        factors = [v for v in variables if v not in self._graph.independent or self._graph.full.zeros[v].anywhere]
        has_several = len(factors) > 1 or isinstance(rule_for(eqn.primitive), ReduceProduct)
        return has_several and eqn.primitive not in ADDITIVE

    def _is_divided(self, var: int) -> bool:
        return self._largest_zeros[var].anywhere and any(labels is not None for labels in self._labels_of(var))

    def _equations(self, segment: Segment) -> Iterator[Equation]:
        for operator in segment.operators:
            yield from (self._program.equations[position] for position in self._graph.operators[operator].equations)

    @cached_property
    def _largest_zeros(self) -> dict[int, Zeros]:
        """The zeros of every variable without any group; with some groups there are never more."""
        known = zeros_of_leaves(self._owners, self._leaves, np.ones(self._num_groups, bool))
        return dict(propagate_zeros(self._program, known).zeros)

    def _cells(self, var: int, need: Need) -> Iterator[Cell]:
        """Divides the needed entries of a variable into blocks, along every axis that has some."""
        assert need != NOTHING
        blocks = []
        for mask, labels, size in zip(need, self._labels_of(var), self._program.avals[var].shape, strict=True):
            whole = np.ones(size, bool) if mask is None else mask
            if labels is None:
                blocks.append([mask])
            else:
                blocks.append([whole & (labels == label) for label in np.unique(labels[whole])])
        for masks in product(*blocks):
            yield Cell(var, normalize(masks))

    def _outside(self, var: int, cells: Sequence[Cell]) -> Zeros:
        """Returns the zeros of a variable that is zero outside some cells."""
        shape = self._program.avals[var].shape
        if not cells:
            return zero(len(shape))
        masks = []
        for axis in range(len(shape)):
            left = [mask for cell in cells if isinstance(mask := cell.need[axis], np.ndarray)]
            masks.append(~np.logical_or.reduce(left) if len(left) == len(cells) else None)
        return join([self._graph.full.zeros[var], zero_at(masks)])

    # Blocks: the ranges that concatenations have put together, and that groups hold of parameters, wherever they go.

    def _labels_of(self, var: int) -> Labels:
        known = [self._labels.get(var), *map(self._edges, (self._largest_zeros[var], self._graph.full.zeros[var]))]
        return _combined([labels for labels in known if labels is not None], len(self._program.avals[var].shape))

    def _edges(self, value: Zeros) -> Labels:
        return tuple(None if mask is None or mask.ndim > 1 else mask.astype(int) for mask in value.axes)

    @cached_property
    def _labels(self) -> dict[int, Labels]:
        """The labels of every variable that has some."""
        found: dict[int, Labels] = {}
        for leaf, var in zip(self._leaves, self._program.inputs, strict=False):
            groups = {each.axes[0]: each.groups for each in self._ranges.get(leaf.path, ())}
            if groups:
                found[var] = tuple(1 + groups[axis] if axis in groups else None for axis in range(len(leaf.shape)))
        for eqn in self._program.equations:
            known = [found.get(atom) if isinstance(atom, int) else None for atom in eqn.inputs]
            if eqn.primitive in ("concatenate", "stack") or any(labels is not None for labels in known):
                for var, labels in zip(eqn.outputs, _labels_after(eqn, known), strict=True):
                    if any(axis is not None for axis in labels):
                        found[var] = labels
        return found


def _least(
    cells: Sequence[Cell], groups: Sequence[int], run: Callable[[Sequence[Unit]], tuple[bool, list[Cell]]]
) -> Keepers:
    """Looks for the least sets, from small to large; `run` says what a set does. All units together always do it."""
    present: list[frozenset[Unit]] = []
    varying: list[tuple[frozenset[Unit], list[Cell]]] = []
    tries = 0
    for num_cells, num_groups in product(range(_MOST_CELLS + 1), range(_MOST_GROUPS + 1)):
        if num_cells > 2 and present and varying:
            break
        for own, present_groups in product(combinations(cells, num_cells), combinations(groups, num_groups)):
            chosen: tuple[Unit, ...] = (*own, *present_groups)
            is_present = any(each.issubset(chosen) for each in present)
            covered = {cell for each, reached in varying if each.issubset(chosen) for cell in reached}
            if tries == _MOST_TRIES or (is_present and covered.issuperset(own)):
                continue
            tries += 1
            is_nonzero, reached = run(chosen)
            if is_nonzero and not is_present:
                present.append(frozenset(chosen))
            if new := [cell for cell in reached if cell not in covered]:
                varying.append((frozenset(chosen), new))
    everything: frozenset[Unit] = frozenset([*cells, *groups])
    return Keepers(present or [everything], varying or [(everything, list(cells))])


def _is_partial(need: Need) -> bool:
    return need != NOTHING and any(mask is not None for mask in need)


def _labels_after(eqn: Equation, operands: Sequence[Labels | None]) -> list[Labels]:
    """Returns the labels of the results of an equation. There may be more blocks than can ever differ, never fewer."""
    shape = eqn.out_avals[0].shape
    same_axes = [
        labels
        for labels, aval in zip(operands, eqn.in_avals, strict=True)
        if labels is not None and len(aval.shape) == len(shape)
    ]
    if isinstance(rule_for(eqn.primitive), Elementwise):
        return [_combined([_fitting(labels, shape) for labels in same_axes], len(shape))]
    if eqn.primitive == "concatenate":
        axis = eqn.params["dimension"]
        along = [
            np.zeros(aval.shape[axis], int) if labels is None or labels[axis] is None else labels[axis]
            for labels, aval in zip(operands, eqn.in_avals, strict=True)
        ]
        numbered = [number for number, own in enumerate(along) for _ in own]
        joined: Labels = tuple(
            _numbered([np.array(numbered, int), np.concatenate(along)]) if each == axis else None
            for each in range(len(shape))
        )
        others = [tuple(None if each == axis else own for each, own in enumerate(labels)) for labels in same_axes]
        return [_combined([joined, *others], len(shape))]
    found: list[list[Labels]] = [[] for _ in eqn.outputs]
    if eqn.primitive == "stack":
        found[0].append(
            tuple(np.arange(size) if axis == eqn.params["axis"] else None for axis, size in enumerate(shape))
        )
    for position, labels in enumerate(operands):
        for axis, own in enumerate(labels or ()):
            if own is not None:
                for each, traced in zip(found, _follow(eqn, [position], axis, own), strict=True):
                    each.append(traced)
    # Where several operands have an axis in common, only what is zero in all of them may be zero in the result.
    for axis in range(max((len(aval.shape) for aval in eqn.in_avals), default=0)):
        sharing: dict[int, list[int]] = {}
        for position, aval in enumerate(eqn.in_avals):
            if axis < len(aval.shape):
                sharing.setdefault(aval.shape[axis], []).append(position)
        for together in sharing.values():
            several = [own for i in together if (labels := operands[i]) and (own := labels[axis]) is not None]
            if several and len(together) > 1:
                traced_all = _follow(eqn, together, axis, _numbered(several))
                for each, traced in zip(found, traced_all, strict=True):
                    each.append(traced)
    return [_combined(each, len(aval.shape)) for each, aval in zip(found, eqn.out_avals, strict=True)]


def _fitting(labels: Labels, shape: Sequence[int]) -> Labels:
    """Returns the labels of the axes that are not of length one and repeated."""
    return tuple(own if own is None or len(own) == n else None for own, n in zip(labels, shape, strict=True))


def _follow(eqn: Equation, positions: Sequence[int], axis: int, labels: np.ndarray) -> list[Labels]:
    """Follows the blocks of an axis of some operands to the results: by the bits of their numbers, one and zero.

    Where a block of a result comes from several blocks, each of its indices is taken to be a block.
    """
    patterns: list[list[list[np.ndarray]]] = [[[] for _ in aval.shape] for aval in eqn.out_avals]
    for bit in range(max(1, int(labels.max(initial=0)).bit_length())):
        for is_set in (True, False):
            mask = (labels >> bit & 1).astype(bool) == is_set
            known = [
                zero_at(mask if i == axis else None for i in range(len(aval.shape)))
                if position in positions
                else unknown(len(aval.shape))
                for position, aval in enumerate(eqn.in_avals)
            ]
            for own, value, aval in zip(patterns, zeros_of(eqn, known), eqn.out_avals, strict=True):
                for i, size in enumerate(aval.shape):
                    own[i].append(value.apart.axis(i, size))
    return [tuple(map(_pattern_labels, own)) for own in patterns]


def _pattern_labels(rows: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns labels, given for each bit which indices are zero with it set and not set."""
    if not any(row.any() for row in rows):
        return None
    bits = np.stack(rows)
    is_mixed = ~(bits[0::2] ^ bits[1::2]).all(0) & bits.any(0)
    own = np.where(is_mixed, 1 + np.arange(bits.shape[1]), 0)
    return _numbered([*bits.astype(int), own])


def _numbered(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Returns one number for each different column of some vectors."""
    return np.unique(np.stack(vectors), axis=1, return_inverse=True)[1].reshape(-1)


def _combined(several: Sequence[Labels], ndim: int) -> Labels:
    """Returns the labels of the blocks that differ by any of several labels."""
    axes: list[np.ndarray | None] = []
    for axis in range(ndim):
        known = [labels[axis] for labels in several]
        own = [each for each in known if each is not None and each.size]
        combined = _numbered(own) if own else None
        axes.append(None if combined is None or not combined.any() else combined)
    return tuple(axes)


def _disjoint(first: Need, second: Need) -> bool:
    """Tells whether two needs have no entry in common."""
    if first == NOTHING or second == NOTHING:
        return True
    pairs = zip(first, second, strict=True)
    return any(a is not None and b is not None and not (a & b).any() for a, b in pairs)
