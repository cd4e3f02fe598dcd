"""Which groups go where scores are in units of the loss: a smaller network at little cost, inside `jax.jit`.

Minus such a score is the rise of the loss that the removal of a group costs, and the target is a size. Which set costs
least is a knapsack problem with constraints, so it is searched for greedily, by rising cost per unit of size saved, and
then improved. `selection.py` selects by all other scores, and judges for both what is valid and how large it is.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jasgnas.space.selection import (
    NUM_DIGITS,
    Selection,
    SizeCosts,
    along,
    from_digits,
    is_positive,
    read,
    silenced,
    size_without,
    spares,
    vertices_of,
)
from jasgnas.space.validity import DependenceGraph

# What groups save is counted anew after every 32nd part of them has been accepted: after every group in a network of
# up to 63, and at about 32 points in a larger one.
_NUM_RENEWALS = 32

# Exchanges take time in proportion to the groups taken, times the candidates to put in the place of one, times the
# passes over them; without these bounds all pairs of groups would be tried until no exchange is left. A network of up
# to 32 groups is below the first of them.
_MAX_CANDIDATES = 32
_MAX_PASSES = 6


def select_by_cost(
    graph: DependenceGraph,
    critical: ArrayLike,
    costs: SizeCosts,
    scores: jax.Array,
    size: jax.Array,
    share: jax.Array,
    fallback: jax.Array,
    accepted: jax.Array,
    is_fixed: bool | jax.Array = False,
) -> Selection:
    """Selects groups that cost little and without which the sub-network is not above a size.

    The cost of a group is minus its score. Groups whose cost is not positive come first, by falling saving; then the
    others, by rising cost per unit saved. What a group saves is counted given what is gone, dead branches included, and
    anew as more goes. A group that costs something and saves nothing comes after these, and one whose cost is NaN last.
    Groups are visited in this order and accepted if the network stays valid, until the size is met.

    Then what is not needed is given back, the highest cost first, and a group is exchanged for one of lower cost where
    that leaves the target met and the network valid, until no exchange is found. In large networks this is bounded: of
    all groups that could take the place of one, the 32 cheapest are tried, those first that seem to save enough, and
    there are at most four passes over the groups.

    One large group can be the best by its ratio and yet cost more than two small ones that do as well. So all of this
    is done once more with the groups visited by rising cost alone, and the set that costs less in sum is selected: it
    costs no more than what a greedy visit by falling score ends with.

    The greedy visit can end in a set that cannot grow and does not meet the size: then it visits `fallback` alone. With
    several rounds, the share of a round is taken from what is planned by the same rule. Pure and without host
    callbacks, as `select_redundant`.

    Args:
        graph: what depends on what; its arrays may be traced.
        critical: `critical_vertices(graph)`, bool `[num_vertices]`; without any, validity is ignored.
        costs: what each segment counts.
        scores: float `[num_groups]`, minus the rise of the loss when a group goes.
        size: the target as digits, int `[num_digits]`.
        share: the size that this round has to meet, not below `size`, int `[num_digits]`.
        fallback: bool `[num_groups]`, a valid set that meets the target and contains `accepted`.
        accepted: bool `[num_groups]`, a valid set that must be part of the result.
        is_fixed: whether `fallback` is what is planned, whatever the scores say.

    Returns:
        What is planned, this round's share of it, and the group that came next.
    """
    rises = -scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    problem = _Problem(graph, jnp.asarray(critical), costs, rises)
    everything = jnp.ones_like(accepted)
    # Up to seven selections by one piece of code, which is compiled once: by both orders, of the target among all
    # groups, if that fails among `fallback`, and of the share among what is planned; and at last of one more group, for
    # a size that cannot be met.
    among_fallback, among_planned, last = 2, 4, 6
    unreachable = jnp.zeros_like(size).at[0].set(-1)

    def select(stage: _Stage) -> _Stage:
        number, best, planned, redundant, _ = stage
        is_fallback = (number >= among_fallback) & (number < among_planned)
        is_share = (number >= among_planned) & (number < last)
        is_last, is_first = number == last, number % 2 == 0
        goal = _Goal(
            size=jnp.select([is_share, is_last], [share, unreachable], size),
            start=jnp.where(is_last, planned, accepted),
            eligible=jnp.select([is_fallback, is_share], [fallback, planned], everything),
            exchangeable=jnp.where(is_share, planned, everything),
            most=jnp.where(is_last, 1, len(rises)),
            by_ratio=is_first,
        )
        found = problem.take(goal)
        is_better = is_first | (found.is_met & ~(best.is_met & (best.cost <= found.cost)))
        best = jax.tree.map(partial(jnp.where, is_better), found, best)
        following = jnp.where((number == 1) & best.is_met, among_planned, number + 1)
        following = jnp.where(following == among_planned, after_plan, following)
        more = found.taken & ~planned
        return _Stage(
            following,
            best,
            jnp.where(number < among_planned, best.taken, planned),
            jnp.where(is_last, redundant, best.taken),
            jnp.where(is_last & jnp.any(more), jnp.argmax(more), -1).astype(jnp.int32),
        )

    nothing = _Taken(accepted, jnp.bool_(False), jnp.zeros([], rises.dtype))
    after_plan = jnp.where(jnp.all(share == size), last, among_planned)
    planned = jnp.where(is_fixed, fallback, accepted)
    start = _Stage(jnp.where(is_fixed, after_plan, 0), nothing, planned, planned, jnp.int32(-1))
    end = jax.lax.while_loop(lambda stage: stage.number <= last, select, start)
    return Selection(end.planned, end.redundant, end.runner_up)


class _Taken(NamedTuple):
    """What one selection takes.

    Attributes:
        taken: bool `[num_groups]`, the groups.
        is_met: bool, whether the size is met.
        cost: float, the sum of their costs.
    """

    taken: jax.Array
    is_met: jax.Array
    cost: jax.Array


class _Stage(NamedTuple):
    """State of `select_by_cost`.

    Attributes:
        number: int32, which selection is next.
        best: the better of the two selections that are compared.
        planned: as in `Selection`, as are the others, as far as they are known.
        redundant: see there.
        runner_up: see there.
    """

    number: jax.Array
    best: _Taken
    planned: jax.Array
    redundant: jax.Array
    runner_up: jax.Array


class _Goal(NamedTuple):
    """What one selection is to reach, and what it may take.

    Attributes:
        size: the target as digits, int `[num_digits]`.
        start: bool `[num_groups]`, groups that are gone and stay so.
        eligible: bool `[num_groups]`, groups that are visited.
        exchangeable: bool `[num_groups]`, groups that may take the place of one that was taken.
        most: int32, how many groups to accept at most.
        by_ratio: bool, whether groups are visited by cost per unit saved, or by cost alone.
    """

    size: jax.Array
    start: jax.Array
    eligible: jax.Array
    exchangeable: jax.Array
    most: jax.Array
    by_ratio: jax.Array


class _Removal(NamedTuple):
    """What follows from the removal of some groups; of several removals, further axes tell them apart.

    Attributes:
        lost: bool `[num_vertices, 2, ...]`, vertices that are not alive, and those that are zero.
        useful: bool `[num_vertices, ...]`, vertices that an output depends on.
        size: int32 `[num_digits, ...]`, size of what is left, as digits that may exceed their base.
    """

    lost: jax.Array
    useful: jax.Array
    size: jax.Array


class _Walk(NamedTuple):
    """State of a selection: a walk through the groups in some order, on which one after the other is tried.

    Attributes:
        number: int32, 0 for the greedy visit, and then one more for each pass that improves what is taken.
        position: int32, place in the order of the group that is next.
        order: int32 `[num_groups]`, group indices.
        savings: float32 `[num_groups]`, what each group saves, as counted last.
        taken: bool `[num_groups]`, groups that are gone.
        removal: what follows from that; no longer kept up to date once the greedy visit is over.
        is_open: bool `[num_groups]`, groups still to be visited.
        is_met: bool, whether the size is met.
        num_taken: int32, groups accepted by the greedy visit.
        changed: bool, whether the latest pass has changed what is taken.
    """

    number: jax.Array
    position: jax.Array
    order: jax.Array
    savings: jax.Array
    taken: jax.Array
    removal: _Removal
    is_open: jax.Array
    is_met: jax.Array
    num_taken: jax.Array
    changed: jax.Array


@dataclass(frozen=True, eq=False)
class _Problem:
    """What a selection is to be made from; the attributes are those of `select_by_cost`, but for one.

    Attributes:
        rises: float `[num_groups]`, the rise of the loss when a group goes: what it costs.
    """

    graph: DependenceGraph
    critical: jax.Array
    costs: SizeCosts
    rises: jax.Array

    def take(self, goal: _Goal) -> _Taken:
        """Visits groups until a size is met, gives back what is not needed, and makes exchanges."""
        num_groups = len(self.rises)
        interval = max(1, num_groups // _NUM_RENEWALS)
        by_falling_cost = jnp.argsort(self.rises)[::-1]  # NaN first

        def is_visiting(walk: _Walk) -> jax.Array:
            return (walk.number == 0) & jnp.any(walk.is_open) & ~walk.is_met & (walk.num_taken < goal.most)

        def is_improving(walk: _Walk) -> jax.Array:
            is_due = (walk.number <= 2) | (walk.changed & (walk.number <= _MAX_PASSES))
            return (walk.number > 0) & walk.is_met & is_due

        def walk_on(walk: _Walk) -> _Walk:
            """Visits groups until their savings are to be counted anew, or makes one pass over all of them."""
            savings = jax.lax.cond(walk.number == 0, self._savings, lambda walk: walk.savings, walk)
            order = jnp.where(walk.number == 0, self._order(goal, savings, walk.is_open), by_falling_cost)
            until = walk.num_taken + interval

            def is_unfinished(walk: _Walk) -> jax.Array:
                return jnp.where(
                    walk.number == 0, is_visiting(walk) & (walk.num_taken < until), walk.position < num_groups
                )

            walk = walk._replace(position=jnp.int32(0), order=order, savings=savings, changed=jnp.bool_(False))
            walk = jax.lax.while_loop(is_unfinished, lambda walk: self._next(goal, walk), walk)
            return walk._replace(number=walk.number + ~is_visiting(walk))

        start = _Walk(
            number=jnp.int32(0),
            position=jnp.int32(0),
            order=by_falling_cost,
            savings=jnp.zeros(num_groups, jnp.float32),
            taken=goal.start,
            removal=self._nothing,
            is_open=goal.eligible & ~goal.start,
            is_met=jnp.bool_(False),
            num_taken=jnp.int32(0),
            changed=jnp.bool_(False),
        )
        end = jax.lax.while_loop(lambda walk: is_visiting(walk) | is_improving(walk), walk_on, start)
        return _Taken(end.taken, end.is_met, jnp.sum(jnp.where(end.taken, self._known_rises, 0)))

    def _order(self, goal: _Goal, savings: jax.Array, is_open: jax.Array) -> jax.Array:
        """Returns the group indices in the order of the greedy visit, those that are open before all others."""
        free, costly = self.rises <= 0, self.rises > 0
        # As parts of the largest saving, so that the ratio of a tiny cost to a large number is not rounded to zero.
        ratios = self.rises / jnp.where(savings > 0, savings / jnp.maximum(jnp.max(savings), 1), 1)
        kinds = jnp.select([free, costly & (savings > 0), costly], [0, 1, 2], 3)
        by_ratio = jnp.lexsort((-savings, jnp.where(costly, ratios, 0), kinds, ~is_open))
        return jnp.where(goal.by_ratio, by_ratio, jnp.lexsort((-savings, self.rises, ~is_open)))

    def _next(self, goal: _Goal, walk: _Walk) -> _Walk:
        """Visits, or reconsiders, the next group of a walk."""
        group = walk.order[walk.position]
        walk = walk._replace(position=walk.position + 1)
        is_wanted = (walk.number == 0) | (walk.taken[group] & ~goal.start[group])
        return jax.lax.cond(is_wanted, lambda: self._try(goal, walk, group), lambda: walk)

    def _try(self, goal: _Goal, walk: _Walk, group: jax.Array) -> _Walk:
        """Takes a group if the network stays valid, or gives it back, or exchanges it, if the size is met then."""
        is_visit = walk.number == 0
        taken = walk.taken.at[group].set(is_visit)
        known = jax.tree.map(partial(jnp.where, is_visit), walk.removal, self._nothing)
        removal = self._follow(known, taken)
        is_met = ~is_positive(removal.size - goal.size)
        is_right = jnp.where(is_visit, self._is_valid(removal), is_met)
        # Not in the first pass, which gives back, nor in the last: after an exchange a group may be one too many.
        exchanges = (walk.number > 1) & (walk.number < _MAX_PASSES) & ~is_met
        taken = jax.lax.cond(
            exchanges,
            lambda: self._exchange(goal, taken, removal, group, walk.savings),
            lambda: jnp.where(is_right, taken, walk.taken),
        )
        return walk._replace(
            taken=taken,
            removal=jax.tree.map(partial(jnp.where, is_right), removal, walk.removal),
            is_open=walk.is_open.at[group].set(False),
            is_met=walk.is_met | (is_right & is_met),
            num_taken=walk.num_taken + (is_visit & is_right),
            changed=walk.changed | jnp.any(taken != walk.taken),
        )

    def _exchange(
        self, goal: _Goal, taken: jax.Array, removal: _Removal, group: jax.Array, savings: jax.Array
    ) -> jax.Array:
        """Returns the groups taken and the cheapest one that can take the place of a group, or else that.

        Args:
            goal: what is to be reached.
            taken: bool `[num_groups]`, what is taken but for the group.
            removal: what follows from that.
            group: int32, the group that is to be kept if possible.
            savings: float32 `[num_groups]`, what groups save, roughly.
        """
        num_groups = len(self.rises)
        rises = self._known_rises
        is_cheaper = goal.exchangeable & ~taken & (rises < rises[group])
        needed = from_digits(removal.size - goal.size)
        candidates = jnp.lexsort((rises, savings < needed, ~is_cheaper))[:_MAX_CANDIDATES]
        trials = self._follow(removal, taken[:, None] | (jnp.arange(num_groups)[:, None] == candidates))
        is_met = ~is_positive(trials.size - goal.size[:, None])
        costs = jnp.where(is_cheaper[candidates] & is_met & self._is_valid(trials), rises[candidates], jnp.inf)
        best = jnp.min(jnp.where(costs == jnp.min(costs), candidates, num_groups))
        return taken.at[jnp.where(jnp.min(costs) < jnp.inf, best, group)].set(True)

    def _savings(self, walk: _Walk) -> jax.Array:
        """Returns what each group saves given what is gone, float32 `[num_groups]`: to order groups, not to judge."""
        num_groups = len(self.rises)
        # The last column is for what is left if no more goes.
        more = jnp.eye(num_groups, num_groups + 1, dtype=bool)
        size = self._follow(walk.removal, walk.taken[:, None] | more).size
        return from_digits(size[:, -1:] - size[:, :-1])

    def _is_valid(self, removal: _Removal) -> jax.Array:
        return spares(removal.lost[:, 0], self.critical)

    @property
    def _known_rises(self) -> jax.Array:
        """The rises, infinite where they are NaN."""
        return jnp.where(jnp.isnan(self.rises), jnp.inf, self.rises)

    @property
    def _nothing(self) -> _Removal:
        """What follows from the removal of no group, but for the size, which is 0."""
        nothing = jnp.zeros((len(self.critical), 2), bool)
        return _Removal(nothing, ~nothing[:, 0], jnp.zeros(NUM_DIGITS, jnp.int32))

    def _follow(self, known: _Removal, taken: jax.Array) -> _Removal:
        """Returns what follows from the removal of some groups.

        Removals add up: it is enough to go on from what is known to follow from a part of them. Death and zeros spread
        alike, but for the edges that they pass, so they are followed together.

        Args:
            known: what follows from a part of the groups.
            taken: bool `[num_groups, ...]`.
        """
        gone = vertices_of(self.graph, taken)
        lost = gone[:, None] | along(known.lost, gone[:, None])
        useful = along(known.useful, gone) & jnp.ones_like(gone)
        every = jnp.ones_like(self.graph.passes_zeros)
        passes = along(jnp.stack([every, self.graph.passes_zeros], axis=1), lost)

        def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            lost, useful, _ = carry
            more, fewer = lost | silenced(self.graph, lost, passes), useful & read(self.graph, useful & ~lost[:, 1])
            return more, fewer, jnp.any(more != lost) | jnp.any(fewer != useful)

        lost, useful, _ = jax.lax.while_loop(lambda carry: carry[2], step, (lost, useful, jnp.bool_(True)))
        return _Removal(lost, useful, size_without(self.graph, self.costs, taken, lost[:, 1], useful))
