"""Ranges followed all at once against each range followed by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.graph.build import build_graph
from jasgnas.program.jaxpr import inline, trace
from jasgnas.program.masks import zero_at
from jasgnas.space.groups import NOBODY
from jasgnas.space.ranges import told_apart, zeros_after


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 8, 13])
def test_an_index_belongs_to_the_one_range_that_it_takes(num):
    rng = np.random.default_rng(num)
    numbers = np.sort(rng.choice(100, num, replace=False))
    # For each index the ranges that must all be zero for it to be zero; one in five takes several, one in five none.
    takes = [rng.choice(num, rng.choice([0, 1, 1, 1, min(2, num)]), replace=False) for _ in range(60)]
    codes = 1 + np.arange(num)
    rows = [
        np.array([all((codes[range_] >> digit & 1) == value for range_ in own) for own in takes])
        for digit in range(num.bit_length())
        for value in (0, 1)
    ]
    found, possible = told_apart(rows, numbers)
    assert found.tolist() == [numbers[own[0]] if len(own) == 1 else NOBODY for own in takes]
    for index, own in enumerate(takes):
        assert len(own) != 1 or np.flatnonzero(possible[:, index]).tolist() == own.tolist()


def mixed(x, y, scale, kernel):
    """Operators that keep ranges, shift them, mix some of them, and multiply by others."""
    shifted = jnp.roll(jnp.tanh(x) * scale, 1, -1)
    padded = jnp.pad(shifted, ((0, 0), (2, 1)))
    pairs = padded[:, :14].reshape(-1, 7, 2).sum(-1)
    return padded, pairs, jax.nn.relu(x) * y, jnp.concatenate([y, x], -1)[:, 4:17], x @ kernel


@pytest.mark.parametrize("seed", range(8))
def test_zeros_are_those_that_each_range_makes_by_itself(seed):
    rng = np.random.default_rng(seed)
    shapes = [(12,), (12, 5), (3, 12), (3, 12)]
    program = inline(trace(lambda s, k, x, y: mixed(x, y, s, k), *(jax.ShapeDtypeStruct(s, "float32") for s in shapes)))
    graph = build_graph(program, 2, [True, True])
    operators = range(len(graph.operators))
    x, y = program.inputs[2:]
    groups = np.sort(rng.integers(-1, 4, 12)) * 3  # neighbouring indices, as a concatenation puts them together
    given = {x: (None, np.where(groups < 0, NOBODY, groups))}
    if seed % 2:
        given[y] = (None, np.where(rng.random(12) < 0.5, NOBODY, 20 + np.arange(12)))
    results = [atom for atom in program.outputs if isinstance(atom, int)]
    found = zeros_after(graph, operators, given, results)
    for var in results:
        shape = program.avals[var].shape
        takes = [[set() for _ in range(size)] for size in shape]
        for number in np.setdiff1d(np.concatenate([own[1] for own in given.values()]), NOBODY):
            alone = {each: zero_at((None, own[1] == number)) for each, own in given.items()}
            value = graph.zeros_through(operators, alone).zeros[var]
            for axis, size in enumerate(shape):
                for index in np.flatnonzero(value.axis(axis, size) & ~graph.full.zeros[var].axis(axis, size)):
                    takes[axis][index].add(int(number))
        for axis, own in enumerate(found.get(var, (None,) * len(shape))):
            expected = [next(iter(each)) if len(each) == 1 else NOBODY for each in takes[axis]]
            assert (np.full(shape[axis], NOBODY) if own is None else own).tolist() == expected
