"""What is saved in one process runs in others: without the library, and trainable again with it."""

import sysconfig
from pathlib import Path

import flatbuffers
import jax
import numpy as np
import pytest
import safetensors

import jasgnas
from tests.saved.flavours import MAKE, X, bits, run_python

BARE = """
import runpy, sys
import importlib.abc

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jasgnas", "flax", "optax", "jraph", "models", "tests"):
            raise ModuleNotFoundError(f"there is no {name} here")

sys.meta_path.insert(0, Missing())
sys.path += %s
runpy.run_path(%s, run_name="__main__")
import numpy as np
outputs = runpy.run_path(%s)["network"](np.load(%s))
import jax
np.save(%s, jax.tree.leaves(outputs)[0])
"""


@pytest.mark.parametrize("flavour", MAKE)
def test_the_script_needs_nothing_of_the_library(flavour, tmp_path):
    saved = MAKE[flavour]()
    folder = jasgnas.save(tmp_path / "network", *saved.subnet)
    x = np.cos(np.arange(36, dtype=np.float32).reshape(9, 4))
    np.save(tmp_path / "x.npy", x)
    # Isolated, and without the site module: neither PYTHONPATH nor an editable installation is seen.
    places = {
        sysconfig.get_path("purelib"),
        *(str(Path(each.__file__).parents[1]) for each in (safetensors, flatbuffers)),
    }
    script, given, result = (str(path) for path in (folder / "run.py", tmp_path / "x.npy", tmp_path / "y.npy"))
    printed = run_python(BARE % (sorted(places), *map(repr, (script, script, given, result))), "-I", "-S")
    assert printed.startswith("output 0: shape (6, 3), largest difference ")
    assert float(printed.split()[-1]) < 1e-6
    (expected,) = jax.tree.leaves(saved.call(*saved.subnet, x))
    np.testing.assert_allclose(np.load(result), expected, rtol=1e-5, atol=1e-6)


def test_the_script_is_short(tmp_path):
    folder = jasgnas.save(tmp_path / "network", *MAKE["nnx"]().subnet)
    lines = [line for line in (folder / "run.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 22


TRAINABLE = """
import jax, numpy as np
import jasgnas
from tests.saved.flavours import MAKE, X, bits

saved = MAKE[%r]()
subnet = jasgnas.load(%r, saved.model)
subnet = subnet if isinstance(subnet, tuple) else (subnet,)
assert type(subnet[0]) is type(saved.subnet[0])
assert jax.tree.structure(subnet[1:]) == jax.tree.structure(saved.subnet[1:])
np.savez(%r, outputs=jax.tree.leaves(saved.call(*subnet, X))[0], **bits(subnet[-1]))
"""


@pytest.mark.parametrize("flavour", MAKE)
def test_the_sub_network_is_there_again_in_another_process(flavour, tmp_path):
    saved = MAKE[flavour]()
    folder = jasgnas.save(tmp_path / "network", *saved.subnet)
    run_python(TRAINABLE % (flavour, str(folder), str(tmp_path / "found.npz")))
    found = dict(np.load(tmp_path / "found.npz"))
    np.testing.assert_array_equal(found.pop("outputs"), jax.tree.leaves(saved.call(*saved.subnet, X))[0])
    expected = bits(saved.subnet[-1])
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, path)
