"""When H2SPG does what: the updates that are scored, and the rounds of selection and projection."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.errors import EarlySelectionWarning

ROUNDING = 1e-6
"""A learning rate that rises by a smaller part is a constant with rounding errors."""

_LOOKS = 5
"""How often a set is selected on trial, unless told otherwise."""


class Phases(NamedTuple):
    """The updates of each phase.

    Attributes:
        first_scoring: the first update that is scored.
        latest_start: the latest update that may make the first selection.
        look_every: after how many scored updates a set may be selected on trial.
        starts: int `[num_rounds + 1]`, update that each round starts with, and the update after the last round, counted
            from the first selection.
    """

    first_scoring: int
    latest_start: int
    look_every: int
    starts: np.ndarray

    @property
    def last_start(self) -> int:
        """The update that makes the last selection, counted from the first one."""
        return int(self.starts[-2])

    def is_scored(self, step: jax.Array, selected_at: jax.Array) -> jax.Array:
        """Returns whether an update is scored."""
        return (step >= self.first_scoring) & (step - selected_at < self.last_start)

    def looks_at(self, step: jax.Array, selected_at: jax.Array, every: int) -> jax.Array:
        """Returns whether a set is selected on trial before an update, if that is done every so many scored updates.

        They are counted back from the first selection, so that those before it are as many as all others.
        """
        distance = jnp.where(step < selected_at, self.latest_start - step, step - selected_at)
        is_time = (step - self.first_scoring >= every) & (distance % every == 0)
        return is_time & self.is_scored(step, selected_at)

    def starts_at(self, since: jax.Array) -> jax.Array:
        """Returns whether a round starts with an update, which is counted from the first selection."""
        return jnp.any(self.starts[:-1] == since)

    def fraction_left(self, since: jax.Array) -> jax.Array:
        """Returns the part of the round's updates that comes after this one, exactly 0 from the last one on."""
        lengths = jnp.asarray(np.diff(self.starts))
        left = jnp.asarray(self.starts[1:])[self.round_of(since)] - 1 - since
        return jnp.maximum(left, 0) / lengths[self.round_of(since)]

    def round_of(self, since: jax.Array) -> jax.Array:
        """Returns the number of the round that this update belongs to, the nearest one outside all rounds."""
        return jnp.clip(jnp.searchsorted(self.starts, since, side="right") - 1, 0, len(self.starts) - 2)


def divide_phases(
    learning_rate: optax.ScalarOrSchedule,
    warmup_steps: int,
    selection_steps: int,
    projection_steps: int,
    periods: int,
    look_every: int | None,
) -> Phases:
    """Returns when what is done.

    Args:
        learning_rate: α; updates before it has ceased to rise are not scored.
        warmup_steps: the latest update that may make the first selection.
        selection_steps: how many updates before that one are scored at most.
        projection_steps: number of updates of the projection, divided into rounds that are equal up to rounding.
        periods: number of rounds.
        look_every: after how many scored updates a set may be selected on trial, None for about five times in all.

    Warns:
        EarlySelectionWarning: the learning rate rises until the selection.
    """
    first_scoring = warmup_steps - selection_steps
    highest = _end_of_rise(learning_rate, warmup_steps)
    if highest >= warmup_steps:
        warnings.warn(
            f"the learning rate still rises at update {warmup_steps}, where h2spg selects what goes: little has been "
            "learned by then, so that scores say little about the groups. Give a warmup_steps well above the updates "
            "in which the learning rate rises",
            EarlySelectionWarning,
            3,
        )
    else:
        first_scoring = max(first_scoring, highest)
    every = look_every or max(1, (warmup_steps - first_scoring) // _LOOKS)
    return Phases(first_scoring, warmup_steps, every, np.arange(periods + 1) * projection_steps // periods)


def _end_of_rise(learning_rate: optax.ScalarOrSchedule, num_steps: int) -> int:
    """Returns the first of updates 0 … `num_steps` after which the learning rate rises no more, up to there."""
    if not callable(learning_rate):
        return 0
    with jax.ensure_compile_time_eval():
        rates = np.broadcast_to(jax.vmap(learning_rate)(jnp.arange(num_steps + 1)), num_steps + 1)
    rises = np.flatnonzero(np.diff(rates) > ROUNDING * np.abs(rates).max())
    return int(rises[-1]) + 1 if len(rises) else 0
