"""The source of a saved network as a file that loads its arrays, kept only if it returns what the network returns."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jasgnas.bridge.trace import Call
from jasgnas.program.jaxpr import key_implementation
from jasgnas.saved.check import Check
from jasgnas.saved.network import Network, array_arguments
from jasgnas.saved.tensors import is_key, raw, typed
from jasgnas.saved.trees import Json
from jasgnas.source.to_source import WrittenSource, written_source

# Random streams of Flax count in traced numbers here, which takes longer with the square of the number of layers.
_LOAD = '''

def load(path):
    """Returns the network in inference mode, with the arrays of a params.safetensors."""
    from types import SimpleNamespace

    import jax
    from safetensors.numpy import load_file

    {lines}
    rngs = SimpleNamespace(params=lambda: jax.random.key(0))  # for shapes alone: no array is drawn
    network = nnx.eval_shape(lambda: {name}(rngs=rngs))
    for keys, variable in nnx.to_flat_state(nnx.state(network)):
        variable.set_value(arrays["/".join(map(str, keys))])
    network.eval()
    return network
'''

_READ = "arrays = jax.device_put(load_file(path))"


def write_source(
    path: Path, subnet: Any, call: Call, arrays: Mapping[str, Any], check: Check, *, needs_x64: bool
) -> dict[str, Json]:
    """Writes a sub-network as source into a folder that holds its arrays already, where that is possible.

    Args:
        path: the file.
        subnet: the sub-network.
        call: the call that it is saved for.
        arrays: its arrays by path.
        check: inputs, and what it returns for them.
        needs_x64: whether it computes with numbers of 64 bits.

    Returns:
        For the manifest: the file, the largest difference in an output, and what the source does not do that the
        sub-network does; or why there is none.
    """
    try:
        args, kwargs = call.arguments(call.avals)
        source = written_source(subnet, args, {}, kwargs)
        loader = _loader(source, arrays)
        network = loaded(source.text + loader, path.with_name("params.safetensors"), call)
        difference = check.require_equal(network, {}, call, "It is written as source in another way: report it")
    except Exception as error:
        # The network runs without its source, which is written in training mode, too: whatever it does not get through
        # there, in its own code, in Flax or in JAX, is no reason not to save it.
        return {"file": None, "why": f"{type(error).__name__}: {str(error)[:2000]}"}
    if needs_x64:
        loader = loader.replace(_READ, f'jax.config.update("jax_enable_x64", True)\n    {_READ}')
    path.write_text(source.text + loader, encoding="utf-8")
    return {"file": path.name, "largest_difference": difference, "notes": list(map(str, source.notes))}


def _loader(source: WrittenSource, arrays: Mapping[str, Any]) -> str:
    """Returns a function that makes the network of a source and loads its arrays, given by path."""
    lines = [_READ]
    for place, path in source.paths.items():
        if is_key(arrays[path].dtype):
            name = key_implementation(arrays[path].dtype)
            lines.append(f'arrays["{place}"] = jax.random.wrap_key_data(arrays["{path}"], impl="{name}")')
        elif place != path:
            lines.append(f'arrays["{place}"] = arrays["{path}"]')
    network = re.findall(r"^class (\w+)", source.text, re.MULTILINE)[-1]
    return _LOAD.format(lines="\n    ".join(lines), name=network)


def loaded(text: str, params: Path, call: Call) -> Network:
    """Runs what `write_source` writes.

    Args:
        text: the file.
        params: the file with the arrays.
        call: the call that the network is saved for.

    Returns:
        The network; it has its arrays, and is given none.
    """
    from flax import nnx  # Flax is loaded by those who use it.

    space: dict[str, Any] = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), space)
    graphdef, state = nnx.split(space["load"](params))

    def network(_: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = [typed(value, aval) for value, aval in zip(jax.tree.leaves((args, kwargs)), call.avals, strict=True)]
        positional, named = array_arguments(call, given)
        outputs = nnx.merge(graphdef, state, copy=True)(*positional, **named)
        return jax.tree.map(raw, outputs)

    return network
