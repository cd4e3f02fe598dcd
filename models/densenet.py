"""DenseNet (arXiv 1608.06993), in which every layer sees the concatenation of all before it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers, global_mean


class DenseLayer(nnx.Module):
    """Adds `growth` channels to its input: norm, relu, 1×1 convolution, norm, relu, 3×3 convolution."""

    def __init__(self, layers: Layers, in_features: int, growth: int):
        """Initialises the layer; the 1×1 convolution has four times `growth` channels."""
        self.norm1 = layers.batch_norm(in_features)
        self.conv1 = layers.conv(in_features, 4 * growth)
        self.norm2 = layers.batch_norm(4 * growth)
        self.conv2 = layers.conv(4 * growth, growth, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`, `[batch, height, width, features]`, with `growth` new channels after its own."""
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nnx.Module):
    """Halves channels and resolution between two dense blocks."""

    def __init__(self, layers: Layers, in_features: int):
        """Initialises the norm and the 1×1 convolution."""
        self.norm = layers.batch_norm(in_features)
        self.conv = layers.conv(in_features, in_features // 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns half of everything, `[batch, height / 2, width / 2, features / 2]`."""
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(x))), (2, 2), (2, 2))


class DenseNet(nnx.Module):
    """DenseNet with bottleneck layers and compression 0.5 (arXiv 1608.06993, table 1)."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        depths: tuple[int, ...] = (6, 12, 24, 16),
        growth: int = 32,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            depths: number of layers of each dense block.
            growth: channels that each layer adds.
            in_channels: channels of the input images.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype, conv_init=nnx.initializers.he_normal())
        features = 2 * growth
        self.stem = layers.conv(in_channels, features, 7, strides=2)
        self.stem_norm = layers.batch_norm(features)
        self.blocks: nnx.List[DenseLayer | Transition] = nnx.List()
        for index, depth in enumerate(depths):
            if index > 0:
                self.blocks.append(Transition(layers, features))
                features //= 2
            for _ in range(depth):
                self.blocks.append(DenseLayer(layers, features, growth))
                features += growth
        self.norm = layers.batch_norm(features)
        self.head = layers.linear(features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(global_mean(nnx.relu(self.norm(x))))
