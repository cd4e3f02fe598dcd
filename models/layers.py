"""What networks share: layers with common settings, convolution with batch norm, skip, squeeze-and-excitation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

Activation = Callable[[jax.Array], jax.Array]

HE_NORMAL_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class RunningStatistic(nnx.BatchStat[jax.Array]):
    """A running statistic that is replaced as a whole.

    A batch norm assigns to all entries of its statistics in training mode. For that Flax asks for the sharding of the
    value, and while JAX traces a forward pass, it looks through everything traced so far to say that there is none:
    the trace of a network with a thousand batch norms would take minutes.
    """

    def __setitem__(self, key: Any, value: jax.Array) -> None:
        """Replaces all entries or, with any other key than `...`, some of them."""
        if key is ...:
            self.set_value(value)
        else:
            super().__setitem__(key, value)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network with settings that they all share.

    Attributes:
        rngs: random streams of the initialisation.
        dtype: dtype of the computation, or None to let inputs and parameters decide.
        param_dtype: dtype of the parameters.
        conv_init: initialiser of convolution kernels.
        linear_init: initialiser of the kernels of dense layers.
        momentum: share of the old running statistics that a batch norm keeps in one step.
        epsilon: what every norm adds to the variance.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    conv_init: nnx.Initializer = HE_NORMAL_FAN_OUT
    linear_init: nnx.Initializer = nnx.initializers.lecun_normal()
    momentum: float = 0.9
    epsilon: float = 1e-5

    @property
    def _settings(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}

    def conv(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 1,
        *,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: str = "SAME",
        use_bias: bool = False,
    ) -> nnx.Conv:
        """Returns a two-dimensional convolution with a square kernel."""
        return nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            strides=strides,
            padding=padding,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=self.conv_init,
            **self._settings,
        )

    def linear(self, in_features: int, out_features: int, *, use_bias: bool = True) -> nnx.Linear:
        """Returns a dense layer."""
        return nnx.Linear(in_features, out_features, use_bias=use_bias, kernel_init=self.linear_init, **self._settings)

    def batch_norm(self, features: int) -> nnx.BatchNorm:
        """Returns a batch norm with scale and bias."""
        norm = nnx.BatchNorm(features, momentum=self.momentum, epsilon=self.epsilon, **self._settings)
        norm.mean, norm.var = RunningStatistic(norm.mean[...]), RunningStatistic(norm.var[...])
        return norm

    def layer_norm(self, features: int) -> nnx.LayerNorm:
        """Returns a layer norm over the last axis, with scale and bias."""
        return nnx.LayerNorm(features, epsilon=self.epsilon, **self._settings)

    def rms_norm(self, features: int) -> nnx.RMSNorm:
        """Returns an RMS norm over the last axis, with scale."""
        return nnx.RMSNorm(features, epsilon=self.epsilon, **self._settings)

    def embed(self, num_embeddings: int, features: int, init: nnx.Initializer) -> nnx.Embed:
        """Returns a table of `num_embeddings` rows of `features` entries."""
        return nnx.Embed(num_embeddings, features, embedding_init=init, **self._settings)

    def param(self, init: nnx.Initializer, shape: tuple[int, ...]) -> nnx.Param[jax.Array]:
        """Returns a parameter that belongs to no layer."""
        return nnx.Param(init(self.rngs.params(), shape, self.param_dtype))

    def dropout(self, rate: float) -> nnx.Dropout:
        """Returns dropout of single entries; at rate 0 it holds no random stream."""
        return nnx.Dropout(rate, rngs=self.rngs if rate else None)

    def drop_path(self, rate: float) -> nnx.Dropout:
        """Returns dropout of whole examples `[batch, height, width, features]` (stochastic depth, arXiv 1603.09382)."""
        return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), rngs=self.rngs if rate else None)


class ConvNorm(nnx.Module):
    """A convolution without bias and the batch norm after it."""

    def __init__(self, layers: Layers, in_features: int, out_features: int, kernel_size: int = 1, **conv_options: Any):
        """Initialises both layers; `conv_options` are further keyword arguments of `Layers.conv`."""
        self.conv = layers.conv(in_features, out_features, kernel_size, **conv_options)
        self.norm = layers.batch_norm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalised convolution of `x`, both `[batch, height, width, features]`."""
        return self.norm(self.conv(x))


class Skip(nnx.Module):
    """Returns its input, under a name, so that a trace of the network knows where it was made."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`."""
        return checkpoint_name(x, "skip_connect")


class SqueezeExcite(nnx.Module):
    """Scales every channel by a gate computed from all channel means (arXiv 1709.01507)."""

    def __init__(self, layers: Layers, features: int, hidden: int, gate: Activation = nnx.sigmoid):
        """Initialises the two dense layers, `features` to `hidden` and back, as 1×1 convolutions."""
        self.reduce = layers.conv(features, hidden, use_bias=True)
        self.expand = layers.conv(hidden, features, use_bias=True)
        self.gate = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`, `[batch, height, width, features]`, with its channels scaled."""
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * self.gate(self.expand(nnx.relu(self.reduce(means))))


def global_mean(x: jax.Array) -> jax.Array:
    """Returns the mean over all positions, `[batch, height, width, features]` to `[batch, features]`."""
    return jnp.mean(x, axis=(1, 2))


def make_divisible(width: float, divisor: int = 8) -> int:
    """Returns the multiple of `divisor` nearest to `width`, never more than a tenth below it (arXiv 1801.04381)."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * width else nearest
