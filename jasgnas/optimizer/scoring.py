"""Scores of the groups of a network that stands as it is, measured on a few batches outside any training loop."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import checked_batches, loss_value
from jasgnas.errors import ArgumentError, NonFiniteError
from jasgnas.optimizer.ablation import Loss
from jasgnas.optimizer.layout import Remainder, grouped_leaves, lay_out, sum_over_groups, with_grouped_leaves
from jasgnas.optimizer.scores import DEFAULT_SCORES, Score, ScoreFn, find_score, group_stats
from jasgnas.space.candidates import Candidates
from jasgnas.space.search import SearchSpace, require_space


def score_groups(
    space: SearchSpace,
    holder: Any,
    loss_fn: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    *,
    score: str | ScoreFn | Score | Any = "ablation",
    train: bool = False,
) -> np.ndarray:
    """Returns how little a network would lose with each of its groups, larger for those that could go sooner.

    Each score is the mean over the batches; values that are not finite are left out. The parameters are those at hand
    and nothing is trained: where H2SPG looks at the direction d of an optimizer, d is the gradient g itself (α = 1).

    `ablation` measures the loss without each group in turn and needs no gradient: a group's score is minus the rise of
    the loss. That is `num_groups` + 1 forward passes per batch. Scores of the gradient and functions of the user's take
    one forward and backward pass, `magnitude` and `average_magnitude` none. Each group is measured, also those that
    cannot go alone: which groups may go together is not asked here.

    One program is compiled for all groups and all batches of the same shapes.

    Args:
        space: the search space.
        holder: the `nnx.Module`, the variables of the Linen module, or the parameter pytree of the function. It stays
            as it is, its running statistics and random states too.
        loss_fn: called as `loss_fn(holder, batch)` inside `jax.jit`, with a copy of the holder, which it may change.
            Returns the mean loss over the batch, a scalar, or a tuple of it and anything else.
        batches: the batches, pytrees of arrays; at least one.
        score: name of a score in `jasgnas.optimizer.scores.SCORES`, "default" for the one that `h2spg` takes where it
            is given the loss, or a function of `GroupStats` that returns `[num_groups]` scores, which is given
            everything but `loss_rise`.
        train: whether `loss_fn` is given an `nnx.Module` in training mode, as it is otherwise in inference mode. In the
            other flavours the mode is an argument of the call, which is made by `loss_fn`.

    Returns:
        The scores, float32 `[num_groups]`, as `h2spg(..., score=scores)` takes them.

    Raises:
        ArgumentError: an argument is of the wrong kind, there is no batch, or the loss is no real scalar.
        TreeMismatchError: a parameter of the groups is missing or has another shape.
        NonFiniteError: a group's score is not finite on any of the batches.

    Example:
        >>> import jasgnas
        >>> params = {"a": jnp.ones((3, 3)), "b": jnp.zeros((3, 3))}
        >>> fn = lambda params, x: x @ params["a"] + jnp.tanh(x @ params["b"])
        >>> space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params)
        >>> loss = lambda params, batch: jnp.mean((fn(params, batch["x"]) - batch["y"]) ** 2)
        >>> batch = {"x": jnp.ones((2, 3)), "y": 4 * jnp.ones((2, 3))}
        >>> jasgnas.score_groups(space, params, loss, [batch]).tolist()  # the error of 1 grows to 4, or stays
        [-15.0, 0.0]

    References:
        Molchanov et al., arXiv 1906.10771: what a gradient says of the loss without a part of the network.
    """
    require_space(space)
    found = find_score(DEFAULT_SCORES["value_fn"] if isinstance(score, str) and score == "default" else score)
    model = space.model
    if train and model.static is None:
        raise ArgumentError(
            "train=True is for an nnx.Module, which holds its mode; here the mode is an argument of the call: let "
            "loss_fn call the network as in training"
        )
    tree = model.tree(holder)
    layout = lay_out(space.candidates, tree, Remainder())
    if any(isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer) for leaf in grouped_leaves(layout, tree)):
        raise ArgumentError("the values of these parameters are not known: pass the arrays themselves, outside jax.jit")

    @jax.jit
    def scores_of(tree: Any, batch: Any) -> jax.Array:
        def loss_of(tree: Any) -> jax.Array:
            value = loss_value(loss_fn(model.switched(model.like(holder, tree), train), batch))
            return value.astype(jnp.result_type(value, jnp.float32))

        return _measure(space.candidates, Loss(layout, tree, loss_of, None), found)

    measured = [np.asarray(scores_of(tree, batch), np.float64) for batch in checked_batches(batches)]
    return _finite_mean(space, np.stack(measured))


def _measure(candidates: Candidates, loss: Loss, score: Score) -> jax.Array:
    """Returns the scores of the groups on one batch, `[num_groups]`."""
    layout = loss.layout
    xs = grouped_leaves(layout, loss.params)
    rises, gs = None, None
    if score.needs == "value_fn":
        rises = loss.rises(jnp.eye(layout.num_groups, dtype=bool))
    elif score.needs:
        gs = jax.grad(lambda xs: loss.of_params(with_grouped_leaves(layout, loss.params, xs)))(xs)
    # Whoever looks at a direction that was not computed is told so by what follows from it.
    us = [jnp.full_like(x, jnp.nan) for x in xs] if gs is None else [-g for g in gs]
    sums = sum_over_groups(layout, xs, us, gs)
    return score(group_stats(sums, 1.0, layout.num_params, candidates.savings)._replace(loss_rise=rises))


def _finite_mean(space: SearchSpace, measured: np.ndarray) -> np.ndarray:
    """Returns the mean of those scores that are finite, float32 `[num_groups]`, given `[num_batches, num_groups]`."""
    is_finite = np.isfinite(measured)
    if (bad := np.flatnonzero(~is_finite.any(0))).size:
        listed = [f"{index} ({space.groups[index].name})" for index in bad[:5].tolist()]
        listed += [f"{bad.size - 5} more"] if bad.size > 5 else []
        raise NonFiniteError(
            f"on none of the {len(measured)} batches the score of the groups {', '.join(listed)} is finite. If these "
            "are all groups, the loss or its gradient is not finite to begin with: check the parameters and the "
            "batches. Otherwise the loss is not finite without them: have loss_fn return a large number instead, or "
            "name them when the space is made, search_space(..., keep=('path/*',))"
        )
    return (np.where(is_finite, measured, 0).sum(0) / is_finite.sum(0)).astype(np.float32)
