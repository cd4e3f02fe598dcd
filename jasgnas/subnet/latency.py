"""Measures how long a forward pass takes on the device at hand, segment by segment, at several widths.

A segment is compiled and run by itself, so that what the compiler fuses inside of it is measured as it is, and what it
fuses over its borders is not. The segments of the full network are therefore scaled to add up to the time of the whole.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from jasgnas.checks import check_integer
from jasgnas.collector import collector_paused
from jasgnas.errors import ArgumentError
from jasgnas.graph.graph import Graph
from jasgnas.program.masks import everything, stored_shape
from jasgnas.rules.flow import all_needed
from jasgnas.space.latency import LatencyTable, SegmentLatency
from jasgnas.space.search import SearchSpace, require_space
from jasgnas.subnet.evaluate import Plan, plan, stored_function

_FRACTIONS = (1.0, 0.75, 0.5, 0.25)
"""What is left of each dimension in the networks that are measured, beside those where it differs by dimension."""
_NUM_MIXED = 4
"""Networks of the latter kind. Their widths are no round numbers, as most are that a selection leaves: with these a
convolution takes longer than its multiply-adds say."""
_LEAST_FRACTION = 0.1

Timer = Callable[[Callable[..., Any], Sequence[Any]], float]
"""Returns the seconds that a compiled function takes with some arguments."""


def measure_latency(space: SearchSpace, *, repeats: int = 20, timer: Timer | None = None) -> LatencyTable:
    """Returns how long a forward pass takes on the device at hand, for the targets `target_latency`, `target_seconds`.

    Every segment is measured alone, at the inputs that the space was made with (their batch, their dtypes), in
    inference mode, at full width and, where there are channels, at several others; each different program once. Its
    time is taken to consist of a constant, a part in proportion to its multiply-adds, and one in proportion to the
    elements of its results (a roofline, arXiv 1802.03494 measures tables likewise). The table is of one device and one
    search space. It is kept as JSON: `table.to_json()`, `LatencyTable.from_json(text)`.

    Args:
        space: the search space.
        repeats: how often each program is run; the least time counts, since whatever else a machine does only adds
            to it.
        timer: measures in place of that.

    Returns:
        The table. `table.predict(space, indices)` are the seconds without some groups.

    Raises:
        ArgumentError: an argument is of the wrong kind, or the whole network takes no time that could be measured.
    """
    require_space(space)
    check_integer("repeats", repeats, 1)
    timer = timer or _Stopwatch(repeats)
    graph, num_segments = space.graph, len(space.graph.segments)
    seconds: dict[str, float] = {}
    rows: list[list[tuple[float, float, float]]] = [[] for _ in range(num_segments)]
    times: list[list[float]] = [[] for _ in range(num_segments)]
    whole = 0.0
    removals = _removals(space)
    sizes = [_sizes(space, removed) for removed in removals]
    for number, removed in enumerate(removals):
        with collector_paused():
            steps = plan(graph.program, space.zeros_of_leaves(removed), all_needed(graph.program))
        if number == 0:
            whole = _seconds_of_all(space, timer)
        for segment in range(num_segments):
            own = _segment_program(graph, steps, segment)
            if own is None:
                continue
            key = _signature(steps, *own)
            if key not in seconds:
                seconds[key] = timer(*_compiled(steps, *own))
            shares = (now[segment] / max(full[segment], 1) for now, full in zip(sizes[number], sizes[0], strict=True))
            rows[segment].append((1.0, *shares))
            # Of the iterations of a loop one counts for all.
            times[segment].append(seconds[key] * graph.program.equations[own[2][0]].repeats)
    if not whole > 0:
        raise ArgumentError(f"the full network takes {whole} seconds: give more repeats, or inputs of a larger batch")
    fitted = [_fitted(*each) for each in zip(rows, times, strict=True)]
    scale = whole / (sum(map(sum, fitted)) or np.inf)
    return LatencyTable(
        device=jax.devices()[0].device_kind,
        inputs=tuple(f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" for aval in space.call.avals),
        seconds=whole,
        fingerprint=space.candidates.fingerprint,
        num_measured=len(seconds),
        segments=tuple(
            SegmentLatency(scale * sum(own), *(part / (sum(own) or 1) for part in own[1:])) for own in fitted
        ),
    )


def _seconds_of_all(space: SearchSpace, timer: Timer) -> float:
    """Returns the seconds of the full network."""
    network = replace(space.traced.program, outputs=space.traced.outputs)
    with collector_paused():
        steps = plan(network, space.zeros_of_leaves([]), all_needed(network))
    return timer(*_compiled(steps, network.inputs, network.outputs, range(len(network.equations))))


class _Stopwatch:
    """Times a compiled function: the least of several times, without what calling any function takes."""

    def __init__(self, repeats: int):
        """Measures what a call takes that computes next to nothing."""
        self._repeats = repeats
        self._call = 0.0
        self._call = self(jax.jit(lambda x: x + 1), [jnp.zeros(())])

    def __call__(self, run: Callable[..., Any], arrays: Sequence[Any]) -> float:
        """Returns the seconds of one call."""
        jax.block_until_ready(run(*arrays))
        found = []
        for _ in range(self._repeats):
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            found.append(time.perf_counter() - start)
        return max(0.0, min(found) - self._call)


def _removals(space: SearchSpace) -> list[list[int]]:
    """Returns the channels without which the network is measured: none, a part of each dimension, mixed parts."""
    if not space.dimensions:
        return [[]]
    rng = np.random.default_rng(0)
    fractions = [[fraction] * len(space.dimensions) for fraction in _FRACTIONS]
    fractions += rng.uniform(_LEAST_FRACTION, 1, (_NUM_MIXED, len(space.dimensions))).tolist()
    return [
        [
            channel
            for dimension, fraction in zip(space.dimensions, own, strict=True)
            for channel in dimension.groups[max(dimension.min_channels, round(fraction * dimension.size)) :]
        ]
        for own in fractions
    ]


def _sizes(space: SearchSpace, removed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the multiply-adds and elements of each segment without some channels, float `[num_segments]`."""
    graph, widths = space.graph, space.candidates.widths
    num_segments = len(graph.segments)
    if widths is not None:
        marked = space.removed(removed)
        macs, elements = (widths.by_segment(name, marked, num_segments) for name in ("macs", "elements"))
        return macs, elements
    operators = [[graph.operators[index] for index in segment.operators] for segment in graph.segments]
    macs = np.array([sum(each.macs for each in own) for own in operators], float)
    return macs, np.array([sum(np.prod(each.shape) for each in own) for own in operators], float)


def _segment_program(graph: Graph, steps: Plan, segment: int) -> tuple[list[int], list[int], list[int]] | None:
    """Returns the variables that a segment reads and those that others read of it, and the equations in between.

    None if nothing is computed.
    """
    operators = [graph.operators[index] for index in graph.segments[segment].operators]
    positions = sorted(position for operator in operators for position in operator.equations)
    equations = [graph.program.equations[position] for position in positions]
    made = dict.fromkeys(var for eqn in equations for var in eqn.outputs)
    inputs = dict.fromkeys(
        atom for eqn in equations for atom in eqn.inputs if isinstance(atom, int) and atom not in made
    )
    outputs = [var for var in graph.results(operators[-1].index) if var in steps.layouts]
    return ([*inputs], outputs, positions) if outputs else None


def _compiled(
    steps: Plan, inputs: Sequence[int], outputs: Sequence[Any], positions: Sequence[int]
) -> tuple[Callable[..., Any], list[Any]]:
    """Returns some equations as planned as a compiled function, and arrays that it can be called with."""
    run, avals = _function(steps, inputs, outputs, positions)
    return jax.jit(run), [_example(aval) for aval in avals]


def _function(
    steps: Plan, inputs: Sequence[int], outputs: Sequence[Any], positions: Sequence[int]
) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """Returns some equations as planned as a function of stored arrays, and what these are like."""
    renumbered = {position: number for number, position in enumerate(positions)}
    program = replace(
        steps.program,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        equations=tuple(steps.program.equations[position] for position in positions),
        constants={} if len(positions) < len(steps.program.equations) else steps.program.constants,
    )
    bodies = {renumbered[position]: body for position, body in steps.bodies.items() if position in renumbered}
    part = replace(steps, program=program, bodies=bodies)
    in_layouts = [steps.layout(var) for var in inputs]
    out_layouts = [steps.layout(atom) if isinstance(atom, int) else everything(0) for atom in outputs]
    stored = [(steps.program.avals[var], steps.layout(var)) for var in inputs if var in steps.layouts]
    avals = [jax.ShapeDtypeStruct(stored_shape(aval.shape, layout), aval.dtype) for aval, layout in stored]
    return stored_function(part, in_layouts, out_layouts), avals


def _signature(steps: Plan, inputs: Sequence[int], outputs: Sequence[int], positions: Sequence[int]) -> str:
    """Returns what tells the program of a segment from others: what it computes, with all shapes and parameters."""
    run, avals = _function(steps, inputs, outputs, positions)
    return str(jax.make_jaxpr(run)(*avals))


def _example(aval: jax.ShapeDtypeStruct) -> Any:
    """Returns an array: ones, which no norm makes infinite of; zeros for integers, which index everything."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), aval.shape)
    make = jnp.ones if jnp.issubdtype(aval.dtype, jnp.inexact) else jnp.zeros
    return make(aval.shape, aval.dtype)


def _fitted(rows: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Returns the constant part of the seconds of a segment, that of multiply-adds and that of elements, at full width.

    With a single width everything scales with the multiply-adds, or the elements where there are none.

    Args:
        rows: 1, and the shares of the multiply-adds and of the elements that are left, for each measurement.
        times: the seconds.
    """
    if not times or max(times) == 0:
        return [0.0, 0.0, 0.0]
    table, measured = np.array(rows), np.array(times)
    if len(np.unique(table, axis=0)) == 1:
        return [0.0, measured[0], 0.0] if table[0, 1] > 0 else [0.0, 0.0, measured[0]]
    # Relative errors count: a narrow network is to be predicted as well as a wide one.
    weights = 1 / np.maximum(measured, 0.01 * measured.max())
    return nnls(table * weights[:, None], measured * weights)[0].tolist()
