"""Saving a sub-network: its parameters, what it computes as JAX exports it, what it is, and a script that runs it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jasgnas.bridge import Leaf, Model
from jasgnas.bridge.trace import Call, trace_model
from jasgnas.errors import ArgumentError
from jasgnas.pages import report as write_report
from jasgnas.program.jaxpr import Program, inline, trace
from jasgnas.program.macs import program_macs
from jasgnas.pytree import leaves_by_path
from jasgnas.saved.check import Check
from jasgnas.saved.folder import new_folder, write_manifest
from jasgnas.saved.manifest import Source, versions
from jasgnas.saved.network import (
    PLATFORMS,
    Network,
    array_arguments,
    exported_network,
    needs_x64,
    network_of,
    signature,
)
from jasgnas.saved.script import run_script
from jasgnas.saved.tensors import raw, raw_aval, to_bytes
from jasgnas.saved.trees import Json, described
from jasgnas.saved.written import write_source
from jasgnas.subnet.construct import Recipe, opened_subnet, stored_leaves


def save(
    path: str | Path,
    subnet: Any,
    sub_variables: Any = None,
    *,
    inputs: Any = None,
    symbolic: Sequence[str] | str = ("*:0",),
    source: bool = True,
    report: bool = False,
    stablehlo: bool = False,
) -> Path:
    """Saves a sub-network as a folder, from which it runs without the code of the model.

    The folder holds `params.safetensors`; `model.jax_export`, the network in inference mode as `jax.export` serializes
    it for CPUs, CUDA GPUs and TPUs; `run.py`, which runs it and needs jax, numpy, safetensors and flatbuffers alone;
    `model.py`, the source of the network (see `to_source`) with a function that loads its parameters, where it can be
    written; `check.safetensors`, inputs and what the sub-network returns for them; and `manifest.json`: versions,
    inputs and outputs, sizes, what was removed, the largest differences between the exported and the written network
    and the sub-network, why there is no `model.py` where there is none, and hashes of all files. Nothing in it is a
    pickle. It is written beside its place, and moved there once it is whole.

    Args:
        path: the folder to make.
        subnet: the sub-network: the `nnx.Module`, the Linen module or the function that `construct_subnet` returned.
        sub_variables: the variables of the Linen module, or the parameters of the function.
        inputs: the positional arguments that the network is exported for: an array, a `jax.ShapeDtypeStruct`, or a
            tuple of arguments; by default those that the search space was made with. Arguments by keyword are those of
            the search space. Arrays are also the check inputs, which are random otherwise; what is no array is fixed.
        symbolic: the axes that may have any size, `path:axis` each: `0:0` is axis 0 of the first argument, `mask:0`
            that of the keyword `mask`; the path may be a pattern as in a shell. Axes of one number have one size. By
            default axis 0 of every array input, the batch; `()` fixes all shapes.
        source: whether to write `model.py`.
        report: whether to write `report.html`, the page of `jasgnas.report`.
        stablehlo: whether to write `model.stablehlo.mlir`, the exported network as text.

    Returns:
        The path of the folder.

    Raises:
        ArgumentError: there is something at the path; `subnet` is no sub-network, or what goes with it is missing or
            superfluous; an array is abstract, or of a dtype that the format does not have; `symbolic` names no axis.
        TreeMismatchError: the arrays are not those of the sub-network.
        ExportError: JAX cannot export the network, or not for any size of these axes.
        VerificationError: the exported network returns something else than the sub-network.
        OSError: the folder cannot be written.
    """
    recipe, model, arrays = _opened(subnet, sub_variables)
    call = _example(recipe.origin.call, inputs)
    content = Source.of(model, recipe.origin).to_json()
    symbolic = (symbolic,) if isinstance(symbolic, str) else tuple(symbolic)
    network = network_of(recipe, model, call)
    params = {name: raw(array) for name, array in arrays.items()}
    traced = trace_model(model, call)
    path = Path(path)
    with new_folder(path) as folder:
        (folder / "params.safetensors").write_bytes(to_bytes(params))
        flat = inline(replace(traced.program, outputs=traced.outputs))
        check = Check.of(network, params, call, flat, len(model.leaves))
        (folder / "check.safetensors").write_bytes(check.to_bytes())
        exported, data = exported_network(network, params, call, symbolic)
        (folder / "model.jax_export").write_bytes(data)
        difference = check.require_equal(exported.call, params, call, "JAX has exported something else: report it")
        (folder / "run.py").write_text(run_script(exported), encoding="utf-8")
        if source:
            file = folder / "model.py"
            content["source"] = write_source(file, subnet, call, arrays, check, needs_x64=needs_x64(exported))
        if stablehlo:
            (folder / "model.stablehlo.mlir").write_text(exported.mlir_module(), encoding="utf-8")
        if report:
            write_report(recipe.origin.space(model), path=folder / "report.html", redundant=recipe.origin.removed)
        takes, returns = signature(exported)
        content["network"] = {
            "takes": takes,
            "returns": returns,
            "platforms": list(PLATFORMS),
            "symbolic": list(symbolic),
            "arguments": described(tuple(call.arguments(call.avals))),
        }
        content["check"] = {"largest_difference": difference, "tolerance": check.tolerance}
        content["sizes"] = {
            "full": _sizes(model.leaves, traced.program),
            "sub": _sizes(stored_leaves(recipe.leaves, recipe.layouts), _traced(network, params, call)),
        }
        write_manifest(folder, {"versions": versions(), **content})
    return path


def _opened(subnet: Any, sub_variables: Any) -> tuple[Recipe, Model, dict[str, Any]]:
    """Returns how a sub-network computes, its full model in inference mode, and its arrays by path."""
    if (made := opened_subnet(subnet)) is None:
        raise ArgumentError(
            f"expected a sub-network, as jasgnas.construct_subnet or jasgnas.shrink returns it, got {type(subnet)!r}: "
            "pass the module of NNX or Equinox; or a Linen module and its variables, or a function and its parameters, "
            "as two arguments"
        )
    recipe, model = made
    if (sub_variables is None) == model.is_apart:
        advice = f"pass them as `sub_variables`; {model.why}" if model.is_apart else f"{model.why}: leave them out"
        raise ArgumentError(f"a sub-network that is of the kind {model.kind}: {advice}")
    arrays = leaves_by_path(model.tree(model.holder(subnet, sub_variables)))
    recipe.check(arrays)
    if abstract := [
        name for name, value in arrays.items() if isinstance(value, jax.ShapeDtypeStruct | jax.core.Tracer)
    ]:
        raise ArgumentError(
            f"the values of {', '.join(abstract[:4])} are not known: pass the arrays themselves, outside of jax.jit "
            "and other transformations"
        )
    return recipe, model.in_mode(training=False), arrays


def _example(call: Call, inputs: Any) -> Call:
    """Returns the call that a network is exported for."""
    if inputs is None:
        return call
    return Call.of(inputs if isinstance(inputs, tuple) else (inputs,), call.arguments(call.avals)[1])


def _traced(network: Network, params: Mapping[str, Any], call: Call) -> Program:
    """Returns the program of a network."""

    def run(params: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        args, kwargs = array_arguments(call, arrays)
        return network(params, *args, **kwargs)

    return trace(run, dict(params), list(map(raw_aval, call.avals)))


def _sizes(leaves: Sequence[Leaf], program: Program) -> dict[str, Json]:
    """Returns the trainable parameters, and the multiply-adds of a call."""
    params = sum(math.prod(leaf.shape) for leaf in leaves if leaf.trainable)
    return {"params": params, "macs": program_macs(program)}
