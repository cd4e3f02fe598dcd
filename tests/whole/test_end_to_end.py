"""Search space, H2SPG and construction together, on the real DemoNet."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
from models.demo_net import DemoNet

LEARNING_RATE, WARMUP_STEPS, PROJECTION_STEPS = 0.01, 2, 4


def test_conv7_is_refused_once_conv8_is_redundant_and_exactly_three_groups_end_at_zero():
    model = DemoNet(width=0.1, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(8)
    space = jasgnas.search_space(model, images)
    assert [group.name.split("-")[0] for group in space.groups] == ["conv2", "conv3", "conv4", "conv7", "conv8"]
    # conv7 scores higher than conv3 and conv2, but conv8, which it is added to, scores higher still.
    scores = jnp.array([0.1, 0.2, 0.0, 0.8, 0.9])
    tx = optax.chain(
        optax.sgd(LEARNING_RATE, momentum=0.9),
        jasgnas.h2spg(
            space,
            learning_rate=LEARNING_RATE,
            target_groups=3,
            warmup_steps=WARMUP_STEPS,
            projection_steps=PROJECTION_STEPS,
            score=lambda stats: scores.astype(stats.x_norm.dtype),
        ),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    for _ in range(WARMUP_STEPS + PROJECTION_STEPS + 2):
        train_step(model, optimizer)

    redundant = jasgnas.h2spg_state(optimizer.opt_state).redundant
    assert np.flatnonzero(redundant).tolist() == [0, 1, 4]
    params = {"/".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(nnx.state(model))}
    for group in space.groups:
        is_zero = not any(np.any(params[part.path][part.indices]) for part in group.slices)
        assert is_zero == (group.index in (0, 1, 4)), group.name

    subnet = jasgnas.construct_subnet(space, model, verify=True)
    assert jasgnas.count_params(subnet) == space.subnet_size([0, 1, 4])[0] < jasgnas.count_params(model)
    model.eval()
    subnet.eval()
    np.testing.assert_allclose(subnet(images), model(images), rtol=1e-5, atol=1e-5)
