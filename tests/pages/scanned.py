"""A decoder whose layers are rows of stacked arrays, which a scan runs over."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """A residual block of a decoder: causal attention of one head, and a perceptron."""

    def __init__(self, rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(8, 8, use_bias=False, rngs=rngs) for _ in range(4))
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.down = nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x):
        scores = jnp.einsum("bqc,bkc->bqk", self.query(x), self.key(x))
        mask = jnp.tril(jnp.ones(scores.shape[1:], bool))
        x = x + self.out(jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ self.value(x))
        return x + self.down(jax.nn.relu(self.up(self.norm(x))))


class ScannedDecoder(nnx.Module):
    def __init__(self, rngs, depth=4):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.layers = nnx.split_rngs(splits=depth)(nnx.vmap(Block))(rngs)
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(run(self.embed(tokens), self.layers))
