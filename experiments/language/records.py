"""What is kept of each training: one line of JSON in a results file, appended as soon as the training has ended."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.cli import command_line
from experiments.common.lines import append_json_line, read_json_lines
from experiments.language.training import Settings


class Key(NamedTuple):
    """What tells one training from another.

    Attributes:
        variant: name of the variant.
        seed: the seed.
        group: the settings and the text, as JSON, which trainings that are compared have in common.
    """

    variant: str
    seed: int
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One training.

    Attributes:
        variant: name of the variant.
        seed: the seed.
        settings: the settings.
        text: facts about the text.
        size: parameters and multiply-adds of the network that is left, counted.
        train_bits: mean cross-entropy of the last tenth of the steps, in bits per byte.
        test_bits: that of the test's windows.
        seconds: wall time of all steps, with compilation, and the construction of the sub-network and its comparison.
        step_seconds: medians over the steps with the network of full size, and over those with the sub-network.
        smaller: how the network became smaller, the fields of `training.Smaller`; None if it did not.
        machine: facts about machine and software.
        date: day on which the training ended, as ISO 8601.
        command: what makes this line.
    """

    variant: str
    seed: int
    settings: dict[str, Any]
    text: dict[str, Any]
    size: list[int]
    train_bits: float
    test_bits: float
    seconds: float
    step_seconds: list[float]
    smaller: dict[str, Any] | None
    machine: dict[str, Any]
    date: str
    command: str

    @property
    def key(self) -> Key:
        """What tells this training from others."""
        return key_of(self.variant, self.seed, self.settings, self.text)


def key_of(variant: str, seed: int, settings: Mapping[str, Any], text: Mapping[str, Any]) -> Key:
    """Returns what tells a training from others."""
    return Key(variant, seed, json.dumps([settings, text], sort_keys=True))


def command_of(variant: str, seed: int, settings: Mapping[str, Any]) -> str:
    """Returns the command that makes a line."""
    given = {**settings, "variants": variant, "seeds": seed}
    return command_line("language", given, dataclasses.asdict(Settings()))


def read_records(path: Path) -> dict[Key, Record]:
    """Returns the newest record of every training in a results file; none if there is no such file.

    Raises:
        ConfigError: a line is no record.
    """
    records = (record for _, record in read_json_lines(path, lambda line: Record(**line), "a training"))
    return {record.key: record for record in records}


def append_record(path: Path, record: Record) -> None:
    """Appends a record to a results file."""
    append_json_line(path, dataclasses.asdict(record))
