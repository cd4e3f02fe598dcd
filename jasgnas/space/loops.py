"""Loops that are looked into: those over time that cannot go as a whole, but that hold structures.

A recurrent layer that is zero without its parameters goes as a whole. A loop with a residual branch inside, such as
y = x + f(x, h), is not: nothing makes it zero. So its body is put in its place, unfolded to a few iterations that stand
for all of them (`scans.unfolded`): as many as it takes until they recur (`courses.py`), or all. What is found there is
tied over the iterations, as they share its parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import ADDITIVE, Graph
from jasgnas.program.jaxpr import Equation, Program, inline
from jasgnas.program.masks import unknown, zero
from jasgnas.program.scans import unfolded
from jasgnas.rules.flow import propagate_zeros
from jasgnas.space.courses import MOST_DIFFERENT, course_of
from jasgnas.space.groups import Group
from jasgnas.space.structures import find_groups


def with_loops_unfolded(
    graph: Graph, leaves: Sequence[Leaf], kept: frozenset[int], graph_of: Callable[[Mapping[int, Program]], Graph]
) -> tuple[Graph, frozenset[int]]:
    """Returns the graph of a network in which the loops are unfolded that hold structures and are none themselves.

    Args:
        graph: the network, in which every loop is an operator.
        leaves: its arrays.
        kept: indices of leaves that must not be candidates.
        graph_of: returns the graph with other programs in the place of loops, by the numbers of their equations.

    Returns:
        The graph, and the numbers of the equations of the loops that might hold structures, but of which too many
        iterations would have to be told apart: they stay operators.
    """
    if not (scans := _with_joints(graph, leaves)):
        return graph, frozenset()
    whole = _numbers_held(graph, find_groups(graph, leaves, kept).groups)
    loops = _unfolded(graph, leaves, [eqn for eqn in scans if eqn.number not in whole])
    refused = frozenset(eqn.number for eqn in scans) - whole - loops.keys()
    while loops:
        looked_into = graph_of(loops)
        held = _numbers_held(looked_into, find_groups(looked_into, leaves, kept).groups)
        if loops.keys() <= held:
            return looked_into, refused
        loops = {number: loop for number, loop in loops.items() if number in held}
    return graph, refused


def with_loops_refused(graph: Graph, reasons: Sequence[str], refused: frozenset[int]) -> tuple[str, ...]:
    """Returns why each segment is or is not removable, and of loops that were not looked into that they were not."""
    if not refused:
        return tuple(reasons)
    found = list(reasons)
    for operator in graph.operators:
        if any(graph.program.equations[position].number in refused for position in operator.equations):
            found[graph.segment_of[operator.index]] += (
                f"; more than {MOST_DIFFERENT} iterations of the loop would have to be told apart to look for "
                "structures inside"
            )
    return tuple(found)


def _with_joints(graph: Graph, leaves: Sequence[Leaf]) -> list[Equation]:
    """Returns the loops of a network in which anything trained is added or concatenated."""
    equations = [
        graph.program.equations[position]
        for operator in graph.operators
        if any(leaves[leaf].trainable for leaf in graph.leaves_of(operator.index))
        for position in operator.equations
    ]
    return [eqn for eqn in equations if eqn.primitive == "scan" and eqn.params["length"] and has_joint(eqn.inner[0])]


def _unfolded(graph: Graph, leaves: Sequence[Leaf], scans: Sequence[Equation]) -> dict[int, Program]:
    """Returns loops unfolded to the iterations that stand for all, by number, without those that have too many."""
    if not scans:
        return {}
    untrained = [zero(len(leaf.shape)) if leaf.trainable else unknown(len(leaf.shape)) for leaf in leaves]
    flow = propagate_zeros(graph.program, untrained)
    found = {}
    for eqn in scans:
        if (course := course_of(eqn, [flow.read(atom) for atom in eqn.inputs])) is not None:
            is_data = [isinstance(atom, int) and atom not in graph.independent for atom in eqn.inputs]
            found[eqn.number] = unfolded(eqn, is_data, course)
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
