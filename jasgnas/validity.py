"""Which segments survive a removal, and which removals leave a valid network: reachability in an AND–OR graph.

Owns the judgement and the choice of removals, on the host (NumPy) and inside `jax.jit`; how a network becomes segments
and groups is `space.py`'s business.
"""

from collections.abc import Iterable
from functools import reduce
from operator import and_, or_
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Alternatives that `largest_removal` remembers per segment. The number of alternatives can be exponential in the
# number of joints; without truncation the search is exact.
_MAX_ALTERNATIVES = 16

_ALL = -1  # the bit mask of every set there is


class SegmentTopology(NamedTuple):
    """The segment graph as index arrays, all that validity depends on.

    Segments are numbered topologically: every edge goes from a lower to a higher number.

    Attributes:
        senders: int32 `[num_edges]`, segment each edge leaves.
        receivers: int32 `[num_edges]`, segment each edge enters; a joint that reads one segment twice has two edges.
        additive: bool `[num_segments]`, joints that are alive if any input is; other segments need all of theirs.
        num_external: int32 `[num_segments]`, inputs taken straight from the network input, which is always alive.
        outputs: int32 `[num_outputs]`, segment that computes each network output; network inputs that are returned as
            they are do not count.
        group: int32 `[num_segments]`, group whose structure the segment is, or -1.
    """

    senders: np.ndarray
    receivers: np.ndarray
    additive: np.ndarray
    num_external: np.ndarray
    outputs: np.ndarray
    group: np.ndarray


def alive_segments(topology: SegmentTopology, removed: np.ndarray) -> np.ndarray:
    """Returns which segments still depend on the network input, bool `[num_segments]`.

    Runs on the host, in one sweep along the topological order.

    Args:
        topology: the segment graph.
        removed: bool `[num_groups]`, groups taken away.
    """
    alive: list[bool] = []
    for (senders, additive, num_external), gone in zip(_segments(topology), _gone(topology, removed), strict=True):
        inputs = (alive[sender] for sender in senders)
        fed = num_external > 0 or any(inputs) if additive else all(inputs)
        alive.append(fed and not gone)
    return np.array(alive, dtype=bool)


def is_valid(topology: SegmentTopology, removed: np.ndarray) -> bool:
    """Returns whether every network output is alive without the groups marked in `removed`, bool `[num_groups]`."""
    return bool(alive_segments(topology, removed)[topology.outputs].all())


def largest_removal(topology: SegmentTopology, num_groups: int) -> tuple[int, ...]:
    """Returns a valid removal, as large as it can find, as sorted group indices.

    A segment is kept alive by sets of groups: a segment that needs all of its inputs by every union of sets that keep
    these alive, an additive joint by every set that keeps one of them alive. One sweep finds the smallest such sets of
    every segment, and what the outputs do not need may go. The problem is NP-hard, so at most `_MAX_ALTERNATIVES` sets
    per segment are remembered: where no more exist the result is the largest; it is never contained in a larger one.

    Args:
        topology: the segment graph.
        num_groups: number of groups.

    Returns:
        The groups to remove; empty if the network needs every one of them.
    """
    # Sets of groups are integers, bit g for group g: unions and comparisons of thousands of groups stay quick.
    keepers: list[list[int]] = []
    for (senders, additive, num_external), group in zip(_segments(topology), topology.group.tolist(), strict=True):
        alternatives = [keepers[sender] for sender in senders]
        if not additive:
            fed = _needing_all(alternatives)
        elif num_external:
            fed = [0]
        else:
            fed = _smallest(kept for sender in alternatives for kept in sender)
        keepers.append([kept | 1 << group for kept in fed] if group >= 0 else fed)
    kept = _needing_all([keepers[output] for output in topology.outputs])[0]
    removed = np.array([not kept >> group & 1 for group in range(num_groups)], dtype=bool)
    bits = [1 << group if group >= 0 else 0 for group in topology.group.tolist()]
    while True:
        needed = _sole_killers(topology, bits, removed)
        spare = [group for group in range(num_groups) if not removed[group] and not needed >> group & 1]
        if not spare:
            return tuple(np.flatnonzero(removed).tolist())
        removed[spare[0]] = True


def critical_segments(topology: SegmentTopology) -> np.ndarray:
    """Returns the segments whose death alone kills a network output, bool `[num_segments]`. Runs on the host."""
    num_segments = len(topology.group)
    nothing = np.zeros(topology.group.max(initial=-1) + 1, bool)
    killers = _sole_killers(topology, [1 << segment for segment in range(num_segments)], nothing)
    return np.array([killers >> segment & 1 for segment in range(num_segments)], dtype=bool)


def select_redundant(
    topology: SegmentTopology,
    critical: ArrayLike,
    scores: jax.Array,
    num_redundant: int,
    fallback: jax.Array,
    accepted: jax.Array,
) -> jax.Array:
    """Returns a valid set of `num_redundant` groups, chosen greedily by falling score.

    Groups are visited by falling score (ties: the lower index first; NaN last) and accepted if the network stays valid
    without them and all those accepted before, as in H2SPG (arXiv 2305.18030, section 3.2). Valid sets are closed under
    taking subsets but are no matroid, so the greedy order can end in a set that is maximal and yet too small: then the
    best-scoring members of `fallback` are taken. Pure and without host callbacks: runs inside `jax.jit`, and equal on
    every device that holds equal scores.

    Args:
        topology: the segment graph; its arrays may be traced.
        critical: `critical_segments(topology)`, bool `[num_segments]`; a visit ends as soon as one of them dies.
        scores: float `[num_groups]`, larger is removed sooner.
        num_redundant: how many groups to select.
        fallback: bool `[num_groups]`, a valid set of at least `num_redundant` groups that contains `accepted`.
        accepted: bool `[num_groups]`, a valid set of at most `num_redundant` groups that must be part of the result.

    Returns:
        The selected groups, bool `[num_groups]`.
    """
    order = falling_order(scores, accepted)
    selected = _select_greedily(topology, jnp.asarray(critical), order, num_redundant)
    return jnp.where(jnp.sum(selected) == num_redundant, selected, first_in_order(order, fallback, num_redundant))


def falling_order(scores: jax.Array, accepted: jax.Array) -> jax.Array:
    """Returns the group indices, those in `accepted` first, then by falling score, ties by index, NaN last.

    Args:
        scores: float `[num_groups]`.
        accepted: bool `[num_groups]`.
    """
    return jnp.lexsort((-scores, ~accepted))


def first_in_order(order: jax.Array, eligible: jax.Array, num: int | jax.Array) -> jax.Array:
    """Returns the first `num` groups of `order` among the `eligible` ones, bool `[num_groups]`.

    Args:
        order: int `[num_groups]`, group indices.
        eligible: bool `[num_groups]`.
        num: how many to take; fewer are taken if fewer are eligible.
    """
    candidates = eligible[order]
    taken = candidates & (jnp.cumsum(candidates) <= num)
    return jnp.zeros_like(eligible).at[order].set(taken)


class _Search(NamedTuple):
    """State of the greedy selection.

    Attributes:
        position: int32, place in the order of the group to visit next.
        selected: bool `[num_groups]`, accepted groups.
        alive: bool `[num_segments]`, what is alive without them.
        critical: bool `[num_segments]`, segments known to be needed by an output whatever else is accepted.
    """

    position: jax.Array
    selected: jax.Array
    alive: jax.Array
    critical: jax.Array


def _select_greedily(topology: SegmentTopology, critical: jax.Array, order: jax.Array, num_redundant: int) -> jax.Array:
    """Returns the groups that the greedy visit in `order` accepts until it has `num_redundant`, bool `[num_groups]`."""
    num_groups = order.shape[0]

    def unfinished(search: _Search) -> jax.Array:
        return (search.position < num_groups) & (jnp.sum(search.selected) < num_redundant)

    def visit(search: _Search) -> _Search:
        group = order[search.position]
        own = topology.group == group
        alive = _spread_death(topology, search.alive & ~own, search.critical)
        valid = ~jnp.any(search.critical & ~alive)
        return _Search(
            search.position + 1,
            search.selected.at[group].set(valid),
            jnp.where(valid, alive, search.alive),
            # Removals only ever add up: what could not be spared now can never be, and later visits end as soon as
            # they reach it.
            search.critical | (own & ~valid),
        )

    start = _Search(
        jnp.int32(0),
        jnp.zeros(num_groups, bool),
        jnp.ones_like(critical),
        critical,
    )
    return jax.lax.while_loop(unfinished, visit, start).selected


def _spread_death(topology: SegmentTopology, alive: jax.Array, critical: jax.Array) -> jax.Array:
    """Returns what is still alive once death has spread, or has reached a critical segment, bool `[num_segments]`.

    Args:
        topology: the segment graph.
        alive: bool `[num_segments]`, segments not yet known to be dead.
        critical: bool `[num_segments]`, segments whose death makes the rest of the answer irrelevant.
    """
    num_segments = alive.shape[0]

    def count_inputs(sending: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(sending.astype(jnp.int32), topology.receivers, num_segments)

    num_inputs = count_inputs(jnp.ones_like(topology.senders))

    def spreading(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        alive, changed = carry
        return changed & jnp.all(alive | ~critical)

    def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        alive, _ = carry
        num_alive = count_inputs(alive[topology.senders])
        fed = jnp.where(topology.additive, num_alive + topology.num_external > 0, num_alive == num_inputs)
        return alive & fed, jnp.any(alive & ~fed)

    return jax.lax.while_loop(spreading, step, (alive, jnp.bool_(True)))[0]


def _segments(topology: SegmentTopology) -> list[tuple[list[int], bool, int]]:
    """Returns the senders, `additive` and `num_external` of every segment as Python values, quick to loop over."""
    senders: list[list[int]] = [[] for _ in topology.group]
    for sender, receiver in zip(topology.senders.tolist(), topology.receivers.tolist(), strict=True):
        senders[receiver].append(sender)
    return list(zip(senders, topology.additive.tolist(), topology.num_external.tolist(), strict=True))


def _gone(topology: SegmentTopology, removed: np.ndarray) -> list[bool]:
    """Returns for every segment whether its own group is in `removed`, bool `[num_groups]`."""
    return np.append(removed, False)[topology.group].tolist()  # group -1 finds the appended entry


def _sole_killers(topology: SegmentTopology, bits: list[int], removed: np.ndarray) -> int:
    """Returns everything that, if it alone went beside `removed`, would kill a network output, as a bit mask.

    Args:
        topology: the segment graph.
        bits: for each segment the bit of that whose going takes the segment, 0 where nothing does.
        removed: bool `[num_groups]`, groups taken away already, without which every output is alive.
    """
    killers: list[int] = []
    rows = zip(_segments(topology), bits, _gone(topology, removed), strict=True)
    for (senders, additive, num_external), bit, gone in rows:
        inputs = [killers[sender] for sender in senders]
        if not additive:
            shared = reduce(or_, inputs, 0)
        else:
            shared = 0 if num_external else reduce(and_, inputs, _ALL)
        killers.append(_ALL if gone else shared | bit)
    return reduce(or_, [killers[output] for output in topology.outputs], 0)


def _needing_all(alternatives: list[list[int]]) -> list[int]:
    """Returns the smallest unions of one set from each list, sets given as bit masks."""
    if not alternatives:
        return [0]
    return reduce(lambda unions, sets: _smallest(union | kept for union in unions for kept in sets), alternatives)


def _smallest(sets: Iterable[int]) -> list[int]:
    """Returns the smallest of the sets, given as bit masks, that contain no other, by rising size."""
    chosen: list[int] = []
    for candidate in sorted(set(sets), key=lambda kept: (kept.bit_count(), kept)):
        if all(kept & ~candidate for kept in chosen):
            chosen.append(candidate)
        if len(chosen) == _MAX_ALTERNATIVES:
            break
    return chosen
