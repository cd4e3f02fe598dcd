"""Folders, models and arguments that are not those that were saved, and what save refuses."""

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import jasgnas
from jasgnas.saved import folder as folders
from tests.saved.flavours import MAKE, LinenNet, NNXNet, X, bits


@pytest.fixture(scope="module")
def saved():
    return {name: make() for name, make in MAKE.items()}


@pytest.fixture(scope="module")
def whole(saved, tmp_path_factory):
    """A folder for each flavour."""
    root = tmp_path_factory.mktemp("saved")
    return {name: jasgnas.save(root / name, *each.subnet, stablehlo=True) for name, each in saved.items()}


@pytest.mark.parametrize("flavour", MAKE)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_network_without_its_model(saved, whole, flavour, batch):
    network = jasgnas.load(whole[flavour])
    x = jnp.cos(jnp.arange(4.0 * batch).reshape(batch, 4))
    expected = saved[flavour].call(*saved[flavour].subnet, x)
    found = network(x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_it_says_what_it_takes_and_returns(whole):
    assert str(jasgnas.load(whole["linen"])).startswith(
        "LoadedNetwork(float32[batch,4]) -> {logits: float32[batch,3]}, "
    )


@pytest.mark.parametrize("given", [(X[:, :3],), (X.astype(jnp.int32),), (X, X), (), (3.0,), ([1.0, 2.0],)])
def test_other_arguments_are_refused(whole, given):
    with pytest.raises(jasgnas.ArgumentError, match=r"takes the arguments \(float32\[batch,4\]\), got \("):
        jasgnas.load(whole["nnx"])(*given)


def test_what_the_manifest_says(saved, whole):
    manifest = json.loads((whole["nnx"] / "manifest.json").read_text())
    assert manifest["removed"] == [{"group": 0, "name": "blocks/0"}]
    assert manifest["network"]["takes"] == "(float32[batch,4])"
    subnet = saved["nnx"].subnet[0]
    full = NNXNet(nnx.Rngs(0))
    for name, network in (("sub", subnet), ("full", full)):
        assert manifest["sizes"][name] == {
            "params": jasgnas.count_params(network),
            "macs": jasgnas.count_macs(network, X),
        }
    assert 0 <= manifest["check"]["largest_difference"] < 1e-6
    assert set(manifest["files"]) == {path.name for path in whole["nnx"].iterdir()} - {"manifest.json"}
    assert "stablehlo.dot_general" in (whole["nnx"] / "model.stablehlo.mlir").read_text()


def test_nothing_is_a_pickle(whole):
    for folder in whole.values():
        for path in folder.iterdir():
            assert not path.read_bytes().startswith(b"\x80")


def test_a_loaded_sub_network_can_be_saved_and_trained(saved, whole, tmp_path):
    subnet = jasgnas.load(whole["nnx"], saved["nnx"].model)
    again = jasgnas.load(jasgnas.save(tmp_path / "again", subnet), saved["nnx"].model)
    assert all(np.array_equal(array, bits(again)[path]) for path, array in bits(subnet).items())
    again.train()
    grads = nnx.grad(lambda model: jnp.sum(model(X) ** 2))(again)
    assert all(jnp.any(grad != 0) for grad in jax.tree.leaves(grads["head"]))


class Wider(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(4, 6, rngs=rngs)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.blocks[0](x) + self.blocks[1](x))


class InSeries(NNXNet):
    def __call__(self, x):
        left = jnp.tanh(self.blocks[0](x))
        return self.head(self.norm(left * jnp.sin(self.blocks[1](x)) + left))


class Regrouped(NNXNet):
    def __call__(self, x):
        return self.head(self.norm(jnp.tanh(self.blocks[0](x)) + jnp.cos(self.blocks[1](x))))


class OtherFunction(NNXNet):
    def __call__(self, x):
        return self.head(self.dropout(self.norm(jnp.tanh(self.blocks[0](x)) + jnp.sinh(self.blocks[1](x)))))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            Wider(nnx.Rngs(0)),
            jasgnas.TreeMismatchError,
            r"blocks/0/bias: float32\[6\], expected float32\[5\](.|\n)*and [0-9]+ more",
        ),
        (InSeries(nnx.Rngs(0)), jasgnas.TreeMismatchError, "another one than that of the model that was saved"),
        (Regrouped(nnx.Rngs(0)), jasgnas.TreeMismatchError, "fingerprint"),
        (OtherFunction(nnx.Rngs(0)), jasgnas.VerificationError, "computes in another way"),
        (LinenNet(), jasgnas.ArgumentError, "of the kind nnx.Module, but the model is a Linen module"),
        (NNXNet, jasgnas.ArgumentError, "pass an instance of it"),
    ],
    ids=["parameters", "connections", "groups", "function", "flavour", "class"],
)
def test_another_model_is_refused(whole, model, error, message):
    with pytest.raises(error, match=message):
        jasgnas.load(whole["nnx"], model)


def test_a_newer_format_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "FORMAT", folders.FORMAT + 1)
    folder = jasgnas.save(tmp_path / "newer", *saved["nnx"].subnet)
    monkeypatch.undo()
    with pytest.raises(jasgnas.SavedNetworkError, match="is of format 2, .* update jasgnas"):
        jasgnas.load(folder)


@jax.tree_util.register_dataclass
@dataclass
class Params:
    a: jax.Array
    b: jax.Array


def test_containers_that_are_code_are_given(tmp_path):
    def fn(params, x):
        return x @ params.a + jnp.tanh(x @ params.b)

    params = Params(jnp.full((4, 3), 0.5), jnp.zeros((4, 3)))
    space = jasgnas.search_space(fn, X, params=params)
    subnet = jasgnas.construct_subnet(space, params)
    folder = jasgnas.save(tmp_path / "network", *subnet)
    np.testing.assert_allclose(jasgnas.load(folder)(X), fn(params, X), rtol=1e-6)
    with pytest.raises(jasgnas.ArgumentError, match=r"pass params=, .* cannot be written down without code"):
        jasgnas.load(folder, fn)
    _, sub_params = jasgnas.load(folder, fn, params=params)
    assert sub_params.b is None
    np.testing.assert_array_equal(sub_params.a, params.a)


class Two(nn.Module):
    """Several inputs, one of them in a dictionary and one by keyword, a switch, and a method of another name."""

    @nn.compact
    def encode(self, inputs, scale, *, mask=None, train=True):
        x = jnp.tanh(nn.Dense(5, name="left")(inputs["x"])) + nn.Dense(5, name="right")(inputs["x"])
        x = nn.Dense(3, name="head")(x) * scale * mask[:, None]
        return x, jnp.sum(x) if train else jnp.sum(x, 1)


def test_several_inputs(tmp_path):
    module, inputs, scale, mask = Two(), {"x": X}, jnp.float32(2), jnp.ones(6)
    variables = module.init(jax.random.key(0), inputs, scale, mask=mask, train=False, method="encode")
    space = jasgnas.search_space(
        module, inputs, scale, variables=variables, method=Two.encode, mask=mask, train=False, inputs="inputs"
    )
    subnet, sub_variables = jasgnas.construct_subnet(space, space.zero(variables, [0]))
    folder = jasgnas.save(tmp_path / "network", subnet, sub_variables, symbolic=("0/x:0", "mask:0"))
    network = jasgnas.load(folder)
    given = {"x": X[:4]}, jnp.float32(3)
    expected = subnet.apply(sub_variables, *given, mask=mask[:4], train=False)
    found = network(*given, mask=mask[:4])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    loaded, loaded_variables = jasgnas.load(folder, module)
    again = loaded.apply(loaded_variables, *given, mask=mask[:4], train=False)
    np.testing.assert_array_equal(again[0], expected[0])


def fixed_batch(params, x):
    return jnp.reshape(jnp.tanh(x @ params["a"]) + x @ params["b"], (2, 3, -1)).sum(0)


def test_a_model_with_a_fixed_batch(tmp_path):
    params = {"a": jnp.full((4, 4), 0.3), "b": jnp.zeros((4, 4))}
    space = jasgnas.search_space(fixed_batch, X, params=params)
    subnet = jasgnas.construct_subnet(space, params)
    with pytest.raises(jasgnas.ExportError, match=re.escape("symbolic=()")):
        jasgnas.save(tmp_path / "network", *subnet)
    assert not list(tmp_path.iterdir())
    network = jasgnas.load(jasgnas.save(tmp_path / "network", *subnet, symbolic=()))
    np.testing.assert_allclose(network(X), fixed_batch(params, X), rtol=1e-6)


class Result(NamedTuple):
    """What JAX does not know how to store."""

    y: jax.Array


@pytest.mark.parametrize("wrap", [lambda y: {0: y}, Result], ids=["number as key", "named tuple"])
def test_what_cannot_be_stored_has_nothing_to_do_with_sizes(tmp_path, wrap):
    params = {"a": jnp.full((4, 4), 0.3), "b": jnp.zeros((4, 4))}

    def fn(params, x):
        return wrap(jnp.tanh(x @ params["a"]) + x @ params["b"])

    space = jasgnas.search_space(fn, X, params=params)
    with pytest.raises(jasgnas.ExportError, match="dictionaries whose keys are texts") as caught:
        jasgnas.save(tmp_path / "network", *jasgnas.construct_subnet(space, params))
    assert "symbolic" not in str(caught.value)


def test_inputs_of_another_shape_are_those_of_the_check(saved, tmp_path):
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    folder = jasgnas.save(tmp_path / "network", *saved["nnx"].subnet, inputs=x, symbolic="0:0")
    np.testing.assert_array_equal(load_file(folder / "check.safetensors")["inputs/0"], x)
    jasgnas.load(folder, saved["nnx"].model)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (lambda saved: [saved["nnx"].model], {}, "expected a sub-network"),
        (lambda saved: [saved["linen"].subnet], {}, "as two arguments"),
        (lambda saved: saved["linen"].subnet[:1], {}, "pass them as `sub_variables`"),
        (lambda saved: [*saved["nnx"].subnet, {}], {}, "leave them out"),
        (lambda saved: saved["nnx"].subnet, {"symbolic": "1:0"}, r"names no axis .* there are 0 \(float32\[6,4\]\)"),
        (lambda saved: saved["nnx"].subnet, {"symbolic": (0,)}, "names no axis"),
        (lambda saved: [nnx.eval_shape(lambda: saved["nnx"].subnet[0])], {}, "are not known"),
    ],
    ids=["full", "pair", "missing", "superfluous", "axis", "kind", "abstract"],
)
def test_save_refuses(saved, tmp_path, arguments, options, message):
    with pytest.raises(jasgnas.ArgumentError, match=message):
        jasgnas.save(tmp_path / "network", *arguments(saved), **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(saved, tmp_path):
    (tmp_path / "network").mkdir()
    with pytest.raises(jasgnas.ArgumentError, match="nothing is overwritten"):
        jasgnas.save(tmp_path / "network", *saved["nnx"].subnet)


def test_a_folder_that_is_interrupted_is_not_there(saved, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jasgnas.saved.save.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jasgnas.save(tmp_path / "network", *saved["nnx"].subnet)
    assert not list(tmp_path.iterdir())


def test_numbers_of_64_bits(tmp_path):
    def fn(params, x, key):
        return jnp.tanh(x @ params["a"]) + x @ params["b"] + jax.random.normal(key, (3,), x.dtype)

    with jax.enable_x64(True):
        params = {"a": jnp.full((4, 3), 0.2, jnp.float64), "b": jnp.zeros((4, 3), jnp.float64)}
        x, key = jnp.ones((2, 4), jnp.float64), jax.random.key(3)
        space = jasgnas.search_space(fn, x, key, params=params)
        folder = jasgnas.save(tmp_path / "network", *jasgnas.construct_subnet(space, params))
        np.testing.assert_allclose(jasgnas.load(folder)(x, key), fn(params, x, key), rtol=1e-12)
        assert jasgnas.load(folder, fn)[1]["a"].dtype == jnp.float64
    for model in (None, fn):
        with pytest.raises(jasgnas.ArgumentError, match="jax_enable_x64"):
            jasgnas.load(folder, model)
    assert all("jax_enable_x64" in (folder / name).read_text() for name in ("run.py", "model.py"))


def test_a_narrowed_network_is_saved_and_loaded(tmp_path):
    def fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    space = jasgnas.search_space(fn, x, params=params, channels=True)
    subnet, left = jasgnas.construct_subnet(space, space.zero(params, [1, 4]))
    folder = jasgnas.save(tmp_path / "narrow", subnet, left)
    np.testing.assert_allclose(jasgnas.load(folder)(x), subnet(left, x), rtol=1e-5)
    again, loaded = jasgnas.load(folder, fn)
    assert {name: each.shape for name, each in loaded.items()} == {"a": (4, 4), "b": (4, 3)}
    np.testing.assert_array_equal(again(loaded, x), subnet(left, x))
