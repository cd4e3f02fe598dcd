"""Data sets by name: scikit-learn's digits, or a copy in TFDS's format that is read without TensorFlow."""

import dataclasses
import difflib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from experiments.common.errors import DataError
from experiments.data.images import center_crop, open_image, pixels, random_resized_crop

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each colour, in [0, 1]."""

NORMALISATION: dict[str, Constants] = {
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Those of the training images, rounded as published implementations use them.

The copies that `experiments.prepare` makes of other images hold their own.
"""

CACHED_BYTES = 2**30
"""Splits whose decoded images take no more memory than this are decoded once, when the data set is opened."""

_DECODED_AT_ONCE = 1024
_NUM_THREADS = 8
_DIGITS_LEVEL = 15
"""What one of the 16 levels of a digit's pixel becomes in uint8."""


class RandomCrop(NamedTuple):
    """Random resized crops of a batch of images.

    Attributes:
        min_scale: least share of an image's area.
        uniforms: random numbers of each image, `[batch, 4]`.
    """

    min_scale: float
    uniforms: np.ndarray


class Images(Protocol):
    """Labelled images at random access."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def load(self, indices: np.ndarray, crop: RandomCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns some images, uint8 `[batch, height, width, channels]`, and their labels, int32 `[batch]`.

        Raises:
            DataError: an image is damaged.
        """


@dataclasses.dataclass(frozen=True)
class ArrayImages:
    """Decoded images in memory.

    Attributes:
        images: uint8 `[size, height, width, channels]`.
        labels: int32 `[size]`.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.labels)

    def load(self, indices: np.ndarray, crop: RandomCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Images`."""
        images = self.images[indices]
        if crop is not None:
            opened = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]
            images = _cropped(opened, images.shape[1], crop, [f"image {index}" for index in indices])
        return images, self.labels[indices]


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded, and brought to one size, when they are asked for.

    Attributes:
        source: TFDS data source, random access to dictionaries of an encoded `image` and a `label`.
        name: what error messages call it.
        channels: 1 for grey, 3 for colour.
        size: height and width to bring the images to; None if all have one size.
    """

    source: Any
    name: str
    channels: int
    size: int | None

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.source)

    def load(self, indices: np.ndarray, crop: RandomCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Images`."""
        records = self.source.__getitems__([int(index) for index in indices])
        names = [f"image {index} of {self.name}" for index in indices]
        opened = [open_image(r["image"], self.channels, name) for r, name in zip(records, names, strict=True)]
        labels = np.array([record["label"] for record in records], np.int32)
        if self.size is None:
            return np.stack([pixels(image, name) for image, name in zip(opened, names, strict=True)]), labels
        if crop is not None:
            return _cropped(opened, self.size, crop, names), labels
        return np.stack([center_crop(i, self.size, name) for i, name in zip(opened, names, strict=True)]), labels

    def decoded(self) -> ArrayImages:
        """Returns all images in memory."""
        chunks = np.array_split(np.arange(len(self)), max(1, len(self) // _DECODED_AT_ONCE))
        with ThreadPoolExecutor(_NUM_THREADS) as executor:
            images, labels = zip(*executor.map(self.load, chunks), strict=True)
        return ArrayImages(np.concatenate(images), np.concatenate(labels))


@dataclasses.dataclass(frozen=True)
class SomeImages:
    """A part of the images.

    Attributes:
        images: all images.
        indices: which of them, int `[size]`.
    """

    images: Images
    indices: np.ndarray

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.indices)

    def load(self, indices: np.ndarray, crop: RandomCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Images`."""
        return self.images.load(self.indices[indices], crop)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to train and to test on.

    Attributes:
        name: name of the data set.
        image_shape: height, width and channels of every image.
        num_classes: number of classes.
        normalisation: mean and standard deviation of the colours.
        origin: where the images come from, for people.
        train: the training images.
        test: the test images; where there is a validation split (ImageNet), that.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    normalisation: Constants
    origin: str
    train: Images
    test: Images

    def take(self, num_train: int | None, num_test: int | None) -> "Dataset":
        """Returns the data set with so many training and test images, the same ones every time; None keeps all."""
        return dataclasses.replace(self, train=_take(self.train, num_train), test=_take(self.test, num_test))


def open_dataset(name: str, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Opens a data set.

    Args:
        name: `digits`, or the name of a data set in TFDS's format.
        data_dir: folder of the TFDS data sets; by default TFDS's own, `~/tensorflow_datasets` or `TFDS_DATA_DIR`.
        image_size: height and width to bring the images to. Images that all have one size can be left at that (None).

    Raises:
        DataError: there is no such data set, or it is not prepared, or damaged; the message says what to do.
    """
    if name == "digits":
        return _digits(image_size)
    builder = _find_builder(name, data_dir)
    info = builder.info
    height, width, channels = info.features["image"].shape
    if None in (height, width) and image_size is None:
        raise DataError(f"the images of {name} differ in size: say with `image_size` what to bring them to")
    shape = (image_size or height, image_size or width, channels)
    same_size = (height, width) == shape[:2]

    def split(split_name: str) -> Images:
        import tensorflow_datasets as tfds

        source = builder.as_data_source(split_name, decoders={"image": tfds.decode.SkipDecoding()})
        encoded = EncodedImages(source, f"{name}'s {split_name} split", channels, None if same_size else image_size)
        is_small = len(encoded) * np.prod(shape) <= CACHED_BYTES
        return encoded.decoded() if is_small and None not in (height, width) else encoded

    return Dataset(
        name,
        shape,
        info.features["label"].num_classes,
        _normalisation(name, info.metadata),
        (info.metadata or {}).get("origin", f"TensorFlow Datasets, {name} {info.version}"),
        split("train"),
        split("validation" if "validation" in info.splits else "test"),
    )


def _take(images: Images, number: int | None) -> Images:
    if number is None or number >= len(images):
        return images
    return SomeImages(images, np.sort(np.random.default_rng(0).permutation(len(images))[:number]))


def _cropped(images: list[Image.Image], size: int, crop: RandomCrop, names: list[str]) -> np.ndarray:
    return np.stack(
        [
            random_resized_crop(image, size, crop.min_scale, uniforms, name)
            for image, uniforms, name in zip(images, crop.uniforms, names, strict=True)
        ]
    )


def _find_builder(name: str, data_dir: Path | None) -> Any:
    """Returns the TFDS builder of a prepared data set."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of every folder that is not there
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError):  # a ValueError if the name has odd characters
        raise DataError(_unknown_name(name, data_dir)) from None
    if not builder.is_prepared():
        raise DataError(
            f"{name} is not prepared in {builder.data_dir_root}. Make its copy from files that you have with "
            f"`python -m experiments.prepare {name} --source FOLDER_OR_TAR`, or from the network with "
            f"`python -m experiments.prepare {name}` (that needs TensorFlow)"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"the copy of {name} in {builder.data_path} has the format {builder.info.file_format.value}, without "
            f"random access. Delete it, and make one in array_record with `python -m experiments.prepare {name}`"
        )
    return builder


def _unknown_name(name: str, data_dir: Path | None) -> str:
    prepared = [path.name for path in data_dir.iterdir() if path.is_dir()] if data_dir and data_dir.is_dir() else []
    usual = ["digits", *NORMALISATION, *prepared]
    near = difflib.get_close_matches(name, usual, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(usual)}."
    return (
        f"no data set is called {name!r}: {hint} A folder or tar of images, `split/class/file`, becomes one with "
        f"`python -m experiments.prepare {name} --source FOLDER_OR_TAR`"
    )


def _normalisation(name: str, metadata: Any) -> Constants:
    if name in NORMALISATION:
        return NORMALISATION[name]
    if not metadata or "mean" not in metadata:
        raise DataError(
            f"nothing is known of the mean and spread of {name}'s colours. Make its copy with `python -m "
            f"experiments.prepare {name} --source FOLDER_OR_TAR`, which measures them"
        )
    return tuple(metadata["mean"]), tuple(metadata["std"])


def _digits(image_size: int | None) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., None] * _DIGITS_LEVEL).astype(np.uint8)
    if image_size is not None:
        images = np.stack([center_crop(Image.fromarray(each[..., 0]), image_size, "a digit") for each in images])
    # One fixed, stratified division: the images are sorted by writer, so the tail would be another distribution.
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target.astype(np.int32), test_size=360, stratify=digits.target, random_state=0
    )
    intensities = train_images / 255
    return Dataset(
        "digits",
        images.shape[1:],
        10,
        ((float(intensities.mean()),), (float(intensities.std()),)),
        "scikit-learn's optical recognition of handwritten digits, 1,797 images",
        ArrayImages(train_images, train_labels),
        ArrayImages(test_images, test_labels),
    )
