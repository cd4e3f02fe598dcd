"""Vision transformer (arXiv 2010.11929), sizes S and B (arXiv 2012.12877)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers


class SelfAttention(nnx.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, layers: Layers, features: int, num_heads: int):
        """Initialises the four projections."""
        self.num_heads = num_heads
        self.query = layers.linear(features, features)
        self.key = layers.linear(features, features)
        self.value = layers.linear(features, features)
        self.out = layers.linear(features, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what each token takes from the others, `[batch, tokens, features]` both ways."""
        heads = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (layer(x).reshape(heads) for layer in (self.query, self.key, self.value))
        return self.out(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


class EncoderBlock(nnx.Module):
    """Attention and a two-layer network, each after a layer norm and beside a shortcut."""

    def __init__(self, layers: Layers, features: int, num_heads: int, dropout_rate: float):
        """Initialises the block; the two-layer network has four times `features` channels inside."""
        self.norm1 = layers.layer_norm(features)
        self.attention = SelfAttention(layers, features, num_heads)
        self.norm2 = layers.layer_norm(features)
        self.expand = layers.linear(features, 4 * features)
        self.project = layers.linear(4 * features, features)
        self.dropout = layers.dropout(dropout_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, tokens, features]` both ways."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        y = nnx.gelu(self.expand(self.norm2(x)), approximate=False)
        return x + self.dropout(self.project(y))


class VisionTransformer(nnx.Module):
    """Vision transformer with a class token and learned positions; size S by default."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        features: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        in_channels: int = 3,
        dropout_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            image_size: side of the input images, a multiple of `patch_size`.
            patch_size: side of the patch that becomes one token.
            features: width of a token.
            depth: number of blocks.
            num_heads: attention heads; they divide `features` evenly.
            in_channels: channels of the input images.
            dropout_rate: dropout at the end of attention and two-layer network.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        init = nnx.initializers.truncated_normal(0.02)
        layers = Layers(rngs, dtype, param_dtype, conv_init=init, linear_init=init, epsilon=1e-6)
        num_tokens = 1 + (image_size // patch_size) ** 2
        self.patches = layers.conv(in_channels, features, patch_size, strides=patch_size, use_bias=True)
        self.class_token = layers.param(init, (1, 1, features))
        self.positions = layers.param(init, (1, num_tokens, features))
        self.blocks = nnx.List([EncoderBlock(layers, features, num_heads, dropout_rate) for _ in range(depth)])
        self.norm = layers.layer_norm(features)
        self.head = layers.linear(features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, image_size, image_size, in_channels]`."""
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        class_token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1) + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
