"""A saved network as a file of ONNX: made of its source, and compared with it in onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.bridge.trace import Call
from jasgnas.errors import ArgumentError, ExportError, VerificationError
from jasgnas.saved.check import Check
from jasgnas.saved.folder import MANIFEST, read_files, read_manifest, reading
from jasgnas.saved.manifest import of_type
from jasgnas.saved.network import Network, array_arguments, symbolic_avals
from jasgnas.saved.trees import rebuilt
from jasgnas.saved.written import loaded
from jasgnas.subnet.verify import Difference


def export_onnx(folder: Path, output: Path) -> float:
    """Converts a saved network to ONNX by jax2onnx, and computes the check inputs anew in onnxruntime.

    The `model.py` of the folder is run, so convert only what you have saved yourself or could run anyway. What may have
    any size when it is saved may have any size in the file. Nothing is written where outputs differ.

    Args:
        folder: what `jasgnas.save` has written.
        output: the file to write.

    Returns:
        The largest difference in an output to what the sub-network returned when it was saved, and at sizes twice as
        large to what its source returns.

    Raises:
        ArgumentError: there is something at the place of the file, or a package is missing.
        SavedNetworkError: the folder is not as `jasgnas.save` has written it.
        ExportError: the folder has no source, or jax2onnx or onnxruntime refuses the network.
        VerificationError: onnxruntime returns something else.
    """
    try:
        import onnx
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ArgumentError(
            f"{error}: install jasgnas[onnx], in an environment of its own, since jax2onnx wants an older Orbax than "
            "the other extras do; the folder that jasgnas.save has written is all that it needs"
        ) from error
    if output.exists():
        raise ArgumentError(f"there is a {output} already, and nothing is overwritten: remove it, or write elsewhere")
    manifest = read_manifest(folder)
    files = read_files(folder, manifest)
    with reading(folder / MANIFEST):
        call = Call.of(*rebuilt(manifest["network"]["arguments"]))
        avals = symbolic_avals(call, manifest["network"]["symbolic"])
        check = Check.from_bytes(files["check.safetensors"], of_type(manifest["check"]["tolerance"], float))
        if "model.py" not in files:
            why = manifest.get("source", {}).get("why", "it was saved with source=False")
            raise ExportError(f"{folder} holds no model.py, which is what is converted: {why}")
    network = loaded(files["model.py"].decode("utf-8"), folder / "params.safetensors", call)
    try:
        shapes = [jax.ShapeDtypeStruct(tuple(map(_size, aval.shape)), aval.dtype) for aval in avals]
        model = to_onnx(lambda *arrays: _outputs(network, call, arrays), shapes)
        # jax2onnx 0.17 moves transposes last, and leaves the shapes from before, which onnxruntime takes for errors.
        del model.graph.value_info[:]
        data = onnx.shape_inference.infer_shapes(model).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # no warnings of constants that are left over
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Both have errors of many classes for what they do not know.
        raise ExportError(
            f"the network cannot be converted to ONNX ({type(error).__name__}: {str(error)[:2000]}). What its "
            "model.py calls can be written in another way there, and the file converted by jax2onnx"
        ) from error
    difference = 0.0
    for inputs, expected in _cases(network, call, avals, check):
        given = {each.name: np.asarray(value) for each, value in zip(session.get_inputs(), inputs, strict=True)}
        for index, (before, after) in enumerate(zip(expected, session.run(None, given), strict=True)):
            found = Difference.between(before, after)
            if not found.is_within(check.tolerance):
                raise VerificationError(
                    f"converted to ONNX, output {index} differs by up to {found.largest:.3g}, where the largest entry "
                    f"is {found.scale:.3g}. jax2onnx has converted something else: nothing is written"
                )
            difference = max(difference, found.largest)
    output.write_bytes(data)
    return difference


def _size(size: Any) -> Any:
    """Returns a size as jax2onnx takes it: those that may be any are names."""
    return size if isinstance(size, int) else str(size)


def _outputs(network: Network, call: Call, arrays: Sequence[Any]) -> list[Any]:
    args, kwargs = array_arguments(call, arrays)
    return jax.tree.leaves(network({}, *args, **kwargs))


def _cases(network: Network, call: Call, avals: Sequence[Any], check: Check) -> list[tuple[Sequence[Any], Any]]:
    """Returns inputs and what is expected of them: those saved, and twice as many along what may have any size."""
    larger = []
    for value, aval in zip(check.inputs, avals, strict=True):
        for axis, size in enumerate(aval.shape):
            if not isinstance(size, int):
                value = jnp.concatenate([value, value], axis)
        larger.append(value)
    return [(check.inputs, check.outputs), (larger, _outputs(network, call, larger))]
