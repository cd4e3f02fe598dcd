"""Which structures and channels go together, inside `jax.jit`: by one order of both, up to where a size is met.

There may be a hundred thousand channels, so they are not visited one after the other. Of any order the groups before
some place are a candidate: the structures among them that are accepted if they are visited in this order, and of each
dimension as many channels as it can lose. The further the place, the smaller the network, so that the place at which
the target is met is found by bisection, in as many evaluations of the size as the number of groups has binary digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.space.candidates import Candidates
from jasgnas.space.groups import NOBODY
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
from jasgnas.space.targets import SIZE_TARGETS, Target, checked_size, resolve_target
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
        is_counted: bool `[num_segments]`, all true: as many as there are segments.
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
        "structure_segment",
        "dimension_of",
        "most_removed",
        "inner_of",
        "fallback",
        "sizes",
    ),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class Mixture:
    """What a selection of structures and channels is made from. A pytree of arrays.

    Attributes:
        graph: what depends on what.
        critical: vertices whose death alone kills a network output, bool `[num_vertices]`.
        terms: the measure of size.
        structure_segment: int32 `[num_structures]`, segment of each structure.
        dimension_of: int32 `[num_channels]`.
        most_removed: int32 `[num_dimensions]`, how many channels of each may go.
        inner_of: int32 `[num_dimensions]`, the structure that makes all of a dimension, `NOBODY` for none: without it
            its channels are gone and count nothing.
        fallback: bool `[num_groups]`, a valid set that is as good as any known at meeting small sizes.
        sizes: the size that each round has to meet, as digits, int32 `[num_rounds, num_digits]`.
    """

    graph: DependenceGraph
    critical: jax.Array
    terms: SizeTerms
    structure_segment: jax.Array
    dimension_of: jax.Array
    most_removed: jax.Array
    inner_of: jax.Array
    fallback: jax.Array
    sizes: jax.Array

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
            planned: bool `[num_groups]`, a set that meets the target, which is what is planned if `is_fixed`.
            accepted: bool `[num_groups]`, groups that are redundant already.
            is_fixed: whether only the round's share of `planned` is selected.
            by_cost: whether minus the score is the rise of the loss when a group goes. Groups then go by rising cost
                per unit of size saved, those that cost nothing first; otherwise by falling score.
            hierarchical: True, since of a dimension a channel has to stay.
        """
        assert hierarchical
        order = self._order(scores, accepted, by_cost)
        everything = jnp.ones_like(accepted)
        found = _take(self, order, self.sizes[-1], everything, accepted)
        planned = jnp.where(is_fixed, planned, found)
        redundant = _take(self, order, self.sizes[number], planned, accepted)
        possible = ~planned & _possible(self, order, everything)
        runner_up = jnp.where(jnp.any(possible), order[jnp.argmax(possible[order])], -1)
        return Selection(planned, redundant, runner_up.astype(jnp.int32))

    def _order(self, scores: jax.Array, accepted: jax.Array, by_cost: bool) -> jax.Array:
        """Returns the group indices in the order in which they are to go, those accepted before all others."""
        if not by_cost:
            return jnp.lexsort((jnp.where(jnp.isnan(scores), jnp.inf, -scores), ~accepted))
        full = savings_without(self, jnp.zeros_like(accepted))
        everything = jnp.ones_like(accepted)

        def again(_: Any, savings: jax.Array) -> jax.Array:
            taken = _take(self, _order_by_cost(-scores, savings, accepted), self.sizes[-1], everything, accepted)
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


def resolve(candidates: Candidates, given: Mapping[str, Any], periods: int, hierarchical: bool) -> Target | Mixture:
    """Returns the target that a user has given, see `resolve_target` and `resolve_mixture`."""
    resolved = resolve_target if candidates.channels is None else resolve_mixture
    return resolved(candidates, given, periods, hierarchical)


def resolve_mixture(candidates: Candidates, given: Mapping[str, Any], periods: int, hierarchical: bool) -> Mixture:
    """Returns what a selection of structures and channels is made from.

    Args:
        candidates: what may go.
        given: the targets by name, all but one of them None.
        periods: number of rounds.
        hierarchical: True; there is no comparison without validity where there are channels.

    Raises:
        ArgumentError: not exactly one target is given, or it is of the wrong kind or not in a size.
        TargetError: no removal meets the target, or none is needed to meet it.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1 or not {*chosen} <= {*SIZE_TARGETS}:
        names = ", ".join(f"{name}={value!r}" for name, value in chosen.items()) or "none"
        raise ArgumentError(
            f"expected exactly one of {', '.join(SIZE_TARGETS)} for structures and channels together, got {names}"
        )
    if not hierarchical:
        raise ArgumentError("hierarchical=False is for structures alone: make the space without channels=True")
    ((name, value),) = chosen.items()
    measure, channels = SIZE_TARGETS[name], candidates.channels
    assert candidates.widths is not None
    assert channels is not None
    most = np.array([dimension.size - dimension.min_channels for dimension in channels.dimensions])
    spare = np.concatenate(
        [dimension.groups[: int(number)] for dimension, number in zip(channels.dimensions, most, strict=True)]
    )

    def without(structures: Sequence[int]) -> np.ndarray:
        removed = np.zeros(candidates.num_groups, bool)
        removed[[*structures, *spare]] = True
        return removed

    def size(removed: np.ndarray) -> int:
        return candidates.subnet_size(removed)[measure]

    removals = [candidates.largest_removal(), candidates.largest_removal(measure)]
    reachable = min(map(without, removals), key=size)
    full = size(np.zeros(candidates.num_groups, bool))
    target = checked_size(name, value, full, size(reachable))
    sizes = [full - (full - target) * number // periods for number in range(1, periods + 1)]
    return Mixture(
        candidates.dependence,
        jnp.asarray(candidates.critical),
        size_terms(candidates.widths, measure, candidates.num_groups, candidates.costs.num_segments),
        jnp.asarray(candidates.segments, jnp.int32),
        jnp.asarray(channels.dimension_of, jnp.int32),
        jnp.asarray(most, jnp.int32),
        jnp.asarray(candidates.inner_of, jnp.int32),
        jnp.asarray(reachable),
        jnp.asarray(to_digits(np.array(sizes))),
    )


def _order_by_cost(rises: jax.Array, savings: jax.Array, accepted: jax.Array) -> jax.Array:
    """Returns the group indices, those that cost nothing by falling saving, and then by cost per unit saved.

    Those accepted already come before all others, and those of unknown cost after them.
    """
    free, costly = rises <= 0, rises > 0
    ratios = rises / jnp.where(savings > 0, savings / jnp.maximum(jnp.max(savings), 1), 1)
    kinds = jnp.select([free, costly & (savings > 0), costly], [0, 1, 2], 3)
    return jnp.lexsort((-savings, jnp.where(costly, ratios, 0), kinds, ~accepted))


class _Ranks(NamedTuple):
    """An order, and what may go by it.

    Attributes:
        rank: int32 `[num_groups]`, place of each group in the order.
        structures: bool `[num_structures]`, structures that a visit in this order accepts.
        channels: bool `[num_channels]`, channels that may go: the first ones of each dimension.
    """

    rank: jax.Array
    structures: jax.Array
    channels: jax.Array


def _ranks(mixture: Mixture, order: jax.Array, eligible: jax.Array) -> _Ranks:
    """Returns what may go by an order, group indices int `[num_groups]`, among eligible groups."""
    num_groups, num_structures = len(order), len(mixture.structure_segment)
    # What is not eligible comes last, and takes no place from the others.
    order = order[jnp.argsort(~eligible[order], stable=True)]
    rank = jnp.zeros(num_groups, jnp.int32).at[order].set(jnp.arange(num_groups, dtype=jnp.int32))
    by_dimension = jnp.lexsort((rank[num_structures:], mixture.dimension_of))
    dimensions = mixture.dimension_of[by_dimension]
    place = (jnp.arange(len(dimensions)) - jnp.searchsorted(dimensions, dimensions)).astype(jnp.int32)
    place = jnp.zeros_like(place).at[by_dimension].set(place)
    accepted = jnp.zeros(num_structures, bool)
    if num_structures:
        visits = jnp.argsort(rank[:num_structures]).astype(jnp.int32)
        accepted = accept_greedily(mixture.graph, mixture.critical, visits)
    can_go = place < mixture.most_removed[mixture.dimension_of]
    return _Ranks(rank, accepted & eligible[:num_structures], can_go & eligible[num_structures:])


def _possible(mixture: Mixture, order: jax.Array, eligible: jax.Array) -> jax.Array:
    """Returns the groups that may go by an order, bool `[num_groups]`."""
    ranks = _ranks(mixture, order, eligible)
    return jnp.concatenate([ranks.structures, ranks.channels])


def _take(mixture: Mixture, order: jax.Array, size: jax.Array, eligible: jax.Array, accepted: jax.Array) -> jax.Array:
    """Returns the first groups in an order that meet a size beside those accepted, as far as they may go."""
    num_groups, num_structures = len(order), len(mixture.structure_segment)
    rank, structures_in_order, channels_in_order = _ranks(mixture, order, eligible)

    def with_channels(structures: jax.Array, until: jax.Array) -> jax.Array:
        """Returns some structures, and the channels before a place in the order that are not gone with them."""
        inner = mixture.inner_of[mixture.dimension_of]
        is_gone = (inner >= 0) & jnp.append(structures, False)[inner]
        channels = channels_in_order & (rank[num_structures:] < until) & ~is_gone
        return accepted | jnp.concatenate([structures, channels])

    def before(until: jax.Array) -> jax.Array:
        structures = structures_in_order & (rank[:num_structures] < until)
        return with_channels(structures | accepted[:num_structures], until)

    found = before(_least(lambda until: is_met(mixture, before(until), size), num_groups))
    # The greedy order may end before the size is met, which what is known to be small does.
    fallback = (mixture.fallback & eligible) | accepted
    structures = jnp.where(is_met(mixture, found, size), found, fallback)[:num_structures]
    # The last structure may save so much that channels taken before it need not go.
    enough = _least(lambda until: is_met(mixture, with_channels(structures, until), size), num_groups)
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


def is_met(mixture: Mixture, removed: jax.Array, size: jax.Array) -> jax.Array:
    """Returns whether the network is not above the size without some groups, bool `[num_groups]`."""
    total = jnp.sum(_values(mixture.terms, *_left(mixture, removed)), 0, dtype=jnp.int32)
    return ~is_positive(total - size)


def savings_without(mixture: Mixture, removed: jax.Array) -> jax.Array:
    """Returns what each group saves beside others that are gone, float32 `[num_groups]`, to first order."""
    terms = mixture.terms
    live, counted = _left(mixture, removed)
    num_structures = len(mixture.structure_segment)
    factors = jnp.append(live, 1)[terms.factors].astype(jnp.float32)
    values = from_digits(jnp.moveaxis(_values(terms, live, counted), -1, 0))
    slopes = values[:, None] / jnp.maximum(factors, 1)
    per_index = jax.ops.segment_sum(slopes.reshape(-1), terms.factors.reshape(-1), len(terms.sizes) + 1)
    each = jnp.broadcast_to(per_index[terms.entry_axis][:, None], terms.entry_groups.shape)
    savings = jax.ops.segment_sum(each.reshape(-1), terms.entry_groups.reshape(-1), len(removed) + 1)[:-1]
    per_segment = jax.ops.segment_sum(values, terms.segments, len(terms.is_counted) + 1)
    return savings.at[:num_structures].add(per_segment[mixture.structure_segment])


def _left(mixture: Mixture, removed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the live sizes of the axes, int32 `[num_axes]`, and which segments are left, bool `[num_segments]`."""
    terms, graph = mixture.terms, mixture.graph
    gone = jnp.any(jnp.append(removed, False)[terms.entry_groups], axis=1)
    live = jnp.asarray(terms.sizes) - jax.ops.segment_sum(gone.astype(jnp.int32), terms.entry_axis, len(terms.sizes))
    everything = jnp.ones(graph.group.shape, bool)
    # There may be no structures; what belongs to none finds the appended entry.
    structures = jnp.append(removed[: len(mixture.structure_segment)], False)
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
