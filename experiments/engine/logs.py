"""What a training leaves for people: a JSONL log and TensorBoard events, and what is seen while it runs."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from tensorboardX import SummaryWriter

from experiments.common.files import write_atomically

Record = dict[str, Any]
"""One log entry: `step` and whatever was measured."""

PHASES = ("warm-up", "projection", "target met")


class RunLog:
    """Writes log entries to `log.jsonl` and as TensorBoard events; `history` holds all of them."""

    def __init__(self, folder: Path, step: int):
        """Goes on with the log in a folder after `step` steps, and drops what an earlier start logged of later ones."""
        path = folder / "log.jsonl"
        self.history: list[Record] = [record for record in read_log(path) if record["step"] <= step]
        write_atomically(path, "".join(map(_line, self.history)))
        self._file = path.open("a")
        self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Appends an entry."""
        self.history.append(record)
        self._file.write(_line(record))
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._events.add_scalar(name, value, record["step"])

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()


def read_log(path: Path) -> list[Record]:
    """Returns the entries of a log; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


class Display(Protocol):
    """Shows the trainings of a run."""

    def __enter__(self) -> Self:
        """Starts the display."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the display."""

    def start(self, name: str, num_steps: int, step: int) -> None:
        """Shows a training of `num_steps` steps, of which `step` were made in an earlier start."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Shows a log entry of the training that was started last."""


class LiveDisplay:
    """A progress bar per training, and the newest figures below."""

    def __init__(self) -> None:
        """Prepares the display."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[result]}"),
        )
        self._figures = Text("")
        self._live = Live(Group(self._progress, self._figures), refresh_per_second=4)
        self._figures_so_far: Record = {}

    def __enter__(self) -> Self:
        """See `Display`."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Display`."""
        self._figures.plain = ""
        self._live.__exit__(kind, error, trace)

    def start(self, name: str, num_steps: int, step: int) -> None:
        """See `Display`."""
        self._figures_so_far = {}
        self._figures.plain = "compiling"
        self._task = self._progress.add_task(name, total=num_steps, completed=step, result="")

    def update(self, record: Mapping[str, Any]) -> None:
        """See `Display`."""
        self._figures_so_far |= record
        self._figures.plain = "  " + describe(self._figures_so_far)
        self._progress.update(self._task, completed=record["step"], result=_accuracies(self._figures_so_far))


class PlainDisplay:
    """A line for every test and for every tenth log entry between them."""

    def __init__(self, console: Console | None = None) -> None:
        """Prints to a console, by default to standard output."""
        self._console = console or Console(soft_wrap=True, highlight=False)

    def __enter__(self) -> Self:
        """See `Display`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Display`."""

    def start(self, name: str, num_steps: int, step: int) -> None:
        """See `Display`."""
        self._name = name
        self._num_steps = num_steps
        self._num_untested = 0
        if step:
            self._console.print(f"{name}: going on after step {step}")

    def update(self, record: Mapping[str, Any]) -> None:
        """See `Display`."""
        self._num_untested = 0 if "test/accuracy" in record else self._num_untested + 1
        if self._num_untested % 10 == 0:
            self._console.print(f"{self._name}: step {record['step']}/{self._num_steps}  {describe(record)}")


def describe(record: Mapping[str, Any]) -> str:
    """Returns a log entry as one line.

    Example:
        >>> describe({"epoch": 1.5, "train/loss": 0.25, "num_zero": 2, "phase": 1, "num_groups": 5})
        'epoch 1.5  loss 0.250  projection, 2 of 5 groups zero'
    """
    formats = {
        "epoch": "epoch {:.1f}",
        "train/loss": "loss {:.3f}",
        "train/accuracy": "accuracy {:.1%}",
        "test/accuracy": "test {:.1%}",
        "learning_rate": "rate {:.2g}",
        "images_per_second": "{:,.0f} images/s",
    }
    parts = [text.format(record[name]) for name, text in formats.items() if name in record]
    if "phase" in record:
        parts.append(f"{PHASES[record['phase']]}, {record['num_zero']} of {record['num_groups']} groups zero")
    return "  ".join(parts)


def _accuracies(record: Mapping[str, Any]) -> str:
    names = {"train/loss": "loss {:.3f}", "test/accuracy": "test {:.1%}"}
    return "  ".join(text.format(record[name]) for name, text in names.items() if name in record)
