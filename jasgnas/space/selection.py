"""Which groups go: the greedy selection of H2SPG by falling score, inside `jax.jit` and without host callbacks.

What may go together is judged on the same graph as in `validity.py`, how small a sub-network gets by the same costs as
in `sizes.py`. Owns both judgements inside `jax.jit`, for `budget.py` too, which selects where scores are costs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jasgnas.space.validity import DependenceGraph

TakeFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Takes, in an order (group indices, int `[num_groups]`), the first eligible groups (bool `[num_groups]`) that meet a
target, and none that the target does not need. Returns the groups taken, bool `[num_groups]`, all eligible ones if the
target is out of their reach, and whether the target is met."""

IsDueFn = Callable[[jax.Array, jax.Array], jax.Array | bool]
"""Tells whether a group, int32, is to be removed beside others, bool `[num_groups]`, as far as that is valid."""

# Multiply-adds exceed int32, and JAX has no int64 by default: sizes are written with digits in this base, few enough
# bits each that half a million of them can be summed, and enough digits for an int64.
_DIGIT_BITS = 12
NUM_DIGITS = 6


class Selection(NamedTuple):
    """What is to go.

    Attributes:
        planned: bool `[num_groups]`, a set that meets the whole target, and contains what had to be part of it.
        redundant: bool `[num_groups]`, this round's share of it.
        runner_up: int32, the group that would have gone next: the first in the order of the selection that stays and
            that could have gone as well; -1 if there is none.
    """

    planned: jax.Array
    redundant: jax.Array
    runner_up: jax.Array


class SizeCosts(NamedTuple):
    """What segments and savings count in one measure, see `Measure`, as the arrays that `size_without` adds up.

    Attributes:
        segments: int32 `[num_segments, num_digits]`, size of each segment, see `to_digits`.
        saving_segment: int32 `[num_savings]`, segment in which something is saved.
        saving_group: int32 `[num_savings]`, group whose removal saves it.
        savings: int32 `[num_savings, num_digits]`, size saved.
    """

    segments: np.ndarray
    saving_segment: np.ndarray
    saving_group: np.ndarray
    savings: np.ndarray


def to_digits(sizes: ArrayLike) -> np.ndarray:
    """Returns non-negative int64 sizes `[...]` as digits, the lowest first, int32 `[..., num_digits]`."""
    shifts = _DIGIT_BITS * np.arange(NUM_DIGITS)
    return (np.asarray(sizes, np.int64)[..., None] >> shifts & (1 << _DIGIT_BITS) - 1).astype(np.int32)


def select_redundant(
    graph: DependenceGraph,
    critical: ArrayLike,
    scores: jax.Array,
    take: TakeFn,
    fallback: jax.Array,
    accepted: jax.Array,
    is_due: IsDueFn = lambda accepted, group: True,
    saved: ArrayLike = 0,
) -> jax.Array:
    """Returns a valid set of groups that meets a target, chosen greedily by falling score.

    Groups are visited by falling score (ties: the larger saving first, then the lower index; NaN last) and accepted if
    the network stays valid without them and all those accepted before, as in H2SPG (arXiv 2305.18030, section 3.2),
    until the target is met. Valid sets are closed under taking subsets but are no matroid, so the greedy order can end
    in a set that is maximal and yet too small: then the best-scoring members of `fallback` are taken. Pure and without
    host callbacks: runs inside `jax.jit`, and equal on every device that holds equal scores.

    Args:
        graph: what depends on what; its arrays may be traced.
        critical: `critical_vertices(graph)`, bool `[num_vertices]`; a visit ends as soon as one of them dies.
        scores: float `[num_groups]`, larger is removed sooner.
        take: the target.
        fallback: bool `[num_groups]`, a valid set that meets the target and contains `accepted`.
        accepted: bool `[num_groups]`, a valid set that must be part of the result.
        is_due: tells of a group whether the target wants it beside those accepted before; what it does not want must
            not stand in the way of what it does.
        saved: what each group saves, `[num_groups]`, or a number if that does not matter.

    Returns:
        The selected groups, bool `[num_groups]`.
    """
    order = falling_order(scores, accepted, saved)

    def is_wanted(beside: jax.Array, group: jax.Array) -> jax.Array:
        return accepted[group] | is_due(beside, group)

    selected, is_met = take(order, accept_greedily(graph, jnp.asarray(critical), order, is_wanted))
    return accepted | jax.lax.cond(is_met, lambda: selected, lambda: take(order, jnp.asarray(fallback))[0])


def first_possible(graph: DependenceGraph, critical: ArrayLike, order: jax.Array, taken: jax.Array) -> jax.Array:
    """Returns the first other group in an order that may go beside those taken, int32, or -1 if there is none.

    Args:
        graph: what depends on what; its arrays may be traced.
        critical: `critical_vertices(graph)`, bool `[num_vertices]`.
        order: int `[num_groups]`, group indices.
        taken: bool `[num_groups]`, groups that are gone.
    """
    critical, num_groups = jnp.asarray(critical), len(order)

    def is_passed_over(position: jax.Array) -> jax.Array:
        gone = taken.at[order[position]].set(True)
        return taken[order[position]] | ~spares(spread_death(graph, vertices_of(graph, gone), critical), critical)

    position = jax.lax.while_loop(
        lambda position: (position < num_groups) & is_passed_over(position),
        lambda position: position + 1,
        jnp.int32(0),
    )
    return jnp.where(position < num_groups, order[position], -1).astype(jnp.int32)


def falling_order(scores: jax.Array, accepted: jax.Array, saved: ArrayLike = 0) -> jax.Array:
    """Returns the group indices, those `accepted` first, then by falling score, NaN last.

    Args:
        scores: float `[num_groups]`.
        accepted: bool `[num_groups]`.
        saved: what each group saves, `[num_groups]`: of equal scores, the larger saving comes first. A number if that
            does not matter; then, and where these are equal too, it is the lower index.
    """
    return jnp.lexsort((-jnp.broadcast_to(jnp.asarray(saved), scores.shape), -scores, ~accepted))


def take_number(
    order: jax.Array, eligible: jax.Array, num: ArrayLike, of_kinds: ArrayLike = True
) -> tuple[jax.Array, jax.Array]:
    """Takes the first `num` groups, or so many of each kind, see `TakeFn`.

    Args:
        order: int `[num_groups]`, group indices.
        eligible: bool `[num_groups]`.
        num: int, how many to take, or int `[num_kinds]`.
        of_kinds: bool `[num_kinds, num_groups]`, the groups of each kind; all are of one kind by default.
    """
    candidates = jnp.atleast_2d(of_kinds & eligible)[:, order]
    taken = jnp.any(candidates & (jnp.cumsum(candidates, axis=1) <= jnp.reshape(num, (-1, 1))), axis=0)
    return jnp.zeros_like(eligible).at[order].set(taken), jnp.sum(taken) == jnp.sum(jnp.asarray(num))


def is_lacking(of_kinds: ArrayLike, num: ArrayLike, accepted: jax.Array, group: jax.Array) -> jax.Array:
    """Tells whether a group, int32, is of a kind of which fewer are accepted than `num`; arguments as `take_number`."""
    kinds = jnp.atleast_2d(jnp.asarray(of_kinds))
    return jnp.any(kinds[:, group] & (jnp.sum(kinds & accepted, axis=1) < jnp.reshape(num, -1)))


def take_to_size(
    graph: DependenceGraph, costs: SizeCosts, order: jax.Array, eligible: jax.Array, size: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Takes the first groups without which the sub-network is not above a size, see `TakeFn`; at least one.

    A group is then given back if the size is met without removing it, the last one first: every group taken is needed.
    The same size as `sizes.subnet_size` returns, exactly: dead branches do not count.

    Args:
        graph: what depends on what; its arrays may be traced.
        costs: what each segment counts.
        order: int `[num_groups]`, group indices.
        eligible: bool `[num_groups]`.
        size: the target as digits, int `[num_digits]`.
    """
    visits = order[jnp.argsort(~eligible[order], stable=True)]

    def is_small_enough(taken: jax.Array, zero: jax.Array, useful: jax.Array) -> jax.Array:
        return ~is_positive(size_without(graph, costs, taken, zero, useful) - size)

    def is_unfinished(shrinking: _Shrinking) -> jax.Array:
        return (shrinking.position < jnp.sum(eligible)) & ~shrinking.is_met

    def visit(shrinking: _Shrinking) -> _Shrinking:
        group = visits[shrinking.position]
        taken = shrinking.taken.at[group].set(True)
        zero, useful = spread_zeros(graph, shrinking.zero | (graph.group == group), shrinking.useful)
        return _Shrinking(shrinking.position + 1, taken, zero, useful, is_small_enough(taken, zero, useful))

    nothing = jnp.zeros(graph.group.shape, bool)
    start = _Shrinking(jnp.int32(0), jnp.zeros_like(eligible), nothing, ~nothing, jnp.bool_(False))
    end = jax.lax.while_loop(is_unfinished, visit, start)

    def give_back(number: jax.Array, taken: jax.Array) -> jax.Array:
        fewer = taken.at[visits[end.position - 1 - number]].set(False)
        zero, useful = spread_zeros(graph, vertices_of(graph, fewer), ~nothing)
        return jnp.where(is_small_enough(fewer, zero, useful), fewer, taken)

    # The last group taken is needed in any case, and all of them if they are not enough.
    taken = jax.lax.fori_loop(1, jnp.where(end.is_met, end.position, 1), give_back, end.taken)
    return taken, end.is_met


class _Shrinking(NamedTuple):
    """State of `take_to_size`.

    Attributes:
        position: int32, number of groups visited.
        taken: bool `[num_groups]`, groups taken.
        zero: bool `[num_vertices]`, vertices that are zero without them.
        useful: bool `[num_vertices]`, vertices that an output may still depend on.
        is_met: bool, whether the sub-network is small enough.
    """

    position: jax.Array
    taken: jax.Array
    zero: jax.Array
    useful: jax.Array
    is_met: jax.Array


def spread_zeros(graph: DependenceGraph, zero: jax.Array, useful: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which vertices are zero and which are useful once zeros have spread, bool `[num_vertices]` each.

    Removals add up, so vertices only ever become zero and useless: it is enough to go on from what is known.

    Args:
        graph: what depends on what.
        zero: bool `[num_vertices]`, vertices known to be zero.
        useful: bool `[num_vertices]`, vertices not known to be useless.
    """

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        zero, useful, _ = carry
        more, fewer = zero | silenced(graph, zero, graph.passes_zeros), useful & read(graph, useful & ~zero)
        return more, fewer, jnp.any(more != zero) | jnp.any(fewer != useful)

    return jax.lax.while_loop(lambda carry: carry[2], step, (zero, useful, jnp.bool_(True)))[:2]


def size_without(
    graph: DependenceGraph, costs: SizeCosts, taken: jax.Array, zero: jax.Array, useful: jax.Array
) -> jax.Array:
    """Returns the size of what is left, as digits that may exceed their base, int32 `[num_digits, ...]`.

    Args:
        graph: what depends on what.
        costs: what each segment counts.
        taken: bool `[num_groups, ...]`, groups that are gone.
        zero: bool `[num_vertices, ...]`, vertices that are zero without them, see `spread_zeros`.
        useful: bool `[num_vertices, ...]`, vertices that an output still depends on.
    """

    def total(counted: jax.Array, sizes: ArrayLike) -> jax.Array:
        digits = jnp.asarray(sizes).T
        return jnp.sum(jnp.where(counted, along(digits, counted[None]), 0), axis=1, dtype=jnp.int32)

    counted = _any_at(graph.segment, useful & ~zero, len(costs.segments))
    saved = taken[costs.saving_group] & counted[costs.saving_segment]
    return total(counted, costs.segments) - total(saved, costs.savings)


def is_positive(digits: jax.Array) -> jax.Array:
    """Returns whether numbers are positive whose digits, `[num_digits, ...]`, may be negative or exceed their base."""
    carry = jnp.int32(-1)  # it is if one less than it is not negative
    for digit in digits:
        carry = (digit + carry) >> _DIGIT_BITS
    return carry >= 0


def normalized(digits: jax.Array) -> jax.Array:
    """Returns the digits of numbers, `[..., num_digits]`, of which those given may exceed their base."""
    carry, found = jnp.zeros_like(digits[..., 0]), []
    for place in range(digits.shape[-1]):
        carry = digits[..., place] + carry
        found.append(carry & (1 << _DIGIT_BITS) - 1)
        carry >>= _DIGIT_BITS
    return jnp.stack(found, -1)


def from_digits(digits: jax.Array) -> jax.Array:
    """Returns numbers that are not negative as float32, rounded; their digits are those of `is_positive`."""
    carry, value = jnp.int32(0), jnp.float32(0)
    for place, digit in enumerate(digits):
        carry = digit + carry
        value += jnp.float32(1 << _DIGIT_BITS * place) * (carry & (1 << _DIGIT_BITS) - 1)
        carry >>= _DIGIT_BITS
    return value


class _Search(NamedTuple):
    """State of the greedy selection.

    Attributes:
        position: int32, place in the order of the group to visit next.
        accepted: bool `[num_groups]`, accepted groups.
        dead: bool `[num_vertices]`, what is dead without them.
        critical: bool `[num_vertices]`, vertices known to be needed by an output whatever else is accepted.
    """

    position: jax.Array
    accepted: jax.Array
    dead: jax.Array
    critical: jax.Array


def accept_greedily(
    graph: DependenceGraph, critical: jax.Array, order: jax.Array, is_due: IsDueFn = lambda accepted, group: True
) -> jax.Array:
    """Returns the groups that a greedy visit of all groups in `order` accepts, bool `[num_groups]`.

    Args:
        graph: what depends on what.
        critical: bool `[num_vertices]`, vertices that must not die.
        order: int `[num_groups]`, group indices.
        is_due: tells of the group to be visited whether it is wanted beside those accepted before.
    """
    num_groups = order.shape[0]

    def visit(search: _Search) -> _Search:
        group = order[search.position]
        own = graph.group == group
        wanted = jnp.asarray(is_due(search.accepted, group))
        dead = spread_death(graph, search.dead | (own & wanted), search.critical)
        valid = spares(dead, search.critical)
        return _Search(
            search.position + 1,
            search.accepted.at[group].set(wanted & valid),
            jnp.where(valid, dead, search.dead),
            # Removals only ever add up: what could not be spared now can never be, and later visits end as soon as
            # they reach it.
            search.critical | (own & ~valid),
        )

    start = _Search(jnp.int32(0), jnp.zeros(num_groups, bool), jnp.zeros_like(critical), critical)
    return jax.lax.while_loop(lambda search: search.position < num_groups, visit, start).accepted


def spread_death(graph: DependenceGraph, dead: jax.Array, critical: jax.Array) -> jax.Array:
    """Returns what is dead once death has spread, or has reached a critical vertex, bool `[num_vertices]`.

    Args:
        graph: what depends on what.
        dead: bool `[num_vertices]`, vertices known to be dead.
        critical: bool `[num_vertices]`, vertices whose death makes the rest of the answer irrelevant.
    """
    everywhere = jnp.ones(len(graph.senders), bool)

    def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dead, _ = carry
        more = dead | silenced(graph, dead, everywhere)
        return more, jnp.any(more != dead) & spares(more, critical)

    return jax.lax.while_loop(lambda carry: carry[1], step, (dead, jnp.bool_(True)))[0]


def are_valid(graph: DependenceGraph, critical: jax.Array, gone: jax.Array) -> jax.Array:
    """Returns whether the network is valid without each of some sets of groups, bool `[num_sets]`.

    Args:
        graph: what depends on what.
        critical: bool `[num_vertices]`, vertices that no set may kill.
        gone: bool `[num_sets, num_groups]`.
    """

    def is_valid(gone: jax.Array) -> jax.Array:
        return spares(spread_death(graph, vertices_of(graph, gone), critical), critical)

    return jax.vmap(is_valid)(gone)


# What follows acts on the first axis. Further axes tell several removals apart; as the last ones they are quick to
# work on, other than those of `jax.vmap`.


def vertices_of(graph: DependenceGraph, groups: jax.Array) -> jax.Array:
    """Returns the vertices of some groups, bool `[num_groups, ...]`, as bool `[num_vertices, ...]`."""
    return groups[graph.group] & (along(graph.group, groups) >= 0)


def spares(dead: jax.Array, critical: jax.Array) -> jax.Array:
    """Returns whether nothing critical, bool `[num_vertices]`, is dead, bool `[num_vertices, ...]`; bool `[...]`."""
    return ~jnp.any(dead & along(critical, dead), axis=0)


def silenced(graph: DependenceGraph, lost: jax.Array, passes: ArrayLike) -> jax.Array:
    """Returns which vertices are lost because of what they read: a joint with all of it, another vertex with any.

    Args:
        graph: what depends on what.
        lost: bool `[num_vertices, ...]`, vertices that are dead, or that are zero.
        passes: bool `[num_edges]`, or with as many axes, edges along which other vertices than joints are lost.
    """
    additive, passes, is_external = (along(each, lost) for each in (graph.additive, passes, graph.num_external > 0))
    is_lost = lost[graph.senders]
    found = _any_at(graph.receivers, jnp.where(additive[graph.receivers], ~is_lost, passes & is_lost), len(lost))
    return jnp.where(additive, ~(found | is_external), found)


def read(graph: DependenceGraph, working: jax.Array) -> jax.Array:
    """Returns which vertices are outputs or read by some that work, bool `[num_vertices, ...]` both ways."""
    is_output = jnp.zeros(len(working), bool).at[graph.outputs].set(True)
    return along(is_output, working) | _any_at(graph.senders, working[graph.receivers], len(working))


def along(values: ArrayLike, like: jax.Array) -> jax.Array:
    """Returns an array with axes of length 1 added at its end, until it has as many as another one."""
    return jnp.expand_dims(jnp.asarray(values), range(np.ndim(values), like.ndim))


def _any_at(indices: ArrayLike, values: jax.Array, num: int) -> jax.Array:
    """Returns whether any of the values with equal index is true, bool `[num, ...]`."""
    return jnp.zeros((num, *values.shape[1:]), bool).at[jnp.asarray(indices)].max(values)
