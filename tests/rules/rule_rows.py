"""One row for each meaning of each primitive that has a rule: what the properties in `test_rules.py` are tested on."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec

F = np.float64
A, B = np.zeros((3, 4), F), np.zeros((2, 3, 4), F)
INTS, BOOLS, BYTES = np.zeros((3, 4), np.int32), np.zeros((3, 4), bool), np.zeros((3, 4), np.uint8)
COMPLEX, EMPTY = A.astype(np.complex128), np.zeros((2, 0, 4), F)
I = np.int32(0)  # noqa: E741 An index.
SUBNORMAL = 1e-40  # In float32, in which what is claimed to be zero is tested.
# What an operand is compared with, clipped to or multiplied by.
CONSTANTS = (-1, 0, 2, 256, 1e10, np.inf, np.nan, SUBNORMAL, -SUBNORMAL)


class Row(NamedTuple):
    """A primitive in one of its meanings.

    Attributes:
        primitive: name of the primitive.
        meaning: what changes its meaning: parameters, dtypes, a constant operand.
        fn: a function of which it is one equation.
        args: arrays that `fn` is traced at.
        in_bounds: whether its indices are promised to be in bounds.
    """

    primitive: str
    meaning: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    in_bounds: bool = False


def row(primitive, meaning, fn, *args, in_bounds=False):
    return Row(primitive, str(meaning), fn, args, in_bounds)


def _cell(carry, x):
    """Half of what a cell holds stays, as in an LSTM without parameters."""
    w, c = carry
    c = 0.5 * c + w * x
    return (w, c), jnp.tanh(c)


def _step(w, carry):
    i, x = carry
    return i + 1, jnp.sin(x * w)


def conv(meaning, lhs=(2, 5, 4), rhs=(3, 4, 6), numbers=("NWC", "WIO", "NWC"), dtype=F, **options):
    settings = {"window_strides": (1,) * (len(lhs) - 2), "padding": "SAME"} | options

    def fn(x, k):
        return lax.conv_general_dilated(x, k, dimension_numbers=numbers, **settings)

    return row("conv_general_dilated", meaning, fn, np.zeros(lhs, dtype), np.zeros(rhs, dtype))


def dot(meaning, numbers, *shapes, dtype=F, **options):

    def fn(a, b):
        return lax.dot_general(a, b, numbers, **options)

    return row("dot_general", meaning, fn, *(np.zeros(shape, dtype) for shape in shapes))


def reshape(old, new):
    return row("reshape", f"{old} to {new}", lambda x: lax.reshape(x, new), np.zeros(old, F))


def pad(*config, value=0.0, x=A):
    meaning = f"{config} with {value} in {x.dtype} {x.shape}"
    return row("pad", meaning, lambda x: lax.pad(x, np.asarray(value).astype(x.dtype)[()], config), x)


def window(name, meaning, reducer, init, x=np.zeros((2, 5, 3), F), **options):  # noqa: B008
    settings = {"window_dimensions": (1, 2, 1), "window_strides": (1, 1, 1), "padding": "VALID"} | options
    return row(name, meaning, lambda x: lax.reduce_window(x, x.dtype.type(init), reducer, **settings), x)


def extreme_windows(meaning, **options):
    return [
        window("reduce_window_max", meaning, lax.max, -np.inf, **options),
        window("reduce_window_min", meaning, lax.min, np.inf, **options),
        window("reduce_window_sum", meaning, lax.add, 0.0, **options),
    ]


def on_mesh(name, fn, axis_type):
    """A wish about sharding, over a mesh of one device."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:1])
    return row(name, "a mesh of one", lambda x: fn(x, NamedSharding(mesh, PartitionSpec())), A)


def unary(*names, x=A):
    return [row(name, f"{x.dtype}", getattr(lax, name), x) for name in names]


def binary(*names, x=A, y=A):
    return [row(name, f"{x.dtype} {x.shape} {y.shape}", getattr(lax, name), x, y) for name in names]


def with_constants(*names, x=A, constants=CONSTANTS):
    """Each operator with a constant on its right, and on its left where that differs."""
    rows = []
    for name, value in itertools.product(names, constants):
        constant = np.asarray(value).astype(x.dtype)[()]
        fn = getattr(lax, name)
        rows.append(row(name, f"{x.dtype}, {value} right", lambda x, fn=fn, c=constant: fn(x, c), x))
        if name in ("sub", "div", "rem", "pow", "igamma", "atan2"):
            rows.append(row(name, f"{x.dtype}, {value} left", lambda x, fn=fn, c=constant: fn(c, x), x))
    return rows


def reduction(*names, x=B, axes=((0,), (1, 2), (0, 1, 2))):
    return [
        row(name, f"{x.dtype} {x.shape} over {a}", lambda x, name=name, a=a: getattr(lax, name)(x, a), x)
        for name, a in itertools.product(names, axes)
    ]


def cumulative(*names, x=B):
    return [
        row(name, f"{x.shape} along {a}, reverse {r}", lambda x, name=name, a=a, r=r: getattr(lax, name)(x, a, r), x)
        for name, (a, r) in itertools.product(names, [(0, False), (2, True)])
    ]


def casts(x, *dtypes):
    return [
        row("convert_element_type", f"{x.dtype} to {np.dtype(t)}", lambda x, t=t: lax.convert_element_type(x, t), x)
        for t in dtypes
        if np.dtype(t) != x.dtype
    ]


def taken(mode, fill=None, x=B, in_bounds=False):
    """Rows, columns, and an entry of each row, gathered in one mode."""
    meaning = f"{mode}{'' if fill is None else f' {fill}'} in {x.dtype}"
    get = {"mode": mode, "fill_value": fill}
    several = np.zeros(3, np.int32)
    return [
        row("gather", f"axis 0, {meaning}", lambda x, i: x.at[i].get(**get), x, several, in_bounds=in_bounds),
        row("gather", f"axis 1, {meaning}", lambda x, i: x.at[:, i].get(**get), x, several[:2], in_bounds=in_bounds),
        row(
            "gather", f"axes 0 and 2, {meaning}", lambda x, i: x.at[i, :, i].get(**get), x, several, in_bounds=in_bounds
        ),
        row(
            "gather",
            f"batched, {meaning}",
            jax.vmap(lambda x, i: x.at[i].get(**get)),
            x,
            several[:2],
            in_bounds=in_bounds,
        ),
    ]


def written(name, method, mode, x=B):
    """Rows, columns, parts of columns and an entry of each row, written to in one mode."""
    meaning = f"{mode} in {x.dtype}"

    def put(ref, y):
        return getattr(ref, method)(y, mode=mode)

    several = np.zeros(2, np.int32)
    return [
        row(name, f"axis 0, {meaning}", lambda x, i, y: put(x.at[i], y), x, several, x),
        row(name, f"axis 1, {meaning}", lambda x, i, y: put(x.at[:, i], y), x, np.zeros(3, np.int32), x),
        row(name, f"axes 0 and 2, {meaning}", lambda x, i, y: put(x.at[i, :, i], y), x, several, x[..., 0]),
        row(name, f"part, {meaning}", lambda x, i, y: put(x.at[:, i, ::2], y), x, I, x[:, 0, :2]),
        row(
            name,
            f"batched, {meaning}",
            jax.vmap(lambda x, i, y: put(x.at[i], y)),
            x,
            np.zeros((2, 2), np.int32),
            x[:, :2],
        ),
    ]


WIDE = ((0, 0), (3, 2), (0, 0))  # Wider than any window below: some windows meet padding alone.
NARROW = (np.int8, np.uint8, np.int32, np.uint32, bool, jnp.bfloat16, np.float16, jnp.float8_e4m3fn, np.complex64)

ELEMENTWISE = [
    *unary("acos", "acosh", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "cos"),
    *unary("cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "is_finite", "lgamma", "log"),
    *unary("log1p", "logistic", "neg", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "abs"),
    *unary("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "exp2", "expm1", "log", x=COMPLEX),
    *unary(
        "log1p", "logistic", "neg", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "abs", x=COMPLEX
    ),
    *unary("ceil", "cos", "cosh", "erfc", "exp", "exp2", "expm1", "log", "logistic", x=A.astype(jnp.bfloat16)),
    *unary("neg", "round", "sign", "abs", "tanh", x=A.astype(jnp.bfloat16)),
    *itertools.chain(*(unary("neg", "sign", "square", x=A.astype(t)) for t in (np.int8, np.uint8, np.int32))),
    *itertools.chain(*(unary("clz", "population_count", x=x) for x in (INTS, BYTES))),
    *unary("abs", x=A.astype(np.int8)),
    *[row("not", f"{x.dtype}", lax.bitwise_not, x) for x in (INTS, BYTES, BOOLS)],
    row("imag", "complex", lax.imag, COMPLEX),
    row("real", "complex", lax.real, COMPLEX),
    row("conj", "complex", lambda x: lax.conj(x), COMPLEX),
    row("complex", "parts", lax.complex, A, A),
    row("copy", "array", lambda x: lax.copy_p.bind(x), A),
    row("name", "array", lambda x: checkpoint_name(x, "here"), A),
    row("reduce_precision", "float32", lambda x: lax.reduce_precision(x, 8, 10), A),
    row("reduce_precision", "a small range", lambda x: lax.reduce_precision(x, 4, 3), A),
    row("stop_gradient", "array", lax.stop_gradient, A),
    row("device_put", "array", jax.device_put, A),
    *binary("atan2", "igamma", "igammac", "nextafter", "polygamma", "zeta", "eq", "ge", "gt", "le", "lt", "ne"),
    *binary("add", "sub", "mul", "div", "rem", "max", "min", "pow"),
    *binary("add", "sub", "mul", "div", "max", "rem", "lt", x=A[:, :1]),
    *binary("add", "sub", "mul", "div", "min", "pow", "eq", y=A[:1]),
    *binary("add", "sub", "mul", "div", "pow", "eq", "ne", x=COMPLEX, y=COMPLEX),
    *itertools.chain(
        *(
            binary("add", "sub", "mul", "div", "rem", "max", "min", "eq", "lt", "ge", x=x, y=x)
            for x in (A.astype(np.int8), BYTES, INTS, A.astype(jnp.bfloat16))
        )
    ),
    *binary("max", "min", "eq", "ne", "lt", x=BOOLS, y=BOOLS),
    row("pow", "integer exponents", lax.pow, A, INTS),
    *itertools.chain(
        *(binary("shift_left", "shift_right_arithmetic", "shift_right_logical", x=x, y=x) for x in (INTS, BYTES))
    ),
    *[
        row(name, f"{x.dtype}", getattr(lax, f"bitwise_{name}"), x, x)
        for name in ("and", "or", "xor")
        for x in (INTS, BYTES, BOOLS)
    ],
    row("regularized_incomplete_beta", "array", lax.betainc, A, A, A),
    row("add_any", "a sum of gradients", jax.grad(lambda x: jnp.sum(jnp.sin(x) + jnp.cos(x))), A),
    *[row("integer_pow", y, lambda x, y=y: lax.integer_pow(x, y), A) for y in (-2, -1, 0, 3, 4)],
    *[row("integer_pow", f"uint8, {y}", lambda x, y=y: lax.integer_pow(x, y), BYTES) for y in (0, 3)],
    *[
        row("clamp", f"{a} to {b}", lambda x, a=a, b=b: lax.clamp(x.dtype.type(a), x, x.dtype.type(b)), A)
        for a, b in (
            (-1, 1),
            (0, 6),
            (1, 2),
            (-2, -1),
            (1, -1),
            (SUBNORMAL, 1),
            (-np.inf, np.inf),
            (np.nan, 1),
            (256, np.inf),
        )
    ],
    row("clamp", "arrays", lax.clamp, A, A, A),
    row("clamp", "uint8", lambda x: lax.clamp(np.uint8(1), x, np.uint8(255)), BYTES),
    row("select_n", "two cases", lambda w, a, b: lax.select_n(w, a, b), BOOLS, A, A),
    row("select_n", "three cases", lambda w, a, b, c: lax.select_n(w, a, b, c), INTS, A, A, A),
    row("select_n", "one case", lambda w, a: lax.select_n(w, a), INTS, A),
    row("select_n", "a scalar", lambda w, a, b: lax.select_n(w, a, b), np.zeros((), bool), A, A),
    row("select_n", "a case of infinity", lambda w, a: lax.select_n(w, a, jnp.full_like(a, -np.inf)), BOOLS, A),
    *casts(A, np.int16, np.uint16),
    row("optimization_barrier", "two arrays", lambda *x: lax.optimization_barrier(x), A, B),
    row("layout_constraint", "transposed", lambda x: with_layout_constraint(x, Layout((1, 0))), A),
    on_mesh("sharding_constraint", lax.with_sharding_constraint, AxisType.Auto),
    on_mesh("reshard", jax.sharding.reshard, AxisType.Explicit),
    row("scan", "over data", lambda x, xs: lax.scan(lambda c, x: (c + x, c * x), x, xs), A[0], A),
    row("scan", "of a cell", lambda w, c, xs: lax.scan(_cell, (w, c), xs, reverse=True), A[0], A[0], A),
    row("scan", "of products", lambda c, xs: lax.scan(lambda c, x: (c * x, c), c, xs), A[0], A),
    row("scan", "of maxima", lambda c, xs: lax.scan(lambda c, x: (jnp.maximum(c, x), jnp.exp(c - x)), c, xs), A[0], A),
    row("scan", "that hands on", lambda c, xs: lax.scan(lambda c, x: ((c[1], x), c[0] * x), c, xs), (A[0], A[1]), A),
    row("scan", "over nothing", lambda x: lax.fori_loop(0, 3, lambda i, x: x * i, x), A),
    row("while", "to a bound", lambda w, x: lax.while_loop(lambda c: c[0] < 3, partial(_step, w), (I, x)), A, A),
    row("while", "not once", lambda w, x: lax.while_loop(lambda c: c[0] < 0, partial(_step, w), (I, x)), A, A),
    row("cond", "of two", lambda i, x, y: lax.switch(i, [lambda x, y: x * y, lambda x, y: (x + y) * 2], x, y), I, A, A),
    row("cond", "of three", lambda i, x: lax.switch(i, [jnp.tanh, jnp.sin, jnp.zeros_like], x), I, A),
]

# Rows that differ from others by numbers alone, not by which entries go where.
NUMBERS = [
    *with_constants("add", "sub", "mul", "div", "rem", "max", "min", "pow", "eq", "ne", "lt", "le", "gt", "ge"),
    *with_constants("atan2", "nextafter", "igamma", constants=(-1, 0, 1, np.inf)),
    *with_constants("add", "mul", "max", "lt", "div", x=A.astype(jnp.bfloat16), constants=(-1, 1, 256, 0.1, 1e-40)),
    *with_constants("add", "sub", "mul", "div", "rem", "max", "lt", "eq", x=A.astype(np.int8), constants=(-128, -1, 2)),
    *with_constants("add", "sub", "mul", "div", "rem", "min", "gt", "ne", x=BYTES, constants=(0, 1, 255)),
    *with_constants("add", "mul", "div", "eq", x=COMPLEX, constants=(0, 1, np.inf)),
    *casts(A, *NARROW),
    *casts(A.astype(jnp.bfloat16), np.float32, *NARROW),
    *casts(INTS, np.float32, *NARROW),
    *casts(BYTES, np.float32, *NARROW),
    *casts(BOOLS, np.float32, *NARROW),
    *casts(A.astype(np.int8), np.uint8, np.uint32, np.float32, bool, jnp.int4),
]

REDUCTIONS = [
    *itertools.chain(
        *(
            reduction("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", x=x)
            for x in (B, B.astype(jnp.bfloat16), B.astype(np.uint8), B.astype(np.int8))
        )
    ),
    *itertools.chain(
        *(
            reduction("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", x=x, axes=((), (1,), (0, 1), (0,)))
            for x in (EMPTY, EMPTY.astype(np.int32))
        )
    ),
    *reduction("reduce_sum", "reduce_prod", x=B.astype(np.complex128)),
    *itertools.chain(
        *(reduction("reduce_and", "reduce_or", "reduce_xor", x=B.astype(t)) for t in (np.int32, np.uint8))
    ),
    *reduction("reduce_and", "reduce_or", x=B.astype(bool)),
    *reduction("reduce_max", "reduce_min", x=B.astype(bool)),
    *itertools.chain(
        *(reduction("reduce_and", "reduce_or", x=EMPTY.astype(t), axes=((1,), (0,))) for t in (np.int32, bool))
    ),
    *[
        row(f.__name__, f"{x.dtype} along {a}", lambda x, f=f, a=a: f(x, a, np.int32), x)
        for f in (lax.argmax, lax.argmin)
        for x in (B, B.astype(np.int8), B.astype(jnp.bfloat16))
        for a in (0, 2)
    ],
    *extreme_windows("valid"),
    *extreme_windows("same with strides", window_strides=(1, 2, 1), padding="SAME"),
    *extreme_windows("base dilation", window_dimensions=(1, 1, 2), base_dilation=(1, 2, 1)),
    *extreme_windows("a hole wider than the window", window_dimensions=(1, 2, 1), base_dilation=(1, 3, 1)),
    *extreme_windows("dilated window", window_strides=(2, 1, 1), window_dilation=(1, 2, 1)),
    *extreme_windows("dilated window in dilated base", window_dilation=(1, 3, 1), base_dilation=(1, 2, 1)),
    *extreme_windows("padding narrower than the window", padding=((0, 0), (1, 1), (0, 0))),
    *extreme_windows("padding as wide as the window", padding=((0, 0), (2, 0), (0, 0))),
    *extreme_windows("padding wider than the window", padding=WIDE),
    *extreme_windows("padding wider, skipped by strides", padding=((0, 0), (2, 1), (0, 0)), window_strides=(1, 4, 1)),
    *extreme_windows("negative padding", padding=((0, 0), (-1, -2), (0, 1))),
    *extreme_windows("an empty axis", x=np.zeros((2, 0, 3), F), padding=WIDE),
    *[
        window(name, f"{np.dtype(t)}, padding wider than the window", f, v(t), x=np.zeros((2, 5, 3), t), padding=WIDE)
        for name, f, v in (
            ("reduce_window_max", lax.max, lambda t: np.iinfo(t).min),
            ("reduce_window_min", lax.min, lambda t: np.iinfo(t).max),
            ("reduce_window_sum", lax.add, lambda t: 0),
        )
        for t in (np.int8, np.uint8)
    ],
    window("reduce_window", "a function of its own", lambda a, b: a * b + 1, 1.0, padding="SAME"),
    window("reduce_window", "a product", lax.mul, 1.0, padding=WIDE),
    window("reduce_window", "a maximum from one", lax.max, 1.0, padding=WIDE),
    window("reduce_window", "a sum from two", lax.add, 2.0),
    row(
        "reduce_window",
        "two arrays",
        lambda x, y: lax.reduce_window(
            (x, y), (F(0), F(1)), lambda a, b: (a[0] + b[0], a[1] * b[1]), (1, 2, 1), (1, 1, 1), "SAME"
        ),
        B,
        B,
    ),
    row(
        "reduce_window",
        "a maximum and its place",
        lambda x, i: lax.reduce_window(
            (x, i),
            (F(-np.inf), np.int32(-1)),
            lambda a, b: (jnp.maximum(a[0], b[0]), jnp.where(a[0] > b[0], a[1], b[1])),
            (1, 2, 1),
            (1, 2, 1),
            WIDE,
        ),
        B,
        B.astype(np.int32),
    ),
    *cumulative("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
    *cumulative("cumsum", "cumprod", "cummax", "cummin", x=np.zeros((2, 3, 0), F)),
    *cumulative("cummax", "cumsum", x=B.astype(np.int32)[:1]),
    *[row("sort", f"along {d}", lambda x, d=d: lax.sort(x, d), B) for d in (0, 2)],
    *[
        row("sort", f"two arrays, {k} keys, stable {s}", lambda x, y, k=k, s=s: lax.sort((x, y), 1, s, k), A, A)
        for k in (1, 2)
        for s in (True, False)
    ],
    row("sort", "values by int8 keys", lambda x, y: lax.sort((x, y), dimension=0, num_keys=1), A.astype(np.int8), A),
    row("sort", "argsort", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), A, INTS),
    *[row("top_k", f"along {a}", lambda x, a=a: lax.top_k(x, 2, axis=a), B) for a in (0, 2)],
    row("top_k", "int8", lambda x: lax.top_k(x, 2), B.astype(np.int8)),
    row("approx_top_k", "minimum", lambda x: lax.approx_min_k(x, 2), B),
    row("approx_top_k", "maximum", lambda x: lax.approx_max_k(x, 2), B),
    *[row("fft", f"real along {a}", lambda x, a=a: jnp.fft.rfft(x, axis=a), B) for a in (1, 2)],
    row("fft", "inverse of two axes", lambda x: jnp.fft.ifft2(x), B.astype(np.complex128)),
    row("fft", "real inverse", lambda x: jnp.fft.irfft(x), B.astype(np.complex128)),
]

CONTRACTIONS = [
    dot("matrices", (((1,), (0,)), ((), ())), (3, 4), (4, 2)),
    dot("a batch", (((2,), (1,)), ((0,), (0,))), (2, 3, 4), (2, 4, 3)),
    dot("two contracted, one batched", (((1, 3), (2, 0)), ((0,), (1,))), (2, 3, 2, 4), (4, 2, 3, 2)),
    dot("an outer product", (((), ()), ((), ())), (2,), (3,)),
    dot("two batches", (((2,), (2,)), ((0, 1), (1, 0))), (2, 3, 4), (3, 2, 4)),
    dot("a scalar", (((0, 1), (0, 1)), ((), ())), (3, 4), (3, 4)),
    dot("over nothing", (((1,), (0,)), ((), ())), (3, 0), (0, 2)),
    dot("no rows", (((1,), (0,)), ((), ())), (0, 4), (4, 2)),
    dot("int8", (((1,), (0,)), ((), ())), (3, 4), (4, 2), dtype=np.int8),
    dot("uint8 to int32", (((1,), (0,)), ((), ())), (3, 4), (4, 2), dtype=np.uint8, preferred_element_type=np.int32),
    dot("bfloat16", (((1,), (0,)), ((), ())), (3, 4), (4, 2), dtype=jnp.bfloat16),
    dot(
        "bfloat16 to float32",
        *((((1,), (0,)), ((), ())), (3, 4), (4, 2)),
        dtype=jnp.bfloat16,
        preferred_element_type=np.float32,
    ),
    dot("complex", (((1,), (0,)), ((), ())), (3, 4), (4, 2), dtype=np.complex128),
    conv("same"),
    conv("valid with strides", window_strides=(2,), padding="VALID"),
    conv("dilated kernel", rhs_dilation=(2,)),
    conv("transposed", lhs_dilation=(2,), padding=((1, 2),)),
    conv("holes wider than the kernel", rhs=(1, 4, 6), lhs_dilation=(3,), padding=((2, 2),)),
    conv("padding wider than the kernel", padding=((4, 5),)),
    conv("negative padding", padding=((-1, -1),)),
    conv("nothing in", lhs=(2, 5, 0), rhs=(3, 0, 6)),
    conv("two groups", rhs=(3, 2, 6), feature_group_count=2),
    conv("depthwise", rhs=(3, 1, 4), feature_group_count=4),
    conv("depthwise with multiplier", rhs=(3, 1, 8), feature_group_count=4),
    conv("groups, strides and dilation", rhs=(3, 2, 4), feature_group_count=2, window_strides=(2,), rhs_dilation=(2,)),
    conv("batch groups", rhs=(3, 4, 6), batch_group_count=2),
    conv("channels first", lhs=(2, 4, 5), rhs=(6, 4, 3), numbers=("NCW", "OIW", "NCW")),
    conv("axes moved", lhs=(4, 2, 5), rhs=(6, 2, 3), numbers=("CNW", "OIW", "NWC"), feature_group_count=2),
    conv("two axes", lhs=(2, 4, 4, 3), rhs=(2, 3, 3, 4), numbers=("NHWC", "HWIO", "NHWC"), window_strides=(2, 1)),
    conv("three axes", lhs=(1, 2, 3, 2, 2), rhs=(1, 2, 2, 2, 3), numbers=("NDHWC", "DHWIO", "NDHWC")),
    conv("bfloat16", dtype=jnp.bfloat16),
    conv("complex", dtype=np.complex128),
    conv("int8 to int32", dtype=np.int8, preferred_element_type=np.int32),
]

SHAPES = [
    *[
        row("broadcast_in_dim", f"{x} to {s} by {d}", lambda x, s=s, d=d: lax.broadcast_in_dim(x, s, d), np.zeros(x, F))
        for x, s, d in (
            ((3,), (2, 3), (1,)),
            ((3, 1), (3, 4), (0, 1)),
            ((), (2, 3), ()),
            ((2, 1), (2, 3, 1), (0, 2)),
            ((3,), (0, 3), (1,)),
            ((1,), (0,), (0,)),
        )
    ],
    row("broadcast_in_dim", "int8", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1, 2)), A.astype(np.int8)),
    *[row("transpose", p, lambda x, p=p: lax.transpose(x, p), B) for p in ((2, 0, 1), (1, 0, 2))],
    *[row("squeeze", a, lambda x, a=a: lax.squeeze(x, a), np.zeros((1, 3, 1, 2), F)) for a in ((0, 2), (0,), (2,))],
    *[row("rev", d, lambda x, d=d: lax.rev(x, d), B) for d in ((1,), (0, 2))],
    *itertools.starmap(
        reshape,
        (
            ((3, 4), (12,)),
            ((12,), (3, 4)),
            ((2, 3, 4), (6, 4)),
            ((2, 3, 4), (2, 12)),
            ((2, 3, 4), (4, 6)),
            ((2, 12), (2, 2, 3, 2)),
            ((1, 3, 1, 4), (3, 4, 1)),
            ((3, 4), (1, 3, 2, 1, 2)),
            ((2, 3, 4), (3, 8)),
            ((1, 1), ()),
            ((), (1, 1)),
            ((2, 2, 3), (4, 3, 1)),
            ((2, 0, 3), (0, 4)),
        ),
    ),
    *[
        row("slice", a, lambda x, a=a: lax.slice(x, *a), B)
        for a in (
            ((0, 1, 0), (2, 3, 4)),
            ((0, 0, 1), (1, 3, 4), (1, 2, 2)),
            ((0, 0, 0), (2, 3, 4), (1, 1, 3)),
            ((1, 2, 0), (2, 3, 4)),
            ((0, 1, 2), (1, 2, 3)),
            ((0, 1, 2), (2, 1, 3)),
        )
    ],
    *[
        row("split", (s, a), lambda x, s=s, a=a: lax.split(x, s, a), B)
        for s, a in (((1, 3), 2), ((1, 1), 0), ((0, 3), 1))
    ],
    *[row("concatenate", f"axis {a}", lambda *x, a=a: lax.concatenate(x, a), B, B, B) for a in (0, 1, 2)],
    row("concatenate", "different sizes", lambda x, y: lax.concatenate((x, y, x), 1), A, np.zeros((3, 1), F)),
    row("concatenate", "an empty one", lambda x, y: lax.concatenate((x, y, x), 1), A, np.zeros((3, 0), F)),
    *[row("stack", f"axis {a}", lambda *x, a=a: lax.stack(x, a), A, A, A) for a in (0, 1, 2)],
    *[row("unstack", f"axis {a}", lambda x, a=a: lax.unstack(x, axis=a), B) for a in (0, 1, 2)],
    *[row("tile", r, lambda x, r=r: lax.tile(x, r), B) for r in ((1, 2, 1), (3, 1, 2), (1, 0, 1))],
    pad((0, 0, 0), (1, 2, 0)),
    pad((1, 0, 1), (0, 0, 0)),
    pad((0, 0, 2), (-1, 1, 0)),
    pad((0, -1, 0), (-1, -1, 1)),
    pad((5, -4, 0), (0, 0, 0)),
    pad((0, 0, 0), (1, 1, 0), value=3.0),
    pad((-1, 0, 0), (0, 0, 0), value=2.0),
    pad((0, 0, 0), (0, 0, 0), value=2.0),
    pad((1, 0, 0), (0, 0, 0), value=SUBNORMAL),
    pad((1, 0, 0), (0, 0, 0), value=-np.inf),
    pad((1, 0, 0), (0, 0, 0), value=-0.0),
    pad((1, 1, 2), (0, 0, 0), value=255, x=BYTES),
    pad((1, 1, 0), (0, 0, 0), x=np.zeros((0, 2), F)),
    row("pad", "with an operand", lambda x, y: lax.pad(x, y, ((1, 0, 0), (0, 0, 1))), A, F(0)),
    *[
        row(
            "bitcast_convert_type",
            f"{x.dtype} {x.shape} to {np.dtype(t)}",
            lambda x, t=t: lax.bitcast_convert_type(x, t),
            x,
        )
        for x, t in (
            (A.astype(np.float32), np.int32),
            (A.astype(np.float32), jnp.bfloat16),
            (np.zeros((3, 4, 2), np.int16), np.float32),
            (INTS, np.float32),
        )
    ],
]

INDEXING = [
    row("dynamic_slice", "axis 1 whole", lambda x, i: lax.dynamic_slice(x, (i, i, i), (1, 3, 2)), B, I),
    row("dynamic_slice", "axis 2 cut", lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, 2), B, I),
    row("dynamic_slice", "nothing of an axis", lambda x, i: lax.dynamic_slice_in_dim(x, i, 0, 2), B, I),
    row("dynamic_slice", "unsigned index", lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, 2), B, np.uint8(0)),
    row(
        "dynamic_update_slice",
        "axes 0 and 2 whole",
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i, i)),
        *(B, B[:, :1], I),
    ),
    row(
        "dynamic_update_slice",
        "axis 1 whole",
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i, i)),
        *(B, B[:1, :, :2], I),
    ),
    row("dynamic_update_slice", "nothing", lambda x, u, i: lax.dynamic_update_slice(x, u, (i, i, i)), B, B[:, :0], I),
    *taken("clip"),
    *taken("promise_in_bounds", in_bounds=True),
    # Not a number marks an error: that indices are in bounds is assumed. Anything else may be meant.
    *taken("fill", in_bounds=True),
    *itertools.chain(*(taken("fill", fill) for fill in (0.0, 7.0, -1.0, np.inf, SUBNORMAL))),
    *itertools.chain(*(taken("fill", x=B.astype(t)) for t in (np.int32, np.uint8, bool))),
    *taken("fill", 0, x=B.astype(np.int8)),
    *taken("fill", 0.0, x=B.astype(jnp.bfloat16)),
    *taken("clip", x=B.astype(np.uint8)),
    row(
        "gather",
        "along an axis",
        lambda x, i: jnp.take_along_axis(x, i, 2, mode="clip"),
        B,
        np.zeros((2, 3, 2), np.int32),
    ),
    row("gather", "windows", jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, i), (2, 4))), B, np.zeros(2, np.int32)),
    *itertools.chain(
        *(
            written(f"scatter{name}", method, mode)
            for mode in ("drop", "clip")
            for name, method in (
                ("", "set"),
                ("-add", "add"),
                ("-sub", "subtract"),
                ("-max", "max"),
                ("-min", "min"),
                ("-mul", "multiply"),
            )
        )
    ),
    *itertools.chain(
        *(
            written(f"scatter{name}", method, "drop", x=B.astype(t))
            for t in (np.uint8, jnp.bfloat16)
            for name, method in (("", "set"), ("-add", "add"), ("-max", "max"), ("-mul", "multiply"))
        )
    ),
    *[
        row("scatter", f"apply {f.__name__}", lambda x, i, f=f: x.at[i].apply(f), B, np.zeros(2, np.int32))
        for f in (jnp.cos, jnp.sin, jnp.zeros_like, jnp.ones_like)
    ],
    *[
        row(f"scatter-{name}", "of segments", lambda x, i, f=f: f(x, i, 5), B, np.array([0, 3], np.int32))
        for name, f in (("max", jax.ops.segment_max), ("min", jax.ops.segment_min))
    ],
    row("scatter", "apply to columns", lambda x, i: x.at[:, i].apply(jnp.exp), B, np.zeros(2, np.int32)),
]

ROWS = [*ELEMENTWISE, *REDUCTIONS, *CONTRACTIONS, *SHAPES, *INDEXING]

# Primitives that the oldest supported jax does not have yet.
NEWER = ("log2", "one_minus_square", "polynomial")
ROWS += [each for name in NEWER[:2] if hasattr(lax, name) for each in unary(name)]
ROWS += [row("polynomial", "array", lambda x: lax.polynomial(x, (x, x)), A)] if hasattr(lax, "polynomial") else []
