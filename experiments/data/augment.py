"""Random changes to batches of training images, decided by numbers that belong to each image.

Every function takes the randomness as an argument, so a batch is the same whoever computes it and in whatever order:
also on an accelerator, inside jit. What changes images takes arrays of NumPy and of JAX alike, and returns the same.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import special

NUM_UNIFORMS = 16
"""How many random numbers belong to one training image."""

CROP, CHANGE, MIX = slice(0, 4), slice(4, 12), slice(12, 16)
"""Which of them `random_resized_crop`, `augment_images` and `mix_images` take."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to training images; everything is off by default."""

    random_resized_crop: float = 0.0
    """Crop a part of the image that has at least this share of its area, and resize it (arXiv 1409.4842); 0 is off."""
    pad_crop: int = 0
    """Pad each side by so many black pixels, and crop to the old size anywhere."""
    flip: bool = False
    """Mirror every other image."""
    color_jitter: float = 0.0
    """Change brightness, contrast and saturation by factors of at most 1 ± this."""
    cutout: int = 0
    """Side of a square that is painted over with the mean colour (arXiv 1708.04552)."""
    mixup: float = 0.0
    """Blend with another image and its label, α of the Beta distribution of the share (arXiv 1710.09412)."""
    cutmix: float = 0.0
    """Paste a part of another image, with its share of the label, α as above (arXiv 1905.04899). With MixUp as well,
    each image takes one of the two."""


def uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns the random numbers of some images in some epochs, float64 `[batch, NUM_UNIFORMS]` in [0, 1).

    They depend on `seed`, the epoch and the image alone: not on the batch, the worker or the process.

    Args:
        seed: any non-negative integer.
        epochs: epoch of each image, int `[batch]`.
        indices: index of each image in its data set, int `[batch]`.

    References:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
    """
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    state = _mix(_mix(key ^ epochs.astype(np.uint64)) ^ indices.astype(np.uint64))
    with np.errstate(over="ignore"):
        counters = state[:, None] + _GOLDEN * np.arange(1, NUM_UNIFORMS + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)) * 2.0**-53


def _mix(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIX[0]
        values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def augment_images(images: np.ndarray, uniforms: np.ndarray, options: Augmentation, fill: np.ndarray) -> np.ndarray:
    """Returns changed copies of images, each by itself.

    Args:
        images: uint8 `[batch, height, width, channels]`.
        uniforms: eight random numbers for each image, `[batch, 8]`.
        options: what to do.
        fill: colour of what is cut out, uint8 `[channels]`.
    """
    u_y, u_x, u_flip, u_cut_y, u_cut_x, *u_factors = uniforms.T
    if options.pad_crop:
        images = pad_crop(images, options.pad_crop, u_y, u_x)
    if options.flip:
        images = _namespace(images).where((u_flip < 0.5)[:, None, None, None], images[:, :, ::-1], images)
    if options.color_jitter:
        factors = 1 + options.color_jitter * (2 * _namespace(images).stack(u_factors) - 1)
        images = color_jitter(images, *factors)
    if options.cutout:
        images = cutout(images, options.cutout, u_cut_y, u_cut_x, fill)
    return images


def pad_crop(images: np.ndarray, padding: int, u_y: np.ndarray, u_x: np.ndarray) -> np.ndarray:
    """Returns images `[batch, height, width, channels]` moved by at most `padding` pixels, black where nothing was."""
    batch, height, width, _ = images.shape
    xp = _namespace(images)
    padded = xp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = (xp.floor(u * (2 * padding + 1)).astype(int)[:, None] for u in (u_y, u_x))
    rows, columns = top + np.arange(height), left + np.arange(width)
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def cutout(images: np.ndarray, side: int, u_y: np.ndarray, u_x: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Returns images with a square painted over whose centre lies anywhere; what is outside the image is cut off."""
    _, height, width, _ = images.shape
    return _namespace(images).where(_boxes(u_y, u_x, side / height, side / width, (height, width)), fill, images)


def color_jitter(
    images: np.ndarray, brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray
) -> np.ndarray:
    """Returns images with brightness, contrast and saturation multiplied by factors, each `[batch]`, in this order."""
    brightness, contrast, saturation = (
        factor.astype(np.float32)[:, None, None, None] for factor in (brightness, contrast, saturation)
    )
    changed = images * brightness
    mean = _gray(changed).mean(axis=(1, 2), keepdims=True)
    changed = mean + contrast * (changed - mean)
    gray = _gray(changed)
    return _to_uint8(gray + saturation * (changed - gray))


def _gray(images: np.ndarray) -> np.ndarray:
    """Returns the luminance (ITU-R BT.601), `[batch, height, width, 1]`."""
    if images.shape[-1] == 1:
        return images
    return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)


def own_shares(uniforms: np.ndarray, mixup: float, cutmix: float) -> np.ndarray:
    """Returns the share of itself that each image keeps when it is mixed, float32 `[batch]`: Beta-distributed.

    Args:
        uniforms: four random numbers for each image, `[batch, 4]`, as for `mix_images`.
        mixup: α of MixUp, or 0.
        cutmix: α of CutMix, or 0; one of the two must be on.
    """
    alpha = np.where(_is_cut(uniforms[:, 0], mixup, cutmix), cutmix or 1, mixup or 1)
    return special.betaincinv(alpha, alpha, uniforms[:, 1]).astype(np.float32)


def mix_images(
    images: np.ndarray, uniforms: np.ndarray, shares: np.ndarray, mixup: float, cutmix: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes every image with the one before it in the batch.

    Args:
        images: uint8 `[batch, height, width, channels]`.
        uniforms: four random numbers for each image, `[batch, 4]`.
        shares: what `own_shares` returns for them.
        mixup: α of MixUp, or 0.
        cutmix: α of CutMix, or 0; one of the two must be on.

    Returns:
        The mixed images, the index of each image's partner `[batch]`, and the share of its own label `[batch]`.
    """
    batch, height, width, _ = images.shape
    xp = _namespace(images)
    u_which, _, u_y, u_x = uniforms.T
    partners = xp.roll(xp.arange(batch), 1)
    by_cutmix = _is_cut(u_which, mixup, cutmix)
    # CutMix: the box has 1 − share of the area, less what lies outside the image.
    side = xp.sqrt(1 - shares)
    boxes = _boxes(u_y, u_x, side, side, (height, width)) & by_cutmix[:, None, None, None]
    weight = xp.where(by_cutmix, 1, shares).astype(np.float32)
    labels = xp.where(by_cutmix, 1 - boxes.mean(axis=(1, 2, 3)), shares).astype(np.float32)
    others = images[partners]
    weight = weight[:, None, None, None]
    mixed = _to_uint8(weight * xp.where(boxes, others, images) + (1 - weight) * others)
    return mixed, partners, labels


def _is_cut(u_which: np.ndarray, mixup: float, cutmix: float) -> np.ndarray:
    """Tells which images CutMix takes, bool `[batch]`; MixUp takes the others."""
    return u_which < (0.5 if mixup and cutmix else float(cutmix > 0))


def _boxes(
    u_y: np.ndarray, u_x: np.ndarray, height: np.ndarray | float, width: np.ndarray | float, shape: tuple[int, int]
) -> np.ndarray:
    """Returns masks `[batch, *shape, 1]` of boxes around random centres; height and width are shares of the image's."""
    inside = []
    xp = _namespace(u_y)
    for u, extent, size in ((u_y, height, shape[0]), (u_x, width, shape[1])):
        length = xp.round(xp.broadcast_to(extent, u.shape) * size).astype(int)
        start = xp.floor(u * size).astype(int) - length // 2
        positions = xp.arange(size)
        inside.append((positions >= start[:, None]) & (positions < (start + length)[:, None]))
    return inside[0][:, :, None, None] & inside[1][:, None, :, None]


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return _namespace(values).rint(values).clip(0, 255).astype(np.uint8)


def _namespace(array: Any) -> Any:
    """Returns `numpy` or `jax.numpy`, whichever an array belongs to (the Python array API standard)."""
    return array.__array_namespace__()
