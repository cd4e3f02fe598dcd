"""ConvNeXt (arXiv 2201.03545), a convolutional network in the manner of a vision transformer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers, global_mean


class ConvNeXtBlock(nnx.Module):
    """A depthwise 7×7 convolution, layer norm and a pointwise two-layer network beside a shortcut."""

    def __init__(self, layers: Layers, features: int, drop_path_rate: float):
        """Initialises the block; its layer scale starts at 1e-6, the paper's recipe."""
        self.depthwise = layers.conv(features, features, 7, groups=features, use_bias=True)
        self.norm = layers.layer_norm(features)
        self.expand = layers.linear(features, 4 * features)
        self.project = layers.linear(4 * features, features)
        self.scale = layers.param(nnx.initializers.constant(1e-6), (features,))
        self.drop_path = layers.drop_path(drop_path_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        y = self.expand(self.norm(self.depthwise(x)))
        y = self.project(nnx.gelu(y, approximate=False))
        return x + self.drop_path(y * self.scale[...].astype(y.dtype))


class Downsample(nnx.Module):
    """Layer norm and a 2×2 convolution that halves the resolution."""

    def __init__(self, layers: Layers, in_features: int, out_features: int):
        """Initialises both layers."""
        self.norm = layers.layer_norm(in_features)
        self.conv = layers.conv(in_features, out_features, 2, strides=2, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height / 2, width / 2, out_features]`."""
        return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """ConvNeXt, by default the tiny one (arXiv 2201.03545, section 3)."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            depths: number of blocks of each stage.
            widths: channels of each stage.
            in_channels: channels of the input images; their sides must be multiples of 32.
            drop_path_rate: how often training drops the last block; it rises linearly with depth (paper: 0.1).
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        init = nnx.initializers.truncated_normal(0.02)
        layers = Layers(rngs, dtype, param_dtype, conv_init=init, linear_init=init, epsilon=1e-6)
        self.stem = layers.conv(in_channels, widths[0], 4, strides=4, use_bias=True)
        self.stem_norm = layers.layer_norm(widths[0])
        rate_step = drop_path_rate / max(1, sum(depths) - 1)
        self.blocks: nnx.List[ConvNeXtBlock | Downsample] = nnx.List()
        num_blocks = 0
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if stage > 0:
                self.blocks.append(Downsample(layers, widths[stage - 1], width))
            for _ in range(depth):
                self.blocks.append(ConvNeXtBlock(layers, width, rate_step * num_blocks))
                num_blocks += 1
        self.norm = layers.layer_norm(widths[-1])
        self.head = layers.linear(widths[-1], num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(global_mean(x)))
