"""The files that make up the page, read from the package."""

import gzip
from functools import cache
from importlib.resources import files

_FOLDER = files("jasgnas.pages") / "assets"


@cache
def asset(name: str) -> str:
    """Returns the text of a file."""
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def packed_engine() -> bytes:
    """Returns the layout engine, a script compressed with gzip."""
    return (_FOLDER / "vendor" / "viz-global.js.gz").read_bytes()


def engine() -> str:
    """Returns the layout engine."""
    return gzip.decompress(packed_engine()).decode()
