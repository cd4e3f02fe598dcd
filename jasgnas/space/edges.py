"""Where the zeros of a structure end: the edges into additive joints that vanish with it.

A structure can go where a sum or a concatenation can do without it. Most structures are read by such joints alone. The
zeros of others pass a product, a mask or a gather on the way: x + g(x) · f(x) can do without f, and without what was
there for the product alone.

Nothing is looked up by name: zeros are followed through the equations of the operators on the way. Where the way meets
an operator with parameters of its own, or one that mixes channels, it is for the segment of that operator to go.

Example: in x + tanh(x @ a) · relu(x @ b), both a and b make the product zero. One of them is the structure, that
without which more multiply-adds are saved, and of two that save the same the first.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from jasgnas.graph.graph import Graph, Operator
from jasgnas.program.masks import Zeros, zero

Edge = tuple[int, int]
"""The operator that computes a value, and the additive joint that reads it."""


class Way(NamedTuple):
    """What vanishes with the result of an operator.

    Attributes:
        edges: the edges into additive joints.
        operators: the operators on the way, whose results are zero.
        end: the operator through which the way goes on otherwise, None where it ends at joints alone.
    """

    edges: tuple[Edge, ...]
    operators: tuple[int, ...]
    end: Operator | None


def way_of(graph: Graph, operator: int) -> Way:
    """Follows the zeros of an operator's results to the joints that can do without them."""
    known = {var: zero(graph.ndim(var)) for var in graph.results(operator)}
    edges: list[Edge] = []
    passed: list[int] = []
    pending = [(reader, operator) for reader in graph.consumers[operator]]
    heapify(pending)
    is_zero = {operator}
    while pending:
        reader, source = heappop(pending)
        if reader in is_zero:
            continue
        # Operators come in the order of the trace: all that is zero before this one is known. Of a joint that reads
        # nothing else, no input is left.
        if graph.operators[reader].additive and not is_zero.issuperset(graph.operators[reader].sources):
            edges.append((source, reader))
            continue
        if not _passes(graph, reader, known):
            return Way(tuple(edges), tuple(passed), graph.operators[reader])
        passed.append(reader)
        is_zero.add(reader)
        for following in graph.consumers[reader]:
            heappush(pending, (following, reader))
    return Way(tuple(edges), tuple(passed), None)


def _passes(graph: Graph, index: int, known: dict[int, Zeros]) -> bool:
    """Tells whether an operator without parameters, which is no output that must stay, is zero; notes its results."""
    operator = graph.operators[index]
    if operator.parts or operator.kind in ("stem", "unknown") or index in graph.ends:
        return False
    zeros = graph.zeros_through([index], known).zeros
    results = graph.results(index)
    known |= {var: zero(graph.ndim(var)) for var in results}
    return all(zeros[var].everywhere for var in results)


def outdone(graph: Graph, ways: Mapping[int, Way]) -> dict[int, int]:
    """Chooses among structures whose zeros pass other operators, so that each edge vanishes with one of them alone.

    What saves most multiply-adds is chosen first, and of equals the first.

    Args:
        graph: the network.
        ways: by the operator that computes the structure's result, where its zeros end.

    Returns:
        The operators that are not chosen, and for each the one that is in its place.
    """
    saved = {
        each: sum(graph.operators[dead].macs for dead in _dead_with(graph, each, way)) for each, way in ways.items()
    }
    taken: dict[Edge, int] = {}
    others: dict[int, int] = {}
    for operator in sorted(ways, key=lambda each: (-saved[each], each)):
        edges = ways[operator].edges
        if (better := next((taken[edge] for edge in edges if edge in taken), None)) is not None:
            others[operator] = better
        else:
            taken |= dict.fromkeys(edges, operator)
    return others


def _dead_with(graph: Graph, operator: int, way: Way) -> set[int]:
    """Returns the operators that nothing has a use for when an operator and those on the way are zero."""
    dead = {operator, *way.operators}
    pending = list(dead)
    while pending:
        for source in graph.operators[pending.pop()].sources:
            if source >= 0 and source not in dead and source not in graph.outputs:
                if dead.issuperset(graph.consumers[source]):
                    dead.add(source)
                    pending.append(source)
    return dead
