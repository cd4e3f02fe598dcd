"""Which structures and channels go together, inside `jax.jit`: by one order of both, up to where a target is met.

There may be a hundred thousand channels, so they are not visited one after the other. Of any order the groups before
some place are a candidate: the structures among them that are accepted if they are visited in this order, and of each
dimension as many channels as it can lose. The further the place, the smaller the network, so that the place at which
the target is met is found by bisection, in as many evaluations of the size as the number of groups has binary digits.
Where the target is a number of groups of each kind, there is a place for the structures and one for the channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import check_integer
from jasgnas.errors import ArgumentError, TargetError
from jasgnas.space.candidates import Candidates
from jasgnas.space.crowds import AtMost, Crowds, find_crowds
from jasgnas.space.groups import NOBODY
from jasgnas.space.latency import LatencyTable
from jasgnas.space.limits import Limits
from jasgnas.space.selection import (
    Selection,
    accept_greedily,
    from_digits,
    is_positive,
    normalized,
    spread_zeros,
    to_digits,
    vertices_of,
)
from jasgnas.space.targets import (
    GROUP_TARGETS,
    SIZE_TARGETS,
    Target,
    checked_size,
    measured,
    numbers_of_kinds,
    resolve_target,
    single_target,
)
from jasgnas.space.validity import DependenceGraph
from jasgnas.space.widths import Widths

_NUM_ROUNDS = 3
"""How often savings are counted anew: at first for the full network, and then half-way to what was selected last."""


class SizeTerms(NamedTuple):
    """The polynomial of one measure of size, see `Widths`, as arrays for use inside jit.

    Attributes:
        entry_axis: int32 `[num_entries]`, for each index of each axis, the axis.
        entry_groups: int32 `[num_entries, most]`, the groups that remove it; the number of groups for none.
        sizes: int32 `[num_axes]`, full sizes of the axes.
        coefficients: int32 `[num_terms, num_digits]`, see `to_digits`.
        segments: int32 `[num_terms]`, the segment of each term; the number of segments for none.
        factors: int32 `[num_terms, most]`, its axes; the number of axes for none.
        is_counted: bool `[num_segments]`, all true: as many as there are segments, with what they share.
    """

    entry_axis: np.ndarray
    entry_groups: np.ndarray
    sizes: np.ndarray
    coefficients: np.ndarray
    segments: np.ndarray
    factors: np.ndarray
    is_counted: np.ndarray


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "graph",
        "critical",
        "terms",
        "group_of",
        "dimension_of",
        "widths",
        "least",
        "multiples",
        "inner_of",
        "fallback",
        "amounts",
        "crowds",
    ),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class Mixture:
    """What a selection of structures and channels is made from. A pytree of arrays.

    Attributes:
        graph: what depends on what.
        critical: vertices whose death alone kills a network output, bool `[num_vertices]`.
        terms: the measure of size, None where numbers of groups are to go.
        group_of: int32 `[num_segments]`, the structure of each segment, the number of groups for none.
        dimension_of: int32 `[num_channels]`.
        widths: int32 `[num_dimensions]`, how many channels each has.
        least: int32 `[num_dimensions]`, how many channels of each stay at least.
        multiples: int32 `[num_dimensions]`, numbers that those left are a multiple of, unless all are left.
        inner_of: int32 `[num_dimensions]`, the structure that makes all of a dimension, `NOBODY` for none: without it
            its channels are gone and count nothing.
        fallback: bool `[num_groups]`, a valid set that is as good as any known at meeting far targets.
        amounts: what each round has to meet: a size as digits, int32 `[num_rounds, num_digits]`, or numbers of
            structures and of channels, int32 `[num_rounds, 2]`.
        crowds: the structures of which only so many may stay, whatever the amounts are; None for none.
    """

    graph: DependenceGraph
    critical: jax.Array
    terms: SizeTerms | None
    group_of: jax.Array
    dimension_of: jax.Array
    widths: jax.Array
    least: jax.Array
    multiples: jax.Array
    inner_of: jax.Array
    fallback: jax.Array
    amounts: jax.Array
    crowds: Crowds | None = None

    @property
    def num_structures(self) -> int:
        """Number of groups that are structures."""
        return len(self.fallback) - len(self.dimension_of)

    @property
    def reachable(self) -> tuple[int, ...]:
        """Groups that meet the target together."""
        return tuple(np.flatnonzero(self.fallback).tolist())

    def select(
        self,
        scores: jax.Array,
        number: int | jax.Array,
        planned: jax.Array,
        accepted: jax.Array,
        is_fixed: bool | jax.Array = False,
        *,
        by_cost: bool,
        hierarchical: bool = True,
    ) -> Selection:
        """Plans the whole target anew around what is redundant already, and adds a round's share; see `Target.select`.

        Args:
            scores: float `[num_groups]`, larger is removed sooner, NaN last.
            number: the round, -1 for the last one.
            planned: bool `[num_groups]`, a valid set that meets the target and contains `accepted`.
            accepted: bool `[num_groups]`, groups that are redundant already.
            is_fixed: whether `planned` stays as it is, and only the round's share of it is selected.
            by_cost: whether minus the score is the rise of the loss when a group goes. To a size groups then go by
                rising cost per unit saved, those that cost nothing first; otherwise by falling score.
            hierarchical: True, since of a dimension a channel has to stay.
        """
        assert hierarchical
        everything = jnp.ones_like(accepted)
        start, fallback = accepted, planned
        if self.crowds is not None:
            start, fallback = self._thinned_out(self.crowds, scores, planned, accepted, by_cost)
        order = self._order(scores, fallback, start, by_cost)
        found = _take(self, order, self.amounts[-1], everything, fallback, start)
        planned = jnp.where(is_fixed, planned, found)
        redundant = _take(self, order, self.amounts[number], planned, planned, accepted)
        if self.crowds is not None:
            # An amount may be met before no crowd is too large any more.
            redundant = jnp.where(number % len(self.amounts) == len(self.amounts) - 1, planned, redundant)
        possible = ~planned & _possible(self, order, everything)
        runner_up = jnp.where(jnp.any(possible), order[jnp.argmax(possible[order])], -1)
        return Selection(planned, redundant, runner_up.astype(jnp.int32))

    def _thinned_out(
        self, crowds: Crowds, scores: jax.Array, planned: jax.Array, accepted: jax.Array, by_cost: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns a set without which no crowd is too large, and one that contains it and meets the target.

        See `Target.select`: where the first leaves the target out of reach, both are of what was planned before.
        """
        num = self.num_structures
        # Nothing else says how many go, see `Target`.
        is_alone = by_cost & (self.terms is None) & ~jnp.any(self.amounts)
        is_free = jnp.any(jnp.asarray(crowds.members), axis=0) & (scores[:num] > 0) & is_alone
        thin_out = partial(crowds.thin_out, self.graph, self.critical, scores[:num], accepted[:num], is_free=is_free)
        gone = thin_out(eligible=jnp.ones(num, bool))
        start = accepted.at[:num].set(gone)
        largest = accepted | _possible(self, jnp.lexsort((-scores, ~start)), jnp.ones_like(start))
        is_within_reach = jnp.all(crowds.excess(gone) <= 0) & is_met(self, largest, self.amounts[-1])
        known = accepted.at[:num].set(thin_out(eligible=planned[:num]))
        return jnp.where(is_within_reach, start, known), jnp.where(is_within_reach, largest, planned)

    def _order(self, scores: jax.Array, planned: jax.Array, accepted: jax.Array, by_cost: bool) -> jax.Array:
        """Returns the group indices in the order in which they are to go, those accepted before all others."""
        if not by_cost or self.terms is None:
            return jnp.lexsort((jnp.where(jnp.isnan(scores), jnp.inf, -scores), ~accepted))
        full = savings_without(self, jnp.zeros_like(accepted))
        everything = jnp.ones_like(accepted)

        def again(_: Any, savings: jax.Array) -> jax.Array:
            order = _order_by_cost(-scores, savings, accepted)
            taken = _take(self, order, self.amounts[-1], everything, planned, accepted)
            return (full + savings_without(self, taken)) / 2

        savings = jax.lax.fori_loop(0, _NUM_ROUNDS - 1, again, full)
        return _order_by_cost(-scores, savings, accepted)


def size_terms(widths: Widths, measure: str, num_groups: int, num_segments: int) -> SizeTerms:
    """Returns a polynomial as arrays."""
    most = max(len(axis) for axis in widths.axes)
    entries = []
    for axis in widths.axes:
        removers = np.full((len(axis[0]), most), NOBODY)
        removers[:, : len(axis)] = np.transpose(axis)
        entries.append(removers)
    sizes = np.array([len(each) for each in entries], np.int32)
    terms = widths.measures[measure]
    groups = np.concatenate(entries)
    return SizeTerms(
        entry_axis=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
        entry_groups=np.where(groups == NOBODY, num_groups, groups).astype(np.int32),
        sizes=sizes,
        coefficients=to_digits(terms.coefficients),
        segments=np.where(terms.segments == NOBODY, num_segments, terms.segments).astype(np.int32),
        factors=np.where(terms.axes == NOBODY, len(sizes), terms.axes).astype(np.int32),
        is_counted=np.ones(num_segments, bool),
    )


def resolve(
    candidates: Candidates,
    given: Mapping[str, Any],
    periods: int,
    hierarchical: bool,
    limits: Limits,
    latency: LatencyTable | None,
    at_most: AtMost | None = None,
) -> Target | Mixture:
    """Returns the target that a user has given, see `resolve_target` and `resolve_mixture`."""
    candidates = measured(candidates, given, latency)
    if candidates.channels is not None:
        return resolve_mixture(candidates, given, periods, hierarchical, limits, at_most)
    if asked := limits.given():
        names = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        raise ArgumentError(f"{names} is about channels: make the space with channels=True")
    return resolve_target(candidates, given, periods, hierarchical, at_most)


def resolve_mixture(
    candidates: Candidates,
    given: Mapping[str, Any],
    periods: int,
    hierarchical: bool,
    limits: Limits,
    at_most: AtMost | None = None,
) -> Mixture:
    """Returns what a selection of structures and channels is made from.

    Args:
        candidates: what may go.
        given: the targets by name, all but one of them None.
        periods: number of rounds.
        hierarchical: True; there is no comparison without validity where there are channels.
        limits: what is left of dimensions at least.
        at_most: how many structures stay, by patterns of paths; it may be all that is given.

    Raises:
        ArgumentError: not exactly one target is given, or it or a limit is of the wrong kind.
        TargetError: no removal meets the target within the limits, or none is needed to meet it.
    """
    if not hierarchical:
        raise ArgumentError("hierarchical=False is for structures alone: make the space without channels=True")
    channels = candidates.channels
    assert channels is not None
    crowds = None if at_most is None else find_crowds(at_most, candidates.paths, candidates.num_structures)
    is_alone = crowds is not None and all(value is None for value in given.values())
    name, value = ("at_most", at_most) if is_alone else single_target(given)
    terms = None
    if is_alone:
        amounts, fallback = np.zeros((periods, 2), int), _without(candidates, candidates.largest_removal())
    elif name in GROUP_TARGETS:
        amounts, fallback = _numbers(candidates, name, value, periods, limits)
        if crowds is not None:
            crowds.require_within(name, value, amounts[-1, 0])
    else:
        measure = SIZE_TARGETS[name]
        amounts, fallback = _sizes(candidates, name, value, periods, limits)
        assert candidates.widths is not None
        terms = size_terms(candidates.widths, measure, candidates.num_groups, candidates.costs.num_segments)
    if crowds is not None:
        crowds.require_reachable(np.flatnonzero(fallback).tolist())
    # Known now also where an optimizer is made while something is traced, as by a step that takes its settings.
    with jax.ensure_compile_time_eval():
        return Mixture(
            candidates.dependence,
            jnp.asarray(candidates.critical),
            terms,
            jnp.asarray(np.where(candidates.group_of == NOBODY, candidates.num_groups, candidates.group_of), jnp.int32),
            jnp.asarray(channels.dimension_of, jnp.int32),
            jnp.asarray([each.size for each in channels.dimensions], jnp.int32),
            jnp.asarray(limits.least(channels.dimensions), jnp.int32),
            jnp.asarray(limits.multiples(channels.dimensions), jnp.int32),
            jnp.asarray(candidates.inner_of, jnp.int32),
            jnp.asarray(fallback),
            jnp.asarray(amounts, jnp.int32),
            crowds,
        )


def _sizes(
    candidates: Candidates, name: str, value: Any, periods: int, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the size that each round has to meet, as digits, and a valid set that meets all of them."""
    measure = SIZE_TARGETS[name]

    def size(removed: np.ndarray) -> int:
        return candidates.subnet_size(removed)[measure]

    removals = [candidates.largest_removal(), candidates.largest_removal(measure)]

    def smallest(limits: Limits) -> np.ndarray:
        return min((_most_without(candidates, structures, limits) for structures in removals), key=size)

    fallback = smallest(limits)
    without = {
        f"{limit}={asked!r}": size(smallest(limits._replace(**{limit: None})))
        for limit, asked in limits.given().items()
    }
    full = size(np.zeros(candidates.num_groups, bool))
    target = checked_size(name, value, full, size(fallback), without)
    sizes = [full - (full - target) * number // periods for number in range(1, periods + 1)]
    return to_digits(np.array(sizes)), fallback


def _numbers(
    candidates: Candidates, name: str, value: Any, periods: int, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of structures and channels that each round has to meet, and a valid set that meets them."""
    if candidates.gate_groups:
        raise ArgumentError(
            f"{name} is not for a space with channels and gates at once: give a size, such as target_macs"
        )
    channels, inner_of = candidates.channels, candidates.inner_of
    assert channels is not None
    assert inner_of is not None
    available = {"structure": candidates.num_structures, "channel": len(channels)}
    asked = numbers_of_kinds(name, value, {kind: number for kind, number in available.items() if number})
    num_structures, num_channels = asked.get("structure", 0), asked.get("channel", 0)
    # What goes with a structure is no channel that is left to go, so structures without many of these go.
    spare = np.array([each.size for each in channels.dimensions]) - limits.least(channels.dimensions)
    is_inner = inner_of != NOBODY
    inner = np.bincount(inner_of[is_inner], spare[is_inner], candidates.num_structures).astype(int)
    largest = candidates.largest_removal()
    structures = sorted(largest, key=lambda group: (inner[group], group))[:num_structures]
    most = int(spare.sum() - inner[structures].sum())
    if num_structures > len(largest) or num_channels > most or not num_structures + num_channels:
        raise TargetError(
            f"cannot remove {num_structures} structures and {num_channels} channels ({name}={value!r}): at least one "
            f"group must go, of the structures at most {len(largest)} can, and beside {len(structures)} of them at "
            f"most {most} channels" + "".join(f", with {limit}={number!r}" for limit, number in limits.given().items())
        )
    check_integer("periods", periods, 1, max(num_structures, num_channels))
    amounts = np.arange(1, periods + 1)[:, None] * [num_structures, num_channels] // periods
    return amounts, _most_without(candidates, structures, limits)


def _most_without(candidates: Candidates, structures: Sequence[int], limits: Limits) -> np.ndarray:
    """Returns some structures and all channels that limits let go, bool `[num_groups]`."""
    assert candidates.channels is not None
    dimensions = candidates.channels.dimensions
    removed = _without(candidates, structures)
    for dimension, least in zip(dimensions, limits.least(dimensions).tolist(), strict=True):
        removed[dimension.groups[least:]] = True
    return removed


def _without(candidates: Candidates, structures: Sequence[int]) -> np.ndarray:
    """Returns some structures, bool `[num_groups]`."""
    return np.isin(np.arange(candidates.num_groups), structures)


def _order_by_cost(rises: jax.Array, savings: jax.Array, accepted: jax.Array) -> jax.Array:
    """Returns the group indices, those that cost nothing by falling saving, and then by cost per unit saved.

    Those accepted already come before all others, and those of unknown cost after them.
    """
    free, costly = rises <= 0, rises > 0
    ratios = rises / jnp.where(savings > 0, savings / jnp.maximum(jnp.max(savings), 1), 1)
    kinds = jnp.select([free, costly & (savings > 0), costly], [0, 1, 2], 3)
    return jnp.lexsort((-savings, jnp.where(costly, ratios, 0), kinds, ~accepted))


class _Ranks(NamedTuple):
    """An order of the eligible groups, and what may go by it.

    Attributes:
        structures: int32 `[num_structures]`, place of each structure in the order, or the number of groups where a
            visit in this order does not accept it.
        channels: int32 `[num_channels]`, place of the last of the channels that each one goes together with, or the
            number of groups where it does not go.
    """

    structures: jax.Array
    channels: jax.Array


def _ranks(mixture: Mixture, order: jax.Array, eligible: jax.Array) -> _Ranks:
    """Returns what may go by an order, group indices int `[num_groups]`, among eligible groups."""
    num_groups, num_structures = len(order), mixture.num_structures
    # What is not eligible comes last, and takes no place from the others.
    order = order[jnp.argsort(~eligible[order], stable=True)]
    rank = jnp.zeros(num_groups, jnp.int32).at[order].set(jnp.arange(num_groups, dtype=jnp.int32))
    accepted = jnp.zeros(num_structures, bool)
    if num_structures:
        visits = jnp.argsort(rank[:num_structures]).astype(jnp.int32)
        accepted = accept_greedily(mixture.graph, mixture.critical, visits)
    rank = jnp.where(eligible, rank, num_groups)
    structures = jnp.where(accepted, rank[:num_structures], num_groups)
    return _Ranks(structures, _block_ends(mixture, rank[num_structures:], num_groups))


def _block_ends(mixture: Mixture, rank: jax.Array, never: int) -> jax.Array:
    """Returns the place in the order from which on each channel is gone, int32 `[num_channels]`.

    What is left of a dimension is a multiple: channels go in blocks, which end with the last of them to come.

    Args:
        mixture: the dimensions.
        rank: int32 `[num_channels]`, place of each channel in the order.
        never: what is returned for channels that do not go.
    """
    by_dimension = jnp.lexsort((rank, mixture.dimension_of))
    dimensions = mixture.dimension_of[by_dimension]
    starts = (jnp.cumsum(mixture.widths) - mixture.widths)[dimensions]
    widths, multiples = mixture.widths[dimensions], mixture.multiples[dimensions]
    places = jnp.arange(len(dimensions), dtype=jnp.int32) - starts
    # With this channel and those before it gone, so many are left, rounded down to a multiple.
    left = (widths - places - 1) // multiples * multiples
    ends = jnp.where(left >= mixture.least[dimensions], rank[by_dimension][starts + widths - left - 1], never)
    return jnp.zeros_like(rank).at[by_dimension].set(ends)


def _is_gone(mixture: Mixture, structures: jax.Array) -> jax.Array:
    """Returns which channels go with some structures, bool `[num_channels]`."""
    inner = mixture.inner_of
    return ((inner >= 0) & jnp.append(structures, False)[inner])[mixture.dimension_of]


def _possible(mixture: Mixture, order: jax.Array, eligible: jax.Array) -> jax.Array:
    """Returns the groups that may go by an order, bool `[num_groups]`."""
    return jnp.concatenate(_ranks(mixture, order, eligible)) < len(order)


def _take(
    mixture: Mixture,
    order: jax.Array,
    amount: jax.Array,
    eligible: jax.Array,
    fallback: jax.Array,
    accepted: jax.Array,
) -> jax.Array:
    """Returns the first eligible groups in an order that meet an amount beside those accepted, as far as they may go.

    Args:
        mixture: what is selected from.
        order: int `[num_groups]`, group indices.
        amount: what a round has to meet, see `Mixture.amounts`.
        eligible: bool `[num_groups]`.
        fallback: bool `[num_groups]`, a valid set of them that meets the amount and contains those accepted.
        accepted: bool `[num_groups]`, groups that are taken in any case.
    """
    num_groups, num_structures = len(order), mixture.num_structures
    ranks = _ranks(mixture, order, eligible)

    def before(until: jax.Array) -> jax.Array:
        return (ranks.structures < until) | accepted[:num_structures]

    def with_channels(structures: jax.Array, until: int | jax.Array) -> jax.Array:
        """Returns some structures, and the channels before a place in the order that are not gone with them."""
        channels = (ranks.channels < until) & ~_is_gone(mixture, structures)
        return accepted | jnp.concatenate([structures, channels])

    def are_enough(until: jax.Array) -> jax.Array:
        """Returns whether the structures before a place are, in a size beside the channels before it."""
        if mixture.terms is None:
            return jnp.sum(before(until)) >= amount[0]
        return is_met(mixture, with_channels(before(until), until), amount)

    structures = before(_least(are_enough, num_groups))
    # The greedy order may end before the amount is met, which what is known to meet it does.
    is_within_reach = is_met(mixture, with_channels(structures, num_groups), amount)
    structures = jnp.where(is_within_reach, structures, fallback[:num_structures])
    # The last structure may save so much that channels taken before it need not go.
    enough = _least(lambda until: is_met(mixture, with_channels(structures, until), amount), num_groups)
    return with_channels(structures, enough)


def _least(is_enough: Any, most: int) -> jax.Array:
    """Returns the least number up to `most` that is enough, by bisection."""

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        enough = is_enough(middle)
        return jnp.where(enough, low, jnp.minimum(middle + 1, high)), jnp.where(enough, middle, high)

    bounds = jnp.zeros([], jnp.int32), jnp.full([], most, jnp.int32)
    return jax.lax.fori_loop(0, most.bit_length(), halve, bounds)[1]


def is_met(mixture: Mixture, removed: jax.Array, amount: jax.Array) -> jax.Array:
    """Returns whether the removal of some groups, bool `[num_groups]`, meets an amount, see `Mixture.amounts`."""
    if mixture.terms is None:
        structures, channels = jnp.split(removed, [mixture.num_structures])
        numbers = jnp.sum(structures), jnp.sum(channels & ~_is_gone(mixture, structures))
        return (numbers[0] >= amount[0]) & (numbers[1] >= amount[1])
    total = jnp.sum(_values(mixture.terms, *_left(mixture, mixture.terms, removed)), 0, dtype=jnp.int32)
    return ~is_positive(total - amount)


def savings_without(mixture: Mixture, removed: jax.Array) -> jax.Array:
    """Returns what each group saves beside others that are gone, float32 `[num_groups]`, to first order."""
    terms = mixture.terms
    assert terms is not None
    live, counted = _left(mixture, terms, removed)
    factors = jnp.append(live, 1)[terms.factors].astype(jnp.float32)
    values = from_digits(jnp.moveaxis(_values(terms, live, counted), -1, 0))
    slopes = values[:, None] / jnp.maximum(factors, 1)
    per_index = jax.ops.segment_sum(slopes.reshape(-1), terms.factors.reshape(-1), len(terms.sizes) + 1)
    each = jnp.broadcast_to(per_index[terms.entry_axis][:, None], terms.entry_groups.shape)
    savings = jax.ops.segment_sum(each.reshape(-1), terms.entry_groups.reshape(-1), len(removed) + 1)[:-1]
    per_segment = jax.ops.segment_sum(values, terms.segments, len(terms.is_counted) + 1)
    return savings.at[mixture.group_of].add(per_segment[:-1], mode="drop")


def _left(mixture: Mixture, terms: SizeTerms, removed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the live sizes of the axes, int32 `[num_axes]`, and which segments are left, bool `[num_segments]`."""
    graph = mixture.graph
    gone = jnp.any(jnp.append(removed, False)[terms.entry_groups], axis=1)
    live = jnp.asarray(terms.sizes) - jax.ops.segment_sum(gone.astype(jnp.int32), terms.entry_axis, len(terms.sizes))
    everything = jnp.ones(graph.group.shape, bool)
    # There may be no structures; what belongs to none finds the appended entry.
    structures = jnp.append(removed[: mixture.num_structures], False)
    zero, useful = spread_zeros(graph, vertices_of(graph, structures), everything)
    counted = jnp.zeros(len(terms.is_counted), bool).at[jnp.asarray(graph.segment)].max(useful & ~zero)
    return live, counted


def _values(terms: SizeTerms, live: jax.Array, counted: jax.Array) -> jax.Array:
    """Returns the value of each term as digits, int32 `[num_terms, num_digits]`."""
    is_there = jnp.append(counted, True)[terms.segments]
    digits = jnp.where(is_there[:, None], jnp.asarray(terms.coefficients), 0)
    factors = jnp.append(live, 1)[terms.factors]
    for position in range(factors.shape[1]):
        digits = normalized(digits * factors[:, position, None])
    return digits
