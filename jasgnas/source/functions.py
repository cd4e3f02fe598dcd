"""Which equations are a function of Flax or JAX: activations, pooling, means, attention, resizing, indexing.

Each recogniser proposes expressions, and says which equations they may stand for; what computes the same is taken.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasgnas.program.jaxpr import Atom, Equation, Literal
from jasgnas.source.agreement import Judge
from jasgnas.source.expression import Expression, call, method, run_equations
from jasgnas.source.flow import Flow, Step
from jasgnas.source.primitives import axes_text, index_text, number_text, sizes_text
from jasgnas.source.sizes import concrete, is_symbolic

_MOST_HOPS = 4


def find_functions(judge: Judge, flow: Flow) -> None:
    """Replaces equations by calls of functions."""
    _find_calls(judge, flow)
    for step in flow.steps:
        eqn = step.equation
        if eqn is None or flow.made_by.get(eqn.outputs[0]) is not step:
            continue
        for recogniser in _RECOGNISERS.get(eqn.primitive, ()):
            if recogniser(judge, flow, eqn):
                break


def _take(
    judge: Judge, flow: Flow, inputs: Sequence[int], output: int, proposals: Iterable[Expression], **options: Any
) -> bool:
    """Has a variable be computed by the first proposal that agrees with the equations; tells whether one does."""
    equations = flow.between([output], inputs)
    if not equations:
        return False
    expected = flow.part(equations, inputs, [output])
    programs = [(proposal, judge.program_of(proposal, [flow.aval(var) for var in inputs])) for proposal in proposals]
    for compute in (False, True):
        for proposal, program in programs:
            if program is not None and judge.agrees(expected, program, compute=compute, **options):
                flow.replace(Step(tuple(inputs), (output,), None, proposal))
                return True
    return False


def _find_calls(judge: Judge, flow: Flow) -> None:
    """Finds functions that JAX itself traces as calls, by their names."""
    members: dict[int, list[Step]] = {}
    names: dict[int, str] = {}
    for step in flow.steps:
        for number, name in step.equation.calls if step.equation else ():
            members.setdefault(number, []).append(step)
            names[number] = name.strip("_")
    for number in sorted(members):
        steps = [step for step in members[number] if flow.made_by.get(step.outputs[0]) is step]
        functions = [
            f"{module}.{names[number]}"
            for module, home in _HOMES.items()
            if callable(getattr(home, names[number], None))
        ]
        if not steps or not (functions or names[number] in _PROPOSED):
            continue
        inside = {var for step in steps for var in step.outputs}
        read = [var for step in steps for var in step.variables if var not in inside]
        inputs = [var for var in dict.fromkeys(read) if not _is_constant(flow, var)]
        left = [
            var
            for step in steps
            for var in step.outputs
            if flow.is_kept(var) or any(not inside.issuperset(user.outputs) for user in flow.users(var))
        ]
        if len(left) != 1 or not inputs:
            continue
        places = [f"{{{index}}}" for index in range(len(inputs))]
        proposals = [call(function, *places, option) for function in functions[:1] for option in _OPTIONS]
        if names[number] in _PROPOSED:
            proposals = list(_PROPOSED[names[number]](flow, inputs, left[0]))
        _take(judge, flow, inputs, left[0], proposals)


_HOMES = {"nnx": nnx, "jax.nn": jax.nn, "jnp": jnp}
_OPTIONS = ("", "approximate=False", "axis=-1")


def _is_constant(flow: Flow, var: int) -> bool:
    """Tells whether a variable is computed from constants alone."""
    return flow.between([var], []) is not None


def _resizes(flow: Flow, inputs: Sequence[int], output: int) -> Iterator[Expression]:
    shape = sizes_text(flow.aval(output).shape)
    for name in ("linear", "nearest", "cubic", "lanczos3"):
        yield call("jax.image.resize", "{0}", shape, f'"{name}"')


_PROPOSED = {"resize": _resizes}


def _forward(flow: Flow, var: int, primitives: Sequence[str], most: int = _MOST_HOPS) -> list[int]:
    """Returns what is made of a variable by some primitives alone, one after the other, itself first."""
    found = [var]
    while len(found) <= most:
        users = flow.users(found[-1])
        if flow.is_kept(found[-1]) or len(users) != 1 or users[0].equation is None:
            break
        if users[0].equation.primitive not in primitives:
            break
        found.append(users[0].outputs[0])
    return found


def _backward(flow: Flow, atom: Atom, primitives: Sequence[str], most: int = _MOST_HOPS) -> list[int]:
    """Returns what a variable is made of by some primitives alone, itself first."""
    found: list[int] = [atom] if isinstance(atom, int) else []
    while found and len(found) <= most:
        eqn = flow.equation_of(found[-1])
        if eqn is None or eqn.primitive not in primitives or not isinstance(eqn.inputs[0], int):
            break
        found.append(eqn.inputs[0])
    return found


_RESHAPING = ("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims")


def _mean(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    total = flow.equation_of(eqn.inputs[0])
    if total is None or total.primitive != "reduce_sum" or not isinstance(total.inputs[0], int):
        return False
    axes = axes_text(total.params["axes"])
    for output in reversed(_forward(flow, eqn.outputs[0], ("reshape", "broadcast_in_dim"), 1)):
        kept = "keepdims=True" if output != eqn.outputs[0] else ""
        if _take(judge, flow, [total.inputs[0]], output, [call("jnp.mean", "{0}", f"axis={axes}", kept)]):
            return True
    return False


def _window(eqn: Equation, flow: Flow) -> tuple[str, ...] | None:
    """Returns window, strides and padding of a reduction over the inner axes, as arguments."""
    params = eqn.params
    dimensions, strides = tuple(map(int, params["window_dimensions"])), tuple(map(int, params["window_strides"]))
    pads = tuple((int(a), int(b)) for a, b in params["padding"])
    outer = (dimensions[0], dimensions[-1], strides[0], strides[-1])
    if set(outer) != {1} or set(params["base_dilation"]) != {1} or set(params["window_dilation"]) != {1}:
        return None
    shape = concrete(tuple(eqn.in_avals[0].shape), flow.sizes)
    padding: Any = pads[1:-1]
    for name in ("VALID", "SAME"):
        if tuple(map(tuple, jax.lax.padtype_to_pads(shape, dimensions, strides, name))) == pads:
            padding = f'"{name}"'
            break
    inner = strides[1:-1]
    return (
        f"window_shape={dimensions[1:-1]}",
        f"strides={inner}",  # said even where they are 1, for those who know the default of other libraries
        "" if padding == '"VALID"' else f"padding={padding}",
    )


def _max_pool(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    window, given = _window(eqn, flow), eqn.inputs[0]
    if window is None or not isinstance(given, int):
        return False
    name = "max_pool" if eqn.primitive.endswith("max") else "min_pool"
    return _take(judge, flow, [given], eqn.outputs[0], [call(f"nnx.{name}", "{0}", *window)])


def _avg_pool(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    window, given = _window(eqn, flow), eqn.inputs[0]
    if window is None or not isinstance(given, int):
        return False
    proposals = [call("nnx.avg_pool", "{0}", *window, option) for option in ("", "count_include_pad=False")]
    return any(
        _take(judge, flow, [given], output, proposals)
        for output in _forward(flow, eqn.outputs[0], ("div", "mul"), 1)[1:]
    )


def _attention(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    """Recognises scaled dot-product attention by its second product, of the weights with the values."""
    for weights, values in (eqn.inputs, eqn.inputs[::-1]):
        scores = _scores(flow, weights)
        if scores is None:
            continue
        reshaping = (*_RESHAPING, "mul", "convert_element_type")
        sides = [
            _backward(flow, atom, reshaping if atom is not values else _RESHAPING) for atom in (*scores.inputs, values)
        ]
        outputs = _forward(flow, eqn.outputs[0], _RESHAPING)
        for first, second, third in itertools.product(*sides):
            for query, key in ((first, second), (second, first)):
                if _are_heads(flow, query, key, third):
                    for output in reversed(outputs):
                        if _shape(flow, output) == _shape(flow, query) and _take(
                            judge, flow, [query, key, third], output, _attentions(flow, [query, key, third], output)
                        ):
                            return True
    return False


def _shape(flow: Flow, var: int) -> tuple[Any, ...]:
    return tuple(flow.aval(var).shape)


def _are_heads(flow: Flow, query: int, key: int, value: int) -> bool:
    """Tells whether arrays are `[batch, tokens, heads, features]` each, and fit each other."""
    shapes = [_shape(flow, var) for var in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes) or len({query, key, value}) < 2:
        return False
    (batch, _, heads, features), (*of_key, own) = shapes[0], shapes[1]
    return own == features and shapes[2][:3] == tuple(of_key) and of_key[0] == batch and heads % of_key[2] == 0


def _scores(flow: Flow, weights: Atom) -> Equation | None:
    """Returns the product that attention weights are computed from through an exponential, if there is one."""
    seen: set[Atom] = set()
    found: list[Equation] = []
    pending = [weights]
    has_exponential = False
    while pending and len(seen) < 60:
        atom = pending.pop()
        eqn = flow.equation_of(atom)
        if eqn is None or atom in seen:
            continue
        seen.add(atom)
        has_exponential |= eqn.primitive == "exp"
        if eqn.primitive == "dot_general":
            found.append(eqn)
        else:
            pending += [each for each in eqn.inputs if isinstance(each, int)]
    return found[0] if has_exponential and len({id(eqn) for eqn in found}) == 1 else None


def _attentions(flow: Flow, inputs: Sequence[int], output: int) -> Iterator[Expression]:
    equations = flow.between([output], inputs) or []
    features = int(_shape(flow, inputs[0])[-1])
    scales = {
        number_text(atom.value, atom.aval.dtype)
        for eqn in equations
        for atom in eqn.inputs
        if eqn.primitive in ("mul", "div") and isinstance(atom, Literal) and np.ndim(atom.value) == 0
    }
    usual = number_text(np.float32(1 / np.sqrt(features)))
    options = ["", *(f"scale={scale}" for scale in sorted(scales) if scale != usual)]
    masked = any(eqn.primitive == "select_n" for eqn in equations)
    for option in options:
        yield call("jax.nn.dot_product_attention", "{0}", "{1}", "{2}", option, "is_causal=True" if masked else "")


def _index(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    """Recognises a gather at constant places as an index."""
    given, places = eqn.inputs
    if not isinstance(given, int) or not isinstance(places, int):
        return False
    computed = flow.between([places], [])
    if computed is None:
        return False
    values = {var: jnp.asarray(value) for var, value in flow.program.constants.items()}
    starts = np.asarray(run_equations(computed, values, flow.sizes)[places])
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if starts.ndim != 1 or starts.size != len(numbers.start_index_map):
        return False
    start = dict(zip(numbers.start_index_map, starts.tolist(), strict=True))
    parts = []
    for axis, (size, full) in enumerate(zip(sizes, _shape(flow, given), strict=True)):
        first = start.get(axis, 0)
        if axis in numbers.collapsed_slice_dims:
            parts.append(str(first))
        elif is_symbolic(full) or (first == 0 and size == full):
            parts.append(":")
        else:
            parts.append(f"{first or ''}:{first + size if first + size != full else ''}")
    return _take(judge, flow, [given], eqn.outputs[0], [method(f"{{0}}[{index_text(parts)}]")])


def _picked(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    """Recognises a slice of one index whose axis is left out as an index."""
    piece = flow.equation_of(eqn.inputs[0])
    if piece is None or piece.primitive != "slice" or not isinstance(piece.inputs[0], int):
        return False
    gone = [axis for axis, size in enumerate(piece.out_avals[0].shape) if not is_symbolic(size) and size == 1]
    parts = []
    limits = zip(piece.params["start_indices"], piece.params["limit_indices"], piece.in_avals[0].shape, strict=True)
    for axis, (start, stop, full) in enumerate(limits):
        if is_symbolic(full):
            parts.append(":")
        elif axis in gone and len(piece.out_avals[0].shape) - len(gone) == len(eqn.out_avals[0].shape):
            parts.append(str(start))
        else:
            parts.append(f"{start or ''}:{stop if stop != full else ''}")
    return _take(judge, flow, [piece.inputs[0]], eqn.outputs[0], [method(f"{{0}}[{index_text(parts)}]")])


def _activation(judge: Judge, flow: Flow, eqn: Equation) -> bool:
    """Recognises an activation that was written as its formula."""
    if not isinstance(eqn.inputs[0], int):
        return False
    for given in _backward(flow, eqn.inputs[0], ("neg", "mul", "div", "add"), 2):
        for output in reversed(_forward(flow, eqn.outputs[0], ("neg", "mul", "div", "add"), 3)):
            proposals = [call("nnx.gelu", "{0}", "approximate=False"), call("nnx.gelu", "{0}"), call("nnx.silu", "{0}")]
            if _take(judge, flow, [given], output, proposals):
                return True
    return False


_RECOGNISERS = {
    "erfc": (_activation,),
    "erf": (_activation,),
    "logistic": (_activation,),
    "div": (_mean,),
    "mul": (_mean,),
    "reduce_window_max": (_max_pool,),
    "reduce_window_min": (_max_pool,),
    "reduce_window_sum": (_avg_pool,),
    "dot_general": (_attention,),
    "gather": (_index,),
    "squeeze": (_picked,),
    "reshape": (_picked,),
}
"""What an equation may be the last or the first of, by its primitive."""
