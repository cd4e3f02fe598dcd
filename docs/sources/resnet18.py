"""A network as jasgnas.to_source has written it."""

import jax.numpy as jnp
from flax import nnx


class ConvNorm(nnx.Module):
    """What computes stem, blocks.2.conv1 and 14 more, up to blocks.7.conv2."""

    def __init__(self, in_features: int, out_features: int, kernel_size: tuple, strides: int = 1, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_features, out_features, kernel_size, strides=strides, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(out_features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """What computes blocks.2, blocks.4 and blocks.6."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(in_features, out_features, (3, 3), strides=2, rngs=rngs)
        self.conv2 = ConvNorm(out_features, out_features, (3, 3), rngs=rngs)
        self.shortcut = ConvNorm(in_features, out_features, (1, 1), strides=2, rngs=rngs)

    def __call__(self, x):
        x = self.conv2(nnx.relu(self.conv1(x))) + self.shortcut(x)
        return nnx.relu(x)


class BasicBlock2(nnx.Module):
    """What computes blocks.3, blocks.5 and blocks.7."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(in_features, in_features, (3, 3), rngs=rngs)
        self.conv2 = ConvNorm(in_features, in_features, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.conv2(nnx.relu(self.conv1(x))) + x
        return nnx.relu(x)


class ResNet(nnx.Module):
    """A network of 11,541,544 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = ConvNorm(3, 64, (7, 7), strides=2, rngs=rngs)
        self.blocks = nnx.data(
            {
                2: BasicBlock(64, 128, rngs=rngs),
                3: BasicBlock2(128, rngs=rngs),
                4: BasicBlock(128, 256, rngs=rngs),
                5: BasicBlock2(256, rngs=rngs),
                6: BasicBlock(256, 512, rngs=rngs),
                7: BasicBlock2(512, rngs=rngs),
            }
        )
        self.head = nnx.Linear(512, 1000, rngs=rngs)

    def __call__(self, x):
        """Returns float32[batch, 1000] of float32[batch, 224, 224, 3]."""
        x = nnx.relu(self.stem(x))
        x = nnx.relu(nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME"))
        x = nnx.relu(x)
        for block in self.blocks.values():
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))
