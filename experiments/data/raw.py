"""The files that data sets are prepared from: folders and tars of images, and the idx files of the MNIST family."""

import dataclasses
import gzip
import io
import lzma
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from experiments.common.errors import DataError

_SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_IDX_PREFIXES = {"train": "train", "test": "t10k"}


class RawImage(NamedTuple):
    """One image as it was found.

    Attributes:
        label: index of the class.
        name: name of the file, unique within the split.
        encoded: content of a JPEG or PNG file.
    """

    label: int
    name: str
    encoded: bytes


class RawImages(Protocol):
    """A source of images by split and class."""

    @property
    def path(self) -> Path:
        """The folder or tar."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""

    def read(self, split: str) -> Iterator[RawImage]:
        """Yields all images of a split, in the order in which they are found.

        Raises:
            DataError: the source is damaged.
        """


def open_raw(path: Path) -> RawImages:
    """Opens a folder of idx.gz files, or a folder or tar of images that are named `split/class/file`.

    Raises:
        DataError: there are no such images, or they have no training and test split.
    """
    if not path.exists():
        raise DataError(f"there is no folder or file {path}")
    if is_idx_folder(path):
        return _IdxImages(path)
    places = [place for place, _ in _placed_files(path)]
    if not places:
        raise DataError(
            f"{path} holds no images named split/class/file: the splits can be called {', '.join(_SPLITS)}, and the "
            f"files end in {', '.join(_SUFFIXES)}"
        )
    splits = tuple(sorted({place.split for place in places}))
    if "train" not in splits or len(splits) < 2:
        raise DataError(f"{path} holds the split {splits[0]} alone; a training split and one to test on are needed")
    classes = tuple(sorted({place.class_name for place in places}))
    return _ImagesByClass(path, classes, splits)


class _Place(NamedTuple):
    """Where an image lies: split, class and file name."""

    split: str
    class_name: str
    name: str


def _place(file: str) -> _Place | None:
    """Returns what a path says of an image, None if it is no image by split and class."""
    path = PurePosixPath(file)
    if len(path.parts) < 3 or path.suffix.lower() not in _SUFFIXES or path.parts[-3] not in _SPLITS:
        return None
    return _Place(_SPLITS[path.parts[-3]], path.parts[-2], f"{path.parts[-2]}/{path.name}")


def _placed_files(path: Path) -> Iterator[tuple[_Place, Callable[[], bytes]]]:
    """Yields, for every image in a folder or tar, where it lies and what reads it before the next one is asked for."""
    for file, read in _folder_files(path) if path.is_dir() else _tar_files(path):
        place = _place(file)
        if place is not None:
            yield place, read


def _folder_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for file in sorted(path.glob("*/*/*")):
        yield str(file), file.read_bytes


def _tar_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Goes through a tar, compressed or not."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read
    except (tarfile.ReadError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is no readable tar: {str(error).splitlines()[0]}") from None


@dataclasses.dataclass(frozen=True)
class _ImagesByClass:
    """Images in a folder or tar, named `split/class/file`; attributes as in `RawImages`."""

    path: Path
    classes: tuple[str, ...]
    splits: tuple[str, ...]

    def read(self, split: str) -> Iterator[RawImage]:
        """See `RawImages`."""
        for place, read in _placed_files(self.path):
            if place.split == split:
                yield RawImage(self.classes.index(place.class_name), place.name, read())


@dataclasses.dataclass(frozen=True)
class _IdxImages:
    """Images in a folder of idx.gz files, as Fashion-MNIST comes; attributes as in `RawImages`."""

    path: Path
    classes: tuple[str, ...] = tuple(map(str, range(10)))
    splits: tuple[str, ...] = tuple(_IDX_PREFIXES)

    def read(self, split: str) -> Iterator[RawImage]:
        """See `RawImages`."""
        for index, (image, label) in enumerate(zip(*read_idx_split(self.path, split), strict=True)):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            yield RawImage(int(label), f"{index:05d}.png", content.getvalue())


def is_idx_folder(path: Path) -> bool:
    """Tells whether a path is a folder of idx.gz files."""
    return path.is_dir() and any(path.glob("*-idx3-ubyte.gz"))


def read_idx_split(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[size, height, width]` and labels `[size]` of a split, both uint8, in a folder of idx.gz files.

    Raises:
        DataError: a file is missing or damaged, or the two differ in number.
    """
    prefix = _IDX_PREFIXES[split]
    images = read_idx(path / f"{prefix}-images-idx3-ubyte.gz", ndim=3)
    labels = read_idx(path / f"{prefix}-labels-idx1-ubyte.gz", ndim=1)
    if len(images) != len(labels):
        raise DataError(f"{path} holds {len(images)} images but {len(labels)} labels of the split {split}")
    return images, labels


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array of `ndim` axes in a gzipped idx file.

    The format: two zero bytes, 8 for uint8, the number of axes, each axis' size as a big-endian uint32, the values.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    header_size = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) < header_size:
        raise DataError(f"{path} is not an idx file of uint8 with {ndim} axes")
    shape = tuple(map(int, np.frombuffer(content, ">u4", count=ndim, offset=4)))
    values = np.frombuffer(content, np.uint8, offset=header_size)
    if values.size != math.prod(shape):
        raise DataError(f"{path} is damaged: {values.size} values, {math.prod(shape)} expected for shape {shape}")
    return values.reshape(shape)
