"""What a report shows, as plain numbers and strings: everything that is decided in Python is decided here."""

import platform
from collections.abc import Iterable, Sequence
from itertools import islice
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.graph.graph import INPUT, Graph, Segment
from jasgnas.pages.history import history_data, number, with_lines
from jasgnas.pages.left import Left, left_of
from jasgnas.pages.modules import module_paths
from jasgnas.pages.runs import Figure, Removal, Results, Run, sizes_by_score
from jasgnas.space.groups import LeafSlice
from jasgnas.space.sizes import UNITS
from jasgnas.space.structures import num_params
from jasgnas.versions import versions_of

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Columns = dict[str, list[Any]]

# What decides what the page says, beside Python itself.
_PACKAGES = ("jasgnas", "jax", "flax", "optax", "numpy")

_PREDICTED = "seconds of a forward pass, predicted"

KEPT, REDUNDANT, DEAD, PASSING = "kept", "redundant", "dead", "passing"


def page_data(space: "SearchSpace", runs: Sequence[Run]) -> dict[str, Any]:
    """Returns everything that the page shows, ready for JSON: what is so of the space, and what is so of each run."""
    paths = ["/".join(path) for path in module_paths(space)]
    modules = list(dict.fromkeys(paths))
    parts = _parts(space)
    data = _graph_data(space)
    # Long names that occur again and again are given by their number.
    data["segments"]["module"] = _numbers(paths, modules)
    return {
        "space": {
            "inputs": [f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" for aval in space.call.avals],
            "largestRemoval": len(space.candidates.largest_removal()),
            "versions": {"Python": platform.python_version()} | versions_of(_PACKAGES),
            "modules": modules,
        }
        | data
        | {"parts": parts, "groups": _groups(space, parts["path"]), "dimensions": _dimensions(space)},
        "runs": [_run_data(space, run) for run in runs],
    }


def _numbers(names: Iterable[str], known: Sequence[str]) -> list[int | str]:
    """Returns the place of each name in a list, the name itself where it is not there."""
    places = {name: index for index, name in enumerate(known)}
    return [places.get(name, name) for name in names]


def _run_data(space: "SearchSpace", run: Run) -> dict[str, Any]:
    """Returns what is so of a run; its columns are further ones of the space's, or take their place."""
    removal = Removal.of(space, run)
    left = None if removal.redundant is None else left_of(space, removal.redundant)
    history = None if run.history is None else history_data(run.history, len(space.groups))
    return {
        "name": run.name,
        **_left_columns(space, left),
        "parts": {} if left is None else {"subShape": list(left.part_shapes)},
        "groups": _group_states(space, removal),
        "dimensions": {} if left is None else {"left": list(space.channels_left(removal.indices))},
        "numRemoved": len(removal.indices),
        "selection": removal.selection,
        "networks": _networks(space, removal, left, run),
        "isValid": space.is_valid(removal.indices),
        "sizes": sizes_by_score(space, removal),
        "settings": {name: _setting(value) for name, value in (run.settings or {}).items()},
        "command": run.command,
        "history": None if history is None else with_lines(history, space, removal.redundant),
    }


def drawing_data(space: "SearchSpace", left: Left | None) -> dict[str, Any]:
    """Returns what the drawing of the graphs needs, given what is left of them, if anything is removed."""
    data = _graph_data(space)
    own = _left_columns(space, left)
    return data | own | {name: data[name] | own[name] for name in ("operators", "segments")}


def _graph_data(space: "SearchSpace") -> dict[str, Any]:
    graph = space.graph
    outputs = dict.fromkeys(graph.segment_of[operator] for operator in graph.outputs if operator != INPUT)
    return {"operators": _operators(space), "segments": _segments(space), "outputs": list(outputs)}


def _left_columns(space: "SearchSpace", left: Left | None) -> dict[str, Any]:
    """Returns what a removal says of the graphs."""
    if left is None:
        return {"hasRemoval": False, "operators": {}, "segments": {}}
    fates = _fates(space, left)
    segments: Columns = {"fate": [fate for fate, _ in fates], "fateReason": [reason for _, reason in fates]}
    for measure, sizes in left.operators.items():
        segments[f"sub{measure.title()}"] = [sum(sizes[i] for i in own.operators) for own in space.graph.segments]
    operators: Columns = {f"sub{measure.title()}": list(sizes) for measure, sizes in left.operators.items()}
    operators["subShape"] = list(left.shapes)
    return {"hasRemoval": True, "operators": operators, "segments": segments}


def _operators(space: "SearchSpace") -> Columns:
    operators, nodes = space.graph.operators, space.trace_graph.nodes
    return {
        "params": nodes["num_params"].tolist(),
        "macs": nodes["macs"].tolist(),
        "name": [operator.name for operator in operators],
        "kind": [operator.kind for operator in operators],
        "shape": [list(operator.shape) for operator in operators],
        "parts": [list(operator.parts) for operator in operators],
    }


def _segments(space: "SearchSpace") -> Columns:
    segments, nodes = space.graph.segments, space.segment_graph.nodes
    kinds = [[space.graph.operators[index].kind for index in segment.operators] for segment in segments]
    return {
        "params": nodes["num_params"].tolist(),
        "macs": nodes["macs"].tolist(),
        "name": list(space.segment_names),
        "label": [_label(space, index) for index in range(len(segments))],
        "operators": [list(segment.operators) for segment in segments],
        "sources": [list(segment.sources) for segment in segments],
        # As numbers, true and false are shorter.
        "additive": [int(segment.additive) for segment in segments],
        "hasUnknown": [int("unknown" in own) for own in kinds],
        "group": nodes["group"].tolist(),
        "reason": list(space.reasons),
        "fate": [KEPT] * len(segments),
        "fateReason": [""] * len(segments),
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


def _parts(space: "SearchSpace") -> Columns:
    graph: Graph = space.graph
    parts = [(space.leaves[part.leaf], part.row) for part in graph.parts]
    return {
        "path": [str(LeafSlice(leaf.path, row=row)) for leaf, row in parts],
        "shape": [list(leaf.shape[len(row) :]) for leaf, row in parts],
        "params": [num_params(part, space.leaves) for part in graph.parts],
    }


def _groups(space: "SearchSpace", parts: Sequence[str]) -> Columns:
    numbers = _numbers((path for group in space.structures for path in group.paths), parts)
    owned, names = iter(numbers), space.segment_names
    return {
        # Most are called as their segments are.
        "name": [None if group.name == names[group.segments[0]] else group.name for group in space.structures],
        "segment": [group.segments[0] for group in space.structures],
        "params": [group.num_params for group in space.structures],
        "macs": [int(space.segment_graph.nodes["macs"][[*group.segments]].sum()) for group in space.structures],
        "paths": [list(islice(owned, len(group.paths))) for group in space.structures],
    }


def _group_states(space: "SearchSpace", removal: Removal) -> Columns:
    num = len(space.structures)
    columns: Columns = {}
    if removal.scores is not None:
        columns["score"] = [number(score) for score in removal.scores[:num]]
    if removal.redundant is not None:
        columns["redundant"] = removal.redundant[:num].tolist()
    if removal.zero is not None:
        columns["zero"] = removal.zero[:num].tolist()
    return columns


def _dimensions(space: "SearchSpace") -> Columns:
    sizes = space.candidates.num_params
    return {
        "name": [each.name for each in space.dimensions],
        "size": [each.size for each in space.dimensions],
        "params": [int(sizes[each.groups.start : each.groups.stop].sum()) for each in space.dimensions],
        "paths": [list(each.paths) for each in space.dimensions],
    }


def _networks(space: "SearchSpace", removal: Removal, left: Left | None, run: Run) -> list[dict[str, Figure | None]]:
    """Returns the rows of the table of the networks; what was measured replaces what is counted here."""
    full: dict[str, Figure] = {}
    sub: dict[str, Figure] = {}
    if run.latency is not None:
        full[_PREDICTED] = run.latency.predict(space)
        if removal.redundant is not None:
            sub[_PREDICTED] = run.latency.predict(space, removal.indices)
    full.update(run.full or {})
    sub.update(run.sub or {})
    before = space.candidates.subnet_size(space.removed(()))
    first, last = (
        {**{UNITS[measure]: size for measure, size in counted.items()}, **measured}
        for counted, measured in ((before, full), ({} if left is None else left.total, sub))
    )
    between = {"construction": run.construction, "recalibrated": run.recalibrated}
    stages: dict[str, Results] = {"full": first}
    stages |= {name: own for name, own in between.items() if own is not None} | {"sub": last}
    labels = dict.fromkeys(label for own in stages.values() for label in own)
    return [
        {"label": label, **{name: _figure(label, own.get(label)) for name, own in stages.items()}} for label in labels
    ]


def _setting(value: Any) -> Figure | None:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return _figure("", value) if is_number else str(value)


def _figure(label: str, value: Any) -> Figure | None:
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
        return int(value) if np.issubdtype(np.asarray(value).dtype, np.integer) else number(value)
    raise ArgumentError(f"the result {label!r} of a network must be a number or a string, got {value!r}")
