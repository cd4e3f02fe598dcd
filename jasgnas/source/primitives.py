"""The plain way to write an equation: a call of `jax.numpy`, `jax.lax` or `jax.random`, or an operator of Python."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jasgnas.program.jaxpr import Equation, Literal
from jasgnas.source.expression import (
    ATOM,
    BITWISE,
    COMPARISON,
    POWER,
    PRODUCT,
    SIGN,
    SUM,
    Expression,
    binary,
    call,
    method,
)
from jasgnas.source.sizes import is_symbolic, size_text

Writer = Callable[[Equation], Expression]


def written(eqn: Equation) -> Expression | None:
    """Returns an equation as an expression of its operands; None if there is no way to write its primitive."""
    if (expression := _PLAIN.get(eqn.primitive)) is not None:
        return expression
    writer = _WRITERS.get(eqn.primitive)
    return None if writer is None else writer(eqn)


def literal_text(value: Any, dtype: Any, *, typed: bool = False) -> str:
    """Returns a constant as Python writes it, as an array of its dtype if it is to be `typed`."""
    array = np.asarray(value)
    if array.ndim:
        text = str(np.asarray(array, _WIDEST.get(array.dtype.kind)).tolist()) if typed else str(array.tolist())
        return f"jnp.array({text}, {dtype_text(dtype)})"
    if array.dtype.kind in "biu":
        text = str(array.item())
    elif array.dtype.kind == "c":
        text = str(complex(array))
    else:
        text = number_text(array, dtype)
    return f"jnp.array({text}, {dtype_text(dtype)})" if typed else text


_WIDEST = {"f": np.float64}


def number_text(value: Any, dtype: Any = None) -> str:
    """Returns a floating-point number in as few digits as tell it from the others of its dtype."""
    dtype = np.asarray(value).dtype if dtype is None else dtype
    if not np.isfinite(np.float64(value)):
        return "jnp.nan" if np.isnan(np.float64(value)) else ("jnp.inf" if value > 0 else "-jnp.inf")
    short = np.dtype(dtype).type(value)
    text = str(short) if np.dtype(dtype).itemsize >= 4 else repr(float(value))
    return repr(float(text))


def dtype_text(dtype: Any) -> str:
    """Returns a dtype as a name of `jax.numpy`."""
    return f"jnp.{np.dtype(dtype).name.replace('bool', 'bool_')}"


def sizes_text(sizes: Sequence[Any]) -> str:
    """Returns a shape as a tuple."""
    return f"({', '.join(map(size_text, sizes))}{',' if len(sizes) == 1 else ''})"


def axes_text(axes: Sequence[int]) -> str:
    """Returns one axis as a number, several as a tuple."""
    axes = tuple(map(int, axes))
    return str(axes[0]) if len(axes) == 1 else str(axes)


def _functions(module: str, names: str) -> dict[str, Expression]:
    return {name: call(f"{module}.{name}", "{0}") for name in names.split()}


def _functions2(module: str, names: dict[str, str]) -> dict[str, Expression]:
    return {name: call(f"{module}.{function}", "{0}", "{1}") for name, function in names.items()}


_PLAIN: dict[str, Expression] = {
    **_functions("jnp", "abs exp exp2 log log1p expm1 sqrt cbrt sin cos tan sinh cosh tanh floor ceil sign square"),
    **_functions("jnp", "real imag conj"),
    **_functions(
        "jax.lax", "rsqrt erf erfc erf_inv lgamma digamma asinh acosh atanh asin acos atan population_count clz"
    ),
    **_functions("jax.lax", "stop_gradient is_finite bessel_i0e bessel_i1e"),
    **_functions2(
        "jnp",
        {"max": "maximum", "min": "minimum", "rem": "fmod", "atan2": "arctan2", "nextafter": "nextafter"},
    ),
    **_functions2(
        "jax.lax",
        {name: name for name in ("shift_left", "shift_right_logical", "shift_right_arithmetic", "complex", "igamma")},
    ),
    "logistic": call("nnx.sigmoid", "{0}"),
    "neg": Expression("-{0}", SIGN, (SIGN,)),
    "not": Expression("~{0}", SIGN, (SIGN,)),
    "add": binary("+", SUM),
    "add_any": binary("+", SUM),
    "sub": binary("-", SUM),
    "mul": binary("*", PRODUCT),
    "and": binary("&", BITWISE),
    "or": binary("|", BITWISE),
    "xor": binary("^", BITWISE),
    "eq": binary("==", COMPARISON),
    "ne": binary("!=", COMPARISON),
    "lt": binary("<", COMPARISON),
    "le": binary("<=", COMPARISON),
    "gt": binary(">", COMPARISON),
    "ge": binary(">=", COMPARISON),
    "pow": binary("**", POWER),
    "clamp": call("jnp.clip", "{1}", "{0}", "{2}"),
    "random_unwrap": call("jax.random.key_data", "{0}"),
    "random_fold_in": call("jax.random.fold_in", "{0}", "{1}"),
}
_WRITERS: dict[str, Writer] = {}


def _writes(*primitives: str) -> Callable[[Writer], Writer]:
    def register(writer: Writer) -> Writer:
        _WRITERS.update(dict.fromkeys(primitives, writer))
        return writer

    return register


@_writes("div")
def _div(eqn: Equation) -> Expression:
    is_whole = np.issubdtype(eqn.out_avals[0].dtype, np.integer)
    return call("jax.lax.div", "{0}", "{1}") if is_whole else binary("/", PRODUCT)


@_writes("integer_pow")
def _integer_pow(eqn: Equation) -> Expression:
    return Expression(f"{{0}} ** {eqn.params['y']}", POWER, (ATOM,))


@_writes("round")
def _round(eqn: Equation) -> Expression:
    return call("jax.lax.round", "{0}", f"jax.lax.RoundingMethod({int(eqn.params['rounding_method'])})")


@_writes("convert_element_type")
def _convert(eqn: Equation) -> Expression:
    dtype = dtype_text(eqn.params["new_dtype"])
    if isinstance(eqn.inputs[0], Literal) or not isinstance(eqn.inputs[0], int):
        return call("jnp.asarray", "{0}", dtype)
    return method(f"{{0}}.astype({dtype})")


@_writes("bitcast_convert_type")
def _bitcast(eqn: Equation) -> Expression:
    return call("jax.lax.bitcast_convert_type", "{0}", dtype_text(eqn.params["new_dtype"]))


@_writes("reduce_precision")
def _reduce_precision(eqn: Equation) -> Expression:
    return call(
        "jax.lax.reduce_precision",
        "{0}",
        *(f"{name}={eqn.params[name]}" for name in ("exponent_bits", "mantissa_bits")),
    )


@_writes("select_n")
def _select(eqn: Equation) -> Expression:
    if len(eqn.inputs) == 3 and eqn.in_avals[0].dtype == bool:
        return call("jnp.where", "{0}", "{2}", "{1}")
    return call("jax.lax.select_n", *(f"{{{index}}}" for index in range(len(eqn.inputs))))


@_writes("broadcast_in_dim")
def _broadcast(eqn: Equation) -> Expression:
    shape, dims = eqn.params["shape"], tuple(map(int, eqn.params["broadcast_dimensions"]))
    before = eqn.in_avals[0].shape
    if isinstance(eqn.inputs[0], Literal) and not before:
        return call("jnp.full", sizes_text(shape), "{0}", dtype_text(eqn.out_avals[0].dtype))
    index = ", ".join(":" if axis in dims else "None" for axis in range(len(shape)))
    first = dims[0] if dims else len(shape)
    if dims == tuple(range(len(shape) - len(dims), len(shape))):
        index, expanded = ", ".join(["None"] * first) + (", ..." if first > 1 and dims else ""), "{0}"
        index = "None" if first == 1 else index
    else:
        expanded = f"{{0}}[{index}]"
    placed = [before[dims.index(axis)] if axis in dims else 1 for axis in range(len(shape))]
    if all(a is b or a == b for a, b in zip(placed, shape, strict=True)):
        return method(f"{{0}}[{index}]") if len(shape) > len(dims) else Expression("{0}", ATOM, (ATOM,))
    return Expression(f"jnp.broadcast_to({expanded}, {sizes_text(shape)})", ATOM, (ATOM if expanded != "{0}" else 0,))


@_writes("reshape")
def _reshape(eqn: Equation) -> Expression:
    if eqn.params["dimensions"] is not None:
        return call("jax.lax.reshape", "{0}", sizes_text(eqn.params["new_sizes"]), str(eqn.params["dimensions"]))
    before, after = tuple(eqn.in_avals[0].shape), tuple(eqn.params["new_sizes"])
    sizes = list(map(size_text, after))
    if not before:
        return method(f"{{0}}.reshape({', '.join(sizes) or '()'})")
    # A size that follows from the others is left to follow: most often that of heads, or of all positions.
    symbolic = [axis for axis, size in enumerate(after) if is_symbolic(size)]
    kept = 0
    while kept < min(len(before), len(after)) and (before[kept] is after[kept] or before[kept] == after[kept]):
        kept += 1
    if 0 in (*(size for size in after if not is_symbolic(size)),):
        return method(f"{{0}}.reshape({', '.join(sizes)})")
    free = (
        symbolic[0] if symbolic and symbolic[0] >= kept else kept if kept < len(after) and kept < len(before) else None
    )
    if free is None and symbolic:
        free = symbolic[0]
    if free is not None:
        sizes[free] = "-1"
    if any("{" in size for size in sizes) and 0 < kept and all("{" not in size for size in sizes[kept:]):
        return method(
            f"{{0}}.reshape({', '.join([f'*{{0}}.shape[:{kept}]' if kept > 1 else '{0}.shape[0]', *sizes[kept:]])})"
        )
    return method(f"{{0}}.reshape({', '.join(sizes)})")


@_writes("transpose")
def _transpose(eqn: Equation) -> Expression:
    order = tuple(map(int, eqn.params["permutation"]))
    return method("{0}.T") if order == (1, 0) else method(f"{{0}}.transpose({', '.join(map(str, order))})")


@_writes("squeeze")
def _squeeze(eqn: Equation) -> Expression:
    return method(f"{{0}}.squeeze({axes_text(eqn.params['dimensions'])})")


@_writes("concatenate")
def _concatenate(eqn: Equation) -> Expression:
    places = ", ".join(f"{{{index}}}" for index in range(len(eqn.inputs)))
    axis = eqn.params["dimension"]
    axis = -1 if axis == len(eqn.out_avals[0].shape) - 1 else axis
    return call("jnp.concatenate", f"[{places}]", f"axis={axis}")


@_writes("slice")
def _slice(eqn: Equation) -> Expression:
    strides = eqn.params["strides"] or (1,) * len(eqn.params["start_indices"])
    limits = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, eqn.in_avals[0].shape, strict=True)
    return method(f"{{0}}[{index_text([_range_text(*limit) for limit in limits])}]")


def _range_text(start: Any, stop: Any, stride: int, size: Any) -> str:
    first = "" if not is_symbolic(start) and start == 0 else size_text(start)
    last = "" if stop is size or stop == size else size_text(stop)
    return f"{first}:{last}" + (f":{stride}" if stride != 1 else "")


def index_text(parts: list[str]) -> str:
    """Returns an index without the whole axes at its end, or with dots for those at its beginning."""
    while len(parts) > 1 and parts[-1] == ":":
        parts = parts[:-1]
    whole = next((index for index, part in enumerate(parts) if part != ":"), 0)
    return ", ".join(["...", *parts[whole:]] if whole > 1 else parts)


@_writes("dynamic_slice")
def _dynamic_slice(eqn: Equation) -> Expression:
    starts = ", ".join(f"{{{index}}}" for index in range(1, len(eqn.inputs)))
    return call("jax.lax.dynamic_slice", "{0}", f"({starts},)", sizes_text(eqn.params["slice_sizes"]))


@_writes("dynamic_update_slice")
def _dynamic_update_slice(eqn: Equation) -> Expression:
    starts = ", ".join(f"{{{index}}}" for index in range(2, len(eqn.inputs)))
    return call("jax.lax.dynamic_update_slice", "{0}", "{1}", f"({starts},)")


@_writes("pad")
def _pad(eqn: Equation) -> Expression:
    config = [tuple(map(int, entry)) for entry in eqn.params["padding_config"]]
    value = eqn.inputs[1]
    if isinstance(value, Literal) and value.value == 0 and all(min(entry) >= 0 and entry[2] == 0 for entry in config):
        return call("jnp.pad", "{0}", f"({', '.join(str(entry[:2]) for entry in config)},)")
    return call("jax.lax.pad", "{0}", "{1}", str(config))


@_writes("rev")
def _rev(eqn: Equation) -> Expression:
    return call("jnp.flip", "{0}", f"axis={axes_text(eqn.params['dimensions'])}")


@_writes("iota")
def _iota(eqn: Equation) -> Expression:
    shape, dtype = eqn.params["shape"], eqn.params["dtype"]
    if len(shape) == 1:
        return call(
            "jnp.arange",
            size_text(shape[0]),
            "" if dtype == jax.dtypes.canonicalize_dtype(int) else f"dtype={dtype_text(dtype)}",
        )
    return call("jax.lax.broadcasted_iota", dtype_text(dtype), sizes_text(shape), str(eqn.params["dimension"]))


def _reductions(names: dict[str, str]) -> None:
    for primitive, name in names.items():

        def write(eqn: Equation, name: str = name) -> Expression:
            return call(f"jnp.{name}", "{0}", f"axis={axes_text(eqn.params['axes'])}")

        _WRITERS[primitive] = write


_reductions({
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_and": "all",
    "reduce_or": "any",
})  # fmt: skip


@_writes("argmax", "argmin")
def _arg(eqn: Equation) -> Expression:
    dtype = dtype_text(eqn.params["index_dtype"])
    return call(f"jax.lax.{eqn.primitive}", "{0}", str(int(eqn.params["axes"][0])), dtype)


@_writes("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(eqn: Equation) -> Expression:
    reverse = "reverse=True" if eqn.params["reverse"] else ""
    return call(f"jax.lax.{eqn.primitive}", "{0}", f"axis={eqn.params['axis']}", reverse)


@_writes("reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _reduce_window(eqn: Equation) -> Expression:
    kind = eqn.primitive.removeprefix("reduce_window_")
    is_whole = np.issubdtype(eqn.in_avals[0].dtype, np.integer)
    start = {"max": "-jnp.inf", "min": "jnp.inf", "sum": "0" if is_whole else "0.0"}[kind]
    if is_whole and kind != "sum":
        start = f"jnp.iinfo({dtype_text(eqn.in_avals[0].dtype)}).{'min' if kind == 'max' else 'max'}"
    reducer = {"max": "jax.lax.max", "min": "jax.lax.min", "sum": "jax.lax.add"}[kind]
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return call("jax.lax.reduce_window", "{0}", start, reducer, *(str(_plain(eqn.params[name])) for name in names))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return int(value)


@_writes("conv_general_dilated")
def _conv(eqn: Equation) -> Expression:
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    options = [
        f"{name}={_plain(params[name])}"
        for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        if name in ("window_strides", "padding") or set(params[name]) != {1}
    ]
    options += [f"dimension_numbers=jax.lax.ConvDimensionNumbers({', '.join(str(_plain(spec)) for spec in numbers)})"]
    options += [f"{name}={params[name]}" for name in ("feature_group_count", "batch_group_count") if params[name] != 1]
    options += _element_type(eqn)
    return call("jax.lax.conv_general_dilated", "{0}", "{1}", *options)


def _element_type(eqn: Equation) -> list[str]:
    wanted = eqn.params["preferred_element_type"]
    if wanted is None or wanted == np.result_type(*(aval.dtype for aval in eqn.in_avals)):
        return []
    return [f"preferred_element_type={dtype_text(wanted)}"]


@_writes("dot_general")
def _dot_general(eqn: Equation) -> Expression:
    ((left, right), (left_batch, right_batch)) = eqn.params["dimension_numbers"]
    first, second = (len(aval.shape) for aval in eqn.in_avals)
    options = _element_type(eqn)
    if (
        not options
        and not left_batch
        and (tuple(left), tuple(right)) == ((first - 1,), (max(second - 2, 0),))
        and second < 3
    ):
        return binary("@", PRODUCT)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_left: dict[int, str] = {}
    of_right: dict[int, str] = {}
    for a, b in (*zip(left_batch, right_batch, strict=True), *zip(left, right, strict=True)):
        of_left[a] = of_right[b] = next(letters)
    batch = [of_left[axis] for axis in left_batch]
    for axes, rank in ((of_left, first), (of_right, second)):
        axes.update((axis, next(letters)) for axis in range(rank) if axis not in axes)
    free = [of_left[axis] for axis in range(first) if axis not in (*left, *left_batch)]
    free += [of_right[axis] for axis in range(second) if axis not in (*right, *right_batch)]
    texts = ["".join(axes[axis] for axis in range(rank)) for axes, rank in ((of_left, first), (of_right, second))]
    return call("jnp.einsum", f'"{",".join(texts)}->{"".join(batch + free)}"', "{0}", "{1}", *options)


@_writes("gather")
def _gather(eqn: Equation) -> Expression:
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    fields = (
        ", ".join(
            f"{name}={_plain(value)}" for name, value in zip(numbers._fields, numbers, strict=True) if _is_set(value)
        )
        if hasattr(numbers, "_fields")
        else ", ".join(f"{name}={_plain(value)}" for name, value in vars(numbers).items() if _is_set(value))
    )
    return call(
        "jax.lax.gather",
        "{0}",
        "{1}",
        f"jax.lax.GatherDimensionNumbers({fields})",
        sizes_text(eqn.params["slice_sizes"]),
        f"mode=jax.lax.GatherScatterMode.{mode.name}",
    )


def _is_set(value: Any) -> bool:
    return value is not None


@_writes("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min", "scatter-max")
def _scatter(eqn: Equation) -> Expression:
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    fields = numbers._asdict() if hasattr(numbers, "_fields") else vars(numbers)
    text = ", ".join(f"{name}={_plain(value)}" for name, value in fields.items() if _is_set(value))
    name = eqn.primitive.replace("-", "_")
    return call(
        f"jax.lax.{name}",
        "{0}",
        "{1}",
        "{2}",
        f"jax.lax.ScatterDimensionNumbers({text})",
        f"mode=jax.lax.GatherScatterMode.{mode.name}",
    )


@_writes("split")
def _split(eqn: Equation) -> Expression:
    sizes = np.cumsum(eqn.params["sizes"])[:-1].tolist()
    return call("jnp.split", "{0}", str(sizes), f"axis={eqn.params['axis']}")


@_writes("top_k")
def _top_k(eqn: Equation) -> Expression:
    return call("jax.lax.top_k", "{0}", str(eqn.params["k"]))


@_writes("sort")
def _sort(eqn: Equation) -> Expression:
    places = ", ".join(f"{{{index}}}" for index in range(len(eqn.inputs)))
    options = f"dimension={eqn.params['dimension']}", f"is_stable={eqn.params['is_stable']}"
    return call("jax.lax.sort", f"({places},)", *options, f"num_keys={eqn.params['num_keys']}")


@_writes("dim_as_value")
def _dim_as_value(eqn: Equation) -> Expression:
    return call("jnp.asarray", size_text(eqn.params["dim"]), dtype_text(eqn.out_avals[0].dtype))


@_writes("random_wrap")
def _random_wrap(eqn: Equation) -> Expression:
    return call("jax.random.wrap_key_data", "{0}", f'impl="{eqn.params["impl"].name}"')


@_writes("random_bits")
def _random_bits(eqn: Equation) -> Expression:
    dtype = {8: "jnp.uint8", 16: "jnp.uint16", 32: "jnp.uint32", 64: "jnp.uint64"}[eqn.params["bit_width"]]
    return call("jax.random.bits", "{0}", sizes_text(eqn.params["shape"]), dtype)


@_writes("random_split")
def _random_split(eqn: Equation) -> Expression:
    return call("jax.random.split", "{0}", sizes_text(eqn.params["shape"]))
