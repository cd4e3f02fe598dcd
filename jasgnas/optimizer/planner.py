"""What is to go: planned, measured beside the plan, on trial, and at last selected.

`scores.py` says what a group is worth, `ablation.py` by how much the loss rises without groups. Here is decided when it
is evaluated without which of them, what is planned and tried out in the meantime, and what a round takes.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.optimizer.ablation import (
    Loss,
    Turns,
    Units,
    costs_beside,
    dearest_group,
    finite_rises,
    scores_of_exchange,
    tied,
    with_ties_broken,
)
from jasgnas.optimizer.phases import Phases
from jasgnas.optimizer.scores import GroupStats, Score
from jasgnas.optimizer.state import H2SPGState, outdated
from jasgnas.space.candidates import Candidates
from jasgnas.space.mixtures import Mixture
from jasgnas.space.selection import are_valid
from jasgnas.space.targets import Target
from jasgnas.space.validity import is_valid

_SETTLED = 10
"""The choice has settled if at most one in so many groups is new."""


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans what is to go, and selects it.

    Attributes:
        candidates: the groups.
        target: what must be gone by the end of each round.
        phases: when what is done.
        settle: whether a selection that settles is made early.
        forward_passes: how many evaluations of the loss a scored update may cost, on average.
        measured_between: how often every group is measured from one set on trial to the next, at least.
        hierarchical: whether the network must stay valid.
    """

    candidates: Candidates
    target: Target | Mixture
    phases: Phases
    settle: bool
    forward_passes: float
    measured_between: int
    hierarchical: bool

    @property
    def has_channels(self) -> bool:
        """Tells whether some of what is measured are quarters of dimensions, whose channels share what is found."""
        return self._units.has_channels

    def shortage(self, loss: Loss) -> str:
        """Returns what is missing for every group to be measured, nothing if there are updates enough."""
        turns, number = self._all_turns(loss), int(self._ablated.sum())
        if turns.num_measured >= number:
            return ""
        units = "groups and quarters of dimensions" if self._units.has_channels else "groups"
        least = Turns.least_updates(self.forward_passes, number, loss.value is not None)
        return (
            f"{self._num_updates} scored updates with forward_passes={self.forward_passes} measure "
            f"{turns.num_measured} {units}, and there are {number}: give selection_steps={least} (and warmup_steps), "
            "or more forward_passes"
        )

    def select(self, state: H2SPGState, score: Score, turns: Turns | None) -> H2SPGState:
        """Selects: on trial as often as is wanted, and where a round starts this round's share of what is planned.

        Where sets are compared, the plan is what was found to be the best, and is only found anew on trial; otherwise
        the whole target is planned anew around what is redundant already.
        """
        step, phases = state.step, self.phases
        compares = turns is not None and turns.compares
        # Not of channels, of which one matters little, nor if a choice is to settle.
        exchanges = compares and not self.settle and not self._units.has_channels
        starts = phases.starts_at(step - state.selected_at)
        may_look = (self.settle & (step < state.selected_at)) | compares
        every = phases.look_every if turns is None else turns.look_every
        looks = phases.looks_at(step, state.selected_at, every) & may_look & ~starts

        def select(old: H2SPGState) -> H2SPGState:
            state = self._with_better(old) if compares else old
            has_plan, is_new = jnp.any(state.trial) & compares, jnp.any(state.planned != old.planned)
            # An exchange for which no time is left on trial was measured all the same, if on fewer batches.
            is_fixed = has_plan & (is_new | (starts & (state.exchanged < 0)))
            # Nothing is known of a group without a score: it comes last.
            scores = jnp.where(state.num_scored != 0, state.scores, jnp.nan)
            found, redundant, runner_up = self.target.select(
                scores_of_exchange(scores, state.planned, state.exchanged) if exchanges else scores,
                phases.round_of(step - jnp.minimum(step, state.selected_at)),
                state.planned,
                state.redundant,
                # What groups are worth beside a new plan was not measured yet, nor was a set that would be found now.
                is_fixed,
                by_cost=score.is_cost,
                hierarchical=self.hierarchical,
            )
            is_settled = jnp.sum(found & ~state.trial) * _SETTLED <= jnp.sum(found)
            is_settled &= self.settle & (step < state.selected_at) & ~is_new
            is_taken = starts | (is_settled & ~has_plan)
            is_same = has_plan & jnp.all(found == state.trial)
            # Beside a plan a set is selected on trial, then one in which a single group of the plan is exchanged.
            stays = has_plan & ~(is_new | starts) & exchanges
            is_at_end = jnp.all(found == state.planned) | (is_same & (state.num_trials > 0))
            dearest = dearest_group(scores, state.planned & ~state.redundant)
            exchanged = jnp.where(state.exchanged < 0, dearest, jnp.where(is_at_end, -1, state.exchanged))
            exchanged = jnp.where(stays, exchanged, -1)
            # Removals do not add up: from here on it is measured anew, on what is left.
            is_outdated = is_taken | is_new | (~has_plan & compares) | (exchanged != state.exchanged)
            is_outdated &= score.is_mean
            looked = state._replace(
                planned=jnp.where(is_taken | ~has_plan & compares, found, state.planned),
                trial=found,
                num_trials=jnp.where(is_same & ~is_new, state.num_trials, 0),
                exchanged=exchanged,
                num_scored=jnp.where(is_outdated, outdated(state.num_scored), state.num_scored),
                # What is planned is selected by the next update.
                selected_at=jnp.where(is_settled, step + 1, state.selected_at),
            )
            taken = looked._replace(
                redundant=redundant,
                selected_at=jnp.minimum(step, state.selected_at),
                runner_up=runner_up,
                start_norms=state.norms,
                predicted_rise=self._predicted_rise(state, found, redundant, score),
            )
            return jax.tree.map(lambda a, b: jnp.where(is_taken, a, b), taken, looked)

        selected = jax.lax.cond(starts | looks, select, lambda state: state, state._replace(inner=()))
        return selected._replace(inner=state.inner)

    def _with_better(self, state: H2SPGState) -> H2SPGState:
        """Returns the state with the set on trial as the plan, if the loss without it rises less.

        Unless it should rise less still by the exchange of a group of the plan, which then is what comes next.
        """
        is_better = (state.num_trials > 0) & (state.trial_rise < state.planned_rise)
        if isinstance(self.target, Target):
            is_measured = self.target.may_replace(state.exchanged) & ~state.planned & (state.num_scored > 0)
            costs = jnp.where(is_measured & (state.exchanged >= 0), -state.scores, jnp.inf)
            is_better &= state.trial_rise <= state.planned_rise + jnp.min(costs)
        return state._replace(
            planned=jnp.where(is_better, state.trial, state.planned),
            planned_rise=jnp.where(is_better, state.trial_rise, state.planned_rise),
        )

    def _predicted_rise(self, state: H2SPGState, planned: jax.Array, redundant: jax.Array, score: Score) -> jax.Array:
        """Returns by how much the loss should rise without the groups that a round takes."""
        if not score.is_cost:
            return state.predicted_rise
        # What has no score has no cost that is known.
        is_known = redundant & ~state.redundant & (state.num_scored != 0)
        by_scores = jnp.sum(jnp.where(is_known, -state.scores, 0))
        is_whole = jnp.all(planned == redundant) & ~jnp.any(state.redundant)
        # What comes in by an exchange was measured by how much more the loss rises than without the plan before.
        more = jnp.sum(jnp.where(planned & ~state.planned, -state.scores, 0))
        return jnp.where(is_whole & (state.planned_rise != 0), state.planned_rise + more, by_scores)

    def evaluate(
        self, stats: GroupStats, score: Score, turns: Turns | None, is_due: jax.Array, loss: Loss, state: H2SPGState
    ) -> tuple[GroupStats, jax.Array, H2SPGState]:
        """Evaluates the loss without groups: without those just selected, or else without each unit whose turn it is.

        Where no units have turns, since another score decides, structures that tie by it are measured at the end: by
        `gate`, two branches into one norm of their sum have derivatives that add up to zero, whatever each is worth.
        Units are measured beside those groups that are planned to go, once there is a plan: a unit most of which is
        planned by how much less the loss rises when it stays; the others without the group that is to be exchanged.

        Returns:
            The statistics with the rises of the loss, which of them are known, bool `[num_groups]`, and the state.
        """
        is_new = self.phases.starts_at(state.step - state.selected_at)
        # There is one place in the program where the loss is evaluated, whatever it is evaluated for.
        if turns is None:
            order, num_tied = self._tied_first(state, score)
            indices = np.arange(self.candidates.num_groups)
            found = self._rises(loss, state.redundant | (indices == order[:, None]), num_tied, is_new, state)
            state = self._with_measured(state, found[0], is_new)
            rises = jnp.full(len(indices), jnp.nan, found.dtype).at[order].set(jnp.where(is_new, jnp.nan, found))
            scores = jax.lax.cond(num_tied > 0, lambda: with_ties_broken(state.scores, rises), lambda: state.scores)
            return stats, is_due, state._replace(scores=scores)
        units, is_turn = self._whose_turn(state, turns, is_due)
        planned = state.planned & jnp.any(state.trial) & turns.compares
        base = planned & (np.arange(len(planned)) != state.exchanged)
        # Groups that are on their way out stay out.
        is_open = ~state.redundant
        num_planned, num_open = self._units.total(planned & is_open), self._units.total(is_open)
        comes_back = 2 * num_planned > num_open
        is_member = (self._units.of_groups == units[:, None]) & is_open
        beside = jnp.where(comes_back[units, None], planned & ~is_member, base | is_member)
        gone = jnp.concatenate([jnp.stack([planned, state.trial]), beside]) if turns.compares else beside
        found = self._rises(loss, gone, jnp.where(is_turn, len(gone), 0), is_new, state)
        state = self._with_measured(state, found[0], is_new)
        is_turn &= ~is_new
        rises, is_known = found[-len(units) :], jnp.broadcast_to(is_turn, units.shape)
        if turns.compares:
            state = self._with_trial(state, finite_rises(found[:2]), is_turn)
            rises = costs_beside(found[0], rises, comes_back[units])
            critical = jnp.asarray(self.target.critical) & self.hierarchical
            is_known &= jax.lax.cond(is_turn, lambda: are_valid(self.target.graph, critical, beside), lambda: is_known)
        of_units = jnp.full(self._units.number, jnp.nan, found.dtype).at[units].set(jnp.where(is_known, rises, jnp.nan))
        # What was measured is what a unit's groups cost that went, or those that stayed: the others it says nothing of.
        of_groups = self._units.of_groups
        is_concerned = is_open & (planned == comes_back[of_groups])
        # Nor of channels inside of a structure that is planned to go.
        is_concerned &= planned | ~self.candidates.with_inner(planned)
        is_measured = is_due & is_concerned & jnp.zeros_like(comes_back).at[units].set(is_known)[of_groups]
        rises = self._units.shared(of_units, is_concerned, stats.gate)
        return stats._replace(loss_rise=jnp.where(is_measured, rises, jnp.nan)), is_measured, state

    def _tied_first(self, state: H2SPGState, score: Score) -> tuple[jax.Array, jax.Array]:
        """Returns structures, those that tie by `gate` before all others, and how many are to be measured now."""
        num = self.candidates.num_structures if score.needs == "gate" else 0
        if not num:
            return jnp.zeros(1, jnp.int32), jnp.int32(0)
        is_tied = tied(state.scores[:num]) & ~state.redundant[:num]
        is_time = self.phases.starts_at(state.step + 1 - state.selected_at)
        return jnp.argsort(~is_tied, stable=True), jnp.where(is_time, jnp.sum(is_tied), 0)

    def _rises(self, loss: Loss, gone: jax.Array, number: jax.Array, is_new: jax.Array, state: H2SPGState) -> jax.Array:
        """Returns the rises of the loss without the first of some sets, or a new selection's in the first place.

        Those that are not evaluated are NaN.
        """
        gone, number = jnp.where(is_new, state.redundant, gone), jnp.where(is_new, 1, number)
        unknown = jnp.full(len(gone), jnp.nan, state.measured_rise.dtype)
        return jax.lax.cond(number > 0, lambda: loss.rises(gone, number).astype(unknown.dtype), lambda: unknown)

    def _with_measured(self, state: H2SPGState, rise: jax.Array, is_new: jax.Array) -> H2SPGState:
        """Returns the state with the rise of the loss without a new selection."""
        known = jnp.where(jnp.isfinite(rise), rise, 0)
        return state._replace(measured_rise=jnp.where(is_new, known, state.measured_rise))

    def _with_trial(self, state: H2SPGState, rises: jax.Array, is_turn: jax.Array) -> H2SPGState:
        """Returns the state with the rises of the loss without the planned set and that on trial averaged in."""
        is_known = is_turn & jnp.any(state.trial) & jnp.all(jnp.isfinite(rises))
        means = jnp.stack([state.planned_rise, state.trial_rise])
        rate = 1 / (state.num_trials + 1).astype(means.dtype)
        planned, trial = jnp.where(is_known, means + rate * (rises - means), means)
        return state._replace(planned_rise=planned, trial_rise=trial, num_trials=state.num_trials + is_known)

    def turns(self, loss: Loss) -> Turns:
        """Returns when the loss without groups is evaluated.

        Raises:
            ArgumentError: there are too few updates to measure every group.
        """
        if shortage := self.shortage(loss):
            raise ArgumentError(shortage)
        return self._all_turns(loss)

    def _all_turns(self, loss: Loss) -> Turns:
        number, knows_value = int(self._ablated.sum()), loss.value is not None
        look_every, times = self.phases.look_every, self.measured_between
        return Turns.within(self._num_updates, self.forward_passes, number, knows_value, look_every, times)

    @property
    def _num_updates(self) -> int:
        """How many updates are scored before the first selection, at most."""
        return self.phases.latest_start - self.phases.first_scoring

    def _whose_turn(self, state: H2SPGState, turns: Turns, is_scored: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the units whose turn it is to be measured, int `[n]`, and whether any is measured in this update."""
        scored = state.step - self.phases.first_scoring
        # Groups that are on their way out need no score any more.
        waiting = jnp.asarray(self._ablated) & (self._units.total(~state.redundant) > 0)
        number = scored // turns.every * turns.number + jnp.arange(turns.number)
        units = jnp.argsort(~waiting, stable=True)[number % jnp.maximum(jnp.sum(waiting), 1)]
        return units, is_scored[0] & (scored % turns.every == turns.every - 1)

    @cached_property
    def _units(self) -> Units:
        """What the loss is measured without."""
        return Units.of(self.candidates)

    @cached_property
    def _ablated(self) -> np.ndarray:
        """The units whose removal is to be measured, bool `[num_units]`: those that can go alone, if that matters."""
        num, graph = self.candidates.num_structures, self.candidates.dependence
        single = np.eye(num, self.candidates.num_groups, dtype=bool)
        is_measured = np.ones(self._units.number, bool)
        is_measured[:num] = [not self.hierarchical or is_valid(graph, each) for each in single]
        return is_measured
