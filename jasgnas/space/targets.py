"""What is asked to be removed, checked, divided over rounds, and selected by whichever rule the scores ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import NUMBERS, check_integer, check_number
from jasgnas.errors import ArgumentError, TargetError
from jasgnas.space.budget import select_by_cost
from jasgnas.space.candidates import Candidates
from jasgnas.space.crowds import AtMost, Crowds, find_crowds
from jasgnas.space.latency import FEMTOSECONDS, LatencyTable
from jasgnas.space.selection import (
    IsDueFn,
    Selection,
    SizeCosts,
    TakeFn,
    accept_greedily,
    falling_order,
    first_possible,
    is_lacking,
    select_redundant,
    take_number,
    take_to_size,
    to_digits,
)
from jasgnas.space.sizes import UNITS
from jasgnas.space.validity import DependenceGraph, is_valid, largest_removal

GROUP_TARGETS = ("target_groups", "target_sparsity")
SIZE_TARGETS = {f"target_{measure}": measure for measure in UNITS} | {
    "target_latency": "latency",
    "target_seconds": "latency",
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("graph", "critical", "amounts", "saved", "costs", "of_kinds", "crowds"),
    meta_fields=("reachable",),
)
@dataclass(frozen=True, eq=False)
class Target:
    """What must be gone by the end of each round. A pytree of arrays, which can be an argument of a jitted function.

    Attributes:
        graph: what depends on what.
        critical: vertices whose death alone kills a network output, bool `[num_vertices]`.
        reachable: groups that meet the target together.
        amounts: for each round numbers of groups, int `[num_rounds, num_kinds]`, or a size, int `[num_rounds,
            num_digits]`.
        saved: what each group saves by itself, float32 `[num_groups]`, which decides between equal scores.
        costs: what each segment counts, of a target in sizes, otherwise None.
        of_kinds: bool `[num_kinds, num_groups]`, the groups of each kind, of a target in numbers, otherwise None.
        crowds: the groups of which only so many may stay, whatever the target is; None for none.
    """

    graph: DependenceGraph
    critical: np.ndarray
    reachable: tuple[int, ...]
    amounts: np.ndarray
    saved: np.ndarray
    costs: SizeCosts | None = None
    of_kinds: np.ndarray | None = None
    crowds: Crowds | None = None

    def select(
        self,
        scores: jax.Array,
        number: int | jax.Array,
        planned: jax.Array,
        accepted: jax.Array,
        is_fixed: bool | jax.Array = False,
        *,
        by_cost: bool,
        hierarchical: bool,
    ) -> Selection:
        """Plans the whole target anew around what is redundant already, and adds a round's share of it.

        Args:
            scores: float `[num_groups]`, larger is removed sooner.
            number: the round, -1 for the last one.
            planned: bool `[num_groups]`, a valid set that meets the target and contains `accepted`.
            accepted: bool `[num_groups]`, groups that are redundant already.
            is_fixed: whether `planned` stays as it is, and only the round's share of it is selected.
            by_cost: whether scores are in units of the loss. Then those of a size are selected by rising cost per unit
                saved; of a number of groups each saves one unit, which is again the order by falling score.
            hierarchical: whether the network must stay valid.
        """
        critical = jnp.asarray(self.critical) & hierarchical
        if self.crowds is not None:
            start, fallback = self._thinned_out(self.crowds, critical, scores, planned, accepted, by_cost)
            rest = replace(self, crowds=None)
            found = rest.select(scores, -1, fallback, start, by_cost=by_cost, hierarchical=hierarchical).planned
            planned = jnp.where(is_fixed, planned, found)
            # Each round has an equal part of what is planned.
            share = (number % len(self.amounts) + 1) * jnp.sum(planned) // len(self.amounts)
            order = falling_order(scores, accepted, self.saved)
            redundant = accepted | take_number(order, planned, share)[0]
            runner_up = first_possible(self.graph, critical, falling_order(scores, planned, self.saved), planned)
            return Selection(planned, redundant, runner_up)
        if by_cost and self.costs is not None:
            size, share = jnp.asarray(self.amounts)[-1], jnp.asarray(self.amounts)[number]
            return select_by_cost(self.graph, critical, self.costs, scores, size, share, planned, accepted, is_fixed)
        order = falling_order(scores, accepted, self.saved)
        if hierarchical:
            found = select_redundant(
                self.graph, critical, scores, self.take(-1), planned, accepted, self._is_due(), self.saved
            )
        else:
            found = accepted | self.take(-1)(order, jnp.ones_like(planned))[0]
        planned = jnp.where(is_fixed, planned, found)
        redundant = accepted | self.take(number)(order, planned)[0]
        runner_up = first_possible(self.graph, critical, falling_order(scores, planned, self.saved), planned)
        return Selection(planned, redundant, runner_up)

    def _thinned_out(
        self,
        crowds: Crowds,
        critical: jax.Array,
        scores: jax.Array,
        planned: jax.Array,
        accepted: jax.Array,
        by_cost: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns a valid set without which no crowd is too large, and one that contains it and meets the target.

        Groups go by falling score, those of one pattern after those of the one before it. Where that ends with a crowd
        that is too large still, or leaves the target out of reach, they are taken from what was planned before.
        """
        # Below its limit a crowd gets only if the loss falls without more of it, and nothing else says how many go.
        is_alone = by_cost & ~jnp.any(jnp.asarray(self.amounts))
        is_free = jnp.any(jnp.asarray(crowds.members), axis=0) & (scores > 0) & is_alone

        thin_out = partial(crowds.thin_out, self.graph, critical, scores, accepted, is_free=is_free)
        start = thin_out(jnp.ones_like(planned))
        more = falling_order(scores, start, self.saved)
        largest = accept_greedily(self.graph, critical, more)
        is_met = jnp.all(crowds.excess(start) <= 0) & self.take(-1)(more, largest)[1]
        start = jax.lax.cond(is_met, lambda: start, lambda: thin_out(planned))
        return start, jnp.where(is_met, largest, planned)

    def may_replace(self, group: int | jax.Array) -> jax.Array:
        """Tells of each group whether it may go in the place of a given one, bool `[num_groups]`.

        Of a number those of its kind may; of a size those that save as much by themselves.
        """
        if self.of_kinds is None:
            return jnp.asarray(self.saved) >= jnp.asarray(self.saved)[group]
        of_kinds = jnp.asarray(self.of_kinds)
        return jnp.all(of_kinds == of_kinds[:, group][:, None], axis=0)

    def _is_due(self) -> IsDueFn:
        """Returns what tells whether a group is wanted beside others: of a kind of which enough go, no more are."""
        if self.of_kinds is None:
            return lambda accepted, group: True
        return partial(is_lacking, self.of_kinds, jnp.asarray(self.amounts)[-1])

    def take(self, number: int | jax.Array) -> TakeFn:
        """Returns the function that takes what must be gone by the end of a round, -1 for the last one."""
        amount = jnp.asarray(self.amounts)[number]
        if self.costs is None:
            assert self.of_kinds is not None
            return partial(take_number, num=amount, of_kinds=self.of_kinds)
        return partial(take_to_size, self.graph, self.costs, size=amount)


def resolve_target(
    candidates: Candidates,
    given: Mapping[str, Any],
    periods: int,
    hierarchical: bool,
    at_most: AtMost | None = None,
) -> Target:
    """Returns the target that a user has given.

    Args:
        candidates: what may go.
        given: the four targets by name, all but one of them None.
        periods: number of rounds.
        hierarchical: whether the network must stay valid.
        at_most: how many groups stay, by patterns of paths; it may be all that is given.

    Raises:
        ArgumentError: not exactly one target is given, or it is of the wrong kind.
        TargetError: no removal meets the target, or no removal is needed to meet it.
    """
    crowds = None if at_most is None else find_crowds(at_most, candidates.paths, candidates.num_groups)
    if crowds is not None and all(value is None for value in given.values()):
        nothing_more = np.zeros((periods, 1), int)
        every = np.ones((1, candidates.num_groups), bool)
        largest = candidates.largest_removal() if hierarchical else tuple(range(candidates.num_groups))
        saved = candidates.num_params.astype(np.float32)
        target = Target(candidates.dependence, candidates.critical, largest, nothing_more, saved, of_kinds=every)
    else:
        name, value = single_target(given)
        resolve = _resolve_size if name in SIZE_TARGETS else _resolve_number
        target = resolve(candidates, name, value, periods, hierarchical)
        if crowds is not None and target.costs is None:
            crowds.require_within(name, value, target.amounts[-1].sum())
    if crowds is not None:
        crowds.require_reachable(target.reachable)
    return replace(target, crowds=crowds)


def single_target(given: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns the name and the value of the target that is given.

    Raises:
        ArgumentError: not exactly one is.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        names = ", ".join(f"{name}={value!r}" for name, value in chosen.items()) or "none"
        raise ArgumentError(f"expected exactly one of {', '.join((*GROUP_TARGETS, *SIZE_TARGETS))}, got {names}")
    ((name, value),) = chosen.items()
    return name, value


def measured(candidates: Candidates, given: Mapping[str, Any], latency: LatencyTable | None) -> Candidates:
    """Returns the candidates with the measure of time, if the target is one.

    Raises:
        ArgumentError: there is a table and no such target, or no table for it, or it is of another search space.
    """
    asked = [name for name, value in given.items() if value is not None and SIZE_TARGETS.get(name) == "latency"]
    if asked and latency is None:
        raise ArgumentError(f"{asked[0]} needs a table of this device: latency=jasgnas.measure_latency(space)")
    if latency is not None and not asked:
        raise ArgumentError("latency= is for target_latency and target_seconds: give one of these, or leave it out")
    return candidates if latency is None else candidates.with_latency(latency)


def numbers_of_kinds(name: str, value: Any, available: Mapping[str, int]) -> dict[str, int]:
    """Returns how many groups of each kind are to go, given a number, or a mapping from kinds to numbers.

    Args:
        name: `target_groups`, or `target_sparsity`, of which the numbers are fractions.
        value: what a user has given.
        available: how many groups there are, by kind.

    Raises:
        ArgumentError: a number is of the wrong kind, there is no such kind, or several kinds and a plain number.
    """
    if not isinstance(value, Mapping):
        if len(available) > 1:
            example = ", ".join(f"{kind!r}: {0.5 if name == 'target_sparsity' else 3}" for kind in available)
            raise ArgumentError(
                f"{name}={value!r} does not say of which kind: the space has {' and '.join(available)} groups. Give a "
                f"number for each kind, {name}={{{example}}}, or a size such as target_macs"
            )
        value = dict.fromkeys(available, value)
    if unknown := value.keys() - available.keys():
        raise ArgumentError(
            f"{name} must have the kinds of the space, {', '.join(available)}, as its keys, got {', '.join(unknown)}"
        )
    if name == "target_sparsity":
        for fraction in value.values():
            check_number(name, fraction, 0, np.inf)
        # Rounded down, but 0.29 of 100 groups is 29, not 28.
        return {kind: int(fraction * available[kind] + 1e-9) for kind, fraction in value.items()}
    for number in value.values():
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise ArgumentError(f"{name} must be an int, got {number!r}")
    return {kind: int(number) for kind, number in value.items()}


def _resolve_number(candidates: Candidates, name: str, value: Any, periods: int, hierarchical: bool) -> Target:
    """Returns a target in groups, divided equally up to rounding."""
    available = candidates.numbers()
    asked = numbers_of_kinds(name, value, available)
    kinds = [kind for kind in available if asked.get(kind)]
    of_kinds = np.array([candidates.is_kind(kind) for kind in kinds], bool).reshape(len(kinds), candidates.num_groups)
    numbers = np.array([asked[kind] for kind in kinds], int)
    removals = _largest_removals(candidates, of_kinds) if hierarchical else [tuple(range(candidates.num_groups))]
    reached = [of_kinds[:, list(each)].sum(1) for each in removals]
    largest = next((each for each, most in zip(removals, reached, strict=True) if np.all(most >= numbers)), None)
    if largest is None and len(kinds) > 1 and hierarchical and np.all(np.max(reached, axis=0) >= numbers):
        largest = _with_enough_of_each(candidates, of_kinds, numbers)
    if largest is None or not kinds or np.any(numbers < 0):
        words = [f"{asked.get(kind, 0)} of {number} {kind}s" for kind, number in available.items()]
        wanted = " and ".join(words) if len(words) > 1 else f"{sum(asked.values())} of {candidates.num_groups} groups"
        most = max(int(np.sum(each)) for each in reached) if kinds else len(candidates.largest_removal())
        raise TargetError(
            f"cannot remove {wanted} ({name}={value!r}): at least 1 must go, and at most {most} can go together with "
            "every network output still reached"
        )
    check_integer("periods", periods, 1, int(numbers.max()))
    amounts = np.arange(1, periods + 1)[:, None] * numbers // periods
    saved = candidates.num_params.astype(np.float32)
    return Target(candidates.dependence, candidates.critical, largest, amounts, saved, of_kinds=of_kinds)


def _largest_removals(candidates: Candidates, of_kinds: np.ndarray) -> list[tuple[int, ...]]:
    """Returns valid sets, of as many groups of some kinds as can be found, and of as many of one of them."""
    found = [candidates.largest_removal()]
    for kind in of_kinds if len(candidates.numbers()) > 1 else ():
        found.append(largest_removal(candidates.dependence, candidates.num_structures, np.where(kind, 64, 1).tolist()))
    return found


def _with_enough_of_each(candidates: Candidates, of_kinds: np.ndarray, numbers: np.ndarray) -> tuple[int, ...] | None:
    """Returns a valid set with so many groups of each kind where one can be found that way, and None where it cannot.

    Groups of the kind of which the fewest are to go are accepted one by one, as long as enough of the others can go
    beside them. For example, of a chain of residual blocks either a block or the skip around it can go: sets of most
    groups are all blocks or all skips, and one with two blocks and a skip is found so.
    """
    graph, num = candidates.dependence, candidates.num_structures
    first = int(np.argmin(numbers))
    sizes = np.where(of_kinds[first], 1, 64).tolist()
    gone: list[int] = []
    for group in np.flatnonzero(of_kinds[first]).tolist():
        if not is_valid(graph, np.isin(np.arange(num), [*gone, group])):
            continue
        found = largest_removal(graph, num, sizes, [*gone, group])
        enough = of_kinds[:, list(found)].sum(1) >= numbers
        if np.all(enough):
            return found
        if np.all(np.delete(enough, first)):
            gone.append(group)
    return None


def _resolve_size(candidates: Candidates, name: str, value: Any, periods: int, hierarchical: bool) -> Target:
    """Returns a target in parameters or multiply-adds; what the network must lose is divided equally."""
    measure = SIZE_TARGETS[name]

    def size_without(groups: Sequence[int]) -> int:
        return candidates.subnet_size(np.isin(np.arange(candidates.num_groups), groups))[measure]

    removals: list[Sequence[int]] = [range(candidates.num_groups)]
    if hierarchical:
        # That of most groups, and that of most of what is measured.
        removals = [candidates.largest_removal(), candidates.largest_removal(measure)]
    reachable = min(removals, key=size_without)
    full, least = size_without(()), size_without(reachable)
    value = checked_size(name, value, full, least)
    sizes = [full - (full - value) * number // periods for number in range(1, periods + 1)]
    costs = candidates.costs
    own = costs.measures[measure]
    size_costs = SizeCosts(to_digits(own.segments), costs.saving_segment, costs.saving_group, to_digits(own.savings))
    amounts = to_digits(np.array(sizes) - own.fixed)
    saved = candidates.savings[measure].astype(np.float32)
    return Target(candidates.dependence, candidates.critical, tuple(reachable), amounts, saved, size_costs)


def checked_size(
    name: str, value: Any, full: int, least: int, without: Mapping[str, int] = MappingProxyType({})
) -> int:
    """Returns a target in parameters or multiply-adds as a number, given that of the full and of a smallest network.

    Args:
        name: name of the target.
        value: what a user has given.
        full: the size of the full network.
        least: that of a smallest network.
        without: what that would be without each limit.

    Raises:
        ArgumentError: it is neither a number nor a fraction.
        TargetError: no removal meets it, or none is needed to.
    """
    is_time = SIZE_TARGETS[name] == "latency"

    def shown(size: int) -> str:
        return f"{size / FEMTOSECONDS:.3g}" if is_time else f"{size:,}"

    size, unit = _size(name, value, full), "seconds" if is_time else UNITS[SIZE_TARGETS[name]]
    if size < least:
        raise TargetError(
            f"cannot shrink the network to {name}={value}: the smallest sub-network found that still reaches every "
            f"network output has {shown(least)} of its {shown(full)} {unit}"
            + "".join(f"; without {limit} it has {shown(other)}" for limit, other in without.items())
        )
    if size >= full:
        raise TargetError(
            f"nothing has to go for {name}={value}: the full network has {shown(full)} {unit}. Give a smaller "
            f"target; the smallest sub-network found has {shown(least)}"
        )
    return size


def _size(name: str, value: Any, full: int) -> int:
    """Returns a target as a size, whether it is met or not; raises an `ArgumentError` if it is of the wrong kind."""
    if name == "target_seconds":
        if not isinstance(value, NUMBERS) or isinstance(value, bool) or not 0 < value < np.inf:
            raise ArgumentError(f"{name} must be a number above 0, got {value!r}")
        return int(value * FEMTOSECONDS)
    if isinstance(value, float | np.floating) and 0 < value < 1:
        return max(1, int(value * full + 1e-9))
    if name == "target_latency":
        raise ArgumentError(
            f"{name} must be a fraction in (0, 1) of the full network's, got {value!r}; seconds are for target_seconds"
        )
    check_integer(name, value, 1, otherwise="or a fraction in (0, 1) of the full network's")
    return int(value)
