"""What a GPU that can be had for minutes is to show, from the command line: `python -m experiments.gpu --help`."""

import dataclasses
import os
import re
import shlex
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NoReturn

from experiments.common.cli import parse, run_command
from experiments.common.errors import ConfigError
from experiments.data import Dataset, open_dataset
from experiments.data.files import read_files
from experiments.engine.presets import DIGITS
from experiments.gpu.checks import checks
from experiments.gpu.journal import Journal, Thing, Work
from experiments.gpu.page import write_page
from experiments.gpu.races import RACES, Deadline, Races
from experiments.gpu.speed import measurements

_SHARE_BEFORE_TRAININGS = 3 / 8
"""Of the minutes: what is not measured by then is measured after the trainings, where time is left."""

_SECONDS_TIMED = 40
"""What a measurement takes, about, the compilation that is timed included."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Checks, times and trains on the device at hand, in order of value, until the minutes are over.

    Each thing done is a line in the results; what is recorded with the same settings on such a device is not done
    again, so that two commands make twice the minutes, and one that was interrupted goes on where it was. Where
    trainings are left, they get as many epochs as there is time for three seeds of each.
    """

    minutes: float = 8.0
    """Time to take, compilation included."""
    files: Path | None = None
    """Folder of the files that the data sets are published in, as `python -m experiments.bundle_gpu` collects them; by
    default the data sets are those that `experiments.prepare` has made."""
    data_dir: Path | None = None
    """Folder of the TFDS copies; by default TFDS's own, ~/tensorflow_datasets or the variable TFDS_DATA_DIR."""
    scale: Literal["full", "smoke"] = "full"
    """`smoke` tries the command out on a CPU: small networks, and the embedded digits."""
    parts: tuple[Literal["checks", "speed", "training"], ...] = ("checks", "speed", "training")
    """What to do."""
    rows: tuple[str, ...] = tuple(race.name for race in RACES)
    """Rows to train."""
    results: Path = Path("experiments/results/gpu")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if not self.minutes > 0:
            raise ConfigError(f"minutes must be positive, got {self.minutes}")
        if unknown := set(self.rows) - {race.name for race in RACES}:
            known = ", ".join(race.name for race in RACES)
            raise ConfigError(f"there are no rows {', '.join(sorted(unknown))}: there are {known}")


def run(config: Gpu, command: str) -> None:
    """Does what is not done yet, and writes the tables.

    Args:
        config: the settings.
        command: what was asked for, for the records.
    """
    deadline = Deadline(config.minutes)
    tiny = config.scale == "smoke"
    journal = Journal(config.results / "gpu.jsonl", config.scale, command)

    rows = config.rows if "training" in config.parts else ()
    chosen = [race.small if tiny else race for race in RACES if race.name in rows]
    todo = list(measurements(tiny=tiny)) if "speed" in config.parts else []
    try:
        with ThreadPoolExecutor() as pool:
            images = {
                key: pool.submit(_open, config, *key)
                for key in dict.fromkeys((race.config.data.name, race.config.data.image_size) for race in chosen)
            }
            for each in checks(tiny=tiny) if "checks" in config.parts else ():
                pool.submit(journal.do, *each)
            prepared = [(thing, pool.submit(prepare)) for thing, prepare in todo if journal.figures(thing) is None]
        # Nothing else compiles while these are timed.
        while prepared and deadline.passed < _SHARE_BEFORE_TRAININGS:
            _measure(journal, *prepared.pop(0))
        Races(chosen, journal, lambda data: images[data.name, data.image_size].result()).run(deadline)
        while prepared and deadline.remaining > _SECONDS_TIMED:
            _measure(journal, *prepared.pop(0))
    finally:
        print(f"Written in {write_page(config.results, config.scale)}", flush=True)


def _measure(journal: Journal, thing: Thing, prepared: Future[Work]) -> None:
    journal.do(thing, lambda: prepared.result()())


def _open(config: Gpu, name: str, size: int | None) -> Dataset:
    if config.files is None or name == DIGITS.data.name:
        return open_dataset(name, config.data_dir, size)
    return read_files(name, config.files)


def main() -> None:
    """Does what the command line asks for, and ends when the minutes are over."""
    run_command(lambda: _run_in_time(parse(Gpu, "gpu")))
    _end()


def _run_in_time(config: Gpu) -> None:
    """Runs, or writes the tables when the minutes are over and ends there, whatever is under way."""

    def stop() -> None:
        print(f"The time is over. Written in {write_page(config.results, config.scale)}")
        _end()

    timer = threading.Timer(60 * config.minutes, stop)
    timer.daemon = True
    timer.start()
    try:
        run(config, _command())
    finally:
        timer.cancel()


def _end() -> NoReturn:
    """Ends at once: an ordinary end would wait for what is compiled for trainings that there is no time for."""
    sys.stdout.flush()
    os._exit(0)


def _command() -> str:
    """Returns the command line; where files lie is a matter of the machine."""
    given = shlex.join(["python", "-m", "experiments.gpu", *sys.argv[1:]])
    return re.sub(r" --(files|data-dir|results)[ =]('[^']*'|\S+)", "", given)


if __name__ == "__main__":
    main()
