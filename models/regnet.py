"""RegNet X and Y (arXiv 2003.13678), whose widths and depths follow one quantised line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from models.layers import ConvNorm, Layers, SqueezeExcite, global_mean


@dataclasses.dataclass(frozen=True)
class RegNetConfig:
    """The parameters of one RegNet (arXiv 2003.13678, section 3.3 and tables of appendix).

    Attributes:
        depth: number of blocks.
        initial_width: width of the line at the first block, w_0.
        slope: growth of the line from block to block, w_a.
        multiplier: ratio between the quantised widths of neighbouring stages, w_m.
        group_width: channels of one group of the 3×3 convolutions.
        squeeze_ratio: hidden channels of the squeeze-and-excitation as a share of the block's input; 0 for none
            (RegNet X), 0.25 for RegNet Y.
    """

    depth: int
    initial_width: float
    slope: float
    multiplier: float
    group_width: int
    squeeze_ratio: float = 0.0

    def stages(self) -> list[tuple[int, int]]:
        """Returns width and depth of every stage (section 3.3, equations 2 to 4)."""
        line = self.initial_width + self.slope * np.arange(self.depth)
        powers = np.round(np.log(line / self.initial_width) / np.log(self.multiplier))
        widths = 8 * np.maximum(1, np.round(self.initial_width * self.multiplier**powers / 8))
        widths, depths = np.unique(widths.astype(int), return_counts=True)
        return [(self._whole_groups(int(width)), int(depth)) for width, depth in zip(widths, depths, strict=True)]

    def _whole_groups(self, width: int) -> int:
        """Returns the width nearest to `width` that groups of `group_width` channels fill."""
        group_width = min(self.group_width, width)
        return round(width / group_width) * group_width


REGNET_X_200MF = RegNetConfig(13, 24, 36.44, 2.49, 8)
REGNET_X_400MF = RegNetConfig(22, 24, 24.48, 2.54, 16)
REGNET_X_800MF = RegNetConfig(16, 56, 35.73, 2.28, 16)
REGNET_Y_200MF = RegNetConfig(13, 24, 36.44, 2.49, 8, squeeze_ratio=0.25)
REGNET_Y_400MF = RegNetConfig(16, 48, 27.89, 2.09, 8, squeeze_ratio=0.25)
REGNET_Y_800MF = RegNetConfig(14, 56, 38.84, 2.40, 16, squeeze_ratio=0.25)


class RegNetBlock(nnx.Module):
    """1×1, grouped 3×3 and 1×1 convolution of one width, beside a shortcut (the X and Y block)."""

    def __init__(self, layers: Layers, config: RegNetConfig, in_features: int, features: int, strides: int):
        """Initialises the block; the squeeze-and-excitation stands before the last convolution."""
        groups = features // min(config.group_width, features)
        hidden = round(config.squeeze_ratio * in_features)
        self.conv1 = ConvNorm(layers, in_features, features)
        self.conv2 = ConvNorm(layers, features, features, 3, strides=strides, groups=groups)
        self.squeeze = SqueezeExcite(layers, features, hidden) if hidden else None
        self.conv3 = ConvNorm(layers, features, features)
        changes = strides > 1 or in_features != features
        self.shortcut = ConvNorm(layers, in_features, features, strides=strides) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, height, width, features]` both ways."""
        y = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.conv3(y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class RegNet(nnx.Module):
    """RegNet X or Y.

    The names (200MF and so on) give the millions of multiply-adds at 224×224. For 32×32 images the same widths and
    depths follow a stem and a first stage without stride, which leaves 4×4 positions at the end.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        config: RegNetConfig = REGNET_X_200MF,
        in_channels: int = 3,
        small_images: bool = False,
        width: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            config: widths and depths.
            in_channels: channels of the input images.
            small_images: keep the full resolution in the stem and in the first stage.
            width: factor on every number of channels; group widths stay.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype, linear_init=nnx.initializers.normal(0.01))
        first_strides = 1 if small_images else 2
        config = dataclasses.replace(config, initial_width=width * config.initial_width, slope=width * config.slope)
        features = max(1, round(32 * width))
        self.stem = ConvNorm(layers, in_channels, features, 3, strides=first_strides)
        self.blocks: nnx.List[RegNetBlock] = nnx.List()
        for stage, (channels, depth) in enumerate(config.stages()):
            for index in range(depth):
                strides = 1 if index > 0 else first_strides if stage == 0 else 2
                self.blocks.append(RegNetBlock(layers, config, features, channels, strides))
                features = channels
        self.head = layers.linear(features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(global_mean(x))
