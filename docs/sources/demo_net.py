"""A network as jasgnas.to_source has written it."""

import jax.numpy as jnp
from flax import nnx


class DemoNet(nnx.Module):
    """A network of 733,410 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 56, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(56, momentum=0.9, rngs=rngs)
        self.conv3 = nnx.Conv(56, 56, (3, 3), rngs=rngs)
        self.bn3 = nnx.BatchNorm(56, momentum=0.9, rngs=rngs)
        self.conv4 = nnx.Conv(56, 72, (3, 3), rngs=rngs)
        self.bn4 = nnx.BatchNorm(72, momentum=0.9, rngs=rngs)
        self.conv5 = nnx.Conv(72, 56, (3, 3), rngs=rngs)
        self.bn5 = nnx.BatchNorm(56, momentum=0.9, rngs=rngs)
        self.conv6 = nnx.Conv(112, 112, (3, 3), strides=2, rngs=rngs)
        self.bn6 = nnx.BatchNorm(112, momentum=0.9, rngs=rngs)
        self.conv7 = nnx.Conv(112, 192, (3, 3), rngs=rngs)
        self.bn7 = nnx.BatchNorm(192, momentum=0.9, rngs=rngs)
        self.conv8 = nnx.Conv(112, 192, (3, 3), rngs=rngs)
        self.bn8 = nnx.BatchNorm(192, momentum=0.9, rngs=rngs)
        self.fc1 = nnx.Linear(192, 640, rngs=rngs)
        self.fc2 = nnx.Linear(640, 10, rngs=rngs)

    def __call__(self, x):
        """Returns float32[batch, 10] of float32[batch, 28, 28, 1]."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        y = self.conv3(nnx.max_pool(x, window_shape=(3, 3), strides=(1, 1), padding="SAME"))
        x = self.conv4(nnx.avg_pool(x, window_shape=(3, 3), strides=(1, 1), padding="SAME"))
        y = jnp.concatenate([self.bn3(y), self.bn5(self.conv5(self.bn4(x)))], axis=-1)
        y = nnx.relu(self.bn6(self.conv6(y)))
        y = jnp.mean(self.bn7(self.conv7(y)) + self.bn8(self.conv8(y)), axis=(1, 2))
        return self.fc2(self.fc1(y))
