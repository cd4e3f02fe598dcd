"""What a report shows, as plain numbers and strings: everything that is decided in Python is decided here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.graph import INPUT, Graph
from jasgnas.groups import LeafSlice, num_params
from jasgnas.h2spg import h2spg_state
from jasgnas.topology import counted_segments

if TYPE_CHECKING:
    from jasgnas.space import SearchSpace

Columns = dict[str, list[Any]]
Figure = int | float | str
Results = Mapping[str, Figure]
History = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

PARAMETERS, MULTIPLY_ADDS = "parameters", "multiply-adds"

# Points of a chart; more than its pixels would only make the page large.
_MAX_POINTS = 1000
# Numbers in the chart of all groups together.
_MAX_NORMS = 100_000

KEPT, REDUNDANT, DEAD, PASSING = "kept", "redundant", "dead", "passing"


class Removal(NamedTuple):
    """What is known of the groups after a run, or of a removal under consideration.

    Attributes:
        redundant: bool `[num_groups]`, groups that go, or None where no removal is known.
        zero: bool `[num_groups]`, groups that are zero already, or None.
        scores: float `[num_groups]`, redundancy scores, or None.
    """

    redundant: np.ndarray | None
    zero: np.ndarray | None
    scores: np.ndarray | None

    @classmethod
    def of(
        cls, space: "SearchSpace", opt_state: Any, redundant: Iterable[int] | None, scores: Sequence[float] | None
    ) -> "Removal":
        """Takes either an optimizer state or what is given by hand.

        Raises:
            ArgumentError: both are given, or they are not of this search space.
        """
        num_groups = len(space.groups)
        if opt_state is not None and (redundant is not None or scores is not None):
            raise ArgumentError("opt_state= holds the redundant groups and their scores: leave out redundant=, scores=")
        if opt_state is not None:
            state = h2spg_state(opt_state)
            found = cls(*(np.asarray(vector) for vector in (state.redundant, state.zero, state.scores)))
        else:
            marked = None if redundant is None else space.removed(redundant)
            found = cls(marked, None, None if scores is None else np.asarray(scores, float))
        for name, vector in found._asdict().items():
            if vector is not None and vector.shape != (num_groups,):
                raise ArgumentError(f"{name} has shape {vector.shape}, the search space has {num_groups} groups")
        return found


def page_data(
    space: "SearchSpace", removal: Removal, history: History | None, full: Results | None, sub: Results | None
) -> dict[str, Any]:
    """Returns everything that the page shows, ready for JSON."""
    data = drawing_data(space, removal.redundant)
    return data | {
        "inputs": [f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" for aval in space.call.avals],
        "parts": _parts(space),
        "groups": _groups(space, removal),
        "networks": _networks(space, removal.redundant, full or {}, sub or {}),
        "largestRemoval": len(space.largest_removal),
        "isValid": space.is_valid(() if removal.redundant is None else np.flatnonzero(removal.redundant)),
        "history": None if history is None else history_data(history, len(space.groups)),
    }


def drawing_data(space: "SearchSpace", redundant: np.ndarray | None) -> dict[str, Any]:
    """Returns what the drawing of the graphs needs."""
    graph = space.graph
    outputs = dict.fromkeys(graph.segment_of[operator] for operator in graph.outputs if operator != INPUT)
    return {
        "hasRemoval": redundant is not None,
        "operators": _operators(space),
        "segments": _segments(space, redundant),
        "outputs": list(outputs),
    }


def _operators(space: "SearchSpace") -> Columns:
    nodes = space.trace_graph.nodes
    return {
        "name": [operator.name for operator in space.graph.operators],
        "kind": [operator.kind for operator in space.graph.operators],
        "shape": [list(operator.shape) for operator in space.graph.operators],
        "params": nodes["num_params"].tolist(),
        "macs": nodes["macs"].tolist(),
        "parts": [list(operator.parts) for operator in space.graph.operators],
    }


def _segments(space: "SearchSpace", redundant: np.ndarray | None) -> Columns:
    nodes, segments = space.segment_graph.nodes, space.graph.segments
    kinds = [[space.graph.operators[index].kind for index in segment.operators] for segment in segments]
    saved_params, saved_macs = _saved(space, redundant)
    return {
        "name": list(space.segment_names),
        "label": [_label(name, _modules(space, index)) for index, name in enumerate(space.segment_names)],
        "operators": [list(segment.operators) for segment in segments],
        "sources": [list(segment.sources) for segment in segments],
        "additive": [segment.additive for segment in segments],
        "hasUnknown": ["unknown" in own for own in kinds],
        "group": nodes["group"].tolist(),
        "reason": list(space.reasons),
        "params": nodes["num_params"].tolist(),
        "macs": nodes["macs"].tolist(),
        "savedParams": saved_params,
        "savedMacs": saved_macs,
        "fate": _fates(space, redundant),
    }


def _modules(space: "SearchSpace", segment: int) -> list[list[str]]:
    """Returns the modules that hold the trainable parameters of a segment, as keys, in order."""
    graph, leaves = space.graph, space.leaves
    paths = {
        leaves[leaf].path: None
        for operator in graph.segments[segment].operators
        for leaf in graph.leaves_of(operator)
        if leaves[leaf].trainable
    }
    return [path.split("/")[:-1] for path in paths]


def _label(name: str, modules: list[list[str]]) -> str:
    """Returns a short name: where several modules are named and share a parent, only that."""
    if len(name) <= 30 or len(modules) < 2:
        return name
    shared = []
    for keys in zip(*modules, strict=False):
        if len(set(keys)) > 1:
            break
        shared.append(keys[0])
    return "/".join(shared) or name


def _saved(space: "SearchSpace", redundant: np.ndarray | None) -> tuple[list[int], list[int]]:
    """Returns the parameters and multiply-adds that segments which stay lose with their inputs."""
    params, macs = np.zeros((2, len(space.graph.segments)), np.int64)
    if redundant is not None:
        costs = space.costs
        taken = redundant[costs.saving_group]
        np.add.at(params, costs.saving_segment[taken], costs.saving_params[taken])
        np.add.at(macs, costs.saving_segment[taken], costs.saving_macs[taken])
    return params.tolist(), macs.tolist()


def _fates(space: "SearchSpace", redundant: np.ndarray | None) -> list[str]:
    """Returns what becomes of each segment."""
    graph = space.graph
    if redundant is None:
        return [KEPT] * len(graph.segments)
    left = counted_segments(space.topology, space.costs, redundant)
    gone = np.append(redundant, False)[space.topology.group]
    fates = []
    for segment, is_left, is_gone in zip(graph.segments, left, gone, strict=True):
        inputs = [source for source in segment.sources if source == INPUT or left[source]]
        # A difference of one input may be its negative.
        is_wire = segment.additive and len(inputs) == 1 and graph.operators[segment.operators[0]].name != "sub"
        if not is_left:
            fates.append(REDUNDANT if is_gone else DEAD)
        else:
            fates.append(PASSING if is_wire else KEPT)
    return fates


def _parts(space: "SearchSpace") -> Columns:
    graph: Graph = space.graph
    leaves = [space.leaves[part.leaf] for part in graph.parts]
    pairs = list(zip(leaves, graph.parts, strict=True))
    return {
        "path": [str(LeafSlice(leaf.path, row=part.row)) for leaf, part in pairs],
        "shape": [list(leaf.shape[len(part.row) :]) for leaf, part in pairs],
        "params": [num_params(part, space.leaves) for part in graph.parts],
    }


def _groups(space: "SearchSpace", removal: Removal) -> Columns:
    columns: Columns = {
        "name": [group.name for group in space.groups],
        "segment": [group.segment for group in space.groups],
        "params": [group.num_params for group in space.groups],
        "macs": [int(space.segment_graph.nodes["macs"][group.segment]) for group in space.groups],
        "paths": [list(group.paths) for group in space.groups],
    }
    if removal.scores is not None:
        columns["score"] = [_number(score) for score in removal.scores]
    if removal.redundant is not None:
        columns["redundant"] = removal.redundant.tolist()
    if removal.zero is not None:
        columns["zero"] = removal.zero.tolist()
    return columns


def _networks(
    space: "SearchSpace", redundant: np.ndarray | None, full: Results, sub: Results
) -> list[dict[str, Figure | None]]:
    """Returns the rows of the table of both networks; what was measured replaces what is counted here."""
    counted: list[Results] = []
    for removed in ((), None if redundant is None else np.flatnonzero(redundant)):
        sizes = () if removed is None else space.subnet_size(removed)
        counted.append(dict(zip((PARAMETERS, MULTIPLY_ADDS), sizes, strict=False)))
    left, right = {**counted[0], **full}, {**counted[1], **sub}
    return [
        {"label": label, "full": _figure(label, left.get(label)), "sub": _figure(label, right.get(label))}
        for label in dict.fromkeys([*left, *right])
    ]


def _figure(label: str, value: Any) -> Figure | None:
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
        return int(value) if np.issubdtype(np.asarray(value).dtype, np.integer) else _number(value)
    raise ArgumentError(f"the result {label!r} of a network must be a number or a string, got {value!r}")


def history_data(history: History, num_groups: int) -> dict[str, Any]:
    """Returns the curves of a run, thinned out.

    Raises:
        ArgumentError: columns differ in length, or something is no number.
    """
    columns = _columns(history)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"the columns of history= have different lengths: {lengths}")
    norms = columns.pop("group_norms", None)
    length = next(iter(lengths.values()), 0)
    steps = [float(step) for step in _scalars("step", columns.pop("step", range(length)), is_complete=True)]
    phases = _scalars("phase", columns.pop("phase", []))
    return {
        "series": {name: _curve(steps, _scalars(name, column)) for name, column in columns.items()},
        "phases": _phases(steps, phases),
        "norms": None if norms is None else _norms(norms, steps, num_groups),
    }


def _columns(history: History) -> dict[str, Sequence[Any]]:
    if isinstance(history, Mapping):
        return dict(history)
    names = dict.fromkeys(name for row in history for name in row)
    return {name: [row.get(name) for row in history] for name in names}


def _spread(length: int, most: int) -> list[int]:
    """Returns indices over a whole sequence, the last one included, evenly spread where there are too many."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


def _scalars(name: str, column: Sequence[Any], *, is_complete: bool = False) -> list[Any]:
    """Returns a column as numbers, None where one is missing or not finite."""
    try:
        numbers = [None if value is None else _number(value) for value in column]
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


def _number(value: Any) -> float | None:
    """Returns a number in few digits, None where it is not finite, which JSON cannot say."""
    number = float(value)
    return float(f"{number:.6g}") if np.isfinite(number) else None


def _phases(steps: Sequence[float], phases: Sequence[float | None]) -> list[dict[str, Any]]:
    """Returns the stretches of each phase, by their first and last step."""
    stretches: list[dict[str, Any]] = []
    for step, phase in zip(steps, phases, strict=False):
        if phase is None:
            continue
        if stretches and stretches[-1]["phase"] == int(phase):
            stretches[-1]["stop"] = step
            continue
        if stretches:
            stretches[-1]["stop"] = step
        stretches.append({"phase": int(phase), "start": step, "stop": step})
    return stretches


def _norms(norms: Sequence[Any], steps: Sequence[float], num_groups: int) -> dict[str, Any]:
    """Returns the norm of every group over the steps at which they are known."""
    known = [index for index, row in enumerate(norms) if row is not None]
    faults = [index for index in known if np.shape(norms[index]) != (num_groups,)]
    if faults:
        raise ArgumentError(
            f"group_norms in history= must have {num_groups} numbers, entry {faults[0]} has shape "
            f"{np.shape(norms[faults[0]])}"
        )
    chosen = [known[i] for i in _spread(len(known), max(2, min(_MAX_POINTS, _MAX_NORMS // num_groups)))]
    table = np.array([np.asarray(norms[index], float) for index in chosen]).reshape(-1, num_groups)
    return {
        "steps": [steps[index] for index in chosen],
        "values": [[None if v is None else float(f"{v:.4g}") for v in map(_number, row)] for row in table.T],
    }
