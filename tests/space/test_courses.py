"""How soon loops repeat themselves, compared with powers of all graphs that are left when edges go."""

import itertools

import numpy as np
import pytest

from jasgnas.program.scans import Course
from jasgnas.space.courses import recurrence


def powers(edges, number):
    """Returns for 0, 1, ... steps whether there is a walk of so many from any vertex to any other."""
    found = [np.eye(len(edges), dtype=bool)]
    for _ in range(number):
        found.append(found[-1] @ edges)
    return found


def check_subgraphs(edges, subgraphs):
    settled, period = recurrence({place: set(np.flatnonzero(row)) for place, row in enumerate(edges)})
    for kept in subgraphs:
        walks = powers(edges & kept, settled + 3 * period)
        for steps in range(settled, settled + 2 * period + 1):
            np.testing.assert_array_equal(walks[steps], walks[steps + period])


def test_steps_along_what_is_left_of_any_graph_of_three_vertices_recur():
    graphs = [np.reshape(bits, (3, 3)) for bits in itertools.product([False, True], repeat=9)]
    rng = np.random.default_rng(0)
    for edges in graphs:
        check_subgraphs(edges, [graphs[index] for index in rng.integers(len(graphs), size=1)])


@pytest.mark.parametrize("seed", range(30))
def test_steps_along_what_is_left_of_larger_graphs_recur(seed):
    rng = np.random.default_rng(seed)
    size = rng.integers(4, 7)
    edges = rng.random((size, size)) < 0.35
    check_subgraphs(edges, [np.ones_like(edges), *(rng.random((20, size, size)) < 0.7)])


def test_a_cycle_recurs_with_its_length():
    assert recurrence({0: {1}, 1: {2}, 2: {0}}) == (8, 3)
    assert recurrence({0: {0}}) == (1, 1)
    assert recurrence({}) == (0, 1)


def test_iterations_are_like_those_a_period_before():
    course = Course(settled=2, period=3)
    assert course.num_different == 5
    assert list(map(course.like, range(10))) == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3]
