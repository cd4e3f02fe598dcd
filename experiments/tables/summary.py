"""Records of several seeds together: means and spreads."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.tables.jobs import VARIANTS
from experiments.tables.records import Key, Line, Record


class Summary(NamedTuple):
    """What is known of one variant of one row at one scale.

    Attributes:
        key: row, scale, data set and variant; the seed is that of the first line.
        lines: the records, by seed.
    """

    key: Key
    lines: tuple[Line, ...]

    @property
    def label(self) -> str:
        """What the variant is called."""
        return VARIANTS[self.key.variant].label if self.key.variant in VARIANTS else self.key.variant

    @property
    def records(self) -> list[Record]:
        """The records."""
        return [line.record for line in self.lines]

    @property
    def seeds(self) -> str:
        """The seeds."""
        return enumeration(record.seed for record in self.records)

    @property
    def numbers(self) -> str:
        """The numbers of the lines."""
        return enumeration(line.number for line in self.lines)

    @property
    def images(self) -> str:
        """How many training images of which height and width; different ones if the seeds do not agree."""
        found = ((record.num_train, record.image_shape) for record in self.records)
        return ", ".join(dict.fromkeys(f"{num:,} of {shape[0]}×{shape[1]}" for num, shape in found if num and shape))

    @property
    def steps(self) -> str:
        """The number of steps; different ones if the seeds do not agree."""
        numbers = {record.num_steps for record in self.records if record.num_steps}
        return ", ".join(f"{number:,}" for number in sorted(numbers))

    @property
    def params(self) -> str:
        """Parameters in millions."""
        return mean_and_spread([record.num_params / 1e6 for record in self.records if record.num_params], 3)

    @property
    def macs(self) -> str:
        """Multiply-adds of one image in millions."""
        found = [record.macs / 1e6 for record in self.records if record.macs]
        return mean_and_spread(found, 0 if max(found, default=0) >= 10 else 2)

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies in percent, without those of trainings that failed."""
        found = (record.test_accuracy for record in self.records)
        return [100 * accuracy for accuracy in found if accuracy is not None]

    @property
    def accuracy(self) -> str:
        """Mean test accuracy in percent, and how many trainings failed."""
        num_faults = len(self.lines) - len(self.accuracies)
        faults = f"failed: {num_faults} of {len(self.lines)}" if num_faults else ""
        return ", ".join(filter(None, (mean_and_spread(self.accuracies, 2), faults)))


def summaries(lines: Iterable[Line]) -> list[Summary]:
    """Returns the trainings of all seeds together, in the order of their first lines."""
    grouped: dict[Key, list[Line]] = {}
    for line in lines:
        grouped.setdefault(line.record.key._replace(seed=0), []).append(line)
    return [Summary(key, tuple(sorted(group, key=lambda line: line.record.seed))) for key, group in grouped.items()]


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean, and the standard deviation of the sample if there is more than one value, with some digits.

    Example:
        >>> mean_and_spread([90.0, 91.0, 92.0], 1), mean_and_spread([90.0], 1), mean_and_spread([], 1)
        ('91.0 ± 1.0', '90.0', '')
    """
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {standard_deviation(values):.{digits}f}"


def standard_deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation of a sample, 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def enumeration(numbers: Iterable[int]) -> str:
    """Returns numbers as text, with dashes for those that follow each other.

    Example:
        >>> enumeration([3, 1, 2, 7])
        '1–3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
