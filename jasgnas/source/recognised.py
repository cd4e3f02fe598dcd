"""A network as steps in each of its modes: what is recognised, and the rest written plainly."""

from dataclasses import dataclass
from typing import Any

from jasgnas.source.agreement import Judge, symbols_of
from jasgnas.source.flow import Flow, Step
from jasgnas.source.functions import find_functions
from jasgnas.source.layers import Layers
from jasgnas.source.network import Network, Traced
from jasgnas.source.plain import write_plainly
from jasgnas.source.tree import Constructor

_SIZES = {"batch": 2}


@dataclass(frozen=True, eq=False)
class Mode:
    """What a network computes in one mode.

    Attributes:
        flow: the steps.
        traced: the trace.
    """

    flow: Flow
    traced: Traced

    @property
    def steps(self) -> list[Step]:
        """The steps in the order of the computation."""
        return self.flow.steps


@dataclass(frozen=True, eq=False)
class Recognised:
    """A network that can be written.

    Attributes:
        network: the network.
        layers: what makes each layer and each variable, by path.
        inference: the network in inference mode.
        training: the network in training mode.
    """

    network: Network
    layers: dict[str, Constructor]
    inference: Mode
    training: Mode


def recognised(network: Network) -> Recognised:
    """Reads the equations of a network."""
    flows = {}
    for name, traced in (("training", network.training), ("inference", network.inference)):
        flows[name] = Flow.of(traced.program, [leaf.path for leaf in network.leaves], traced.changed, _SIZES)
    judge = Judge(symbols_of(network.call), _SIZES)
    layers = Layers({leaf.path: leaf for leaf in network.leaves}, judge)
    layers.find(flows["training"], flows["inference"])
    known: dict[Any, Any] = {}
    for flow in flows.values():
        find_functions(judge, flow)
        write_plainly(judge, flow, known)
    return Recognised(
        network, layers.found, Mode(flows["inference"], network.inference), Mode(flows["training"], network.training)
    )
