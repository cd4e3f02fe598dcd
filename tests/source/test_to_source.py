"""Networks written as source compute what they compute, whatever they are written in."""

import pickle
import re
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
import models
from tests.networks import build, error, randomize

X = jnp.sin(jnp.arange(24.0).reshape(6, 4))


def module_of(source):
    """The network that a source defines, its arrays yet to be given."""
    assert "jasgnas" not in source.partition('"""\n')[2]
    space = {"__name__": "source"}
    exec(compile(source, "source", "exec"), space)
    network = [each for each in space.values() if isinstance(each, type) and issubclass(each, nnx.Module)][-1]
    return nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0)))


def assert_same(network, source, x):
    """Asserts equal outputs and arrays after a call, in both modes."""
    written = module_of(source)
    nnx.update(written, nnx.state(network))
    for mode in ("eval", "train"):
        before, after = (nnx.merge(*nnx.split(each), copy=True) for each in (network, written))
        getattr(before, mode)(), getattr(after, mode)()
        assert error(after(x), before(x)) < 1e-5
        assert error(nnx.to_pure_dict(nnx.state(after)), nnx.to_pure_dict(nnx.state(before))) < 1e-5


def without(model, x, groups, **options):
    space = jasgnas.search_space(model, x, **options)
    return jasgnas.construct_subnet(space, space.zero(model, groups))


def test_demo_net_is_written_in_layers():
    model = build(models.DemoNet, width=0.1)
    subnet = without(model, jnp.ones((2, 8, 8, 1)), [0, 1, 4])
    source = jasgnas.to_source(subnet)
    subnet = pickle.loads(pickle.dumps(subnet))  # which was left as it was
    assert_same(subnet, source, jax.random.normal(jax.random.key(0), (3, 8, 8, 1)))
    assert "nnx.relu(self.bn1(self.conv1(x)))" in source and "conv2" not in source and "jnp.concatenate" not in source


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List(
            [nnx.Dict(norm=nnx.LayerNorm(6, rngs=rngs), fc=nnx.Linear(6, 6, rngs=rngs)) for _ in range(3)]
        )

    def __call__(self, x):
        for block in self.blocks:
            x = x + jnp.tanh(block.fc(block.norm(x)))
        return x


def test_equal_blocks_are_a_class_and_a_loop():
    model = build(Blocks)
    source = jasgnas.to_source(model, jnp.ones((2, 6)))
    assert source.count("class ") == 2 and "for block in self.blocks:" in source
    assert_same(model, source, X[:, :1] + jnp.ones((1, 6)) * jnp.arange(6))


class Keyed(nnx.Module):
    """Parts under keys that no class can be called by."""

    def __init__(self, rngs):
        def part(size):
            return nnx.Dict(norm=nnx.LayerNorm(6, rngs=rngs), fc=nnx.Linear(6, size, rngs=rngs))

        self.edges = nnx.Dict({"0_1": part(6), "1_2": part(6), "none": part(6), "_1": part(6), "?": part(6)})

    def __call__(self, x):
        for name, part in self.edges.items():
            with jax.named_scope(f"edges/{name}"):
                x = x + jnp.tanh(part.fc(part.norm(x)))
        return x


def test_keys_that_are_no_names_become_classes_with_names():
    model = build(Keyed)
    source = jasgnas.to_source(model, jnp.ones((2, 6)))
    assert_same(model, source, X[:, :1] + jnp.ones((1, 6)) * jnp.arange(6))
    assert {*re.findall(r"class (\w+)", source)} == {"Edge", "PartNone", "Part1", "Part", "Edges", "Keyed"}


class Narrowed(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.embed(x)))


def test_a_norm_over_a_narrowed_axis_keeps_its_divisor():
    subnet = without(build(Narrowed), X, [0, 3], channels=True)
    source = jasgnas.to_source(subnet)
    assert "NarrowLayerNorm(4, 6" in source
    assert_same(subnet, source, X)


class Misnamed(nnx.Module):
    """Has the arrays of a dense layer and of a batch norm, and is neither."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        y = x @ self.dense.kernel[...].T + self.dense.bias[...]
        z = (y - self.norm.mean[...]) * self.norm.scale[...] + self.norm.bias[...] + self.norm.var[...]
        return jax.nn.relu(y) + jnp.minimum(z, 5.0)


def test_what_only_has_the_names_of_a_layer_is_written_plainly():
    model = build(Misnamed)
    source = jasgnas.to_source(model, X)
    assert "nnx.Linear" not in source and "nnx.BatchNorm" not in source
    assert_same(model, source, 3 * X)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.dropout = nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.fc(x))


def test_modes_that_differ_are_written_apart_and_drop_the_same():
    model = Dropped(nnx.Rngs(0))
    source = jasgnas.to_source(model, X)
    assert "self.deterministic" in source
    written = module_of(source)
    nnx.update(written, nnx.state(model))
    assert error(written(X), model(X)) < 1e-6 and error(written(X), model(X)) < 1e-6  # the count goes on
    written.eval()
    assert error(written(X), nnx.view(model, deterministic=True)(X)) < 1e-6


def loaded(source, arrays):
    """The network of a source, with arrays by path."""
    network = module_of(source)
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        variable.set_value(arrays["/".join(map(str, path))])
    return network


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(nn.Dense(5, name="left")(x)) + jnp.sin(nn.Dense(5, name="right")(x))
        return {"logits": nn.Dense(3, name="head")(nn.BatchNorm(use_running_average=not train, name="norm")(x))}


def test_a_linen_module_becomes_one_of_nnx():
    module = LinenNet()
    variables = randomize(jax.tree.map(jnp.asarray, module.init(jax.random.key(0), X, train=False)))
    source = jasgnas.to_source(module, X, variables=variables, train=False)
    flat = {path: leaf for tree in variables.values() for path, leaf in jasgnas.pytree.leaves_by_path(tree).items()}
    network = loaded(source, flat)
    expected, updated = module.apply(variables, X, train=True, mutable=["batch_stats"])
    assert error(network(X), expected) < 1e-5
    assert error(network.norm.mean[...], updated["batch_stats"]["norm"]["mean"]) < 1e-5
    network.eval()
    assert error(network(X), module.apply({**variables, **updated}, X, train=False)) < 1e-5


def test_a_mode_that_cannot_be_traced_is_named():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(4)(x))))

    module = Dropped()
    variables = randomize(module.init(jax.random.key(0), X, train=False))
    with pytest.warns(jasgnas.OneModeWarning, match=r"InvalidRngError.*rngs="):
        source = jasgnas.to_source(module, X, variables=variables, train=False)
    network = loaded(source, jasgnas.pytree.leaves_by_path(variables["params"]))
    assert error(network(X), module.apply(variables, X, train=False)) < 1e-6


def function(params, x):
    (left, bias), right = params["branches"]
    return jnp.tanh(x @ left + bias) + jnp.sin(x @ right)


def test_a_function_becomes_a_module_of_its_parameters():
    params = randomize({"branches": [(jnp.zeros((4, 5)), jnp.zeros(5)), jnp.zeros((4, 5))]})
    space = jasgnas.search_space(function, X, params=params)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, [1]))
    network = loaded(jasgnas.to_source(sub_fn), jasgnas.pytree.leaves_by_path(sub_params))
    assert error(network(X), sub_fn(sub_params, X)) < 1e-6


def test_what_cannot_be_written_is_named():
    def halved(params, x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: y / 2, x * params["w"])

    with pytest.raises(jasgnas.SourceError, match="while"):
        jasgnas.to_source(halved, X, params={"w": jnp.ones(4)})


def test_ruff_finds_nothing(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(jasgnas.to_source(models.create_abstract("resnet18_cifar"), models.example_input("resnet18_cifar")))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,I,UP,B", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(np.unique(path.read_text().splitlines())) > 20


def test_derivatives_that_are_lost_are_named():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, grad: (grad,))
    params = {"w": jnp.ones((4, 4))}
    with pytest.warns(jasgnas.DerivativeWarning, match="straight_through"):
        jasgnas.to_source(lambda params, x: straight_through(x @ params["w"]), jnp.ones((2, 4)), params=params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # relu has a derivative of its own, too, and is written by its name
        jasgnas.to_source(lambda params, x: jax.nn.relu(x @ params["w"]), jnp.ones((2, 4)), params=params)


def test_arrays_in_the_code_are_refused():
    mask = np.random.default_rng(0).normal(size=4).astype(np.float32)
    with pytest.raises(jasgnas.SourceError, match=r"none of its parameters \(float32\[4\]\)"):
        jasgnas.to_source(lambda params, x: x @ params["w"] + mask, jnp.ones((2, 4)), params={"w": jnp.ones((4, 4))})


def test_sizes_that_are_fixed_are_named():
    params = {"w": jnp.arange(12.0).reshape(4, 3)}

    def averaged(params, x):
        return jnp.tanh(x @ params["w"]) / float(x.shape[0])

    with pytest.warns(jasgnas.FixedSizeWarning, match=r"these sizes alone, float32\[6, 4\].*any size"):
        source = jasgnas.to_source(averaged, X, params=params)
    assert "alone" in source.partition("import")[0]
    assert error(loaded(source, params)(X), averaged(params, X)) < 1e-6


W, V, H = (
    jax.random.normal(key, (4, size))
    for key, size in zip(jax.random.split(jax.random.key(1), 3), (4, 4, 2), strict=True)
)


class Valued(NamedTuple):
    """Its first field has the name by which variables hold their arrays."""

    value: Any
    w: Any


class Pair(NamedTuple):
    """Two inputs in one."""

    first: Any
    second: Any


def two_branches(params, first, second):
    return (first @ params["a"] + jnp.tanh(second @ params["b"])) @ params["h"]


def reshaped(params, batch):
    return two_branches(params, batch.reshape(batch.shape[0], -1), batch.reshape(batch.shape[0], -1))


def of_two_sizes(params, batch, x):
    return two_branches(params, batch.reshape(batch.shape[0], -1), x)


def with_self(params, self, x):
    return two_branches(params, self, x)


@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (reshaped, (X.reshape(6, 2, 2),)),
        (of_two_sizes, (X.reshape(6, 2, 2), X)),
        (with_self, (X, X + 1)),
        (lambda params, x: two_branches(params, x["0"], x["1"]), ({"0": X, "1": X + 1},)),
        (lambda params, x: two_branches(params, x[0], x[1]), ({0: X, 1: X + 1},)),
        (lambda params, x: two_branches(params, *x), ([X, X + 1],)),
        (lambda params, x: two_branches(params, x.first, x.second), (Pair(X, X + 1),)),
        (lambda params, x: {'"q"': two_branches(params, x['"\n'], x["\\"])}, ({'"\n': X, "\\": X + 1},)),
    ],
    ids=["batch", "batch and x", "self", "digits", "numbers", "list", "named tuple", "quotes"],
)
def test_inputs_are_got_at_as_they_are_given(fn, inputs):
    params = {"a": W, "b": V, "h": H}
    written = nnx.merge(*nnx.split(module_of(jasgnas.to_source(fn, *inputs, params=params))))
    nnx.update(written, params)
    written.eval()
    assert error(written(*inputs), fn(params, *inputs)) < 1e-5


@pytest.mark.parametrize("key", ['"', "a\nb", "back\\slash", "\u00b5", "\ufb01", "class", "a b"])
def test_any_key_names_a_parameter(key):
    def fn(params, x):
        return two_branches({"a": params[key], **params}, x, x)

    params = {key: W, "b": V, "h": H}
    written = module_of(jasgnas.to_source(fn, X, params=params))
    assert set(nnx.to_pure_dict(nnx.state(written))) == set(params)
    nnx.update(written, params)
    assert error(written(X), fn(params, X)) < 1e-5


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"": {"w": W}}, "a part at '/w' cannot be written: give it a name"),
        ({"eval": {"w": W}}, "eval is an attribute of every nnx.Module"),
        (
            {"a": Valued(W, V)},
            "a/w cannot be written: a is an array by itself|a cannot be written: others lie below it",
        ),
    ],
    ids=["empty", "method", "value"],
)
def test_names_that_a_module_cannot_have_are_refused(params, match):
    def fn(params, x):
        return sum(x @ each for each in jax.tree.leaves(params))

    with pytest.raises(jasgnas.SourceError, match=match):
        jasgnas.to_source(fn, X, params=params)


def test_a_flag_that_changes_what_is_returned_is_no_mode():
    def fn(params, x, features=False):
        y = two_branches(params, x, x)
        return (y, x) if features else y

    params = {"a": W, "b": V, "h": H}
    for features in (False, True):
        with pytest.warns(jasgnas.OneModeWarning, match="another structure"):
            written = module_of(jasgnas.to_source(fn, X, params=params, features=features))
        nnx.update(written, params)
        assert error(written(X), fn(params, X, features=features)) < 1e-5
