"""The network to be written, of any flavour, traced anew in both of its modes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import export

from jasgnas.bridge import Leaf, Model, open_model
from jasgnas.bridge.trace import Call, trace_model
from jasgnas.errors import ArgumentError
from jasgnas.program.jaxpr import Program, call_name, inline, trace
from jasgnas.program.scans import unroll
from jasgnas.subnet.construct import Recipe, opened_subnet, stored_leaves

Apply = Callable[[Mapping[str, Any], Sequence[Any], Mapping[str, Any]], tuple[Any, dict[str, Any]]]
"""A function of arrays by path, and of the arguments of a call; returns outputs, and arrays that were changed."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A network traced in one mode.

    Attributes:
        program: the flat program. Its inputs are the leaves and the arrays of the call; its outputs those of the
            network, and the leaves that the call changes.
        out_tree: tree structure of the network outputs.
        changed: paths of the leaves that the call changes.
        derived: names of the functions in it that have derivatives of their own.
    """

    program: Program
    out_tree: Any
    changed: tuple[str, ...]
    derived: frozenset[str]


@dataclass(frozen=True, eq=False)
class Network:
    """A network, as what is to be written of it.

    Attributes:
        model: the full model.
        leaves: the arrays that the network has.
        call: the call that it is written for; some sizes of its arrays may be symbols.
        argument_names: what the positional arguments are called, as far as that is known.
        why_fixed: what JAX says of tracing the network at a batch of any size, where that is not possible; empty where
            it is.
        why_one_mode: why the network cannot be traced in the other mode than that of the call; empty where it can.
        inference: the network in inference mode.
        training: the network in training mode.
    """

    model: Model
    leaves: tuple[Leaf, ...]
    call: Call
    argument_names: tuple[str, ...]
    why_fixed: str
    why_one_mode: str
    inference: Traced
    training: Traced


def opened_network(
    network: Any, inputs: Sequence[Any], given: Mapping[str, Any], settings: Mapping[str, Any]
) -> Network:
    """Describes a sub-network or a model, see `to_source`.

    Raises:
        ArgumentError: it is neither, or what goes with it is missing or superfluous.
    """
    if (made := opened_subnet(network)) is None:
        model = open_model(network, **given)
        return _traced(model, Call.of(inputs, settings), model.leaves, _apply_full)
    recipe, model = made
    if superfluous := [name for name, value in given.items() if value is not None]:
        raise ArgumentError(f"a sub-network knows what it was made of: leave out {', '.join(superfluous)}")
    call = recipe.origin.call
    if inputs or settings:
        call = Call.of(inputs or call.arguments(call.avals)[0], settings or call.arguments(call.avals)[1])
    return _traced(model, call, tuple(stored_leaves(recipe.leaves, recipe.layouts)), _apply_sub(recipe))


def _apply_full(model: Model) -> Apply:
    def apply(arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        outputs, after = model.apply([arrays[leaf.path] for leaf in model.leaves], args, kwargs)
        return outputs, {leaf.path: value for leaf, value in zip(model.leaves, after, strict=True)}

    return apply


def _apply_sub(recipe: Recipe) -> Callable[[Model], Apply]:
    def of_model(model: Model) -> Apply:
        def apply(
            arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            return recipe.apply(model, arrays, args, kwargs)

        return apply

    return of_model


def _traced(model: Model, call: Call, leaves: tuple[Leaf, ...], apply_of: Callable[[Model], Apply]) -> Network:
    """Traces a network at a batch of any size if that is possible, and otherwise at the sizes of the call."""
    if not call.arrays:
        trace_model(model, call)  # which says that an input is missing
    variants, why_one_mode = call.variants, ""
    if len(variants) == 1:
        modes = [(apply_of(model.in_mode(training)), call) for training in (False, True)]
    else:
        modes = [(apply_of(model), variant) for variant in variants]
        why_one_mode = _why_not(modes[1], leaves)
        modes = modes[:1] * 2 if why_one_mode else modes
    why_fixed = ""
    try:
        avals = list(map(_of_any_batch, call.avals))
        traces = [_trace(apply, variant, avals, leaves) for apply, variant in modes]
    except Exception as error:
        # JAX, Flax and the code of the network have errors of their own for what cannot be done with a size that is
        # not known. Whatever has nothing to do with that fails again here.
        why_fixed = _in_words(error)
        avals = list(call.avals)
        traces = [_trace(apply, variant, avals, leaves) for apply, variant in modes]
    if len(variants) > 1 and traces[0].changed and not traces[1].changed:
        traces.reverse()  # the call as given is the one in training mode
    if traces[0].out_tree != traces[1].out_tree:
        why_one_mode = "there it returns something of another structure"
        traces = traces[:1] * 2
    call = Call(tuple(avals), call.static, call.treedef)
    return Network(model, leaves, call, model.call_names(), why_fixed, why_one_mode, *traces)


def _why_not(mode: tuple[Apply, Call], leaves: tuple[Leaf, ...]) -> str:
    """Says why a network cannot be traced in a mode, empty if it can."""
    apply, call = mode
    try:
        _trace(apply, call, call.avals, leaves)
    except Exception as error:
        # With the other arguments it may want what only training provides, such as random keys: any error is its own.
        return _in_words(error)
    return ""


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _trace(apply: Apply, call: Call, avals: Sequence[Any], leaves: Sequence[Leaf]) -> Traced:
    structures: list[Any] = []

    def run(values: Sequence[Any], arrays: Sequence[Any]) -> Any:
        given = {leaf.path: value for leaf, value in zip(leaves, values, strict=True)}
        outputs, after = apply(given, *call.arguments(arrays))
        flat, out_tree = jax.tree.flatten(outputs)
        changed = tuple(leaf.path for leaf in leaves if after.get(leaf.path, given[leaf.path]) is not given[leaf.path])
        structures.append((out_tree, changed))
        return flat, [after[path] for path in changed]

    program = trace(run, [leaf.aval for leaf in leaves], list(avals))
    flat = inline(unroll(program, [position < len(leaves) for position in range(len(program.inputs))]))
    out_tree, changed = structures[-1]
    # What is handed through has not changed.
    number = out_tree.num_leaves
    inputs = {leaf.path: var for leaf, var in zip(leaves, flat.inputs, strict=False)}
    kept = [(path, atom) for path, atom in zip(changed, flat.outputs[number:], strict=True) if atom != inputs[path]]
    flat = Program(
        flat.inputs, (*flat.outputs[:number], *(atom for _, atom in kept)), flat.equations, flat.avals, flat.constants
    )
    return Traced(flat, out_tree, tuple(path for path, _ in kept), _with_derivatives(program))


def _with_derivatives(program: Program) -> frozenset[str]:
    """Returns the names of the functions in a program that have derivatives of their own."""
    names: set[str] = set()
    for eqn in program.equations:
        if eqn.primitive in ("custom_jvp_call", "custom_vjp_call"):
            names.add(call_name(eqn))
        names.update(*map(_with_derivatives, eqn.inner))
    return frozenset(names)


def _of_any_batch(aval: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns an array whose first axis may have any size, unless it is made of random keys."""
    if not aval.shape or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return aval
    return jax.ShapeDtypeStruct((BATCH, *aval.shape[1:]), aval.dtype)


(BATCH,) = export.symbolic_shape("batch")
"""A size that may be any."""
