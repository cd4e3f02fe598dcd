"""MobileNetV2 (arXiv 1801.04381) and MobileNetV3 (arXiv 1905.02244), both built from inverted residual blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Activation, ConvNorm, Layers, SqueezeExcite, global_mean, make_divisible


class InvertedResidual(nnx.Module):
    """Expands by 1×1, convolves every channel alone, projects by 1×1; a shortcut where the shapes allow it."""

    def __init__(
        self,
        layers: Layers,
        in_features: int,
        out_features: int,
        *,
        expanded: int,
        kernel_size: int = 3,
        strides: int = 1,
        squeeze: bool = False,
        activation: Activation = nnx.relu6,
    ):
        """Initialises the block.

        Args:
            layers: makes the layers.
            in_features: channels of the input.
            out_features: channels of the output.
            expanded: channels in between; there is no expansion where it equals `in_features`.
            kernel_size: side of the depthwise kernel.
            strides: stride of the depthwise convolution.
            squeeze: squeeze-and-excitation after the depthwise convolution.
            activation: activation after the first two convolutions.
        """
        self.activation = activation
        self.has_shortcut = strides == 1 and in_features == out_features
        self.expand = ConvNorm(layers, in_features, expanded) if expanded != in_features else None
        self.depthwise = ConvNorm(layers, expanded, expanded, kernel_size, strides=strides, groups=expanded)
        hidden = make_divisible(expanded / 4)
        self.squeeze = SqueezeExcite(layers, expanded, hidden, nnx.hard_sigmoid) if squeeze else None
        self.project = ConvNorm(layers, expanded, out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        y = x if self.expand is None else self.activation(self.expand(x))
        y = self.activation(self.depthwise(y))
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project(y)
        return x + y if self.has_shortcut else y


class StageSpec(NamedTuple):
    """One row of MobileNetV2's table: blocks with the same number of output channels."""

    expansion: int
    out_features: int
    depth: int
    strides: int


MOBILENET_V2 = (
    StageSpec(1, 16, 1, 1),
    StageSpec(6, 24, 2, 2),
    StageSpec(6, 32, 3, 2),
    StageSpec(6, 64, 4, 2),
    StageSpec(6, 96, 3, 1),
    StageSpec(6, 160, 3, 2),
    StageSpec(6, 320, 1, 1),
)
"""Table 2 of arXiv 1801.04381."""


class MobileNetV2(nnx.Module):
    """MobileNetV2 at width 1.0 (arXiv 1801.04381)."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        stages: tuple[StageSpec, ...] = MOBILENET_V2,
        in_channels: int = 3,
        dropout_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            stages: the inverted residual blocks.
            in_channels: channels of the input images.
            dropout_rate: dropout before the last layer (usual for ImageNet: 0.2).
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype, linear_init=nnx.initializers.normal(0.01))
        features = 32
        self.stem = ConvNorm(layers, in_channels, features, 3, strides=2)
        self.blocks: nnx.List[InvertedResidual] = nnx.List()
        for stage in stages:
            for index in range(stage.depth):
                strides = stage.strides if index == 0 else 1
                expanded = stage.expansion * features
                block = InvertedResidual(layers, features, stage.out_features, expanded=expanded, strides=strides)
                self.blocks.append(block)
                features = stage.out_features
        self.last = ConvNorm(layers, features, 1280)
        self.dropout = layers.dropout(dropout_rate)
        self.head = layers.linear(1280, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = global_mean(nnx.relu6(self.last(x)))
        return self.head(self.dropout(x))


class BlockSpec(NamedTuple):
    """One row of MobileNetV3's tables: one inverted residual block."""

    kernel_size: int
    expanded: int
    out_features: int
    squeeze: bool
    activation: Activation
    strides: int


class MobileNetV3Spec(NamedTuple):
    """What tells MobileNetV3-Large from MobileNetV3-Small.

    Attributes:
        blocks: the inverted residual blocks.
        hidden: channels of the dense layer before the last one.
    """

    blocks: tuple[BlockSpec, ...]
    hidden: int


_RELU, _SWISH = nnx.relu, nnx.hard_swish

MOBILENET_V3_LARGE = MobileNetV3Spec(
    blocks=(
        BlockSpec(3, 16, 16, False, _RELU, 1),
        BlockSpec(3, 64, 24, False, _RELU, 2),
        BlockSpec(3, 72, 24, False, _RELU, 1),
        BlockSpec(5, 72, 40, True, _RELU, 2),
        BlockSpec(5, 120, 40, True, _RELU, 1),
        BlockSpec(5, 120, 40, True, _RELU, 1),
        BlockSpec(3, 240, 80, False, _SWISH, 2),
        BlockSpec(3, 200, 80, False, _SWISH, 1),
        BlockSpec(3, 184, 80, False, _SWISH, 1),
        BlockSpec(3, 184, 80, False, _SWISH, 1),
        BlockSpec(3, 480, 112, True, _SWISH, 1),
        BlockSpec(3, 672, 112, True, _SWISH, 1),
        BlockSpec(5, 672, 160, True, _SWISH, 2),
        BlockSpec(5, 960, 160, True, _SWISH, 1),
        BlockSpec(5, 960, 160, True, _SWISH, 1),
    ),
    hidden=1280,
)
"""Table 1 of arXiv 1905.02244."""

MOBILENET_V3_SMALL = MobileNetV3Spec(
    blocks=(
        BlockSpec(3, 16, 16, True, _RELU, 2),
        BlockSpec(3, 72, 24, False, _RELU, 2),
        BlockSpec(3, 88, 24, False, _RELU, 1),
        BlockSpec(5, 96, 40, True, _SWISH, 2),
        BlockSpec(5, 240, 40, True, _SWISH, 1),
        BlockSpec(5, 240, 40, True, _SWISH, 1),
        BlockSpec(5, 120, 48, True, _SWISH, 1),
        BlockSpec(5, 144, 48, True, _SWISH, 1),
        BlockSpec(5, 288, 96, True, _SWISH, 2),
        BlockSpec(5, 576, 96, True, _SWISH, 1),
        BlockSpec(5, 576, 96, True, _SWISH, 1),
    ),
    hidden=1024,
)
"""Table 2 of arXiv 1905.02244."""


class MobileNetV3(nnx.Module):
    """MobileNetV3 at width 1.0, large by default (arXiv 1905.02244)."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        spec: MobileNetV3Spec = MOBILENET_V3_LARGE,
        in_channels: int = 3,
        dropout_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            spec: blocks and head, `MOBILENET_V3_LARGE` or `MOBILENET_V3_SMALL`.
            in_channels: channels of the input images.
            dropout_rate: dropout before the last layer (paper: 0.2).
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(
            rngs, dtype, param_dtype, linear_init=nnx.initializers.normal(0.01), momentum=0.99, epsilon=1e-3
        )
        features = 16
        self.stem = ConvNorm(layers, in_channels, features, 3, strides=2)
        self.blocks: nnx.List[InvertedResidual] = nnx.List()
        for block in spec.blocks:
            self.blocks.append(
                InvertedResidual(
                    layers,
                    features,
                    block.out_features,
                    expanded=block.expanded,
                    kernel_size=block.kernel_size,
                    strides=block.strides,
                    squeeze=block.squeeze,
                    activation=block.activation,
                )
            )
            features = block.out_features
        self.last = ConvNorm(layers, features, 6 * features)
        self.hidden = layers.linear(6 * features, spec.hidden)
        self.dropout = layers.dropout(dropout_rate)
        self.head = layers.linear(spec.hidden, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.hard_swish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = global_mean(nnx.hard_swish(self.last(x)))
        x = nnx.hard_swish(self.hidden(x))
        return self.head(self.dropout(x))
