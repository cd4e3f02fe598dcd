"""The state of H2SPG: what it holds, how it is found inside an optimizer's state, and what of it is worth logging."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.errors import ArgumentError, RevivedGroupsWarning, TreeMismatchError
from jasgnas.optimizer.layout import Remainder
from jasgnas.space.candidates import Candidates

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

WARMUP, PROJECTION, DONE = range(3)
"""Values of `H2SPGState.phase`."""


class H2SPGState(NamedTuple):
    """State of `h2spg`: a few vectors over the groups, nothing of the size of the parameters but what `inner` holds.

    Attributes:
        step: int32, number of updates made.
        phase: int32, phase that the latest update was made in or has reached: 0 warm-up, 1 projection, 2 done, which
            means that all groups of the target are exactly zero.
        scores: float `[num_groups]`, average of the redundancy scores; stays as it is after the last selection.
        num_scored: int32 `[num_groups]`, how many scores the average is of; 0 means that the group has none, -1 that
            its score is from the round before, from beside another plan, or from before the learning rate rose.
        num_skipped: int32 `[num_groups]`, how many scores were left out since they were not finite.
        redundant: bool `[num_groups]`, groups selected to go.
        zero: bool `[num_groups]`, groups that are exactly zero and stay so: redundant ones, and the channels that only
            zero structures make, which are never selected themselves.
        planned: bool `[num_groups]`, a valid set that meets the target and contains `redundant`: proof that the target
            stays within reach when `redundant` is selected in several rounds. Once the loss without sets is measured,
            the best of them, and the other groups are measured beside it.
        planned_rise: float, by how much the loss rises without it, on average over batches since it was last compared
            with another set; 0 where that was not measured.
        trial: bool `[num_groups]`, what was selected on trial last; none if nothing was.
        trial_rise: float, the rise without that, on average over the latest `num_trials` batches, as `planned_rise`.
        num_trials: int32, number of the batches since there is this plan and this trial.
        exchanged: int32, the group of the plan in the place of which others are measured, -1 for none.
        selected_at: int32, update that makes the first selection; until then the latest one that may.
        runner_up: int32, the group that would have been next at the latest selection, -1 for none.
        predicted_rise: float, by how much the loss should rise without the groups of the latest selection:
            `planned_rise` if they are all of the plan, else by their scores, if these are in units of the loss; 0
            otherwise, and before the selection.
        measured_rise: float, by how much the loss of the batch at the latest selection rose when all that is redundant
            was zero; 0 if `update` was given no `value_fn`, if the loss was not finite, and before the selection.
        learning_rate: float, α of the latest update before the selection, if `h2spg` is given its value and not the
            schedule, as under `optax.inject_hyperparams`; 0 otherwise.
        revived: bool `[num_groups]`, groups that an update has set to zero and a later one did not find so: something
            that comes after `h2spg` changes its updates, or the parameters. They are not among `zero`.
        norms: float `[num_groups]`, norm of each group's parameters as the latest update found them; not kept up to
            date where no norms are needed, that is before the scores are averaged and after the end.
        start_norms: float `[num_groups]`, the same at the latest selection.
        space_id: uint32, fingerprint of the search space, which a checkpoint keeps.
        inner: state of the optimizer that `h2spg` runs itself, if `inner=` gives one.
        remainder: static, what `jasgnas.shrink` has left of the parameters.
    """

    step: jax.Array
    phase: jax.Array
    scores: jax.Array
    num_scored: jax.Array
    num_skipped: jax.Array
    redundant: jax.Array
    zero: jax.Array
    planned: jax.Array
    planned_rise: jax.Array
    trial: jax.Array
    trial_rise: jax.Array
    num_trials: jax.Array
    exchanged: jax.Array
    selected_at: jax.Array
    runner_up: jax.Array
    predicted_rise: jax.Array
    measured_rise: jax.Array
    learning_rate: jax.Array
    revived: jax.Array
    norms: jax.Array
    start_norms: jax.Array
    space_id: jax.Array
    inner: optax.OptState = ()
    remainder: Remainder = Remainder()


def candidates_of(space: Any) -> Candidates:
    """Returns the candidates of a search space, or what is given if it is `Candidates` already."""
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
    vectors = H2SPGState._fields[: H2SPGState._fields.index("inner")]
    state = with_dtypes(states[0]._replace(**dict(zip(vectors, jax.tree.leaves(states[0]), strict=False))))
    if space is not None:
        check_state(state, candidates_of(space))
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
        `step` (int32, the updates made) and `phase`; `redundant` (bool `[num_groups]`, which groups were selected),
        their number, `num_redundant`, and how many of them are `num_zero` and `num_removed` (int32; `jasgnas.shrink`
        has taken these out), `group_sparsity` (float, fraction of groups that are zero), and the vectors `scores` and
        `shrinking_norms` (float `[num_groups]`, 0 for groups not on their way to zero). `num_revived` (int32) counts
        the groups that were
        set to zero and are not: it is 0 where `h2spg` is the last link. `num_skipped` (int32) counts the scores left
        out since they were not finite. Of the latest selection: `selected_at` (int32, its update, or the latest one
        that may be), `runner_up` (int32, the group that came next, or -1), and `predicted_rise` and `measured_rise`
        (float) of the loss without the selected groups, 0 where they are not known.

    Raises:
        ArgumentError: there is no such state, more than one, or it is replicated over devices.

    Warns:
        RevivedGroupsWarning: `num_revived` is not 0, outside jit.
    """
    state = single_state(h2spg_state(opt_state))
    if not isinstance(state.revived, jax.core.Tracer) and (revived := np.flatnonzero(state.revived).tolist()):
        warnings.warn(f"the groups {revived} were set to zero and are not. {CHANGED_UPDATES}", RevivedGroupsWarning, 2)
    removed = np.isin(np.arange(len(state.redundant)), np.array(state.remainder.removed, int))
    return {
        "step": state.step,
        "phase": state.phase,
        "redundant": state.redundant,
        "num_redundant": jnp.sum(state.redundant, dtype=jnp.int32),
        "num_zero": jnp.sum(state.zero & state.redundant, dtype=jnp.int32),
        "num_revived": jnp.sum(state.revived, dtype=jnp.int32),
        "num_removed": jnp.sum(state.redundant & removed, dtype=jnp.int32),
        "group_sparsity": jnp.mean(state.zero, dtype=state.scores.dtype),
        "num_skipped": jnp.sum(state.num_skipped, dtype=jnp.int32),
        "selected_at": state.selected_at,
        "runner_up": state.runner_up,
        "predicted_rise": state.predicted_rise,
        "measured_rise": state.measured_rise,
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


def outdated(num_scored: jax.Array) -> jax.Array:
    """Returns `num_scored` with all averages marked as old: the next score of a group takes the place of its own."""
    return -jnp.abs(jnp.sign(num_scored))


def with_dtypes(state: H2SPGState) -> H2SPGState:
    """Returns the state with booleans and integers of its own dtypes.

    A wrapper that blends two states by arithmetic, such as `optax.contrib.sam`, makes int32 of all of them.
    """
    dtypes: dict[str, Any] = dict.fromkeys(("redundant", "zero", "planned", "trial", "revived"), jnp.bool_)
    dtypes["space_id"] = jnp.uint32
    changed = {name: getattr(state, name) for name in dtypes}
    return state._replace(
        **{name: leaf.astype(dtypes[name]) for name, leaf in changed.items() if leaf.dtype != dtypes[name]}
    )


def check_state(state: H2SPGState, candidates: Candidates) -> None:
    """Raises an error if the state is none, or was made for another space, as far as that is known while tracing."""
    if not isinstance(state, H2SPGState):
        raise ArgumentError(f"expected an H2SPGState, got {type(state).__name__}. {LOST_TYPE}")
    expected, found = candidates.num_groups, np.shape(state.scores)[-1:]
    is_concrete = not isinstance(state.space_id, jax.core.Tracer)
    is_other = is_concrete and bool(
        np.any(np.asarray(with_dtypes(state).space_id) != np.uint32(candidates.fingerprint))
    )
    if found != (expected,) or is_other:
        raise TreeMismatchError(
            f"the optimizer state is for the {found[0]} groups of another search space than the given one, which has "
            f"{expected}. Restore the state saved with this network, or start anew with "
            "tx.init(params)"
        )
