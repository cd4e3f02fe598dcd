"""Called outside of `jax.jit`, a sub-network holds on to no value that it does not need any more."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive

import jasgnas
from jasgnas import rules
from jasgnas.rules.elementwise import KeepsZeros


@pytest.fixture
def probe(monkeypatch):
    """Returns an operator that changes nothing, and the list to which it adds how many arrays are alive."""
    monkeypatch.setattr(rules.base, "_RULES", dict(rules.base._RULES))
    counts: list[int] = []
    primitive = Primitive("probe")

    def impl(x):
        counts.append(len(jax.live_arrays()))
        return x + 0

    primitive.def_impl(impl)
    primitive.def_abstract_eval(lambda x: x)
    rules.register(KeepsZeros(), "probe")
    return primitive.bind, counts


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.remat])
def test_values_are_freed_after_their_last_use(probe, wrap):
    operator, counts = probe
    x = jnp.ones((2, 3))
    params = {"left": jnp.zeros((3, 3)), "right": jnp.full((3, 3), 0.25)}

    @wrap
    def layer(x, params):
        return jnp.tanh(operator(x)) + x

    def fn(params, x):
        first = x @ params["left"] + x @ params["right"]
        y = first
        for _ in range(20):
            y = layer(y, params)
        return y * first

    space = jasgnas.search_space(fn, x, params=params)
    sub_fn, sub_params = jasgnas.construct_subnet(space, params)
    expected = fn(params, x)
    counts.clear()
    assert jnp.allclose(sub_fn(sub_params, x), expected)
    assert len(counts) == 20
    # One value more than in the first layer, where `first` and the input of the layer are the same array.
    assert counts[-1] == counts[1] <= counts[0] + 1
