"""Measured ablation: by how much the loss of a batch rises without groups.

Scores that look at derivatives say what a small change of a group does. What becomes of the loss when the group is gone
is measured here, by evaluating it, inside the jitted training step.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jasgnas.checks import loss_value
from jasgnas.optimizer.layout import GroupLayout, grouped_leaves, with_grouped_leaves, without_groups


class Loss(NamedTuple):
    """The loss of the current batch, as a function of which groups are zero.

    Attributes:
        layout: where the groups lie.
        params: the parameters.
        of_params: the loss of any such parameters, a float scalar.
        value: the loss of these, None if it is to be evaluated.
    """

    layout: GroupLayout
    params: optax.Params
    of_params: Callable[[optax.Params], jax.Array]
    value: ArrayLike | None

    @classmethod
    def of(
        cls,
        layout: GroupLayout,
        params: optax.Params,
        value_fn: Callable[..., Any],
        extra: Mapping[str, Any],
        value: ArrayLike | None,
    ) -> "Loss":
        """Returns the loss that `update` is given.

        Args:
            layout: where the groups lie.
            params: the parameters.
            value_fn: returns the loss, or a tuple that starts with it, given parameters and further arguments by name.
            extra: further arguments of `update`; those that `value_fn` names are handed to it.
            value: what it returns for the parameters, if that is known.
        """
        named = inspect.signature(value_fn).parameters.values()
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in named)
        names = {parameter.name for parameter in named}
        given = {name: each for name, each in extra.items() if takes_all or name in names}

        def of_params(params: optax.Params) -> jax.Array:
            return loss_value(value_fn(params, **given))

        return cls(layout, params, of_params, value)

    def rises(self, gone: jax.Array) -> jax.Array:
        """Returns by how much the loss rises without each of some sets of groups.

        Args:
            gone: bool `[num_sets, num_groups]`.

        Returns:
            Float `[num_sets]`.
        """
        xs = grouped_leaves(self.layout, self.params)

        def without(gone: jax.Array) -> jax.Array:
            left = without_groups(self.layout, xs, gone)
            return self.of_params(with_grouped_leaves(self.layout, self.params, left))

        # One evaluation is compiled, whatever their number; without a value the first one is of all groups.
        if self.value is not None:
            return jax.lax.map(without, gone) - self.value
        losses = jax.lax.map(without, jnp.concatenate([jnp.zeros_like(gone[:1]), gone]))
        return losses[1:] - losses[0]

    def turns(self, forward_passes: float, num_groups: int) -> tuple[int, int]:
        """Returns how many groups are measured at a time, and in every how many updates, for a cost on average.

        Args:
            forward_passes: evaluations of the loss per update.
            num_groups: how many groups there are to measure.
        """
        own = 1 if self.value is None else 0
        if forward_passes >= 1 + own:
            return min(int(forward_passes) - own, max(num_groups, 1)), 1
        return 1, math.ceil((1 + own) / forward_passes)
