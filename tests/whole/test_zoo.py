"""Networks that researchers write and that are no stack of layers: exact sub-networks, and the groups one would expect.

All are plain functions in float64.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from tests.networks import combination, error
from tests.toy_models import conv, norm

D = 6
SQUARE = (D, D)


class Case(NamedTuple):
    """A network, the shapes of its parameters and inputs (an int is one more than the largest), and its groups."""

    fn: Any
    shapes: dict[str, tuple[int, ...]]
    inputs: list[tuple[int, ...] | tuple[tuple[int, ...], int]]
    groups: list[set[str]]


def square(*names):
    return dict.fromkeys(names, SQUARE)


def mixture_of_experts(p, x):
    """The two best of four experts for each token (arXiv 2101.03961 routes to one)."""
    x = x @ p["in"]
    top, index = jax.lax.top_k(x @ p["router"], 2)
    gates = jnp.sum(jax.nn.one_hot(index, 4) * jax.nn.softmax(top)[..., None], -2)
    hidden = jax.nn.gelu(jnp.einsum("btd,edh->bteh", x, p["up"]))
    x = x + jnp.einsum("bteh,ehd,bte->btd", hidden, p["down"], gates) @ p["out"]
    return (x + x @ p["skip"]) @ p["head"]


def dispatched_experts(p, x):
    """Each token is scattered into the buffer of its expert and gathered from there again."""
    tokens = (x @ p["in"]).reshape(-1, D)
    probabilities = jax.nn.softmax(tokens @ p["router"])
    expert = jnp.argmax(probabilities, -1)
    chosen = jax.nn.one_hot(expert, 4, dtype=jnp.int32)
    place = jnp.sum(jnp.cumsum(chosen, 0) * chosen, -1) - 1
    buffer = jnp.zeros((4, len(tokens), D)).at[expert, place].set(tokens)
    results = jax.nn.relu(jnp.einsum("ecd,edh->ech", buffer, p["experts"]))[expert, place]
    tokens = tokens + (results * jnp.max(probabilities, -1, keepdims=True)) @ p["out"]
    return (tokens + tokens @ p["skip"]) @ p["head"]


def graph_attention(p, x, senders, receivers):
    """arXiv 1710.10903, over a list of edges."""
    x = x @ p["in"]
    h = x @ p["project"]
    scores = jax.nn.leaky_relu(jnp.concatenate([h[senders], h[receivers]], -1) @ p["score"])
    # The largest of a segment starts at minus infinity, as in `jraph.segment_softmax`.
    weights = jnp.exp(scores - jax.ops.segment_max(scores, receivers, 7)[receivers])
    total = jax.ops.segment_sum(weights, receivers, 7)
    h = jax.ops.segment_sum((weights / (total[receivers] + 1e-9))[:, None] * h[senders], receivers, 7)
    x = x + h @ p["update"]
    return jnp.max(x + x @ p["skip"], 0) @ p["head"]


def global_filter(p, x):
    """Tokens are mixed by a product in the frequency domain (arXiv 2107.00645)."""
    x = x @ p["in"]
    spectrum = jnp.fft.rfft(x @ p["project"], axis=1) * (p["real"] + 1j * p["imaginary"])
    x = x + jnp.fft.irfft(spectrum, n=4, axis=1) @ p["out"]
    x = x + jnp.fft.fft2(norm(x, p["scale"], p["bias"])).real
    return jnp.mean(x, 1) @ p["head"]


def selective_scan(p, x):
    """A state-space layer whose recurrence is an associative scan (arXiv 2312.00752)."""
    x = x @ p["in"]
    decay = jnp.exp(-jax.nn.softplus(x @ p["step"]) * jnp.exp(p["rate"]))
    _, state = jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, jax.nn.silu(x @ p["drive"])), axis=1
    )
    x = x + (state * jax.nn.silu(x @ p["gate"])) @ p["out"]
    return jnp.mean(x, 1) @ p["head"]


def dilated_gates(p, x):
    """Gated dilated convolutions with summed skips (arXiv 1609.03499)."""
    x = conv(x, p["stem"])
    skips = 0
    for i in (0, 1):
        options = {"rhs_dilation": (2**i,), "padding": [(2**i, 0)]}
        h = jnp.tanh(conv(x, p[f"filter{i}"], **options)) * jax.nn.sigmoid(conv(x, p[f"gate{i}"], **options))
        skips = skips + conv(h, p[f"skip{i}"])
        x = x + conv(h, p[f"residual{i}"])
    return conv(jax.nn.relu(skips), p["head"]), jnp.mean(x, 1)


def cached_decoding(p, x, keys, values, position):
    """One step of a decoder, which returns its caches too."""
    query, key, value = ((x @ p[name]).reshape(2, 1, 2, 3) for name in ("q", "k", "v"))
    keys = jax.lax.dynamic_update_slice(keys, key, (0, position, 0, 0))
    values = jax.lax.dynamic_update_slice(values, value, (0, position, 0, 0))
    scores = jnp.where(jnp.arange(6) <= position, jnp.einsum("bqhd,bkhd->bhqk", query, keys), -1e30)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values).reshape(2, 1, D) @ p["out"]
    x = x + jax.nn.silu(x @ p["up"]) @ p["down"]
    return x @ p["head"], (keys, values)


@jax.custom_vjp
def rounded(x):
    """Quantised, with the gradient of the identity."""
    return jnp.round(x * 8) / 8


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))


def quantised(p, x):
    x = rounded(x @ (p["in"] + jax.lax.stop_gradient(rounded(p["in"]) - p["in"])))
    x = x + rounded(jax.nn.relu(x @ p["up"])) @ rounded(p["down"])
    x = x + jnp.clip(rounded(x @ p["wide"]), -2, 2)
    return x @ p["head"]


def complex_numbers(p, x):
    x = x @ p["in"]
    z = x.astype(complex) @ (p["real"] + 1j * p["imaginary"])
    z = z * jnp.exp(1j * jnp.angle(z))
    x = x + jnp.abs(z) @ p["magnitude"] + jnp.real(z * jnp.conj(z)) @ p["power"]
    return x @ p["head"]


def capsules(p, x):
    """Dynamic routing (arXiv 1710.09829)."""
    x = x @ p["in"]
    x = x + jax.nn.relu(x @ p["residual"])
    votes = jnp.einsum("bid,ijdk->bijk", x.reshape(2, -1, D // 2)[:, :6], p["votes"])
    logits = jnp.zeros(votes.shape[:3])
    for _ in range(2):
        total = (jax.nn.softmax(logits, 2)[..., None] * votes).sum(1)
        norms = (total**2).sum(-1, keepdims=True)
        output = norms / (1 + norms) * total / jnp.sqrt(norms + 1e-9)
        logits = logits + (votes * output[:, None]).sum(-1)
    return output


def conditional_norm(p, x, label):
    x = conv(x, p["stem"])
    y = x * p["gain"][label][:, None, None] + p["shift"][label][:, None, None]
    x = x + conv(jax.nn.relu(y), p["conv"])
    return jnp.mean(x, (1, 2)) @ p["head"]


def latent_array(p, x):
    """Learned latents that look at the input (arXiv 2103.03206): without the first look they are constants."""
    x = x @ p["in"]
    z = jnp.broadcast_to(p["latents"], (x.shape[0], 3, D))
    for i in range(3):
        context = z if i else x
        weights = jax.nn.softmax((z @ p[f"q{i}"]) @ (context @ p[f"k{i}"]).swapaxes(1, 2))
        z = z + weights @ (context @ p[f"v{i}"]) @ p[f"o{i}"]
    return jnp.mean(z, 1) @ p["head"]


def straight_through(p, x):
    """A code takes the place of the features, while gradients pass it by, as in a VQ-VAE (arXiv 1711.00937)."""
    features = x @ p["in"]
    code = jnp.tanh(x @ p["code"])
    x = features + jax.lax.stop_gradient(code - features)
    return (x + jnp.tanh(x @ p["branch"])) @ p["head"]


def read_out_token(p, x):
    """The output reads the class token alone: one of the attentions must stay."""
    x = jnp.concatenate([jnp.broadcast_to(p["token"], (x.shape[0], 1, D)), x @ p["in"]], 1)
    for i in (0, 1):
        x = x + jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x @ p[f"attention{i}"]
        x = x + jax.nn.gelu(x @ p[f"up{i}"]) @ p[f"down{i}"]
    return x[:, 0] @ p["head"]


def normalized_by_batch(p, x):
    """Deviations and safe quotients, whose branches are never taken where they would divide by zero."""
    x = x @ p["in"]
    y = x @ p["branch"]
    x = x + (y - jnp.mean(y)) / jnp.where(jnp.std(y) == 0, 1.0, jnp.std(y))
    x = x + jnp.nan_to_num(jnp.hypot(x @ p["first"], x @ p["second"]))
    return x @ p["head"]


ZOO = {
    "mixture of experts": Case(
        mixture_of_experts,
        square("in", "out", "skip", "head") | {"router": (D, 4), "up": (4, D, 8), "down": (4, 8, D)},
        [(2, 5, D)],
        [{"down", "out"}, {"skip"}],
    ),
    "dispatched experts": Case(
        dispatched_experts,
        square("in", "out", "skip", "head") | {"router": (D, 4), "experts": (4, D, D)},
        [(2, 3, D)],
        [{"out"}, {"skip"}],
    ),
    "graph attention": Case(
        graph_attention,
        square("in", "project", "update", "skip", "head") | {"score": (2 * D,)},
        [(7, D), ((9,), 7), ((9,), 7)],
        [{"update"}, {"skip"}],
    ),
    "global filter": Case(
        global_filter,
        square("in", "project", "out", "head") | {"real": (3, D), "imaginary": (3, D), "scale": (D,), "bias": (D,)},
        [(2, 4, D)],
        [{"project", "real", "imaginary", "out"}, {"scale", "bias"}],
    ),
    "selective scan": Case(
        selective_scan, square("in", "step", "drive", "gate", "out", "head") | {"rate": (D,)}, [(2, 5, D)], [{"out"}]
    ),
    "dilated gates": Case(
        dilated_gates,
        {
            "stem": (1, 1, 4),
            **{f"{name}{i}": (2, 4, 4) for name in ("filter", "gate") for i in (0, 1)},
            **{f"{name}{i}": (1, 4, 4) for name in ("skip", "residual") for i in (0, 1)},
            "head": (1, 4, 3),
        },
        [(2, 8, 1)],
        [{"skip0"}, {"residual0"}, {"skip1"}, {"residual1"}],
    ),
    "cached decoding": Case(
        cached_decoding,
        square("q", "k", "v", "out", "up", "down", "head"),
        [(2, 1, D), (2, 6, 2, 3), (2, 6, 2, 3), ((), 5)],
        [{"out"}, {"up", "down"}],
    ),
    "quantised": Case(quantised, square("in", "up", "down", "wide", "head"), [(3, D)], [{"up", "down"}, {"wide"}]),
    "complex numbers": Case(
        complex_numbers,
        square("in", "real", "imaginary", "magnitude", "power", "head"),
        [(3, D)],
        [{"magnitude"}, {"power"}],
    ),
    "capsules": Case(capsules, square("in", "residual") | {"votes": (6, 4, D // 2, 3)}, [(2, 4, D)], [{"residual"}]),
    "conditional norm": Case(
        conditional_norm,
        {"stem": (3, 3, 3, 8), "gain": (5, 8), "shift": (5, 8), "conv": (3, 3, 8, 8), "head": (8, 2)},
        [(2, 4, 4, 3), ((2,), 5)],
        [{"stem"}, {"shift"}, {"conv"}],
    ),
    "latent array": Case(
        latent_array,
        square("in", "head", *(f"{name}{i}" for name in "qkvo" for i in range(3))) | {"latents": (3, D)},
        [(2, 5, D)],
        [{"o1"}, {"o2"}],
    ),
    "read-out token": Case(
        read_out_token,
        square("in", "head", *(f"{name}{i}" for name in ("attention", "up", "down") for i in (0, 1)))
        | {"token": (1, 1, D)},
        [(2, 4, D)],
        [{"attention0"}, {"up0", "down0"}, {"attention1"}, {"up1", "down1"}],
    ),
    "straight-through estimator": Case(
        straight_through, square("in", "code", "branch", "head"), [(3, D)], [{"in"}, {"code"}, {"branch"}]
    ),
    "normalized by the batch": Case(
        normalized_by_batch, square("in", "branch", "first", "second", "head"), [(3, D)], [{"branch"}]
    ),
}


def draw(case, seed):
    rng = np.random.default_rng(seed)
    params = {
        name: jnp.asarray(rng.normal(size=shape) * (1.5 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.5))
        for name, shape in case.shapes.items()
    }
    inputs = [
        jnp.asarray(rng.integers(0, spec[1], spec[0])) if spec and isinstance(spec[0], tuple) else rng.normal(size=spec)
        for spec in case.inputs
    ]
    return params, [jnp.asarray(value) for value in inputs]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ZOO)
def test_odd_networks_shrink_exactly(name):
    case = ZOO[name]
    params, inputs = draw(case, 0)
    space = jasgnas.search_space(case.fn, *inputs, params=params)
    assert [set(group.paths) for group in space.groups] == case.groups
    for removed in sorted({tuple(space.largest_removal), space.random_redundant(jax.random.key(0), 1)}):
        full = space.zero(params, removed)
        sub_fn, sub_params = jasgnas.construct_subnet(space, full)
        assert error(sub_fn(sub_params, *inputs), case.fn(full, *inputs)) < 1e-10
        assert jasgnas.count_params(sub_params) <= space.subnet_size(removed)[0] < jasgnas.count_params(params)


def test_a_class_token_needs_an_attention():
    case = ZOO["read-out token"]
    params, inputs = draw(case, 0)
    space = jasgnas.search_space(case.fn, *inputs, params=params)
    attention = {index for index, group in enumerate(space.groups) if "attention" in group.paths[0]}
    for index in attention:
        assert space.is_valid(set(range(4)) - {index})
    assert not space.is_valid(attention)


def test_features_whose_code_is_gone_do_not_count():
    case = ZOO["straight-through estimator"]
    params, inputs = draw(case, 0)
    space = jasgnas.search_space(case.fn, *inputs, params=params)
    groups = {group.paths[0]: group.index for group in space.groups}
    assert space.is_valid({groups["in"], groups["branch"]})
    assert not space.is_valid({groups["code"]})
    without_code = case.fn(space.zero(params, {groups["code"]}), *inputs)
    assert not jnp.ptp(without_code, axis=0).any()


def test_an_output_that_reads_a_constant_token_is_disconnected():
    def fn(params, x):
        tokens = jnp.concatenate([jnp.broadcast_to(params["token"], (2, 1, D)), x], 1)
        return (tokens + jnp.tanh(tokens @ params["mlp"]))[:, 0]

    params = {"token": jnp.ones((1, 1, D)), "mlp": jnp.ones(SQUARE)}
    with pytest.raises(jasgnas.DisconnectedOutputError, match="class token"):
        jasgnas.search_space(fn, jnp.ones((2, 3, D)), params=params)


@jax.custom_vjp
def clipped_dense(x, kernel, bias):
    """A dense layer that clips the gradient it receives."""
    return jnp.tanh(x @ kernel + bias)


def _forward(x, kernel, bias):
    y = clipped_dense(x, kernel, bias)
    return y, (x, kernel, y)


def _backward(residuals, g):
    x, kernel, y = residuals
    g = jnp.clip(g * (1 - y * y), -0.3, 0.3)
    return g @ kernel.T, x.T @ g, g.sum(0)


clipped_dense.defvjp(_forward, _backward)


@jax.custom_vjp
def first_half(x):
    """Takes half of its input; its gradient depends on the other half too."""
    return x[:, :3]


first_half.defvjp(
    lambda x: (first_half(x), x),
    lambda x, g: (jnp.concatenate([g * jnp.sum(x[:, 3:] ** 2), jnp.zeros_like(g)], 1),),
)


@pytest.mark.parametrize("removed", [(0,), (1,)])
def test_custom_gradients_survive_at_reduced_width(removed):
    """Gradients of a sub-network are those of the full one, and it computes less, forwards and backwards."""

    def fn(params, x):
        both = jnp.concatenate([x @ params["a"], jnp.tanh(x @ params["b"])], -1)
        y = clipped_dense(both, params["kernel"], params["bias"])
        return (y + first_half(x @ params["wide"]) @ params["narrow"]) @ params["head"]

    case = Case(
        fn,
        {"a": (5, 3), "b": (5, 4), "kernel": (7, 6), "bias": (6,), "wide": (5, 6), "narrow": (3, 6), "head": (6, 2)},
        [(8, 5)],
        [],
    )
    params, (x,) = draw(case, 0)
    space = jasgnas.search_space(fn, x, params=params)
    assert [set(group.paths) for group in space.groups][:2] == [{"a"}, {"b"}]
    full = space.zero(params, removed)
    sub_fn, sub_params = jasgnas.construct_subnet(space, full)
    kept = slice(3, 7) if removed == (0,) else slice(0, 3)
    expected = jax.grad(lambda params: combination(fn(params, x)))(full)
    expected["kernel"] = expected["kernel"][kept]
    found = jax.grad(lambda params: combination(sub_fn(params, x)))(sub_params)
    assert set(found) == set(params) - ({"a"} if removed == (0,) else {"b"})
    assert error(found, {name: expected[name] for name in found}) < 1e-10
    saved = 8 * 5 * params["a" if removed == (0,) else "b"].shape[1] + 8 * 6 * (7 - found["kernel"].shape[0])
    assert jasgnas.count_macs(sub_fn, x, params=sub_params) == jasgnas.count_macs(fn, x, params=params) - saved
