"""The network of a folder: exported by JAX for several platforms, and called without the code that it came from."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax import export

from jasgnas.bridge import Model
from jasgnas.bridge.trace import Call
from jasgnas.errors import ArgumentError, ExportError, JasgnasError, RuleError, SavedNetworkError
from jasgnas.program.jaxpr import is_array
from jasgnas.saved.tensors import is_key, raw, raw_aval, typed
from jasgnas.subnet.construct import Recipe

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where an exported network runs."""

_WIDE = tuple(map(np.dtype, (np.int64, np.uint64, np.float64)))

Network = Callable[..., Any]
"""A function `network(params, *args, **kwargs)` of arrays by path and of the array arguments of a call, in inference
mode; typed random keys are the numbers they are made of."""


def array_arguments(call: Call, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call without those that hold no array, which are fixed once it is exported."""
    flat = dict(zip(sorted(set(range(call.treedef.num_leaves)) - dict(call.static).keys()), arrays, strict=True))
    args, kwargs = jax.tree.unflatten(call.treedef, [flat.get(index) for index in range(call.treedef.num_leaves)])
    return (
        tuple(value for value in args if jax.tree.leaves(value)),
        {name: value for name, value in kwargs.items() if jax.tree.leaves(value)},
    )


def network_of(recipe: Recipe, model: Model, call: Call) -> Network:
    """Returns a sub-network as a network, with what is no array in a call fixed.

    Args:
        recipe: how the sub-network computes.
        model: the full model, in inference mode.
        call: the call.
    """
    avals = {leaf.path: leaf.aval for leaf in recipe.leaves}

    def network(params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        arrays = {path: typed(value, avals[path]) for path, value in params.items()}
        arguments = zip(jax.tree.leaves((args, kwargs)), call.avals, strict=True)
        positional, named = call.arguments([typed(value, aval) for value, aval in arguments])
        return recipe.apply(model, arrays, positional, named)[0]

    return network


def symbolic_avals(call: Call, symbolic: Sequence[str]) -> list[jax.ShapeDtypeStruct]:
    """Returns the arrays of a call, with symbols for the sizes of some axes.

    Args:
        call: the call.
        symbolic: `path:axis` each, where the path may be a pattern; one symbol for each number of an axis.

    Raises:
        ArgumentError: one of them names no axis of any array.
    """
    shapes = [list(aval.shape) for aval in call.avals]
    scope = export.SymbolicScope()
    for entry in symbolic:
        pattern, _, axis = entry.rpartition(":") if isinstance(entry, str) else ("", "", "")
        chosen = [
            index
            for index, (path, aval) in enumerate(zip(call.paths, call.avals, strict=True))
            if axis.isdecimal()
            and int(axis) < len(aval.shape)
            and fnmatchcase(path, pattern)
            and not is_key(aval.dtype)
        ]
        if not chosen:
            arrays = ", ".join(f"{path} ({spec(aval)})" for path, aval in zip(call.paths, call.avals, strict=True))
            raise ArgumentError(
                f"symbolic={entry!r} names no axis of an input: expected path:axis, as in '0:0'; there are {arrays}"
            )
        (symbol,) = export.symbolic_shape("batch" if int(axis) == 0 else f"axis{int(axis)}", scope=scope)
        for index in chosen:
            shapes[index][int(axis)] = symbol
    return [jax.ShapeDtypeStruct(tuple(shape), aval.dtype) for shape, aval in zip(shapes, call.avals, strict=True)]


def exported_network(
    network: Network, params: Mapping[str, Any], call: Call, symbolic: Sequence[str]
) -> tuple[export.Exported, bytes]:
    """Exports a network for all platforms, and serializes it.

    Args:
        network: the network.
        params: its arrays by path.
        call: the call that it is exported for.
        symbolic: see `symbolic_avals`.

    Raises:
        ArgumentError: an entry of `symbolic` names no axis of any array.
        ExportError: JAX cannot export the network, or not with these symbols.
    """
    args, kwargs = array_arguments(call, list(map(raw_aval, symbolic_avals(call, symbolic))))
    exported = None
    try:
        exported = export.export(jax.jit(network), platforms=PLATFORMS)(dict(params), *args, **kwargs)
        return exported, bytes(exported.serialize())
    except Exception as error:
        if isinstance(error, JasgnasError) and not isinstance(error, RuleError):
            raise
        advice = "JAX says what it cannot export, which is to be written in another way"
        if exported is not None:
            advice = "JAX stores inputs and outputs in lists, tuples and dictionaries whose keys are texts"
        elif symbolic:
            advice = (
                f"it was exported with symbolic={tuple(symbolic)!r}, for any size of these axes. Name those that may "
                "have any size, as in symbolic=('0:0',), or export for the shapes of the example inputs alone: "
                "symbolic=()"
            )
        raise ExportError(
            f"the sub-network cannot be exported: {advice}. {type(error).__name__}: {str(error)[:2000]}"
        ) from error


def deserialized(data: bytes, params: Mapping[str, Any]) -> export.Exported:
    """Returns an exported network.

    Raises:
        SavedNetworkError: it calls back into Python, or takes other arrays than these.
    """
    exported = export.deserialize(bytearray(data))
    # JAX exports none of them. What they call is an address in memory, and must not come from a file.
    targets = re.findall(r'custom_call\s*@"?([^"(\s]+)|call_target_name\s*=\s*"([^"]*)"', exported.mlir_module())
    if any("callback" in target for pair in targets for target in pair):
        raise SavedNetworkError("the exported network calls back into Python, which no saved network does")
    (first, *_), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    found = {name: (aval.shape, aval.dtype) for name, aval in first.items()}
    if found != {name: (value.shape, value.dtype) for name, value in params.items()}:
        raise SavedNetworkError("the exported network takes other parameters than those that were saved with it")
    return exported


def spec(aval: Any) -> str:
    """Returns shape and dtype of an array as in `float32[batch,32,32,3]`."""
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"


def signature(exported: export.Exported) -> tuple[str, str]:
    """Returns what the network takes beside its parameters, and what it returns, as texts."""
    (_, *args), kwargs = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return _arguments(args, kwargs), _text(jax.tree.unflatten(exported.out_tree, exported.out_avals))


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    return f"({', '.join([*map(_text, args), *(f'{name}={_text(value)}' for name, value in kwargs.items())])})"


def _text(tree: Any) -> str:
    texts = jax.tree.map(lambda value: spec(value) if hasattr(value, "dtype") else repr(value), tree)
    return texts if isinstance(texts, str) else repr(texts).replace("'", "")


def needs_x64(exported: export.Exported) -> bool:
    """Tells whether a network takes or returns numbers of 64 bits, which JAX has to be told to allow."""
    return any(aval.dtype in _WIDE for aval in (*exported.in_avals, *exported.out_avals))


def require_allowed(values: Iterable[Any]) -> None:
    """Raises an `ArgumentError` if arrays are of 64 bits, and JAX does not allow them."""
    if any(value.dtype in _WIDE and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype for value in values):
        raise ArgumentError(
            "this network computes with numbers of 64 bits: call jax.config.update('jax_enable_x64', True) first"
        )


class LoadedNetwork:
    """A network in inference mode that runs without the code it came from.

    It is called with the arguments of the sub-network that was saved, but those that hold no array, which were fixed
    when it was saved. Printed, it says what it takes and returns.
    """

    def __init__(self, exported: export.Exported, params: Mapping[str, Any]):
        """Takes the exported network and its parameters.

        Raises:
            ArgumentError: the network has numbers of 64 bits, and JAX does not allow them.
        """
        require_allowed((*exported.in_avals, *exported.out_avals))
        self._exported = exported
        self._params = jax.device_put(dict(params))
        self._run = jax.jit(exported.call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs of the network.

        Raises:
            ArgumentError: these are not the arguments it takes.
        """
        in_tree: Any = self._exported.in_tree
        flat, treedef = jax.tree.flatten(((self._params, *args), kwargs))
        flat = [raw(value) if is_array(value) and is_key(value.dtype) else value for value in flat]
        if in_tree != treedef or not all(map(_fits, flat, self._exported.in_avals)):
            raise ArgumentError(
                f"this network takes the arguments {signature(self._exported)[0]}, got {_arguments(args, kwargs)}"
            )
        args, kwargs = jax.tree.unflatten(treedef, flat)
        return self._run(*args, **kwargs)

    def __repr__(self) -> str:
        """Says what it takes and returns."""
        takes, returns = signature(self._exported)
        size = sum(math.prod(value.shape) for value in self._params.values())
        return f"LoadedNetwork{takes} -> {returns}, {size:,} numbers"


def _fits(value: Any, aval: Any) -> bool:
    """Tells whether an argument can be meant by one that is described; sizes that are symbols may be any."""
    if not is_array(value) or value.dtype != aval.dtype or len(value.shape) != len(aval.shape):
        return False
    return all(not isinstance(size, int) or size == own for own, size in zip(value.shape, aval.shape, strict=True))
