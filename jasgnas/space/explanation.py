"""Why parts of a network can or cannot be removed, in words."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.graph.graph import Graph
from jasgnas.space.courses import MOST_DIFFERENT
from jasgnas.space.dimensions import Dimension, LeafAxis
from jasgnas.space.groups import NOBODY
from jasgnas.space.loops import has_joint

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

KeepPattern = str | re.Pattern[str]


def explanation(space: "SearchSpace", path: KeepPattern | None) -> str:
    """Says why operators, and axes of their parameters, can or cannot go; see `SearchSpace.explain`."""
    lines = []
    for segment, name, reason in zip(space.graph.segments, space.segment_names, space.reasons, strict=True):
        owned = [space.leaves[i].path for o in segment.operators for i in space.graph.leaves_of(o)]
        if path is None or any(matches(path, leaf) for leaf in owned):
            operators = ", ".join(space.graph.operators[index].name for index in segment.operators)
            lines.append(f"{name} ({operators}): {reason}" if name != operators else f"{name}: {reason}")
    lines += _axes(space, path) if space.kinds.channels else []
    if not lines:
        raise ArgumentError(
            f"no operator owns a parameter path that matches {path!r}; paths look like {space.leaves[0].path!r}"
        )
    return "\n".join(lines)


def _axes(space: "SearchSpace", path: KeepPattern | None) -> list[str]:
    """Says which axes of leaves can be narrowed, and why others cannot, but for those that only meet channels."""
    said = {
        (each.leaf, each.axis): f"{_listed([d.name for d in _dimensions_along(space, each)])}: can be narrowed"
        + _but_for(each)
        for each in space.channels.axes
        if each.makes
    }
    said |= {place: f"cannot be narrowed: {reason}" for place, reason in space.channels.reasons.items()}
    return [
        f"{space.leaves[leaf].path}, axis {axis}: {reason}"
        for (leaf, axis), reason in sorted(said.items())
        if path is None or matches(path, space.leaves[leaf].path)
    ]


def _dimensions_along(space: "SearchSpace", axis: LeafAxis) -> list[Dimension]:
    groups = axis.groups[axis.groups != NOBODY] - space.channels.first
    return [space.dimensions[index] for index in np.unique(space.channels.dimension_of[groups]).tolist()]


def _but_for(axis: LeafAxis) -> str:
    """Says of how many indices of an axis nothing is a channel."""
    others = int(np.sum(axis.groups == NOBODY))
    return f", but for {others} of its {len(axis.groups)} indices" if others else ""


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Returns names of dimensions in words."""
    shown = ", ".join(names[:most])
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return f"the dimension {shown}" if len(names) == 1 else f"the dimensions {shown}{others}"


def matches(pattern: KeepPattern, path: str) -> bool:
    """Tells whether a parameter path matches a pattern, as in a shell or a compiled regular expression."""
    if not isinstance(pattern, str | re.Pattern):
        raise ArgumentError(f"expected a pattern of parameter paths, such as 'head/*', got {pattern!r}")
    return fnmatchcase(path, pattern) if isinstance(pattern, str) else pattern.search(path) is not None


def why_nothing(graph: Graph, reasons: Sequence[str], of_axes: Sequence[str]) -> str:
    """Says why a network has nothing to remove, given what was found of its segments and of axes of its leaves."""
    if of_axes:
        listed = "\n  ".join(of_axes)
        return f"the network has nothing that could be removed. What was found of axes of parameters:\n  {listed}"
    if not any(segment.additive for segment in graph.segments):
        loops = sorted({eqn.primitive for eqn in graph.program.equations if any(map(has_joint, eqn.inner))})
        if loops:
            return (
                "the network has no removable structure: its additions and concatenations are inside a "
                f"{' or '.join(loops)} over data. A scan holds no structure, or more than {MOST_DIFFERENT} of its "
                "iterations would have to be told apart to know; another loop or a condition is taken as one operator: "
                "it may be written out."
            )
        return (
            "the network has no removable structure: it is a plain chain without an addition or concatenation of "
            "branches, so that no part can be taken out without cutting it. Give it parallel branches or residual "
            "connections."
        )
    listed = "\n  ".join(dict.fromkeys(reasons))
    return f"the network has no removable structure. What was found of its segments:\n  {listed}"
