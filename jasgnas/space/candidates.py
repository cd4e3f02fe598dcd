"""What may go, as arrays: all that the selection of groups and H2SPG need to know of a search space."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.space.dimensions import Channels
from jasgnas.space.groups import NOBODY, OwnerTable
from jasgnas.space.latency import LatencyTable
from jasgnas.space.sizes import Costs, Measure, counted_segments, subnet_size
from jasgnas.space.validity import DependenceGraph, critical_vertices, largest_removal
from jasgnas.space.widths import Widths


@dataclass(frozen=True, eq=False)
class Candidates:
    """The groups of a search space, without the network that they are of.

    Attributes:
        num_params: int `[num_groups]`, parameters of each group, of structures and then of channels.
        group_of: int `[num_segments]`, the structure that each segment is or belongs to, and each set of what several
            segments share, see `Sharing`; `NOBODY` for none.
        shapes: shapes of the leaves, by path.
        owners: which entries of which leaves belong to which group.
        gates: which of them belong to the gate of their group, see `Group.gate`.
        dependence: what depends on what, which validity is judged on.
        costs: what each segment contributes to the size of a network without channels.
        fingerprint: a number below 2³² that tells search spaces apart.
        channels: the channels among the groups, None for structures alone.
        inner_of: int `[num_dimensions]`, the structure that all of what makes a dimension is in, `NOBODY` for none.
        widths: the size of a network as a polynomial, where there are channels: what they save does not add up.
        gate_leaves: paths of the leaves that are gates of `jasgnas.gated`, in groups or not.
        gate_groups: the structures that are edges with such a gate.
        paths: paths of the leaves of each structure, without those of which it has a range.
    """

    num_params: np.ndarray
    group_of: np.ndarray
    shapes: dict[str, tuple[int, ...]]
    owners: OwnerTable
    gates: OwnerTable
    dependence: DependenceGraph
    costs: Costs
    fingerprint: int
    channels: Channels | None = None
    inner_of: np.ndarray | None = None
    widths: Widths | None = None
    gate_leaves: frozenset[str] = frozenset()
    gate_groups: tuple[int, ...] = ()
    paths: tuple[tuple[str, ...], ...] = ()

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.num_params)

    @property
    def num_structures(self) -> int:
        """Number of groups that are removal structures; they come first."""
        return self.num_groups - (0 if self.channels is None else len(self.channels))

    def numbers(self) -> dict[str, int]:
        """Returns how many groups there are of each kind of which there are any."""
        numbers = {
            "structure": self.num_structures - len(self.gate_groups),
            "gate": len(self.gate_groups),
            "channel": self.num_groups - self.num_structures,
        }
        return {kind: number for kind, number in numbers.items() if number}

    def is_kind(self, kind: str) -> np.ndarray:
        """Returns which groups are of a kind, bool `[num_groups]`."""
        index = np.arange(self.num_groups)
        is_gate = np.isin(index, self.gate_groups)
        is_channel = index >= self.num_structures
        return {"gate": is_gate, "channel": is_channel, "structure": ~is_gate & ~is_channel}[kind]

    @cached_property
    def critical(self) -> np.ndarray:
        """Vertices whose death alone kills a network output, bool `[num_vertices]`."""
        return critical_vertices(self.dependence)

    def with_inner(self, groups: jax.Array) -> jax.Array:
        """Returns some groups and the channels that go with the structures among them, bool `[num_groups]`."""
        if self.channels is None or self.inner_of is None:
            return groups
        structures, channels = jnp.split(groups, [self.num_structures])
        inner = self.inner_of[self.channels.dimension_of]
        return jnp.concatenate([structures, channels | ((inner != NOBODY) & jnp.append(structures, False)[inner])])

    @cached_property
    def savings(self) -> dict[str, np.ndarray]:
        """What each group holds and saves by itself, dead branches left out, by measure, `[num_groups]`."""
        costs = self.costs
        found = {each: costs.of_groups(self.group_of, self.num_structures, each) for each in costs.measures}
        if self.widths is not None:
            for measure, own in found.items():
                channels = self.widths.savings(measure, self.num_groups)[self.num_structures :]
                found[measure] = np.concatenate([own, channels])
        return found

    def largest_removal(self, measure: str | None = None) -> tuple[int, ...]:
        """Returns a valid set of as many structures as can be found, or of as much of a measure of size."""
        if measure is None:
            return largest_removal(self.dependence, self.num_structures)
        return largest_removal(
            self.dependence, self.num_structures, self.savings[measure][: self.num_structures].tolist()
        )

    def subnet_size(self, removed: np.ndarray) -> dict[str, int]:
        """Returns the size of the sub-network without some groups, bool `[num_groups]`, at most, in every measure."""
        if self.widths is None:
            return subnet_size(self.dependence, self.costs, removed)
        counted = counted_segments(self.dependence, removed[: self.num_structures], self.costs.num_segments)
        return {measure: self.widths.size(measure, removed, counted) for measure in self.costs.measures}

    def with_latency(self, table: LatencyTable) -> "Candidates":
        """Returns the same with the time of a forward pass, in femtoseconds, as the measure `latency`.

        Raises:
            ArgumentError: the table is of another search space.
        """
        if not isinstance(table, LatencyTable):
            raise ArgumentError(f"expected a LatencyTable of jasgnas.measure_latency, got {type(table).__name__}")
        num_shared = self.costs.num_segments - len(table.segments)
        if table.fingerprint != self.fingerprint or num_shared < 0:
            raise ArgumentError("the latency table is of another search space: measure it with the one at hand")
        # What segments share takes no time of its own.
        fixed, macs, elements = (np.pad(column, (0, num_shared)) for column in table.columns())
        own = self.costs.measures["macs"]
        per_mac = macs / np.maximum(own.segments, 1)
        latency = Measure(
            0,
            np.rint(fixed + macs + elements).astype(np.int64),
            np.rint(own.savings * per_mac[self.costs.saving_segment]).astype(np.int64),
        )
        costs = self.costs._replace(measures={**self.costs.measures, "latency": latency})
        return replace(self, costs=costs, widths=self.widths and self.widths.with_latency(fixed, macs, elements))
