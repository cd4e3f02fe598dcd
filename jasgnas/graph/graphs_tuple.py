"""The graphs as `jraph.GraphsTuple`s: the only module that knows jraph, of which nothing but that class is used."""

from collections.abc import Sequence

import jraph
import numpy as np

from jasgnas.graph.graph import INPUT, KINDS, Graph


def trace_graph(graph: Graph, segment_group: np.ndarray, num_params: Sequence[int]) -> jraph.GraphsTuple:
    """Returns the trace graph.

    Args:
        graph: operators and segments.
        segment_group: group of each segment or -1, int32 `[num_segments]`.
        num_params: trainable parameters of each operator.

    Returns:
        A graph of `[num_operators]` nodes with the int features `kind` (0 stem, 1 joint, 2 accessory, 3 unknown),
        `num_params`, `macs`, `group` (-1 for none), `segment`, and `[num_edges]` edges with the feature `operand`, the
        position of the sender among the receiver's inputs.
    """
    segment = np.array([graph.segment_of[operator.index] for operator in graph.operators], np.int32)
    nodes: dict[str, np.ndarray] = {
        "kind": np.array([KINDS.index(operator.kind) for operator in graph.operators], np.int32),
        "num_params": np.array(num_params, np.int64),
        "macs": np.array([operator.macs for operator in graph.operators], np.int64),
        "group": segment_group[segment],
        "segment": segment,
    }
    return _graphs_tuple(nodes, [operator.sources for operator in graph.operators])


def segment_graph(graph: Graph, segment_group: np.ndarray, num_params: Sequence[int]) -> jraph.GraphsTuple:
    """Returns the segment graph; the arguments are those of `trace_graph`.

    Returns:
        A graph of `[num_segments]` nodes with the features `kind` (that of the first operator, as in `trace_graph`),
        `num_params`, `macs`, `group`, `additive` (bool), `num_operators`, and edges as in `trace_graph`.
    """
    segments = graph.segments
    operators = [[graph.operators[index] for index in segment.operators] for segment in segments]
    nodes: dict[str, np.ndarray] = {
        "kind": np.array([KINDS.index(chain[0].kind) for chain in operators], np.int32),
        "num_params": np.array([sum(num_params[o.index] for o in chain) for chain in operators], np.int64),
        "macs": np.array([sum(o.macs for o in chain) for chain in operators], np.int64),
        "group": segment_group,
        "additive": np.array([segment.additive for segment in segments], bool),
        "num_operators": np.array([len(chain) for chain in operators], np.int32),
    }
    return _graphs_tuple(nodes, [segment.sources for segment in segments])


def _graphs_tuple(nodes: dict[str, np.ndarray], sources: Sequence[Sequence[int]]) -> jraph.GraphsTuple:
    edges = [
        (source, receiver, operand)
        for receiver, own in enumerate(sources)
        for operand, source in enumerate(own)
        if source != INPUT
    ]
    senders, receivers, operands = np.array(edges, np.int32).reshape(-1, 3).T
    return jraph.GraphsTuple(
        nodes=nodes,
        edges={"operand": operands},
        senders=senders,
        receivers=receivers,
        globals=None,
        n_node=np.array([len(sources)], np.int32),
        n_edge=np.array([len(edges)], np.int32),
    )
