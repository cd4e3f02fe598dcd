"""Operators that nobody knows, and the hook with which a user makes them known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jasgnas
from jasgnas import rules
from jasgnas.rules.elementwise import KeepsZeros


def _primitive(name: str) -> Primitive:
    """Makes an elementwise primitive that computes sin, under a name that jasgnas has never heard of."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x: jnp.sin(x))
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: jnp.sin(x), multiple_results=False))
    return primitive


def _network(primitive: Primitive):
    def fn(params, x):
        return x @ params["skip"] + primitive.bind(x @ params["branch"])

    return fn


@pytest.fixture
def params():
    return {"branch": jnp.full((3, 3), 0.5), "skip": jnp.full((3, 3), 0.25)}


def test_an_unknown_operator_is_listed_and_its_branch_is_no_candidate(params):
    space = jasgnas.search_space(_network(_primitive("never_heard_of")), jnp.ones((2, 3)), params=params)
    assert [group.paths for group in space.groups] == [("skip",)]
    assert "Unknown operators, kept as they are: never_heard_of" in str(space)
    assert "contains the unknown operator never_heard_of" in space.explain("branch")


def test_an_unknown_operator_stays_as_it_is_in_the_subnet(params):
    fn = _network(_primitive("left_alone"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    space = jasgnas.search_space(fn, x, params=params)
    sparse = space.zero(params, [0])
    sub_fn, sub_params = jasgnas.construct_subnet(space, sparse)
    assert set(sub_params) == {"branch"}
    assert "left_alone" in str(jax.make_jaxpr(sub_fn)(sub_params, x))
    np.testing.assert_allclose(sub_fn(sub_params, x), fn(sparse, x), rtol=1e-6)


def test_a_registered_rule_makes_an_operator_removable(params, monkeypatch):
    monkeypatch.setattr(rules.base, "_RULES", dict(rules.base._RULES))
    rules.register(KeepsZeros(), "now_known")
    fn = _network(_primitive("now_known"))
    x = jnp.ones((2, 3))
    space = jasgnas.search_space(fn, x, params=params)
    assert [group.paths for group in space.groups] == [("skip",), ("branch",)]
    sparse = space.zero(params, [1])
    sub_fn, sub_params = jasgnas.construct_subnet(space, sparse, verify=True)
    assert set(sub_params) == {"skip"}
    np.testing.assert_allclose(sub_fn(sub_params, x), fn(sparse, x), rtol=1e-6)
