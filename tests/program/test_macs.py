"""What multiply-adds are counted, and where: in branches, loops and complex numbers."""

import warnings

import jax.numpy as jnp
import pytest
from jax import lax

import jasgnas

X, W = jnp.ones((2, 4)), jnp.ones((4, 4))


def test_of_branches_the_largest_counts():
    def fn(p, x):
        return lax.switch(x.sum().astype(int), [lambda x: x, lambda x: x @ p, lambda x: x @ p @ p], x)

    assert jasgnas.count_macs(fn, X, params=W) == 2 * 32


def test_a_scan_counts_as_often_as_it_runs():
    def fn(p, x):
        return lax.scan(lambda c, _: (lax.cond(c.sum() > 0, lambda c: c @ p, lambda c: c, c), None), x, length=5)[0]

    assert jasgnas.count_macs(fn, X, params=W) == 5 * 32


def test_a_while_loop_is_said_to_be_uncounted():
    def fn(p, x):
        return lax.cond(
            x.sum() > 0, lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ p, x), lambda x: x, x
        )

    with pytest.warns(UserWarning, match="while loop are not counted"):
        assert jasgnas.count_macs(lambda p, x: fn(p, x) @ p, X, params=W) == 32


def test_a_while_loop_without_multiply_adds_is_counted_in_full():
    def fn(p, x):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x @ p)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jasgnas.count_macs(fn, X, params=W) == 32


def test_a_complex_multiply_add_is_four_real_ones():
    x, w = X.astype(jnp.complex64), W.astype(jnp.complex64)
    assert jasgnas.count_macs(lambda p, x: x @ p, x, params=w) == 4 * 32
    image, kernel = jnp.ones((1, 5, 4), jnp.complex64), jnp.ones((1, 4, 3), jnp.complex64)
    numbers = ("NWC", "WIO", "NWC")
    conv = lambda p, x: lax.conv_general_dilated(x, p, (1,), "SAME", dimension_numbers=numbers)  # noqa: E731
    assert jasgnas.count_macs(conv, image, params=kernel) == 4 * 5 * 4 * 3


def test_operators_of_a_space_count_branches_and_loops_as_the_network_does():
    def fn(p, x):
        h = x @ p["skip"] + jnp.tanh(x @ p["branch"])
        h = lax.cond(h.sum() > 0, lambda h: h @ p["a"] @ p["b"], lambda h: h @ p["a"], h)
        return lax.scan(lambda c, _: (c @ p["b"], None), h, length=3)[0]

    params = {name: W for name in ("skip", "branch", "a", "b")}
    space = jasgnas.search_space(fn, X, params=params)
    assert space.trace_graph.nodes["macs"].sum() == jasgnas.count_macs(fn, X, params=params) == (2 + 2 + 3) * 32
