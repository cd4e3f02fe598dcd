"""A network as jasgnas.to_source has written it."""

import jax
import jax.numpy as jnp
from flax import nnx


class SelfAttention(nnx.Module):
    """What computes blocks.1.attention, blocks.2.attention and 6 more, up to blocks.11.attention."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.query = nnx.Linear(384, 384, rngs=rngs)
        self.key = nnx.Linear(384, 384, rngs=rngs)
        self.value = nnx.Linear(384, 384, rngs=rngs)
        self.out = nnx.Linear(384, 384, rngs=rngs)

    def __call__(self, x):
        y = self.query(x)
        z = self.key(x)
        z = z.reshape(*z.shape[:2], -1, 64)
        x = self.value(x)
        x = x.reshape(*x.shape[:2], -1, 64)
        y = jax.nn.dot_product_attention(y.reshape(*y.shape[:2], -1, 64), z, x)
        return self.out(y.reshape(*y.shape[:2], -1))


class EncoderBlock(nnx.Module):
    """What computes blocks.4, blocks.6 and blocks.8."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm2 = nnx.LayerNorm(384, rngs=rngs)
        self.expand = nnx.Linear(384, 1536, rngs=rngs)
        self.project = nnx.Linear(1536, 384, rngs=rngs)

    def __call__(self, x):
        y = self.project(nnx.gelu(self.expand(self.norm2(x)), approximate=False))
        return x + y


class EncoderBlock2(nnx.Module):
    """What computes blocks.1, blocks.3 and 4 more, up to blocks.11."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(384, rngs=rngs)
        self.attention = SelfAttention(rngs=rngs)
        self.norm2 = nnx.LayerNorm(384, rngs=rngs)
        self.expand = nnx.Linear(384, 1536, rngs=rngs)
        self.project = nnx.Linear(1536, 384, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        y = self.project(nnx.gelu(self.expand(self.norm2(x)), approximate=False))
        return x + y


class EncoderBlock3(nnx.Module):
    """What computes blocks.2 and blocks.9."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(384, rngs=rngs)
        self.attention = SelfAttention(rngs=rngs)

    def __call__(self, x):
        return x + self.attention(self.norm1(x))


class VisionTransformer(nnx.Module):
    """A network of 16,135,144 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.patches = nnx.Conv(3, 384, (16, 16), strides=16, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, 384)))
        self.positions = nnx.Param(jnp.zeros((1, 197, 384)))
        self.blocks = nnx.data(
            {
                1: EncoderBlock2(rngs=rngs),
                2: EncoderBlock3(rngs=rngs),
                3: EncoderBlock2(rngs=rngs),
                4: EncoderBlock(rngs=rngs),
                5: EncoderBlock2(rngs=rngs),
                6: EncoderBlock(rngs=rngs),
                7: EncoderBlock2(rngs=rngs),
                8: EncoderBlock(rngs=rngs),
                9: EncoderBlock3(rngs=rngs),
                10: EncoderBlock2(rngs=rngs),
                11: EncoderBlock2(rngs=rngs),
            }
        )
        self.norm = nnx.LayerNorm(384, rngs=rngs)
        self.head = nnx.Linear(384, 1000, rngs=rngs)

    def __call__(self, x):
        """Returns float32[batch, 1000] of float32[batch, 224, 224, 3]."""
        batch = x.shape[0]
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, 384)
        x = jnp.concatenate([jnp.broadcast_to(self.class_token[...], (batch, 1, 384)), x], axis=1) + self.positions[...]
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x[:, 0]))
