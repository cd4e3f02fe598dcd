"""A network as steps in each of its modes: what is recognised, and the rest written plainly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jasgnas.bridge import Leaf
from jasgnas.errors import DerivativeWarning, FixedSizeWarning, OneModeWarning, SourceError
from jasgnas.source.agreement import Judge, symbols_of
from jasgnas.source.flow import Flow
from jasgnas.source.functions import find_functions
from jasgnas.source.layers import Layers
from jasgnas.source.network import Network, Traced
from jasgnas.source.plain import write_plainly
from jasgnas.source.tree import Constructor

_SIZES = {"batch": 2}
"""With how many examples pieces are computed."""


@dataclass(frozen=True, eq=False)
class Recognised:
    """A network that can be written.

    Attributes:
        network: the network.
        leaves: its arrays, by the paths that they have in the module to be written.
        original: the paths of its parts in the model, by those in the module.
        layers: what makes each layer, by path.
        inference: its steps in inference mode.
        training: its steps in training mode.
        notes: what the written network does not do that the network does.
    """

    network: Network
    leaves: tuple[Leaf, ...]
    original: dict[str, str]
    layers: dict[str, Constructor]
    inference: Flow
    training: Flow
    notes: tuple[UserWarning, ...]


def recognised(network: Network) -> Recognised:
    """Reads the equations of a network.

    Raises:
        SourceError: one of them can be written in no way, or reads an array that is no parameter.
    """
    paths = {leaf.path: network.model.path_in_module(leaf.path) or "params" for leaf in network.leaves}
    if len(set(paths.values())) < len(paths):
        paths = {path: path for path in paths}
    leaves = tuple(leaf._replace(path=paths[leaf.path]) for leaf in network.leaves)

    def flow_of(traced: Traced) -> Flow:
        changed = [paths[path] for path in traced.changed]
        return Flow.of(traced.program, [leaf.path for leaf in leaves], changed, _SIZES)

    inference, training = flow_of(network.inference), flow_of(network.training)
    judge = Judge(symbols_of(network.call), _SIZES)
    layers = Layers({leaf.path: leaf for leaf in leaves}, judge)
    layers.find(training, inference)
    known: dict[Any, Any] = {}
    derived = network.inference.derived | network.training.derived
    lost: set[str] = set()
    for flow in (training, inference):
        ends = _ends_of_calls(flow, derived)
        find_functions(judge, flow)
        lost |= {name for var, name in ends.items() if not _is_written_by_name(flow, var, name)}
        write_plainly(judge, flow, known)
        _refuse_arrays(flow)
    return Recognised(network, leaves, {}, layers.found, inference, training, tuple(_notes(network, lost)))


def _notes(network: Network, lost: set[str]) -> Iterator[UserWarning]:
    """Yields what has to be said of a network that is written; `lost` names the functions without their derivatives."""
    if network.why_fixed:
        sizes = ", ".join(f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" for aval in network.call.avals)
        yield FixedSizeWarning(
            f"written for inputs of these sizes alone, {sizes}: the network cannot be traced at a batch of any size "
            f"({network.why_fixed}). Pass inputs of the sizes that it is to be written for"
        )
    if network.why_one_mode:
        yield OneModeWarning(
            f"written for the mode of the call alone: the network cannot be traced in the other one "
            f"({network.why_one_mode}). Pass what that needs, such as rngs="
        )
    if lost:
        yield DerivativeWarning(
            f"written without the derivatives of their own: {', '.join(sorted(name or 'a lambda' for name in lost))}. "
            "Outputs are the same; before you train the written network, give these functions their derivatives again"
        )


def _ends_of_calls(flow: Flow, names: frozenset[str]) -> dict[int, str]:
    """Returns the last variable that each call of functions of some names computes, and the name."""
    last: dict[int, tuple[int, str]] = {}
    for step in flow.steps:
        for number, name in step.equation.calls if step.equation else ():
            if name in names:
                last[number] = step.outputs[-1], name
    return dict(last.values())


def _is_written_by_name(flow: Flow, var: int, name: str) -> bool:
    """Tells whether a variable is what a function of that name returns, or inside a larger one that is known."""
    step = flow.made_by.get(var)
    text = step.expression.text if step is not None and step.expression is not None else ""
    return step is None or re.search(rf"\b{name.strip('_')}\(", text) is not None


def _refuse_arrays(flow: Flow) -> None:
    """Refuses arrays in the code of a network, whose numbers are no text that one would read.

    Raises:
        SourceError: there is one.
    """
    read = {atom for step in flow.steps for atom in step.variables} | {a for a in flow.outputs if isinstance(a, int)}
    if found := sorted(read & flow.program.constants.keys()):
        shapes = ", ".join(str(flow.program.avals[var]) for var in found)
        raise SourceError(
            f"the network reads arrays that are none of its parameters ({shapes}), which cannot be written as source. "
            "Make them variables of the network, or compute them from numbers"
        )
