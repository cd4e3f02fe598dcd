"""Networks with branches under products: experts that a router weighs, and blocks that a condition gates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
import models
from tests.networks import randomize

TOKENS = jnp.cumsum(jax.random.randint(jax.random.key(0), (8, 8), 0, 3), axis=1) % 11
IMAGES = jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
TIMES, LABELS = jnp.linspace(0.0, 1.0, 8), jnp.arange(8) % 4


def mixture():
    block = partial(models.MixtureBlock, num_experts=3, experts_per_token=2)
    model = models.create(
        "mixture_decoder", num_classes=11, features=8, depth=1, num_heads=2, hidden=12, block=block, rngs=nnx.Rngs(0)
    )

    def loss_fn(model):
        logits = model(TOKENS[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()

    experts = {f"blocks/0/mixture/experts/{index}/project" for index in range(3)}
    return model, (TOKENS,), {}, experts | {"blocks/0/attention/out"}, loss_fn


def diffusion():
    model = models.DiT(4, image_size=4, features=8, depth=2, num_heads=2, rngs=nnx.Rngs(0))

    def loss_fn(model):
        return jnp.mean((model(IMAGES + 1, TIMES, LABELS) - IMAGES) ** 2)

    branches = {f"blocks/{block}/{name}" for block in range(2) for name in ("attention/out", "expand-project")}
    return model, (IMAGES, TIMES, LABELS), {"inputs": "images"}, branches, loss_fn


@pytest.mark.parametrize("make", [mixture, diffusion])
def test_branches_under_products_are_structures(make):
    model, inputs, options, branches, _ = make()
    space = jasgnas.search_space(model, *inputs, **options)
    names = {group.name: group.index for group in space.groups}
    assert branches <= names.keys()
    nnx.update(model, randomize(nnx.state(model, nnx.Param)))
    for removed in [[names[name]] for name in sorted(branches)] + [[names[name] for name in branches]]:
        assert space.is_valid(removed)
        sparse = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, sparse)
        np.testing.assert_allclose(subnet(*inputs), sparse(*inputs), rtol=1e-3, atol=1e-3)
        sizes = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, *inputs)
        # Of what is split, a condition, those parts go that a branch alone reads: there the prediction is a bound.
        assert sizes == space.subnet_size(removed) or (
            make is diffusion and np.all(np.array(sizes) < space.subnet_size(removed))
        )


@pytest.mark.parametrize("make", [mixture, diffusion])
def test_training_erases_them(make):
    model, inputs, options, _, loss_fn = make()
    space = jasgnas.search_space(model, *inputs, **options)
    tx = optax.chain(
        optax.adam(3e-3),
        jasgnas.h2spg(
            space, learning_rate=3e-3, target_macs=0.7, warmup_steps=80, projection_steps=60, **jasgnas.ADAM_DEFAULTS
        ),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    start = float(loss_fn(model))

    @nnx.jit
    def step(model, optimizer):
        value_fn = jasgnas.nnx_value_fn(model, loss_fn)
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads, grad=grads, value=loss, value_fn=value_fn)

    for _ in range(200):
        step(model, optimizer)
    subnet = jasgnas.construct_subnet(space, model, opt_state=optimizer.opt_state)
    assert jasgnas.count_macs(subnet, *inputs) <= 0.7 * jasgnas.count_macs(model, *inputs)
    np.testing.assert_allclose(loss_fn(subnet), loss_fn(model), rtol=1e-4)
    assert loss_fn(subnet) < 0.9 * start
