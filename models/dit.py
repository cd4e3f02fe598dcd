"""Diffusion transformer (DiT, arXiv 2212.09748), size S with patches of two by default."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers
from models.vit import SelfAttention


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns `x * (1 + scale) + shift`; `x` is `[batch, tokens, features]`, the others `[batch, features]`."""
    return x * (1 + scale[:, None]) + shift[:, None]


def sinusoids(time: jax.Array, features: int, longest: float = 10_000.0) -> jax.Array:
    """Returns cosines and sines `[batch, features]` of the time `[batch]`, at geometrically falling speeds."""
    half = features // 2
    angles = time[:, None] * longest ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class DiTBlock(nnx.Module):
    """Attention and a two-layer network; what each adds is shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, layers: Layers, features: int, num_heads: int):
        """Initialises the block; the two-layer network has four times `features` channels inside."""
        self.norm1 = layers.layer_norm(features)
        self.attention = SelfAttention(layers, features, num_heads)
        self.norm2 = layers.layer_norm(features)
        self.expand = layers.linear(features, 4 * features)
        self.project = layers.linear(4 * features, features)
        self.modulation = layers.linear(features, 6 * features)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, tokens, features]` both ways; the condition is `[batch, features]`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(nnx.silu(condition)), 6, axis=-1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        y = nnx.gelu(self.expand(modulate(self.norm2(x), shift2, scale2)))
        return x + gate2[:, None] * self.project(y)


class DiT(nnx.Module):
    """Predicts the noise in images, given the time of the diffusion and a class."""

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 3,
        features: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of classes.
            image_size: side of the images, a multiple of `patch_size`.
            patch_size: side of the patch that becomes one token.
            in_channels: channels of the images.
            features: width of a token, an even number.
            depth: number of blocks.
            num_heads: attention heads; they divide `features` evenly.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        init = nnx.initializers.normal(0.02)
        layers = Layers(rngs, dtype, param_dtype, conv_init=init, linear_init=init, epsilon=1e-6)
        self.features, self.patch_size = features, patch_size
        self.patches = layers.conv(in_channels, features, patch_size, strides=patch_size, use_bias=True)
        self.positions = layers.param(init, (1, (image_size // patch_size) ** 2, features))
        self.time1, self.time2 = layers.linear(features, features), layers.linear(features, features)
        self.classes = layers.embed(num_classes, features, init)
        self.blocks = nnx.List([DiTBlock(layers, features, num_heads) for _ in range(depth)])
        self.norm = layers.layer_norm(features)
        self.modulation = layers.linear(features, 2 * features)
        self.head = layers.linear(features, patch_size**2 * in_channels)

    def __call__(self, images: jax.Array, time: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the noise.

        Args:
            images: noisy images, `[batch, image_size, image_size, in_channels]`.
            time: the time of the diffusion, floating-point `[batch]`.
            labels: the classes, integers `[batch]`.

        Returns:
            The noise, of the shape of the images.
        """
        condition = self.time2(nnx.silu(self.time1(sinusoids(time, self.features)))) + self.classes(labels)
        x = self.patches(images)
        batch, rows, columns, _ = x.shape
        x = x.reshape(batch, rows * columns, -1) + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = jnp.split(self.modulation(nnx.silu(condition)), 2, axis=-1)
        x = self.head(modulate(self.norm(x), shift, scale))
        # Each token is a patch: rows and columns of patches, and of pixels inside of them, are brought together.
        x = x.reshape(batch, rows, columns, self.patch_size, self.patch_size, -1)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
