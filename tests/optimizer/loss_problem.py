"""A network of four branches and its loss, of which H2SPG is to make something."""

import jax.numpy as jnp
import numpy as np

import jasgnas

WIDTH, BATCH, NUM_BATCHES = 6, 16, 4
BRANCHES = tuple("abcd")
PARAMS = {
    name: jnp.asarray(np.random.default_rng(index).normal(size=(WIDTH, WIDTH)) / 2, jnp.float32)
    for index, name in enumerate((*BRANCHES, "head"))
}
X = jnp.asarray(np.random.default_rng(9).normal(size=(NUM_BATCHES, BATCH, WIDTH)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(10).normal(size=(NUM_BATCHES, BATCH, WIDTH)), jnp.float32)


def network(params, x):
    return sum(jnp.tanh(x @ params[name]) if name == "a" else x @ params[name] for name in BRANCHES) @ params["head"]


SPACE = jasgnas.search_space(network, X[0], params=PARAMS)


def loss_of(params, batch):
    return jnp.mean((network(params, X[batch]) - Y[batch]) ** 2)
