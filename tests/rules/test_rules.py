"""Every rule against numbers: what it claims to be zero, what it says is needed, and what it computes when sliced.

What is claimed to be zero is compared in 32-bit mode, operator by operator and compiled; what needs a narrow tolerance,
in 64 bits.
"""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.program.jaxpr import Literal, inline, trace
from jasgnas.program.masks import (
    NOTHING,
    Zeros,
    coarsened,
    everything,
    normalize,
    stored_shape,
    union,
    unknown,
    without,
    zero,
    zero_at,
)
from jasgnas.program.sliced import Sliced
from jasgnas.rules import needs_of, rule_for, zeros_of
from jasgnas.rules.base import _RULES
from jasgnas.rules.flow import of_literal
from tests.networks import optimized
from tests.rules.rule_rows import NEWER, NUMBERS, ROWS


def executes(row):
    """The functions that compute a row's primitive on slices."""
    rule = type(rule_for(row.primitive))
    return rule.execute, getattr(rule, "compute", None), getattr(rule, "sources", None)


# Random cases of a row: what is claimed of them, needed for them, and computed on slices of them. Hundreds of rows are
# computed on slices by one and the same function, whose rows need fewer cases each.
NUM_CLAIMS, NUM_NEEDS, NUM_SLICES, NUM_SHARED_SLICES = 20, 8, 4, 2
SHARED = {function for function, rows in Counter(executes(row) for row in ROWS).items() if rows > 100}


def equation_of(row):
    program = inline(trace(row.fn, *row.args))
    return next(eqn for eqn in program.equations if eqn.primitive == row.primitive)


def test_every_registered_primitive_has_a_row():
    # What a loop is unfolded to is no primitive of JAX; tests/space/test_recurrent.py removes what is found by it.
    unfolded = {"loop_row", "loop_start", "loop_state", "loop_rows", "loop_end"}
    assert set(_RULES) == {row.primitive for row in ROWS} | set(NEWER) | unfolded


def test_no_two_rows_are_of_one_meaning():
    keys = [(row.primitive, row.meaning) for row in [*ROWS, *NUMBERS]]
    assert len(set(keys)) == len(keys)


# Random cases.


def draw_zeros(rng, atom, aval, in_bounds):
    """Says something about an operand."""
    ndim = len(aval.shape)
    if isinstance(atom, Literal):
        return of_literal(atom)
    kind = rng.choice(["unknown", "zero", "constant", "axes"], p=[0.2, 0.1, 0.2, 0.5])
    if kind == "zero":
        return zero(ndim)
    if kind == "constant":
        values = [0, 1] if in_bounds else constants(aval.dtype)
        return Zeros((None,) * ndim, np.asarray(values[rng.integers(len(values))]).astype(aval.dtype)[()])
    if kind == "axes":
        return zero_at(draw_axes(rng, aval.shape))
    return unknown(ndim)


def constants(dtype):
    """Numbers at which something changes."""
    if dtype == np.bool_:
        return [False, True]
    if jnp.issubdtype(dtype, jnp.integer):
        least, most = jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
        return [value for value in (least, -1, 0, 1, 2, 5, 256, most) if least <= value <= most]
    info = jnp.finfo(dtype)
    subnormal = 3 * float(info.smallest_subnormal)
    return [-np.inf, -1, -subnormal, 0, subnormal, 0.1, 0.5, 1, 2, 256, 1e10, float(info.max), np.inf, np.nan]


def draw_axes(rng, shape):
    axes = [rng.random(size) < rng.choice([0.3, 0.7]) if rng.random() < 0.5 else None for size in shape]
    if len(shape) > 1 and rng.random() < 0.3:
        depth = rng.integers(2, len(shape) + 1)
        axes[:depth] = [rng.random(shape[:depth]) < rng.choice([0.3, 0.7]), *[None] * (depth - 1)]
    return tuple(axes)


def draw_array(rng, atom, aval, known, in_bounds=False, wild=False):
    """An array of which what is known holds; with numbers of very different sizes if it is `wild`."""
    if isinstance(atom, Literal):
        return np.asarray(atom.value)
    shape, dtype = aval.shape, aval.dtype
    if known.constant is not None and known.constant != 0:
        return np.full(shape, known.constant, dtype)
    if dtype == np.bool_:
        array = rng.random(shape) < 0.5
    elif jnp.issubdtype(dtype, jnp.integer):
        least = max(int(jnp.iinfo(dtype).min), -3)
        array = rng.integers(0, 2, shape) if in_bounds else rng.integers(least, 9, shape)
    else:
        array = rng.normal(size=shape) * 2
        if wild:
            array = np.where(rng.random(shape) < 0.2, rng.choice([-1, 256, 1e10], shape), array)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            array = array + 1j * rng.normal(size=shape)
    array = np.array(array).astype(dtype)
    nought = np.zeros(shape, dtype)
    if wild and jnp.issubdtype(dtype, jnp.floating):
        nought = np.where(rng.random(shape) < 0.5, nought, -nought)
    return np.where(known.everywhere | marked(known.axes, shape, any_axis=True), nought, array)


def marked(axes, shape, any_axis=False):
    """The entries of an array that are marked on every axis, or on any."""
    found = np.full(shape, not any_axis)
    for axis, mask in enumerate(axes):
        if mask is not None:
            spread = mask.reshape(*mask.shape, *(1,) * (len(shape) - axis - mask.ndim))
            found = found | spread if any_axis else found & spread
    return found


def needed(need, shape):
    return np.zeros(shape, bool) if need == NOTHING else marked(need, shape)


def draw_need(rng, shape):
    return normalize(draw_axes(rng, shape)) if rng.random() < 0.9 else NOTHING


def case(row, eqn, seed, **options):
    """Random operands and what is known of them."""
    rng = np.random.default_rng(seed)
    known = [draw_zeros(rng, atom, aval, row.in_bounds) for atom, aval in zip(eqn.inputs, eqn.in_avals, strict=True)]
    # An operand that occurs twice is one operand.
    first = {atom: position for position, atom in reversed(list(enumerate(eqn.inputs))) if isinstance(atom, int)}
    known = [known[first.get(atom, i)] if isinstance(atom, int) else known[i] for i, atom in enumerate(eqn.inputs)]
    operands = []
    for i, (atom, aval) in enumerate(zip(eqn.inputs, eqn.in_avals, strict=True)):
        repeated = isinstance(atom, int) and first[atom] < i
        drawn = operands[first[atom]] if repeated else draw_array(rng, atom, aval, known[i], row.in_bounds, **options)
        operands.append(drawn)
    return rng, known, operands


def bind(eqn, operands):
    return [np.asarray(result) for result in eqn.bind(*map(jnp.asarray, operands))]


def compiled(eqn):
    """An equation as a compiled function of all its operands, of which the literal ones stay constants."""

    def run(*operands):
        values = iter(operands)
        return eqn.bind(*(next(values) if isinstance(atom, int) else atom.value for atom in eqn.inputs))

    run = jax.jit(run)
    return lambda operands: [
        np.asarray(result)
        for result in run(*(value for value, atom in zip(operands, eqn.inputs, strict=True) if isinstance(atom, int)))
    ]


def draw_needs(eqn, rng, known):
    """Random needs of the results, without what is zero, and what the rule makes of them."""
    claimed = zeros_of(eqn, known)
    results = [without(draw_need(rng, aval.shape), value) for aval, value in zip(eqn.out_avals, claimed, strict=True)]
    if all(need == NOTHING for need in results):
        return results, None
    operands = needs_of(eqn, known, results)
    return results, [without(need, value) for need, value in zip(operands, known, strict=True)]


def name_of(row):
    return f"{row.primitive}: {row.meaning}"


def as_params(rows):
    """Rows as parameters of a test, of which the first one of each primitive is in the core."""
    first = {row.primitive: row for row in reversed(rows)}
    return [
        pytest.param(row, id=name_of(row), marks=[] if row is first[row.primitive] else pytest.mark.exhaustive)
        for row in rows
    ]


@pytest.fixture(params=as_params(ROWS))
def row(request):
    return request.param


@pytest.fixture
def as_users_compile():
    with optimized():
        yield


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("row", as_params([*ROWS, *NUMBERS]))
def test_what_is_claimed_to_be_zero_is_zero(row):
    equation = equation_of(row)
    # Only a constant operand makes a difference between the two.
    runs = [compiled(equation)]
    if any(isinstance(atom, Literal) for atom in equation.inputs):
        runs.append(partial(bind, equation))
    for seed in range(NUM_CLAIMS):
        _, known, operands = case(row, equation, seed, wild=True)
        claimed = zeros_of(equation, known)
        for value, aval in zip(claimed, equation.out_avals, strict=True):
            assert len(value.axes) == len(aval.shape)
            for axis, mask in enumerate(value.axes):
                assert mask is None or mask.shape == aval.shape[axis : axis + mask.ndim]
        if not any(value.anywhere or value.constant is not None for value in claimed):
            continue
        for results in (run(operands) for run in runs):
            for value, result in zip(claimed, results, strict=True):
                told = (seed, known, operands, value, result)
                assert not np.any(result[marked(value.axes, result.shape, any_axis=True)]), told
                if value.constant is not None:
                    assert equal(result, value.constant), told


def equal(result, constant):
    """Whether all entries are a number, where one too small to be told from zero is any such number."""
    if np.isnan(constant):
        return np.all(np.isnan(result))
    if jnp.issubdtype(result.dtype, jnp.floating) and 0 < abs(constant) < jnp.finfo(result.dtype).tiny:
        return np.all(np.abs(result) < jnp.finfo(result.dtype).tiny)
    return np.all(result == constant)


@pytest.mark.usefixtures("double")
def test_what_is_not_needed_does_not_matter(row):
    equation = equation_of(row)
    for seed in range(NUM_NEEDS):
        rng, known, operands = case(row, equation, seed)
        wanted, needs = draw_needs(equation, rng, known)
        if needs is None:
            continue
        changed = []
        for atom, aval, value, need, operand in zip(
            equation.inputs, equation.in_avals, known, needs, operands, strict=True
        ):
            free = ~needed(need, aval.shape) & ~marked(value.axes, aval.shape, any_axis=True)
            free &= value.constant is None and not isinstance(atom, Literal)
            other = draw_array(rng, atom, aval, unknown(len(aval.shape)), row.in_bounds)
            changed.append(np.where(free, other, operand))
        for need, before, after in zip(wanted, bind(equation, operands), bind(equation, changed), strict=True):
            entries = needed(need, before.shape)
            assert_close(after[entries], before[entries])


@pytest.mark.usefixtures("double")
def test_sliced_evaluation_agrees(row):
    equation = equation_of(row)
    cases = []
    for seed in range(NUM_SHARED_SLICES if executes(row) in SHARED else NUM_SLICES):
        rng, known, operands = case(row, equation, seed)
        wanted, needs = draw_needs(equation, rng, known)
        if needs is None:
            continue
        layouts = [larger(rng, need, aval) for need, aval in zip(wanted, equation.out_avals, strict=True)]
        stored = [
            store(operand, need if isinstance(atom, int) else everything(operand.ndim), aval, rng, value)
            for atom, operand, need, aval, value in zip(
                equation.inputs, operands, needs, equation.in_avals, known, strict=True
            )
        ]
        cases.append((operands, wanted, stored, layouts))
    evaluated = evaluate(equation, [(stored, layouts) for _, _, stored, layouts in cases])
    for (operands, wanted, _, layouts), results in zip(cases, evaluated, strict=True):
        for need, layout, result, whole in zip(wanted, layouts, results, bind(equation, operands), strict=True):
            if layout == NOTHING or need == NOTHING:
                continue
            entries = needed(need, whole.shape)
            assert result.array.dtype == whole.dtype
            assert_close(restored(result)[entries], whole[entries])


def evaluate(eqn, cases):
    """Evaluates an equation on each case's sliced operands, compiled as one: one by one they take longer to compile."""
    arrays = [
        {i: value.array for i, value in enumerate(stored) if isinstance(eqn.inputs[i], int)} for stored, _ in cases
    ]

    def run(arrays, stored, layouts):
        operands = [value._replace(array=arrays.get(i, value.array)) for i, value in enumerate(stored)]
        operands = [value.to(coarsened(value.layout)) for value in operands]
        results = rule_for(eqn.primitive).execute(eqn, operands, list(map(coarsened, layouts)))
        return [value.to(layout).array for value, layout in zip(results, layouts, strict=True)]

    run_all = jax.jit(lambda arrays: [run(values, *case) for values, case in zip(arrays, cases, strict=True)])
    return [
        map(Sliced, results, layouts, eqn.out_avals)
        for results, (_, layouts) in zip(run_all(arrays), cases, strict=True)
    ]


def assert_close(found, expected):
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        np.testing.assert_array_equal(found, expected)
        return
    tolerance = float(jnp.finfo(expected.dtype).eps) ** 0.75
    wide = np.promote_types(expected.dtype, np.float32)
    np.testing.assert_allclose(found.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance)


def larger(rng, need, aval):
    """A layout that stores at least what is needed."""
    return union(need, draw_need(rng, aval.shape)) if rng.random() < 0.5 else need


def store(operand, need, aval, rng, known):
    """Stores at least the needed entries. Those known to be zero may be stored or not."""
    layout = larger(rng, need, aval)
    if layout == NOTHING:
        return Sliced(None, NOTHING, aval)
    entries = operand[needed(layout, aval.shape)].reshape(stored_shape(aval.shape, layout))
    return Sliced(jnp.asarray(entries), layout, aval)


def restored(result):
    """The full array of a sliced one."""
    full = np.zeros(result.aval.shape, result.aval.dtype)
    if result.layout != NOTHING:
        full[needed(result.layout, full.shape)] = np.asarray(result.array).reshape(-1)
    return full
