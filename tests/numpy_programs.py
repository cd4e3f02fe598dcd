"""Programs of JAX computed by NumPy: small ones take XLA much longer to compile than to run.

What is computed is held against the shapes and dtypes of the program. A primitive that is not listed is left to JAX.
"""

import string
from functools import partial

import jax
import numpy as np
from jax.extend.core import Literal


def computed(fn, *args):
    """What a function returns, traced and computed by NumPy."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes), run(closed, jax.tree.leaves(args)))


def run(closed, args):
    """The results of a closed jaxpr."""
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    env.update(zip(jaxpr.invars, map(np.asarray, args), strict=True))

    def read(atom):
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        name, avals = eqn.primitive.name, [var.aval for var in eqn.outvars]
        found = results(name, eqn.params, [read(atom) for atom in eqn.invars], avals, partial(bind, eqn))
        env.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn, *operands):
    found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return found if eqn.primitive.multiple_results else [found]


def results(name, params, operands, avals, bind):
    """The results of an equation."""
    if name in PRIMITIVES and params.get("batch_group_count", 1) == 1:
        with np.errstate(all="ignore"):
            found = PRIMITIVES[name](params, *operands)
    else:
        found = bind(*operands)
    found = [np.asarray(each) for each in (found if isinstance(found, list) else [found])]
    for each, aval in zip(found, avals, strict=True):
        assert (each.shape, each.dtype) == (aval.shape, aval.dtype), f"{name}: {each.dtype} {each.shape}, not {aval}"
    return found


def broadcast_in_dim(params, x):
    shape, dims = params["shape"], params["broadcast_dimensions"]
    sizes = dict(zip(dims, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def padded(x, value, config):
    """An array with something around its entries and between them; negative numbers cut entries off."""
    for axis, (low, high, between) in enumerate(config):
        at = (slice(None),) * axis
        size = max(0, (x.shape[axis] - 1) * (between + 1) + 1)
        wide = np.full((*x.shape[:axis], max(0, low) + size + max(0, high), *x.shape[axis + 1 :]), value, x.dtype)
        wide[*at, max(0, low) :][*at, : size : between + 1] = x
        x = wide[*at, max(0, -low) : wide.shape[axis] - max(0, -high)]
    return x


def windows(x, sizes, strides, dilations):
    """All windows of an array, `[positions…, offsets…]`."""
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, extents)
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return view[tuple(steps)]


def spread(x, value, padding, dilations):
    """An array padded along all axes, its entries so far apart."""
    return padded(x, value, [(*sides, dilation - 1) for sides, dilation in zip(padding, dilations, strict=True)])


def reduce_window(reduce, neutral, params, x):
    x = spread(x, neutral, params["padding"], params["base_dilation"])
    found = windows(x, params["window_dimensions"], params["window_strides"], params["window_dilation"])
    return reduce(found, axis=tuple(range(x.ndim, 2 * x.ndim)))


def conv_general_dilated(params, x, kernel):
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    x, kernel = x.transpose(numbers.lhs_spec), kernel.transpose(numbers.rhs_spec)
    sizes, rest = kernel.shape[2:], (1, 1)
    x = spread(x, 0, ((0, 0), (0, 0), *params["padding"]), (*rest, *params["lhs_dilation"]))
    found = windows(x, (*rest, *sizes), (*rest, *params["window_strides"]), (*rest, *params["rhs_dilation"]))
    # Batch, groups, channels of a group, positions; two axes of windows of one entry; offsets.
    found = found.reshape(len(x), groups, -1, *found.shape[2 : x.ndim], *sizes)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    positions, offsets = string.ascii_lowercase[: len(sizes)], string.ascii_lowercase[len(sizes) : 2 * len(sizes)]
    result = np.einsum(f"NGC{positions}{offsets},GOC{offsets}->NGO{positions}", found, kernel)
    return result.reshape(len(x), -1, *result.shape[3:]).transpose(np.argsort(numbers.out_spec))


def dot_general(params, a, b):
    (a_sum, b_sum), (a_batch, b_batch) = params["dimension_numbers"]
    a_names, b_names = list(string.ascii_lowercase[: a.ndim]), list(string.ascii_uppercase[: b.ndim])
    for i, j in (*zip(a_sum, b_sum, strict=True), *zip(a_batch, b_batch, strict=True)):
        b_names[j] = a_names[i]
    free = [name for axis, name in enumerate(a_names) if axis not in (*a_sum, *a_batch)]
    free += [name for axis, name in enumerate(b_names) if axis not in (*b_sum, *b_batch)]
    names = "".join([a_names[axis] for axis in a_batch] + free)
    return np.einsum(f"{''.join(a_names)},{''.join(b_names)}->{names}", a, b)


def scan(params, *operands):
    num_consts, num_carry, length = params["num_consts"], params["num_carry"], params["length"]
    consts, carry = operands[:num_consts], list(operands[num_consts : num_consts + num_carry])
    rows = [None] * length
    for index in reversed(range(length)) if params["reverse"] else range(length):
        found = run(params["jaxpr"], [*consts, *carry, *(x[index] for x in operands[num_consts + num_carry :])])
        carry, rows[index] = found[:num_carry], found[num_carry:]
    return [*carry, *(np.stack(ys) for ys in zip(*rows, strict=True))]


def iota(params):
    shape, axis = params["shape"], params["dimension"]
    return np.indices(shape, params["dtype"])[axis]


def strided_slice(params, x):
    strides = params["strides"] or [1] * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def cumulative(fn, params, x):
    def flip(y):
        return np.flip(y, params["axis"]) if params["reverse"] else y

    return flip(fn(flip(x), axis=params["axis"], dtype=x.dtype))


def elementwise(fn):
    return lambda _, *operands: fn(*operands)


def reduction(fn):
    return lambda params, x: fn(x, axis=tuple(params["axes"])).astype(x.dtype)


def call(params, *operands):
    return run(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"], operands)


PRIMITIVES = {
    **{name: elementwise(fn) for name, fn in {
        "abs": np.abs, "add": np.add, "and": np.bitwise_and, "eq": np.equal, "exp": np.exp, "ge": np.greater_equal,
        "gt": np.greater, "le": np.less_equal, "log": np.log, "logistic": lambda x: 1 / (1 + np.exp(-x)),
        "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply, "ne": np.not_equal,
        "neg": np.negative, "not": np.invert, "or": np.bitwise_or, "rsqrt": lambda x: 1 / np.sqrt(x),
        "sign": np.sign, "sqrt": np.sqrt, "square": np.square, "stop_gradient": lambda x: x, "sub": np.subtract,
        "tanh": np.tanh,
        "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
        "div": lambda a, b: a / b if np.issubdtype(a.dtype, np.inexact) else np.trunc(a / b).astype(a.dtype),
        "rem": np.fmod,
        "select_n": lambda which, *cases: np.choose(which.astype(int), cases, mode="clip"),
    }.items()},
    "argmax": lambda params, x: np.argmax(x, *params["axes"]).astype(params["index_dtype"]),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "conv_general_dilated": conv_general_dilated,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "cumsum": partial(cumulative, np.cumsum),
    "custom_jvp_call": call,
    "dot_general": dot_general,
    "integer_pow": lambda params, x: x ** params["y"],
    "iota": iota,
    "jit": call,
    "pad": lambda params, x, value: padded(x, value, params["padding_config"]),
    "reduce_max": reduction(np.max),
    "reduce_sum": reduction(np.sum),
    "reduce_window_max": partial(reduce_window, np.max, -np.inf),
    "reduce_window_sum": partial(reduce_window, np.sum, 0),
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "scan": scan,
    "slice": strided_slice,
    "split": lambda params, x: np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"]),
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
}  # fmt: skip
"""What NumPy computes each primitive by, given its parameters and operands."""
