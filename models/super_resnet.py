"""SuperResNet of ASGNAS (arXiv 2305.18030): residual blocks in which kernels of several sizes compete."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import ConvNorm, Layers, global_mean


class SuperResidualBlock(nnx.Module):
    """The sum of parallel convolutions of different kernel sizes and of a shortcut, then relu."""

    def __init__(self, layers: Layers, in_features: int, features: int, kernel_sizes: tuple[int, ...], strides: int):
        """Initialises one convolution with batch norm for each kernel size, and a projection where shapes change."""
        self.candidates = nnx.Dict(
            {
                f"conv{size}x{size}": ConvNorm(layers, in_features, features, size, strides=strides)
                for size in kernel_sizes
            }
        )
        changes = strides > 1 or in_features != features
        self.shortcut = ConvNorm(layers, in_features, features, strides=strides) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        outputs = [candidate(x) for candidate in self.candidates.values()]
        return nnx.relu(functools.reduce(operator.add, outputs, shortcut))


class SuperResNet(nnx.Module):
    """Super-network of residual networks for 32×32 images.

    Removing candidates chooses each block's kernel sizes; removing all candidates of a block leaves its shortcut and
    so chooses the depth. Widths and depths are unpublished; with those chosen here the whole network has 18.2 M
    parameters. Its space holds one of 2.0 M, only the 3×3 candidates, and one of 1.0 M, of these only two blocks in the
    last stage.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        depths: tuple[int, ...] = (5, 5, 5),
        widths: tuple[int, ...] = (48, 96, 192),
        kernel_sizes: tuple[int, ...] = (3, 5, 7),
        width: float = 1.0,
        depth: float = 1.0,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            depths: number of blocks of each stage; every stage but the first halves the resolution.
            widths: channels of each stage.
            kernel_sizes: kernel sizes of the candidates of every block.
            width: factor on every number of channels.
            depth: factor on every number of blocks.
            in_channels: channels of the input images.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype)
        widths = tuple(max(1, round(width * features)) for features in widths)
        depths = tuple(max(1, round(depth * blocks)) for blocks in depths)
        in_features = widths[0]
        self.stem = ConvNorm(layers, in_channels, in_features, 3)
        self.blocks: nnx.List[SuperResidualBlock] = nnx.List()
        for stage, (blocks, features) in enumerate(zip(depths, widths, strict=True)):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(SuperResidualBlock(layers, in_features, features, kernel_sizes, strides))
                in_features = features
        self.head = layers.linear(in_features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(global_mean(x))
