"""H2SPG, the optimizer that removes groups: the last link of an optax chain.

Owns the phases (warm-up, selection, projection) and what they do to the updates. Which groups there are is said by
`space/candidates.py`, which may go together by `space/validity.py`, and which should go first by `scores.py`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.checks import NUMBERS, check_integer, check_number
from jasgnas.errors import ArgumentError, RevivedGroupsWarning, TreeMismatchError
from jasgnas.optimizer.layout import (
    GroupLayout,
    GroupMoves,
    GroupSums,
    Remainder,
    check_updates,
    grouped_leaves,
    lay_out,
    move_groups,
    sum_over_groups,
    with_grouped_leaves,
)
from jasgnas.optimizer.scores import DEFAULT_SCORE, SCORES, GroupStats, ScoreFn
from jasgnas.space.candidates import Candidates
from jasgnas.space.targets import Target, resolve_target

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

WARMUP, PROJECTION, DONE = range(3)
"""Values of `H2SPGState.phase`."""

ADAM_DEFAULTS: Mapping[str, float] = {"lmbda": 1e-2, "amplify": 20.0, "hat": 1e3}
"""The published λ rule for Adam and its relatives: `h2spg(space, ..., **ADAM_DEFAULTS)`. `h2spg`'s own is for SGD."""


class H2SPGState(NamedTuple):
    """State of `h2spg`: a few vectors over the groups, nothing of the size of the parameters.

    Attributes:
        step: int32, number of updates made.
        phase: int32, phase that the latest update was made in or has reached: 0 warm-up, 1 projection, 2 done, which
            means that all groups of the target are exactly zero.
        scores: float `[num_groups]`, moving average of the redundancy scores; stays as it is after the last selection.
        redundant: bool `[num_groups]`, groups selected to go.
        zero: bool `[num_groups]`, groups that are exactly zero and stay so; a subset of `redundant`.
        planned: bool `[num_groups]`, a valid set that meets the target and contains `redundant`: proof that the target
            stays within reach when `redundant` is selected in several rounds.
        revived: bool `[num_groups]`, groups that an update has set to zero and a later one did not find so: something
            that comes after `h2spg` changes its updates, or the parameters. They are not among `zero`.
        norms: float `[num_groups]`, norm of each group's parameters as the latest update found them; not kept up to
            date where no norms are needed, that is before the scores are averaged and after the end.
        start_norms: float `[num_groups]`, the same at the latest selection.
        space_id: uint32, fingerprint of the search space, which a checkpoint keeps.
        remainder: static, what `jasgnas.shrink` has left of the parameters.
    """

    step: jax.Array
    phase: jax.Array
    scores: jax.Array
    redundant: jax.Array
    zero: jax.Array
    planned: jax.Array
    revived: jax.Array
    norms: jax.Array
    start_norms: jax.Array
    space_id: jax.Array
    remainder: Remainder = Remainder()


def h2spg(
    space: "SearchSpace | Candidates",
    *,
    learning_rate: optax.ScalarOrSchedule,
    target_groups: int | None = None,
    target_sparsity: float | None = None,
    target_params: int | float | None = None,
    target_macs: int | float | None = None,
    warmup_steps: int,
    projection_steps: int,
    selection_steps: int | None = None,
    periods: int = 1,
    lmbda: float = 1e-3,
    amplify: float = 2.0,
    hat: float = 10.0,
    epsilon: float = 0.0,
    omega: float = 0.9,
    score: str | ScoreFn = "default",
    hierarchical: bool = True,
    guarantee_target: bool = True,
) -> optax.GradientTransformation:
    """Returns the hierarchical half-space projected gradient method as the last link of an optax chain.

    The links before it supply the update u = −α·d of any optimizer. Updates are numbered from 0:

    - Warm-up, updates 0 … `warmup_steps` − 1: u passes through; the redundancy scores of the groups are averaged.
    - Selection, at update number `warmup_steps`, before the update is made: groups are accepted as redundant by falling
      score as long as the network stays valid without them, until the target is met.
    - Projection, the next `projection_steps` updates: important parameters still take u. A redundant group x moves to
      x̂ = x + u − α·λ·x/‖x‖, with λ large enough to shrink it, and becomes exactly zero once ⟨x̂, x⟩ < ε‖x‖². With
      `guarantee_target` its norm is also kept below a line that falls from the norm at the selection to zero at the
      last of these updates, so that the target is always met by then.
    - Afterwards u passes through, except that zero groups stay exactly zero, whatever momentum or weight decay propose.

    With `periods` P > 1 the projection is divided into P equal parts, each of which starts with a selection of another
    P-th of the target (of the groups to remove, or of what the network must lose) and has it exactly zero at its end.
    Scores are averaged until the last selection.

    Args:
        space: the search space of the network, from `jasgnas.search_space`, or its `candidates` alone.
        learning_rate: α of the links before, number or optax schedule; it must be what they multiply with.
        target_groups: how many groups to remove. Exactly one of the four targets is needed.
        target_sparsity: the same as a fraction of the number of groups, rounded down.
        target_params: the most trainable parameters that the sub-network may have, as `jasgnas.count_params` counts
            them, dead branches left out; a float in (0, 1) is a fraction of the full network's. Groups are accepted
            until it has no more; those that it can do with after all are kept, so that every group that goes is needed.
        target_macs: the same for multiply-adds at the inputs that the space was made with, as `jasgnas.count_macs`
            counts them.
        warmup_steps: updates before the first selection, at least 1.
        projection_steps: updates over which redundant groups go to zero, at least `periods`.
        selection_steps: how many of the last warm-up updates the scores are averaged over; updates before these cost
            nothing. None means as many as can matter: with ω = 0.9, what is older than 343 updates weighs less than a
            rounding error.
        periods: rounds of selection and projection.
        lmbda: λ, the least strength of the shrinking.
        amplify: how far λ exceeds the least value that lets a group shrink that the optimizer would let grow.
        hat: bound on λ as a multiple of `lmbda`.
        epsilon: ε of the half-space, in [0, 1); larger projects sooner.
        omega: ω, weight of the past in the moving average of the scores, in [0, 1).
        score: name of a score in `jasgnas.optimizer.scores.SCORES`, or a function of `GroupStats` that returns
            `[num_groups]` scores, larger for groups to remove sooner. The default is `magnitude`, which removed better
            structures than the score of the papers, `published`.
        hierarchical: False ignores validity and takes the best-scoring groups, as DHSPG does; for comparisons only.
        guarantee_target: False leaves the norms to the papers' method alone, which may not reach the target in time.

    Returns:
        A gradient transformation whose state is an `H2SPGState`. Its `update` needs `params`.

    Raises:
        ArgumentError: an option is of the wrong kind or out of range, or not exactly one target is given; by `update`,
            there are no parameters, or the state is none of `h2spg`.
        TargetError: no valid removal reaches the target.
        TreeMismatchError: by `init` and `update`, parameters, updates or a state that do not belong to the search
            space, or not to each other.

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
    """
    candidates = _candidates_of(space)
    _check_learning_rate(learning_rate)
    check_integer("warmup_steps", warmup_steps, 1)
    check_integer("periods", periods, 1)
    check_integer("projection_steps", projection_steps, periods)
    check_number("lmbda", lmbda, 0, np.inf)
    check_number("amplify", amplify, 1, np.inf)
    check_number("hat", hat, 1, np.inf)
    check_number("epsilon", epsilon, 0, 1)
    check_number("omega", omega, 0, 1)
    if selection_steps is None:
        selection_steps = int(min(warmup_steps, _memory(omega)))
    check_integer("selection_steps", selection_steps, 1, warmup_steps)
    targets = {
        "target_groups": target_groups,
        "target_sparsity": target_sparsity,
        "target_params": target_params,
        "target_macs": target_macs,
    }
    method = _Method(
        candidates=candidates,
        learning_rate=learning_rate,
        target=resolve_target(candidates, targets, periods, hierarchical),
        rounds=_Rounds.divide(warmup_steps, projection_steps, periods),
        first_scoring=warmup_steps - selection_steps,
        lmbda=lmbda,
        amplify=amplify,
        hat=hat,
        epsilon=epsilon,
        omega=omega,
        score=_find_score(score),
        hierarchical=hierarchical,
        guarantee_target=guarantee_target,
    )
    return optax.GradientTransformation(method.init, method.update)


@dataclass(frozen=True, eq=False)
class _Method:
    """The steps of H2SPG, with the options of `h2spg`.

    Attributes:
        target: what must be gone by the end of each round.
        rounds: the updates of each round.
        first_scoring: number of the first update whose scores are averaged.
    """

    candidates: Candidates
    learning_rate: optax.ScalarOrSchedule
    target: Target
    rounds: "_Rounds"
    first_scoring: int
    lmbda: float | jax.Array
    amplify: float | jax.Array
    hat: float | jax.Array
    epsilon: float | jax.Array
    omega: float | jax.Array
    score: ScoreFn
    hierarchical: bool
    guarantee_target: bool

    def init(self, params: optax.Params) -> H2SPGState:
        """Returns the state before the first update."""
        dtype = lay_out(self.candidates, params, Remainder()).dtype
        num_groups = self.candidates.num_groups
        return H2SPGState(
            step=jnp.zeros([], jnp.int32),
            phase=jnp.full([], WARMUP, jnp.int32),
            scores=jnp.zeros(num_groups, dtype),
            redundant=jnp.zeros(num_groups, bool),
            zero=jnp.zeros(num_groups, bool),
            planned=jnp.asarray(np.isin(np.arange(num_groups), self.target.reachable)),
            revived=jnp.zeros(num_groups, bool),
            norms=jnp.zeros(num_groups, dtype),
            start_norms=jnp.zeros(num_groups, dtype),
            space_id=jnp.uint32(self.candidates.fingerprint),
        )

    def update(
        self, updates: optax.Updates, state: H2SPGState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, H2SPGState]:
        """Changes the updates of an optimizer as the phase demands."""
        if params is None:
            raise ArgumentError("h2spg needs the parameters: call tx.update(grads, opt_state, params)")
        _check_state(state, self.candidates)
        state = _with_dtypes(state)
        layout = lay_out(self.candidates, params, state.remainder)
        if state.remainder.is_final:
            norms = jnp.where(state.zero, 0, state.norms)
            return updates, state._replace(step=optax.safe_increment(state.step), norms=norms)
        step, rounds = state.step, self.rounds
        alpha = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        alpha = jnp.asarray(alpha, layout.dtype)
        check_updates(layout, params, updates)
        xs, us = grouped_leaves(layout, params), grouped_leaves(layout, updates)
        # In the narrower of two dtypes, x − x would not be exactly zero.
        us = [u.astype(jnp.result_type(x, u)) for x, u in zip(xs, us, strict=True)]

        sums, state = self._measure(layout, xs, us, state)
        stats = _group_stats(sums, alpha, jnp.asarray(layout.num_params, layout.dtype))
        state = jax.lax.cond(rounds.starts_at(step), self._select, lambda state: state, state)
        strengths = _shrinking_strengths(stats, self.lmbda, self.amplify, self.hat)
        # Parameters and updates are read again only where something can move.
        us, zero = jax.lax.cond(
            step >= rounds.first_start,
            lambda: self._move(layout, xs, us, state, sums, alpha * strengths),
            lambda: (us, state.zero),
        )
        is_done = (step >= rounds.last_start) & jnp.all(zero == state.redundant)
        phase = jnp.where(is_done, DONE, jnp.where(step < rounds.first_start, WARMUP, PROJECTION))
        return with_grouped_leaves(layout, updates, us), state._replace(
            step=optax.safe_increment(step),
            phase=phase.astype(jnp.int32),
            # A round that starts with this update was selected with the scores averaged before it.
            scores=self._averaged_scores(state, stats),
            zero=zero,
        )

    def _measure(
        self, layout: GroupLayout, xs: list[jax.Array], us: list[jax.Array], state: H2SPGState
    ) -> tuple[GroupSums, H2SPGState]:
        """Returns the inner products over the groups, and the state with their norms and those found to be revived."""
        # Once more after the end: whether what has been set to zero last is so.
        is_unsure = jnp.any(state.zero & (state.norms > 0))
        is_measured = (state.step >= self.first_scoring) & ((state.phase != DONE) | is_unsure)
        nothing = GroupSums(*jnp.zeros((3, self.candidates.num_groups), layout.dtype))
        sums = jax.lax.cond(is_measured, lambda: sum_over_groups(layout, xs, us), lambda: nothing)
        revived = (state.zero | state.revived) & jnp.where(is_measured, sums.x_x > 0, state.revived)
        zero = state.zero & ~revived
        # What an optimizer would do to a frozen zero is no property of the group: it may not even be there any more.
        sums = GroupSums(*(jnp.where(zero, 0, each) for each in sums))
        is_concerned = (state.phase != DONE) | zero | revived
        norms = jnp.where(is_measured & is_concerned, jnp.sqrt(sums.x_x), state.norms)
        return sums, state._replace(zero=zero, revived=revived, norms=norms)

    def _select(self, state: H2SPGState) -> H2SPGState:
        """Plans the whole target anew around what is redundant already, and adds this round's share of it."""
        number = self.rounds.number(state.step)
        planned, redundant, _ = self.target.select(
            state.scores, number, state.planned, state.redundant, by_cost=False, hierarchical=self.hierarchical
        )
        return state._replace(planned=planned, redundant=redundant, start_norms=state.norms)

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
        left = self.rounds.fraction_left(state.step).astype(layout.dtype)
        moves = _project(sums, pull, self.epsilon, left * state.start_norms if self.guarantee_target else None)
        moves = GroupMoves(
            jnp.where(state.redundant, moves.scale, 1),
            jnp.where(state.redundant, moves.shift, 0),
            state.zero | (state.redundant & moves.zero),
        )
        # Keeps the compiler from doing this arithmetic again for every single parameter.
        moves = jax.lax.optimization_barrier(moves)
        # Until they are found to be zero, those revived are not believed to be.
        return move_groups(layout, xs, us, moves), moves.zero & ~state.revived

    def _averaged_scores(self, state: H2SPGState, stats: GroupStats) -> jax.Array:
        """Returns the moving average of the scores with those of this update, as long as it is kept."""
        scores = _checked_scores(self.score(stats), len(state.scores)).astype(state.scores.dtype)
        averaged = self.omega * state.scores + (1 - self.omega) * scores
        averaged = jnp.where(state.step == self.first_scoring, scores, averaged)
        is_scoring = (state.step >= self.first_scoring) & (state.step < self.rounds.last_start)
        return jnp.where(is_scoring, averaged, state.scores).astype(state.scores.dtype)


def _candidates_of(space: Any) -> Candidates:
    candidates = space if isinstance(space, Candidates) else getattr(space, "candidates", None)
    if not isinstance(candidates, Candidates):
        raise ArgumentError(f"expected a search space, as jasgnas.search_space returns it, got {type(space).__name__}")
    return candidates


def h2spg_state(opt_state: Any, space: "SearchSpace | Candidates | None" = None) -> H2SPGState:
    """Returns the state of `h2spg` inside an optimizer state, its fields as plain arrays.

    Args:
        opt_state: state of any optax transformation that holds `h2spg` once: a chain, `optax.MultiSteps`,
            `optax.multi_transform`, …; also the `opt_state` of an `nnx.Optimizer`, whose leaves are variables.
        space: the search space that the state must have been made for. To be given for a state that was restored: the
            values of a state are not known inside `jax.jit`, so that `update` only refuses another number of groups.

    Raises:
        ArgumentError: there is no such state, or more than one.
        TreeMismatchError: the state was made for another search space.

    Example:
        >>> state = h2spg_state(opt_state)  # doctest: +SKIP
        >>> int(state.phase), state.redundant.tolist()  # doctest: +SKIP
        (1, [True, False, True])
    """
    states = h2spg_states(opt_state)
    if len(states) != 1:
        raise ArgumentError(
            f"expected an optimizer state that holds one H2SPGState, found {len(states)} in a "
            f"{type(opt_state).__name__}; give the state of a transformation made with one jasgnas.h2spg, or the "
            f"opt_state of its nnx.Optimizer. {LOST_TYPE}"
        )
    # Leaf by leaf, since those of an `nnx.Optimizer` are inside variables.
    state = _with_dtypes(states[0]._replace(**dict(zip(H2SPGState._fields, jax.tree.leaves(states[0]), strict=False))))
    if space is not None:
        _check_state(state, _candidates_of(space))
    return state


def h2spg_states(opt_state: Any) -> list[H2SPGState]:
    """Returns every state of `h2spg` inside an optimizer state, as it is."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, H2SPGState))
    return [node for node in nodes if isinstance(node, H2SPGState)]


def h2spg_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Returns what is worth logging, from the state alone; also inside jit.

    Args:
        opt_state: anything that `h2spg_state` accepts.

    Returns:
        `phase`, `num_redundant`, `num_zero` and `num_removed` (int32; `jasgnas.shrink` has taken these out),
        `group_sparsity` (float, fraction of groups that are zero), and the vectors `scores` and `shrinking_norms`
        (float `[num_groups]`, 0 for groups not on their way to zero). `num_revived` (int32) counts the groups that were
        set to zero and are not: it is 0 where `h2spg` is the last link.

    Raises:
        ArgumentError: there is no such state, more than one, or it is replicated over devices.

    Warns:
        RevivedGroupsWarning: `num_revived` is not 0, outside jit.
    """
    state = single_state(h2spg_state(opt_state))
    if not isinstance(state.revived, jax.core.Tracer) and (revived := np.flatnonzero(state.revived).tolist()):
        warnings.warn(f"the groups {revived} were set to zero and are not. {CHANGED_UPDATES}", RevivedGroupsWarning, 2)
    return {
        "phase": state.phase,
        "num_redundant": jnp.sum(state.redundant, dtype=jnp.int32),
        "num_zero": jnp.sum(state.zero, dtype=jnp.int32),
        "num_revived": jnp.sum(state.revived, dtype=jnp.int32),
        "num_removed": jnp.int32(len(state.remainder.removed)),
        "group_sparsity": jnp.mean(state.zero, dtype=state.scores.dtype),
        "scores": state.scores,
        "shrinking_norms": jnp.where(state.redundant & ~state.zero, state.norms, 0),
    }


def single_state(state: H2SPGState) -> H2SPGState:
    """Returns the state if it is that of one device; raises an `ArgumentError` for copies of several in one array."""
    if np.ndim(state.zero) != 1:
        raise ArgumentError(
            f"the optimizer state is replicated: expected vectors over the groups, got {np.shape(state.zero)}. Pass "
            "the copy of one device, jax.tree.map(lambda x: x[0], opt_state)"
        )
    return state


CHANGED_UPDATES = (
    "Something after h2spg changes its updates (another link of the chain, or what wraps it) or the parameters "
    "themselves: h2spg must be the last link of the chain, and its updates be applied as they are"
)
LOST_TYPE = (
    "A checkpoint that was restored without its types holds plain tuples or dicts: restore it into the tree that "
    "tx.init(params) returns"
)


class _Rounds(NamedTuple):
    """The rounds of selection and projection.

    Attributes:
        starts: int `[num_rounds + 1]`, update that each round starts with, and the update after the last round.
    """

    starts: np.ndarray

    @classmethod
    def divide(cls, warmup_steps: int, projection_steps: int, periods: int) -> "_Rounds":
        """Divides the projection phase into `periods` parts, equal up to rounding."""
        return cls(warmup_steps + np.arange(periods + 1) * projection_steps // periods)

    @property
    def first_start(self) -> int:
        """The update that makes the first selection."""
        return int(self.starts[0])

    @property
    def last_start(self) -> int:
        """The update that makes the last selection."""
        return int(self.starts[-2])

    def starts_at(self, step: jax.Array) -> jax.Array:
        """Returns whether a round starts with this update."""
        return jnp.any(self.starts[:-1] == step)

    def fraction_left(self, step: jax.Array) -> jax.Array:
        """Returns the part of the round's updates that comes after this one, exactly 0 from the last one on."""
        lengths = jnp.asarray(np.diff(self.starts))
        left = jnp.asarray(self.starts[1:])[self.number(step)] - 1 - step
        return jnp.maximum(left, 0) / lengths[self.number(step)]

    def number(self, step: jax.Array) -> jax.Array:
        """Returns the number of the round that this update belongs to, the nearest one outside all rounds."""
        return jnp.clip(jnp.searchsorted(self.starts, step, side="right") - 1, 0, len(self.starts) - 2)


def _group_stats(sums: GroupSums, alpha: jax.Array, num_params: jax.Array) -> GroupStats:
    """Returns norms and inner product of x and d = −u/α, with d = 0 where α = 0."""
    inverse = jnp.where(alpha > 0, 1 / jnp.where(alpha > 0, alpha, 1), 0)
    return GroupStats(num_params, jnp.sqrt(sums.x_x), inverse * jnp.sqrt(sums.u_u), -inverse * sums.x_u)


def _shrinking_strengths(
    stats: GroupStats, lmbda: float | jax.Array, amplify: float | jax.Array, hat: float | jax.Array
) -> jax.Array:
    """Returns λ of each group, `[num_groups]`, by the rule of DHSPG (arXiv 2303.06862, section 3.2).

    Where the direction alone would let the group grow, λ must exceed `lower` for the group to shrink, and stay below
    `upper` for the step to be one of descent.
    """
    is_growing = stats.x_dot_d < 0
    x_dot_d = jnp.where(is_growing, stats.x_dot_d, -1)
    x_norm = jnp.where(is_growing, stats.x_norm, 1)
    lower = -x_dot_d / x_norm
    upper = -(stats.d_norm**2) * x_norm / x_dot_d
    strength = jnp.clip(amplify * lower, lmbda, hat * lmbda)
    strength = jnp.where(strength >= upper, (lower + upper) / 2, strength)
    return jnp.where(is_growing, strength, lmbda)


def _project(sums: GroupSums, pull: jax.Array, epsilon: float | jax.Array, limits: jax.Array | None) -> GroupMoves:
    """Returns what would become of each group if it were redundant.

    Args:
        sums: inner products of x and u.
        pull: αλ, float `[num_groups]`: by how much the norm is shortened beside the update.
        epsilon: ε of the half-space.
        limits: bound on the norm after the update, float `[num_groups]`, or None for no bound.
    """
    norm = jnp.sqrt(sums.x_x)
    shortening = pull / jnp.where(norm > 0, norm, 1)
    left = 1 - shortening  # x̂ = left·x + u
    projected = (left * sums.x_x + sums.x_u < epsilon * sums.x_x) | (norm == 0)
    if limits is None:
        return GroupMoves(jnp.ones_like(norm), -shortening, projected)
    new_norm = jnp.sqrt(jnp.maximum(left**2 * sums.x_x + 2 * left * sums.x_u + sums.u_u, 0))
    is_too_long = new_norm > limits
    scale = jnp.where(is_too_long, limits / jnp.where(is_too_long, new_norm, 1), 1)
    return GroupMoves(scale, scale - 1 - scale * shortening, projected | (limits <= 0))


def _memory(omega: float | jax.Array) -> float:
    """Returns after how many updates a moving average has forgotten what was before them, to double precision."""
    if isinstance(omega, jax.Array):
        return np.inf  # Under optax.inject_hyperparams its value is not known yet.
    return 1 if omega == 0 else int(np.ceil(np.log(np.finfo(np.float64).eps) / np.log(omega)))


def _find_score(score: str | ScoreFn) -> ScoreFn:
    """Returns the score of this name, or the function itself."""
    if callable(score):
        return score
    scores = {"default": SCORES[DEFAULT_SCORE], **SCORES}
    if score not in scores:
        raise ArgumentError(f"score must be a function of GroupStats or one of {', '.join(scores)}, got {score!r}")
    return scores[score]


def _checked_scores(scores: Any, num_groups: int) -> jax.Array:
    if np.shape(scores) != (num_groups,):
        raise ArgumentError(
            f"a score must return an array of shape [num_groups], here ({num_groups},), got "
            f"{type(scores).__name__} of shape {np.shape(scores)}"
        )
    return jnp.asarray(scores)


def _check_learning_rate(learning_rate: Any) -> None:
    is_array = isinstance(learning_rate, jax.Array | np.ndarray) and np.ndim(learning_rate) == 0
    is_number = (
        isinstance(learning_rate, NUMBERS) and not isinstance(learning_rate, bool) and 0 <= learning_rate < np.inf
    )
    if not (callable(learning_rate) or is_array or is_number):
        raise ArgumentError(f"learning_rate must be a number, at least 0, or an optax schedule, got {learning_rate!r}")


def _with_dtypes(state: H2SPGState) -> H2SPGState:
    """Returns the state with booleans and integers of its own dtypes.

    A wrapper that blends two states by arithmetic, such as `optax.contrib.sam`, makes int32 of all of them.
    """
    dtypes: dict[str, Any] = dict.fromkeys(("redundant", "zero", "planned", "revived"), jnp.bool_)
    dtypes["space_id"] = jnp.uint32
    changed = {name: getattr(state, name) for name in dtypes}
    return state._replace(
        **{name: leaf.astype(dtypes[name]) for name, leaf in changed.items() if leaf.dtype != dtypes[name]}
    )


def _check_state(state: H2SPGState, candidates: Candidates) -> None:
    """Raises an error if the state is none, or was made for another space, as far as that is known while tracing."""
    if not isinstance(state, H2SPGState):
        raise ArgumentError(f"expected an H2SPGState, got {type(state).__name__}. {LOST_TYPE}")
    expected, found = candidates.num_groups, np.shape(state.scores)[-1:]
    is_concrete = not isinstance(state.space_id, jax.core.Tracer)
    is_other = is_concrete and bool(
        np.any(np.asarray(_with_dtypes(state).space_id) != np.uint32(candidates.fingerprint))
    )
    if found != (expected,) or is_other:
        raise TreeMismatchError(
            f"the optimizer state is for the {found[0]} groups of another search space than the given one, which has "
            f"{expected}. Restore the state saved with this network, or start anew with "
            "tx.init(params)"
        )
