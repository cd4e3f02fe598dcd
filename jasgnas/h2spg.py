"""H2SPG, the optimizer that removes groups: the last link of an optax chain.

Owns the phases (warm-up, selection, projection) and what they do to the updates. Which groups there are is `space.py`'s
business, which may go together `validity.py`'s, and which should go first `scores.py`'s.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.errors import ArgumentError, TargetError, TreeMismatchError
from jasgnas.pytree import leaves_by_path
from jasgnas.scores import SCORES, GroupStats, ScoreFn
from jasgnas.validity import critical_segments, falling_order, first_in_order, largest_removal, select_redundant

if TYPE_CHECKING:
    from jasgnas.space import SearchSpace

WARMUP, PROJECTION, DONE = range(3)
"""Values of `H2SPGState.phase`."""

ADAM_DEFAULTS: Mapping[str, float] = {"lmbda": 1e-2, "amplify": 20.0, "hat": 1e3}
"""The published λ rule for Adam and its relatives: `h2spg(space, ..., **ADAM_DEFAULTS)`. `h2spg`'s own is for SGD."""

_NUMBERS = (int, float, np.integer, np.floating)


class H2SPGState(NamedTuple):
    """State of `h2spg`: a few vectors over the groups, nothing of the size of the parameters.

    Attributes:
        step: int32, number of updates made.
        phase: int32, phase that the latest update was made in or has reached: 0 warm-up, 1 projection, 2 done, which
            means that all groups of the target are exactly zero.
        scores: float `[num_groups]`, moving average of the redundancy scores; stays as it is after the last selection.
        redundant: bool `[num_groups]`, groups selected to go.
        zero: bool `[num_groups]`, groups that are exactly zero and stay so; a subset of `redundant`.
        planned: bool `[num_groups]`, a valid set as large as the target that contains `redundant`: proof that the
            target stays within reach when `redundant` is selected in several rounds.
        norms: float `[num_groups]`, norm of each group's parameters as the latest update found them, 0 for zero groups;
            not kept up to date where no norms are needed, that is before the scores are averaged and after the end.
        start_norms: float `[num_groups]`, the same at the latest selection.
    """

    step: jax.Array
    phase: jax.Array
    scores: jax.Array
    redundant: jax.Array
    zero: jax.Array
    planned: jax.Array
    norms: jax.Array
    start_norms: jax.Array


def h2spg(
    space: "SearchSpace",
    *,
    learning_rate: optax.ScalarOrSchedule,
    target_groups: int | None = None,
    target_sparsity: float | None = None,
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
    P-th of the target and has it exactly zero at its end. Scores are averaged until the last selection.

    Args:
        space: the search space of the network, from `jasgnas.search_space`.
        learning_rate: α of the links before, number or optax schedule; it must be what they multiply with.
        target_groups: how many groups to remove. Exactly one of `target_groups` and `target_sparsity` is needed.
        target_sparsity: the same as a fraction of the number of groups, rounded down.
        warmup_steps: updates before the first selection, at least 1.
        projection_steps: updates over which redundant groups go to zero, at least `periods`.
        selection_steps: how many of the last warm-up updates the scores are averaged over; None means all of them.
            Updates before these cost nothing.
        periods: rounds of selection and projection.
        lmbda: λ, the least strength of the shrinking.
        amplify: how far λ exceeds the least value that lets a group shrink that the optimizer would let grow.
        hat: bound on λ as a multiple of `lmbda`.
        epsilon: ε of the half-space, in [0, 1); larger projects sooner.
        omega: ω, weight of the past in the moving average of the scores, in [0, 1).
        score: name of a score in `jasgnas.scores.SCORES`, or a function of `GroupStats` that returns `[num_groups]`
            scores, larger for groups to remove sooner.
        hierarchical: False ignores validity and takes the best-scoring groups, as DHSPG does; for comparisons only.
        guarantee_target: False leaves the norms to the papers' method alone, which may not reach the target in time.

    Returns:
        A gradient transformation whose state is an `H2SPGState`. Its `update` needs `params`.

    Raises:
        ArgumentError: an option is of the wrong kind or out of range, or not exactly one target is given.
        TargetError: no valid removal reaches the target.
        TreeMismatchError: by `init` and `update`, parameters or a state that do not belong to the search space.

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
    num_groups = len(space.groups)
    selection_steps = warmup_steps if selection_steps is None else selection_steps
    _check_learning_rate(learning_rate)
    _check_integer("warmup_steps", warmup_steps, 1)
    _check_integer("selection_steps", selection_steps, 1, warmup_steps)
    _check_integer("periods", periods, 1)
    _check_integer("projection_steps", projection_steps, periods)
    _check_number("lmbda", lmbda, 0, np.inf)
    _check_number("amplify", amplify, 1, np.inf)
    _check_number("hat", hat, 1, np.inf)
    _check_number("epsilon", epsilon, 0, 1)
    _check_number("omega", omega, 0, 1)
    score_fn = _find_score(score)

    largest = largest_removal(space.topology, num_groups) if hierarchical else range(num_groups)
    num_redundant = _resolve_target(num_groups, target_groups, target_sparsity, len(largest))
    _check_integer("periods", periods, 1, num_redundant)
    critical = critical_segments(space.topology)
    rounds = _Rounds.divide(warmup_steps, projection_steps, periods, num_redundant)
    first_scoring = warmup_steps - selection_steps
    num_params = np.array([group.num_params for group in space.groups])

    def init(params: optax.Params) -> H2SPGState:
        dtype = _lay_out(space, params).dtype
        return H2SPGState(
            step=jnp.zeros([], jnp.int32),
            phase=jnp.full([], WARMUP, jnp.int32),
            scores=jnp.zeros(num_groups, dtype),
            redundant=jnp.zeros(num_groups, bool),
            zero=jnp.zeros(num_groups, bool),
            planned=jnp.asarray(np.isin(np.arange(num_groups), largest)),
            norms=jnp.zeros(num_groups, dtype),
            start_norms=jnp.zeros(num_groups, dtype),
        )

    def select(state: H2SPGState, norms: jax.Array) -> H2SPGState:
        """Plans the whole target anew around what is redundant already, and adds this round's share of it."""
        order = falling_order(state.scores, state.redundant)
        if hierarchical:
            planned = select_redundant(
                space.topology, critical, state.scores, num_redundant, state.planned, state.redundant
            )
        else:
            planned = first_in_order(order, jnp.ones(num_groups, bool), num_redundant)
        redundant = first_in_order(order, planned, rounds.size(state.step))
        return state._replace(planned=planned, redundant=redundant, start_norms=norms)

    def update(
        updates: optax.Updates, state: H2SPGState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, H2SPGState]:
        if params is None:
            raise ArgumentError("h2spg needs the parameters: call tx.update(grads, opt_state, params)")
        layout = _lay_out(space, params)
        _check_state(state, num_groups)
        step, dtype = state.step, layout.dtype
        alpha = jnp.asarray(learning_rate(step) if callable(learning_rate) else learning_rate, dtype)
        us, treedef = jax.tree.flatten(updates)
        xs = jax.tree.leaves(params)

        is_measured = (step >= first_scoring) & (state.phase != DONE)
        sums = jax.lax.cond(
            is_measured, lambda: _sum_over_groups(layout, xs, us), lambda: _Sums(*jnp.zeros((3, num_groups), dtype))
        )
        stats = _group_stats(sums, alpha, jnp.asarray(num_params, dtype))
        norms = jnp.where(is_measured, stats.x_norm, state.norms)
        state = jax.lax.cond(rounds.starts_at(step), select, lambda state, _: state, state, norms)

        def move() -> _Moves:
            limits = rounds.fraction_left(step).astype(dtype) * state.start_norms if guarantee_target else None
            strengths = _shrinking_strengths(stats, lmbda, amplify, hat)
            moves = _project(sums, alpha * strengths, epsilon, limits)
            return _Moves(
                jnp.where(state.redundant, moves.scale, 1),
                jnp.where(state.redundant, moves.shift, 0),
                state.zero | (state.redundant & moves.zero),
            )

        # A conditional also keeps the compiler from doing this arithmetic again for every single parameter.
        still = _Moves(jnp.ones(num_groups, dtype), jnp.zeros(num_groups, dtype), state.zero)
        moves = jax.lax.cond(step >= warmup_steps, move, lambda: still)
        us = _move_groups(layout, xs, us, moves)

        # A round that starts with this update was selected with the scores averaged before it.
        new_scores = score_fn(stats).astype(dtype)
        new_scores = jnp.where(step == first_scoring, new_scores, omega * state.scores + (1 - omega) * new_scores)
        is_scoring = (step >= first_scoring) & (step < rounds.last_start)
        is_done = jnp.sum(moves.zero) == num_redundant
        return jax.tree.unflatten(treedef, us), state._replace(
            step=optax.safe_increment(step),
            phase=jnp.where(is_done, DONE, jnp.where(step < warmup_steps, WARMUP, PROJECTION)).astype(jnp.int32),
            scores=jnp.where(is_scoring, new_scores, state.scores).astype(dtype),
            zero=moves.zero,
            norms=jnp.where(moves.zero, 0, norms),
        )

    return optax.GradientTransformation(init, update)


def h2spg_state(opt_state: Any) -> H2SPGState:
    """Returns the state of `h2spg` inside an optimizer state, its fields as plain arrays.

    Args:
        opt_state: state of any optax transformation that holds `h2spg` once: a chain, `optax.MultiSteps`,
            `optax.multi_transform`, …; also the `opt_state` of an `nnx.Optimizer`, whose leaves are variables.

    Raises:
        ArgumentError: there is no such state, or more than one.

    Example:
        >>> state = h2spg_state(opt_state)  # doctest: +SKIP
        >>> int(state.phase), state.redundant.tolist()  # doctest: +SKIP
        (1, [True, False, True])
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, H2SPGState))
    states = [node for node in nodes if isinstance(node, H2SPGState)]
    if len(states) != 1:
        raise ArgumentError(
            f"expected an optimizer state that holds one H2SPGState, found {len(states)} in a "
            f"{type(opt_state).__name__}; give the state of a transformation made with one jasgnas.h2spg, or the "
            "opt_state of its nnx.Optimizer"
        )
    return H2SPGState(*jax.tree.leaves(states[0]))


def h2spg_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Returns what is worth logging, from the state alone; also inside jit.

    Args:
        opt_state: anything that `h2spg_state` accepts.

    Returns:
        `phase`, `num_redundant`, `num_zero` (int32), `group_sparsity` (float, fraction of groups that are zero), and
        the vectors `scores` and `shrinking_norms` (float `[num_groups]`, 0 for groups not on their way to zero).
    """
    state = h2spg_state(opt_state)
    return {
        "phase": state.phase,
        "num_redundant": jnp.sum(state.redundant, dtype=jnp.int32),
        "num_zero": jnp.sum(state.zero, dtype=jnp.int32),
        "group_sparsity": jnp.mean(state.zero, dtype=state.scores.dtype),
        "scores": state.scores,
        "shrinking_norms": jnp.where(state.redundant & ~state.zero, state.norms, 0),
    }


class _Rounds(NamedTuple):
    """The rounds of selection and projection.

    Attributes:
        starts: int `[num_rounds + 1]`, update that each round starts with, and the update after the last round.
        sizes: int `[num_rounds]`, number of redundant groups from each round on.
    """

    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def divide(cls, warmup_steps: int, projection_steps: int, periods: int, num_redundant: int) -> "_Rounds":
        """Divides the projection phase and the target into `periods` parts, equal up to rounding."""
        rounds = np.arange(periods + 1)
        return cls(warmup_steps + rounds * projection_steps // periods, rounds[1:] * num_redundant // periods)

    @property
    def last_start(self) -> int:
        """The update that makes the last selection."""
        return int(self.starts[-2])

    def starts_at(self, step: jax.Array) -> jax.Array:
        """Returns whether a round starts with this update."""
        return jnp.any(self.starts[:-1] == step)

    def size(self, step: jax.Array) -> jax.Array:
        """Returns the number of redundant groups in the round of this update."""
        return jnp.asarray(self.sizes)[self._index(step)]

    def fraction_left(self, step: jax.Array) -> jax.Array:
        """Returns the part of the round's updates that comes after this one, exactly 0 from the last one on."""
        lengths = jnp.asarray(np.diff(self.starts))
        left = jnp.asarray(self.starts[1:])[self._index(step)] - 1 - step
        return jnp.maximum(left, 0) / lengths[self._index(step)]

    def _index(self, step: jax.Array) -> jax.Array:
        """Returns the number of the round that this update belongs to, the nearest one outside all rounds."""
        return jnp.clip(jnp.searchsorted(self.starts, step, side="right") - 1, 0, len(self.sizes) - 1)


class _GroupedLeaf(NamedTuple):
    """Where the groups lie in a leaf.

    Attributes:
        position: place of the leaf among the leaves of the tree.
        axis: axis that the leaf is divided along, or None if the whole of it is in one group.
        ids: int `[length of axis]`, or `[1]`: the group of each entry along the axis; `num_groups` where there is none.
    """

    position: int
    axis: int | None
    ids: np.ndarray


class _Layout(NamedTuple):
    """Where the groups lie in a tree of parameters.

    Attributes:
        leaves: the leaves that hold groups.
        num_groups: number of groups.
        dtype: dtype to compute norms in, at least float32.
    """

    leaves: tuple[_GroupedLeaf, ...]
    num_groups: int
    dtype: Any


class _Sums(NamedTuple):
    """Inner products of parameters x and updates u over each group, float `[num_groups]` each."""

    x_x: jax.Array
    x_u: jax.Array
    u_u: jax.Array


class _Moves(NamedTuple):
    """What becomes of each group, `[num_groups]` each.

    Attributes:
        scale: float, factor on the update u.
        shift: float, factor on the parameters x: the group's update is `scale·u + shift·x`.
        zero: bool, the group is to be exactly zero instead.
    """

    scale: jax.Array
    shift: jax.Array
    zero: jax.Array


def _lay_out(space: "SearchSpace", params: optax.Params) -> _Layout:
    """Returns where the groups of the space lie in the parameters. Looks at paths, shapes and dtypes only.

    Raises:
        TreeMismatchError: lists every grouped leaf that is missing or has another shape.
    """
    found = {path: (position, leaf) for position, (path, leaf) in enumerate(leaves_by_path(params).items())}
    num_groups = len(space.groups)
    shapes = {leaf.path: tuple(leaf.shape) for leaf in space.leaves}
    grouped: dict[str, _GroupedLeaf] = {}
    dtypes, faults = [], []
    for part, index in ((part, group.index) for group in space.groups for part in group.slices):
        path, shape = part.path, shapes[part.path]
        # In a Linen tree of variables the parameters lie one level down.
        full_path = path if path in found else f"params/{path}"
        if full_path not in found:
            faults.append(f"{path} is missing")
            continue
        position, leaf = found[full_path]
        dtypes.append(leaf.dtype)
        if np.shape(leaf) != shape:
            faults.append(f"{path} has shape {np.shape(leaf)} instead of {shape}")
        elif part.axis is None:
            grouped[path] = _GroupedLeaf(position, None, np.array([index]))
        else:
            outside = np.full(shape[part.axis], num_groups)
            grouped.setdefault(path, _GroupedLeaf(position, part.axis, outside)).ids[part.start : part.stop] = index
    # A tree without leaves is what `optax.tree_map_params` finds out with which states are shaped like the parameters.
    if faults and found:
        raise TreeMismatchError(
            f"the parameters do not belong to the search space: {'; '.join(dict.fromkeys(faults))}. Expected the "
            "parameters of the network that the space was made from"
        )
    return _Layout(tuple(grouped.values()), num_groups, jnp.result_type(jnp.float32, *dtypes))


def _sum_over_groups(layout: _Layout, xs: list[jax.Array], us: list[jax.Array]) -> _Sums:
    """Returns the inner products over each group, in one pass over the grouped leaves of parameters and updates."""
    partial_sums, ids = [], []
    for leaf in layout.leaves:
        x, u = xs[leaf.position].astype(layout.dtype), us[leaf.position].astype(layout.dtype)
        axes = tuple(axis for axis in range(x.ndim) if axis != leaf.axis)
        sums = jnp.stack([jnp.sum(each, axes).reshape(-1) for each in (x * x, x * u, u * u)], axis=1)
        groups = np.setdiff1d(leaf.ids, layout.num_groups)
        if leaf.axis is not None:
            # Where the axis is sharded, devices thus exchange one sum per group and not the whole axis.
            sums = jnp.sum(jnp.where((groups[:, None] == leaf.ids)[..., None], sums, 0), axis=1)
        partial_sums.append(sums)
        ids.append(groups)
    totals = jax.ops.segment_sum(jnp.concatenate(partial_sums), np.concatenate(ids), layout.num_groups)
    return _Sums(*totals.T)


def _group_stats(sums: _Sums, alpha: jax.Array, num_params: jax.Array) -> GroupStats:
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


def _project(sums: _Sums, pull: jax.Array, epsilon: float | jax.Array, limits: jax.Array | None) -> _Moves:
    """Returns what would become of each group if it were redundant.

    Args:
        sums: inner products of x and u.
        pull: αλ, float `[num_groups]`: by how much the norm is shortened beside the update.
        epsilon: ε of the half-space.
        limits: bound on the norm after the update, float `[num_groups]`, or None for no bound.
    """
    norm = jnp.sqrt(sums.x_x)
    shortening = pull / jnp.where(norm > 0, norm, 1)
    kept = 1 - shortening  # x̂ = kept·x + u
    projected = (kept * sums.x_x + sums.x_u < epsilon * sums.x_x) | (norm == 0)
    if limits is None:
        return _Moves(jnp.ones_like(norm), -shortening, projected)
    new_norm = jnp.sqrt(jnp.maximum(kept**2 * sums.x_x + 2 * kept * sums.x_u + sums.u_u, 0))
    is_too_long = new_norm > limits
    scale = jnp.where(is_too_long, limits / jnp.where(is_too_long, new_norm, 1), 1)
    return _Moves(scale, scale - 1 - scale * shortening, projected | (limits <= 0))


def _move_groups(layout: _Layout, xs: list[jax.Array], us: list[jax.Array], moves: _Moves) -> list[jax.Array]:
    """Returns the leaves of the updates, changed where there are groups.

    Args:
        layout: where the groups lie.
        xs: leaves of the parameters.
        us: leaves of the updates.
        moves: what becomes of each group.
    """
    # The last entry is for what lies in no group.
    scale, shift, zero = jnp.append(moves.scale, 1), jnp.append(moves.shift, 0), jnp.append(moves.zero, False)
    moved = list(us)
    for leaf in layout.leaves:
        x, u = xs[leaf.position], us[leaf.position]
        shape = [length if axis == leaf.axis else 1 for axis, length in enumerate(x.shape)]
        scale_of, shift_of, is_zero = (values[leaf.ids].reshape(shape) for values in (scale, shift, zero))
        # Selected, not multiplied: x − x is exactly zero in every dtype, even where u is not finite. The update has the
        # wider of the two dtypes for the same reason.
        moved[leaf.position] = jnp.where(is_zero, -x, scale_of * u + shift_of * x).astype(jnp.result_type(x, u))
    return moved


def _resolve_target(num_groups: int, target_groups: int | None, target_sparsity: float | None, most: int) -> int:
    """Returns how many groups to remove.

    Raises:
        ArgumentError: not exactly one target is given, or it is of the wrong kind.
        TargetError: the target is not between 1 and `most` groups.
    """
    if (target_groups is None) == (target_sparsity is None):
        raise ArgumentError(
            f"expected exactly one of target_groups and target_sparsity, got {target_groups=} and {target_sparsity=}"
        )
    if target_sparsity is not None:
        _check_number("target_sparsity", target_sparsity, 0, np.inf)
        # Rounded down, but 0.29 of 100 groups is 29, not 28.
        target_groups = int(target_sparsity * num_groups + 1e-9)
    if not isinstance(target_groups, int | np.integer):
        raise ArgumentError(f"target_groups must be an int, got {target_groups!r}")
    if not 1 <= target_groups <= most:
        raise TargetError(
            f"cannot remove {target_groups} of {num_groups} groups ({target_sparsity=}): at least 1 must go, and at "
            f"most {most} can go together with every network output still reached"
        )
    return target_groups


def _find_score(score: str | ScoreFn) -> ScoreFn:
    """Returns the score of this name, or the function itself."""
    if callable(score):
        return score
    if score not in SCORES:
        raise ArgumentError(f"score must be a function of GroupStats or one of {', '.join(SCORES)}, got {score!r}")
    return SCORES[score]


def _check_learning_rate(learning_rate: Any) -> None:
    if not callable(learning_rate) and not isinstance(learning_rate, (*_NUMBERS, jax.Array)):
        raise ArgumentError(f"learning_rate must be a number or an optax schedule, got {learning_rate!r}")


def _check_integer(name: str, value: Any, least: int, most: float = np.inf) -> None:
    """Raises an `ArgumentError` unless the value is an int in `[least, most]`."""
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        bounds = f"at least {least}" if most == np.inf else f"between {least} and {most}"
        hint = "; under optax.inject_hyperparams name it in static_args" if isinstance(value, jax.Array) else ""
        raise ArgumentError(f"{name} must be an int, {bounds}, got {value!r}{hint}")


def _check_number(name: str, value: Any, least: float, bound: float) -> None:
    """Raises an `ArgumentError` unless the value is a number in `[least, bound)`, or an array, which may be traced."""
    if not isinstance(value, jax.Array) and not (isinstance(value, _NUMBERS) and least <= value < bound):
        raise ArgumentError(f"{name} must be a number in [{least}, {bound}), got {value!r}")


def _check_state(state: H2SPGState, num_groups: int) -> None:
    """Raises a `TreeMismatchError` if the state was made for a space with another number of groups."""
    if state.scores.shape != (num_groups,):
        raise TreeMismatchError(
            f"the optimizer state is for {state.scores.shape} groups, the search space has {num_groups}: it was made "
            "for another search space. Restore the one saved with this network, or start anew with tx.init(params)"
        )
