"""Groups, and the table that says which entries of which leaves belong to which of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.bridge import Leaf
from jasgnas.program.masks import Zeros, join, unknown, zero, zero_at
from jasgnas.program.sliced import on_host

NOBODY = -1
"""Stands for a group where an entry belongs to none."""


def runs_of(indices: np.ndarray) -> list[tuple[int, int]]:
    """Returns sorted indices as ranges of neighbours, each as first index and index after the last one."""
    if not len(indices):
        return []
    ends = np.flatnonzero(np.diff(indices) != 1)
    starts, stops = indices[[0, *(ends + 1)]], indices[[*ends, -1]] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class LeafSlice(NamedTuple):
    """A leaf, one row of a leaf that stacks the parameters of several layers, or a range of one axis of a leaf.

    Attributes:
        path: path of the leaf.
        axis: the axis, or None for the whole leaf or a row.
        start: first index of the range along the axis.
        stop: index after the last one.
        row: indices of the row along the leading axes; none where it is no row.
    """

    path: str
    axis: int | None = None
    start: int = 0
    stop: int = 0
    row: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Returns the path, with the row or range as in NumPy indexing."""
        if self.row:
            return f"{self.path}[{', '.join(map(str, self.row))}]"
        if self.axis is None:
            return self.path
        return f"{self.path}[{':, ' * self.axis}{self.start}:{self.stop}]"

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the slice is less than the leaf."""
        return tuple(range(len(self.row))) if self.axis is None else (self.axis,)

    @property
    def taken(self) -> tuple[slice | int, ...]:
        """What is taken along these axes."""
        return self.row if self.axis is None else (slice(self.start, self.stop),)

    @property
    def indices(self) -> tuple[slice | int, ...]:
        """The index that takes the row or range out of the leaf."""
        return (*(slice(None),) * (self.axis or 0), *self.taken)


@dataclass(frozen=True)
class Group:
    """The parameters of one minimal removal structure, of several that are tied together, or of one channel.

    Attributes:
        index: its position in the search space.
        name: the modules it covers.
        slices: the leaves and ranges of leaves it holds.
        num_params: number of parameters in them.
        operators: names of the operators of its structure, in order; none for a channel.
        segments: indices of its segments in the segment graph, several if they are tied; none for a channel.
        gate: those of the slices that the result of the structure grows with in proportion, as it would with a gate
            that it is multiplied by; none if there is no such set.
        kind: `structure`, `channel`, or `gate` for a structure that is an edge with a gate of `jasgnas.gated`.
    """

    index: int
    name: str
    slices: tuple[LeafSlice, ...]
    num_params: int
    operators: tuple[str, ...]
    segments: tuple[int, ...]
    gate: tuple[LeafSlice, ...] = ()
    kind: Literal["structure", "gate", "channel"] = "structure"

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaf paths; where only a range of a leaf belongs to the group, it follows as in NumPy indexing."""
        return tuple(map(str, self.slices))


class Groups(Sequence[Group]):
    """All groups of a search space: its structures, and then its channels, which are made when they are asked for."""

    def __init__(self, structures: Sequence[Group], num_channels: int, channel: Callable[[int], Group]):
        """Prepares the sequence.

        Args:
            structures: the first groups.
            num_channels: how many more there are.
            channel: returns one of these, given its index among all groups.
        """
        self._structures, self._num_channels, self._channel = tuple(structures), num_channels, channel

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._structures) + self._num_channels

    @overload
    def __getitem__(self, index: int) -> Group: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Group, ...]: ...

    def __getitem__(self, index: int | slice) -> Group | tuple[Group, ...]:
        """Returns one group, or several of them as a tuple."""
        if isinstance(index, slice):
            return tuple(self[each] for each in range(len(self))[index])
        number = range(len(self))[index]
        return self._structures[number] if number < len(self._structures) else self._channel(number)

    def __repr__(self) -> str:
        """Returns how many groups of each kind there are."""
        return f"<Groups: {len(self._structures)} structures, {self._num_channels} channels>"


class Owners(NamedTuple):
    """Which group each entry of a leaf belongs to, along some of its axes.

    Attributes:
        axes: axes that the leaf is divided along; none if the whole of it is in one group.
        groups: int `[*sizes of these axes]`, index of the group, `NOBODY` where there is none.
    """

    axes: tuple[int, ...]
    groups: np.ndarray

    def mask(self, marked: np.ndarray) -> np.ndarray:
        """Returns which entries along the axes belong to groups that are marked, bool `[num_groups]`."""
        return np.append(marked, False)[self.groups]  # NOBODY takes the last entry

    def over(self, values: Any, ndim: int) -> Any:
        """Returns one value per entry along the axes in the shape that broadcasts against the leaf, of `ndim` axes."""
        sizes = dict(zip(self.axes, self.groups.shape, strict=True))
        return values.reshape([sizes.get(axis, 1) for axis in range(ndim)])


OwnerTable = Mapping[str, tuple[Owners, ...]]
"""The owners of the entries of each leaf that holds groups, by path: one for each group that an entry may belong to.

Where a convolution is a group of its own and each of its output channels another, its kernel `[3, 3, 16, 32]` has the
owners `Owners((), 0)` and `Owners((3,), [1, 2, …, 32])`. H2SPG takes leaves whose entries have one owner each.
"""


def owner_table(groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]]) -> OwnerTable:
    """Returns who owns what, given the groups and the shapes of the leaves by path."""
    slices: dict[str, dict[int | None, list[tuple[LeafSlice, int]]]] = {}
    for group in groups:
        for each in group.slices:
            slices.setdefault(each.path, {}).setdefault(each.axis, []).append((each, group.index))
    table = {}
    for path, by_axis in slices.items():
        owners: list[Owners] = []
        for pairs in by_axis.values():
            # Rows of different depth may lie in one leaf.
            axes = max((each.axes for each, _ in pairs), key=len)
            for each, index in pairs:
                free = (known for known in owners if known.axes == axes and np.all(known.groups[each.taken] == NOBODY))
                if (own := next(free, None)) is None:
                    own = Owners(axes, np.full([shapes[path][axis] for axis in axes], NOBODY))
                    owners.append(own)
                own.groups[each.taken] = index
        table[path] = tuple(owners)
    return table


def gate_table(groups: Sequence[Group], owners: OwnerTable) -> OwnerTable:
    """Returns who owns what of the gates: the owners of the leaves with `NOBODY` for entries that are in no gate.

    A group without a gate stands for itself: all of its entries are kept.
    """
    is_gate = {path: tuple(np.zeros(own.groups.shape, bool) for own in each) for path, each in owners.items()}
    for group in groups:
        for each in group.gate or group.slices:
            for own, mask in zip(owners[each.path], is_gate[each.path], strict=True):
                if own.axes[: len(each.axes)] == each.axes:
                    mask[each.taken] |= own.groups[each.taken] == group.index
    return {
        path: tuple(
            Owners(own.axes, np.where(mask, own.groups, NOBODY)) for own, mask in zip(each, is_gate[path], strict=True)
        )
        for path, each in owners.items()
    }


def leaf_zeros(owners: Sequence[Owners], marked: np.ndarray, ndim: int) -> Zeros:
    """Returns what is known to be zero in a leaf of `ndim` axes if the marked groups, bool `[num_groups]`, are."""
    found = [unknown(ndim)]
    for own in owners:
        mask = own.mask(marked)
        if not own.axes:
            found.append(zero(ndim) if mask else unknown(ndim))
        else:
            found.append(zero_at(mask if axis == own.axes[0] else None for axis in range(ndim)))
    return join(found)


def zeros_of_leaves(table: OwnerTable, leaves: Sequence[Leaf], marked: np.ndarray) -> list[Zeros]:
    """Returns what is known to be zero in each leaf if the marked groups, bool `[num_groups]`, are."""
    return [leaf_zeros(table.get(leaf.path, ()), marked, len(leaf.shape)) for leaf in leaves]


def cleared(owners: Sequence[Owners], marked: np.ndarray, array: Any) -> jax.Array:
    """Returns a leaf with the entries of the marked groups, bool `[num_groups]`, set to zero."""

    def clear(array: Any) -> Any:
        xp = np if isinstance(array, np.ndarray) else jnp
        for own in owners:
            array = xp.where(own.over(own.mask(marked), array.ndim), xp.zeros((), array.dtype), array)
        return array

    return on_host(clear, jnp.asarray(array))


def zero_groups(table: OwnerTable, arrays: Mapping[str, Any], num_groups: int) -> np.ndarray:
    """Returns which groups are exactly zero throughout, bool `[num_groups]`, given the leaves by path."""
    is_zero = np.ones(num_groups, bool)
    for path, owners in table.items():
        is_set = np.asarray(arrays[path]) != 0
        for own in owners:
            others = tuple(axis for axis in range(is_set.ndim) if axis not in own.axes)
            alive = own.groups[is_set.any(others)]
            is_zero[alive[alive != NOBODY]] = False
    return is_zero
