"""What is kept of each thing done: one line of JSON, appended as soon as it is done."""

import dataclasses
import datetime
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from experiments.common.lines import append_json_line, read_json_lines
from experiments.common.machine import machine_facts

T = TypeVar("T")

Work = Callable[[], dict[str, Any]]
"""Finds the figures of a thing."""


class Thing(NamedTuple):
    """What there is to be done.

    Attributes:
        part: `exactness`, `selection`, `speed`, `plan` or `training`.
        name: what it is done with.
        settings: all that decides what is found, but for the device; JSON can hold it.
    """

    part: str
    name: str
    settings: dict[str, Any]

    @property
    def settings_id(self) -> str:
        """Fingerprint of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


def called_with(part: str, name: str, function: Callable[..., T], /, **settings: Any) -> tuple[Thing, partial[T]]:
    """Returns what is done by calling a function, whose arguments decide what is found, and the call."""
    return Thing(part, name, settings), partial(function, **settings)


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was done.

    Attributes:
        part: the thing's part.
        name: its name.
        scale: `full`, or another at which the command is tried out.
        figures: what was found; where it failed, `fault` alone.
        seconds: wall time that it took, compilation included.
        device: kind of the device.
        machine: facts about machine and software.
        date: the day, as ISO 8601.
        command: what makes this line.
        settings_id: fingerprint of the thing's settings; lines that were recorded before there was one have that of
            nothing.
    """

    part: str
    name: str
    scale: str
    figures: dict[str, Any]
    seconds: float
    device: str
    machine: dict[str, Any]
    date: str
    command: str
    settings_id: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this line from others: with other settings, or on another device, it is another thing."""
        return self.part, self.name, self.scale, self.settings_id, self.device

    @property
    def failed(self) -> bool:
        """Tells whether nothing was found."""
        return "fault" in self.figures


class Journal:
    """The lines in a file, to which this command appends.

    Example:
        >>> journal = Journal(Path("gpu.jsonl"), "full", "python -m experiments.gpu")  # doctest: +SKIP
        >>> journal.do(Thing("speed", "demo_net", {"batch_size": 4}), lambda: {"ms": 3.1})  # doctest: +SKIP
    """

    def __init__(self, path: Path, scale: str, command: str):
        """Reads what is there.

        Args:
            path: the file; it need not exist yet.
            scale: scale of all that this command does.
            command: the command.

        Raises:
            ConfigError: a line is none of this journal's.
        """
        self._path, self._scale, self._command = path, scale, command
        self._device = jax.devices()[0].device_kind
        self._lines = {line.key: line for line in read_lines(path)}
        self._lock = threading.Lock()

    def figures(self, thing: Thing) -> dict[str, Any] | None:
        """Returns what was found earlier with the same settings on such a device, None if nothing was."""
        line = self._lines.get((thing.part, thing.name, self._scale, thing.settings_id, self._device))
        return None if line is None or line.failed else line.figures

    def do(self, thing: Thing, work: Work) -> dict[str, Any] | None:
        """Does something that is not done yet, and writes its line.

        What goes wrong becomes a line too: the minutes that are left are for the rest.

        Returns:
            What was found, now or earlier; None if it failed.
        """
        if (known := self.figures(thing)) is not None:
            return known
        started = time.perf_counter()
        try:
            figures = work()
        except Exception as error:  # whatever it is: the rest does not depend on it
            figures = {"fault": f"{type(error).__name__}: {str(error)[:500]}"}
        seconds = round(time.perf_counter() - started, 3)
        line = Line(
            part=thing.part,
            name=thing.name,
            scale=self._scale,
            figures=figures,
            seconds=seconds,
            device=self._device,
            machine=machine_facts(),
            date=datetime.date.today().isoformat(),
            command=self._command,
            settings_id=thing.settings_id,
        )
        with self._lock:
            self._lines[line.key] = line
            append_json_line(self._path, dataclasses.asdict(line))
        print(f"{thing.part} {thing.name}: {_in_short(figures)} ({seconds:.1f} s)", flush=True)
        return self.figures(thing)


def read_lines(path: Path) -> Iterator[Line]:
    """Returns the lines of a journal, in order; a later one with the same key takes the place of an earlier one.

    Raises:
        ConfigError: a line is none of a journal's.
    """
    return (line for _, line in read_json_lines(path, lambda record: Line(**record), "this command"))


def _in_short(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if not isinstance(value, list | dict)
    )
