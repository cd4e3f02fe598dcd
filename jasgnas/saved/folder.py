"""Folders that are whole or not there: written beside their place and moved, read only if every file is as it was."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jasgnas.errors import ArgumentError, JasgnasError, SavedNetworkError
from jasgnas.saved.trees import Json

MANIFEST = "manifest.json"
"""The file that names all others, written last."""

FORMAT = 1
"""The format of the folders that are written. Every change that an older version would misread adds one."""

AGAIN = "Copy the folder anew from where it was saved, or save the sub-network again"
"""What helps where a folder is not as it was."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder to write into, which becomes the one at `path` once it is whole; else nothing is left.

    Raises:
        ArgumentError: there is something at the path.
    """
    _require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        _require_free(path)
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_free(path: Path) -> None:
    if os.path.lexists(path):
        raise ArgumentError(f"there is a {path} already, and nothing is overwritten: remove it, or save elsewhere")


def write_manifest(folder: Path, content: Mapping[str, Json]) -> None:
    """Writes the manifest of a folder that holds all other files."""
    files = {path.name: _fingerprint(path.read_bytes()) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, **content, "files": files}
    manifest["sha256"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Json]:
    """Returns the manifest of a folder.

    Raises:
        SavedNetworkError: there is none, it was altered, or it is of another format.
    """
    data = _read(folder, MANIFEST)
    with reading(folder / MANIFEST):
        manifest = json.loads(data.decode("utf-8"), parse_constant=_refuse)
        found = manifest["format"]
        if type(found) is int and found > FORMAT:
            raise SavedNetworkError(
                f"{folder} is of format {found}, and this version of jasgnas reads formats up to {FORMAT}: update "
                "jasgnas. What runs without it (run.py) still does"
            )
        if type(found) is not int or found < 1 or manifest.pop("sha256") != _digest(manifest):
            raise SavedNetworkError(f"{folder / MANIFEST} was altered after it was written. {AGAIN}")
    return manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def read_files(folder: Path, manifest: Mapping[str, Json]) -> dict[str, bytes]:
    """Returns the bytes of every file that a manifest names.

    Raises:
        SavedNetworkError: a file is missing, is none of this folder, or is not as it was written.
    """
    files = {}
    with reading(folder / MANIFEST):
        for name, expected in manifest["files"].items():
            if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
                raise SavedNetworkError(f"{folder / MANIFEST} names {name!r}, which is no file of this folder. {AGAIN}")
            data = files[name] = _read(folder, name)
            if _fingerprint(data) != expected:
                size = expected["bytes"]
                what = f"has {len(data)} bytes instead of {size}" if len(data) != size else "was altered"
                raise SavedNetworkError(f"{folder / name} {what}. {AGAIN}")
    return files


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file() or path.is_symlink():
        what = "is a link" if path.is_symlink() else "is missing"
        raise SavedNetworkError(
            f"{folder} is no folder that jasgnas.save has written, or not all of it: {name} {what}. {AGAIN}"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise SavedNetworkError(f"{path} cannot be read: {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Has whatever goes wrong in reading a file be an error that names it."""
    try:
        yield
    except JasgnasError:
        raise
    except Exception as error:
        raise SavedNetworkError(
            f"{path} is not what jasgnas.save writes ({type(error).__name__}: {error}). {AGAIN}"
        ) from error


def _fingerprint(data: bytes) -> dict[str, Json]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _digest(manifest: Mapping[str, Json]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
