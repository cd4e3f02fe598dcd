"""What is kept of each training: one line of JSON in a results file, appended as soon as the training has ended."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.lines import append_json_line, read_json_lines


class Key(NamedTuple):
    """What tells one training from another; two lines with the same key are two measurements of the same.

    Attributes:
        row: name of the row.
        scale: name of the scale, and what was changed of it.
        dataset: name of the data set that was trained on.
        variant: name of the variant.
        seed: the seed.
    """

    row: str
    scale: str
    dataset: str
    variant: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Record:
    """One training. Where it failed, as the `fault` says, its figures are None.

    Attributes:
        row: see `Key`, as for the next four.
        scale: see there.
        dataset: see there.
        variant: see there.
        seed: see there.
        changes: settings that differ from those of the row at full scale, variant and seed left out.
        stands_in_for: the row's own data set, if the images are others.
        epochs: passes over the training images.
        batch_size: images per step.
        machine: facts about machine and software.
        date: day on which the training started, as ISO 8601.
        command: what makes this line.
        settings_id: fingerprint of all settings of the training.
        origin: where the images come from.
        image_shape: height, width and channels of the images.
        num_train: training images.
        num_test: test images.
        num_steps: steps.
        num_params: parameters of the resulting network, those of an auxiliary classifier left out.
        macs: multiply-adds of one image.
        test_accuracy: fraction of the test images classified rightly.
        test_top5: fraction of the test images whose class is among the five likeliest.
        full_params: parameters of the full network.
        full_macs: its multiply-adds.
        removed: names of the structures that went, and what is left of each dimension that was narrowed.
        num_groups: number of structures and channels that could go.
        seconds: wall time of the training, compilation included.
        device: number and kind of the devices.
        fault: why there is no result, None if there is.
        pace: duration of a step with H2SPG before and after the network became smaller, in steps of the full network's
            training, where the number of steps was chosen by it.
    """

    row: str
    scale: str
    dataset: str
    variant: str
    seed: int
    changes: list[str]
    stands_in_for: str | None
    epochs: int
    batch_size: int
    machine: dict[str, Any]
    date: str
    command: str
    settings_id: str
    origin: str | None = None
    image_shape: list[int] | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_steps: int | None = None
    num_params: int | None = None
    macs: int | None = None
    test_accuracy: float | None = None
    test_top5: float | None = None
    full_params: int | None = None
    full_macs: int | None = None
    removed: list[str] | None = None
    num_groups: int | None = None
    seconds: float | None = None
    device: str | None = None
    fault: str | None = None
    pace: list[float] | None = None

    @property
    def key(self) -> Key:
        """What tells this training from others."""
        return Key(self.row, self.scale, self.dataset, self.variant, self.seed)


class Line(NamedTuple):
    """A record and where it stands.

    Attributes:
        number: number of the line in its file, from 1.
        record: the record.
    """

    number: int
    record: Record


def read_lines(path: Path) -> dict[Key, Line]:
    """Returns the newest record of every training in a results file; none if there is no such file.

    Raises:
        ConfigError: a line is no record.
    """
    lines = (Line(*each) for each in read_json_lines(path, lambda line: Record(**line), "a training"))
    return {line.record.key: line for line in lines}


def append_record(path: Path, record: Record) -> None:
    """Appends a record to a results file."""
    append_json_line(path, dataclasses.asdict(record))
