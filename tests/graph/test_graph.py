"""The trace graph and the segment graph as `jraph.GraphsTuple`s."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from flax import nnx

import jasgnas
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets

STEM, JOINT, ACCESSORY = 0, 1, 2


@pytest.fixture(scope="module", params=[(DemoNet, (1, 8, 8, 1)), (StackedUnets, (1, 16, 16, 3))], ids=["demo", "unets"])
def case(request):
    network, shape = request.param
    model, x = network(width=0.25, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct(shape, jnp.float32)
    return model, x, jasgnas.search_space(model, x)


@pytest.mark.parametrize("name", ["trace_graph", "segment_graph"])
def test_graphs_are_topological_and_complete(case, name):
    model, x, space = case
    graph = getattr(space, name)
    assert isinstance(graph, jraph.GraphsTuple)
    assert np.all(graph.senders < graph.receivers)
    assert graph.n_edge.tolist() == [len(graph.senders)] == [len(graph.edges["operand"])]
    for feature in graph.nodes.values():
        assert feature.shape == (graph.n_node[0],)
    # Nothing is lost: the features of all nodes add up to the size of the network.
    assert graph.nodes["num_params"].sum() == jasgnas.count_params(model)
    assert graph.nodes["macs"].sum() == jasgnas.count_macs(model, x)


def test_graphs_go_through_jraph(case):
    space = case[2]
    batch = jraph.batch_np([space.trace_graph, space.trace_graph])
    assert batch.n_node.tolist() == [len(space.operator_names)] * 2


def test_name_tables_match_the_nodes(case):
    space = case[2]
    assert len(space.operator_names) == space.trace_graph.n_node[0]
    assert len(space.segment_names) == space.segment_graph.n_node[0]
    assert "conv conv1" in space.operator_names or "conv conv0" in space.operator_names
    for group in space.groups:
        assert space.segment_names[group.segments[0]] == group.name


def test_segments_are_what_their_operators_make(case):
    space = case[2]
    operators, segments = space.trace_graph.nodes, space.segment_graph.nodes
    counts = np.bincount(operators["segment"], minlength=len(segments["group"]))
    np.testing.assert_array_equal(segments["num_operators"], counts)
    np.testing.assert_array_equal(operators["group"], segments["group"][operators["segment"]])
    assert sorted(segments["group"][segments["group"] >= 0]) == list(range(len(space.groups)))


def test_kinds_are_those_of_the_design(case):
    space = case[2]
    expected = {"conv": STEM, "dense": STEM, "add": JOINT, "concatenate": JOINT}
    for name, kind in zip(space.operator_names, space.trace_graph.nodes["kind"], strict=True):
        assert kind == expected.get(name.split()[0], ACCESSORY), name
    joints = space.segment_graph.nodes["kind"] == JOINT
    np.testing.assert_array_equal(space.segment_graph.nodes["additive"], joints)
    assert np.all(space.segment_graph.nodes["num_operators"][joints] == 1)
