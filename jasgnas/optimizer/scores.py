"""Redundancy scores: how little the network is expected to lose with a group. Pure functions of arrays over the groups.

Larger means more likely to be removed. A score sees a group only through `GroupStats`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.optimizer.layout import GroupSums
from jasgnas.space.candidates import Candidates


class GroupStats(NamedTuple):
    """What a score may look at; each float `[num_groups]`, and None where it is not given.

    x are a group's parameters, d is the direction that the optimizer steps against, after momentum and weight decay,
    and g the gradient of the loss itself.

    Attributes:
        num_params: number of parameters |x|.
        x_norm: ‖x‖.
        d_norm: ‖d‖; the update is −α·d at learning rate α.
        x_dot_d: ⟨x, d⟩.
        grad_norm: ‖g‖.
        x_dot_grad: ⟨x, g⟩.
        gate: ⟨x_S, g_S⟩ over the entries S that the group's output is 1-homogeneous in: the derivative of the loss by a
            gate on that output. Over the whole group where there are no such entries.
        loss_rise: by how much the loss rises when the group is zero; NaN where that was not measured.
        saved_params: parameters that the network has less without the group; of branches that only the group reads,
            nothing is counted.
        saved_macs: multiply-adds that it has less.
    """

    num_params: jax.Array
    x_norm: jax.Array
    d_norm: jax.Array
    x_dot_d: jax.Array
    grad_norm: jax.Array | None = None
    x_dot_grad: jax.Array | None = None
    gate: jax.Array | None = None
    loss_rise: jax.Array | None = None
    saved_params: jax.Array | None = None
    saved_macs: jax.Array | None = None


ScoreFn = Callable[[GroupStats], jax.Array]


class Score(NamedTuple):
    """A redundancy score, and how it is to be used; called like its function.

    Attributes:
        fn: returns the scores `[num_groups]` of groups, larger for those to remove sooner.
        needs: what must be given for it beyond parameters and updates: "grad", the gradient, or "gate", the gradient
            of gates alone; "value_fn", the loss as a function of the parameters; "any", nothing, but it is shown the
            gradient where there is one; or "", nothing.
        is_cost: whether minus the score is in units of the loss, so that costs of groups can be added up.
        is_mean: whether its values over several updates are averaged evenly, and not with more weight on later ones.
        is_norm: whether it compares how long the parameters of groups are.
    """

    fn: ScoreFn
    needs: str = ""
    is_cost: bool = False
    is_mean: bool = False
    is_norm: bool = False

    def __call__(self, stats: GroupStats) -> jax.Array:
        """Returns the scores, `[num_groups]`.

        Raises:
            ArgumentError: the function returns something of another shape.
        """
        scores = self.fn(stats)
        if np.shape(scores) != np.shape(stats.num_params):
            raise ArgumentError(
                f"a score must be an array of shape [num_groups], here {np.shape(stats.num_params)}, got "
                f"{type(scores).__name__} of shape {np.shape(scores)}"
            )
        return jnp.asarray(scores)


def magnitude(stats: GroupStats) -> jax.Array:
    """Returns −‖x‖, `[num_groups]`: small groups go first."""
    return -stats.x_norm


def average_magnitude(stats: GroupStats) -> jax.Array:
    """Returns −‖x‖/|x|, `[num_groups]`: groups of small parameters go first, however many they are."""
    return -stats.x_norm / stats.num_params


def cosine(stats: GroupStats) -> jax.Array:
    """Returns the cosine of the angle between −x and −g, `[num_groups]`: groups that descent shrinks go first.

    It is 0 where x or g is zero.
    """
    return _divide(_divide(_given(stats, "x_dot_grad"), stats.x_norm), _given(stats, "grad_norm"))


def taylor(stats: GroupStats) -> jax.Array:
    """Returns −|⟨x, g⟩|, `[num_groups]`: groups whose removal changes the loss least go first.

    ⟨x, g⟩ is the change to first order (Molchanov et al., arXiv 1906.10771).
    """
    return -jnp.abs(_given(stats, "x_dot_grad"))


def published(stats: GroupStats) -> jax.Array:
    """Returns the mean of two normalised terms, the score of the paper (arXiv 2305.18030, section 3.2), `[num_groups]`.

    The cosine of the angle between −x and the descent direction −g, and the reciprocal of the mean magnitude ‖x‖/|x|,
    each divided by its l2 norm over the groups. A group that is zero has the largest second term there can be: 1.
    """
    reciprocal = _normalise(_divide(stats.num_params, stats.x_norm))
    return 0.5 * _normalise(cosine(stats)) + 0.5 * jnp.where(stats.x_norm > 0, reciprocal, 1)


def gate(stats: GroupStats) -> jax.Array:
    """Returns −⟨x_S, g_S⟩², `[num_groups]`: groups whose output the loss hardly depends on go first.

    If the output z of a group is 1-homogeneous in its entries S, scaling these scales z, and ⟨x_S, g_S⟩ is the
    derivative of the loss by that scale (Euler): the importance of a gate (Molchanov et al., arXiv 1906.10771) without
    a gate. A weight norm, and ⟨x, g⟩ over the whole group, say nothing where a norm undoes the scale of the weights.
    """
    return -(_given(stats, "gate") ** 2)


def ablation(stats: GroupStats) -> jax.Array:
    """Returns minus the measured rise of the loss without the group, `[num_groups]`; NaN where it was not measured."""
    return -_given(stats, "loss_rise")


SCORES: dict[str, Score] = {
    score.fn.__name__: score
    for score in (
        Score(magnitude, is_norm=True),
        Score(average_magnitude, is_norm=True),
        Score(cosine, needs="grad"),
        Score(taylor, needs="grad", is_cost=True),
        Score(published, needs="grad", is_norm=True),
        Score(gate, needs="gate", is_cost=True, is_mean=True),
        Score(ablation, needs="value_fn", is_cost=True, is_mean=True),
    )
}
"""By name."""

DEFAULT_SCORES: dict[str, str] = {"value_fn": "ablation", "grad": "gate", "": "magnitude"}
"""What `h2spg` takes unless told otherwise, by what it is given: the first of these."""


def find_score(score: Any) -> Score:
    """Returns the score that a user names or gives.

    Args:
        score: name of one of `SCORES`, a `Score`, a function of `GroupStats`, or scores `[num_groups]` that stay as
            they are.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if callable(score):
        return Score(score, needs="any")
    if isinstance(score, np.ndarray | jax.Array | list | tuple):
        return _fixed(score)
    raise ArgumentError(
        f"score must be one of default, {', '.join(SCORES)}, a function of GroupStats, or an array [num_groups], got "
        f"{score!r}"
    )


def require_comparable(score: Score, candidates: Candidates) -> None:
    """Raises an `ArgumentError` if a score compares the norms of gates with those of weights."""
    if score.is_norm and candidates.gate_groups:
        raise ArgumentError(
            f"{score.fn.__name__} goes by the norms of parameters, and those of gates, which are 1, say nothing: "
            "give the gradient or the loss, and a score that looks at these, 'gate' or 'ablation'"
        )


def _fixed(scores: Any) -> Score:
    """Returns the score that is the same whatever the statistics are."""
    fixed = jnp.asarray(scores)
    is_number = jnp.issubdtype(fixed.dtype, jnp.integer) or jnp.issubdtype(fixed.dtype, jnp.floating)
    is_known = not isinstance(fixed, jax.core.Tracer)
    if fixed.ndim != 1 or not is_number or (is_known and not bool(jnp.all(jnp.isfinite(fixed)))):
        raise ArgumentError(
            f"score, given as an array, must hold one finite number for each group, got {fixed.dtype} of shape "
            f"{fixed.shape}: {scores!r}"
        )
    return Score(lambda stats: fixed)


def group_stats(
    sums: GroupSums, alpha: jax.Array | float, num_params: np.ndarray, savings: Mapping[str, np.ndarray]
) -> GroupStats:
    """Returns what follows for each group from the inner products over it.

    Args:
        sums: inner products of parameters x, updates u and, where given, gradients g.
        alpha: learning rate α; d = −u/α, and 0 where α = 0.
        num_params: number of parameters of each group, `[num_groups]`.
        savings: what each group saves, `[num_groups]`, by the names of the measures of size.
    """
    alpha = jnp.asarray(alpha, sums.x_x.dtype)
    inverse = jnp.where(alpha > 0, 1 / jnp.where(alpha > 0, alpha, 1), 0)
    return GroupStats(
        num_params=jnp.asarray(num_params, sums.x_x.dtype),
        x_norm=jnp.sqrt(sums.x_x),
        d_norm=inverse * jnp.sqrt(sums.u_u),
        x_dot_d=-inverse * sums.x_u,
        grad_norm=None if sums.g_g is None else jnp.sqrt(sums.g_g),
        x_dot_grad=sums.x_g,
        gate=sums.gate,
        **{f"saved_{measure}": jnp.asarray(saved, sums.x_x.dtype) for measure, saved in savings.items()},
    )


def _given(stats: GroupStats, name: str) -> jax.Array:
    """Returns what a score cannot do without."""
    value: jax.Array | None = getattr(stats, name)
    if value is None:
        raise ArgumentError(
            f"this score needs GroupStats.{name}, which is not given: it takes "
            + ("the loss as a function of the parameters" if name == "loss_rise" else "the gradient of the loss")
        )
    return value


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, and 0 where the denominator is; NaN stays NaN."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0 * denominator)


def _normalise(values: jax.Array) -> jax.Array:
    """Returns the values divided by their l2 norm, or zeros if all are zero."""
    # Divided by the largest first, so that no square overflows or vanishes.
    scaled = _divide(values, jnp.max(jnp.abs(values)))
    return _divide(scaled, jnp.linalg.norm(scaled))
