"""DemoNet, the smallest network that holds every kind of removal structure.

Three parallel branches that a concatenation joins, two convolutions that an addition joins, and a stem and a head
that nothing can do without.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers, global_mean


class DemoNet(nnx.Module):
    """DemoNet of ASGNAS (arXiv 2305.18030), for small images such as Fashion-MNIST's 28×28×1.

    `conv1-bn1-relu` feeds `conv2-bn2`, `max_pool-conv3-bn3` and `avg_pool-conv4-bn4-conv5-bn5`; their concatenation
    feeds `conv6-bn6-relu`; `conv7-bn7` and `conv8-bn8` are added, averaged over all positions, and `fc1`, `fc2` follow.

    The widths are unpublished. Those chosen here (56 channels up to the concatenation but 72 between `conv4` and
    `conv5`, then 112, 192 and 640, with stride 2 in `conv6`) give at 28×28×1 and 10 classes 0.818 M parameters and
    210.7 M multiply-adds, and 0.454 M and 106.4 M once `conv2-bn2`, `conv3-bn3` and `conv8-bn8` are gone; the paper has
    0.82 M and 209 M, and 0.45 M and 107 M.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        width: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            in_channels: channels of the input images; their height and width are free.
            width: factor on every number of channels; 0.25 makes a network that trains in seconds on 8×8 digits.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        stem, middle, joined, last, hidden = (max(1, round(width * features)) for features in (56, 72, 112, 192, 640))
        layers = Layers(rngs, dtype, param_dtype)
        conv = partial(layers.conv, kernel_size=3, use_bias=True)

        self.conv1 = conv(in_channels, stem)
        self.bn1 = layers.batch_norm(stem)
        self.conv2 = conv(stem, stem)
        self.bn2 = layers.batch_norm(stem)
        self.conv3 = conv(stem, stem)
        self.bn3 = layers.batch_norm(stem)
        self.conv4 = conv(stem, middle)
        self.bn4 = layers.batch_norm(middle)
        self.conv5 = conv(middle, stem)
        self.bn5 = layers.batch_norm(stem)
        self.conv6 = conv(3 * stem, joined, strides=2)
        self.bn6 = layers.batch_norm(joined)
        self.conv7 = conv(joined, last)
        self.bn7 = layers.batch_norm(last)
        self.conv8 = conv(joined, last)
        self.bn8 = layers.batch_norm(last)
        self.fc1 = layers.linear(last, hidden)
        self.fc2 = layers.linear(hidden, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        wide = self.bn2(self.conv2(x))
        largest = self.bn3(self.conv3(nnx.max_pool(x, (3, 3), padding="SAME")))
        smooth = self.bn4(self.conv4(nnx.avg_pool(x, (3, 3), padding="SAME")))
        smooth = self.bn5(self.conv5(smooth))
        x = jnp.concatenate([wide, largest, smooth], axis=-1)
        x = nnx.relu(self.bn6(self.conv6(x)))
        x = self.bn7(self.conv7(x)) + self.bn8(self.conv8(x))
        x = global_mean(x)
        return self.fc2(self.fc1(x))
