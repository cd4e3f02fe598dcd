"""A search space as a table of text."""

from typing import TYPE_CHECKING

import numpy as np

from jasgnas.rules import unknown_in

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace


def table(space: "SearchSpace") -> str:
    """Returns a table of the groups of a search space, and what else a person wants to know first."""
    macs = space.segment_graph.nodes["macs"]
    headings = ("group", "name", "parameters", "multiply-adds", "operators")
    rows = [
        (str(g.index), _clip(g.name), f"{g.num_params:,}", f"{macs[g.segment]:,}", _clip(", ".join(g.operators)))
        for g in space.groups
    ]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rules = ["─" * width for width in widths]
    lines = [
        f"{index:>{widths[0]}}  {name:<{widths[1]}}  {params:>{widths[2]}}  {macs:>{widths[3]}}  {operators}".rstrip()
        for index, name, params, macs, operators in (headings, rules, *rows)
    ]
    total = sum(int(np.prod(leaf.shape)) for leaf in space.leaves if leaf.trainable)
    inside = sum(group.num_params for group in space.groups)
    footer = [
        f"{len(space.groups)} groups hold {inside:,} of {total:,} parameters; "
        f"at most {len(space.largest_removal)} can go together.",
        f"{len(space.graph.operators)} operators in {len(space.graph.segments)} segments.",
    ]
    equations = space.graph.program.equations
    if unknown := unknown_in(equations[p] for operator in space.graph.operators for p in operator.equations):
        footer.append(f"Unknown operators, kept as they are: {', '.join(unknown)}.")
    return "\n".join([*lines, "", *footer])


def _clip(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
