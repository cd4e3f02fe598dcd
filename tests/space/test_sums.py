"""Sums that take away again what they add, against the derivatives of the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas.program.jaxpr import inline, trace
from jasgnas.space.sums import Sums
from tests.networks import error, random_input

ADDENDS = 4


def remainder(fn, num_inputs=ADDENDS):
    """The inputs that the result of a function is made of, by number, or None if nothing is taken away again."""
    program = inline(trace(fn, *[jax.ShapeDtypeStruct((2,), jnp.float32)] * num_inputs))
    found = Sums(program).remainder(program.outputs[0])
    return None if found is None else sorted(program.inputs.index(addend.var) for addend in found)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x, q: x + jax.lax.stop_gradient(q - x), [1]),
        (lambda x, q: (x + q) - x, [1]),
        (lambda x, q: (x + q) - x - q, []),
        (lambda x, q: 3 * q + 0.5 * x - x / 2, [1]),
        (lambda x, q: (x.astype(jnp.bfloat16) + q.astype(jnp.bfloat16)) - x.astype(jnp.bfloat16), [1]),
        (lambda x, q: x + 1.0 + (q - x), [1]),
        (lambda x, q: x - q, None),
        (lambda x, q: x + q, None),
        (lambda x, q: x - 0.9 * x + q, None),
        (lambda x, q: x + (q - x * x), None),
        (lambda x, q: x + (q - jnp.tanh(x)), None),
        (lambda x, q: x * (q - x), None),
    ],
)
def test_what_remains_by_hand(fn, expected):
    assert remainder(fn, 2) == expected


PARAMS = {"scale": jnp.arange(1.0, 4), "bias": jnp.ones(3), "kernel": jnp.ones((3, 3)), "places": jnp.arange(1.0, 6)}
SPACE, CHANNELS, EXAMPLES = 1, 2, 0


def norm(x, axes=SPACE):
    deviation = x - jnp.mean(x, axes, keepdims=True)
    return deviation * jax.lax.rsqrt(jnp.mean(deviation * deviation, axes, keepdims=True) + 1e-5)


def affine(p, x, axes=SPACE):
    return norm(x, axes) * p["scale"] + p["bias"]


def mean(x, axes=SPACE):
    return jnp.mean(x, axes)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda p, x, q: mean(affine(p, x)), []),
        (lambda p, x, q: mean(affine(p, x)) + q[:, 0], "q"),
        (lambda p, x, q: mean(affine(p, x) + q), [1]),
        (lambda p, x, q: mean(affine(p, x) - q + 0.5), [1]),
        (lambda p, x, q: mean(affine(p, x) @ p["kernel"]) * 3, []),
        (lambda p, x, q: mean(jnp.einsum("nsc,cd->dsn", affine(p, x), p["kernel"])), []),
        (lambda p, x, q: mean(jnp.transpose(affine(p, x), (0, 2, 1)), 2), []),
        (lambda p, x, q: mean(affine(p, x)[:, :, None, :], (1, 2)), []),
        (lambda p, x, q: mean(norm(x) / jnp.max(jnp.abs(x), SPACE, keepdims=True)), []),
        (lambda p, x, q: mean(affine(p, x) / jnp.max(jnp.abs(x), SPACE, keepdims=True)), None),
        (lambda p, x, q: mean(affine(p, affine(p, x) @ p["kernel"])), []),
        (lambda p, x, q: mean(affine(p, x), (EXAMPLES, SPACE)), []),
        (lambda p, x, q: mean(jnp.concatenate([affine(p, x), q], 2)), [1]),
        (lambda p, x, q: mean(jnp.concatenate([affine(p, x), p["places"][:, None] * jnp.ones((2, 5, 3))], 1)), []),
        (lambda p, x, q: mean(jnp.pad(affine(p, x), ((0, 0), (0, 0), (1, 4)))), []),
        (lambda p, x, q: mean(jax.lax.pad(affine(p, x), 0.0, ((0, 0, 0), (-1, 1, 0), (0, 0, 0)))), None),
        (lambda p, x, q: mean(x - jnp.repeat(mean(x.reshape(2, 5, 3, 1), (1, 3)), 1, 1).reshape(2, 1, 3)), []),
        (lambda p, x, q: mean(affine(p, x)[..., 1:]), []),
        (lambda p, x, q: mean(jnp.split(affine(p, x), 3, axis=2)[1] + 1.0), []),
        (lambda p, x, q: jnp.mean(affine(p, x).reshape(2, 5, 3, 1, 1).reshape(2, 15, 1), 1), []),
        (lambda p, x, q: jnp.mean(norm(x).reshape(2, 15), 1), []),
        (lambda p, x, q: jnp.mean(norm(x).reshape(2, 1, 15), (1, 2)), []),
        (lambda p, x, q: jnp.sum(x.reshape(2, 1, 15), (1, 2)) - jnp.sum(x, (1, 2)) + q[:, 0, 0], "q"),
        (lambda p, x, q: jnp.sum((x - q).reshape(2, 1, 15), (1, 2)) - x[:, 0, 0], None),
        (
            lambda p, x, q: mean(
                jax.lax.pad(norm(x), p["bias"][0], ((0, 0, 0), (0, 2, 0), (0, 0, 0)))
                * jnp.max(jnp.abs(x), SPACE, keepdims=True)
            ),
            None,
        ),
        (lambda p, x, q: jnp.mean(norm(x.reshape(2, 15)[..., None]).reshape(2, 5, 3), (1, 2)), []),
        (lambda p, x, q: mean(jnp.concatenate([x, -x], 2)), None),
        (lambda p, x, q: mean((norm(x) + 1.0) * mean(jnp.abs(x))[:, None]), None),
        (lambda p, x, q: jnp.sum(jax.nn.standardize(x, SPACE), SPACE), []),
        (lambda p, x, q: mean(norm(x, CHANNELS), CHANNELS), []),
        # One factor differs from place to place, or the sum runs along other axes than the mean did.
        (lambda p, x, q: mean(affine(p, x) * p["places"][:, None]), None),
        (lambda p, x, q: mean(affine(p, x) * q), None),
        (lambda p, x, q: mean(affine(p, x, CHANNELS), CHANNELS), None),
        (lambda p, x, q: mean(affine(p, x, (EXAMPLES, SPACE))), None),
        (lambda p, x, q: mean(affine(p, x), CHANNELS), None),
        (lambda p, x, q: mean(jnp.einsum("nsc,st->ntc", affine(p, x), p["places"][:, None] * p["places"])), None),
        (lambda p, x, q: mean(jax.nn.silu(affine(p, x))), None),
        (lambda p, x, q: mean(affine(p, x)[:, 1:]), None),
        (lambda p, x, q: mean((x - mean(x)[:, None] / 2) * 3), None),
        (lambda p, x, q: affine(p, x), None),
    ],
)
def test_what_remains_of_sums_along_axes_is_what_has_a_derivative(fn, expected):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, (2, 5, 3)) for key in keys[:2]]
    program = inline(trace(fn, PARAMS, *inputs))
    leaves = len(PARAMS)
    independent = set(program.inputs[:leaves])
    for eqn in program.equations:
        if all(not isinstance(atom, int) or atom in independent for atom in eqn.inputs):
            independent.update(eqn.outputs)
    found = Sums(program, independent).remainder(program.outputs[0])
    if expected == "q":
        assert len(found) == 1 and found[0].var not in program.inputs  # the slice of q
    else:
        variables = None if found is None else [addend.var for addend in found]
        assert variables == (None if expected is None else [program.inputs[leaves + i] for i in expected])
    weights = jax.random.normal(keys[2], jax.eval_shape(fn, PARAMS, *inputs).shape)
    slopes = jax.grad(lambda xs: jnp.sum(weights * fn(PARAMS, *xs)))(inputs)
    moving = [i for i, slope in enumerate(slopes) if jnp.abs(slope).max() > 1e-5]
    assert moving == {"q": [1], None: moving}.get(expected if not isinstance(expected, list) else 0, expected)
    assert expected is not None or 0 in moving


@pytest.mark.parametrize(("axes", "expected"), [((EXAMPLES, SPACE), None), (SPACE, [])])
@pytest.mark.parametrize("shape", [(1, 5, 3), (1, 15)])
def test_a_norm_over_the_batch_is_none_of_each_example_where_that_is_traced_with_one(axes, expected, shape):
    program = inline(trace(lambda x: mean(norm(x.reshape(1, 5, 3), axes).reshape(1, 5, 1, 3)), jnp.ones(shape)))
    assert Sums(program).remainder(program.outputs[0]) == expected


@pytest.mark.parametrize("seed", range(40))
def test_what_remains_is_what_has_a_derivative(seed):
    rng = np.random.default_rng(seed)
    steps = [(rng.integers(4), *rng.integers(ADDENDS + i, size=2), rng.choice([-2.0, -0.5, 2.0])) for i in range(8)]

    def fn(inputs, sign):
        """The sum, or with a sign of +1 the same without taking anything away."""
        values = list(inputs)
        for kind, a, b, factor in steps:
            a, b = values[a], values[b]
            values.append((a + b, a + sign * b, sign * a, a * (-sign * factor if factor < 0 else factor))[kind])
        return values[-1] + values[-2]

    zeros = [jnp.zeros(2)] * ADDENDS
    moving, read = (
        [i for i, slope in enumerate(jax.grad(lambda xs, sign=sign: jnp.sum(fn(xs, sign)))(zeros)) if slope.any()]
        for sign in (-1.0, 1.0)
    )
    found = remainder(lambda *inputs: fn(inputs, -1.0))
    assert found == moving or (found is None and moving == read)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_factor_that_never_varies_is_not_lost(has_bias):
    """Behind an instance norm the mean over all places is the bias: squeeze-and-excitation scales by a constant."""
    x = random_input((4, 5, 3))
    names = ("first", "gate", "mean", "branch", "other", "head")
    params = {name: random_input((3, 3), seed=seed) for seed, name in enumerate(names)}
    params |= {"scale": jnp.arange(1.0, 4), "bias": jnp.arange(3.0) - 1.5}

    def network(p, x):
        h = norm(x @ p["first"]) * p["scale"] + (p["bias"] if has_bias else 0)
        h = h * jax.nn.sigmoid(mean(h)[:, None] @ p["gate"])
        return (mean(h) @ p["mean"] + jnp.max(h, SPACE) @ p["branch"] + jnp.min(h, SPACE) @ p["other"]) @ p["head"]

    space = jasgnas.search_space(network, x, params=params)
    branch, other = (group.index for group in space.structures if group.paths in (("branch",), ("other",)))
    assert space.is_valid([branch]) and space.is_valid([other])
    assert not space.is_valid([branch, other])  # the mean that is left varies with nothing
    zeroed = space.zero(params, [branch])
    sub_fn, sub_params = jasgnas.construct_subnet(space, zeroed)
    assert error(sub_fn(sub_params, x), network(zeroed, x)) < 1e-6


def gated(p, h):
    return jax.nn.silu(h @ p["gate"]) * (h @ p["up"])


def beside_itself(p, h):
    return jnp.concatenate([jnp.tanh(h), h], -1)


@pytest.mark.parametrize("branch", [gated, beside_itself])
def test_what_reaches_a_sum_through_a_layer_is_gone_with_it(branch):
    """Of the mean of h + branch(h) the branch alone varies, and nothing of the branch does without its last layer."""
    x = random_input((4, 5, 3))
    shapes = {name: (3, 3) for name in ("first", "gate", "up", "other", "head")}
    shapes |= dict.fromkeys(("last", "largest"), (6 if branch is beside_itself else 3, 3))
    params = {name: random_input(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    params |= {"scale": jnp.arange(1.0, 4), "bias": jnp.arange(3.0) - 1.5}

    def network(p, x):
        h = norm(x @ p["first"]) * p["scale"] + p["bias"]
        made = branch(p, h)
        least = jnp.min(x, SPACE) @ p["other"] + jnp.max(made, SPACE) @ p["largest"]
        return (mean(h + made @ p["last"]) + least) @ p["head"]

    space = jasgnas.search_space(network, x, params=params)
    index = {name: group.index for group in space.structures for name in group.paths}
    others = [index["other"], index["largest"]]
    for removed in ([index["last"]], others, [*others, index["last"]]):
        zeroed = space.zero(params, removed)
        varies = error(network(zeroed, x), network(zeroed, -x * x)) > 1e-3
        assert space.is_valid(removed) == varies, removed
    assert space.is_valid(others) and not space.is_valid([*others, index["last"]])
