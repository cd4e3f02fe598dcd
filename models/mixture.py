"""Blocks of a decoder transformer with mixtures of experts (arXiv 1701.06538, 2401.04088) in the place of MLPs."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.decoder import CausalAttention
from models.layers import Layers


class Expert(nnx.Module):
    """A SwiGLU network."""

    def __init__(self, layers: Layers, features: int, hidden: int):
        """Initialises the three projections."""
        self.gate = layers.linear(features, hidden, use_bias=False)
        self.expand = layers.linear(features, hidden, use_bias=False)
        self.project = layers.linear(hidden, features, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the expert's output, `[batch, tokens, features]` both ways."""
        return self.project(nnx.silu(self.gate(x)) * self.expand(x))


class MixtureOfExperts(nnx.Module):
    """Sends each token to a few of the experts, and adds what they return, weighted by the router.

    All experts are computed for all tokens, and weighted by zero where a token was sent elsewhere: shapes are fixed,
    and nothing depends on how tokens are divided over devices.
    """

    def __init__(self, layers: Layers, features: int, hidden: int, num_experts: int, experts_per_token: int):
        """Initialises router and experts."""
        self.num_experts, self.experts_per_token = num_experts, experts_per_token
        self.router = layers.linear(features, num_experts, use_bias=False)
        self.experts = nnx.List([Expert(layers, features, hidden) for _ in range(num_experts)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the weighted sum, `[batch, tokens, features]` both ways."""
        logits, chosen = jax.lax.top_k(self.router(x), self.experts_per_token)
        is_chosen = jax.nn.one_hot(chosen, self.num_experts, dtype=x.dtype)
        weights = jnp.sum(jax.nn.softmax(logits)[..., None] * is_chosen, axis=-2)
        y = jnp.zeros_like(x)
        for index, expert in enumerate(self.experts):
            y = y + weights[..., index : index + 1] * expert(x)
        return y


class MixtureBlock(nnx.Module):
    """Causal attention and a mixture of experts, each after an RMS norm and beside a shortcut."""

    def __init__(
        self,
        layers: Layers,
        features: int,
        num_heads: int,
        hidden: int,
        num_experts: int = 8,
        experts_per_token: int = 2,
    ):
        """Initialises the block; each expert has `hidden` channels inside."""
        self.norm1 = layers.rms_norm(features)
        self.attention = CausalAttention(layers, features, num_heads)
        self.norm2 = layers.rms_norm(features)
        self.mixture = MixtureOfExperts(layers, features, hidden, num_experts, experts_per_token)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, `[batch, tokens, features]` both ways."""
        x = x + self.attention(self.norm1(x))
        return x + self.mixture(self.norm2(x))
