"""Answers that are remembered against answers that rules give anew, throughout whole programs."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

import jasgnas
import models
from jasgnas.program.jaxpr import inline, trace
from jasgnas.program.masks import NOTHING, normalize, same, zero_at
from jasgnas.rules import base, register
from jasgnas.rules.elementwise import KeepsZeros
from jasgnas.rules.flow import RememberedAnswers, all_needed, propagate_needs, propagate_zeros


def told_apart(p, x):
    """Pairs of equations that differ in one thing each: a literal, a parameter, a constant, a dtype, a shape."""
    constants = [np.array([0, 1, 0, 2.0], np.float32), np.array([3, 0, 0, 1.0], np.float32)]
    y = x @ p["a"]
    literals = y * 0.0 + y * 2.0
    powers = y**2 + y**3
    masked = sum(y * constant for constant in constants)
    parts = jnp.concatenate([y[:, :2] @ p["b"][:2], y[:, 2:] @ p["b"][2:]], 1)
    narrow = y.astype(jnp.float16) * jnp.float16(0.1) + (y * jnp.float32(0.1)).astype(jnp.float16)
    return (
        literals,
        powers,
        masked,
        parts,
        narrow,
        jnp.where(jnp.arange(4) < 2, y, 0),
        jnp.where(jnp.arange(4) > 2, y, 0),
    )


def network(name, **options):
    space = jasgnas.search_space(models.create_abstract(name, **options), models.example_input(name))
    return space.graph.program, len(space.leaves)


def random_zeros(avals, rng):
    masks = [[rng.random(size) < 0.3 if rng.random() < 0.5 else None for size in aval.shape] for aval in avals]
    return [zero_at(axes) for axes in masks]


def random_needs(program, rng):
    needs = [tuple(rng.random(n) < 0.7 for n in program.avals[var].shape) for var in program.outputs]
    return [normalize(axes) for axes in needs]


def assert_remembered(program, num_leaves, rng):
    answers = RememberedAnswers()
    num_zero = num_needless = 0
    for _ in range(6):
        zeros = random_zeros([program.avals[var] for var in program.inputs[:num_leaves]], rng)
        wanted = all_needed(program) if rng.random() < 0.5 else random_needs(program, rng)
        expected = propagate_zeros(program, zeros)
        flow = propagate_zeros(program, list(map(answers.one, zeros)), answers)
        for var, value in expected.zeros.items():
            found = flow.zeros[var]
            assert found[1:3] == value[1:3] or np.isnan([found.constant, value.constant]).all()
            assert same(found.axes, value.axes)
            num_zero += value.anywhere
        needs = propagate_needs(program, expected, wanted)
        found = propagate_needs(program, flow, list(map(answers.one, wanted)))
        for var in program.avals:
            assert same(found.read(var), needs.read(var))
            num_needless += needs.read(var) == NOTHING
    assert num_zero and num_needless  # else nothing was compared


def test_equations_that_differ_in_one_thing_are_told_apart():
    p = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    program = inline(trace(told_apart, p, jnp.ones((2, 4))))
    assert_remembered(program, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("mixture_decoder", {"depth": 2, "features": 8, "num_heads": 2, "hidden": 6}), ("demo_net", {"width": 0.125})],
)
def test_answers_are_the_same_throughout_networks(name, options):
    assert_remembered(*network(name, **options), np.random.default_rng(1))


class Counted(KeepsZeros):
    """A rule that counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.num_asked = 0

    def zeros(self, eqn, operands):
        self.num_asked += 1
        return super().zeros(eqn, operands)


def test_equal_layers_are_asked_about_once(monkeypatch):
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))
    rule = Counted()
    register(rule, "counted")
    primitive = Primitive("counted")
    primitive.def_abstract_eval(lambda x: x)

    def stack(kernels, x):
        for kernel in kernels:
            x = primitive.bind(x @ kernel)
        return x

    program = inline(trace(stack, [jnp.ones((4, 4))] * 10, jnp.ones((2, 4))))
    columns = zero_at([None, np.array([True, False, True, False])])
    rows = zero_at([np.array([True, False, True, False]), None])
    zeros = [columns] * 5 + [rows] * 5
    answers = RememberedAnswers()
    flows = [propagate_zeros(program, list(map(answers.one, zeros)), answers) for _ in range(3)]
    assert rule.num_asked == 2  # with zero columns, and without
    assert [flow.zeros[program.outputs[0]].anywhere for flow in flows] == [False] * 3
    propagate_zeros(program, [columns] * 10)
    assert rule.num_asked == 12
