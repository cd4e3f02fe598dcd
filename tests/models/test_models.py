import ast
import functools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
from models.darts import DARTS_V2, OPERATIONS, SUPER_NETWORK, FactorizedReduce, Genotype, Node
from models.decoder import rotate
from models.demo_net import DemoNet
from models.layers import Layers, global_mean, make_divisible
from models.regnet import RegNetConfig
from models.stacked_unets import StackedUnets
from tests.small_models import SMALL


@functools.cache
def split_abstract(name: str) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(models.create_abstract(name))


def output_of(model: nnx.Module, x: jax.ShapeDtypeStruct) -> Any:
    graphdef, state = nnx.split(model)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x)


class Measured(NamedTuple):
    """What one trace of a network tells."""

    params: int
    macs: int
    output_shape: tuple[int, ...]


def count_params(state: nnx.State) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.filter_state(state, nnx.Param)))


def measure(model: nnx.Module, x: jax.ShapeDtypeStruct) -> Measured:
    """Counts parameters, and multiply-adds of all contractions of two values that depend on parameters or input."""
    graphdef, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x).jaxpr
    return Measured(count_params(state), _jaxpr_macs(jaxpr, [True] * len(jaxpr.invars)), jaxpr.outvars[0].aval.shape)


@functools.cache
def measure_registered(name: str) -> Measured:
    return measure(nnx.merge(*split_abstract(name)), models.example_input(name))


def _jaxpr_macs(jaxpr: Any, depends: list[bool]) -> int:
    known = {var for var, flag in zip(jaxpr.invars, depends, strict=True) if flag}
    total = 0
    for eqn in jaxpr.eqns:
        # Literals are not hashable and never depend on anything.
        flags = [not hasattr(atom, "val") and atom in known for atom in eqn.invars]
        inner = [sub for value in eqn.params.values() if hasattr(sub := getattr(value, "jaxpr", value), "eqns")]
        if eqn.primitive.name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[spec[0]]
        elif eqn.primitive.name == "dot_general" and all(flags):
            contracted = eqn.params["dimension_numbers"][0][0]
            sizes = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes)
        else:
            total += sum(_jaxpr_macs(sub, flags) for sub in inner)
        if any(flags):
            known.update(eqn.outvars)
    return total


# name, parameters, multiply-adds (None: not published for this input), tolerance. Sources: ASGNAS (arXiv 2305.18030),
# whose DARTS super-network test_model_spaces.py checks; for all others the counts that the papers, their authors' code,
# torchvision or timm state.
PUBLISHED = [
    ("demo_net", 0.82e6, 209e6, 0.05),
    ("stacked_unets", 0.80e6, 184e6, 0.05),
    ("darts_v2_cifar", 3.349e6, None, 0.01),
    ("darts_v2_imagenet", 4.719e6, None, 0.01),
    ("resnet18", 11.690e6, 1.814e9, 0.01),
    ("resnet50", 25.557e6, 4.089e9, 0.01),
    ("resnet18_cifar", 11.174e6, 0.556e9, 0.01),
    ("densenet121", 7.979e6, 2.834e9, 0.01),
    ("convnext_tiny", 28.589e6, 4.456e9, 0.01),
    ("mobilenet_v2", 3.505e6, 0.301e9, 0.01),
    ("mobilenet_v3_large", 5.483e6, 0.217e9, 0.01),
    ("mobilenet_v3_small", 2.543e6, 0.057e9, 0.01),
    ("regnet_x_200mf", 2.685e6, 0.2e9, 0.01),
    ("regnet_x_400mf", 5.158e6, 0.4e9, 0.01),
    ("regnet_x_800mf", 7.260e6, 0.8e9, 0.01),
    ("regnet_y_200mf", 3.163e6, 0.2e9, 0.01),
    ("regnet_y_400mf", 4.344e6, 0.4e9, 0.01),
    ("regnet_y_800mf", 6.263e6, 0.8e9, 0.01),
    ("vit_s16", 22.05e6, 4.6e9, 0.01),
    ("vit_b16", 86.57e6, 17.56e9, 0.01),
]


@pytest.mark.parametrize(("name", "params", "macs", "tolerance"), PUBLISHED)
def test_size_is_the_published_one(name: str, params: float, macs: float | None, tolerance: float) -> None:
    assert count_params(split_abstract(name)[1]) == pytest.approx(params, rel=tolerance)
    if macs is not None:
        assert measure_registered(name).macs == pytest.approx(macs, rel=tolerance)


class DemoSubnet(DemoNet):
    """DemoNet as it is written down once conv2-bn2, conv3-bn3 and conv8-bn8 are gone."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.conv6 = Layers(rngs).conv(self.bn5.num_features, self.bn6.num_features, 3, strides=2, use_bias=True)
        for gone in ("conv2", "bn2", "conv3", "bn3", "conv8", "bn8"):
            delattr(self, gone)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.bn4(self.conv4(nnx.avg_pool(x, (3, 3), padding="SAME")))
        x = nnx.relu(self.bn6(self.conv6(self.bn5(self.conv5(x)))))
        return self.fc2(self.fc1(global_mean(self.bn7(self.conv7(x)))))


class UnetsSubnet(StackedUnets):
    """StackedUnets as it is written down once 13 to 19, 50 to 56, 63 to 70 and 72 to 75 are gone.

    With 63 to 70 and 72 to 75 zero, nothing of the second U-net (39 to 75) reaches the sum 76.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        names = [name for name in vars(self) if name.startswith(("conv", "bn"))]
        for name in names:
            number = int(name.removeprefix("conv").removeprefix("bn"))
            if number in (14, 15) or number >= 39:
                delattr(self, name)

    def __call__(self, x: jax.Array) -> jax.Array:
        pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        resize = partial(jax.image.resize, method="bilinear")
        whole = self.conv3(nnx.relu(self.bn1(self.conv0(x))))
        half = self.bn9(nnx.relu(self.conv7(nnx.relu(self.conv5(pool(whole))))))
        quarter = self.conv12(self.conv11(pool(half)))
        half = resize(quarter, half.shape) + half
        half = nnx.relu(self.bn28(self.conv27(self.conv26(half))))
        whole = nnx.relu(resize(half, whole.shape) + whole)
        return self.fc(global_mean(self.bn38(nnx.relu(self.conv36(whole)))))


@pytest.mark.parametrize(
    ("name", "subnet", "params", "macs"),
    [("demo_net", DemoSubnet, 0.45e6, 107e6), ("stacked_unets", UnetsSubnet, 0.37e6, 115e6)],
)
def test_subnet_of_the_papers_has_its_size(
    name: str, subnet: Callable[..., nnx.Module], params: float, macs: float
) -> None:
    model = nnx.eval_shape(lambda: subnet(rngs=models.CountedKeys()))
    model.eval()
    measured = measure(model, models.example_input(name))
    assert measured.params == pytest.approx(params, rel=0.02)
    assert measured.macs == pytest.approx(macs, rel=0.02)


def test_darts_14_space_holds_a_subnet_of_the_papers_size() -> None:
    # All skips, and in normal cells five 3×3 convolutions: a part of the super-network that a genotype can name.
    def part_of(nodes: tuple[Node, ...], *kept: tuple[str, int]) -> tuple[Node, ...]:
        return tuple(tuple(pair for pair in node if pair[0] == "skip_connect" or pair in kept) for node in nodes)

    normal = part_of(SUPER_NETWORK.normal, ("sep_conv_3x3", 0), ("sep_conv_3x3", 4))
    model = models.create_abstract("darts_14", genotype=Genotype(normal, part_of(SUPER_NETWORK.reduction)))
    measured = measure(model, models.example_input("darts_14"))
    assert measured.params == pytest.approx(4.8e6, rel=0.05)
    assert measured.macs == pytest.approx(547e6, rel=0.05)


@pytest.mark.parametrize(("depths", "params"), [((5, 5, 5), 2.0e6), ((5, 5, 2), 1.0e6)])
def test_super_resnet_space_holds_one_and_two_million(depths: tuple[int, ...], params: float) -> None:
    # A block without candidates is its identity shortcut, so fewer blocks are the same as blocks without candidates.
    subnet = models.create_abstract("super_resnet", kernel_sizes=(3,), depths=depths)
    assert measure(subnet, models.example_input("super_resnet")).params == pytest.approx(params, rel=0.02)


@pytest.mark.parametrize(
    ("factor", "sizes"), [({"width": 0.25}, {"widths": (12, 24, 48)}), ({"depth": 0.4}, {"depths": (2, 2, 2)})]
)
def test_super_resnet_factors_multiply_widths_and_depths(factor: dict[str, Any], sizes: dict[str, Any]) -> None:
    given, asked = (models.create_abstract("super_resnet", **options) for options in (factor, sizes))
    assert jax.tree.map(jnp.shape, nnx.state(given)) == jax.tree.map(jnp.shape, nnx.state(asked))


def test_super_network_has_every_operation_on_each_of_14_edges() -> None:
    for nodes in SUPER_NETWORK:
        edges = {(index, source) for index, node in enumerate(nodes) for _, source in node}
        assert len(edges) == 14
        assert sum(map(len, nodes)) == 14 * len(OPERATIONS)


# Widths and depths as printed in the tables of arXiv 2003.13678.
@pytest.mark.parametrize(
    ("config", "widths", "depths"),
    [
        (models.regnet.REGNET_X_200MF, [24, 56, 152, 368], [1, 1, 4, 7]),
        (models.regnet.REGNET_X_400MF, [32, 64, 160, 384], [1, 2, 7, 12]),
        (models.regnet.REGNET_X_800MF, [64, 128, 288, 672], [1, 3, 7, 5]),
        (models.regnet.REGNET_Y_200MF, [24, 56, 152, 368], [1, 1, 4, 7]),
        (models.regnet.REGNET_Y_400MF, [48, 104, 208, 440], [1, 3, 6, 6]),
        (models.regnet.REGNET_Y_800MF, [64, 128, 320, 768], [1, 3, 8, 2]),
    ],
)
def test_regnet_line_gives_the_published_stages(config: RegNetConfig, widths: list[int], depths: list[int]) -> None:
    assert config.stages() == list(zip(widths, depths, strict=True))


def test_regnet_width_multiplies_the_channels_of_all_stages() -> None:
    config = RegNetConfig(13, 6, 36.44 / 4, 2.49, 8)
    model = models.create_abstract("regnet_x_200mf_cifar", width=0.25)
    assert model.stem.conv.out_features == 8
    assert config.stages() == [(8, 1), (16, 1), (40, 4), (96, 7)]
    assert [block.conv3.conv.out_features for block in model.blocks] == [8, 16, *4 * [40], *7 * [96]]
    assert model.blocks[-1].conv2.conv.feature_group_count == 12


def create_small(name: str, overrides: dict[str, Any]) -> nnx.Module:
    """Creates a network of five classes, initialised in one compilation."""

    def build() -> nnx.State:
        nonlocal graphdef
        graphdef, state = nnx.split(models.create(name, num_classes=5, rngs=models.CountedKeys(), **overrides))
        return state

    graphdef = None
    state = jax.jit(build)()
    return nnx.merge(graphdef, state)


def random_batch(name: str, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns inputs of the network's kind and labels below 5, of its outputs' shape."""
    rng = np.random.default_rng(0)
    if models.example_input(name).dtype == jnp.int32:
        tokens = jnp.asarray(rng.integers(5, size=shape), jnp.int32)
        return tokens, tokens
    return jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.integers(5, size=shape[:1]))


@pytest.mark.parametrize(("name", "overrides", "shape"), SMALL)
def test_training_lowers_the_loss_and_uses_every_parameter(
    name: str, overrides: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model = create_small(name, overrides)
    x, labels = random_batch(name, shape)

    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def train_step(params: nnx.State, rest: nnx.State) -> tuple[jax.Array, nnx.State, nnx.State, nnx.State]:
        def loss_fn(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            model = nnx.merge(graphdef, params, rest, copy=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()
            return loss, nnx.state(model, nnx.Not(nnx.Param))

        (loss, new_rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        rate = 0.01 / optax.tree.norm(grads)
        return loss, grads, jax.tree.map(lambda p, g: p - rate * g, params, grads), new_rest

    before, grads, params, rest = train_step(params, rest)
    for _ in range(3):
        after, _, params, rest = train_step(params, rest)
    assert float(after) < float(before)
    # Every parameter is used; a bias before a batch norm is, but its gradient vanishes.
    used = {path: float(jnp.abs(grad[...]).max()) > 0 for path, grad in nnx.to_flat_state(grads) if path[-1] != "bias"}
    assert all(used.values()), used


@pytest.mark.parametrize(("dtype", "param_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize(("name", "overrides", "shape"), SMALL)
def test_dtype_and_param_dtype_hold_throughout(
    name: str, overrides: dict[str, Any], shape: tuple[int, ...], dtype: str, param_dtype: str
) -> None:
    model = models.create_abstract(name, dtype=dtype, param_dtype=param_dtype, **overrides)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {param_dtype}
    logits = output_of(model, jax.ShapeDtypeStruct(shape, models.example_input(name).dtype))
    assert logits.dtype == dtype


# Deep ones whose size is not checked: what the input must fit is the stem, and the number of reductions.
SHALLOW = {
    name: {"num_cells": 3, "genotype": DARTS_V2} for name in ("darts_8", "darts_8_stl10", "darts_14", "darts_v2_cifar")
}


@pytest.mark.parametrize("name", models.list_models())
def test_example_input_fits(name: str) -> None:
    x = models.example_input(name)
    classes = 256 if x.dtype == jnp.int32 else 1000 if x.shape[1] == 224 else 10
    if name in SHALLOW:
        shape = measure(models.create_abstract(name, **SHALLOW[name]), x).output_shape
    else:
        shape = measure_registered(name).output_shape
    assert (shape[0], shape[-1]) == (1, classes)
    assert models.example_input(name, batch_size=3) == jax.ShapeDtypeStruct((3, *x.shape[1:]), x.dtype)


def test_auxiliary_head_speaks_in_training_only() -> None:
    model = models.create_abstract("darts_8", num_cells=3, features=4, genotype=DARTS_V2, auxiliary=True)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert output_of(model, x).shape == (2, 10)
    model.train()
    assert [logits.shape for logits in output_of(model, x)] == [(2, 10), (2, 10)]
    with pytest.raises(ValueError, match=r"at least 7×7 positions, of which these images leave \(6, 6\)"):
        output_of(model, jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("convnext_tiny", "drop_path_rate"),
        ("darts_8", "drop_path_rate"),
        ("mobilenet_v2", "dropout_rate"),
        ("mobilenet_v3_small", "dropout_rate"),
        ("vit_s16", "dropout_rate"),
    ],
)
def test_dropout_rate_arrives_and_random_streams_come_with_it_alone(name: str, option: str) -> None:
    overrides = next(overrides for row, overrides, _ in SMALL if row == name)
    for rate in (0.0, 0.5):
        options = {**overrides, option: rate}
        model = nnx.eval_shape(lambda options=options: models.create(name, rngs=nnx.Rngs(0), **options))
        dropouts = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Dropout)]
        assert max(dropout.rate for dropout in dropouts) == rate
        assert bool(jax.tree.leaves(nnx.state(model, nnx.RngState))) == (rate > 0)


def test_drop_path_drops_whole_examples_and_keeps_their_mean() -> None:
    drop_path = Layers(nnx.Rngs(0)).drop_path(0.5)
    x = jnp.ones((64, 2, 2, 3))
    kept = np.asarray(drop_path(x)).reshape(64, -1)
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("conv_9x9", 0), ("sep_conv_3x3", 1)], "no operation is called 'conv_9x9'.*sep_conv_3x3"),
        ([("sep_conv_3x3", 0), ("sep_conv_3x3", 2)], "node 0 takes state 2.*can take 0 to 1"),
    ],
)
def test_wrong_genotype_is_refused(pairs: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genotype.from_pairs(pairs, [])


def test_factorized_reduce_sees_even_and_odd_positions() -> None:
    reduce = FactorizedReduce(Layers(nnx.Rngs(0)), 1, 2)
    reduce.even.kernel[...] = jnp.ones((1, 1, 1, 1))
    reduce.odd.kernel[...] = jnp.ones((1, 1, 1, 1))
    reduce.eval()
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    expected = np.concatenate([x[:, ::2, ::2], x[:, 1::2, 1::2]], axis=-1)
    np.testing.assert_allclose(reduce(jnp.asarray(x)), expected, rtol=1e-4)


def test_rotary_scores_depend_on_distance_alone() -> None:
    rng = np.random.default_rng(0)
    query, key = (jnp.broadcast_to(jnp.asarray(rng.normal(size=8), jnp.float32), (1, 6, 1, 8)) for _ in range(2))
    scores = np.einsum("bqhf,bkhf->qk", rotate(query), rotate(key))
    for offset in range(-5, 6):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(scores[0]) > 0.1


def test_decoder_never_looks_ahead() -> None:
    model = create_small("decoder_small", {"features": 16, "depth": 2, "num_heads": 2, "hidden": 32})
    tokens = jnp.asarray([[0, 1, 2, 3, 4, 0]])
    changed = tokens.at[0, 3].set(1)
    infer = jax.jit(lambda tokens: model(tokens))
    before, after = np.asarray(infer(tokens)), np.asarray(infer(changed))
    np.testing.assert_allclose(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-6)
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize(("width", "expected"), [(3, 8), (12, 16), (18, 24), (33, 32), (60, 64)])
def test_make_divisible_never_loses_a_tenth(width: float, expected: int) -> None:
    assert make_divisible(width) == expected


@pytest.mark.parametrize("call", [models.create, models.example_input])
@pytest.mark.parametrize(("name", "near"), [("demonet", "demo_net"), ("resnet5O", "resnet50"), ("???", "vit_s16")])
def test_unknown_name_is_refused_with_the_nearest_ones(call: Callable[[str], Any], name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as error:
        call(name)
    assert repr(name) in str(error.value)


def test_models_know_nothing_of_jasgnas() -> None:
    for path in Path(models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(str(name).split(".")[0] == "jasgnas" for name in names), path.name


def test_running_statistics_are_those_of_flax_and_ask_no_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)), jnp.float32)
    ours, theirs = Layers(nnx.Rngs(0)).batch_norm(3), nnx.BatchNorm(3, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(ours(x), theirs(x))
    for name in ("mean", "var"):
        np.testing.assert_array_equal(getattr(ours, name)[...], getattr(theirs, name)[...])
    ours.mean[1] = 7.0
    assert ours.mean[1] == 7 and ours.mean[0] == theirs.mean[0]

    def refuse(tracer: Any) -> None:
        raise AssertionError("JAX would search the whole trace for an answer")

    monkeypatch.setattr(jax.core.Tracer, "sharding", property(refuse))
    graphdef, state = nnx.split(ours)

    def train(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state, copy=True)(x)

    assert jax.eval_shape(train, state, x).shape == x.shape
