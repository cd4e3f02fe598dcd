"""Redundancy scores: how little the network is expected to lose with a group. Pure functions of arrays over the groups.

Larger means more likely to be removed. A score sees a group only through `GroupStats`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class GroupStats(NamedTuple):
    """What a score may look at; x are a group's parameters and d is the direction that the optimizer steps against.

    Attributes:
        num_params: number of parameters |g|, float `[num_groups]`.
        x_norm: ‖x‖, float `[num_groups]`.
        d_norm: ‖d‖, float `[num_groups]`; the update is −α·d at learning rate α.
        x_dot_d: ⟨x, d⟩, float `[num_groups]`.
    """

    num_params: jax.Array
    x_norm: jax.Array
    d_norm: jax.Array
    x_dot_d: jax.Array


ScoreFn = Callable[[GroupStats], jax.Array]


def magnitude(stats: GroupStats) -> jax.Array:
    """Returns −‖x‖, `[num_groups]`: small groups go first."""
    return -stats.x_norm


def average_magnitude(stats: GroupStats) -> jax.Array:
    """Returns −‖x‖/|g|, `[num_groups]`: groups of small parameters go first, however many they are."""
    return -stats.x_norm / stats.num_params


def cosine(stats: GroupStats) -> jax.Array:
    """Returns the cosine of the angle between −x and −d, `[num_groups]`: groups that descent shrinks go first.

    It is 0 where x or d is zero.
    """
    return _divide(_divide(stats.x_dot_d, stats.x_norm), stats.d_norm)


def taylor(stats: GroupStats) -> jax.Array:
    """Returns −|⟨x, d⟩|, `[num_groups]`: groups whose removal changes the loss least go first.

    ⟨x, d⟩ is the change to first order if d is the gradient (Molchanov et al., arXiv 1906.10771).
    """
    return -jnp.abs(stats.x_dot_d)


def published(stats: GroupStats) -> jax.Array:
    """Returns the mean of two normalised terms, the score of the paper (arXiv 2305.18030, section 3.2), `[num_groups]`.

    The cosine of the angle between −x and the descent direction −d, and the reciprocal of the mean magnitude ‖x‖/|g|,
    each divided by its l2 norm over the groups. A group that is zero has the largest second term there can be: 1.
    """
    reciprocal = _normalise(_divide(stats.num_params, stats.x_norm))
    return 0.5 * _normalise(cosine(stats)) + 0.5 * jnp.where(stats.x_norm > 0, reciprocal, 1)


SCORES: dict[str, ScoreFn] = {
    score.__name__: score for score in (magnitude, average_magnitude, cosine, taylor, published)
}
"""By name."""

DEFAULT_SCORE = magnitude.__name__
"""What `h2spg` takes unless told otherwise: the best of them in the ablations, see the README."""


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, and 0 where the denominator is not positive."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def _normalise(values: jax.Array) -> jax.Array:
    """Returns the values divided by their l2 norm, or zeros if all are zero."""
    # Divided by the largest first, so that no square overflows or vanishes.
    scaled = _divide(values, jnp.max(jnp.abs(values)))
    return _divide(scaled, jnp.linalg.norm(scaled))
