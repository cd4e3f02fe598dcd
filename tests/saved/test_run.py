"""What is saved in one process runs in others: without the library, and trainable again with it."""

import json
import sysconfig
from dataclasses import replace
from pathlib import Path

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import jasgnas
from jasgnas.source.to_source import written_source
from tests.networks import randomize
from tests.saved.flavours import MAKE, X, bits, run_python

BARE = """
import runpy, sys
import importlib.abc

missing = {"jasgnas", "flax", "optax", "jraph", "models", "tests"}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"there is no {name} here")

sys.meta_path.insert(0, Missing())
sys.path += %s
folder, x, results = %s
runpy.run_path(folder + "/run.py", run_name="__main__")
import numpy as np
outputs = [runpy.run_path(folder + "/run.py")["network"](np.load(x))]
missing -= {"flax", "optax"}  # the source is a module of Flax
outputs.append(runpy.run_path(folder + "/model.py")["load"](folder + "/params.safetensors")(np.load(x)))
import jax
np.save(results, np.stack(jax.tree.leaves(outputs)))
"""


@pytest.mark.parametrize("flavour", MAKE)
def test_script_and_source_need_nothing_of_the_library(flavour, tmp_path):
    saved = MAKE[flavour]()
    folder = jasgnas.save(tmp_path / "network", *saved.subnet)
    x = np.cos(np.arange(36, dtype=np.float32).reshape(9, 4))
    np.save(tmp_path / "x.npy", x)
    # Isolated, and without the site module: neither PYTHONPATH nor an editable installation is seen.
    places = {
        sysconfig.get_path("purelib"),
        *(str(Path(each.__file__).parents[1]) for each in (safetensors, flatbuffers)),
    }
    paths = tuple(str(path) for path in (folder, tmp_path / "x.npy", tmp_path / "y.npy"))
    printed = run_python(BARE % (sorted(places), paths), "-I", "-S")
    assert printed.startswith("output 0: shape (6, 3), largest difference ")
    assert float(printed.split()[-1]) < 1e-6
    (expected,) = jax.tree.leaves(saved.call(*saved.subnet, x))
    for outputs in np.load(paths[2]):
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


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


def halved(params, x):
    x = jnp.tanh(x @ params["left"]) + x @ params["right"]
    return jax.lax.while_loop(lambda x: jnp.abs(x).sum() > 1, lambda x: x / 2, x) @ params["head"]


def test_a_network_that_cannot_be_written_is_saved_without_its_source(tmp_path):
    params = randomize({"left": jnp.zeros((4, 4)), "right": jnp.zeros((4, 4)), "head": jnp.zeros((4, 2))})
    space = jasgnas.search_space(halved, X, params=params)
    subnet = jasgnas.construct_subnet(space, space.zero(params, [0]))
    folder = jasgnas.save(tmp_path / "network", *subnet)
    assert not (folder / "model.py").exists()
    said = json.loads((folder / "manifest.json").read_text())["source"]
    assert said["file"] is None and said["why"].startswith("SourceError: the primitive while")
    np.testing.assert_allclose(jasgnas.load(folder)(X), subnet[0](subnet[1], X), rtol=1e-5, atol=1e-6)


def test_a_source_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def with_another_sign(*arguments):
        source = written_source(*arguments)
        return replace(source, text=source.text.replace("self.head(", "-self.head("))

    monkeypatch.setattr("jasgnas.saved.written.written_source", with_another_sign)
    folder = jasgnas.save(tmp_path / "network", *MAKE["linen"]().subnet)
    assert not (folder / "model.py").exists()
    assert "VerificationError" in json.loads((folder / "manifest.json").read_text())["source"]["why"]
