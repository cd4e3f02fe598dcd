"""What can go from a network that stands as it is, measured on a few batches outside any training loop."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.checks import checked_batches, loss_value
from jasgnas.errors import ArgumentError, NonFiniteError
from jasgnas.optimizer.ablation import Loss, Units, costs_beside, dearest_group, finite_rises, scores_of_exchange
from jasgnas.optimizer.layout import Remainder, grouped_leaves, lay_out, sum_over_groups, with_grouped_leaves
from jasgnas.optimizer.scores import DEFAULT_SCORES, Score, ScoreFn, find_score, group_stats, require_comparable
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
    the loss. That is `num_groups` + 1 forward passes per batch. Of channels it measures a random quarter of a dimension
    at a time, and shares the rise among them by their `gate`, which takes a backward pass, too. Scores of the gradient
    and functions of the user's take one forward and backward pass, `magnitude` and `average_magnitude` none. Each group
    is measured, also those that cannot go alone: which groups may go together is not asked here.

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
    # As in `h2spg`.
    most = "grad" if space.dimensions else "value_fn"
    found = find_score(DEFAULT_SCORES[most] if isinstance(score, str) and score == "default" else score)
    require_comparable(found, space.candidates)
    tree, loss_of = _loss_of(space, holder, loss_fn, train)
    scores_of = jax.jit(lambda tree, batch: _measure(space.candidates, loss_of(tree, batch), found))
    measured = [scores_of(tree, batch) for batch in checked_batches(batches)]
    scores = _finite_mean(measured)
    if (bad := np.flatnonzero(np.isnan(scores))).size:
        listed = [f"{index} ({space.groups[index].name})" for index in bad[:5].tolist()]
        listed += [f"{bad.size - 5} more"] if bad.size > 5 else []
        raise NonFiniteError(
            f"on none of the {len(measured)} batches the score of the groups {', '.join(listed)} is finite. If these "
            "are all groups, the loss or its gradient is not finite to begin with: check the parameters and the "
            "batches. Otherwise the loss is not finite without them: have loss_fn return a large number instead, or "
            "name them when the space is made, search_space(..., keep=('path/*',))"
        )
    return scores.astype(np.float32)


def select_groups(
    space: SearchSpace,
    holder: Any,
    loss_fn: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    *,
    target_groups: int | None = None,
    target_sparsity: float | None = None,
    target_params: int | float | None = None,
    target_macs: int | float | None = None,
    train: bool = False,
    hierarchical: bool = True,
) -> tuple[int, ...]:
    """Returns what a network can do without, by the loss without whole sets of groups, in rising order.

    Removals do not add up: of two branches that compute alike, either can go, and both cannot. So a first selection by
    the rise of the loss without each group alone is only where this starts. Each group is then measured beside that
    selection, a group of it by how much less the loss rises when it stays, and another set is selected by that. If the
    loss without this one rises less, it takes the place of the first, and so on until one is not better. Then the group
    whose return lowers the loss most is exchanged: the others are measured in its place. If that is better, it goes on
    from there, else it ends. In training, `h2spg` selects like this, spread over its updates.

    Each round is `num_groups` + 4 forward passes per batch; there are few. One program is compiled for all of them. A
    loss that is not finite without a set counts as much larger than all others; a batch on which it is not finite with
    all groups is left out.

    Args:
        space: the search space.
        holder: the network, as in `score_groups`.
        loss_fn: the loss, see there.
        batches: the batches, pytrees of arrays, at least one; they are held in memory.
        target_groups: how many groups to remove. Exactly one of the four targets is needed; they are those of `h2spg`.
        target_sparsity: the same as a fraction of the number of groups.
        target_params: the most trainable parameters of the sub-network, or a fraction of the full network's.
        target_macs: the same for multiply-adds.
        train: whether an `nnx.Module` is in training mode, see `score_groups`.
        hierarchical: False ignores whether the network stays valid; for comparisons only.

    Raises:
        ArgumentError: an argument is of the wrong kind, there is no batch, or the loss is no real scalar; not exactly
            one target is given; the loss is not finite without any of the groups.
        TargetError: no removal meets the target, or none is needed.
        TreeMismatchError: a parameter of the groups is missing or has another shape.

    Example:
        >>> import jasgnas
        >>> params = {name: jnp.full((3, 3), value) for name, value in (("a", 1.0), ("b", 1.0), ("c", 0.2))}
        >>> fn = lambda params, x: jnp.tanh(x @ params["a"] + x @ params["b"]) + x @ params["c"]
        >>> space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params)
        >>> loss = lambda params, batch: jnp.mean((fn(params, batch) - 1.6) ** 2)
        >>> scores = jasgnas.score_groups(space, params, loss, [jnp.ones((2, 3))])
        >>> space.select(scores, target_groups=2, per_cost=True)  # either of a and b can go
        (0, 1)
        >>> jasgnas.select_groups(space, params, loss, [jnp.ones((2, 3))], target_groups=2)
        (0, 2)
    """
    require_space(space)
    if space.dimensions:
        raise ArgumentError(
            "select_groups measures every group beside others, which for each of many channels takes too long: hand "
            "what score_groups returns to space.select, or make the space without channels=True"
        )
    select = partial(
        space.select,
        target_groups=target_groups,
        target_sparsity=target_sparsity,
        target_params=target_params,
        target_macs=target_macs,
        per_cost=True,
        hierarchical=hierarchical,
    )
    tree, loss_of = _loss_of(space, holder, loss_fn, train)
    rises_of = jax.jit(lambda tree, batch, gone, number: loss_of(tree, batch).rises(gone, number))
    kept = list(checked_batches(batches))
    every = np.arange(len(space.groups))

    def measured(gone: np.ndarray, number: int) -> list[np.ndarray]:
        """Returns the rises without the first of some sets, `[num_groups + 1]`, on each batch."""
        return [np.asarray(rises_of(tree, batch, gone, number)) for batch in kept]

    def scores_beside(planned: np.ndarray, base: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the scores of a plan's groups beside the others of it, and of the others beside a base."""
        beside = np.where(planned[:, None], planned, base) ^ (every[:, None] == every)
        gone = np.concatenate([planned[None], beside])
        costs = _finite_mean([costs_beside(rises[0], rises[1:], planned) for rises in measured(gone, len(gone))])
        # What cannot go beside the others is judged by what was known of it before.
        may_go = planned | [not hierarchical or space.is_valid(np.flatnonzero(each).tolist()) for each in beside]
        return np.where(may_go & ~np.isnan(costs), -costs, scores)

    def is_better(trial: np.ndarray, planned: np.ndarray) -> bool:
        both = np.concatenate([planned[None], trial[None], np.zeros((len(every) - 1, len(every)), bool)])
        rises = _finite_mean([finite_rises(rises[:2]) for rises in measured(both, 2)])
        return bool(rises[1] < rises[0])

    none = np.zeros(len(every), bool)
    scores = scores_beside(none, none, np.full(len(every), np.nan))
    planned = np.isin(every, select(scores))
    while True:
        scores = scores_beside(planned, planned, scores)
        trial = np.isin(every, select(scores))
        if not is_better(trial, planned):
            exchanged = int(dearest_group(scores, planned))
            scores = scores_beside(planned, planned & (every != exchanged), scores)
            trial = np.isin(every, select(scores_of_exchange(scores, planned, exchanged)))
            if not is_better(trial, planned):
                return tuple(np.flatnonzero(planned).tolist())
        planned = trial


def _loss_of(
    space: SearchSpace, holder: Any, loss_fn: Callable[[Any, Any], Any], train: bool
) -> tuple[Any, Callable[[Any, Any], Loss]]:
    """Returns the parameters of a network, and its loss on a batch as a function of them, to be called inside jit."""
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

    def loss_of(tree: Any, batch: Any) -> Loss:
        def value_of(tree: Any) -> jax.Array:
            value = loss_value(loss_fn(model.switched(model.like(holder, tree), train), batch))
            return value.astype(jnp.result_type(value, jnp.float32))

        return Loss(layout, tree, value_of, None)

    return tree, loss_of


def _measure(candidates: Candidates, loss: Loss, score: Score) -> jax.Array:
    """Returns the scores of the groups on one batch, `[num_groups]`."""
    layout = loss.layout
    xs = grouped_leaves(layout, loss.params)
    units, rises, gs = Units.of(candidates), None, None
    if score.needs == "value_fn":
        rises = loss.rises(jnp.arange(units.number)[:, None] == units.of_groups)
    if score.needs and (rises is None or units.has_channels):
        gs = jax.grad(lambda xs: loss.of_params(with_grouped_leaves(layout, loss.params, xs)))(xs)
    # Whoever looks at a direction that was not computed is told so by what follows from it.
    us = [jnp.full_like(x, jnp.nan) for x in xs] if gs is None else [-g for g in gs]
    sums = sum_over_groups(layout, xs, us, gs)
    stats = group_stats(sums, 1.0, layout.num_params, candidates.savings)
    if rises is not None:
        stats = stats._replace(loss_rise=units.shared(rises, True, stats.gate))
    return score(stats)


def _finite_mean(measured: Sequence[Any]) -> np.ndarray:
    """Returns the mean over batches of what is finite, `[n]`, given `[n]` for each; NaN where nothing is."""
    values = np.array(measured, np.float64)
    is_finite = np.isfinite(values)
    number = is_finite.sum(0)
    return np.where(number > 0, np.where(is_finite, values, 0).sum(0) / np.maximum(number, 1), np.nan)
