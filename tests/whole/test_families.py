"""A network for each family of operators, in Flax NNX, in Linen and as a function: exact sub-networks.

Everything is computed in float64, so that exact means equal up to 1e-10, in inference and in training mode.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, struct

import jasgnas
from tests.networks import sampled
from tests.whole.double import D, F, assert_same, double_settings, perturbed, random_array


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def _tokens(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 9, size=shape))


def _removals(space):
    most = len(space.largest_removal)
    return [space.random_redundant(jax.random.key(seed), min(most, 1 + seed)) for seed in (0, 2)]


# Flax NNX.


class TransformerBlock(nnx.Module):
    def __init__(self, features, rngs):
        settings = double_settings(rngs)
        self.norm1 = nnx.LayerNorm(features, **settings)
        self.attention = nnx.MultiHeadAttention(2, features, decode=False, **settings)
        self.norm2 = nnx.LayerNorm(features, **settings)
        self.expand = nnx.Linear(features, 2 * features, **settings)
        self.project = nnx.Linear(2 * features, features, **settings)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.project(nnx.gelu(self.expand(self.norm2(x)))))


class TiedTransformer(nnx.Module):
    """Attention, positional embeddings added to tokens, an embedding that is used again for the logits."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(9, 8, **double_settings(rngs))
        self.positions = nnx.Param(random_array(1, 1, 6, 8))
        self.blocks = nnx.List([TransformerBlock(8, rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 5, **double_settings(rngs))

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return {"logits": self.embed.attend(x), "class": self.head(x.mean(1))}


class ScannedStack(nnx.Module):
    """Layers stacked by vmap and applied by scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return TransformerBlock(8, rngs)

        self.layers = make(nnx.Rngs(0))
        self.inputs = nnx.Linear(4, 8, **double_settings(rngs))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            layer.eval()
            return layer(x)

        return run(self.inputs(x), self.layers)


class Recurrent(nnx.Module):
    """LSTM in the trunk, of which what a gate makes of its input and of its state may go; GRU in a branch."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.trunk = nnx.RNN(nnx.LSTMCell(4, 8, **settings))
        self.branch = nnx.RNN(nnx.GRUCell(8, 8, **settings))
        self.project = nnx.Linear(8, 8, **settings)
        self.head = nnx.Linear(8, 3, **settings)

    def __call__(self, x):
        x = self.trunk(x)
        return self.head(x + self.project(self.branch(x)))


class NormsAndGroups(nnx.Module):
    """Group, instance, RMS norm; grouped, depthwise and transposed convolutions; a sigmoid that keeps no zeros."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.stem = nnx.Conv(3, 8, (3, 3), **settings)
        self.grouped = nnx.Conv(8, 8, (3, 3), feature_group_count=4, **settings)
        self.group_norm = nnx.GroupNorm(8, 4, **settings)
        self.pointwise = nnx.Conv(8, 8, (1, 1), **settings)
        self.instance_norm = nnx.InstanceNorm(8, **settings)
        self.rms_norm = nnx.RMSNorm(8, **settings)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, kernel_dilation=2, **settings)
        self.gate = nnx.Conv(8, 8, (1, 1), **settings)
        self.up = nnx.ConvTranspose(8, 8, (2, 2), strides=(2, 2), **settings)
        self.wide = nnx.Conv(8, 16, (1, 1), **settings)
        self.joined_norm = nnx.GroupNorm(32, 8, **settings)
        self.head = nnx.Linear(32, 4, **settings)

    def __call__(self, x):
        x = self.stem(x)
        x = x + self.group_norm(self.grouped(x))
        x = x + self.instance_norm(self.pointwise(x))
        x = x + self.depthwise(self.rms_norm(x))
        x = self.up(x)
        x = jnp.concatenate([x, self.wide(x), nnx.sigmoid(self.gate(x))], -1)
        return self.head(nnx.relu(self.joined_norm(x))).mean((1, 2))


class SplitAndRange(nnx.Module):
    """Channel split, a product of its parts, layer norm over a range that goes, several outputs."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.a = nnx.Linear(4, 12, **settings)
        self.b = nnx.Linear(4, 12, **settings)
        self.c = nnx.Linear(8, 4, **settings)
        self.d = nnx.Linear(4, 6, **settings)
        self.e = nnx.Linear(4, 6, **settings)
        self.norm = nnx.LayerNorm(12, **settings)
        self.head = nnx.Linear(12, 12, **settings)

    def __call__(self, x):
        x = self.a(x) + nnx.tanh(self.b(x))
        first, second, third = jnp.split(x, [4, 8], -1)
        y = self.c(jnp.concatenate([first, nnx.relu(second)], -1)) * nnx.sigmoid(third)
        z = self.norm(jnp.concatenate([self.d(y), self.e(y)], -1))
        return {"head": self.head(z), "parts": (y, x[:, :2])}


class Sequence1D(nnx.Module):
    """One-dimensional convolutions, a depthwise one after a concatenation, flatten to dense."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.stem = nnx.Conv(3, 6, (3,), **settings)
        self.branch = nnx.Conv(6, 6, (3,), **settings)
        self.norm = nnx.BatchNorm(6, rngs=rngs, param_dtype=F)
        self.depthwise = nnx.Conv(12, 12, (3,), feature_group_count=12, **settings)
        self.joined_norm = nnx.BatchNorm(12, rngs=rngs, param_dtype=F)
        self.head = nnx.Linear(60, 4, **settings)

    def __call__(self, x):
        x = self.stem(x)
        x = jnp.concatenate([x, self.norm(self.branch(x))], -1)
        x = nnx.relu(self.joined_norm(self.depthwise(x)))
        return self.head(x.reshape(x.shape[0], -1))


class Standardised(nnx.Module):
    """Weight standardisation: a kernel that is transformed before it is used."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.stem = nnx.Linear(4, 6, **settings)
        self.kernel = nnx.Param(random_array(2, 6, 6))
        self.gain = nnx.Param(random_array(3, 6))
        self.head = nnx.Linear(6, 3, **settings)

    def __call__(self, x):
        x = self.stem(x)
        kernel = self.kernel[...]
        kernel = (kernel - kernel.mean(0)) / jnp.sqrt(kernel.var(0) + 1e-5) * self.gain[...]
        return self.head(x + x @ kernel)


class GatesAndShuffles(nnx.Module):
    """Squeeze-and-excitation, LayerScale, cond, sort, cumulative sum, where, clip, pixel shuffle."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.stem = nnx.Conv(3, 8, (3, 3), **settings)
        self.conv = nnx.Conv(8, 8, (3, 3), **settings)
        self.squeeze = nnx.Linear(8, 2, **settings)
        self.excite = nnx.Linear(2, 8, **settings)
        self.pointwise = nnx.Conv(8, 8, (1, 1), **settings)
        self.layer_scale = nnx.Param(random_array(4, 8))
        self.head = nnx.Linear(8, 3, **settings)

    def __call__(self, x):
        x = self.stem(x)
        y = self.conv(x)
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(y.mean((1, 2))))))
        x = x + y * gate[:, None, None, :]
        x = x + self.pointwise(x) * self.layer_scale[...]
        x = x + jax.lax.cond(x.sum() > 0, lambda a: a * 2, lambda a: a, x)
        x = jnp.cumsum(jnp.sort(x, 1), 2)
        x = jnp.clip(jnp.where(x > 0, x, 0.1 * x), -1, 1)
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * features)[..., :features]
        return self.head(x.max((1, 2)))


class TwoInputs(nnx.Module):
    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.left = nnx.Linear(4, 6, **settings)
        self.right = nnx.Linear(5, 6, **settings)
        self.residual = nnx.Linear(6, 6, **settings)
        self.head = nnx.Linear(6, 2, **settings)
        self.auxiliary = nnx.Linear(6, 2, **settings)

    def __call__(self, x, y):
        z = self.left(x) + self.right(y)
        return self.head(z + self.residual(nnx.relu(z))), self.auxiliary(z)


class SharedBlock(nnx.Module):
    """One block is applied twice, so that both uses go together; another once."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.shared = nnx.Linear(4, 4, **settings)
        self.own = nnx.Linear(4, 4, **settings)
        self.head = nnx.Linear(4, 2, **settings)

    def __call__(self, x):
        x = x + self.shared(x)
        x = x + nnx.relu(self.shared(x))
        return self.head(x + self.own(x))


class QueryGroups(nnx.Module):
    """Grouped-query attention by einsum with a causal mask, and a fused query-key-value projection."""

    def __init__(self, rngs):
        settings = double_settings(rngs)
        self.inputs = nnx.Linear(3, 8, **settings)
        self.query = nnx.LinearGeneral(8, (4, 2), **settings)
        self.key = nnx.LinearGeneral(8, (2, 2), **settings)
        self.value = nnx.LinearGeneral(8, (2, 2), **settings)
        self.out = nnx.LinearGeneral((4, 2), 8, axis=(-2, -1), **settings)
        self.fused = nnx.Linear(8, 24, **settings)
        self.fused_out = nnx.Linear(8, 8, **settings)
        self.head = nnx.Linear(8, 2, **settings)

    def __call__(self, x):
        x = self.inputs(x)
        query, key, value = self.query(x), jnp.repeat(self.key(x), 2, 2), jnp.repeat(self.value(x), 2, 2)
        scores = jnp.einsum("bthd,bshd->bhts", query, key)
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        x = x + self.out(jnp.einsum("bhts,bshd->bthd", weights, value))
        query, key, value = jnp.split(self.fused(x), 3, -1)
        x = x + self.fused_out(jax.nn.softmax(query @ key.swapaxes(-1, -2)) @ value)
        return self.head(x)


# The network, its inputs, and the modules whose parameters make its groups.
NNX_FAMILIES = {
    "transformer": (
        TiedTransformer,
        (_tokens, (2, 6)),
        [
            {"blocks/0/attention/out"},
            {"blocks/0/norm2", "blocks/0/expand", "blocks/0/project"},
            {"blocks/1/attention/out"},
            {"blocks/1/norm2", "blocks/1/expand", "blocks/1/project"},
        ],
    ),
    "scanned stack": (
        ScannedStack,
        (random_array, (2, 5, 4)),
        [{"layers/attention/out"}, {"layers/norm2", "layers/expand", "layers/project"}] * 3,
    ),
    "recurrent": (
        Recurrent,
        (random_array, (2, 5, 4)),
        [{f"trunk/cell/{part}"} for part in ("ii", "hi", "if_", "hf", "ig", "hg", "io", "ho")]
        + [{"branch/cell/dense_i", "branch/cell/dense_h", "project"}],
    ),
    "norms and groups": (
        NormsAndGroups,
        (random_array, (2, 6, 6, 3)),
        [{"grouped", "group_norm"}, {"pointwise", "instance_norm"}, {"rms_norm", "depthwise"}, {"wide", "joined_norm"}],
    ),
    "split and range": (SplitAndRange, (random_array, (3, 4)), [{"a"}, {"b"}, {"d", "norm"}, {"e", "norm"}]),
    "one-dimensional": (
        Sequence1D,
        (random_array, (4, 5, 3)),
        [{"branch", "norm", "depthwise", "joined_norm"}],
    ),
    "standardised weights": (Standardised, (random_array, (3, 4)), [{"kernel", "gain"}]),
    "gates and shuffles": (GatesAndShuffles, (random_array, (2, 4, 4, 3)), [{"pointwise", "layer_scale"}]),
    "shared block": (SharedBlock, (random_array, (3, 4)), [{"shared"}, {"own"}]),
    "query groups": (QueryGroups, (random_array, (2, 5, 3)), [{"out"}, {"fused_out"}]),
    "two inputs": (TwoInputs, (random_array, (3, 4), (3, 5)), [{"left"}, {"right"}, {"residual"}]),
}


def _modules(group):
    """Returns the modules that a group's parameters belong to; a parameter of the root is its own module."""
    return {part.path.rpartition("/")[0] or part.path for part in group.slices}


@pytest.mark.parametrize("name", NNX_FAMILIES)
def test_nnx_families_shrink_exactly(name):
    network, (make, *shapes), expected = NNX_FAMILIES[name]
    model = network(nnx.Rngs(0))
    nnx.update(model, perturbed(nnx.state(model)))
    inputs = [make(seed, *shape) for seed, shape in enumerate(shapes)]
    space = jasgnas.search_space(model, *inputs)
    assert [_modules(group) for group in space.groups] == expected
    for removed in _removals(space):
        full = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, full)
        for mode in ("eval", "train"):
            getattr(full, mode)()
            getattr(subnet, mode)()
            assert_same(full(*inputs), subnet(*inputs))
        params, _ = space.subnet_size(removed)
        assert jasgnas.count_params(subnet) <= params < jasgnas.count_params(model)


# Flax Linen.


class LinenTransformerBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        y = nn.LayerNorm(**D)(x)
        x = x + nn.MultiHeadDotProductAttention(2, deterministic=not train, dropout_rate=0.1, **D)(y, y)
        y = nn.gelu(nn.Dense(16, **D)(nn.LayerNorm(**D)(x)))
        return x + nn.Dense(8, **D)(nn.Dropout(0.1, deterministic=not train)(y))


class RematTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(9, 8, **D)(tokens)
        for _ in range(2):
            x = nn.remat(LinenTransformerBlock, static_argnums=(2,))()(x, train)
        return nn.Dense(3, **D)(x)


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return LinenTransformerBlock()(x), None


class LinenScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, **D)(x)
        stack = nn.scan(nn.remat(ScannedBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3, **D)(stack()(x, None)[0])


class Reparameterised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, **D)(x)
        x = x + nn.SpectralNorm(nn.Dense(6, **D))(x, update_stats=train)
        x = x + nn.WeightNorm(nn.Dense(6, **D))(nn.relu(x))
        x = x + nn.Dense(6, **D)(nn.RNN(nn.OptimizedLSTMCell(6, **D))(x))
        return nn.Dense(2, **D)(x)


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        def norm(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train, **D)(x))

        skip = norm(nn.Conv(4, (3, 3), **D)(x))
        deep = norm(nn.Conv(6, (3, 3), **D)(nn.max_pool(skip, (2, 2), (2, 2))))
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2), **D)(deep)
        x = norm(jnp.concatenate([up, skip], -1))
        x = nn.Conv(5, (3, 3), padding="CIRCULAR", **D)(x)
        return nn.Conv(2, (1, 1), **D)(x + nn.ConvLocal(5, (1, 1), **D)(x))


class EncoderDecoder(nn.Module):
    @nn.compact
    def __call__(self, source, target):
        embed = nn.Embed(9, 8, **D)
        a, b = embed(source), embed(target)
        a = a + nn.MultiHeadDotProductAttention(2, **D)(nn.LayerNorm(**D)(a))
        mask = nn.make_attention_mask(target > 0, source > 0)
        b = b + nn.MultiHeadDotProductAttention(2, **D)(nn.LayerNorm(**D)(b), a, mask=mask)
        b = b + nn.Dense(8, **D)(nn.silu(nn.Dense(12, **D)(b)) * nn.Dense(12, **D)(b))
        return {"logits": embed.attend(b), "auxiliary": nn.Dense(1, **D)(a.mean(1))}


class StacksAndRolls(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, **D)(x)
        heads = nn.DenseGeneral((3, 2), **D)(x)
        x = x + nn.DenseGeneral(6, axis=(-2, -1), **D)(jnp.stack([heads, heads * 2]).sum(0))
        x = jnp.stack([x, nn.Dense(6, **D)(x), nn.tanh(nn.Dense(6, **D)(x))], 1).mean(1)
        x = x + jax.vmap(lambda a: jnp.roll(a, 1, 0))(nn.Dense(6, **D)(x))
        x = x + nn.Dense(6, **D)(jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1])
        x = x + nn.Einsum((6, 6), "btd,de->bte", **D)(x)
        return jax.nn.log_softmax(nn.Dense(3, **D)(x)), jnp.argmax(x, -1)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (4, 4), (4, 4), **D)(x)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param("token", nn.initializers.normal(), (1, 1, 8), F)
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:]), F)
        for _ in range(2):
            x = LinenTransformerBlock()(x, train)
        return nn.Dense(3, **D)(nn.LayerNorm(**D)(x)[:, 0])


class RotaryDecoder(nn.Module):
    """Causal attention with rotary embeddings and fused projections, SwiGLU, a tied embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(9, 8, **D)
        x = embed(tokens)
        for _ in range(2):
            heads = nn.DenseGeneral((3, 2, 4), use_bias=False, **D)(nn.RMSNorm(**D)(x))
            query, key, value = (self.rotated(heads[:, :, i]) if i < 2 else heads[:, :, i] for i in range(3))
            mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            x = x + nn.DenseGeneral(8, axis=(-2, -1), use_bias=False, **D)(mixed)
            gate, up = jnp.split(nn.Dense(24, use_bias=False, **D)(nn.RMSNorm(**D)(x)), 2, -1)
            x = x + nn.Dense(8, use_bias=False, **D)(nn.silu(gate) * up)
        return embed.attend(nn.RMSNorm(**D)(x))

    def rotated(self, x):
        angles = jnp.arange(x.shape[1])[:, None, None] / 10.0 ** jnp.arange(2)
        first, second = jnp.split(x, 2, -1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


@struct.dataclass
class Maps:
    """Outputs of a backbone."""

    early: jax.Array
    late: jax.Array


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), **D)(x)
        maps = []
        for growth in (2, 3):
            for _ in range(2):
                y = nn.relu(nn.BatchNorm(use_running_average=not train, **D)(x))
                x = jnp.concatenate([x, nn.Conv(growth, (3, 3), use_bias=False, **D)(y)], -1)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, **D)(x))
            x = nn.avg_pool(nn.Conv(4, (1, 1), use_bias=False, **D)(x), (2, 2), (2, 2))
            maps.append(x.mean((1, 2)))
        return Maps(*maps)


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.LayerNorm(**D)(nn.Conv(4, (2, 2), (2, 2), **D)(x))
        for index in range(2):
            y = nn.LayerNorm(**D)(nn.Conv(4, (7, 7), feature_group_count=4, **D)(x))
            y = nn.Dense(4, **D)(nn.gelu(nn.Dense(8, **D)(y)))
            y = y * self.param(f"layer_scale{index}", nn.initializers.ones, (4,), F)
            # Stochastic depth.
            x = x + nn.Dropout(0.2, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
        return nn.Dense(3, **D)(nn.LayerNorm(**D)(x.mean((1, 2))))


class MobileBlocks(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        def norm(x):
            return nn.BatchNorm(use_running_average=not train, **D)(x)

        x = nn.hard_swish(norm(nn.Conv(4, (3, 3), (2, 2), use_bias=False, **D)(x)))
        for _ in range(2):
            y = nn.relu6(norm(nn.Conv(8, (1, 1), use_bias=False, **D)(x)))
            y = nn.relu6(norm(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, **D)(y)))
            squeezed = nn.relu(nn.Dense(2, **D)(y.mean((1, 2), keepdims=True)))
            y = y * nn.hard_sigmoid(nn.Dense(8, **D)(squeezed))
            x = x + norm(nn.Conv(4, (1, 1), use_bias=False, **D)(y))
        return nn.Dense(3, **D)(x.mean((1, 2)))


# The network, its inputs, the arguments of a call in training mode, and how many groups it has.
LINEN_FAMILIES = {
    "vision transformer": (VisionTransformer, (random_array, (2, 8, 8, 3)), {"train": True}, 4),
    "rotary decoder": (RotaryDecoder, (_tokens, (2, 5)), {}, 4),
    "DenseNet": (DenseNet, (random_array, (2, 8, 8, 3)), {"train": True}, 4),
    "ConvNeXt": (ConvNeXt, (random_array, (2, 8, 8, 3)), {"train": True}, 2),
    "MobileNet": (MobileBlocks, (random_array, (2, 8, 8, 3)), {"train": True}, 2),
    "remat transformer": (RematTransformer, (_tokens, (2, 5)), {"train": True}, 4),
    "scan": (LinenScan, (random_array, (2, 4, 5)), {}, 6),
    "reparameterised weights": (Reparameterised, (random_array, (2, 4, 5)), {"train": True}, 3),
    "u-net": (UNet, (random_array, (2, 6, 6, 3)), {"train": True}, 2),
    "encoder and decoder": (EncoderDecoder, (_tokens, (2, 5), (2, 4)), {}, 3),
    "stacks and rolls": (StacksAndRolls, (random_array, (2, 4, 5)), {}, 6),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sampled(LINEN_FAMILIES, 2))
def test_linen_families_shrink_exactly(name):
    network, (make, *shapes), training, num_groups = LINEN_FAMILIES[name]
    module = network()
    inputs = [make(seed, *shape) for seed, shape in enumerate(shapes)]
    variables = perturbed(module.init(jax.random.key(0), *inputs))
    space = jasgnas.search_space(module, *inputs, variables=variables, **dict.fromkeys(training, False))
    assert len(space.groups) == num_groups
    state = [collection for collection in variables if collection != "params"]
    call = {**training, "mutable": state, "rngs": {"dropout": jax.random.key(1)}}
    for removed in _removals(space):
        full = space.zero(variables, removed)
        subnet, sub_variables = jasgnas.construct_subnet(space, full)
        assert_same(module.apply(full, *inputs), subnet.apply(sub_variables, *inputs))
        expected, full_updated = module.apply(full, *inputs, **call)
        found, updated = subnet.apply(sub_variables, *inputs, **call)
        assert_same(expected, found)
        assert jax.tree.structure(updated) == jax.tree.structure({name: sub_variables[name] for name in updated})
        assert set(updated) <= set(full_updated)
        assert jasgnas.count_params(sub_variables) <= space.subnet_size(removed)[0] < jasgnas.count_params(variables)


FLAVOURS = ["vision transformer", "rotary decoder", "DenseNet", "ConvNeXt", "MobileNet", "u-net",
            "encoder and decoder", "scan"]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sampled(FLAVOURS, 2))
def test_a_network_has_the_same_space_in_every_flavour(name):
    """As an NNX module and as a function of its parameters, and the sub-networks are as exact."""
    network, (make, *shapes), _, _ = LINEN_FAMILIES[name]
    module = network()
    inputs = [make(seed, *shape) for seed, shape in enumerate(shapes)]
    variables = perturbed(module.init(jax.random.key(0), *inputs))
    state = {collection: value for collection, value in variables.items() if collection != "params"}

    def fn(params, *inputs):
        return module.apply({"params": params, **state}, *inputs)

    model = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, *inputs)
    nnx.update(model, perturbed(nnx.state(model)))
    linen_space = jasgnas.search_space(module, *inputs, variables=variables)
    plain_space = jasgnas.search_space(fn, *inputs, params=variables["params"])
    nnx_space = jasgnas.search_space(model, *inputs)
    assert [group.paths for group in plain_space.groups] == [group.paths for group in linen_space.groups]
    assert [group.paths for group in nnx_space.groups] == [group.paths for group in linen_space.groups]
    removed = linen_space.largest_removal
    assert plain_space.largest_removal == nnx_space.largest_removal == removed
    params = plain_space.zero(variables["params"], removed)
    sub_fn, sub_params = jasgnas.construct_subnet(plain_space, params)
    assert_same(fn(params, *inputs), sub_fn(sub_params, *inputs))
    full = nnx_space.zero(model, removed)
    subnet = jasgnas.construct_subnet(nnx_space, full)
    assert_same(full(*inputs), subnet(*inputs))
    assert jasgnas.count_params(subnet) == jasgnas.count_params(sub_params) < jasgnas.count_params(model)


def test_a_head_is_never_a_candidate_nor_what_feeds_a_sigmoid():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + nn.Dense(4, name="branch", **D)(x)
            x = x + nn.sigmoid(nn.Conv(4, (3,), name="before_sigmoid", **D)(x))
            return nn.Dense(2, name="head", **D)(x)

    x = random_array(0, 2, 5, 4)
    space = jasgnas.search_space(Net(), x, variables=Net().init(jax.random.key(0), x))
    assert [group.name for group in space.groups] == ["branch"]
    assert "computes a network output" in space.explain("head/*")
    assert "does not keep zeros" in space.explain("before_sigmoid/*")


class HalfPrecision(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, dtype=self.dtype)(x)
        for _ in range(2):
            x = x + nn.Dense(8, dtype=self.dtype)(nn.relu(nn.Dense(8, dtype=self.dtype)(x)))
        return nn.Dense(2, dtype=jnp.float32)(x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_computation_with_float32_parameters(dtype):
    x = jnp.asarray(random_array(0, 4, 3), jnp.float32)
    module = HalfPrecision(dtype)
    variables = module.init(jax.random.key(0), x)
    space = jasgnas.search_space(module, x, variables=variables)
    full = space.zero(variables, [1])
    subnet, sub_variables = jasgnas.construct_subnet(space, full, verify=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(sub_variables)} == {jnp.dtype("float32")}
    expected, found = module.apply(full, x), subnet.apply(sub_variables, x)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=4 * float(jnp.finfo(dtype).eps))
