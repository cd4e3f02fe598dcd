"""What is kept of each training: lines of JSON in one results file per network, appended as soon as they are known."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.common.lines import append_json_line, read_json_lines


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a line comes from.

    Attributes:
        network: name of the network's preset.
        settings_id: fingerprint of the settings.
        seed: the seed.
        changes: settings that differ from the preset's.
        command: what makes the line.
        machine: facts about machine and software.
        date: day, as ISO 8601.
    """

    network: str
    settings_id: str
    seed: int
    changes: list[str]
    command: str
    machine: dict[str, Any]
    date: str


@dataclasses.dataclass(frozen=True)
class SetRecord(Origin):
    """What became of one set.

    Attributes:
        removed: indices of the groups that went, none for the full network.
        names: their names.
        num_params: parameters left.
        macs: multiply-adds left.
        num_steps: steps in all, those before the snapshot included.
        train_loss: mean loss of the last tenth of the steps.
        test_loss: mean cross-entropy of the test images.
        test_accuracy: fraction of the test images classified rightly.
        seconds: wall time of the steps after the snapshot and of the test, compilation included.
    """

    removed: tuple[int, ...]
    names: list[str]
    num_params: int
    macs: int
    num_steps: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class ScoresRecord(Origin):
    """What the scores said of the full network at one point of its training.

    Attributes:
        point: part of the steps that were made.
        scores: those of all groups, by name; larger for groups to remove sooner.
        loss_rises: by how much the loss on batches held out rises when a group alone is zero.
        seconds: wall time of measuring them.
    """

    point: float
    scores: dict[str, list[float]]
    loss_rises: list[float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class ChoiceRecord(Origin):
    """What the loss without whole sets of groups chooses at the snapshot.

    Attributes:
        budget: part of the full network's multiply-adds that it keeps within.
        removed: indices of the groups that it chooses.
        seconds: wall time of measuring.
    """

    budget: float
    removed: tuple[int, ...]
    seconds: float


Line = SetRecord | ScoresRecord | ChoiceRecord
"""A line of a results file."""

_KINDS: dict[str, type[Line]] = {"set": SetRecord, "scores": ScoresRecord, "choice": ChoiceRecord}


@dataclasses.dataclass
class Results:
    """The newest lines of one network and its settings.

    Attributes:
        sets: by set and seed.
        scores: by seed and point.
        choices: by seed and budget.
    """

    sets: dict[tuple[tuple[int, ...], int], SetRecord] = dataclasses.field(default_factory=dict)
    scores: dict[tuple[int, float], ScoresRecord] = dataclasses.field(default_factory=dict)
    choices: dict[tuple[int, float], ChoiceRecord] = dataclasses.field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Adds a line, which takes the place of an older one of the same."""
        match line:
            case SetRecord():
                self.sets[line.removed, line.seed] = line
            case ScoresRecord():
                self.scores[line.seed, line.point] = line
            case ChoiceRecord():
                self.choices[line.seed, line.budget] = line

    def accuracies(self) -> dict[tuple[int, ...], dict[int, float]]:
        """Returns the test accuracies in percent, by set and then by seed; the full network is left out."""
        found: dict[tuple[int, ...], dict[int, float]] = {}
        for (removed, seed), line in self.sets.items():
            if removed:
                found.setdefault(removed, {})[seed] = 100 * line.test_accuracy
        return found


def read_results(path: Path, network: str, settings_id: str) -> Results:
    """Returns what a results file holds of a network with these settings; nothing if there is no such file.

    Raises:
        ConfigError: a line is no record.
    """
    results = Results()
    for _, line in read_json_lines(path, _line_of, "an oracle"):
        if (line.network, line.settings_id) == (network, settings_id):
            results.add(line)
    return results


def _line_of(record: dict[str, Any]) -> Line:
    line = _KINDS[record.pop("kind")](**record)
    return (
        dataclasses.replace(line, removed=tuple(line.removed)) if isinstance(line, SetRecord | ChoiceRecord) else line
    )


def append_line(path: Path, line: Line) -> None:
    """Appends a line to a results file."""
    kind = next(name for name, each in _KINDS.items() if isinstance(line, each))
    append_json_line(path, {"kind": kind} | dataclasses.asdict(line))
