"""Dimensions and their channels, as columns: a large network has more channels than anyone wants Python objects of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.space.groups import NOBODY, Group, LeafSlice, Owners, OwnerTable, runs_of

Place = tuple[int, int]
"""A variable of the program and one of its axes."""


@dataclass(frozen=True)
class Dimension:
    """Channels that the same leaves make: the width of a layer, or of all layers whose results are added.

    Attributes:
        name: the module that makes it first, in the order of the trace.
        paths: paths of the leaves that make it.
        size: number of its channels.
        groups: indices of its channel groups in the search space.
        min_channels: how many channels must stay at least, unless all that makes the dimension goes.
    """

    name: str
    paths: tuple[str, ...]
    size: int
    groups: range
    min_channels: int = 1


@dataclass(frozen=True, eq=False)
class LeafAxis:
    """The channels along one axis of a leaf.

    Attributes:
        leaf: index of the leaf.
        axis: the axis.
        makes: whether its entries make the channels, which are zero if these are; if not, they only meet the channels.
        groups: int `[size]`, the channel group that each index belongs to, `NOBODY` for none.
    """

    leaf: int
    axis: int
    makes: bool
    groups: np.ndarray

    @cached_property
    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices sorted by their groups, and these."""
        order = np.argsort(self.groups, kind="stable")
        return order, self.groups[order]

    def indices_of(self, group: int) -> np.ndarray:
        """Returns the indices that belong to a group."""
        order, groups = self.order
        return order[np.searchsorted(groups, group) : np.searchsorted(groups, group, "right")]


@dataclass(frozen=True, eq=False)
class Channels:
    """All channel groups of a search space.

    Attributes:
        first: index of the first of them; structures come before.
        dimensions: the dimensions, in the order of the trace.
        axes: the axes of leaves that the channels lie along.
        places: for every axis of a variable that channels lie along, the group of each index.
        reasons: why other axes of leaves cannot be narrowed, by index of the leaf and axis.
    """

    first: int = 0
    dimensions: tuple[Dimension, ...] = ()
    axes: tuple[LeafAxis, ...] = ()
    places: Mapping[Place, np.ndarray] = field(default_factory=dict)
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of channel groups."""
        return sum(dimension.size for dimension in self.dimensions)

    @cached_property
    def dimension_of(self) -> np.ndarray:
        """The dimension of each channel group, int `[num_channels]`."""
        return np.repeat(
            np.arange(len(self.dimensions)), np.array([dimension.size for dimension in self.dimensions], int)
        )

    def num_params(self, leaves: Sequence[Leaf]) -> np.ndarray:
        """Returns the number of parameters of each channel group, int64 `[num_channels]`."""
        total = np.zeros(len(self), np.int64)
        counted: dict[int, list[tuple[np.ndarray, np.ndarray, int]]] = {}
        for each in self.axes:
            if each.makes:
                own, counts = np.unique(each.groups[each.groups != NOBODY] - self.first, return_counts=True)
                size = int(np.prod(leaves[each.leaf].shape))
                total[own] += counts * (size // len(each.groups))
                # Entries on two axes of a leaf in the same group, as of a matrix from a width to itself, count once.
                for others, other_counts, length in counted.setdefault(each.leaf, []):
                    both, i, j = np.intersect1d(own, others, assume_unique=True, return_indices=True)
                    total[both] -= counts[i] * other_counts[j] * (size // len(each.groups) // length)
                counted[each.leaf].append((own, counts, len(each.groups)))
        return total

    def name(self, index: int) -> str:
        """Returns the name of a channel group, given its index in the search space."""
        dimension = self.dimensions[self.dimension_of[index - self.first]]
        return f"{dimension.name}[{index - dimension.groups.start}]"

    def group(self, index: int, leaves: Sequence[Leaf], num_params: int) -> Group:
        """Returns one channel group, given its index in the search space."""
        slices = [
            LeafSlice(leaves[each.leaf].path, each.axis, start, stop)
            for each in self.axes
            if each.makes
            for start, stop in runs_of(each.indices_of(index))
        ]
        return Group(index, self.name(index), tuple(slices), num_params, (), (), kind="channel")

    def owners(self, leaves: Sequence[Leaf]) -> OwnerTable:
        """Returns which entries of leaves belong to which channel group."""
        table: dict[str, tuple[Owners, ...]] = {}
        for each in self.axes:
            if each.makes:
                path = leaves[each.leaf].path
                table[path] = (*table.get(path, ()), Owners((each.axis,), each.groups))
        return table

    def emptied(self, removed: np.ndarray) -> list[int]:
        """Returns the dimensions of which fewer channels would be left than must be, given bool `[num_groups]`."""
        own = removed[self.first :]
        left = np.bincount(self.dimension_of, ~own, len(self.dimensions))
        least = [each.min_channels for each in self.dimensions]
        return np.flatnonzero(left < least).tolist()

    def inner_of(self, owners: OwnerTable, leaves: Sequence[Leaf]) -> np.ndarray:
        """Returns the structure that all of what makes each dimension is in, `NOBODY` for none, int `[num_dimensions]`.

        Args:
            owners: what the structures hold of the leaves.
            leaves: the arrays of the model.
        """
        found: list[set[int]] = [set() for _ in self.dimensions]
        for each in self.axes:
            if each.makes:
                along = _owned_along(owners.get(leaves[each.leaf].path, ()), each)
                is_channel = each.groups != NOBODY
                dimensions = self.dimension_of[each.groups[is_channel] - self.first]
                for dimension, owner in {*zip(dimensions.tolist(), along[is_channel].tolist(), strict=True)}:
                    found[dimension].add(owner)
        return np.array([each.pop() if len(each) == 1 else NOBODY for each in found], int)


def _owned_along(owners: Sequence[Owners], axis: LeafAxis) -> np.ndarray:
    """Returns the structure that holds all of each index of an axis of a leaf, `NOBODY` where none does."""
    for axes, groups in owners:
        if axes in ((), (axis.axis,)):
            return np.broadcast_to(groups, axis.groups.shape)
    return np.full(axis.groups.shape, NOBODY)
