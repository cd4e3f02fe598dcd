"""The text: the modules of the standard library of the Python that runs, byte by byte.

Documentation is a part of it where it is in modules: their docstrings, and `pydoc_data/topics.py`, the language
reference that `help` shows. Files of other kinds are left out.
"""

import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common.errors import DataError

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
"""Folders of what is installed beside the library, and of its tests, which many machines lack."""
_OF_THE_MACHINE = "_sysconfigdata"
"""How the modules are called that say how Python was built."""
_PARTS = 10
"""One file in so many is for the test."""
_END = b"\0"
"""What stands after each file."""


class Text(NamedTuple):
    """What is learned and what is not.

    Attributes:
        train: the bytes of the files to learn from, uint8, one after the other, each with a zero behind it.
        test: those of all other files.
        facts: the version of Python, how many files and bytes there are of each, and a fingerprint of them all.
    """

    train: np.ndarray
    test: np.ndarray
    facts: dict[str, Any]


def read_text(folder: Path | None = None) -> Text:
    """Reads the text, the same on every machine with the same modules.

    Args:
        folder: the folder of the modules; by default that of the standard library.

    Raises:
        DataError: there are not enough modules for a part to learn from and one for the test.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    parts: tuple[list[bytes], list[bytes]] = [], []
    for name in names:
        if not _LEFT_OUT & set(name.split("/")) and _OF_THE_MACHINE not in name:
            parts[is_for_test(name)].append((folder / name).read_bytes() + _END)
    if not all(parts):
        raise DataError(f"{folder} has {len(parts[0])} modules to learn from and {len(parts[1])} for the test")
    train, test = (np.frombuffer(b"".join(files), np.uint8) for files in parts)
    facts = {
        "python": platform.python_version(),
        "files": [len(files) for files in parts],
        "bytes": [len(train), len(test)],
        "sha256": hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()[:16],
    }
    return Text(train, test, facts)


def is_for_test(name: str) -> bool:
    """Tells whether the file of this name is left to the test, by a hash of its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % _PARTS == 0


def drawn_windows(text: np.ndarray, number: int, size: int, seed: tuple[int, int]) -> np.ndarray:
    """Returns so many windows from anywhere in a text, int32 `[number, size]`."""
    starts = np.random.default_rng(seed).integers(len(text) - size + 1, size=number)
    return _windows(text, starts, size)


def spread_windows(text: np.ndarray, number: int, size: int) -> np.ndarray:
    """Returns so many windows at equal distances over all of a text, int32 `[number, size]`."""
    return _windows(text, np.linspace(0, len(text) - size, number).astype(int), size)


def _windows(text: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(size)].astype(np.int32)
