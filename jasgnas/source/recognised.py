"""A network as steps in each of its modes: what is recognised, and the rest written plainly."""

from dataclasses import dataclass
from typing import Any

from jasgnas.bridge import Leaf
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
    """

    network: Network
    leaves: tuple[Leaf, ...]
    original: dict[str, str]
    layers: dict[str, Constructor]
    inference: Flow
    training: Flow


def recognised(network: Network) -> Recognised:
    """Reads the equations of a network.

    Raises:
        SourceError: one of them can be written in no way.
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
    for flow in (training, inference):
        find_functions(judge, flow)
        write_plainly(judge, flow, known)
    return Recognised(network, leaves, {}, layers.found, inference, training)
