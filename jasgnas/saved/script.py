"""The script in a folder that runs its network with jax, numpy, safetensors and flatbuffers alone."""

from jax import export

from jasgnas.saved.network import needs_x64, signature

_SCRIPT = '''"""Runs the network saved here; by itself, it computes the saved check inputs anew.

network{takes} -> {returns}
"""

from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

{setting}FOLDER = Path(__file__).parent
EXPORTED = export.deserialize(bytearray((FOLDER / "model.jax_export").read_bytes()))
PARAMS = jax.device_put(load_file(FOLDER / "params.safetensors"))
CALL = jax.jit(EXPORTED.call)


def network(*args, **kwargs):
    return CALL(PARAMS, *args, **kwargs)


if __name__ == "__main__":
    check = load_file(FOLDER / "check.safetensors")
    inputs = [check[f"inputs/{{index}}"] for index in range(len(EXPORTED.in_avals) - len(PARAMS))]
    args, kwargs = jax.tree.unflatten(EXPORTED.in_tree, [*jax.tree.leaves(PARAMS), *inputs])
    for index, output in enumerate(jax.tree.leaves(CALL(*args, **kwargs))):
        difference = np.abs(np.asarray(output).astype(complex) - check[f"outputs/{{index}}"]).max(initial=0)
        print(f"output {{index}}: shape {{output.shape}}, largest difference {{difference:.3g}}")
'''


def run_script(exported: export.Exported) -> str:
    """Returns the source of the script."""
    # Names are the user's, and may hold what would end the string that they are written into.
    takes, returns = (text.replace("\\", "/").replace('"', "'") for text in signature(exported))
    setting = 'jax.config.update("jax_enable_x64", True)\n' if needs_x64(exported) else ""
    return _SCRIPT.format(takes=takes, returns=returns, setting=setting)
