"""What a removal leaves of every operator and every parameter, read off the plan that evaluates the sub-network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jasgnas.collector import collector_paused
from jasgnas.program.jaxpr import Equation, trace
from jasgnas.program.macs import equation_macs, program_macs
from jasgnas.program.masks import NOTHING, Layout, jointly, normalize, stored_shape
from jasgnas.rules.flow import all_needed
from jasgnas.subnet.construct import make_recipe, stored_leaves
from jasgnas.subnet.evaluate import Plan, plan, stored_function

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]


class Left(NamedTuple):
    """What the sub-network holds and computes; sizes are by measure, see `jasgnas.space.sizes.UNITS`.

    Attributes:
        redundant: the groups that are removed, bool `[num_groups]`.
        part_shapes: shape of each part of a leaf, None where it is gone.
        shapes: shape of each operator's result, None where it is not computed.
        varies: whether each operator's result depends on the network input; what is left of others is a constant.
        operators: sizes of each operator: trainable parameters, of which those that several operators read count in the
            first that is left, and multiply-adds at the traced shapes.
        total: sizes of the sub-network.
    """

    redundant: np.ndarray
    part_shapes: Shapes
    shapes: Shapes
    varies: Sequence[bool]
    operators: Mapping[str, Sequence[int]]
    total: Mapping[str, int]


@collector_paused()
def left_of(space: "SearchSpace", redundant: np.ndarray) -> Left:
    """Returns what is left without some groups, bool `[num_groups]`, whether that is a valid removal or not."""
    graph, leaves = space.graph, space.leaves
    recipe = make_recipe(space, np.flatnonzero(redundant).tolist())
    inputs = graph.program.inputs[len(leaves) :]
    steps = plan(graph.program, recipe.zeros, all_needed(graph.program))
    varying = _varying(steps, inputs)
    parts = [_part_shape(leaves[part.leaf].shape, recipe.layouts[part.leaf], part.row) for part in graph.parts]
    results = [graph.results(operator.index) for operator in graph.operators]
    shapes = [next((_stored(steps, var).shape for var in own if var in steps.layouts), None) for own in results]
    macs = [sum(_macs(steps, graph.program.equations[i]) for i in operator.equations) for operator in graph.operators]
    # Some of them no operator reads: those that `keep=` names, or that are needed in training alone.
    params = sum(math.prod(leaf.shape) for leaf in stored_leaves(leaves, recipe.layouts) if leaf.trainable)
    return Left(
        redundant=redundant,
        part_shapes=parts,
        shapes=shapes,
        varies=[not varying.isdisjoint(own) for own in results],
        operators={"params": _operator_params(space, parts, shapes), "macs": macs},
        total={"params": params, "macs": sum(macs)},
    )


def _stored(steps: Plan, var: int) -> jax.ShapeDtypeStruct:
    """Returns the shape in which a variable is stored, and its dtype."""
    aval = steps.program.avals[var]
    return jax.ShapeDtypeStruct(stored_shape(aval.shape, steps.layout(var)), aval.dtype)


def _varying(steps: Plan, inputs: Sequence[int]) -> set[int]:
    """Returns the variables that are computed and depend on one of the inputs."""
    varying = {var for var in inputs if var in steps.layouts}
    for eqn in steps.program.equations:
        if any(atom in varying for atom in eqn.inputs if isinstance(atom, int)):
            varying.update(var for var in eqn.outputs if var in steps.layouts)
    return varying


def _part_shape(shape: Shape, layout: Layout, row: Shape) -> Shape | None:
    """Returns the shape in which a leaf, or one row of it, is stored."""
    if layout == NOTHING:
        return None
    layout = jointly(layout, shape[: len(row)])
    first = layout[0] if layout else None
    rest: list[Any] = list(layout[len(row) :])
    if row and first is not None:
        taken = first[row]
        if not taken.any():
            return None
        if taken.ndim:
            rest[0] = taken
    return stored_shape(shape[len(row) :], normalize(rest))


def _operator_params(space: "SearchSpace", parts: Shapes, shapes: Shapes) -> list[int]:
    # What the sub-network computes comes first: a parameter may be kept although nothing that is left reads it.
    operators = sorted(space.graph.operators, key=lambda each: shapes[each.index] is None)
    first = {part: operator.index for operator in reversed(operators) for part in operator.parts}
    params = [0] * len(shapes)
    for part, operator in first.items():
        shape = parts[part]
        if shape is not None and space.leaves[space.graph.parts[part].leaf].trainable:
            params[operator] += math.prod(shape)
    return params


def _macs(steps: Plan, eqn: Equation) -> int:
    """Returns the multiply-adds that an equation takes as planned: those of its evaluation, traced by itself."""
    if not equation_macs(eqn) or all(var not in steps.layouts for var in eqn.outputs):
        return 0
    operands = tuple(dict.fromkeys(atom for atom in eqn.inputs if isinstance(atom, int)))
    program = replace(steps.program, inputs=operands, outputs=eqn.outputs, equations=(eqn,), constants={})
    in_layouts, out_layouts = ([steps.layout(var) for var in own] for own in (operands, eqn.outputs))
    run = stored_function(replace(steps, program=program), in_layouts, out_layouts)
    return program_macs(trace(run, *(_stored(steps, var) for var in operands if var in steps.layouts)))
