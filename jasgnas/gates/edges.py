"""Which edges get a gate: those into additive joints that nothing trainable lies on.

An edge reaches back from an operand of the joint to the last value that is read elsewhere, too, or to a network input:
a skip connection, a pooling, an activation. What has a parameter on it is, or is not, a removal structure already; and
a sum that is added to another sum is left alone, since its own operands are edges.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import INPUT, Graph, Operator
from jasgnas.graph.names import modules_of
from jasgnas.rules import rule_for
from jasgnas.rules.contraction import Convolution, DotGeneral


class Edge(NamedTuple):
    """An operand of an additive joint that nothing trainable lies on.

    Attributes:
        name: the scope that it was made in, or else the first stem after the joint and a number.
        number: the equation of the joint, see `Equation.number`.
        operand: which operand of the equation it is.
        axis: the feature axis of that, None if it has no axes.
        size: size of that axis.
        dtype: dtype of the operand.
    """

    name: str
    number: int
    operand: int
    axis: int | None
    size: int
    dtype: jnp.dtype


def find_edges(graph: Graph, leaves: Sequence[Leaf]) -> list[Edge]:
    """Returns the edges that can have a gate, in the order of the trace.

    They have the same names in the same order at any batch size, and in training and in inference mode.
    """
    equations = graph.program.equations
    producer = {var: graph.operator_of[p] for p in graph.operator_of for var in equations[p].outputs}
    names: set[str] = set()
    found = []
    for joint in graph.operators:
        eqn = equations[joint.equations[0]]
        if not joint.additive or not jnp.issubdtype(eqn.out_avals[0].dtype, jnp.floating):
            continue
        reads = Counter(atom for atom in eqn.inputs if isinstance(atom, int))
        for operand, var in enumerate(eqn.inputs):
            if not isinstance(var, int) or var in graph.independent:
                continue
            own = _only_for(graph, producer.get(var, INPUT)) if reads[var] == 1 else []
            if any(each.additive or _is_trained(graph, leaves, each) for each in own):
                continue
            stem = _first_stem(graph, joint)
            axis, size = _feature_axis(graph, stem, graph.program.avals[var].shape)
            name = _scope(graph, own, eqn.scope) or f"{_name(graph, leaves, stem)}/input0"
            found.append(Edge(_unique(name, names), eqn.number, operand, axis, size, eqn.in_avals[operand].dtype))
    return found


def _only_for(graph: Graph, operator: int) -> list[Operator]:
    """Returns an operator and those before it that nothing else reads, back to values that are read elsewhere, too."""
    found, pending = [], [operator]
    while pending:
        index = pending.pop()
        if index != INPUT and len(graph.consumers[index]) == 1 and index not in graph.outputs:
            found.append(graph.operators[index])
            pending.extend(graph.operators[index].sources)
    return found


def _is_trained(graph: Graph, leaves: Sequence[Leaf], operator: Operator) -> bool:
    return any(leaves[graph.parts[part].leaf].trainable for part in operator.parts)


def _first_stem(graph: Graph, joint: Operator) -> Operator | None:
    """Returns the first stem in the order of the trace that reads what a joint computes."""
    pending, seen = [joint.index], {joint.index}
    while pending:
        operator = graph.operators[heapq.heappop(pending)]
        if operator.kind == "stem":
            return operator
        for reader in graph.consumers[operator.index]:
            if reader not in seen:
                seen.add(reader)
                heapq.heappush(pending, reader)
    return None


def _feature_axis(graph: Graph, stem: Operator | None, shape: Sequence[int]) -> tuple[int | None, int]:
    """Returns the axis of the features of an array that a stem reads, and its size; the last axis if none says more."""
    if not shape:
        return None, 1
    axis = len(shape) - 1
    for position in () if stem is None else stem.equations:
        eqn = graph.program.equations[position]
        rule, data = rule_for(eqn.primitive), [a in graph.independent for a in eqn.inputs].index(False)
        if len(eqn.in_avals[data].shape) != len(shape):
            continue
        if isinstance(rule, Convolution):
            axis = eqn.params["dimension_numbers"].lhs_spec[1]
        elif isinstance(rule, DotGeneral) and len(contracted := eqn.params["dimension_numbers"][0][data]) == 1:
            axis = contracted[0]
    return axis, shape[axis]


def _scope(graph: Graph, own: Sequence[Operator], around: str) -> str:
    """Returns the scope that operators were made in, if it is another one than that around them."""
    scopes = [graph.program.equations[position].scope for each in own for position in reversed(each.equations)]
    return next((scope for scope in scopes if scope and scope != around), "")


def _name(graph: Graph, leaves: Sequence[Leaf], stem: Operator | None) -> str:
    return "output" if stem is None else next(iter(modules_of([stem], graph, leaves)), "output")


def _unique(name: str, taken: set[str]) -> str:
    """Returns a name with another number at its end until none is taken that is, or lies below, or above it.

    Where a taken name lies above it, the number is there: beside `first`, `first/pool` becomes `first_2/pool`.
    """
    above = [each for each in taken if name.startswith(f"{each}/")]
    keys = name.split("/")
    place = min([len(each.split("/")) for each in above], default=len(keys)) - 1
    own = keys[place]
    stem = own.rstrip("0123456789") if own.startswith("input") else f"{own}_"
    number = 0 if own.startswith("input") else 2
    unique = name
    while any(f"{each}/".startswith(f"{unique}/") or f"{unique}/".startswith(f"{each}/") for each in taken):
        unique = "/".join([*keys[:place], f"{stem}{number}", *keys[place + 1 :]])
        number += 1
    taken.add(unique)
    return unique
