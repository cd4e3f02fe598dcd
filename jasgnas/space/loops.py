"""Loops that are looked into: those over time that cannot go as a whole, but that hold structures.

A recurrent layer that is zero without its parameters goes as a whole. A loop with a residual branch inside, such as
y = x + f(x, h), is not: nothing makes it zero. So its body is put in its place, unfolded to a few iterations that stand
for all of them (`scans.unfolded`). What is found there is tied over the iterations, as they share its parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import ADDITIVE, Graph
from jasgnas.program.jaxpr import Program, inline
from jasgnas.program.scans import unfolded
from jasgnas.space.groups import Group
from jasgnas.space.structures import find_groups


def with_loops_unfolded(
    graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int], graph_of: Callable[[Mapping[int, Program]], Graph]
) -> Graph:
    """Returns the graph of a network in which the loops are unfolded that hold structures and are none themselves.

    Args:
        graph: the network, in which every loop is an operator.
        leaves: its arrays.
        kept: indices of leaves that must not be candidates.
        graph_of: returns the graph with other programs in the place of loops, by the numbers of their equations.
    """
    if not (loops := _with_joints(graph, leaves)):
        return graph
    whole = _numbers_held(graph, find_groups(graph, leaves, kept).groups)
    loops = {number: loop for number, loop in loops.items() if number not in whole}
    while loops:
        looked_into = graph_of(loops)
        held = _numbers_held(looked_into, find_groups(looked_into, leaves, kept).groups)
        if loops.keys() <= held:
            return looked_into
        loops = {number: loop for number, loop in loops.items() if number in held}
    return graph


def _with_joints(graph: Graph, leaves: Sequence[Leaf]) -> dict[int, Program]:
    """Returns the loops of a network in which anything trained is added or concatenated, unfolded, by number."""
    found = {}
    for operator in graph.operators:
        is_trained = any(leaves[leaf].trainable for leaf in graph.leaves_of(operator.index))
        for eqn in (graph.program.equations[position] for position in operator.equations if is_trained):
            if eqn.primitive == "scan" and eqn.params["length"] and has_joint(eqn.inner[0]):
                is_data = [isinstance(atom, int) and atom not in graph.independent for atom in eqn.inputs]
                found[eqn.number] = unfolded(eqn, is_data)
    return found


def _numbers_held(graph: Graph, groups: Iterable[Group]) -> set[int]:
    """Returns the numbers of the equations that groups hold."""
    segments = (graph.segments[segment] for group in groups for segment in group.segments)
    operators = (graph.operators[operator] for segment in segments for operator in segment.operators)
    return {graph.program.equations[position].number for operator in operators for position in operator.equations}


def has_joint(program: Program) -> bool:
    """Tells whether a program adds or concatenates anything, loops and conditions in it included."""
    flat = inline(program)
    return any(eqn.primitive in ADDITIVE or any(map(has_joint, eqn.inner)) for eqn in flat.equations)
