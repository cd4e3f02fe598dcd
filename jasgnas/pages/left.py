"""What a removal leaves of every operator and every parameter, read off the plan that evaluates the sub-network."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jasgnas.collector import collector_paused
from jasgnas.program.jaxpr import Equation, trace
from jasgnas.program.macs import equation_macs, program_macs
from jasgnas.program.masks import NOTHING, Layout, jointly, normalize, stored_shape, unknown
from jasgnas.program.sliced import Sliced
from jasgnas.rules.flow import all_needed
from jasgnas.subnet.construct import make_recipe
from jasgnas.subnet.evaluate import Plan, evaluate, plan

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Shape = tuple[int, ...]


class Left(NamedTuple):
    """What the sub-network holds and computes.

    Attributes:
        part_shapes: shape of each part of a leaf, None where it is gone.
        shapes: shape of each operator's result, None where it is not computed.
        params: trainable parameters of each operator; those that several read count in the first that is left.
        macs: multiply-adds of each operator at the traced shapes.
        varies: whether each operator's result depends on the network input; what is left of others is a constant.
        num_params: trainable parameters of the sub-network.
    """

    part_shapes: tuple[Shape | None, ...]
    shapes: tuple[Shape | None, ...]
    params: tuple[int, ...]
    macs: tuple[int, ...]
    varies: tuple[bool, ...]
    num_params: int


@collector_paused()
def left_of(space: "SearchSpace", redundant: np.ndarray) -> Left:
    """Returns what is left without some groups, bool `[num_groups]`, whether that is a valid removal or not."""
    graph, leaves = space.graph, space.leaves
    recipe = make_recipe(space, np.flatnonzero(redundant).tolist())
    inputs = graph.program.inputs[len(leaves) :]
    zeros = [*recipe.zeros, *(unknown(len(graph.program.avals[var].shape)) for var in inputs)]
    steps = plan(graph.program, zeros, all_needed(graph.program))
    varying = _varying(steps, inputs)
    parts = [_part_shape(leaves[part.leaf].shape, recipe.layouts[part.leaf], part.row) for part in graph.parts]
    shapes, macs, varies = [], [], []
    for operator in graph.operators:
        equations = [graph.program.equations[position] for position in operator.equations]
        results = zip(equations[-1].outputs, equations[-1].out_avals, strict=True)
        stored = [stored_shape(aval.shape, steps.layout(var)) for var, aval in results if _is_stored(steps, var)]
        shapes.append(stored[0] if stored else None)
        macs.append(sum(_macs(steps, eqn) for eqn in equations))
        varies.append(not varying.isdisjoint(equations[-1].outputs))
    stored_leaves = [
        stored_shape(leaf.shape, layout)
        for leaf, layout in zip(leaves, recipe.layouts, strict=True)
        if leaf.trainable and layout != NOTHING
    ]
    return Left(
        part_shapes=tuple(parts),
        shapes=tuple(shapes),
        params=_operator_params(space, parts, shapes),
        macs=tuple(macs),
        varies=tuple(varies),
        num_params=sum(map(math.prod, stored_leaves)),
    )


def _is_stored(steps: Plan, var: int) -> bool:
    return steps.layout(var) != NOTHING


def _varying(steps: Plan, inputs: Sequence[int]) -> set[int]:
    """Returns the variables that are computed and depend on one of the inputs."""
    varying = {var for var in inputs if _is_stored(steps, var)}
    for eqn in steps.program.equations:
        if any(atom in varying for atom in eqn.inputs if isinstance(atom, int)):
            varying.update(var for var in eqn.outputs if _is_stored(steps, var))
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


def _operator_params(
    space: "SearchSpace", parts: Sequence[Shape | None], shapes: Sequence[Shape | None]
) -> tuple[int, ...]:
    params = [0] * len(shapes)
    counted: set[int] = set()
    # What the sub-network computes comes first: a parameter may be kept although nothing that is left reads it.
    for operator in sorted(space.graph.operators, key=lambda each: shapes[each.index] is None):
        for part in operator.parts:
            shape = parts[part]
            if shape is not None and part not in counted and space.leaves[space.graph.parts[part].leaf].trainable:
                counted.add(part)
                params[operator.index] += math.prod(shape)
    return tuple(params)


def _macs(steps: Plan, eqn: Equation) -> int:
    """Returns the multiply-adds that an equation takes as planned: those of its evaluation, traced by itself."""
    if not equation_macs(eqn) or not any(_is_stored(steps, var) for var in eqn.outputs):
        return 0
    avals = steps.program.avals
    operands = tuple(dict.fromkeys(atom for atom in eqn.inputs if isinstance(atom, int)))
    layouts = [steps.layout(var) for var in operands]
    step = replace(
        steps, program=replace(steps.program, inputs=operands, outputs=eqn.outputs, equations=(eqn,), constants={})
    )

    def run(arrays: Sequence[Any]) -> list[Any]:
        values = zip(arrays, layouts, operands, strict=True)
        return [result.array for result in evaluate(step, [Sliced(a, own, avals[var]) for a, own, var in values])]

    stored = [
        None if own == NOTHING else jax.ShapeDtypeStruct(stored_shape(avals[var].shape, own), avals[var].dtype)
        for var, own in zip(operands, layouts, strict=True)
    ]
    return program_macs(trace(run, stored))
