"""Files of results: a line of JSON for each thing done, appended as soon as it is done."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.common.errors import ConfigError
from experiments.common.files import write_atomically

T = TypeVar("T")


def read_json_lines(path: Path, parse: Callable[[dict[str, Any]], T], what: str) -> Iterator[tuple[int, T]]:
    """Yields the lines of a file in order, each with its number, from 1; none if there is no such file.

    A last line without an end is that of a command which was killed while it wrote it, and is passed over.

    Args:
        path: the file.
        parse: makes of a line what it stands for.
        what: what a line is a record of, for messages.

    Raises:
        ConfigError: `parse` cannot make anything of a line.
    """
    for number, text in enumerate(_whole_part(path).splitlines(), start=1):
        try:
            found = parse(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"line {number} of {path} is no record of {what}: {error!r}") from None
        yield number, found


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a line to a file, in the place of one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > len((whole := _whole_part(path)).encode()):
        write_atomically(path, whole)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _whole_part(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1]
