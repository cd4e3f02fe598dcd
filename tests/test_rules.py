"""Every rule against numbers: what it claims to be zero, what it says is needed, and what it computes when sliced."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jasgnas.analysis import of_literal
from jasgnas.jaxpr import Literal, inline, trace
from jasgnas.masks import (
    NOTHING,
    Sliced,
    Zeros,
    coarsened,
    everything,
    normalize,
    stored_shape,
    union,
    unknown,
    without,
    zero,
    zeros,
)
from jasgnas.rules import needs_of, rule_for, zeros_of
from jasgnas.rules.base import _RULES

F = np.float64
A, B = np.zeros((3, 4), F), np.zeros((2, 3, 4), F)
INTS, BOOLS = np.zeros((3, 4), np.int32), np.zeros((3, 4), bool)


def conv(lhs=(2, 5, 4), rhs=(3, 4, 6), numbers=("NWC", "WIO", "NWC"), **options):
    settings = {"window_strides": (1,) * (len(lhs) - 2), "padding": "SAME"} | options
    return (
        "conv_general_dilated",
        lambda x, k: lax.conv_general_dilated(x, k, dimension_numbers=numbers, **settings),
        (np.zeros(lhs, F), np.zeros(rhs, F)),
    )


def dot(spec, *shapes):
    """A product whose operands XLA need not transpose, so that it is one `dot_general`."""
    return "dot_general", lambda a, b: jnp.einsum(spec, a, b), tuple(np.zeros(shape, F) for shape in shapes)


def dot_general(numbers, *shapes):
    return "dot_general", lambda a, b: lax.dot_general(a, b, numbers), tuple(np.zeros(shape, F) for shape in shapes)


def reshape(old, new):
    return "reshape", lambda x: lax.reshape(x, new), (np.zeros(old, F),)


def pad(*config, value=0.0):
    return "pad", lambda x: lax.pad(x, F(value), config), (A,)


def window(name, reducer, init, **options):
    settings = {"window_dimensions": (1, 2, 1), "window_strides": (1, 1, 1), "padding": "VALID"} | options
    return name, lambda x: lax.reduce_window(x, F(init), reducer, **settings), (np.zeros((2, 5, 3), F),)


def on_mesh(name, fn, axis_type):
    """A wish about sharding, over a mesh of one device."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:1])
    return name, lambda x: fn(x, NamedSharding(mesh, PartitionSpec())), (A,)


def unary(*names, x=A):
    return [(name, getattr(lax, name), (x,)) for name in names]


def binary(*names, x=A, y=A):
    return [(name, getattr(lax, name), (x, y)) for name in names]


def reduction(*names, x=B):
    cases = itertools.product(names, [(0,), (1, 2), (0, 1, 2)])
    return [(name, lambda x, name=name, axes=axes: getattr(lax, name)(x, axes), (x,)) for name, axes in cases]


def cumulative(*names):
    cases = itertools.product(names, [(0, False), (2, True)])
    return [
        (name, lambda x, name=name, options=options: getattr(lax, name)(x, *options), (B,)) for name, options in cases
    ]


ROWS = [
    # Elementwise.
    *unary("acos", "acosh", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "cos"),
    *unary("cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "is_finite", "lgamma", "log"),
    *unary("log1p", "logistic", "neg", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "abs"),
    *unary("clz", "population_count", x=INTS),
    ("not", lax.bitwise_not, (INTS,)),
    ("not", lax.bitwise_not, (BOOLS,)),
    ("imag", lax.imag, (A.astype(np.complex128),)),
    ("real", lax.real, (A.astype(np.complex128),)),
    ("conj", lambda x: lax.conj_p.bind(x, input_dtype=np.dtype(np.complex128)), (A.astype(np.complex128),)),
    ("complex", lax.complex, (A, A)),
    ("copy", lambda x: lax.copy_p.bind(x), (A,)),
    ("name", lambda x: checkpoint_name(x, "here"), (A,)),
    ("reduce_precision", lambda x: lax.reduce_precision(x, 8, 10), (A,)),
    ("stop_gradient", lax.stop_gradient, (A,)),
    ("device_put", jax.device_put, (A,)),
    *[("bitcast_convert_type", lambda x, t=t: lax.bitcast_convert_type(x, t), (A,)) for t in (np.int64, np.int32)],
    ("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, F), (np.zeros((3, 4, 2), np.int32),)),
    *binary("atan2", "igamma", "igammac", "nextafter", "polygamma", "zeta", "eq", "ge", "gt", "le", "lt", "ne"),
    *binary("add", "sub", "mul", "div", "rem", "max", "min", "pow"),
    *[(name, getattr(lax, name), (A[:, :1], A)) for name in ("add", "sub", "mul", "div", "max", "rem", "lt")],
    *[(name, getattr(lax, name), (A, A[:1])) for name in ("add", "sub", "mul", "div", "min", "pow", "eq")],
    *binary("shift_left", "shift_right_arithmetic", "shift_right_logical", x=INTS, y=INTS),
    *[(name, getattr(lax, f"bitwise_{name}"), (x, x)) for name in ("and", "or", "xor") for x in (INTS, BOOLS)],
    ("regularized_incomplete_beta", lax.betainc, (A, A, A)),
    ("add_any", jax.grad(lambda x: jnp.sum(jnp.sin(x) + jnp.cos(x))), (A,)),
    *[("max", lambda x, c=c: lax.max(x, F(c)), (A,)) for c in (-1, 0, 1)],
    *[("min", lambda x, c=c: lax.min(F(c), x), (A,)) for c in (-1, 0, 1)],
    *[("mul", lambda x, c=c: lax.mul(x, F(c)), (A,)) for c in (0, 2)],
    *[("add", lambda x, c=c: lax.add(x, F(c)), (A,)) for c in (0, 2)],
    *[("sub", lambda x, c=c: lax.sub(F(c), x), (A,)) for c in (0, 2)],
    *[("div", lambda x, c=c: lax.div(x, F(c)), (A,)) for c in (0, 2)],
    *[("pow", lambda x, c=c: lax.pow(x, F(c)), (A,)) for c in (-1, 0, 0.5, 2)],
    *[("pow", lambda x, c=c: lax.pow(F(c), x), (A,)) for c in (0, 2)],
    *[("integer_pow", lambda x, y=y: lax.integer_pow(x, y), (A,)) for y in (-2, 3, 4)],
    *[("clamp", lambda x, a=a, b=b: lax.clamp(F(a), x, F(b)), (A,)) for a, b in ((-1, 1), (0, 6), (1, 2), (-2, -1))],
    ("clamp", lax.clamp, (A, A, A)),
    ("select_n", lambda w, a, b: lax.select_n(w, a, b), (BOOLS, A, A)),
    ("select_n", lambda w, a, b, c: lax.select_n(w, a, b, c), (INTS, A, A, A)),
    ("select_n", lambda w, a, b: lax.select_n(w, a, b), (np.zeros((), bool), A, A)),
    *[("convert_element_type", lambda x, t=t: lax.convert_element_type(x, t), (A,)) for t in (np.int32, bool)],
    ("convert_element_type", lambda x: lax.convert_element_type(x, np.float32), (INTS,)),
    ("optimization_barrier", lambda *x: lax.optimization_barrier(x), (A, B)),
    ("layout_constraint", lambda x: with_layout_constraint(x, Layout((1, 0))), (A,)),
    on_mesh("sharding_constraint", lax.with_sharding_constraint, AxisType.Auto),
    on_mesh("reshard", jax.sharding.reshard, AxisType.Explicit),
    ("scan", lambda x, xs: lax.scan(lambda c, x: (c + x, c * x), x, xs), (A[0], A)),
    # Reductions and windows.
    *reduction("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"),
    *reduction("reduce_and", "reduce_or", "reduce_xor", x=np.zeros((2, 3, 4), np.int32)),
    *[("argmax", lambda x, a=a: lax.argmax(x, a, np.int32), (B,)) for a in (0, 2)],
    *[("argmin", lambda x, a=a: lax.argmin(x, a, np.int32), (B,)) for a in (0, 2)],
    window("reduce_window_max", lax.max, -np.inf),
    window("reduce_window_min", lax.min, np.inf),
    window("reduce_window_sum", lax.add, 0.0),
    window("reduce_window_max", lax.max, -np.inf, window_strides=(1, 2, 1), padding="SAME"),
    window("reduce_window_sum", lax.add, 0.0, window_dimensions=(1, 1, 2), base_dilation=(1, 2, 1)),
    window("reduce_window_sum", lax.add, 0.0, window_strides=(2, 1, 1), window_dilation=(1, 2, 1)),
    window("reduce_window_sum", lax.add, 0.0, padding=((0, 0), (1, 2), (0, 1))),
    ("reduce_window", lambda x: lax.reduce_window(x, F(1), lambda a, b: a * b + 1, (1, 2, 1), (1, 1, 1), "SAME"), (B,)),
    *cumulative("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
    *[("sort", lambda x, d=d: lax.sort(x, d), (B,)) for d in (0, 2)],
    ("sort", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), (A, A)),
    *[("top_k", lambda x, a=a: lax.top_k(x, 2, axis=a), (B,)) for a in (0, 2)],
    ("approx_top_k", lambda x: lax.approx_min_k(x, 2), (B,)),
    *[("fft", lambda x, a=a: jnp.fft.rfft(x, axis=a), (B,)) for a in (1, 2)],
    ("fft", lambda x: jnp.fft.ifft2(x), (B.astype(np.complex128),)),
    # Contractions.
    dot("ij,jk->ik", (3, 4), (4, 2)),
    dot_general((((1,), (0,)), ((), ())), (3, 4), (4, 2)),
    dot_general((((2,), (1,)), ((0,), (0,))), (2, 3, 4), (2, 4, 3)),
    dot_general((((1, 3), (2, 0)), ((0,), (1,))), (2, 3, 2, 4), (4, 2, 3, 2)),
    dot_general((((), ()), ((), ())), (2,), (3,)),
    dot_general((((2,), (2,)), ((0, 1), (1, 0))), (2, 3, 4), (3, 2, 4)),
    dot_general((((0, 1), (0, 1)), ((), ())), (3, 4), (3, 4)),
    conv(),
    conv(window_strides=(2,), padding="VALID"),
    conv(rhs_dilation=(2,)),
    conv(lhs_dilation=(2,), padding=((1, 2),)),
    conv(rhs=(3, 2, 6), feature_group_count=2),
    conv(rhs=(3, 1, 4), feature_group_count=4),
    conv(rhs=(3, 1, 8), feature_group_count=4),
    conv(rhs=(3, 2, 4), feature_group_count=2, window_strides=(2,), rhs_dilation=(2,)),
    conv(rhs=(3, 4, 6), batch_group_count=2),
    conv(lhs=(2, 4, 5), rhs=(6, 4, 3), numbers=("NCW", "OIW", "NCW")),
    conv(lhs=(4, 2, 5), rhs=(6, 2, 3), numbers=("CNW", "OIW", "NWC"), feature_group_count=2),
    conv(lhs=(2, 4, 4, 3), rhs=(2, 3, 3, 4), numbers=("NHWC", "HWIO", "NHWC"), window_strides=(2, 1)),
    conv(lhs=(1, 2, 3, 2, 2), rhs=(1, 2, 2, 2, 3), numbers=("NDHWC", "DHWIO", "NDHWC")),
    # Shapes.
    *[("broadcast_in_dim", lambda x, s=s, d=d: lax.broadcast_in_dim(x, s, d), (np.zeros(x, F),))
      for x, s, d in (((3,), (2, 3), (1,)), ((3, 1), (3, 4), (0, 1)), ((), (2, 3), ()), ((2, 1), (2, 3, 1), (0, 2)))],
    *[("transpose", lambda x, p=p: lax.transpose(x, p), (B,)) for p in ((2, 0, 1), (1, 0, 2))],
    *[("squeeze", lambda x, a=a: lax.squeeze(x, a), (np.zeros((1, 3, 1, 2), F),)) for a in ((0, 2), (0,), (2,))],
    *[("rev", lambda x, d=d: lax.rev(x, d), (B,)) for d in ((1,), (0, 2))],
    reshape((3, 4), (12,)),
    reshape((12,), (3, 4)),
    reshape((2, 3, 4), (6, 4)),
    reshape((2, 3, 4), (2, 12)),
    reshape((2, 3, 4), (4, 6)),
    reshape((2, 12), (2, 2, 3, 2)),
    reshape((1, 3, 1, 4), (3, 4, 1)),
    reshape((3, 4), (1, 3, 2, 1, 2)),
    reshape((2, 3, 4), (3, 8)),
    reshape((1, 1), ()),
    reshape((), (1, 1)),
    reshape((2, 2, 3), (4, 3, 1)),
    *[("slice", lambda x, a=a: lax.slice(x, *a), (B,))
      for a in (((0, 1, 0), (2, 3, 4)), ((0, 0, 1), (1, 3, 4), (1, 2, 2)), ((0, 0, 0), (2, 3, 4), (1, 1, 3)),
                ((1, 2, 0), (2, 3, 4)), ((0, 1, 2), (1, 2, 3)))],
    *[("split", lambda x, s=s, a=a: lax.split(x, s, a), (B,)) for s, a in (((1, 3), 2), ((1, 1), 0), ((2, 1), 1))],
    *[("concatenate", lambda *x, a=a: lax.concatenate(x, a), (B, B, B)) for a in (0, 1, 2)],
    ("concatenate", lambda x, y: lax.concatenate((x, y, x), 1), (A, np.zeros((3, 1), F))),
    *[("stack", lambda *x, a=a: lax.stack(x, a), (A, A, A)) for a in (0, 1, 2)],
    *[("unstack", lambda x, a=a: lax.unstack(x, axis=a), (B,)) for a in (0, 1, 2)],
    *[("tile", lambda x, r=r: lax.tile(x, r), (B,)) for r in ((1, 2, 1), (3, 1, 2))],
    pad((0, 0, 0), (1, 2, 0)),
    pad((1, 0, 1), (0, 0, 0)),
    pad((0, 0, 2), (-1, 1, 0)),
    pad((0, -1, 0), (-1, -1, 1)),
    pad((0, 0, 0), (1, 1, 0), value=3.0),
    pad((-1, 0, 0), (0, 0, 0), value=2.0),
    ("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i, i, i), (1, 3, 2)), (B, np.int32(0))),
    ("dynamic_slice", lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, 2), (B, np.int32(0))),
    ("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i, i)), (B, B[:, :1], np.int32(0))),
    ("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i, i)), (B, B[:1, :, :2], np.int32(0))),
    ("gather", lambda x, i: jnp.take(x, i, axis=0, mode="clip"), (A, np.zeros((2, 2), np.int32))),
    ("gather", lambda x, i: jnp.take(x, i, axis=1), (B, np.zeros(3, np.int32))),
    ("gather", lambda x, i: x.at[:, i].get(mode="promise_in_bounds"), (B, np.zeros(2, np.int32))),
    ("gather", lambda x, i: x.at[i, :, i].get(mode="clip"), (B, np.zeros(2, np.int32))),
    ("gather", lambda x, i: jnp.take_along_axis(x, i, 2, mode="clip"), (B, np.zeros((2, 3, 2), np.int32))),
    *[(f"scatter-{name}", lambda x, i, y, name=name: getattr(x.at[i], name)(y), (B, np.zeros(2, np.int32), B))
      for name in ("add", "max", "min", "mul")],
    ("scatter-sub", lambda x, i, y: x.at[:, i].subtract(y), (B, np.zeros(3, np.int32), B)),
    ("scatter", lambda x, i, y: x.at[:, i].set(y, mode="clip"), (B, np.int32(0), B[:, 0])),
    ("scatter", lambda x, i, y: x.at[i, :, i].set(y), (B, np.zeros(2, np.int32), B[..., 0])),
    ("scatter-add", lambda x, i, y: x.at[:, i, ::2].add(y), (B, np.int32(0), B[:, 0, :2])),
    ("scatter-add", jax.vmap(lambda x, i, y: x.at[i].add(y)), (B, np.zeros((2, 2), np.int32), B[:, :2])),
    ("gather", jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, i), (2, 4))), (B, np.zeros(2, np.int32))),
]  # fmt: skip


# Primitives that the oldest supported jax does not have yet.
NEWER = ("log2", "one_minus_square", "polynomial")
ROWS += [row for name in NEWER[:2] if hasattr(lax, name) for row in unary(name)]
ROWS += [("polynomial", lambda x: lax.polynomial(x, (x, x)), (A,))] if hasattr(lax, "polynomial") else []


def equation_of(name, fn, args):
    with jax.enable_x64(True):
        program = inline(trace(fn, *args))
    return next(eqn for eqn in program.equations if eqn.primitive == name)


def test_every_registered_primitive_has_a_row():
    assert set(_RULES) == {name for name, *_ in ROWS} | set(NEWER)


# Random cases.


def draw_zeros(rng, atom, aval):
    """Says something about an operand."""
    ndim = len(aval.shape)
    if isinstance(atom, Literal):
        return of_literal(atom)
    kind = rng.choice(["unknown", "zero", "constant", "axes"], p=[0.2, 0.1, 0.1, 0.6])
    if kind == "zero":
        return zero(ndim)
    if kind == "constant":
        return Zeros((None,) * ndim, np.asarray(rng.choice([0, 1, 2])).astype(aval.dtype)[()])
    if kind == "axes":
        return zeros(draw_axes(rng, aval.shape))
    return unknown(ndim)


def draw_axes(rng, shape):
    axes = [rng.random(size) < rng.choice([0.3, 0.7]) if rng.random() < 0.5 else None for size in shape]
    if len(shape) > 1 and rng.random() < 0.3:
        depth = rng.integers(2, len(shape) + 1)
        axes[:depth] = [rng.random(shape[:depth]) < rng.choice([0.3, 0.7]), *[None] * (depth - 1)]
    return tuple(axes)


def draw_array(rng, atom, aval, known):
    """An array of which what is known holds."""
    if isinstance(atom, Literal):
        return np.asarray(atom.value)
    if known.constant is not None:
        return np.full(aval.shape, known.constant, aval.dtype)
    if np.issubdtype(aval.dtype, np.integer):
        array = rng.integers(0, 2, aval.shape)
    elif aval.dtype == bool:
        array = rng.random(aval.shape) < 0.5
    else:
        array = rng.normal(size=aval.shape) * 2
        if np.issubdtype(aval.dtype, np.complexfloating):
            array = array + 1j * rng.normal(size=aval.shape)
    array = np.array(array, aval.dtype)
    array[marked(known.axes, aval.shape, any_axis=True)] = 0
    return array


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


def bind(eqn, operands):
    with jax.enable_x64(True):
        return [np.asarray(result) for result in eqn.bind(*map(jnp.asarray, operands))]


def case(eqn, seed):
    """Random operands, what is known of them, and the results."""
    rng = np.random.default_rng(seed)
    known = [draw_zeros(rng, atom, aval) for atom, aval in zip(eqn.inputs, eqn.in_avals, strict=True)]
    # An operand that occurs twice is one operand.
    first = {atom: position for position, atom in reversed(list(enumerate(eqn.inputs))) if isinstance(atom, int)}
    known = [known[first.get(atom, i)] if isinstance(atom, int) else known[i] for i, atom in enumerate(eqn.inputs)]
    operands = []
    for i, (atom, aval) in enumerate(zip(eqn.inputs, eqn.in_avals, strict=True)):
        repeated = isinstance(atom, int) and first[atom] < i
        operands.append(operands[first[atom]] if repeated else draw_array(rng, atom, aval, known[i]))
    return rng, known, operands, bind(eqn, operands)


def draw_needs(eqn, rng, known):
    """Random needs of the results, without what is zero, and what the rule makes of them."""
    claimed = zeros_of(eqn, known)
    results = [without(draw_need(rng, aval.shape), value) for aval, value in zip(eqn.out_avals, claimed, strict=True)]
    if all(need == NOTHING for need in results):
        return results, None
    operands = needs_of(eqn, known, results)
    return results, [without(need, value) for need, value in zip(operands, known, strict=True)]


IDS = [f"{name}-{number}" for number, (name, *_) in enumerate(ROWS)]


@pytest.fixture(params=ROWS, ids=IDS)
def equation(request):
    return equation_of(*request.param)


def test_what_is_claimed_to_be_zero_is_zero(equation):
    for seed in range(40):
        _, known, _, results = case(equation, seed)
        claimed = zeros_of(equation, known)
        for value, result, aval in zip(claimed, results, equation.out_avals, strict=True):
            assert len(value.axes) == len(aval.shape)
            for axis, mask in enumerate(value.axes):
                assert mask is None or mask.shape == aval.shape[axis : axis + mask.ndim]
            assert not np.any(result[marked(value.axes, aval.shape, any_axis=True)]), (seed, known)
            if value.constant is not None:
                assert np.all(result == value.constant)


def test_what_is_not_needed_does_not_matter(equation):
    for seed in range(40):
        rng, known, operands, expected = case(equation, seed)
        wanted, needs = draw_needs(equation, rng, known)
        if needs is None:
            continue
        changed = []
        for atom, aval, value, need, operand in zip(
            equation.inputs, equation.in_avals, known, needs, operands, strict=True
        ):
            free = ~needed(need, aval.shape) & ~marked(value.axes, aval.shape, any_axis=True)
            free &= value.constant is None and not isinstance(atom, Literal)
            changed.append(np.where(free, draw_array(rng, atom, aval, unknown(len(aval.shape))), operand))
        for need, before, after in zip(wanted, expected, bind(equation, changed), strict=True):
            entries = needed(need, before.shape)
            np.testing.assert_allclose(after[entries], before[entries], rtol=1e-12, atol=1e-12)


def test_sliced_evaluation_agrees(equation):
    for seed in range(5):
        rng, known, operands, expected = case(equation, seed)
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
        with jax.enable_x64(True):
            plain = [value.to(coarsened(value.layout)) for value in stored]
            results = rule_for(equation.primitive).execute(equation, plain, list(map(coarsened, layouts)))
            results = [value.to(layout) for value, layout in zip(results, layouts, strict=True)]
        for need, layout, result, whole in zip(wanted, layouts, results, expected, strict=True):
            if layout == NOTHING or need == NOTHING:
                continue
            entries = needed(need, whole.shape)
            assert result.array.dtype == whole.dtype
            found = restored(result)
            np.testing.assert_allclose(found[entries], whole[entries], rtol=1e-12, atol=1e-12)


def larger(rng, need, aval):
    """A layout that stores at least what is needed."""
    return union(need, draw_need(rng, aval.shape)) if rng.random() < 0.5 else need


def store(operand, need, aval, rng, known):
    """Stores at least the needed entries. Those known to be zero may be stored or not."""
    layout = larger(rng, need, aval)
    if layout == NOTHING:
        return Sliced(None, NOTHING, aval)
    entries = operand[needed(layout, aval.shape)].reshape(stored_shape(aval.shape, layout))
    with jax.enable_x64(True):
        return Sliced(jnp.asarray(entries), layout, aval)


def restored(result):
    """The full array of a sliced one."""
    full = np.zeros(result.aval.shape, result.aval.dtype)
    if result.layout != NOTHING:
        full[needed(result.layout, full.shape)] = np.asarray(result.array).reshape(-1)
    return full
