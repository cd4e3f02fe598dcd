"""Single images: decoding, cropping and resizing, with Pillow alone."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.common.errors import DataError

_MODES = {1: "L", 3: "RGB"}
_SIZE_BEFORE_CENTER_CROP = 256 / 224
"""Shorter side of a test image, as a multiple of the square that is cropped from its centre (arXiv 1409.4842)."""


def open_image(encoded: bytes, channels: int, name: str) -> Image.Image:
    """Returns an image that is decoded once its pixels are asked for.

    Args:
        encoded: content of a PNG or JPEG file.
        channels: 1 for grey, 3 for colour; other images are converted.
        name: what an error message calls the image.

    Raises:
        DataError: the content is no image.
    """
    image = _opened(encoded, name)
    if image.mode != _MODES[channels]:
        image = _decoded(image, name).convert(_MODES[channels])
    return image


def image_channels(encoded: bytes, name: str) -> int:
    """Returns 1 if an image is grey and 3 if it is not."""
    return 1 if _opened(encoded, name).mode in ("1", "L", "I;16") else 3


def _opened(encoded: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name} is no readable image: {error}") from None


def pixels(image: Image.Image, name: str) -> np.ndarray:
    """Returns the pixels of an image, uint8 `[height, width, channels]`.

    Raises:
        DataError: the image is truncated or damaged.
    """
    array = np.asarray(_decoded(image, name))
    return array[..., None] if array.ndim == 2 else array


def _decoded(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three at damaged content
        raise DataError(f"{name} is truncated or damaged: {error}") from None
    return image


def center_crop(image: Image.Image, size: int, name: str) -> np.ndarray:
    """Returns the square at the centre of an image, resized so that little is cut off, uint8 `[size, size, channels]`.

    Images that are square and no larger than asked for are only resized.
    """
    width, height = image.size
    if width == height <= size:
        return pixels(_decoded(image, name).resize((size, size), Image.Resampling.BILINEAR), name)
    side = min(width, height) / _SIZE_BEFORE_CENTER_CROP
    left, top = (width - side) / 2, (height - side) / 2
    return _resized(image, (left, top, left + side, top + side), size, name)


def random_resized_crop(image: Image.Image, size: int, min_scale: float, uniforms: np.ndarray, name: str) -> np.ndarray:
    """Returns a random part of an image, resized to a square, uint8 `[size, size, channels]`.

    The part covers between `min_scale` and all of the area, its width is between 3/4 and 4/3 of its height (arXiv
    1409.4842), and it is shrunk to fit where it would not.

    Args:
        image: the image.
        size: height and width of the result.
        min_scale: least part of the area.
        uniforms: four numbers in [0, 1).
        name: what an error message calls the image.
    """
    width, height = image.size
    area = width * height * (min_scale + (1 - min_scale) * uniforms[0])
    ratio = math.exp(math.log(4 / 3) * (2 * uniforms[1] - 1))
    crop_width, crop_height = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = uniforms[2] * (width - crop_width), uniforms[3] * (height - crop_height)
    return _resized(image, (left, top, left + crop_width, top + crop_height), size, name)


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int, name: str) -> np.ndarray:
    """Returns the part of an image in `box` (left, top, right, bottom), resized to a square."""
    width, _ = image.size
    # A JPEG can be decoded at a half, a quarter or an eighth of its size, which is much quicker. Twice the resolution
    # asked for is kept.
    scale = 2 * size / min(box[2] - box[0], box[3] - box[1])
    image.draft(image.mode, (math.ceil(image.size[0] * scale), math.ceil(image.size[1] * scale)))
    factor = image.size[0] / width
    left, top, right, bottom = (edge * factor for edge in box)
    right, bottom = min(right, image.size[0]), min(bottom, image.size[1])
    image = _decoded(image, name)
    return pixels(image.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom)), name)
