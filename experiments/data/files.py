"""Data sets from the files that they are published in, decoded once into memory, without a copy in TFDS's format."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.common.errors import DataError
from experiments.data.datasets import NORMALISATION, ArrayImages, Constants, Dataset
from experiments.data.images import image_channels, open_image, pixels
from experiments.data.raw import RawImage, RawImages, is_idx_folder, open_raw, read_idx_split

_DECODED_AT_ONCE = 4096


def read_files(name: str, folder: Path) -> Dataset:
    """Returns a data set that all images of which have one size.

    Args:
        name: name of the data set. Its colours are normalised as published implementations do where it is one of
            `NORMALISATION`, and otherwise by the mean and standard deviation of the training images.
        folder: where its files lie: in a folder or tar whose name begins with that of the data set, as
            `experiments.data.raw` reads them.

    Raises:
        DataError: there are no such files, or they are damaged, or differ in size.
    """
    paths = sorted(folder.glob(f"{name}*"))
    if len(paths) != 1:
        raise DataError(
            f"{folder} must hold one folder or tar whose name begins with {name!r}; "
            f"there are {', '.join(path.name for path in paths) or 'none'}"
        )
    raw = open_raw(paths[0])
    test_split = "validation" if "validation" in raw.splits else "test"
    channels = len(NORMALISATION[name][0]) if name in NORMALISATION else _first_channels(raw)
    train, test = (_decoded(raw, split, channels) for split in ("train", test_split))
    return Dataset(
        name,
        train.images.shape[1:],
        len(raw.classes),
        NORMALISATION[name] if name in NORMALISATION else _measured(train.images),
        f"the files {paths[0].name}",
        train,
        test,
    )


def _decoded(raw: RawImages, split: str, channels: int) -> ArrayImages:
    if is_idx_folder(raw.path):
        images, labels = read_idx_split(raw.path, split)
        return ArrayImages(images[..., None], labels.astype(np.int32))

    def decode(image: RawImage) -> np.ndarray:
        return pixels(open_image(image.encoded, channels, image.name), image.name)

    found: list[np.ndarray] = []
    classes: list[int] = []
    with ThreadPoolExecutor() as executor:
        for chunk in _chunks(raw.read(split)):
            found += executor.map(decode, chunk)
            classes += [image.label for image in chunk]
    if len({image.shape for image in found}) > 1:
        raise DataError(f"the images of {raw.path} differ in size")
    return ArrayImages(np.stack(found), np.array(classes, np.int32))


def _first_channels(raw: RawImages) -> int:
    first = next(raw.read("train"))
    return image_channels(first.encoded, first.name)


def _measured(images: np.ndarray) -> Constants:
    """Returns mean and standard deviation of each colour, in [0, 1]."""
    shares = np.arange(256) / 255
    counts = [np.bincount(colour.ravel(), minlength=256) / colour.size for colour in np.moveaxis(images, -1, 0)]
    means = tuple(float(each @ shares) for each in counts)
    stds = tuple(float(np.sqrt(each @ (shares - mean) ** 2)) for each, mean in zip(counts, means, strict=True))
    return means, stds


def _chunks(images: Iterator[RawImage]) -> Iterator[list[RawImage]]:
    while chunk := list(itertools.islice(images, _DECODED_AT_ONCE)):
        yield chunk
