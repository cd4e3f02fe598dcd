"""What H2SPG chooses in networks whose best removal is known, and what the size of the weights would have chosen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jasgnas

WIDTH, BATCH, STEPS = 8, 64, 60


def weights(seed, scale, shape=(WIDTH, WIDTH)):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normalised(x, gain):
    """A layer norm without centring: its gain alone says how large the result is."""
    return gain * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def signal_and_noise(params, x):
    """Two branches before a head: one reads the signal, with the smaller weights, the other one reads noise."""
    signal, noise = jnp.split(x, 2, -1)
    vital, useless = params["vital"], params["useless"]
    total = normalised(signal @ vital["kernel"], vital["gain"]) + normalised(noise @ useless["kernel"], useless["gain"])
    return total @ params["head"]


def duplicates(params, x):
    """Two branches compute the same, and a norm makes nothing of the length of their sum; a third one is vital."""
    both = normalised(x @ params["first"] + x @ params["second"], params["gain"])
    return (both + jnp.tanh(both @ params["vital"])) @ params["head"]


def wide_and_narrow(params, x):
    """A wide branch reads what is always the same; a narrow one of still smaller weights reads all there is to know."""
    signal, constant = jnp.split(x, 2, -1)
    wide, vital = params["wide"], params["vital"]
    return (jax.nn.relu(constant @ wide["in"]) @ wide["out"] + signal @ vital) @ params["head"]


def halves(rng, second):
    return np.concatenate([rng.normal(size=(BATCH, WIDTH)), second], 1)


NETWORKS = {
    "noise": (
        signal_and_noise,
        {
            "vital": {"kernel": weights(0, 0.1), "gain": jnp.full(WIDTH, 1.0)},
            "useless": {"kernel": weights(1, 1.0), "gain": jnp.full(WIDTH, 1.0)},
            "head": weights(2, 0.4),
        },
        lambda rng: halves(rng, rng.normal(size=(BATCH, WIDTH))),
        {"useless"},
    ),
    "duplicate": (
        duplicates,
        {
            "first": weights(0, 1.0),
            "second": weights(0, 1.0),
            "gain": jnp.ones(WIDTH),
            "vital": weights(1, 0.3),
            "head": weights(2, 0.4),
        },
        lambda rng: rng.normal(size=(BATCH, WIDTH)),
        {"first", "second"},
    ),
    "wide": (
        wide_and_narrow,
        {
            "wide": {"in": weights(0, 0.2, (WIDTH, 8 * WIDTH)), "out": weights(1, 0.05, (8 * WIDTH, WIDTH))},
            "vital": weights(2, 0.1),
            "head": weights(3, 0.4),
        },
        lambda rng: halves(rng, np.full((BATCH, WIDTH), 0.1)),
        {"wide"},
    ),
}


def teacher(name, x):
    """What the vital parts can compute, and the others cannot."""
    if name == "duplicate":
        fixed = normalised(x @ weights(0, 2.0), 1.0)
        return (fixed + jnp.tanh(fixed @ weights(1, 0.3))) @ weights(2, 0.4)
    return x[:, :WIDTH] @ weights(7, 0.3)


def chosen_by(score, name, given):
    """The structure that H2SPG removes in a short training on batches that are drawn anew."""
    network, params, draw, _ = NETWORKS[name]
    rng = np.random.default_rng(6)
    batches = jnp.asarray(np.stack([draw(rng) for _ in range(STEPS + 12)]), jnp.float32)
    space = jasgnas.search_space(network, batches[0], params=params)
    assert len(space.groups) > 1
    descent = optax.sgd(0.02, momentum=0.9)
    options = {"target_groups": 1, "warmup_steps": STEPS, "projection_steps": 10, "score": score}
    last = partial(jasgnas.h2spg, space, learning_rate=0.02, **options)
    tx = last(inner=descent) if given == "gradient" else optax.chain(descent, last())

    def loss_of(params, x):
        return jnp.mean((network(params, x) - teacher(name, x)) ** 2)

    def step(carry, x):
        params, state = carry
        value, grads = jax.value_and_grad(loss_of)(params, x)
        extra = {} if given == "gradient" else {"grad": grads, "value": value, "value_fn": partial(loss_of, x=x)}
        updates, state = tx.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    (_, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params, tx.init(params)))
    (gone,) = np.flatnonzero(jasgnas.h2spg_state(state).zero)
    return space.groups[gone].paths[0].partition("/")[0]


@pytest.mark.parametrize("given", ["loss", "gradient"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_takes_what_is_of_no_use_and_the_magnitude_does_not(name, given):
    useless = NETWORKS[name][3]
    assert chosen_by("default", name, given) in useless
    assert chosen_by("magnitude", name, given) not in useless
