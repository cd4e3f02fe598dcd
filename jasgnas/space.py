"""The search space: which parts of a network may be removed, as groups of parameters."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from jasgnas.bridge import Leaf, Model, open_model
from jasgnas.errors import (
    ArgumentError,
    DisconnectedOutputError,
    InvalidRemovalError,
    NoRemovableStructureError,
    TargetError,
    TreeMismatchError,
)
from jasgnas.graph import INPUT, Graph, Operator, Part, Segment, build_graph
from jasgnas.graphs_tuple import segment_graph, trace_graph
from jasgnas.invariance import Prover, Range
from jasgnas.jaxpr import inline
from jasgnas.masks import Zeros
from jasgnas.pytree import leaves_by_path, path_str
from jasgnas.trace import Call, TracedModel, trace_model
from jasgnas.validity import SegmentTopology, is_valid, largest_removal

KeepPattern = str | re.Pattern[str]


class LeafSlice(NamedTuple):
    """A leaf, or a range of one of its axes.

    Attributes:
        path: path of the leaf.
        axis: the axis, or None for the whole leaf.
        start: first index of the range along the axis.
        stop: index after the last one.
    """

    path: str
    axis: int | None = None
    start: int = 0
    stop: int = 0

    def __str__(self) -> str:
        """Returns the path, with the range as in NumPy indexing."""
        if self.axis is None:
            return self.path
        return f"{self.path}[{':, ' * self.axis}{self.start}:{self.stop}]"

    @property
    def indices(self) -> tuple[slice, ...]:
        """The index that takes the range out of the leaf."""
        if self.axis is None:
            return ()
        return (*(slice(None),) * self.axis, slice(self.start, self.stop))


@dataclass(frozen=True)
class Group:
    """The parameters of one minimal removal structure.

    Attributes:
        index: its position in the search space.
        name: the modules it covers.
        slices: the leaves and ranges of leaves it holds.
        num_params: number of parameters in them.
        operators: names of the operators of its structure, in order.
        segment: index of its structure in the segment graph.
    """

    index: int
    name: str
    slices: tuple[LeafSlice, ...]
    num_params: int
    operators: tuple[str, ...]
    segment: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaf paths; where only a range of a leaf belongs to the group, it follows as in NumPy indexing."""
        return tuple(map(str, self.slices))


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """What may be removed from a network, and what depends on what.

    Attributes:
        model: the model, as a pure function of its leaves.
        call: the example inputs it was traced with.
        graph: its operators and segments.
        groups: the parameters of each minimal removal structure.
        reasons: for each segment, why it is or is not removable.
        kept: indices of the leaves that `keep=` names.
    """

    model: Model
    call: Call
    graph: Graph
    groups: tuple[Group, ...]
    reasons: tuple[str, ...]
    kept: frozenset[int]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """All arrays of the model, in the order of its pytree."""
        return self.model.leaves

    @cached_property
    def topology(self) -> SegmentTopology:
        """The segment graph as the index arrays that validity is judged on."""
        return _topology(self.graph, self.groups)

    @cached_property
    def trace_graph(self) -> jraph.GraphsTuple:
        """The operators, as a graph whose node features are dictionaries of arrays of shape `[num_operators]`."""
        return trace_graph(self.graph, self.topology.group, self._num_params)

    @cached_property
    def segment_graph(self) -> jraph.GraphsTuple:
        """The segments, as a graph whose node features are dictionaries of arrays of shape `[num_segments]`."""
        return segment_graph(self.graph, self.topology.group, self._num_params)

    @cached_property
    def operator_names(self) -> tuple[str, ...]:
        """Name of every node of the trace graph: what it is, and the modules whose parameters it holds."""
        return tuple(_operator_label(operator, self.graph, self.leaves) for operator in self.graph.operators)

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """Name of every node of the segment graph: its modules, or its operators where it has none."""
        return tuple(_segment_label(segment, self.graph, self.leaves) for segment in self.graph.segments)

    @cached_property
    def largest_removal(self) -> tuple[int, ...]:
        """Indices of a valid set of groups, as large as any known."""
        return largest_removal(self.topology, len(self.groups))

    @cached_property
    def _num_params(self) -> list[int]:
        counted: set[int] = set()
        numbers = []
        for operator in self.graph.operators:
            own = [part for part in operator.parts if part not in counted]
            counted.update(own)
            numbers.append(sum(_num_params(self.graph.parts[part], self.leaves) for part in own))
        return numbers

    def removed(self, indices: Iterable[int]) -> np.ndarray:
        """Returns group indices as a bool vector `[num_groups]`.

        Raises:
            ArgumentError: an index is out of range or not an integer.
        """
        marked = np.zeros(len(self.groups), bool)
        for index in indices:
            if isinstance(index, bool) or not isinstance(index, int | np.integer | jax.Array | np.ndarray):
                raise ArgumentError(f"expected group indices, got {index!r}")
            if not 0 <= int(index) < len(self.groups):
                raise ArgumentError(f"no group {int(index)}: the search space has groups 0 to {len(self.groups) - 1}")
            marked[int(index)] = True
        return marked

    def is_valid(self, indices: Iterable[int]) -> bool:
        """Tells whether every network output still depends on the network input without these groups."""
        return is_valid(self.topology, self.removed(indices))

    def require_valid(self, indices: Iterable[int]) -> None:
        """Raises `InvalidRemovalError` if removing these groups would cut off a network output."""
        indices = sorted(int(index) for index in indices)
        if not self.is_valid(indices):
            names = ", ".join(f"{index} ({self.groups[index].name})" for index in indices)
            raise InvalidRemovalError(
                f"without the groups {names} no path is left from the network input to an output. "
                "Check a set with space.is_valid(indices), or let jasgnas.h2spg choose it."
            )

    def zero(self, holder: Any, indices: Iterable[int]) -> Any:
        """Returns the same kind of object with the parameters of some groups set to zero.

        Args:
            holder: the model, its variables, or a pytree of its parameters.
            indices: indices of the groups.

        Raises:
            TreeMismatchError: a parameter of the groups is missing or has another shape.
        """
        marked = self.removed(indices)
        slices: dict[str, list[LeafSlice]] = {}
        for group in self.groups:
            for part in group.slices if marked[group.index] else ():
                slices.setdefault(part.path, []).append(part)
        tree = self.model.tree(holder)
        found = leaves_by_path(tree)
        shapes = {leaf.path: leaf.shape for leaf in self.leaves}
        faults = [path for path in slices if path not in found or np.shape(found[path]) != shapes[path]]
        if faults:
            raise TreeMismatchError(
                f"the parameters {', '.join(faults)} are missing or have another shape than in the search space; "
                "pass the model that the space was made for, or its parameters"
            )

        def cleared(keys: Any, leaf: Any) -> Any:
            for part in slices.get(path_str(keys), ()):
                leaf = jnp.asarray(leaf).at[part.indices].set(0)
            return leaf

        return self.model.like(holder, jax.tree_util.tree_map_with_path(cleared, tree))

    def random_redundant(self, key: jax.Array, k: int) -> tuple[int, ...]:
        """Returns a random valid set of `k` group indices, in rising order.

        Groups are visited in random order, as H2SPG visits them by score; where that ends in a set that is too small
        and cannot grow, the set is drawn from `largest_removal`.

        Raises:
            TargetError: no valid set of `k` groups is known.
        """
        self.require_reachable(k)
        order = np.asarray(jax.random.permutation(key, len(self.groups)))
        chosen: list[int] = []
        for index in order:
            if len(chosen) < k and self.is_valid([*chosen, int(index)]):
                chosen.append(int(index))
        if len(chosen) < k:
            chosen = [int(index) for index in order if index in self.largest_removal][:k]
        return tuple(sorted(chosen))

    def require_reachable(self, k: int) -> None:
        """Raises `TargetError` if no valid set of `k` groups is known."""
        most = len(self.largest_removal)
        if not 0 <= k <= most:
            raise TargetError(
                f"{k} redundant groups were asked for; at most {most} of the {len(self.groups)} groups can go "
                "if every network output is to stay connected to the input"
            )

    def explain(self, path: str | None = None) -> str:
        """Says why operators are or are not removable.

        Args:
            path: a parameter path, or a pattern such as `blocks/*/kernel`; only the segments that own a parameter that
                matches are explained. All of them without it.

        Raises:
            ArgumentError: no parameter matches.
        """
        lines = []
        for segment, name, reason in zip(self.graph.segments, self.segment_names, self.reasons, strict=True):
            owned = [self.leaves[i].path for o in segment.operators for i in self.graph.leaves_of(o)]
            if path is None or any(fnmatchcase(leaf, path) for leaf in owned):
                operators = ", ".join(self.graph.operators[index].name for index in segment.operators)
                lines.append(f"{name} ({operators}): {reason}" if name != operators else f"{name}: {reason}")
        if not lines:
            raise ArgumentError(
                f"no operator owns a parameter path that matches {path!r}; paths look like {self.leaves[0].path!r}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        """Returns a table of the groups, and what else a person wants to know first."""
        return _table(self)


def search_space(
    model: Any,
    *inputs: Any,
    variables: Any = None,
    params: Any = None,
    method: Any = None,
    keep: Sequence[KeepPattern] | KeepPattern = (),
    **kwargs: Any,
) -> SearchSpace:
    """Finds what may be removed from a network (arXiv 2305.18030, section 3.1; arXiv 2312.09411, section 3).

    The model is traced once, in inference mode, with abstract values: nothing is computed.

    Args:
        model: an `nnx.Module`, a Linen module, or a function `fn(params, *inputs)`.
        *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s (or pytrees of them).
        variables: the variables of a Linen module, as `module.init` returns them.
        params: the parameter pytree of a function.
        method: the method of a Linen module that is called, instead of `__call__`.
        keep: patterns (as in a shell, or compiled regular expressions) of parameter paths that are never candidates.
        **kwargs: further arguments of the call (`train=False`, for a Linen module also `rngs`).

    Returns:
        The search space. Group indices and names follow the order of the trace: the same model gives the same space.

    Raises:
        ArgumentError: the model is of an unknown kind, or an argument is missing.
        DisconnectedOutputError: a network output does not depend on the input.
        NoRemovableStructureError: nothing can be removed.
    """
    opened = open_model(model, variables=variables, params=params, method=method).in_mode(training=False)
    call = Call.of(inputs, kwargs)
    traced = trace_model(opened, call)
    program = inline(replace(traced.program, outputs=traced.outputs))
    trainable = [leaf.trainable for leaf in opened.leaves]
    graph = build_graph(program, len(opened.leaves), trainable)
    _require_connected(graph, traced)
    kept = _kept_leaves(opened.leaves, [keep] if isinstance(keep, str | re.Pattern) else keep)
    finder = _GroupFinder(graph, opened.leaves, kept)
    groups = finder.find()
    if not groups:
        raise NoRemovableStructureError(_why_nothing(graph, finder.reasons))
    return SearchSpace(opened, Call(call.avals, call.static, call.treedef), graph, groups, tuple(finder.reasons), kept)


def _require_connected(graph: Graph, traced: TracedModel) -> None:
    names = [path_str(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(_skeleton(traced.out_tree))]
    cut = [
        name or "output"
        for name, atom in zip(names, graph.program.outputs, strict=True)
        if not isinstance(atom, int) or atom in graph.static_parts
    ]
    if cut:
        raise DisconnectedOutputError(
            f"the network output {', '.join(cut)} does not depend on any network input. Return only what is computed "
            "from the input, or pass as inputs whatever it is computed from."
        )


def _skeleton(tree: Any) -> Any:
    return jax.tree.unflatten(tree, range(tree.num_leaves))


def _kept_leaves(leaves: Sequence[Leaf], patterns: Sequence[KeepPattern]) -> frozenset[int]:
    kept: set[int] = set()
    for pattern in patterns:
        found = {index for index, leaf in enumerate(leaves) if _matches(pattern, leaf.path)}
        if not found:
            raise ArgumentError(
                f"keep={pattern!r} matches no parameter path; paths look like {leaves[0].path!r} (`*` also matches `/`)"
            )
        kept |= found
    return frozenset(kept)


def _matches(pattern: KeepPattern, path: str) -> bool:
    return fnmatchcase(path, pattern) if isinstance(pattern, str) else pattern.search(path) is not None


class _GroupFinder:
    """Decides for every segment whether it is a minimal removal structure, and which parameters make its group."""

    def __init__(self, graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int]):
        self._graph = graph
        self._leaves = leaves
        self._kept = kept
        self._shapes = {leaf.path: leaf.shape for leaf in leaves}
        self._prover = Prover(graph)
        self._users: dict[int, list[int]] = {}
        for operator in graph.operators:
            for part in operator.parts:
                self._users.setdefault(part, []).append(operator.index)
        # Axis and indices of parts that belong to groups of structures further up.
        self._claimed: dict[int, tuple[int, np.ndarray]] = {}
        self.reasons: list[str] = []

    def find(self) -> tuple[Group, ...]:
        """Returns the groups, in the order of their segments; `reasons` says why the other segments have none."""
        groups: list[Group] = []
        names: set[str] = set()
        # Structures come before those that read them, so a claim on a leaf is known when its own segment is judged.
        for segment in self._graph.segments:
            parts = self._parts(segment)
            if isinstance(parts, str):
                self.reasons.append(f"not removable: {parts}")
                continue
            name = _unique(_segment_label(segment, self._graph, self._leaves), names)
            self.reasons.append(f"removable, group {len(groups)}")
            groups.append(
                Group(
                    index=len(groups),
                    name=name,
                    slices=tuple(parts),
                    num_params=sum(self._size(part) for part in parts),
                    operators=tuple(self._graph.operators[index].name for index in segment.operators),
                    segment=segment.index,
                )
            )
        return tuple(groups)

    def _parts(self, segment: Segment) -> list[LeafSlice] | str:
        """Returns the parameters of a segment's group, or why it has none."""
        last = segment.operators[-1]
        used = {part for operator in segment.operators for part in self._graph.operators[operator].parts}
        trainable = {part for part in used if self._leaf(part).trainable}
        if len(self._graph.operators[segment.operators[0]].sources) > 1:
            return "it joins several inputs"
        if last in self._graph.outputs:
            return "it computes a network output"
        if (reader := next((r for r in self._readers(last) if not r.additive), None)) is not None:
            what = "a product" if len(reader.sources) > 1 else "another operator"
            return f"it feeds {what} ({_operator_label(reader, self._graph, self._leaves)})"
        if not trainable:
            return "it has no trainable parameters"
        if kept := sorted({self._leaf(part).path for part in used if self._graph.parts[part].leaf in self._kept}):
            return f"{', '.join(kept)} is to be kept"
        members = set(segment.operators)
        shared = {part for part in trainable if not members.issuperset(self._users[part])}
        own = sorted(trainable - shared - self._claimed.keys())
        known = self._prover.zeros_of(segment.operators, own)
        if not all(known[var].everywhere for var in self._prover.output(last)):
            return self._why_not_invariant(segment, known, shared, trainable)
        slices = [self._slice(part) for part in own]
        for ranges in self._prover.follow(last, known, self._eligible):
            slices += [each for found in ranges for each in self._claim(found)]
        return slices

    @cached_property
    def _eligible(self) -> frozenset[int]:
        """Parts of which a range may join the group of a structure further up."""
        whole = (part for part, users in self._users.items() if len(users) == 1 and self._graph.parts[part].row is None)
        return frozenset(
            part for part in whole if self._leaf(part).trainable and self._graph.parts[part].leaf not in self._kept
        )

    def _why_not_invariant(
        self, segment: Segment, known: Mapping[int, Zeros], shared: set[int], trainable: set[int]
    ) -> str:
        if shared:
            paths = ", ".join(sorted(str(self._slice(part)) for part in shared))
            return f"{paths} is shared with other operators"
        if claimed := trainable & self._claimed.keys():
            paths = ", ".join(sorted(self._leaf(part).path for part in claimed))
            return f"parts of {paths} belong to the structures before it"
        name = ""
        for index in reversed(segment.operators):
            if all(known[var].everywhere for var in self._prover.output(index)):
                break
            name = self._graph.operators[index].name
        return f"not zero-invariant: {name} does not keep zeros"

    def _readers(self, operator: int) -> list[Operator]:
        return [self._graph.operators[reader] for reader in self._graph.consumers[operator]]

    def _leaf(self, part: int) -> Leaf:
        return self._leaves[self._graph.parts[part].leaf]

    def _slice(self, part: int) -> LeafSlice:
        row = self._graph.parts[part].row
        path = self._leaf(part).path
        return LeafSlice(path) if row is None else LeafSlice(path, 0, row, row + 1)

    def _claim(self, each: Range) -> list[LeafSlice]:
        """Takes a range of a part into the group, except for what belongs to another one already."""
        axis, taken = self._claimed.get(each.part, (each.axis, np.zeros_like(each.mask)))
        if axis != each.axis:
            return []
        free = each.mask & ~taken
        self._claimed[each.part] = axis, taken | free
        edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(np.int8), [0]])))
        path = self._leaf(each.part).path
        return [LeafSlice(path, axis, int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def _size(self, part: LeafSlice) -> int:
        shape = self._shapes[part.path]
        size = int(np.prod(shape))
        return size if part.axis is None else size // shape[part.axis] * (part.stop - part.start)


def _why_nothing(graph: Graph, reasons: Sequence[str]) -> str:
    if not any(segment.additive for segment in graph.segments):
        return (
            "the network has no removable structure: it is a plain chain without an addition or concatenation of "
            "branches, so that no part can be taken out without cutting it. Give it parallel branches or residual "
            "connections."
        )
    listed = "\n  ".join(dict.fromkeys(reasons))
    return f"the network has no removable structure. What was found of its segments:\n  {listed}"


def _topology(graph: Graph, groups: Sequence[Group]) -> SegmentTopology:
    edges = [(source, segment.index) for segment in graph.segments for source in segment.sources if source != INPUT]
    group = np.full(len(graph.segments), -1, np.int32)
    for each in groups:
        group[each.segment] = each.index
    outputs = {graph.segment_of[operator] for operator in graph.outputs if operator != INPUT}
    senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
    return SegmentTopology(
        senders=senders,
        receivers=receivers,
        additive=np.array([segment.additive for segment in graph.segments], bool),
        num_external=np.array([segment.sources.count(INPUT) for segment in graph.segments], np.int32),
        outputs=np.array(sorted(outputs), np.int32),
        group=group,
    )


# Names and tables for people.


def _num_params(part: Part, leaves: Sequence[Leaf]) -> int:
    leaf = leaves[part.leaf]
    shape = leaf.shape if part.row is None else leaf.shape[1:]
    return int(np.prod(shape)) if leaf.trainable else 0


def _modules(operators: Iterable[Operator], graph: Graph, leaves: Sequence[Leaf]) -> list[str]:
    """Returns the modules whose parameters some operators hold, in order."""
    found: dict[str, None] = {}
    for part in (graph.parts[index] for operator in operators for index in operator.parts):
        if leaves[part.leaf].trainable:
            path = leaves[part.leaf].path
            found[(path.rpartition("/")[0] or path) + ("" if part.row is None else f"[{part.row}]")] = None
    return list(found)


def _operator_label(operator: Operator, graph: Graph, leaves: Sequence[Leaf]) -> str:
    modules = _modules([operator], graph, leaves)
    return f"{operator.name} {'-'.join(modules)}" if modules else operator.name


def _segment_label(segment: Segment, graph: Graph, leaves: Sequence[Leaf]) -> str:
    operators = [graph.operators[index] for index in segment.operators]
    modules = _modules(operators, graph, leaves)
    if not modules:
        return ", ".join(operator.name for operator in operators)
    parents = {module.rpartition("/")[0] for module in modules}
    prefix = ""
    if len(parents) == 1 and (parent := parents.pop()):
        prefix = f"{parent}/"
        modules = [module.rpartition("/")[2] for module in modules]
    return prefix + ("-".join(modules) if len(modules) <= 4 else f"{modules[0]}-…-{modules[-1]}")


def _unique(name: str, taken: set[str]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    taken.add(unique)
    return unique


def _table(space: SearchSpace) -> str:
    rows = [("group", "name", "parameters", "operators")]
    rows += [(str(g.index), g.name, f"{g.num_params:,}", ", ".join(g.operators)) for g in space.groups]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{index:>{widths[0]}}  {name:<{widths[1]}}  {params:>{widths[2]}}  {operators}"
        for index, name, params, operators in rows
    ]
    total = sum(int(np.prod(leaf.shape)) for leaf in space.leaves if leaf.trainable)
    inside = sum(group.num_params for group in space.groups)
    footer = [
        f"{len(space.groups)} groups hold {inside:,} of {total:,} parameters; "
        f"at most {len(space.largest_removal)} can go together.",
        f"{len(space.graph.operators)} operators in {len(space.graph.segments)} segments.",
    ]
    unknown = sorted({operator.name for operator in space.graph.operators if operator.kind == "unknown"})
    if unknown:
        footer.append(f"Unknown operators, kept as they are: {', '.join(unknown)}.")
    return "\n".join([*lines, "", *footer])
