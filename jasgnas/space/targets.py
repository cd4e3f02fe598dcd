"""What `h2spg` is asked to remove, checked and divided over its rounds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import check_integer, check_number
from jasgnas.errors import ArgumentError, TargetError
from jasgnas.space.selection import SizeCosts, TakeFn, take_number, take_to_size, to_digits
from jasgnas.space.validity import largest_removal

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace
    from jasgnas.space.sizes import SegmentCosts

_GROUP_TARGETS = ("target_groups", "target_sparsity")
_SIZE_TARGETS = ("target_params", "target_macs")


class Target(NamedTuple):
    """What must be gone by the end of each round.

    Attributes:
        reachable: groups that meet the target together.
        amounts: for each round a number of groups, int `[num_rounds]`, or a size, int `[num_rounds, num_digits]`.
        take_amount: takes one of the amounts from an order and eligible groups, see `TakeFn`.
    """

    reachable: Sequence[int]
    amounts: np.ndarray
    take_amount: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

    def take(self, number: int | jax.Array) -> TakeFn:
        """Returns the function that takes what must be gone by the end of a round, -1 for the last one."""
        amount = jnp.asarray(self.amounts)[number]
        return lambda order, eligible: self.take_amount(order, eligible, amount)


def resolve_target(space: "SearchSpace", given: Mapping[str, Any], periods: int, hierarchical: bool) -> Target:
    """Returns the target that a user has given.

    Args:
        space: the search space.
        given: the four targets by name, all but one of them None.
        periods: number of rounds.
        hierarchical: whether the network must stay valid.

    Raises:
        ArgumentError: not exactly one target is given, or it is of the wrong kind.
        TargetError: no removal meets the target, or no removal is needed to meet it.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        names = ", ".join(f"{name}={value!r}" for name, value in chosen.items()) or "none"
        raise ArgumentError(f"expected exactly one of {', '.join(_GROUP_TARGETS + _SIZE_TARGETS)}, got {names}")
    ((name, value),) = chosen.items()
    if name in _SIZE_TARGETS:
        return _resolve_size(space, name, value, periods, hierarchical)
    return _resolve_number(space, name, value, periods, hierarchical)


def _resolve_number(space: "SearchSpace", name: str, value: Any, periods: int, hierarchical: bool) -> Target:
    """Returns a target in groups, divided equally up to rounding."""
    num_groups = len(space.groups)
    largest = largest_removal(space.dependence, num_groups) if hierarchical else range(num_groups)
    if name == "target_sparsity":
        check_number(name, value, 0, np.inf)
        # Rounded down, but 0.29 of 100 groups is 29, not 28.
        num_redundant = int(value * num_groups + 1e-9)
    elif isinstance(value, int | np.integer):
        num_redundant = int(value)
    else:
        raise ArgumentError(f"{name} must be an int, got {value!r}")
    if not 1 <= num_redundant <= len(largest):
        raise TargetError(
            f"cannot remove {num_redundant} of {num_groups} groups ({name}={value!r}): at least 1 must go, and at most "
            f"{len(largest)} can go together with every network output still reached"
        )
    check_integer("periods", periods, 1, num_redundant)
    return Target(largest, np.arange(1, periods + 1) * num_redundant // periods, take_number)


class _Measure(NamedTuple):
    """A way to measure the size of a network, and what `SegmentCosts` says in it.

    Attributes:
        unit: what is counted.
        position: place of the count in what `subnet_size` returns.
        fixed: what no removal saves.
        segments: int64 `[num_segments]`, size of each segment.
        savings: int64 `[num_savings]`, what each saving saves.
    """

    unit: str
    position: int
    fixed: int
    segments: np.ndarray
    savings: np.ndarray

    @classmethod
    def of_target(cls, name: str, costs: "SegmentCosts") -> "_Measure":
        """Returns the measure that a target is given in."""
        if name == "target_params":
            return cls("parameters", 0, costs.fixed_params, costs.params, costs.saving_params)
        return cls("multiply-adds", 1, 0, costs.macs, costs.saving_macs)


def _resolve_size(space: "SearchSpace", name: str, value: Any, periods: int, hierarchical: bool) -> Target:
    """Returns a target in parameters or multiply-adds; what the network must lose is divided equally."""
    is_fraction = isinstance(value, float | np.floating) and 0 < value < 1
    if not is_fraction:
        check_integer(name, value, 1, otherwise="or a fraction in (0, 1) of the full network's")
    costs = space.costs
    measure = _Measure.of_target(name, costs)

    def size_without(groups: Sequence[int]) -> int:
        return space.subnet_size(groups)[measure.position]

    removals = _largest_removals(space, measure) if hierarchical else [range(len(space.groups))]
    reachable = min(removals, key=size_without)
    full, least = size_without(()), size_without(reachable)
    if is_fraction:
        value = max(1, int(value * full + 1e-9))
    if value < least:
        raise TargetError(
            f"cannot shrink the network to {name}={value}: the smallest sub-network found that still reaches every "
            f"network output has {least:,} of its {full:,} {measure.unit}"
        )
    if value >= full:
        raise TargetError(
            f"nothing has to go for {name}={value}: the full network has {full:,} {measure.unit}. Give a smaller "
            f"target; the smallest sub-network found has {least:,}"
        )
    sizes = [full - (full - value) * number // periods for number in range(1, periods + 1)]
    size_costs = SizeCosts(
        costs.passes_zeros,
        to_digits(measure.segments),
        costs.saving_segment,
        costs.saving_group,
        to_digits(measure.savings),
    )
    take = partial(take_to_size, space.topology, size_costs)
    return Target(reachable, to_digits(np.array(sizes) - measure.fixed), take)


def _largest_removals(space: "SearchSpace", measure: _Measure) -> list[tuple[int, ...]]:
    """Returns the valid removal of most groups and the one of most of what is measured, as far as can be found."""
    num_groups = len(space.groups)
    topology, costs = space.topology, space.costs
    grouped = topology.group >= 0
    sizes = np.bincount(topology.group[grouped], measure.segments[grouped], num_groups)
    sizes += np.bincount(costs.saving_group, measure.savings, num_groups)
    return [
        largest_removal(space.dependence, num_groups),
        largest_removal(space.dependence, num_groups, sizes.tolist()),
    ]
