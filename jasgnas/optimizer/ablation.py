"""Measured ablation: by how much the loss of a batch rises without groups.

Scores that look at derivatives say what a small change of a group does. What becomes of the loss when the group is gone
is measured here, by evaluating it, inside the jitted training step.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jasgnas.checks import loss_value
from jasgnas.errors import ArgumentError
from jasgnas.optimizer.layout import GroupLayout, grouped_leaves, with_grouped_leaves, without_groups
from jasgnas.space.candidates import Candidates

FORWARD_PASSES = 0.5
"""Evaluations of the loss per scored update, on average, unless told otherwise."""

MEASURED_BETWEEN = 3
"""So often at least every group is measured from one set on trial to the next, unless told otherwise: what the loss
rises by varies from batch to batch, and where it is measured less often, groups by themselves are the better guide."""


class Loss(NamedTuple):
    """The loss of the current batch, as a function of which groups are zero.

    Attributes:
        layout: where the groups lie.
        params: the parameters.
        of_params: the loss of any such parameters, a float scalar.
        value: the loss of these, None if it is to be evaluated.
    """

    layout: GroupLayout
    params: optax.Params
    of_params: Callable[[optax.Params], jax.Array]
    value: ArrayLike | None

    @classmethod
    def of(
        cls,
        layout: GroupLayout,
        params: optax.Params,
        value_fn: Callable[..., Any],
        extra: Mapping[str, Any],
        value: ArrayLike | None,
    ) -> "Loss":
        """Returns the loss that `update` is given.

        Args:
            layout: where the groups lie.
            params: the parameters.
            value_fn: returns the loss, or a tuple that starts with it, given parameters and further arguments by name.
            extra: further arguments of `update`; those that `value_fn` names are handed to it.
            value: what it returns for the parameters, if that is known.

        Raises:
            ArgumentError: `value_fn` is no function.
        """
        if not callable(value_fn):
            raise ArgumentError(
                f"value_fn must be a function of the parameters that returns the loss, got {value_fn!r}; the loss "
                "itself is value="
            )
        named = inspect.signature(value_fn).parameters.values()
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in named)
        names = {parameter.name for parameter in named}
        given = {name: each for name, each in extra.items() if takes_all or name in names}

        def of_params(params: optax.Params) -> jax.Array:
            return loss_value(value_fn(params, **given))

        return cls(layout, params, of_params, value)

    def rises(self, gone: jax.Array, number: int | jax.Array | None = None) -> jax.Array:
        """Returns by how much the loss rises without each of some sets of groups.

        Args:
            gone: bool `[num_sets, num_groups]`.
            number: how many of them to evaluate, the first ones; all if None.

        Returns:
            Float `[num_sets]`: infinite where the loss is not finite; NaN where that with all groups is not, and for
            sets that are not evaluated.
        """
        xs = grouped_leaves(self.layout, self.params)
        own = 1 if self.value is None else 0
        # One evaluation is compiled, whatever their number; without a value the first one is of all groups.
        sets = jnp.concatenate([jnp.zeros_like(gone[:own]), gone])

        def evaluated(index: jax.Array, losses: jax.Array) -> jax.Array:
            # Otherwise a compiler makes room for what of the parameters does not depend on the index, before the loop.
            inside, is_gone = jax.lax.optimization_barrier((xs, sets[index]))
            left = without_groups(self.layout, inside, is_gone)
            return losses.at[index].set(self.of_params(with_grouped_leaves(self.layout, self.params, left)))

        dtype = jax.eval_shape(self.of_params, self.params).dtype
        number = len(gone) if number is None else number
        losses = jax.lax.fori_loop(0, number + own, evaluated, jnp.full(len(sets), jnp.nan, dtype))
        before = losses[0] if self.value is None else self.value
        is_evaluated = jnp.arange(len(gone)) < number
        rises = jnp.where(jnp.isfinite(losses[own:]), losses[own:] - before, jnp.inf)
        return jnp.where(is_evaluated & jnp.isfinite(before), rises, jnp.nan)


class Units(NamedTuple):
    """What the loss is measured without: each structure and each gate by itself, and channels by quarters.

    There are many channels, and without one of them a loss hardly changes. So those of each dimension are dealt into
    quarters at random. What the loss rises by without a quarter is shared among its channels by the squared derivatives
    of their gates, as in `scores.gate`: of a quarter with derivatives of 3 and 1, the first channel takes nine tenths.

    Attributes:
        of_groups: int `[num_groups]`, the unit of each group.
        number: how many units there are.
        has_channels: whether some are quarters, so that there is something to share.
    """

    of_groups: np.ndarray
    number: int
    has_channels: bool

    @classmethod
    def of(cls, candidates: Candidates) -> "Units":
        """Returns the units of some candidates, the structures first; equal candidates have equal ones."""
        found = np.arange(candidates.num_structures)
        if candidates.channels is None:
            return cls(found, len(found), False)
        dimension_of = candidates.channels.dimension_of
        order = np.lexsort((np.random.default_rng(0).random(len(dimension_of)), dimension_of))
        first = np.searchsorted(dimension_of[order], dimension_of[order])
        quarters = np.empty_like(dimension_of)
        quarters[order] = (np.arange(len(order)) - first) % _PARTS
        of_channels = np.unique(_PARTS * dimension_of + quarters, return_inverse=True)[1]
        of_groups = np.concatenate([found, len(found) + of_channels])
        return cls(of_groups, int(of_groups.max(initial=-1)) + 1, True)

    def total(self, values: jax.Array) -> jax.Array:
        """Returns the sums over the groups of each unit, `[num_units]`, of numbers or bools `[num_groups]`."""
        values = values.astype(jnp.result_type(values, jnp.int32))
        return jax.ops.segment_sum(values, self.of_groups, self.number) if self.has_channels else values

    def shared(self, rises: jax.Array, is_concerned: ArrayLike, gates: jax.Array | None) -> jax.Array:
        """Returns what of the rises of units each group has, float `[num_groups]`.

        Args:
            rises: float `[num_units]`.
            is_concerned: the groups that the rises are shared among, bool `[num_groups]`.
            gates: derivatives of the loss by the gates of the groups, float `[num_groups]`; unused without channels.
        """
        if not self.has_channels:
            return rises
        assert gates is not None
        is_shared = is_concerned & (self._sizes[self.of_groups] > 1)
        gates = jnp.where(is_shared, jnp.abs(gates), 0)
        # Divided by the largest first, so that no square overflows or vanishes.
        largest = jax.ops.segment_max(gates, self.of_groups, self.number)[self.of_groups]
        weights = (gates / jnp.where(largest == 0, 1, largest)) ** 2
        # Whoever is alone has all of it, and a quarter that nothing depends on is shared evenly.
        weights = jnp.where(largest == 0, jnp.where(is_concerned, 1.0, 0), weights)
        whole = self.total(weights)[self.of_groups]
        return rises[self.of_groups] * weights / jnp.where(whole == 0, 1, whole)

    @property
    def _sizes(self) -> np.ndarray:
        """Number of groups of each unit, int `[num_units]`."""
        return np.bincount(self.of_groups, minlength=self.number)


def finite_rises(rises: ArrayLike) -> jax.Array:
    """Returns rises of the loss on one batch, infinite ones as numbers that are very much larger than all others."""
    rises = jnp.asarray(rises)
    most = jnp.max(jnp.where(jnp.isfinite(rises), jnp.abs(rises), 0))
    return jnp.where(jnp.isinf(rises), _MUCH * (1 + most), rises)


def costs_beside(plan_rise: ArrayLike, rises: ArrayLike, is_planned: ArrayLike) -> jax.Array:
    """Returns what groups cost beside a set that is planned to go, float `[n]`, by the loss of one batch.

    A group of the plan costs by how much less the loss rises when it stays, another one by how much more it rises
    without it, too. NaN where both losses are not finite, or that without the plan is not.

    Args:
        plan_rise: rise of the loss without the plan, float scalar, as `Loss.rises` returns it.
        rises: the same without the plan and one group more or less, float `[n]`.
        is_planned: whether that is a group of the plan, bool `[n]`.
    """
    is_planned = jnp.asarray(is_planned)
    is_known = jnp.isfinite(plan_rise) | (is_planned & jnp.isfinite(rises))
    finite = finite_rises(jnp.append(jnp.asarray(plan_rise), jnp.asarray(rises)))
    differences = finite[1:] - finite[0]
    return jnp.where(is_known, jnp.where(is_planned, -differences, differences), jnp.nan)


def dearest_group(scores: ArrayLike, planned: ArrayLike) -> jax.Array:
    """Returns the group of a plan whose return lowers the loss most, int32, -1 if that is known of none.

    Args:
        scores: minus what each group of the plan costs beside the others, see `costs_beside`; NaN where not known.
        planned: the groups to choose from, bool `[num_groups]`.
    """
    costs = jnp.where(jnp.asarray(planned) & ~jnp.isnan(scores), -jnp.asarray(scores), -jnp.inf)
    return jnp.where(jnp.any(costs > -jnp.inf), jnp.argmax(costs), -1).astype(jnp.int32)


def scores_of_exchange(scores: ArrayLike, planned: ArrayLike, exchanged: ArrayLike) -> jax.Array:
    """Returns the scores by which others are selected in the place of one group of a plan, the rest of which goes.

    Others are measured beside the plan without that group, since what they cost beside all of it may be misleading.
    Let two branches that compute alike both be planned to go. Each has a high cost, and what reads their sum has none,
    so that both would return, or the reader go in the place of one. Without one of them costs are right.

    Example:
        >>> scores_of_exchange([-1.5, -1.5, 0.25], [True, True, False], 0).tolist()
        [0.0, 4.25, 0.25]

    Args:
        scores: minus how much more the loss rises if a group goes in the place of the one that is exchanged.
        planned: the plan, bool `[num_groups]`.
        exchanged: int, the group that is exchanged; if it is -1, the scores are returned as they are.
    """
    scores, index = jnp.asarray(scores), np.arange(np.shape(scores)[0])
    most = 1 + jnp.sum(jnp.where(jnp.isfinite(scores), jnp.abs(scores), 0))
    found = jnp.where(index == exchanged, 0, jnp.where(jnp.asarray(planned), most, scores))
    return jnp.where(jnp.asarray(exchanged) < 0, scores, found)


def tied(scores: jax.Array) -> jax.Array:
    """Returns which scores equal another one but for rounding, bool `[n]`; none that are zero.

    Example:
        >>> tied(jnp.array([-0.0405, -2.0, -0.0405001, 0.0, 0.0])).tolist()
        [True, False, True, False, False]

    Args:
        scores: float `[n]`, none above zero.
    """
    order = jnp.argsort(scores)
    ordered = scores[order]
    is_near = jnp.diff(ordered) <= _TIE * jnp.abs(ordered[:-1])
    is_near = jnp.append(is_near, False) | jnp.append(False, is_near)
    return jnp.zeros_like(is_near).at[order].set(is_near & (ordered != 0))


def with_ties_broken(scores: jax.Array, rises: jax.Array) -> jax.Array:
    """Returns scores that tied, a little lower the more the loss rises without their group, float `[n]`.

    Example:
        >>> broken = with_ties_broken(jnp.array([-0.0405, -2.0, -0.0405001]), jnp.array([0.230, jnp.nan, 0.123]))
        >>> jnp.argsort(-broken).tolist()
        [2, 0, 1]

    Args:
        scores: float `[n]`, none above zero.
        rises: how much the loss rises, float `[n]`; NaN for groups that are not concerned.
    """
    is_concerned = ~jnp.isnan(rises)
    ranks = jnp.argsort(jnp.argsort(jnp.where(is_concerned, rises, jnp.inf)))
    return jnp.where(is_concerned, scores * (1 + 4 * _TIE * ranks), scores)


class Turns(NamedTuple):
    """Which evaluations of the loss are made while groups are scored.

    Attributes:
        number: how many groups are measured at a time.
        every: the updates from one time to the next.
        look_every: after how many updates a set may be selected on trial: every group was measured some times by then.
        num_measured: how many measurements there are before the first selection.
        compares: whether there are enough of them to measure sets of groups, too.
    """

    number: int
    every: int
    look_every: int
    num_measured: int
    compares: bool

    @classmethod
    def within(
        cls,
        num_updates: int,
        forward_passes: float,
        num_groups: int,
        knows_value: bool,
        look_every: int = 1,
        measured_between: int = MEASURED_BETWEEN,
    ) -> "Turns":
        """Returns as many turns as can be made, evenly.

        Args:
            num_updates: scored updates before the first selection.
            forward_passes: evaluations of the loss per update, on average.
            num_groups: how many groups there are to measure.
            knows_value: whether the loss with all groups is given.
            look_every: after how many updates a set is to be selected on trial, at least.
            measured_between: how often every group is measured in between, at least.
        """
        num_groups = max(num_groups, 1)
        own = 0 if knows_value else 1

        def turns(others: int) -> "Turns":
            most = int(num_updates * forward_passes) - others
            number = max(1, min(num_groups, most, max(_AT_A_TIME, int(forward_passes) - others)))
            every = math.ceil((number + others) / forward_passes)
            interval = max(look_every, math.ceil(measured_between * num_groups / number) * every)
            return cls(number, every, interval, num_updates // every * number, others > own)

        # Beside the groups, the set planned and the one on trial. First a set is found, then another one by what groups
        # are worth beside it, and then the two are compared.
        comparing = turns(own + 2)
        return comparing if comparing.look_every * 3 <= num_updates else turns(own)

    @classmethod
    def least_updates(cls, forward_passes: float, num_groups: int, knows_value: bool) -> int:
        """Returns the least number of scored updates that measure every group; arguments as of `within`."""

        def suffices(num_updates: int) -> bool:
            return cls.within(num_updates, forward_passes, num_groups, knows_value).num_measured >= num_groups

        return next(filter(suffices, itertools.count(1)))


_PARTS = 4
"""Of a dimension so many parts are measured, one at a time: few enough channels that the rest still works."""

_MUCH = 1000.0
"""How many times as large as all others a rise is taken to be that is infinite."""

_TIE = 1e-4
"""Scores that differ by a smaller part of them are equal: they are averages of squares of sums, in 32 bits."""

_AT_A_TIME = 6
"""So few that no update takes much longer than others, and so many that what is evaluated beside them is little."""
