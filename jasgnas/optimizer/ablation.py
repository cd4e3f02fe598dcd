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
import numpy as np
import optax
from jax.typing import ArrayLike

from jasgnas.errors import ArgumentError
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
            found = value_fn(params, **given)
            found = found[0] if isinstance(found, tuple) else found
            if np.shape(found) != ():
                raise ArgumentError(
                    f"value_fn must return the loss, a scalar, or (loss, aux); got {type(found).__name__} of shape "
                    f"{np.shape(found)}"
                )
            return jnp.asarray(found)

        return cls(layout, params, of_params, value)

    def rise(self, gone: jax.Array) -> jax.Array:
        """Returns by how much the loss rises when some groups, bool `[num_groups]`, are zero all together."""
        return self._without(gone) - self._base()

    def rises(self, groups: jax.Array) -> jax.Array:
        """Returns by how much the loss rises without each of some groups, int `[n]`, one at a time.

        Returns:
            Float `[num_groups]`, NaN for all other groups.
        """
        every = jnp.arange(self.layout.num_groups)
        # One evaluation is compiled, whatever their number.
        losses = jax.lax.map(lambda group: self._without(every == group), groups)
        rises = (losses - self._base()).astype(self.layout.dtype)
        return jnp.full(self.layout.num_groups, jnp.nan, self.layout.dtype).at[groups].set(rises)

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

    def _without(self, gone: jax.Array) -> jax.Array:
        left = without_groups(self.layout, grouped_leaves(self.layout, self.params), gone)
        return self.of_params(with_grouped_leaves(self.layout, self.params, left))

    def _base(self) -> jax.Array:
        return self.of_params(self.params) if self.value is None else jnp.asarray(self.value)
