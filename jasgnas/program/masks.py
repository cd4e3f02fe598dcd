"""What is known about the entries of an array, axis by axis: which are zero, which are needed, which are stored.

An `Axes` tuple holds one entry per axis of an array: a boolean NumPy vector over that axis, or None where nothing is
said about the axis. All three analyses speak this language; what the vectors mean differs:

- `Zeros`: entries marked on any axis are exactly zero.
- a need (`Axes`, or `NOTHING`): only entries marked on every axis are needed; None marks all of them.
- a layout (`Axes`, or `NOTHING`): the entries stored, again those marked on every axis; None stores all of them.

Layers may be stacked along several leading axes, and any of them may be zero or of no use: of layers `[2, 3]`, say, the
first of row 0 and the last of row 1, which no two vectors can tell. So the first mask may be over several leading axes
jointly, here of shape `[2, 3]`; the entries of the other axes that it covers are None. A layout with such a joint mask
stores the marked layers one after the other along one axis. Only rules with `is_joint` see joint masks; the others are
handed what vectors can say (`Zeros.apart`, `coarsened`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

Axes: TypeAlias = tuple[np.ndarray | None, ...]
Nothing: TypeAlias = Literal["nothing"]
NOTHING: Final[Nothing] = "nothing"
Need: TypeAlias = Axes | Nothing
Layout: TypeAlias = Axes | Nothing


class Zeros(NamedTuple):
    """Entries of a value that are known to be zero.

    Attributes:
        axes: for each axis, the indices at which every entry is zero.
        constant: the one scalar that all entries equal, if known. An entirely zero value has `constant` 0.
        is_broken: whether some entries are not finite, as after a division by zero: nothing else is known then, not
            even that a product with zero is zero.
        entries: computes the entries of a value that depends on constants alone: they may be indices.
    """

    axes: Axes
    constant: Any = None
    is_broken: bool = False
    entries: Callable[[], Any] | None = None

    @property
    def everywhere(self) -> bool:
        """Whether the whole value is zero."""
        return self.constant is not None and self.constant == 0

    @property
    def is_infinite(self) -> bool:
        """Whether all entries are known to be the same infinity or not a number."""
        return self.constant is not None and not bool(np.isfinite(self.constant))

    @property
    def anywhere(self) -> bool:
        """Whether any entry is known to be zero."""
        return self.everywhere or any(mask is not None for mask in self.axes)

    @property
    def apart(self) -> "Zeros":
        """What is known of each axis by itself."""
        return self if depth(self.axes) == 1 else self._replace(axes=zero_at(_apart(self.axes, 1, np.logical_and)).axes)

    def axis(self, index: int, size: int) -> np.ndarray:
        """Returns the zero indices of one axis as a boolean vector of shape `[size]`."""
        if self.everywhere:
            return np.ones(size, bool)
        mask = self.axes[index]
        return np.zeros(size, bool) if mask is None else mask


def unknown(ndim: int) -> Zeros:
    """Nothing is known about a value of `ndim` axes."""
    return Zeros((None,) * ndim)


def zero(ndim: int) -> Zeros:
    """A value of `ndim` axes that is zero everywhere."""
    return Zeros((None,) * ndim, 0)


def broken(ndim: int) -> Zeros:
    """A value of `ndim` axes that is not finite."""
    return Zeros((None,) * ndim, is_broken=True)


def zero_at(axes: Iterable[np.ndarray | None]) -> Zeros:
    """A value that is zero where its axes are marked: an empty mask says nothing, a full one that all is zero."""
    known: list[np.ndarray | None] = []
    is_full = False
    for mask in axes:
        num_zeros = 0 if mask is None else np.count_nonzero(mask)
        is_full = is_full or (mask is not None and bool(0 < num_zeros == mask.size))
        known.append(mask if num_zeros else None)
    return zero(len(known)) if is_full else Zeros(tuple(known))


def meet(values: Sequence[Zeros]) -> Zeros:
    """Returns what holds of all values alike, all of the same number of axes (at least one value)."""
    unsure = [value for value in values if not value.everywhere]
    return _combined(unsure, np.logical_and, len(unsure)) if unsure else values[0]


def join(values: Sequence[Zeros]) -> Zeros:
    """Returns what holds of any of the values, all of the same number of axes (at least one value)."""
    return next((value for value in values if value.everywhere), None) or _combined(values, np.logical_or, 1)


def _combined(values: Sequence[Zeros], combine: np.ufunc, least: int) -> Zeros:
    """Combines the masks of each axis, given that so many values at least say something about it."""
    axes = []
    for masks in zip(*aligned(zeros=[value.axes for value in values]), strict=True):
        known = [mask for mask in masks if mask is not None]
        axes.append(combine.reduce(known) if len(known) >= least else None)
    return zero_at(axes)


def everything(ndim: int) -> Axes:
    """The need or the layout that holds every entry."""
    return (None,) * ndim


def filled(mask: np.ndarray | None, size: int) -> np.ndarray:
    """Returns the mask of an axis of a need or layout as a boolean vector of shape `[size]`, also where it is None."""
    return np.ones(size, bool) if mask is None else mask


def normalize(axes: Iterable[np.ndarray | None]) -> Need:
    """Brings a need or layout to its one form: a full vector becomes None, an empty one makes it `NOTHING`."""
    needed: list[np.ndarray | None] = []
    for mask in axes:
        if mask is None or (num := np.count_nonzero(mask)) == mask.size:
            needed.append(None)
        elif num:
            needed.append(mask)
        else:
            return NOTHING
    return tuple(needed)


def union(first: Need, second: Need) -> Need:
    """Returns the smallest need that holds both."""
    if first == NOTHING or second == NOTHING:
        return second if first == NOTHING else first
    pairs = zip(*aligned([first, second]), strict=True)
    return normalize(None if a is None or b is None else a | b for a, b in pairs)


def without(need: Need, known: Zeros) -> Need:
    """Returns what is left to be needed once the entries known to be zero are not."""
    if need == NOTHING or known.everywhere:
        return NOTHING
    if not known.anywhere:
        return need
    pairs = zip(*aligned([need], zeros=[known.axes]), strict=True)
    return normalize(mask if zero is None else (~zero if mask is None else mask & ~zero) for mask, zero in pairs)


def same(first: Layout, second: Layout) -> bool:
    """Tells whether two layouts store the same entries."""
    if first == NOTHING or second == NOTHING:
        return first == second
    return all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(*aligned([first, second]), strict=True)
    )


def depth(axes: Need) -> int:
    """Returns how many leading axes the first mask is over."""
    return 1 if axes == NOTHING or not axes or axes[0] is None else axes[0].ndim


def coarsened(need: Need, most: int = 1) -> Need:
    """Returns the smallest need that holds another and of which no mask is over more than `most` axes."""
    if need == NOTHING or depth(need) <= most:
        return need
    return normalize(_apart(need, most, np.logical_or))


def jointly(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Returns the same need with a joint mask over leading axes of these sizes, at least."""
    return deepened(axes, shape, np.logical_and) if len(shape) > depth(axes) else axes


def simplified(layout: Layout) -> Layout:
    """Returns the same layout with a mask over as few axes as possible."""
    return next(
        each for each in (coarsened(layout, most) for most in range(1, depth(layout) + 1)) if same(each, layout)
    )


def deepened(axes: Axes, lead: tuple[int, ...], combine: np.ufunc) -> Axes:
    """Makes the masks of leading axes of some sizes a joint one; `combine` says how masks of two axes go together.

    It is `np.logical_or` for zeros, which are marked on any axis, and `np.logical_and` for needs and layouts.
    """
    joint = np.full(lead, combine.identity, bool)
    for axis, mask in enumerate(axes[: len(lead)]):
        if mask is not None:
            joint = combine(joint, mask.reshape(*mask.shape, *(1,) * (len(lead) - axis - mask.ndim)))
    return (joint, *(None,) * (len(lead) - 1), *axes[len(lead) :])


def aligned(needs: Sequence[Axes] = (), zeros: Sequence[Axes] = ()) -> list[Axes]:
    """Returns needs (or layouts) and then zeros, with first masks over equally many axes."""
    several = [*needs, *zeros]
    firsts = [axes[0] for axes in several if axes and axes[0] is not None]
    lead = max((mask.shape for mask in firsts), key=len, default=())
    if len(lead) < 2:
        return several
    return [
        *(deepened(axes, lead, np.logical_and) for axes in needs),
        *(deepened(axes, lead, np.logical_or) for axes in zeros),
    ]


def _apart(axes: Axes, most: int, combine: np.ufunc) -> Axes:
    """Takes a joint mask apart into one of `most` axes and vectors; `combine` joins what is no longer told apart."""
    joint = axes[0]
    assert joint is not None
    own = [tuple(range(most)), *((axis,) for axis in range(most, joint.ndim))]
    first, *others = (combine.reduce(joint, tuple(i for i in range(joint.ndim) if i not in group)) for group in own)
    return (first, *(None,) * (most - 1), *others, *axes[joint.ndim :])


def stored_shape(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Returns the shape that an array of the given full shape has in a layout."""
    if layout == NOTHING:
        return (0,) * len(shape)
    shape, layout = flattened(shape, layout, depth(layout))
    return tuple(size if mask is None else int(mask.sum()) for size, mask in zip(shape, layout, strict=True))


def flattened(shape: Sequence[int], layout: Axes, most: int) -> tuple[Sequence[int], Axes]:
    """Returns shape and layout of an array whose leading axes, over which the first mask is, are made one."""
    if most == 1:
        return shape, layout
    lead = tuple(shape[:most])
    joint, *others = deepened(layout, lead, np.logical_and)
    assert joint is not None
    return (math.prod(lead), *shape[most:]), (joint.reshape(-1), *others[most - 1 :])


def digit_masks(size: int) -> Iterator[np.ndarray]:
    """Yields for each binary digit the indices below a size that lack it, bool `[size]`, and then those that have it.

    Any two indices differ in a digit, and so are told apart by the masks of it.
    """
    index = np.arange(size)
    for digit in range((size - 1).bit_length()):
        mask = index >> digit & 1 == 1
        yield from (~mask, mask)
