"""What a report shows, as plain numbers and strings: everything that is decided in Python is decided here."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.graph.graph import INPUT, Graph, Segment
from jasgnas.optimizer.state import H2SPGState, h2spg_state
from jasgnas.pages.left import Left, left_of
from jasgnas.space.groups import LeafSlice
from jasgnas.space.latency import LatencyTable
from jasgnas.space.sizes import UNITS
from jasgnas.space.structures import num_params

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Columns = dict[str, list[Any]]
Figure = int | float | str
Results = Mapping[str, Figure]
History = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

# Points of a chart; more than its pixels would only make the page large.
_MAX_POINTS = 1000
# Numbers in the chart of all groups together.
_MAX_NORMS = 100_000

_PREDICTED = "seconds of a forward pass, predicted"

KEPT, REDUNDANT, DEAD, PASSING = "kept", "redundant", "dead", "passing"


class Removal(NamedTuple):
    """What is known of the groups after a run, or of a removal under consideration.

    Attributes:
        redundant: bool `[num_groups]`, groups that go, or None where no removal is known.
        zero: bool `[num_groups]`, groups that are zero already, or None.
        scores: float `[num_groups]`, redundancy scores, or None.
        selection: what the state says of the latest selection, None where there was none.
    """

    redundant: np.ndarray | None
    zero: np.ndarray | None
    scores: np.ndarray | None
    selection: dict[str, Any] | None = None

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
            found = cls(
                redundant=np.asarray(state.redundant),
                zero=np.asarray(state.zero),
                scores=np.asarray(state.scores),
                selection=_selection(space, state),
            )
        else:
            marked = None if redundant is None else space.removed(redundant)
            found = cls(marked, None, None if scores is None else np.asarray(scores, float))
        for name in ("redundant", "zero", "scores"):
            vector = getattr(found, name)
            if vector is not None and vector.shape != (num_groups,):
                raise ArgumentError(f"{name} has shape {vector.shape}, the search space has {num_groups} groups")
        return found


def page_data(
    space: "SearchSpace",
    removal: Removal,
    history: History | None,
    full: Results | None,
    sub: Results | None,
    latency: LatencyTable | None = None,
) -> dict[str, Any]:
    """Returns everything that the page shows, ready for JSON."""
    full, sub = dict(full or {}), dict(sub or {})
    if latency is not None:
        full = {_PREDICTED: latency.predict(space)} | full
        if removal.redundant is not None:
            sub = {_PREDICTED: latency.predict(space, np.flatnonzero(removal.redundant))} | sub
    left = None if removal.redundant is None else left_of(space, removal.redundant)
    return drawing_data(space, left) | {
        "inputs": [f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" for aval in space.call.avals],
        "parts": _parts(space, left),
        "groups": _groups(space, removal),
        "dimensions": _dimensions(space, removal),
        "selection": removal.selection,
        "networks": _networks(space, left, full, sub),
        "largestRemoval": len(space.candidates.largest_removal()),
        "isValid": space.is_valid(() if removal.redundant is None else np.flatnonzero(removal.redundant)),
        "history": None if history is None else _with_lines(history_data(history, len(space.groups)), space, removal),
    }


def drawing_data(space: "SearchSpace", left: Left | None) -> dict[str, Any]:
    """Returns what the drawing of the graphs needs, given what is left of them, if anything is removed."""
    graph = space.graph
    outputs = dict.fromkeys(graph.segment_of[operator] for operator in graph.outputs if operator != INPUT)
    return {
        "hasRemoval": left is not None,
        "operators": _operators(space, left),
        "segments": _segments(space, left),
        "outputs": list(outputs),
    }


def _operators(space: "SearchSpace", left: Left | None) -> Columns:
    operators = space.graph.operators
    columns = _sizes(space.trace_graph.nodes, left, [[operator.index] for operator in operators]) | {
        "name": [operator.name for operator in operators],
        "kind": [operator.kind for operator in operators],
        "shape": [list(operator.shape) for operator in operators],
        "parts": [list(operator.parts) for operator in operators],
    }
    return columns if left is None else columns | {"subShape": list(left.shapes)}


def _sizes(nodes: Mapping[str, np.ndarray], left: Left | None, operators: Sequence[Sequence[int]]) -> Columns:
    """Returns the sizes of the nodes of a graph and of what is left of them, given the operators of each."""
    columns: Columns = {"params": nodes["num_params"].tolist(), "macs": nodes["macs"].tolist()}
    for measure, sizes in {} if left is None else left.operators.items():
        columns[f"sub{measure.title()}"] = [sum(sizes[index] for index in own) for own in operators]
    return columns


def _segments(space: "SearchSpace", left: Left | None) -> Columns:
    segments = space.graph.segments
    kinds = [[space.graph.operators[index].kind for index in segment.operators] for segment in segments]
    fates = [(KEPT, "")] * len(segments) if left is None else _fates(space, left)
    return _sizes(space.segment_graph.nodes, left, [segment.operators for segment in segments]) | {
        "name": list(space.segment_names),
        "label": [_label(space, index) for index in range(len(segments))],
        "operators": [list(segment.operators) for segment in segments],
        "sources": [list(segment.sources) for segment in segments],
        "additive": [segment.additive for segment in segments],
        "hasUnknown": ["unknown" in own for own in kinds],
        "group": space.segment_graph.nodes["group"].tolist(),
        "reason": list(space.reasons),
        "fate": [fate for fate, _ in fates],
        "fateReason": [reason for _, reason in fates],
    }


def _label(space: "SearchSpace", segment: int) -> str:
    """Returns a short name of a segment: where it names several modules that share a parent, only that."""
    name, graph = space.segment_names[segment], space.graph
    read = [space.leaves[leaf] for each in graph.segments[segment].operators for leaf in graph.leaves_of(each)]
    modules = [leaf.path.split("/")[:-1] for leaf in dict.fromkeys(read) if leaf.trainable]
    return name if len(name) <= 30 or len(modules) < 2 else "/".join(commonprefix(modules)) or name


def _fates(space: "SearchSpace", left: Left) -> list[tuple[str, str]]:
    """Returns what becomes of each segment and, where it goes, why."""
    graph, names = space.graph, space.segment_names
    groups = space.segment_graph.nodes["group"].tolist()
    is_left = [left.shapes[segment.operators[-1]] is not None for segment in graph.segments]
    # Segments that go with what they read, and not because nobody reads them.
    without_input: set[int] = set()

    def fate(segment: Segment) -> tuple[str, str]:
        index, group = segment.index, groups[segment.index]
        operators = [graph.operators[each] for each in segment.operators]
        inputs = [source for source in segment.sources if source == INPUT or is_left[source]]
        if group >= 0 and left.redundant[group]:
            without_input.add(index)
            return REDUNDANT, f"group {group} is removed"
        if left.varies[operators[-1].index]:
            # What is left of a difference may be the negative of its input, as −b is of a − b.
            is_wire = segment.additive and len(inputs) == 1 and operators[0].name != "sub"
            return PASSING if is_wire else KEPT, ""
        if is_left[index]:
            what = "all that it reads is constant" if inputs else "its inputs are all gone"
            return DEAD, f"{what}: a constant is left of it"
        missing = [source for source in dict.fromkeys(segment.sources) if source in without_input]
        are_all = len(missing) == len(set(segment.sources))
        if missing and (are_all or not segment.additive):
            without_input.add(index)
            needed = " and ".join(names[source] for source in missing)
            return DEAD, "its inputs are all gone" if are_all else f"it needs {needed}, which went"
        return DEAD, "nothing that is left needs it"

    return [fate(segment) for segment in graph.segments]


def _parts(space: "SearchSpace", left: Left | None) -> Columns:
    graph: Graph = space.graph
    parts = [(space.leaves[part.leaf], part.row) for part in graph.parts]
    columns: Columns = {
        "path": [str(LeafSlice(leaf.path, row=row)) for leaf, row in parts],
        "shape": [list(leaf.shape[len(row) :]) for leaf, row in parts],
        "params": [num_params(part, space.leaves) for part in graph.parts],
    }
    if left is not None:
        columns["subShape"] = list(left.part_shapes)
    return columns


def _selection(space: "SearchSpace", state: H2SPGState) -> dict[str, Any] | None:
    """Returns what is known of the latest selection."""
    if np.ndim(state.zero) != 1 or not np.any(state.redundant):
        return None
    return {
        "at": int(state.selected_at),
        "runnerUp": space.name_of(int(state.runner_up)) if state.runner_up >= 0 else None,
        "predicted": float(state.predicted_rise),
        "measured": float(state.measured_rise),
    }


def _groups(space: "SearchSpace", removal: Removal) -> Columns:
    num = len(space.structures)
    columns: Columns = {
        "name": [group.name for group in space.structures],
        "segment": [group.segments[0] for group in space.structures],
        "params": [group.num_params for group in space.structures],
        "macs": [int(space.segment_graph.nodes["macs"][[*group.segments]].sum()) for group in space.structures],
        "paths": [list(group.paths) for group in space.structures],
    }
    if removal.scores is not None:
        columns["score"] = [_number(score) for score in removal.scores[:num]]
    if removal.redundant is not None:
        columns["redundant"] = removal.redundant[:num].tolist()
    if removal.zero is not None:
        columns["zero"] = removal.zero[:num].tolist()
    return columns


def _dimensions(space: "SearchSpace", removal: Removal) -> Columns:
    sizes = space.candidates.num_params
    columns: Columns = {
        "name": [each.name for each in space.dimensions],
        "size": [each.size for each in space.dimensions],
        "params": [int(sizes[each.groups.start : each.groups.stop].sum()) for each in space.dimensions],
        "paths": [list(each.paths) for each in space.dimensions],
    }
    if removal.redundant is not None:
        columns["left"] = list(space.channels_left(np.flatnonzero(removal.redundant)))
    return columns


def _networks(space: "SearchSpace", left: Left | None, full: Results, sub: Results) -> list[dict[str, Figure | None]]:
    """Returns the rows of the table of both networks; what was measured replaces what is counted here."""
    before = space.candidates.subnet_size(space.removed(()))
    first, second = (
        {**{UNITS[measure]: size for measure, size in counted.items()}, **measured}
        for counted, measured in ((before, full), ({} if left is None else left.total, sub))
    )
    return [
        {"label": label, "full": _figure(label, first.get(label)), "sub": _figure(label, second.get(label))}
        for label in dict.fromkeys([*first, *second])
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
    known = [(step, int(phase)) for step, phase in zip(steps, phases, strict=False) if phase is not None]
    stretches = [(phase, [step for step, _ in own]) for phase, own in groupby(known, key=lambda pair: pair[1])]
    # Each ends where the next one starts.
    stops = [*(own[0] for _, own in stretches[1:]), *(own[-1] for _, own in stretches[-1:])]
    return [
        {"phase": phase, "start": own[0], "stop": stop} for (phase, own), stop in zip(stretches, stops, strict=True)
    ]


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
    return {"steps": [steps[index] for index in chosen], "values": [_rounded(row) for row in table.T]}


def _rounded(row: Iterable[float]) -> list[float | None]:
    return [None if value is None else float(f"{value:.4g}") for value in map(_number, row)]


def _with_lines(history: dict[str, Any], space: "SearchSpace", removal: Removal) -> dict[str, Any]:
    """Returns the curves with names for the norms, those of the channels of a dimension taken together."""
    if history["norms"] is None:
        return history
    num, values = len(space.structures), history["norms"]["values"]
    together = [
        _rounded(np.linalg.norm(np.array(values[each.groups.start : each.groups.stop], float), axis=0))
        for each in space.dimensions
    ]
    gone = [False] * num if removal.redundant is None else removal.redundant[:num].tolist()
    lines = {
        "names": [f"{each.index} {each.name}" for each in space.structures] + [each.name for each in space.dimensions],
        "redundant": gone + [False] * len(together),
        "values": values[:num] + together,
    }
    return history | {"norms": history["norms"] | lines}
