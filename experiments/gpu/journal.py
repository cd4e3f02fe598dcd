"""What is kept of each thing done: one line of JSON, appended as soon as it is done."""

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.common.lines import append_json_line, read_json_lines
from experiments.common.machine import machine_facts


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was done.

    Attributes:
        part: `exactness`, `selection`, `speed` or `training`.
        name: what it was done with; one line for each part, name and scale.
        scale: `full`, or another at which the command is tried out.
        figures: what was found; where it failed, `fault` alone.
        seconds: wall time that it took, compilation included.
        device: kind of the device.
        machine: facts about machine and software.
        date: the day, as ISO 8601.
        command: what makes this line.
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

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells this line from others."""
        return self.part, self.name, self.scale


class Journal:
    """The lines in a file, to which this command appends.

    Example:
        >>> journal = Journal(Path("gpu.jsonl"), "full", "python -m experiments.gpu")  # doctest: +SKIP
        >>> journal.do("speed", "demo_net", lambda: {"ms": 3.1})  # doctest: +SKIP
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
        self._lines = {line.key: line for line in read_lines(path)}
        self._lock = threading.Lock()

    def figures(self, part: str, name: str) -> dict[str, Any] | None:
        """Returns what was found earlier, None if it was not done or failed."""
        line = self._lines.get((part, name, self._scale))
        return None if line is None or "fault" in line.figures else line.figures

    def do(self, part: str, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Does something that is not done yet, and writes its line.

        What goes wrong becomes a line too: the minutes that are left are for the rest.

        Returns:
            What was found, now or earlier; None if it failed.
        """
        if (known := self.figures(part, name)) is not None:
            return known
        started = time.perf_counter()
        try:
            figures = work()
        except Exception as error:  # whatever it is: the rest does not depend on it
            figures = {"fault": f"{type(error).__name__}: {str(error)[:500]}"}
        device, date = jax.devices()[0].device_kind, datetime.date.today().isoformat()
        seconds = round(time.perf_counter() - started, 3)
        line = Line(part, name, self._scale, figures, seconds, device, machine_facts(), date, self._command)
        with self._lock:
            self._lines[line.key] = line
            append_json_line(self._path, dataclasses.asdict(line))
        print(f"{part} {name}: {_in_short(figures)} ({seconds:.1f} s)", flush=True)
        return self.figures(part, name)


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
