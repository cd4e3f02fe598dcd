"""What a selection leaves of dimensions at least, as users say it: a number, or one for each pattern of paths."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.checks import check_integer
from jasgnas.errors import ArgumentError
from jasgnas.space.dimensions import Dimension
from jasgnas.space.explanation import KeepPattern, matches

Limit = int | Mapping[KeepPattern, int]
"""A number for all dimensions, or by patterns of the paths of the leaves that make them: the first that matches counts,
and where none does there is no limit."""


class Limits(NamedTuple):
    """What a selection leaves of a dimension at least, None for no limit. Validity asks for one channel only.

    Attributes:
        min_channels: how many channels.
        multiple_of: a number that what is left is a multiple of, unless all of it is left.
    """

    min_channels: Limit | None = None
    multiple_of: Limit | None = None

    def given(self) -> dict[str, Limit]:
        """Returns the limits that limit anything, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def multiples(self, dimensions: Sequence[Dimension]) -> np.ndarray:
        """Returns the number that what is left of each dimension is a multiple of, int `[num_dimensions]`."""
        sizes = [each.size for each in dimensions]  # of which there is no larger multiple that could be left
        return np.minimum(sizes, _by_dimension("multiple_of", self.multiple_of, dimensions))

    def least(self, dimensions: Sequence[Dimension]) -> np.ndarray:
        """Returns how many channels of each dimension are left at least, int `[num_dimensions]`."""
        asked = _by_dimension("min_channels", self.min_channels, dimensions)
        valid, sizes = np.array([(each.min_channels, each.size) for each in dimensions]).T
        multiples = self.multiples(dimensions)
        return np.minimum(sizes, -(-np.maximum(asked, valid) // multiples) * multiples)


def _by_dimension(name: str, limit: Limit | None, dimensions: Sequence[Dimension]) -> np.ndarray:
    """Returns a limit for each dimension.

    Raises:
        ArgumentError: it is not positive, or a pattern matches no dimension.
    """
    if limit is None:
        return np.ones(len(dimensions), int)
    if not isinstance(limit, Mapping):
        check_integer(name, limit, 1, otherwise="or a mapping from patterns of parameter paths to such numbers")
        return np.full(len(dimensions), int(limit))
    found = np.ones(len(dimensions), int)
    for pattern, number in reversed([*limit.items()]):
        check_integer(f"{name}[{pattern!r}]", number, 1)
        matched = [any(matches(pattern, path) for path in each.paths) for each in dimensions]
        if not any(matched):
            raise ArgumentError(
                f"{name}={{{pattern!r}: {number}}} matches no parameter that makes a dimension; paths look like "
                f"{dimensions[0].paths[0]!r} (`*` also matches `/`), and print(space) lists them"
            )
        found[matched] = int(number)
    return found
