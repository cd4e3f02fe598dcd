"""The TFDS copy of a data set: from files at hand without TensorFlow, or from the network with it."""

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tyro

from experiments.common.errors import DataError
from experiments.data.images import image_channels, open_image, pixels
from experiments.data.raw import RawImage, RawImages, open_raw

_LOSSLESS = ("fashion_mnist", "cifar10", "svhn_cropped", "stl10")
"""Data sets whose original images have no compression artefacts."""

_LOOKED_AT_ONCE = 512
_PNG_SIGNATURE = b"\x89PNG"


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Makes the TFDS copy of a data set, which training then reads without TensorFlow.

    Without --source, TFDS downloads and prepares the data set itself; that needs a network and TensorFlow.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set: TFDS's (cifar10, fashion_mnist, svhn_cropped, stl10, imagenet2012) or one of your own."""
    source: Path | None = None
    """What to make it from: a folder or tar of images named split/class/file, or a folder of idx.gz files."""
    data_dir: Path | None = None
    """Folder of the TFDS copies; by default TFDS's own, ~/tensorflow_datasets or the variable TFDS_DATA_DIR."""


def prepare(config: Prepare) -> Path:
    """Makes the copy and returns its folder; one that is there already is left as it is.

    Raises:
        DataError: the source is missing or damaged, or TensorFlow is needed and not installed.
        OSError: the copy cannot be written.
    """
    if config.name == "digits":
        raise DataError("the digits are embedded, and there is nothing to prepare: give other images another name")
    if config.source is not None:
        builder = _make_builder(config.name, open_raw(config.source), config.data_dir)
    else:
        builder = _standard_builder(config.name, config.data_dir)
    builder.download_and_prepare()
    return Path(builder.data_path)


def _standard_builder(name: str, data_dir: Path | None) -> Any:
    """Returns TFDS's own builder of a data set."""
    try:
        tfds.builder_cls(name)
    except (tfds.core.DatasetNotFoundError, ValueError):  # a ValueError if the name has odd characters
        raise DataError(
            f"TFDS knows no data set {name!r}. To make one of your own files, give them with --source"
        ) from None
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"TFDS's own preparation of {name} needs TensorFlow: `pip install tensorflow` (training does not need it). "
            "To do without, give the data set's files with --source"
        )
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")


class _Facts(NamedTuple):
    """What all images have in common.

    Attributes:
        shape: height, width and channels; None where images differ.
        encoding: `jpeg` or `png`; None where images differ.
        mean: mean of each colour of the training images, in [0, 1].
        std: their standard deviation.
    """

    shape: tuple[int | None, int | None, int]
    encoding: str | None
    mean: list[float]
    std: list[float]


def _make_builder(name: str, images: RawImages, data_dir: Path | None) -> Any:
    """Returns a TFDS builder of images that hands them over as they are encoded, which needs no TensorFlow."""
    facts = _examine(images)
    try:
        version = tfds.builder_cls(name).VERSION
    except tfds.core.DatasetNotFoundError:
        version = tfds.core.Version("1.0.0")
    is_lossy = name in _LOSSLESS and facts.encoding == "jpeg"
    origin = f"made from {images.path.name}" + (
        ", compressed again as JPEG: not the original pixels" if is_lossy else ""
    )

    class ImagesByClass(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Hands the images over as they are encoded."""

        VERSION = version

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=origin,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=facts.shape, encoding_format=facts.encoding),
                        "label": tfds.features.ClassLabel(names=list(images.classes)),
                    }
                ),
                supervised_keys=("image", "label"),
                metadata=tfds.core.MetadataDict(origin=origin, mean=facts.mean, std=facts.std),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            del dl_manager
            return {split: self._generate_examples(split) for split in images.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for image in images.read(split):
                yield image.name, {"image": image.encoded, "label": image.label}

    ImagesByClass.name = name
    return ImagesByClass(data_dir=data_dir, file_format="array_record")


def _examine(images: RawImages) -> _Facts:
    """Decodes every image once, which also finds damaged ones before anything is written.

    Raises:
        DataError: an image cannot be decoded.
    """
    seen: list[_Seen] = []
    with ThreadPoolExecutor() as executor:
        for split in images.splits:
            remaining = images.read(split)
            look = partial(_look, is_training=split == "train")
            while chunk := list(itertools.islice(remaining, _LOOKED_AT_ONCE)):
                seen.extend(executor.map(look, chunk))
    heights, widths, encodings = ({getattr(each, field) for each in seen} for field in ("height", "width", "encoding"))
    channels = 1 if all(each.is_gray for each in seen) else 3
    moments = np.array([each.moments for each in seen if each.moments is not None])[..., :channels].mean(axis=0)
    return _Facts(
        (_only(heights), _only(widths), channels),
        _only(encodings),
        moments[0].tolist(),
        np.sqrt(moments[1] - moments[0] ** 2).tolist(),
    )


class _Seen(NamedTuple):
    """One image's size, encoding, whether it is grey, and its colours' mean and mean square if it is trained on."""

    height: int
    width: int
    encoding: str
    is_gray: bool
    moments: np.ndarray | None


def _look(image: RawImage, is_training: bool) -> _Seen:
    name = f"the image {image.name}"
    is_gray = image_channels(image.encoded, name) == 1
    colors = pixels(open_image(image.encoded, 3, name), name)
    height, width, _ = colors.shape
    encoding = "png" if image.encoded.startswith(_PNG_SIGNATURE) else "jpeg"
    if not is_training:
        return _Seen(height, width, encoding, is_gray, None)
    intensities = colors.reshape(-1, 3) / 255
    return _Seen(height, width, encoding, is_gray, np.stack([intensities.mean(0), (intensities**2).mean(0)]))


def _only(values: set[Any]) -> Any:
    """Returns the only value, None if there are several."""
    return next(iter(values)) if len(values) == 1 else None
