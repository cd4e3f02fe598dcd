"""A Flax NNX module as pure functions of plain dictionaries of arrays, which is what the training step works on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jasgnas
import models
from experiments.common.errors import ConfigError
from experiments.engine.config import Config

Arrays = dict[str, Any]
"""Nested dictionaries of arrays, keyed like the attributes of a module."""


class Variables(NamedTuple):
    """The arrays of a network that training changes.

    Attributes:
        params: trainable parameters.
        statistics: everything else, running statistics of batch norms above all.
    """

    params: Arrays
    statistics: Arrays


class Network:
    """The static side of a module: how to call it, given its arrays.

    Random streams (dropout) are no variables: each step derives its own from the module's initial ones.
    """

    def __init__(self, module: nnx.Module, axis_name: str | None = None):
        """Takes a module apart; its arrays are only looked at for their structure.

        Args:
            module: the module.
            axis_name: axis over whose devices batch norms average their statistics, None for each device's own.
        """
        graphdef, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        module = nnx.merge(graphdef, *states, copy=True)
        self._params, self._random, self._statistics = states
        module.eval()
        self._eval_graphdef = nnx.graphdef(module)
        module.train()
        if axis_name is not None:
            module.set_attributes(nnx.BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        self._train_graphdef = nnx.graphdef(module)

    @staticmethod
    def variables(module: nnx.Module) -> Variables:
        """Returns the arrays of a module."""
        _, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, _, statistics = states
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(statistics))

    def module(self, variables: Variables, *, training: bool = False, random: Any = None) -> nnx.Module:
        """Returns a module with these arrays."""
        graphdef = self._train_graphdef if training else self._eval_graphdef
        states = [_filled(self._params, variables.params), _filled(self._statistics, variables.statistics)]
        return nnx.merge(graphdef, states[0], self._random if random is None else random, states[1], copy=True)

    def evaluate(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` in inference mode."""
        return self.module(variables)(images)

    def train(
        self, variables: Variables, images: jax.Array, seeds: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], Arrays]:
        """Calls the network in training mode.

        Args:
            variables: its arrays.
            images: normalised images `[batch, height, width, channels]`.
            seeds: integers that tell this call's random numbers from those of others.

        Returns:
            The logits, of the main classifier first, then of the auxiliary ones; and the new statistics.
        """
        module = self.module(variables, training=True, random=_reseeded(self._random, seeds))
        outputs = module(images)
        statistics = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
        return outputs if isinstance(outputs, tuple) else (outputs,), nnx.to_pure_dict(statistics)


def create_module(config: Config, num_classes: int, image_shape: Sequence[int]) -> nnx.Module:
    """Returns the freshly initialised module of a run, with gates if it asks for them.

    Args:
        config: the settings of the run.
        num_classes: number of classes of its images.
        image_shape: their height, width and channels.

    Raises:
        ConfigError: there is no such network, it has no such option, or it cannot take such images.
        jasgnas.ArgumentError: gates are asked for, and there is no edge for one.
    """
    if config.model.ungated and not config.model.gated:
        raise ConfigError("model.ungated names gates that are not to be made, and model.gated is off: there are none")
    options: dict[str, Any] = dict(config.model.options)
    if config.model.dtype != "float32":
        options["dtype"] = jnp.dtype(config.model.dtype)
    if config.model.drop_path:
        options["drop_path_rate"] = config.model.drop_path
    if config.model.auxiliary_weight:
        options["auxiliary"] = True
    rngs = nnx.Rngs(config.seed)
    try:
        module = models.create(
            config.model.name,
            num_classes=num_classes,
            in_channels=image_shape[-1],
            rngs=rngs,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the network {config.model.name} cannot be made with the options {options}: {error}"
        ) from None
    _check_images(config, module, image_shape)
    if not config.model.gated:
        return module
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # One number for each: entries of a vector would belong to structures that make some of its channels.
    return jasgnas.gated(module, image, keep=config.model.ungated, scalar=True)


def inference_params(module: nnx.Module) -> int:
    """Returns the number of parameters that inference has a use for: no auxiliary classifier's, and no gates.

    Gates that stay are 1 as long as they are not trained, and none is left in the end.
    """
    params = nnx.state(module, nnx.Param)
    unused = jax.tree.leaves([params.get(name, {}) for name in ("auxiliary", "gates")])
    return jasgnas.count_params(module) - sum(leaf.size for leaf in unused)


def _check_images(config: Config, module: nnx.Module, image_shape: Sequence[int]) -> None:
    """Refuses images that a network cannot take, such as some too small for all of its strides.

    Raises:
        ConfigError: the network cannot be called with images of this shape.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        jax.eval_shape(Network(module).train, Network.variables(module), images, (jnp.int32(0),))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"the network {config.model.name} cannot take images of {'×'.join(map(str, image_shape))}: "
            f"{str(error).splitlines()[0]}. Take other images (data.name), or bring them to another data.image_size"
        ) from None


def _filled(state: nnx.State, arrays: Arrays) -> nnx.State:
    """Returns a state of the same variables with other arrays."""
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(arrays))


def _reseeded(random: nnx.State, seeds: tuple[jax.Array, ...]) -> nnx.State:
    """Returns random streams that start anew for each combination of seeds."""

    def reseeded(value: jax.Array) -> jax.Array:
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(value)
        for seed in seeds:
            value = jax.random.fold_in(value, seed)
        return value

    return jax.tree.map(reseeded, random)
