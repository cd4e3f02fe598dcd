"""Data sets as normalised arrays, and batches of them in an order that a seed fixes.

Everything here is NumPy on the host; nothing is downloaded.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

DatasetName = Literal["digits", "fashion_mnist"]

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts its files."""

_FASHION_MNIST_HELP = (
    "Get the original files with `sudo apt-get install --reinstall dataset-fashion-mnist` "
    f"(Debian, Ubuntu) and pass `--data-dir {FASHION_MNIST_DIR}`."
)


class DataError(ValueError):
    """A data set's files are missing or damaged, or too small for the batch size."""


class Split(NamedTuple):
    """Labelled images.

    Attributes:
        images: float32 `[size, height, width, channels]`, as raw intensities or normalised.
        labels: int32 `[size]`, in `[0, num_classes)`; −1 marks padding.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training and a test split, normalised by the training images' mean and standard deviation."""

    train: Split
    test: Split
    num_classes: int


def load(name: DatasetName, data_dir: Path | None = None) -> Dataset:
    """Loads a data set.

    Args:
        name: `digits`, scikit-learn's 1,797 images of 8×8, or `fashion_mnist`, 70,000 images of 28×28.
        data_dir: folder of the `fashion_mnist` idx.gz files, by default `FASHION_MNIST_DIR`; `digits` needs none.

    Returns:
        The data set, images in float32.

    Raises:
        DataError: if files are missing or damaged; the message says how to get them.
    """
    match name:
        case "digits":
            train, test = _digits()
        case "fashion_mnist":
            train, test = _fashion_mnist(data_dir or FASHION_MNIST_DIR)
    mean, std = train.images.mean(), train.images.std()
    train, test = (Split((images - mean) / std, labels) for images, labels in (train, test))
    return Dataset(train, test, num_classes=10)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of full batches in a split.

    Raises:
        DataError: if the split is smaller than one batch.
    """
    size = len(split.labels)
    if not 1 <= batch_size <= size:
        raise DataError(f"the batch size is {batch_size}; it must lie between 1 and the {size} training images")
    return size // batch_size


def train_batches(split: Split, batch_size: int, *, seed: int, epoch: int) -> Iterator[Split]:
    """Yields one epoch of shuffled batches, an order that `seed` and `epoch` alone decide.

    Images left over when `batch_size` does not divide the split are skipped; another epoch leaves out others.

    Raises:
        DataError: if the split is smaller than one batch.
    """
    steps = steps_per_epoch(split, batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(len(split.labels))
    for indices in order[: steps * batch_size].reshape(steps, batch_size):
        yield Split(split.images[indices], split.labels[indices])


def eval_batches(split: Split, batch_size: int) -> Iterator[Split]:
    """Yields the split in order, the last batch padded to `batch_size` by black images labelled −1."""
    for start in range(0, len(split.labels), batch_size):
        images, labels = (array[start : start + batch_size] for array in split)
        missing = batch_size - len(labels)
        yield Split(
            np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))), np.pad(labels, (0, missing), constant_values=-1)
        )


def _digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # One fixed, stratified division: the images are sorted by writer, so the tail would be another distribution.
    train_images, test_images, train_labels, test_labels = train_test_split(
        digits.images[..., None].astype(np.float32),
        digits.target.astype(np.int32),
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    return Split(train_images, train_labels), Split(test_images, test_labels)


def _fashion_mnist(data_dir: Path) -> tuple[Split, Split]:
    train, test = (
        Split(
            _read_idx(data_dir / f"{prefix}-images-idx3-ubyte.gz", ndim=3)[..., None].astype(np.float32),
            _read_idx(data_dir / f"{prefix}-labels-idx1-ubyte.gz", ndim=1).astype(np.int32),
        )
        for prefix in ("train", "t10k")
    )
    for split in (train, test):
        if len(split.images) != len(split.labels):
            raise DataError(
                f"{data_dir} holds {len(split.images)} images but {len(split.labels)} labels. {_FASHION_MNIST_HELP}"
            )
    return train, test


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array of `ndim` axes in a gzipped idx file.

    The format: two zero bytes, 8 for uint8, the number of axes, each axis' size as a big-endian uint32, the values.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"no file {path}. {_FASHION_MNIST_HELP}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}. {_FASHION_MNIST_HELP}") from None
    header_size = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) < header_size:
        raise DataError(f"{path} is not an idx file of uint8 with {ndim} axes. {_FASHION_MNIST_HELP}")
    shape = tuple(map(int, np.frombuffer(content, ">u4", count=ndim, offset=4)))
    values = np.frombuffer(content, np.uint8, offset=header_size)
    if values.size != math.prod(shape):
        raise DataError(
            f"{path} is damaged: {values.size} values, {math.prod(shape)} expected for shape {shape}. "
            f"{_FASHION_MNIST_HELP}"
        )
    return values.reshape(shape)
