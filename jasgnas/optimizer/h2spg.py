"""H2SPG, the optimizer that removes groups: the last link of an optax chain, or around one.

Owns what happens in each update. Which groups there are is said by `space/candidates.py`, which may go together by
`space/validity.py`, which should go first by `scores.py` and `ablation.py`, what does go by `planner.py`, and when by
`phases.py`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jasgnas.checks import NUMBERS, check_integer, check_number
from jasgnas.errors import ArgumentError, BlindSelectionWarning, EarlySelectionWarning
from jasgnas.optimizer.ablation import FORWARD_PASSES, MEASURED_BETWEEN, Loss
from jasgnas.optimizer.layout import (
    GroupLayout,
    GroupMoves,
    GroupSums,
    Remainder,
    check_updates,
    grouped_gradients,
    grouped_leaves,
    lay_out,
    make_known_to_flax,
    move_groups,
    sum_over_groups,
    with_grouped_leaves,
    without_groups,
    without_updates,
)
from jasgnas.optimizer.phases import ROUNDING, Phases, divide_phases
from jasgnas.optimizer.planner import Planner
from jasgnas.optimizer.projection import project, shrinking_strengths
from jasgnas.optimizer.scores import (
    DEFAULT_SCORES,
    SCORES,
    GroupStats,
    Score,
    ScoreFn,
    find_score,
    group_stats,
    require_comparable,
)
from jasgnas.optimizer.state import (
    DONE,
    PROJECTION,
    WARMUP,
    H2SPGState,
    candidates_of,
    check_state,
    outdated,
    with_dtypes,
)
from jasgnas.space.candidates import Candidates
from jasgnas.space.crowds import AtMost
from jasgnas.space.latency import LatencyTable
from jasgnas.space.limits import Limit, Limits
from jasgnas.space.mixtures import resolve

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

ADAM_DEFAULTS: Mapping[str, float] = {"lmbda": 1e-2, "amplify": 20.0, "hat": 1e3}
"""The published λ rule for Adam and its relatives: `h2spg(space, ..., **ADAM_DEFAULTS)`. `h2spg`'s own is for SGD."""


def h2spg(
    space: "SearchSpace | Candidates",
    *,
    learning_rate: optax.ScalarOrSchedule,
    inner: optax.GradientTransformation | None = None,
    target_groups: int | Mapping[str, int] | None = None,
    target_sparsity: float | Mapping[str, float] | None = None,
    target_params: int | float | None = None,
    target_macs: int | float | None = None,
    target_latency: float | None = None,
    target_seconds: float | None = None,
    latency: LatencyTable | None = None,
    min_channels: Limit | None = None,
    multiple_of: Limit | None = None,
    at_most: AtMost | None = None,
    warmup_steps: int,
    projection_steps: int,
    selection_steps: int | None = None,
    settle: bool = False,
    look_every: int | None = None,
    periods: int = 1,
    lmbda: float = 1e-3,
    amplify: float = 2.0,
    hat: float = 10.0,
    epsilon: float = 0.0,
    omega: float = 0.9,
    score: str | Score | ScoreFn | ArrayLike = "default",
    per_cost: bool = False,
    forward_passes: float | None = None,
    hierarchical: bool = True,
    guarantee_target: bool = True,
    train_gates: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Returns the hierarchical half-space projected gradient method, as the last link of an optax chain or around one.

    The links before it, or `inner`, supply the update u = −α·d of any optimizer. Updates are numbered from 0:

    - Warm-up, updates 0 … `warmup_steps` − 1: u passes through; the redundancy scores of the groups are averaged.
    - Selection, at update number `warmup_steps`, before the update is made: groups are accepted as redundant as long as
      the network stays valid without them, until the target is met. They are visited by falling score, or, where scores
      are in units of the loss and the target is a size, by rising cost (minus the score) per unit saved.
    - Projection, the next `projection_steps` updates: important parameters still take u. A redundant group x moves to
      x̂ = x + u − α·λ·x/‖x‖, with λ large enough to shrink it, and becomes exactly zero once ⟨x̂, x⟩ < ε‖x‖². With
      `guarantee_target` its norm is also kept below a line that falls from the norm at the selection to zero at the
      last of these updates, so that the target is always met by then.
    - Afterwards u passes through, except that zero groups stay exactly zero, whatever momentum or weight decay propose.

    With `periods` P > 1 the projection is divided into P equal parts, each of which starts with a selection of another
    P-th of the target (of the groups to remove, or of what the network must lose) and has it exactly zero at its end.
    Scores are averaged until the last selection.

    What goes should be what the loss can do without, and the updates of an optimizer do not say: after momentum and
    weight decay, ⟨x, d⟩ of a weight before a norm is little but its length. So `update` takes what
    `optax.scale_by_backtracking_linesearch` takes, and a chain hands it on:

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, grad=grads, value=loss, value_fn=loss_fn)

    `grad` is the gradient itself, `value_fn(params)` the loss of the current batch, which returns a scalar or
    `(loss, aux)`, is pure, and may name further arguments of `update`; `value` is its value at `params`, and spares an
    evaluation. Under `jax.pmap` and `jax.shard_map` all three are averages over the devices. A loop that hands nothing
    on, such as Flax's `TrainState.apply_gradients`, takes `h2spg(..., inner=tx)`, which sees the gradient as it comes
    and runs the optimizer itself. The gradients of groups that are zero for good are then masked before it: what is
    clipped by the global norm is what a network without them has.

    Args:
        space: the search space of the network, from `jasgnas.search_space`, or its `candidates` alone.
        learning_rate: α of the links before, number or optax schedule; it must be what they multiply with.
        inner: the optimizer, if `h2spg` is to run it itself instead of being its last link.
        target_groups: how many groups to remove, of a space with structures and channels by kind: `{"structure": 3,
            "channel": 100}`. Channels that go with a structure do not count. Exactly one target is needed.
        target_sparsity: the same as a fraction of the number of groups, rounded down.
        target_params: the most trainable parameters that the sub-network may have, as `jasgnas.count_params` counts
            them, dead branches left out; a float in (0, 1) is a fraction of the full network's. Groups are accepted
            until it has no more; those that it can do with after all are kept, so that every group that goes is needed.
        target_macs: the same for multiply-adds at the inputs that the space was made with, as `jasgnas.count_macs`
            counts them.
        target_latency: the most time of a forward pass that the sub-network may take, a fraction of the full network's,
            both as `latency` predicts them.
        target_seconds: the same in seconds.
        latency: what `jasgnas.measure_latency(space)` has measured, for one of these two targets.
        min_channels: how many channels of a dimension stay at least, unless all that makes it goes: a number for all,
            or a mapping from patterns of parameter paths to numbers. A dimension goes by the first pattern that matches
            a parameter that makes it, and without one has no limit. None for no limit, and for spaces without channels.
        multiple_of: a number, in the same form, that the number of channels that stay is a multiple of, unless all of
            them stay: it is rounded up. So channels go several at a time; the last of a number of channels
            (`target_groups`) may take others with it.
        at_most: how many structures and gates stay at most, by patterns of the paths of their parameters, in which `*`
            and `{name}` stand for one component of a path or a part of it and `**` for any number:
            `{"cells/*/{edge}/**": 1}` leaves one group for each text that `{edge}` stands for. A group matches if all
            its paths do with the same text. Patterns are met one after the other, so that a limit for each edge before
            one for all edges of a node leaves a node the best operations of its best edges. It may be the only target:
            then fewer stay where scores are in units of the loss and that falls without.
        warmup_steps: updates before the first selection, at least 1; with `settle` the most there may be. 15 to 30 % of
            the training are a good start: sooner, little has been learned that scores could go by, and later, little is
            left of the training for what stays. A network that is trained already needs as many as measure its groups.
        projection_steps: updates over which redundant groups go to zero, at least `periods`. 10 % of the training is a
            good start; all that remains after it trains the groups that stay.
        selection_steps: how many of the last warm-up updates the scores are averaged over; updates before these cost
            nothing. None means half of them, or for a moving average as many as can matter: with ω = 0.9, what is older
            than 343 updates weighs less than a rounding error. Updates before the learning rate has ceased to rise are
            not scored in any case, or, where only its value is known, as under `optax.inject_hyperparams`, are
            forgotten when it rises.
        settle: selects as soon as two selections on trial, one after the other, differ in at most a tenth of their
            groups, or, where sets are compared, as no better one is found.
        look_every: after how many scored updates a set is selected on trial, with `settle` or `ablation`; None for
            about five times in all. `ablation` measures every group at least twice in between, with None three times.
        periods: rounds of selection and projection.
        lmbda: λ, the least strength of the shrinking.
        amplify: how far λ exceeds the least value that lets a group shrink that the optimizer would let grow.
        hat: bound on λ as a multiple of `lmbda`.
        epsilon: ε of the half-space, in [0, 1); larger projects sooner.
        omega: ω, weight of the past in the moving average of the scores, in [0, 1). The first scores are averaged
            evenly, and so are all of `gate` and `ablation`. Scores that are not finite are left out and counted.
        score: name of a score in `jasgnas.optimizer.scores.SCORES`; a function of `GroupStats` that returns
            `[num_groups]` scores, larger for groups to remove sooner; or such scores, which stay as they are.
            "default" is `ablation` where `update` is given a `value_fn` and the updates suffice to measure every group,
            else `gate` where the gradient is known, else `magnitude`, with a warning. Where there are three times
            `look_every` of them, `ablation` measures sets as well: groups are measured beside what is planned to go, or
            in the place of one group of it, and a set on trial takes the place of the plan if the loss rises less
            without it, on the same batches. In a space with channels "default" leaves `ablation` out. Asked for by
            name, it measures them by random quarters of a dimension, whose channels share the rise of the loss by their
            `gate`, so that it needs `grad`, too. Structures that tie by `gate` are told apart by the loss without each,
            where there is a `value_fn`.
        per_cost: whether minus the score of a function or an array is a cost in units of the loss.
        forward_passes: how many evaluations of the loss per scored update `ablation` may cost, on average; None for
            one in two updates.
        hierarchical: False ignores validity and takes the best-scoring groups, as DHSPG does; for comparisons only.
        guarantee_target: False leaves the norms to the papers' method alone, which may not reach the target in time.
        train_gates: whether the gates of `jasgnas.gated` are trained. Otherwise they are held as they are, at 1, until
            they are selected, so that those that stay vanish when the sub-network is constructed.

    Returns:
        A gradient transformation whose state is an `H2SPGState`. Its `update` needs `params`, and takes `grad`, `value`
        and `value_fn`.

    Raises:
        ArgumentError: an option is of the wrong kind or out of range, not exactly one target is given, or a limit on
            channels for a space without any; by `update`,
            there are no parameters, the state is none of `h2spg`, the score needs what is not given, or too few updates
            are scored to measure every group.
        TargetError: no valid removal reaches the target within the limits.
        TreeMismatchError: by `init` and `update`, parameters, updates or a state that do not belong to the search
            space, or not to each other.

    Warns:
        EarlySelectionWarning: the learning rate still rises where the selection is made; by `update`, too few updates
            are scored for the default to measure every group, so that `gate` takes the place of `ablation`.
        BlindSelectionWarning: by `update`, the default score is given neither the gradient nor the loss.

    Example:
        >>> import jasgnas
        >>> params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
        >>> fn = lambda params, x: x @ params["a"] + jnp.tanh(x @ params["b"])
        >>> space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params)
        >>> schedule = optax.cosine_decay_schedule(0.1, 5000)
        >>> tx = optax.chain(
        ...     optax.add_decayed_weights(5e-4),
        ...     optax.sgd(schedule, momentum=0.9),
        ...     jasgnas.h2spg(
        ...         space, learning_rate=schedule, target_groups=1, warmup_steps=1000, projection_steps=1000
        ...     ),
        ... )
        >>> jasgnas.h2spg_state(tx.init(params)).redundant.tolist()
        [False, False]

    References:
        Chen et al., ASGNAS / OTOv3, arXiv 2305.18030 and 2312.09411: phases, score and hierarchical selection.
        Chen et al., OTOv2, arXiv 2303.06862, section 3.2: λ rule and half-space projection (DHSPG).
        Molchanov et al., arXiv 1906.10771: importance by the gradient of gates.
    """
    candidates = candidates_of(space)
    _check_learning_rate(learning_rate)
    check_integer("warmup_steps", warmup_steps, 1)
    check_integer("periods", periods, 1)
    check_integer("projection_steps", projection_steps, periods)
    check_number("lmbda", lmbda, 0, np.inf)
    check_number("amplify", amplify, 1, np.inf)
    check_number("hat", hat, 1, np.inf)
    check_number("epsilon", epsilon, 0, 1)
    check_number("omega", omega, 0, 1)
    if forward_passes is None:
        forward_passes = FORWARD_PASSES
    if not isinstance(forward_passes, NUMBERS) or not 0 < forward_passes < np.inf:
        raise ArgumentError(f"forward_passes must be a number above 0, got {forward_passes!r}")
    found = None if isinstance(score, str) and score == "default" else find_score(score)
    if found is not None:
        require_comparable(found, candidates)
    if per_cost:
        if found is None or isinstance(score, str):
            raise ArgumentError(
                f"per_cost=True is for a function or an array, of which nobody else knows the unit, got score={score!r}"
            )
        found = found._replace(is_cost=True)
    if selection_steps is None:
        is_mean = found is None or found.is_mean
        selection_steps = int(max(1, warmup_steps // 2) if is_mean else min(warmup_steps, _memory(omega)))
    check_integer("selection_steps", selection_steps, 1, warmup_steps)
    if look_every is not None:
        check_integer("look_every", look_every, 1)
    targets = {
        "target_groups": target_groups,
        "target_sparsity": target_sparsity,
        "target_params": target_params,
        "target_macs": target_macs,
        "target_latency": target_latency,
        "target_seconds": target_seconds,
    }
    planner = Planner(
        candidates=candidates,
        target=resolve(candidates, targets, periods, hierarchical, Limits(min_channels, multiple_of), latency, at_most),
        phases=divide_phases(learning_rate, warmup_steps, selection_steps, projection_steps, periods, look_every),
        settle=settle,
        forward_passes=forward_passes,
        measured_between=2 if look_every else MEASURED_BETWEEN,
        hierarchical=hierarchical,
    )
    method = _Method(
        candidates=candidates,
        learning_rate=learning_rate,
        inner=None if inner is None else optax.with_extra_args_support(inner),
        planner=planner,
        lmbda=lmbda,
        amplify=amplify,
        hat=hat,
        epsilon=epsilon,
        omega=omega,
        score=found,
        guarantee_target=guarantee_target,
        train_gates=train_gates,
    )
    make_known_to_flax()
    return optax.GradientTransformationExtraArgs(method.init, method.update)


@dataclass(frozen=True, eq=False)
class _Method:
    """The steps of H2SPG, with the options of `h2spg`.

    Attributes:
        planner: what decides what is to go, and when.
        score: None for the best that what is given allows.
    """

    candidates: Candidates
    learning_rate: optax.ScalarOrSchedule
    inner: optax.GradientTransformationExtraArgs | None
    planner: Planner
    lmbda: float | jax.Array
    amplify: float | jax.Array
    hat: float | jax.Array
    epsilon: float | jax.Array
    omega: float | jax.Array
    score: Score | None
    guarantee_target: bool
    train_gates: bool

    @property
    def phases(self) -> Phases:
        """When what is done."""
        return self.planner.phases

    def init(self, params: optax.Params) -> H2SPGState:
        """Returns the state before the first update."""
        dtype = lay_out(self.candidates, params, Remainder()).dtype
        num_groups = self.candidates.num_groups

        def each(kind: Any) -> jax.Array:
            return jnp.zeros(num_groups, kind)  # Never the same array twice: all of the state may be donated.

        return H2SPGState(
            step=jnp.zeros([], jnp.int32),
            phase=jnp.full([], WARMUP, jnp.int32),
            scores=each(dtype),
            num_scored=each(jnp.int32),
            num_skipped=each(jnp.int32),
            redundant=each(bool),
            zero=each(bool),
            planned=jnp.asarray(np.isin(np.arange(num_groups), self.planner.target.reachable)),
            planned_rise=jnp.zeros([], dtype),
            trial=each(bool),
            trial_rise=jnp.zeros([], dtype),
            num_trials=jnp.zeros([], jnp.int32),
            exchanged=jnp.full([], -1, jnp.int32),
            selected_at=jnp.full([], self.phases.latest_start, jnp.int32),
            runner_up=jnp.full([], -1, jnp.int32),
            predicted_rise=jnp.zeros([], dtype),
            measured_rise=jnp.zeros([], dtype),
            learning_rate=jnp.zeros([], dtype),
            revived=each(bool),
            norms=each(dtype),
            start_norms=each(dtype),
            space_id=jnp.uint32(self.candidates.fingerprint),
            inner=() if self.inner is None else self.inner.init(params),
        )

    def update(
        self,
        updates: optax.Updates,
        state: H2SPGState,
        params: optax.Params | None = None,
        *,
        grad: optax.Updates | None = None,
        value: ArrayLike | None = None,
        value_fn: Callable[..., Any] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, H2SPGState]:
        """Changes the updates of an optimizer as the phase demands."""
        if params is None:
            raise ArgumentError("h2spg needs the parameters: call tx.update(grads, opt_state, params)")
        check_state(state, self.candidates)
        state = with_dtypes(state)
        layout = lay_out(self.candidates, params, state.remainder)
        if self.inner is not None:
            given = {"grad": grad, "value": value, "value_fn": value_fn}
            handed_on = extra | {name: each for name, each in given.items() if each is not None}
            updates, grad, state = self._descend(layout, updates, state, params, handed_on)
        if not self.train_gates:
            updates = without_updates(updates, self.candidates.gate_leaves)
        if state.remainder.is_final:
            norms = jnp.where(state.zero, 0, state.norms)
            return updates, state._replace(step=optax.safe_increment(state.step), norms=norms)
        step, phases = state.step, self.phases
        alpha = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        alpha = jnp.asarray(alpha, layout.dtype)
        if isinstance(self.learning_rate, jax.Array):
            state = self._with_learning_rate(state, alpha)
        check_updates(layout, params, updates)
        xs, us = grouped_leaves(layout, params), grouped_leaves(layout, updates)
        # In the narrower of two dtypes, x − x would not be exactly zero.
        us = [u.astype(jnp.result_type(x, u)) for x, u in zip(xs, us, strict=True)]
        loss = None if value_fn is None else Loss.of(layout, params, value_fn, extra, value)
        score = self._resolved_score(grad, loss)
        # A gradient of another tree is refused also where it is not looked at.
        gs = None if grad is None else grouped_gradients(layout, params, grad)
        if score.needs not in ("grad", "gate", "any") and not self._shares(score):
            gs = None

        sums, state = self._measure(layout, xs, us, gs, score, state)
        stats = group_stats(sums, alpha, layout.num_params, self.candidates.savings)
        turns = self.planner.turns(loss) if loss is not None and score.needs == "value_fn" else None
        state = self.planner.select(state, score, turns)
        is_due = jnp.broadcast_to(phases.is_scored(step, state.selected_at), state.scores.shape)
        if loss is not None:
            stats, is_due, state = self.planner.evaluate(stats, score, turns, is_due, loss, state)
        since = step - state.selected_at
        strengths = shrinking_strengths(stats, self.lmbda, self.amplify, self.hat)
        # Parameters and updates are read again only where something can move.
        may_move = since >= 0
        if loss is not None:
            # A number always, which a compiler does not know: nothing moves before the loss is evaluated. If parameters
            # are to be written where the old ones lie, it would else make a copy of these for the evaluation.
            may_move &= jnp.isfinite(state.measured_rise)
        us, zero = jax.lax.cond(
            may_move,
            lambda: self._move(layout, xs, us, state, sums, alpha * strengths),
            lambda: (us, state.zero),
        )
        is_done = (since >= phases.last_start) & jnp.all(zero | ~state.redundant)
        phase = jnp.where(is_done, DONE, jnp.where(since < 0, WARMUP, PROJECTION))
        state = self._score(state, stats, score, is_due)
        return with_grouped_leaves(layout, updates, us), state._replace(
            step=optax.safe_increment(step), phase=phase.astype(jnp.int32), zero=zero
        )

    def _with_learning_rate(self, state: H2SPGState, alpha: jax.Array) -> H2SPGState:
        """Returns the state with the learning rate of an update; where it rises, scores so far are as good as none.

        Where the schedule is known, updates before the end of its rise are not scored, see `divide_phases`.
        """
        is_early = state.step < state.selected_at
        rises = is_early & (state.step > 0) & (alpha > state.learning_rate * (1 + ROUNDING))
        return state._replace(
            num_scored=jnp.where(rises, outdated(state.num_scored), state.num_scored),
            # Nor does what was selected by them count as a choice, which could settle, or be compared with another one.
            trial=state.trial & ~rises,
            num_trials=jnp.where(rises, 0, state.num_trials),
            exchanged=jnp.where(rises, -1, state.exchanged),
            planned_rise=jnp.where(rises, 0, state.planned_rise),
            learning_rate=jnp.where(is_early, alpha, state.learning_rate).astype(state.learning_rate.dtype),
        )

    def _descend(
        self,
        layout: GroupLayout,
        grads: optax.Updates,
        state: H2SPGState,
        params: optax.Params,
        handed_on: Mapping[str, Any],
    ) -> tuple[optax.Updates, optax.Updates, H2SPGState]:
        """Returns the updates of `inner`, the gradients with those of frozen groups masked, and the state."""
        assert self.inner is not None
        check_updates(layout, params, grads)
        gs = grouped_leaves(layout, grads)
        # Of groups that shrink has taken out, nothing is left to mask.
        zero = state.zero & ~np.isin(np.arange(layout.num_groups), state.remainder.removed)
        frozen = jax.lax.cond(jnp.any(zero), lambda: without_groups(layout, gs, zero), lambda: gs)
        masked = with_grouped_leaves(layout, grads, frozen)
        updates, inner = self.inner.update(masked, state.inner, params, **handed_on)
        return updates, masked, state._replace(inner=inner)

    def _resolved_score(self, grad: Any, loss: Loss | None) -> Score:
        """Returns the score that is asked for, or the best that what is given allows."""
        knows_grad, knows_loss = grad is not None, loss is not None
        given = {"": True, "any": True, "grad": knows_grad, "gate": knows_grad, "value_fn": knows_loss}
        if self.score is None:
            measures = loss is not None and not self.planner.has_channels
            # With too few updates to measure every group, the gradient says more.
            shortage = self.planner.shortage(loss) if loss is not None and measures and knows_grad else ""
            given["value_fn"] = measures and not shortage
            needs = next(needs for needs in DEFAULT_SCORES if given[needs])
            if shortage:
                warnings.warn(
                    f"the selection comes too early to be made by the loss, and is made by {DEFAULT_SCORES[needs]}: "
                    f"{shortage}",
                    EarlySelectionWarning,
                    3,
                )
            if not needs:
                warnings.warn(
                    f"h2spg is given neither the gradient nor the loss, and selects by {DEFAULT_SCORES[needs]}, which "
                    f"networks with norms make little of. {HOW_TO_GIVE} To select so on purpose, name the score",
                    BlindSelectionWarning,
                    3,
                )
            require_comparable(SCORES[DEFAULT_SCORES[needs]], self.candidates)
            return SCORES[DEFAULT_SCORES[needs]]
        if not given[self.score.needs]:
            what = "the loss (value_fn)" if self.score.needs == "value_fn" else "the gradient (grad)"
            raise ArgumentError(f"this score needs {what}, which update was not given. {HOW_TO_GIVE}")
        if self._shares(self.score) and not knows_grad:
            raise ArgumentError(
                "of channels, this score measures several at a time and tells them apart by the gradient (grad), which "
                f"update was not given. {HOW_TO_GIVE}"
            )
        return self.score

    def _shares(self, score: Score) -> bool:
        """Tells whether a score measures the loss without several channels at a time, see `Units`."""
        return score.needs == "value_fn" and self.planner.has_channels

    def _measure(
        self,
        layout: GroupLayout,
        xs: list[jax.Array],
        us: list[jax.Array],
        gs: list[jax.Array] | None,
        score: Score,
        state: H2SPGState,
    ) -> tuple[GroupSums, H2SPGState]:
        """Returns the inner products over the groups, and the state with their norms and those found to be revived."""
        # Once more after the end: whether what has been set to zero last is so.
        is_unsure = jnp.any(state.zero & (state.norms > 0))
        is_measured = (state.step >= self.phases.first_scoring) & ((state.phase != DONE) | is_unsure)
        measure = partial(sum_over_groups, layout, xs, us, gs, gates_alone=score.needs in ("gate", "value_fn"))
        nothing = jax.tree.map(lambda sums: jnp.zeros(sums.shape, sums.dtype), jax.eval_shape(measure))
        sums = jax.lax.cond(is_measured, measure, lambda: nothing)
        revived = (state.zero | state.revived) & jnp.where(is_measured, sums.x_x > 0, state.revived)
        zero = state.zero & ~revived
        # What an optimizer would do to a frozen zero is no property of the group: it may not even be there any more.
        sums = jax.tree.map(lambda each: jnp.where(zero, 0, each), sums)
        is_concerned = (state.phase != DONE) | zero | revived
        norms = jnp.where(is_measured & is_concerned, jnp.sqrt(sums.x_x), state.norms)
        return sums, state._replace(zero=zero, revived=revived, norms=norms)

    def _move(
        self,
        layout: GroupLayout,
        xs: list[jax.Array],
        us: list[jax.Array],
        state: H2SPGState,
        sums: GroupSums,
        pull: jax.Array,
    ) -> tuple[list[jax.Array], jax.Array]:
        """Returns the updates of the grouped leaves, redundant groups projected, and which groups are zero then."""
        left = self.phases.fraction_left(state.step - state.selected_at).astype(layout.dtype)
        moves = project(sums, pull, self.epsilon, left * state.start_norms if self.guarantee_target else None)
        # An entry in several redundant groups goes with the structure, or with the channel that is to be shorter.
        is_structure = np.arange(layout.num_groups) < self.candidates.num_structures
        bounds = jnp.where(is_structure, -1, left * state.start_norms)
        moves = GroupMoves(
            jnp.where(state.redundant, moves.scale, 1),
            jnp.where(state.redundant, moves.shift, 0),
            state.zero | (state.redundant & moves.zero),
            jnp.where(state.redundant, bounds, jnp.inf),
        )
        # Until they are found to be zero, those revived are not believed to be.
        return move_groups(layout, xs, us, moves), self.candidates.with_inner(moves.zero & ~state.revived)

    def _score(self, state: H2SPGState, stats: GroupStats, score: Score, is_due: jax.Array) -> H2SPGState:
        """Returns the state with the scores of this update in their averages, for those groups that are due."""
        scores = score(stats).astype(state.scores.dtype)
        is_taken = is_due & jnp.isfinite(scores)
        num_scored = jnp.maximum(state.num_scored, 0)
        rate = 1 / (num_scored + 1).astype(scores.dtype)
        rate = rate if score.is_mean else jnp.maximum(rate, 1 - self.omega)
        averaged = state.scores + rate * (scores - state.scores)
        return state._replace(
            scores=jnp.where(is_taken, averaged, state.scores).astype(state.scores.dtype),
            num_scored=jnp.where(is_taken, num_scored + 1, state.num_scored),
            num_skipped=state.num_skipped + (is_due & ~is_taken),
        )


HOW_TO_GIVE = (
    "Either hand them to the chain: tx.update(updates, state, params, grad=grads, value=loss, value_fn=loss_fn), in "
    "nnx optimizer.update(model, grads, grad=grads, value_fn=jasgnas.nnx_value_fn(model, loss_fn)); or let h2spg run "
    "the optimizer, h2spg(space, inner=tx, ...), where it sees the gradient itself."
)


def _memory(omega: float | jax.Array) -> float:
    """Returns after how many updates a moving average has forgotten what was before them, to double precision."""
    if isinstance(omega, jax.Array):
        return np.inf  # Under optax.inject_hyperparams its value is not known yet.
    return 1 if omega == 0 else int(np.ceil(np.log(np.finfo(np.float64).eps) / np.log(omega)))


def _check_learning_rate(learning_rate: Any) -> None:
    is_array = isinstance(learning_rate, jax.Array | np.ndarray) and np.ndim(learning_rate) == 0
    is_number = (
        isinstance(learning_rate, NUMBERS) and not isinstance(learning_rate, bool) and 0 <= learning_rate < np.inf
    )
    if not (callable(learning_rate) or is_array or is_number):
        raise ArgumentError(f"learning_rate must be a number, at least 0, or an optax schedule, got {learning_rate!r}")
