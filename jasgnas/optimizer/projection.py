"""Half-space projection: how far a redundant group moves in one update, and when it becomes zero.

Everything is computed from inner products over the groups; what is done to the parameters themselves is in `layout.py`.
"""

import jax
import jax.numpy as jnp

from jasgnas.optimizer.layout import GroupMoves, GroupSums
from jasgnas.optimizer.scores import GroupStats


def shrinking_strengths(
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


def project(sums: GroupSums, pull: jax.Array, epsilon: float | jax.Array, limits: jax.Array | None) -> GroupMoves:
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
