"""The accuracies of all cells of NAS-Bench-201 on CIFAR-10, read from the package `analog-nasbench`.

The package is optional, and nothing of it is part of this repository. Its table is a pickle, which can run any code
when it is read: it is read by an unpickler that makes plain records of numbers and nothing else.
"""

import dataclasses
import importlib.util
import itertools
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.errors import DataError
from models.nasbench201 import EDGES, NUM_NODES, OPERATIONS, Cells, cell_to_string

_PACKAGE, _FILE = "analognasbench", "data.anb"
_RECORDS = ("Architecture", "DriftMeasurement")
_OPERATIONS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
"""What the numbers in the table's keys stand for."""
_EDGES = tuple(sorted(EDGES))
"""The edges that they are of, by the node that is read."""
_CHANCE = 10.5
"""Accuracy in percent that a network whose output does not depend on the image cannot have."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The accuracies of all cells.

    Attributes:
        accuracies: accuracy in percent of each cell, by the operations of its edges in the order of `EDGES`.
    """

    accuracies: Mapping[tuple[str, ...], float]

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort([*self.accuracies.values()])

    def accuracy(self, cell: Cells) -> float:
        """Returns the accuracy of a cell in percent."""
        return self.accuracies[tuple(cell[edge] for edge in EDGES)]

    def rank(self, accuracy: float) -> int:
        """Returns the place of an accuracy among all cells; 1 is the best."""
        return 1 + int(np.sum(self._sorted > accuracy))

    def percentile(self, percent: float) -> float:
        """Returns the accuracy below which so many percent of the cells are."""
        return float(np.percentile(self._sorted, percent))

    @cached_property
    def of_random_choice(self) -> np.ndarray:
        """The accuracies of the cells with an operation on every edge: of these, random scores choose any alike."""
        return np.array([accuracy for cell, accuracy in self.accuracies.items() if "none" not in cell])


def read_table(path: Path | None = None) -> Table:
    """Reads the table.

    Args:
        path: its file; by default that of the installed package.

    Raises:
        DataError: the package is not installed, or the file is no such table.
    """
    path = path or _installed()
    try:
        with path.open("rb") as file:
            records = _Unpickler(file).load()
        found = {_cell_of(key): float(vars(record)["baseline_accuracy"]) for key, record in records.items()}
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError, EOFError, IndexError) as error:
        raise DataError(f"{path} is not the table that analog-nasbench 0.1.3 comes with: {error}") from None
    if set(found) != set(itertools.product(OPERATIONS, repeat=len(EDGES))):
        raise DataError(f"{path} holds {len(found)} cells of the {len(OPERATIONS) ** len(EDGES)} that there are")
    if wrong := [cell for cell, accuracy in found.items() if not _is_connected(cell) and accuracy > _CHANCE]:
        raise DataError(
            f"in {path} the cell {wrong[0]}, whose output does not depend on its input, classifies {found[wrong[0]]} % "
            "of the images: its operations or edges are in another order than those of analog-nasbench 0.1.3"
        )
    return Table(found)


def look_up(table: Table, cell: Cells) -> dict[str, Any]:
    """Returns what a record says of a cell: the cell as the paper writes it, its accuracy and rank."""
    accuracy = table.accuracy(cell)
    return {"cell": cell_to_string(cell), "accuracy": accuracy, "rank": table.rank(accuracy)}


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise DataError(
            "the accuracies of NAS-Bench-201 come with a package that is not installed: pip install --no-deps "
            "analog-nasbench"
        )
    return Path(folders[0]) / _FILE


class _Record:
    """One record of the table: its fields as attributes."""


class _Unpickler(pickle.Unpickler):
    """Reads plain containers and numbers, and the table's own classes as `_Record`s."""

    def find_class(self, module: str, name: str) -> Any:
        if module == f"{_PACKAGE}.data" and name in _RECORDS:
            return _Record
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no number")


def _cell_of(key: Any) -> tuple[str, ...]:
    operations = dict(zip(_EDGES, (_OPERATIONS[index] for index in key), strict=True))
    return tuple(operations[edge] for edge in EDGES)


def _is_connected(cell: tuple[str, ...]) -> bool:
    reached = {0}
    for (source, target), name in zip(EDGES, cell, strict=True):
        if source in reached and name != "none":
            reached.add(target)
    return NUM_NODES - 1 in reached
