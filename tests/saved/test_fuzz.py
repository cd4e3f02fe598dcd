"""Folders that were cut off, altered or made up: always an error of the library, and nothing of them is run."""

import copy
import hashlib
import itertools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from safetensors.numpy import load, save

import jasgnas
from jasgnas.saved.folder import _digest
from tests.networks import sampled
from tests.saved.flavours import MAKE

FILES = ("manifest.json", "params.safetensors", "model.jax_export", "check.safetensors", "run.py", "model.py")


@pytest.fixture(scope="module")
def saved():
    return MAKE["nnx"]()


@pytest.fixture(scope="module")
def whole(saved, tmp_path_factory):
    return jasgnas.save(tmp_path_factory.mktemp("whole") / "network", *saved.subnet)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "network")


def refused(folder, model=None, match=None):
    with pytest.raises(jasgnas.JasgnasError, match=match):
        jasgnas.load(folder, model)


@pytest.mark.parametrize(("left", "name"), sampled(itertools.product([0, 1, 0.5, -2], FILES), 2))
def test_files_that_are_cut_off(folder, saved, name, left):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * left) if left == 0.5 else left])
    refused(folder)
    refused(folder, saved.model)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_missing(folder, name):
    (folder / name).unlink()
    refused(folder, match=f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_bits_that_are_flipped(folder, name):
    data = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 60):
        altered = bytearray(data)
        altered[position] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(altered)
        try:
            jasgnas.load(folder)
        except jasgnas.JasgnasError:
            continue
        # White space between the entries of the manifest says nothing.
        assert name == "manifest.json" and json.loads(altered) == json.loads(data)


def test_what_is_no_folder(tmp_path):
    refused(tmp_path / "nothing", match="no folder that jasgnas.save has written")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file")
    refused(tmp_path, match="manifest.json is missing")


def seal(folder, manifest):
    """Writes a manifest as if it had been written so."""
    manifest.pop("sha256", None)
    manifest["sha256"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_file(folder, name, data):
    """Writes a file as if it had been written so."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(folder, manifest)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "..", ".", "", "C:\\x", "a\0b", "\ud800"]
)
def test_names_that_leave_the_folder(folder, name):
    (folder.parent / "outside").write_bytes(b"")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    seal(folder, manifest)
    refused(folder)


def test_links_are_not_followed(folder):
    outside = folder.parent / "outside"
    shutil.move(folder / "params.safetensors", outside)
    (folder / "params.safetensors").symlink_to(outside)
    refused(folder, match="is a link")


def places(node, path=()):
    """Yields the paths to all values of a JSON document."""
    if path:
        yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*path, key))


VALUES = (None, True, -1, 10**30, 0.5, "", "../x", "__import__('os').abort()", [], {}, [[]], {"dict": [[[], 1]]})
READ = ("format", "files", "model", "space", "removed", "network/arguments", "check/tolerance")


@pytest.fixture(scope="module")
def target(whole, tmp_path_factory):
    return shutil.copytree(whole, tmp_path_factory.mktemp("fuzz") / "network")


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_manifests_with_other_values(target, saved, whole, data):
    manifest = json.loads((whole / "manifest.json").read_text())
    altered = copy.deepcopy(manifest)
    found = [path for path in places(manifest) if "/".join(map(str, path)).startswith(READ)]
    *parents, last = data.draw(st.sampled_from(found))
    node = altered
    for key in parents:
        node = node[key]
    value = data.draw(st.sampled_from(VALUES))
    if node[last] == value:
        return
    node[last] = value
    seal(target, altered)
    try:
        jasgnas.load(target, saved.model)
    except jasgnas.JasgnasError:
        return
    # What is left may be told in more than one way, as what was kept of a network that loses nothing more by it.
    assert [*parents, last][0] in ("space", "removed", "check", "model")


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_files_with_other_bytes_behind_a_right_hash(target, saved, whole, data):
    for name in FILES:
        shutil.copy(whole / name, target / name)
    name = data.draw(st.sampled_from(["params.safetensors", "check.safetensors"]))
    altered = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    replace_file(target, name, bytes(altered))
    for model in (None, saved.model):
        try:
            jasgnas.load(target, model)
        except jasgnas.JasgnasError:
            pass


@pytest.mark.parametrize(
    "alter",
    [
        lambda arrays: arrays.pop("head/bias"),
        lambda arrays: arrays.update({"head/bias": np.zeros(4, np.float32)}),
        lambda arrays: arrays.update({"head/bias": np.zeros(3, np.int32)}),
        lambda arrays: arrays.update(more=np.zeros(3, np.float32)),
    ],
)
def test_other_parameters_behind_a_right_hash(folder, saved, alter):
    arrays = load((folder / "params.safetensors").read_bytes())
    alter(arrays)
    replace_file(folder, "params.safetensors", save(arrays))
    refused(folder, match="other parameters")
    refused(folder, saved.model, match="other arrays")


def test_networks_that_call_back_are_refused(folder, monkeypatch):
    called = []

    def evil(params, x):
        return jax.pure_callback(lambda x: called.append(1) or x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    params = load((folder / "params.safetensors").read_bytes())
    # JAX serializes no such network: it is told that a serialized one is of this module.
    data = export.deserialize(bytearray((folder / "model.jax_export").read_bytes()))
    lowered = jax.jit(evil).lower(params, jnp.ones((6, 4)))
    fake = type(
        "Fake",
        (),
        {"mlir_module": lambda self: lowered.as_text(), "__getattr__": lambda self, name: getattr(data, name)},
    )
    monkeypatch.setattr("jasgnas.saved.network.export.deserialize", lambda _: fake())
    refused(folder, match="calls back into Python")
    assert not called


def test_no_code_of_the_folder_is_run(folder, saved, capfd):
    (folder / "jax.py").write_text("raise SystemExit")
    replace_file(folder, "run.py", b"raise SystemExit")
    replace_file(folder, "model.py", b"raise SystemExit")
    before = set(sys.modules)
    jasgnas.load(folder)
    jasgnas.load(folder, saved.model)
    assert not any("network" in name and str(folder) in str(sys.modules[name]) for name in set(sys.modules) - before)
