"""A small decoder transformer: rotary positions (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), RMS norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns every pair of features by an angle that grows with the token's position (arXiv 2104.09864, section 3.2).

    Args:
        x: queries or keys, shape `[batch, tokens, heads, features]`; entry i is paired with entry i + features / 2.
        base: how much slower the last pair turns than the first.

    Returns:
        The turned array, of the shape and dtype of `x`.
    """
    num_tokens, half = x.shape[1], x.shape[-1] // 2
    speeds = base ** (-jnp.arange(half) / half)
    angles = jnp.arange(num_tokens)[:, None, None] * speeds[None, None, :]
    cos, sin = jnp.cos(angles)[None].astype(x.dtype), jnp.sin(angles)[None].astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class CausalAttention(nnx.Module):
    """Multi-head attention to earlier tokens, with rotary positions."""

    def __init__(self, layers: Layers, features: int, num_heads: int):
        """Initialises the four projections."""
        self.num_heads = num_heads
        self.query = layers.linear(features, features, use_bias=False)
        self.key = layers.linear(features, features, use_bias=False)
        self.value = layers.linear(features, features, use_bias=False)
        self.out = layers.linear(features, features, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what each token takes from itself and those before it, `[batch, tokens, features]` both ways."""
        heads = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (layer(x).reshape(heads) for layer in (self.query, self.key, self.value))
        y = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.out(y.reshape(x.shape))


class DecoderBlock(nnx.Module):
    """Causal attention and a SwiGLU network, each after an RMS norm and beside a shortcut."""

    def __init__(self, layers: Layers, features: int, num_heads: int, hidden: int):
        """Initialises the block; the SwiGLU network has `hidden` channels inside."""
        self.norm1 = layers.rms_norm(features)
        self.attention = CausalAttention(layers, features, num_heads)
        self.norm2 = layers.rms_norm(features)
        self.gate = layers.linear(features, hidden, use_bias=False)
        self.expand = layers.linear(features, hidden, use_bias=False)
        self.project = layers.linear(hidden, features, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, tokens, features]` both ways."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.project(nnx.silu(self.gate(y)) * self.expand(y))


class DecoderTransformer(nnx.Module):
    """Predicts the next token at every position; sized for bytes as tokens."""

    def __init__(
        self,
        num_classes: int = 256,
        *,
        features: int = 256,
        depth: int = 6,
        num_heads: int = 8,
        hidden: int = 704,
        block: Callable[[Layers, int, int, int], nnx.Module] = DecoderBlock,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of different tokens, in and out.
            features: width of a token.
            depth: number of blocks.
            num_heads: attention heads; they divide `features` evenly, into even parts.
            hidden: width inside the SwiGLU networks.
            block: class of the blocks, called with the layers, `features`, `num_heads` and `hidden`.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        init = nnx.initializers.normal(0.02)
        layers = Layers(rngs, dtype, param_dtype, linear_init=init, epsilon=1e-6)
        self.embed = layers.embed(num_classes, features, init)
        self.blocks = nnx.List([block(layers, features, num_heads, hidden) for _ in range(depth)])
        self.norm = layers.rms_norm(features)
        self.head = layers.linear(features, num_classes, use_bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits `[batch, tokens, num_classes]` of the next token after each of `[batch, tokens]`."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
