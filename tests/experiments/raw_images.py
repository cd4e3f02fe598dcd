"""Small data sets in the formats that real ones come in."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SPLIT_SIZES = {"train": 12, "t10k": 5}


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes a tiny data set in Fashion-MNIST's format and returns its arrays by split."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, size in SPLIT_SIZES.items():
        images, labels = rng.integers(256, size=(size, 28, 28)), np.arange(size) % 10
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
        arrays[{"t10k": "test"}.get(prefix, prefix)] = images, labels
    return arrays


def encode(pixels: np.ndarray, suffix: str = "png") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, {"jpg": "JPEG"}.get(suffix, suffix))
    return content.getvalue()


def class_folders(
    splits: dict[str, int], classes: list[str], shape: tuple[int, ...], suffix: str = "png"
) -> dict[str, bytes]:
    """Returns file contents by `split/class/file`, so many images of each class; classes differ in brightness."""
    rng = np.random.default_rng(0)
    files = {}
    for split, size in splits.items():
        for label, name in enumerate(classes):
            for index in range(size):
                pixels = rng.integers(60, size=shape) + 190 * label // max(1, len(classes) - 1)
                files[f"{split}/{name}/{index}.{suffix}"] = encode(pixels, suffix)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
