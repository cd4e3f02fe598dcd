"""What may go, as arrays: all that the selection of groups and H2SPG need to know of a search space."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jasgnas.space.groups import OwnerTable
from jasgnas.space.sizes import Costs, subnet_size
from jasgnas.space.validity import DependenceGraph, critical_vertices, largest_removal


@dataclass(frozen=True, eq=False)
class Candidates:
    """The groups of a search space, without the network that they are of.

    Attributes:
        num_params: int `[num_groups]`, parameters of each group.
        segments: int `[num_groups]`, segment that is the structure of each group.
        shapes: shapes of the leaves, by path.
        owners: which entries of which leaves belong to which group.
        gates: which of them belong to the gate of their group, see `Group.gate`.
        dependence: what depends on what, which validity is judged on.
        costs: what each segment contributes to the size of a network.
        fingerprint: a number below 2³² that tells search spaces apart.
    """

    num_params: np.ndarray
    segments: np.ndarray
    shapes: dict[str, tuple[int, ...]]
    owners: OwnerTable
    gates: OwnerTable
    dependence: DependenceGraph
    costs: Costs
    fingerprint: int

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.num_params)

    @cached_property
    def critical(self) -> np.ndarray:
        """Vertices whose death alone kills a network output, bool `[num_vertices]`."""
        return critical_vertices(self.dependence)

    @cached_property
    def savings(self) -> dict[str, np.ndarray]:
        """What each group holds and saves by itself, dead branches left out, `[num_groups]`, in every measure."""
        return {measure: self.costs.of_groups(self.segments, measure) for measure in self.costs.measures}

    def largest_removal(self, measure: str | None = None) -> tuple[int, ...]:
        """Returns a valid set of as many groups as can be found, or of as much of a measure of size."""
        if measure is None:
            return largest_removal(self.dependence, self.num_groups)
        return largest_removal(self.dependence, self.num_groups, self.savings[measure].tolist())

    def subnet_size(self, removed: np.ndarray) -> dict[str, int]:
        """Returns the size of the sub-network without some groups, bool `[num_groups]`, at most, in every measure."""
        return subnet_size(self.dependence, self.costs, removed)
