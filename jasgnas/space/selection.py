"""Which groups go: the greedy selection of H2SPG inside `jax.jit`, without host callbacks.

What may go together is judged on the same graph as in `validity.py`, how small a sub-network gets by the same costs as
in `sizes.py`.
"""

from collections.abc import Callable
from functools import partial
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

# Multiply-adds exceed int32, and JAX has no int64 by default: sizes are written with digits in this base, few enough
# bits each that half a million of them can be summed, and enough digits for an int64.
_DIGIT_BITS = 12
_NUM_DIGITS = 6


class SizeCosts(NamedTuple):
    """What segments and savings count in one measure, see `Measure`, as the arrays that `take_to_size` adds up.

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
    shifts = _DIGIT_BITS * np.arange(_NUM_DIGITS)
    return (np.asarray(sizes, np.int64)[..., None] >> shifts & (1 << _DIGIT_BITS) - 1).astype(np.int32)


def select_redundant(
    graph: DependenceGraph,
    critical: ArrayLike,
    scores: jax.Array,
    take: TakeFn,
    fallback: jax.Array,
    accepted: jax.Array,
) -> jax.Array:
    """Returns a valid set of groups that meets a target, chosen greedily by falling score.

    Groups are visited by falling score (ties: the lower index first; NaN last) and accepted if the network stays valid
    without them and all those accepted before, as in H2SPG (arXiv 2305.18030, section 3.2), until the target is met.
    Valid sets are closed under taking subsets but are no matroid, so the greedy order can end in a set that is maximal
    and yet too small: then the best-scoring members of `fallback` are taken. Pure and without host callbacks: runs
    inside `jax.jit`, and equal on every device that holds equal scores.

    Args:
        graph: what depends on what; its arrays may be traced.
        critical: `critical_vertices(graph)`, bool `[num_vertices]`; a visit ends as soon as one of them dies.
        scores: float `[num_groups]`, larger is removed sooner.
        take: the target.
        fallback: bool `[num_groups]`, a valid set that meets the target and contains `accepted`.
        accepted: bool `[num_groups]`, a valid set that must be part of the result.

    Returns:
        The selected groups, bool `[num_groups]`.
    """
    order = falling_order(scores, accepted)
    selected, is_met = take(order, _accept_greedily(graph, jnp.asarray(critical), order))
    return accepted | jax.lax.cond(is_met, lambda: selected, lambda: take(order, jnp.asarray(fallback))[0])


def falling_order(scores: jax.Array, accepted: jax.Array) -> jax.Array:
    """Returns the group indices, those `accepted` (bool `[num_groups]`) first, then by falling score, NaN last."""
    return jnp.lexsort((-scores, ~accepted))


def take_number(order: jax.Array, eligible: jax.Array, num: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes the first `num` groups, see `TakeFn`."""
    candidates = eligible[order]
    taken = candidates & (jnp.cumsum(candidates) <= num)
    return jnp.zeros_like(eligible).at[order].set(taken), jnp.sum(taken) == num


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
    is_output = jnp.zeros(graph.group.shape, bool).at[graph.outputs].set(True)
    spread = partial(_spread_zeros, graph, is_output)

    def is_small_enough(taken: jax.Array, zero: jax.Array, useful: jax.Array) -> jax.Array:
        counted = _sum_at(graph.segment, useful & ~zero, len(costs.segments)) > 0
        saved = taken[costs.saving_group] & counted[costs.saving_segment]
        return ~_is_positive(_total(counted, costs.segments) - _total(saved, costs.savings) - size)

    def is_unfinished(shrinking: _Shrinking) -> jax.Array:
        return (shrinking.position < jnp.sum(eligible)) & ~shrinking.is_met

    def visit(shrinking: _Shrinking) -> _Shrinking:
        group = visits[shrinking.position]
        taken = shrinking.taken.at[group].set(True)
        zero, useful = spread(shrinking.zero | (graph.group == group), shrinking.useful)
        return _Shrinking(shrinking.position + 1, taken, zero, useful, is_small_enough(taken, zero, useful))

    nothing = jnp.zeros_like(is_output)
    start = _Shrinking(jnp.int32(0), jnp.zeros_like(eligible), nothing, ~nothing, jnp.bool_(False))
    end = jax.lax.while_loop(is_unfinished, visit, start)

    def give_back(number: jax.Array, taken: jax.Array) -> jax.Array:
        fewer = taken.at[visits[end.position - 1 - number]].set(False)
        is_taken = jnp.append(fewer, False)[graph.group]  # −1, no group, is the last entry
        return jnp.where(is_small_enough(fewer, *spread(is_taken, ~nothing)), fewer, taken)

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


def _spread_zeros(
    graph: DependenceGraph, is_output: jax.Array, zero: jax.Array, useful: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns which vertices are zero and which are useful once zeros have spread, bool `[num_vertices]` each.

    Removals add up, so vertices only ever become zero and useless: it is enough to go on from what is known.

    Args:
        graph: what depends on what.
        is_output: bool `[num_vertices]`.
        zero: bool `[num_vertices]`, vertices known to be zero.
        useful: bool `[num_vertices]`, vertices not known to be useless.
    """
    num_vertices = zero.shape[0]
    # A joint is silenced by all of its inputs, another vertex by any one that passes zeros on.
    counts = graph.additive[graph.receivers] | graph.passes_zeros
    inputs = _sum_at(graph.receivers, jnp.ones_like(graph.senders), num_vertices) + graph.num_external
    needed = jnp.where(graph.additive, inputs, 1)

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        zero, useful, _ = carry
        num_zero = _sum_at(graph.receivers, counts & zero[graph.senders], num_vertices)
        num_using = _sum_at(graph.senders, (useful & ~zero)[graph.receivers], num_vertices)
        silent = num_zero >= needed
        used = is_output | (num_using > 0)
        return zero | silent, useful & used, jnp.any((silent & ~zero) | (useful & ~used))

    return jax.lax.while_loop(lambda carry: carry[2], step, (zero, useful, jnp.bool_(True)))[:2]


def _total(counted: jax.Array, sizes: ArrayLike) -> jax.Array:
    """Returns the sum of the sizes that count, as digits that may exceed their base, int32 `[num_digits]`."""
    return jnp.sum(jnp.where(counted[:, None], sizes, 0), axis=0)


def _is_positive(digits: jax.Array) -> jax.Array:
    """Returns whether a number is positive whose digits, the lowest first, may be negative or exceed their base."""
    carry = jnp.int32(-1)  # it is if one less than it is not negative
    for digit in digits:
        carry = (digit + carry) >> _DIGIT_BITS
    return carry >= 0


class _Search(NamedTuple):
    """State of the greedy selection.

    Attributes:
        position: int32, place in the order of the group to visit next.
        accepted: bool `[num_groups]`, accepted groups.
        alive: bool `[num_vertices]`, what is alive without them.
        critical: bool `[num_vertices]`, vertices known to be needed by an output whatever else is accepted.
    """

    position: jax.Array
    accepted: jax.Array
    alive: jax.Array
    critical: jax.Array


def _accept_greedily(graph: DependenceGraph, critical: jax.Array, order: jax.Array) -> jax.Array:
    """Returns the groups that a greedy visit of all groups in `order` accepts, bool `[num_groups]`."""
    num_groups = order.shape[0]

    def visit(search: _Search) -> _Search:
        group = order[search.position]
        own = graph.group == group
        alive = _spread_death(graph, search.alive & ~own, search.critical)
        valid = ~jnp.any(search.critical & ~alive)
        return _Search(
            search.position + 1,
            search.accepted.at[group].set(valid),
            jnp.where(valid, alive, search.alive),
            # Removals only ever add up: what could not be spared now can never be, and later visits end as soon as
            # they reach it.
            search.critical | (own & ~valid),
        )

    start = _Search(jnp.int32(0), jnp.zeros(num_groups, bool), jnp.ones_like(critical), critical)
    return jax.lax.while_loop(lambda search: search.position < num_groups, visit, start).accepted


def _spread_death(graph: DependenceGraph, alive: jax.Array, critical: jax.Array) -> jax.Array:
    """Returns what is still alive once death has spread, or has reached a critical vertex, bool `[num_vertices]`.

    Args:
        graph: what depends on what.
        alive: bool `[num_vertices]`, vertices not yet known to be dead.
        critical: bool `[num_vertices]`, vertices whose death makes the rest of the answer irrelevant.
    """
    num_vertices = alive.shape[0]
    num_inputs = _sum_at(graph.receivers, jnp.ones_like(graph.senders), num_vertices)

    def spreading(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        alive, changed = carry
        return changed & jnp.all(alive | ~critical)

    def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        alive, _ = carry
        num_alive = _sum_at(graph.receivers, alive[graph.senders], num_vertices)
        fed = jnp.where(graph.additive, num_alive + graph.num_external > 0, num_alive == num_inputs)
        return alive & fed, jnp.any(alive & ~fed)

    return jax.lax.while_loop(spreading, step, (alive, jnp.bool_(True)))[0]


def _sum_at(indices: ArrayLike, values: jax.Array, num: int) -> jax.Array:
    """Returns the sums of the values with equal index, int32 `[num]`."""
    return jax.ops.segment_sum(values.astype(jnp.int32), jnp.asarray(indices), num)
