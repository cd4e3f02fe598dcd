"""A search space as a table of text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jasgnas.rules import unknown_in
from jasgnas.space.sizes import UNITS

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace


def table(space: "SearchSpace") -> str:
    """Returns tables of the structures and dimensions of a search space, and what else a person wants to know first."""
    return "\n\n".join(
        [
            *([_structures(space)] if space.structures else []),
            *([_dimensions(space)] if space.dimensions else []),
            _footer(space),
        ]
    )


def description(space: "SearchSpace", indices: Sequence[int]) -> str:
    """Returns what is left of a network without some groups, see `SearchSpace.describe`."""
    removed = space.removed(indices)
    names = [group.name for group in space.structures if removed[group.index]]
    lines = [f"{len(names)} of {len(space.structures)} structures go{': ' if names else ''}{', '.join(names)}"]
    left = space.channels_left(indices)
    rows = [
        (_clip(each.name), f"{each.size:,}", f"{number:,}", f"{number / each.size:.0%}")
        for each, number in zip(space.dimensions, left, strict=True)
    ]
    lines += ["", _aligned(("dimension", "channels", "left", ""), rows, "<>>>"), ""] if rows else []
    sizes = zip(UNITS.values(), space.subnet_size(()), space.subnet_size(indices), strict=True)
    lines += [f"{after:,} of {before:,} {unit} ({after / before:.0%})" for unit, before, after in sizes if before]
    return "\n".join(lines)


def _structures(space: "SearchSpace") -> str:
    macs = space.segment_graph.nodes["macs"]
    headings = ("group", "name", "parameters", "multiply-adds", "operators")
    rows = [
        (
            str(g.index),
            _clip(g.name),
            f"{g.num_params:,}",
            f"{macs[[*g.segments]].sum():,}",
            _clip(", ".join(g.operators)),
        )
        for g in space.structures
    ]
    return _aligned(headings, rows, "><>><")


def _dimensions(space: "SearchSpace") -> str:
    """Returns a row for each dimension; its parameters are those of all its channels, which others may share."""
    headings = ("dimension", "channels", "parameters", "made by")
    sizes = space.candidates.num_params
    rows = [
        (
            _clip(each.name),
            f"{each.size:,}",
            f"{sizes[each.groups.start : each.groups.stop].sum():,}",
            _clip(", ".join(each.paths)),
        )
        for each in space.dimensions
    ]
    return _aligned(headings, rows, "<>><")


def _aligned(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], sides: str) -> str:
    """Returns rows of cells as text, each column aligned to its side, `<` or `>`."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rules = tuple("─" * width for width in widths)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in (headings, rules, *rows)
    )


def _footer(space: "SearchSpace") -> str:
    total = sum(int(np.prod(leaf.shape)) for leaf in space.leaves if leaf.trainable)
    lines = []
    if space.structures:
        inside = sum(group.num_params for group in space.structures)
        lines.append(
            f"{len(space.structures)} groups hold {inside:,} of {total:,} parameters; "
            f"at most {len(space.candidates.largest_removal())} can go together."
        )
    if space.dimensions:
        lines.append(f"{len(space.channels):,} channel groups in {len(space.dimensions)} dimensions.")
    lines.append(f"{len(space.graph.operators)} operators in {len(space.graph.segments)} segments.")
    equations = space.graph.program.equations
    if unknown := unknown_in(equations[p] for operator in space.graph.operators for p in operator.equations):
        lines.append(f"Unknown operators, kept as they are: {', '.join(unknown)}.")
    return "\n".join(lines)


def _clip(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
