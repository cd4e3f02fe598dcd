"""ResNet (arXiv 1512.03385), with basic blocks (18 layers) and with bottleneck blocks (50 layers)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import ConvNorm, Layers, global_mean


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, layers: Layers, in_features: int, features: int, strides: int):
        """Initialises the block; it has `features` channels inside and `expansion` times as many outside."""
        out_features = features * self.expansion
        self.conv1 = ConvNorm(layers, in_features, features, 3, strides=strides)
        self.conv2 = ConvNorm(layers, features, out_features, 3)
        self.shortcut = _projection(layers, in_features, out_features, strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        y = self.conv2(nnx.relu(self.conv1(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nnx.Module):
    """A 3×3 convolution between two 1×1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, layers: Layers, in_features: int, features: int, strides: int):
        """Initialises the block; it has `features` channels inside and `expansion` times as many outside."""
        out_features = features * self.expansion
        self.conv1 = ConvNorm(layers, in_features, features)
        self.conv2 = ConvNorm(layers, features, features, 3, strides=strides)
        self.conv3 = ConvNorm(layers, features, out_features)
        self.shortcut = _projection(layers, in_features, out_features, strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        y = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        y = self.conv3(y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _projection(layers: Layers, in_features: int, out_features: int, strides: int) -> ConvNorm | None:
    """Returns the shortcut's 1×1 convolution, or None where the identity fits."""
    if strides == 1 and in_features == out_features:
        return None
    return ConvNorm(layers, in_features, out_features, strides=strides)


class ResNet(nnx.Module):
    """ResNet with four stages of 64, 128, 256 and 512 channels (arXiv 1512.03385, table 1)."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock,
        width: float = 1.0,
        in_channels: int = 3,
        small_images: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            depths: number of blocks of each stage; every stage but the first halves the resolution.
            block: kind of block.
            width: factor on every number of channels.
            in_channels: channels of the input images.
            small_images: start with a 3×3 convolution at full resolution, as usual for 32×32, not with 7×7 and pooling.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype)
        self.small_images = small_images
        stem: dict[str, Any] = {"kernel_size": 3} if small_images else {"kernel_size": 7, "strides": 2}
        first = max(1, round(width * 64))
        self.stem = ConvNorm(layers, in_channels, first, **stem)
        self.blocks: nnx.List[BasicBlock | BottleneckBlock] = nnx.List()
        features = first
        for stage, depth in enumerate(depths):
            for index in range(depth):
                strides = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(block(layers, features, first * 2**stage, strides))
                features = first * 2**stage * block.expansion
        self.head = layers.linear(features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu(self.stem(x))
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(global_mean(x))
