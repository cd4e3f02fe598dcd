"""Degrees of homogeneity: what each rule claims against numbers, and against a table written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.program.jaxpr import Literal, inline, trace
from jasgnas.rules import degrees_of
from jasgnas.rules.degrees import ANY, CONSTANT, common, of_power, of_product
from jasgnas.rules.flow import DegreeFlow, of_literal, propagate_zeros
from tests.rules.rule_rows import NUMBERS, ROWS
from tests.rules.test_rules import as_params, bind, equation_of


def may_grow(aval):
    return jnp.issubdtype(aval.dtype, jnp.inexact)


# The rows in which a degree can matter.
GROWING = [row for row in [*ROWS, *NUMBERS] if any(map(may_grow, jax.tree.leaves(row.args)))]


def draw(rng, aval, degree):
    """Random numbers, zeros if any degree fits, away from zero so that none is rounded to it."""
    if degree == ANY:
        return np.zeros(aval.shape, aval.dtype)
    if aval.dtype == np.bool_:
        return rng.random(aval.shape) < 0.5
    if jnp.issubdtype(aval.dtype, jnp.integer):
        return rng.integers(0, 2, aval.shape).astype(aval.dtype)
    array = rng.uniform(0.5, 4, aval.shape) * rng.choice([-1, 1], aval.shape)
    if jnp.issubdtype(aval.dtype, jnp.complexfloating):
        array = array + 1j * rng.uniform(0.5, 4, aval.shape)
    return array.astype(aval.dtype)


def degrees_drawn(rng, eqn):
    """A degree for each operand; the same for one that occurs twice."""
    drawn = {}
    degrees = []
    likely = rng.choice([1.0, 2.0])  # Most operators need the same degree of all operands.
    for atom, aval in zip(eqn.inputs, eqn.in_avals, strict=True):
        if isinstance(atom, Literal):
            degrees.append(ANY if of_literal(atom).everywhere else CONSTANT)
            continue
        choices = [likely, likely, CONSTANT, ANY] if may_grow(aval) else [CONSTANT]
        degrees.append(drawn.setdefault(atom, choices[rng.integers(len(choices))]))
    return degrees


def grown(array, degree, scale):
    return array if degree in (ANY, CONSTANT) else (array * scale**degree).astype(array.dtype)


@pytest.mark.parametrize("row", as_params(GROWING))
def test_results_grow_as_is_claimed(row):
    eqn = equation_of(row)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        degrees = degrees_drawn(rng, eqn)
        claimed = degrees_of(eqn, degrees)
        assert len(claimed) == len(eqn.outputs)
        if all(degree in (ANY, CONSTANT) for degree in degrees) or all(degree is None for degree in claimed):
            continue
        values = {}
        operands = [
            np.asarray(atom.value) if isinstance(atom, Literal) else values.setdefault(atom, draw(rng, aval, degree))
            for atom, aval, degree in zip(eqn.inputs, eqn.in_avals, degrees, strict=True)
        ]
        scale = float(rng.choice([0.5, 2, 4]))  # Powers of two, by which nothing is rounded.
        before = bind(eqn, operands)
        after = bind(eqn, [grown(array, degree, scale) for array, degree in zip(operands, degrees, strict=True)])
        for degree, first, second in zip(claimed, before, after, strict=True):
            told = (seed, degrees, claimed, scale)
            if degree == ANY:
                assert not np.any(first) and not np.any(second), told
            elif degree is not None and abs(degree) < 20 and np.isfinite(first).all():
                tolerance = 0.02 * scale if first.dtype.itemsize == 2 else 1e-5
                wide = np.promote_types(first.dtype, np.float32)
                expected = grown(first.astype(wide), degree, scale)
                np.testing.assert_allclose(second.astype(wide), expected, tolerance, tolerance, err_msg=str(told))


# What a primitive makes of floating-point operands of degree 1, all others being constant, in the first row in which it
# is known; in no row of those not listed it is.
SAME = (
    *("abs", "add", "add_any", "clamp", "complex", "conj", "copy", "imag", "layout_constraint", "max", "min", "name"),
    *("neg", "optimization_barrier", "real", "reduce_precision", "rem", "reshard", "sharding_constraint", "sub"),
    *("device_put", "select_n", "fft", "sort", "top_k", "approx_top_k"),
    *("cummax", "cummin", "cumsum", "reduce_max", "reduce_min", "reduce_sum"),
    *("reduce_window_max", "reduce_window_min", "reduce_window_sum"),
    *("broadcast_in_dim", "concatenate", "reshape", "rev", "slice", "split", "squeeze", "stack", "tile", "transpose"),
    *("unstack", "pad", "dynamic_slice", "dynamic_update_slice", "gather"),
    *("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-sub"),
)
TOGETHER = {
    **dict.fromkeys(SAME, 1.0),
    **dict.fromkeys(("atan2", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "sign", "div"), 0.0),
    "convert_element_type": 0.0,  # to bool
    **dict.fromkeys(("mul", "square", "dot_general", "conv_general_dilated"), 2.0),
    "cbrt": 1 / 3,
    "integer_pow": -2.0,
    "pow": -1.0,
    "rsqrt": -0.5,
    "sqrt": 0.5,
}


def test_degrees_are_claimed_of_the_primitives_listed():
    found = {}
    for row in GROWING:
        if found.get(row.primitive) is not None:
            continue
        eqn = equation_of(row)
        operands = [
            CONSTANT if isinstance(atom, Literal) and np.any(atom.value) else 1.0 if may_grow(aval) else CONSTANT
            for atom, aval in zip(eqn.inputs, eqn.in_avals, strict=True)
        ]
        found[row.primitive] = degrees_of(eqn, operands)[0]
        assert set(degrees_of(eqn, [CONSTANT] * len(operands))) == {CONSTANT}
    assert {primitive: degree for primitive, degree in found.items() if degree is not None} == TOGETHER


@pytest.mark.parametrize(
    ("fn", "degrees", "expected"),
    [
        (lambda x, y: jax.nn.relu(x * y), (1, 0), 1),
        (lambda x, y: x * y + y, (1, 0), None),
        (lambda x, y: x * y + y, (0, 1), 1),
        (lambda x: jnp.where(x > 0, x, 0.1 * x), (1,), 1),
        (lambda x: jnp.where(x > 1, x, 0.1 * x), (1,), None),
        (lambda x: jax.nn.relu6(x), (1,), None),
        (lambda x: jnp.tanh(x), (1,), None),
        (lambda x: jnp.tanh(x), (0,), 0),
        (lambda x: x / jnp.linalg.norm(x), (1,), 0),
        (lambda x: x * jax.lax.rsqrt(jnp.sum(x**2) + 1e-5), (1,), None),
        (lambda x: x * jnp.mean(x**2) ** -0.5, (3,), 0),
        (lambda x, y: jax.nn.softmax(x) @ y, (0, 1), 1),
        (lambda x, y: jax.nn.softmax(x) @ y, (1, 1), None),
        (lambda x: jnp.sqrt(jnp.square(x)), (0.5,), 0.5),
        (lambda x: x + jnp.zeros(3), (2,), 2),
        (lambda x: x + jax.lax.stop_gradient(x), (1,), None),
        (lambda x: jnp.sign(x) * jnp.round(x), (1,), None),
        (lambda x, y: x ** jnp.sum(y), (1, 0), None),
        (lambda x: jax.lax.scan(lambda c, v: (c + v, c), x[0], x)[0], (1,), None),
    ],
)
def test_degrees_flow_through_programs(fn, degrees, expected):
    program = inline(trace(fn, *(jax.ShapeDtypeStruct((3,), jnp.float32) for _ in degrees)))
    known = {var: float(degree) for var, degree in zip(program.inputs, degrees, strict=True)}
    flow = DegreeFlow(propagate_zeros(program), known).through(enumerate(program.equations))
    (found,) = map(flow.read, program.outputs)
    assert found == expected


def test_zeros_have_any_degree():
    assert common([ANY, 2.0, 2.0]) == 2.0 and common([ANY, ANY]) == ANY and common([1.0, 2.0]) is None
    assert common([ANY, None]) is None and of_product([ANY, None]) == ANY and of_product([2.0, None]) is None
    assert of_product([2.0, -0.5]) == 1.5 and of_power(None, 0) is None
    assert [of_power(ANY, exponent) for exponent in (2, 0, -1)] == [ANY, CONSTANT, None]
