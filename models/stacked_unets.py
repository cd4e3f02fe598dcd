"""StackedUnets, two small U-nets side by side on the same image.

Nested additions, resized paths and two independent halves: a hard case for every analysis of a network's graph.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import Layers, global_mean

_max_pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")


def _resize_like(x: jax.Array, target: jax.Array) -> jax.Array:
    """Returns `x` resized bilinearly to the height and width of `target`, both `[batch, height, width, features]`."""
    return jax.image.resize(x, (*x.shape[:1], *target.shape[1:3], *x.shape[3:]), "bilinear")


class StackedUnets(nnx.Module):
    """StackedUnets of ASGNAS (arXiv 2305.18030), for small images such as SVHN's 32×32×3.

    The first U-net downsamples by max pooling, the second by strided convolutions; both start from the image, and
    their sum is averaged and classified. Layers carry the numbers that the authors' trace gives to their operators:
    the first U-net is 0 to 38, the second 39 to 75, the sum 76.

    The widths are unpublished. Those chosen here (80 channels at the inner levels of the first U-net, 56 everywhere
    else) give at 32×32×3 and 10 classes 0.799 M parameters and 184.8 M multiply-adds, and 0.371 M and 116.9 M once
    the second U-net and the first one's deepest path (13 to 19) are gone; the paper has 0.80 M and 184 M, and
    0.37 M and 115 M.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            in_channels: channels of the input images; their height and width are free.
            width: factor on every number of channels.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        outer, inner = (max(1, round(width * features)) for features in (56, 80))
        layers = Layers(rngs, dtype, param_dtype)
        conv = partial(layers.conv, kernel_size=3, use_bias=True)

        self.conv0 = conv(in_channels, outer)
        self.bn1 = layers.batch_norm(outer)
        self.conv3 = conv(outer, outer)
        self.conv5 = conv(outer, inner)
        self.conv7 = conv(inner, inner)
        self.bn9 = layers.batch_norm(inner)
        self.conv11 = conv(inner, inner)
        self.conv12 = conv(inner, inner)
        self.conv14 = conv(inner, inner)
        self.conv15 = conv(inner, inner)
        self.conv26 = conv(inner, inner)
        self.conv27 = conv(inner, outer)
        self.bn28 = layers.batch_norm(outer)
        self.conv36 = conv(outer, outer)
        self.bn38 = layers.batch_norm(outer)

        self.conv39 = conv(in_channels, outer)
        self.bn40 = layers.batch_norm(outer)
        self.conv42 = conv(outer, outer, strides=2)
        self.conv43 = conv(outer, outer)
        self.conv45 = conv(outer, outer, strides=2)
        self.bn47 = layers.batch_norm(outer)
        self.conv48 = conv(outer, outer)
        self.conv49 = conv(outer, outer)
        self.conv50 = conv(outer, outer, strides=2)
        self.conv51 = conv(outer, outer)
        self.conv52 = conv(outer, outer)
        self.conv63 = conv(outer, outer)
        self.conv64 = conv(outer, outer)
        self.bn65 = layers.batch_norm(outer)
        self.conv73 = conv(outer, outer)
        self.bn75 = layers.batch_norm(outer)

        self.fc = layers.linear(outer, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]` of images `[batch, height, width, in_channels]`."""
        x = self._pooled_unet(x) + self._strided_unet(x)
        return self.fc(global_mean(x))

    def _pooled_unet(self, x: jax.Array) -> jax.Array:
        """Returns what operators 0 to 38 make of the image, `[batch, height, width, outer]`."""
        whole = self.conv3(nnx.relu(self.bn1(self.conv0(x))))
        half = nnx.relu(self.conv5(_max_pool(whole)))
        half = self.bn9(nnx.relu(self.conv7(half)))
        quarter = self.conv12(self.conv11(_max_pool(half)))
        eighth = self.conv15(self.conv14(_max_pool(quarter)))
        quarter = _resize_like(eighth, quarter) + quarter
        half = _resize_like(quarter, half) + half
        half = nnx.relu(self.bn28(self.conv27(self.conv26(half))))
        whole = nnx.relu(_resize_like(half, whole) + whole)
        return self.bn38(nnx.relu(self.conv36(whole)))

    def _strided_unet(self, x: jax.Array) -> jax.Array:
        """Returns what operators 39 to 75 make of the image, `[batch, height, width, outer]`."""
        whole = nnx.relu(self.bn40(self.conv39(x)))
        half = nnx.relu(self.conv43(self.conv42(whole)))
        quarter = self.bn47(nnx.relu(self.conv45(half)))
        quarter = self.conv49(self.conv48(quarter))
        eighth = self.conv52(self.conv51(self.conv50(quarter)))
        quarter = _resize_like(eighth, quarter) + quarter
        half = _resize_like(quarter, half) + half
        half = nnx.relu(self.bn65(self.conv64(self.conv63(half))))
        whole = nnx.relu(_resize_like(half, whole) + whole)
        return self.bn75(nnx.relu(self.conv73(whole)))
