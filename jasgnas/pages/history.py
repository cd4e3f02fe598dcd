"""The course of a run as curves: what the library says of its state, and every other column that was logged."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from jasgnas.errors import ArgumentError

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

History = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

# Points of a chart; more than its pixels would only make the page large.
_MAX_POINTS = 1000
# Numbers in the chart of all groups together.
_MAX_NORMS = 100_000

# Columns that hold a number for every group. The first that is there is the chart of the norms; which groups went is
# shown by the drawing of the network.
_NORMS = ("group_norms", "shrinking_norms")
_VECTORS = (*_NORMS, "scores", "redundant")
# What `h2spg_metrics` says of the latest selection: facts, no curves.
SELECTION = ("selected_at", "runner_up", "predicted_rise", "measured_rise")
# What it counts, as curves of one chart.
_COUNTS = {"num_redundant": "selected/groups", "num_zero": "zero/groups", "num_removed": "cut out/groups"}
# What it counts that should not happen: shown only where it does.
_FAULTS = ("num_revived", "num_skipped")
_OWN = (*_COUNTS, *_FAULTS, "group_sparsity")


def history_data(history: History, num_groups: int) -> dict[str, Any]:
    """Returns the curves of a run, thinned out.

    Raises:
        ArgumentError: columns differ in length, or something is no number.
    """
    columns = _columns(history)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"the columns of history= have different lengths: {lengths}")
    vectors = {name: columns.pop(name) for name in _VECTORS if name in columns}
    length = next(iter(lengths.values()), 0)
    steps = [float(step) for step in scalars("step", columns.pop("step", range(length)), is_complete=True)]
    phases = scalars("phase", columns.pop("phase", []))
    numbers = {name: scalars(name, column) for name, column in columns.items()}
    facts = {name: numbers.pop(name) for name in SELECTION if name in numbers}
    marks = _marks(steps, phases, facts.get("selected_at", []), numbers.get("num_removed", []))
    # What the user has logged comes first.
    names = sorted(numbers, key=lambda name: name in _OWN)
    drawn = {_COUNTS.get(name, name): numbers[name] for name in names if name not in _FAULTS or any(numbers[name])}
    norms = next((name for name in _NORMS if name in vectors), None)
    return {
        "series": {name: _curve(steps, own) for name, own in drawn.items()},
        "phases": _phases(steps, phases),
        "marks": marks,
        "norms": None if norms is None else _vectors(norms, vectors[norms], steps, num_groups),
        "scores": _vectors("scores", vectors["scores"], steps, num_groups) if "scores" in vectors else None,
    }


def selection_of(history: History) -> dict[str, Any] | None:
    """Returns what the last entry of a history says of the latest selection, None where there was none yet."""
    columns = _columns(history)
    last = {name: columns[name][-1] for name in ("phase", *SELECTION) if len(columns.get(name, ()))}
    return last if last.pop("phase", 0) and last.keys() == set(SELECTION) else None


def _columns(history: History) -> dict[str, Sequence[Any]]:
    if isinstance(history, Mapping):
        return dict(history)
    names = dict.fromkeys(name for row in history for name in row)
    return {name: [row.get(name) for row in history] for name in names}


def _spread(length: int, most: int) -> list[int]:
    """Returns indices over a whole sequence, the last one included, evenly spread where there are too many."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


def scalars(name: str, column: Sequence[Any], *, is_complete: bool = False) -> list[Any]:
    """Returns a column as numbers, None where one is missing or not finite."""
    try:
        numbers = [None if value is None else number(value) for value in column]
    except (TypeError, ValueError):
        raise ArgumentError(f"history= must hold numbers, the column {name!r} holds something else") from None
    if is_complete and None in numbers:
        raise ArgumentError(f"the column {name!r} of history= must have a number in every place")
    return numbers


def _curve(steps: Sequence[float], values: Sequence[float | None]) -> dict[str, list[Any]]:
    """Returns the points of a curve; those that are missing between others are left out."""
    known = [index for index, value in enumerate(values) if value is not None]
    points = [known[i] for i in _spread(len(known), _MAX_POINTS)]
    return {"steps": [steps[i] for i in points], "values": [values[i] for i in points]}


def number(value: Any) -> float | None:
    """Returns a number in few digits, None where it is not finite, which JSON cannot say."""
    found = float(value)
    return float(f"{found:.6g}") if np.isfinite(found) else None


def _phases(steps: Sequence[float], phases: Sequence[float | None]) -> list[dict[str, Any]]:
    """Returns the stretches of each phase, by their first and last step."""
    known = [(step, int(phase)) for step, phase in zip(steps, phases, strict=False) if phase is not None]
    stretches = [(phase, [step for step, _ in own]) for phase, own in groupby(known, key=lambda pair: pair[1])]
    # Each ends where the next one starts.
    stops = [*(own[0] for _, own in stretches[1:]), *(own[-1] for _, own in stretches[-1:])]
    return [
        {"phase": phase, "start": own[0], "stop": stop} for (phase, own), stop in zip(stretches, stops, strict=True)
    ]


def _marks(
    steps: Sequence[float],
    phases: Sequence[float | None],
    selected: Sequence[float | None],
    removed: Sequence[float | None],
) -> list[dict[str, Any]]:
    """Returns the moments worth a line in every chart: the first selection, and every time the network was shrunk."""
    taken = [own for own, phase in zip(selected, phases, strict=False) if phase and own is not None]
    marks = [{"step": taken[-1], "text": "selection"}] if taken else []
    before = 0.0
    for step, count in zip(steps, removed, strict=False):
        if count is not None and count > before:
            marks.append({"step": step, "text": f"shrunk: {int(count - before)} groups cut out"})
            before = count
    return marks


def _vectors(name: str, rows: Sequence[Any], steps: Sequence[float], num_groups: int) -> dict[str, Any]:
    """Returns a number for every group over the steps at which they are known."""
    known = [index for index, row in enumerate(rows) if row is not None]
    for index in known:
        if np.shape(rows[index]) != (num_groups,):
            raise ArgumentError(
                f"{name} in history= must have {num_groups} numbers, entry {index} has shape {np.shape(rows[index])}"
            )
    chosen = [known[i] for i in _spread(len(known), max(2, min(_MAX_POINTS, _MAX_NORMS // num_groups)))]
    table = np.array([np.asarray(rows[index], float) for index in chosen]).reshape(-1, num_groups)
    return {"column": name, "steps": [steps[index] for index in chosen], "values": [_rounded(row) for row in table.T]}


def _rounded(row: Iterable[float]) -> list[float | None]:
    return [None if value is None else float(f"{value:.4g}") for value in map(number, row)]


def with_lines(history: dict[str, Any], space: "SearchSpace", redundant: np.ndarray | None) -> dict[str, Any]:
    """Returns the curves with names for those of the groups; the channels of a dimension are taken together."""
    num = len(space.structures)
    gone = [False] * num if redundant is None else redundant[:num].tolist()

    def named(found: dict[str, Any], join: Any) -> dict[str, Any]:
        values = found["values"]
        together = [
            _rounded(join(np.array(values[each.groups.start : each.groups.stop], float), axis=0))
            for each in space.dimensions
        ]
        return found | {
            "names": [f"{each.index} {each.name}" for each in space.structures]
            + [each.name for each in space.dimensions],
            "redundant": gone + [False] * len(together),
            "values": values[:num] + together,
        }

    joins = {"norms": np.linalg.norm, "scores": np.mean}
    return history | {name: named(history[name], join) for name, join in joins.items() if history[name] is not None}
