"""Networks whose layers reshape, pool and gather are exported for any size of the batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from models.decoder import DecoderTransformer
from models.demo_net import DemoNet
from models.vit import VisionTransformer
from tests.networks import build

IMAGES = np.cos(np.arange(3 * 16 * 16 * 3, dtype=np.float32)).reshape(3, 16, 16, 3)
NETWORKS = {
    "demo_net": (partial(DemoNet, width=0.1), IMAGES[..., :1]),
    "vit": (
        partial(VisionTransformer, num_classes=3, image_size=16, patch_size=8, features=8, depth=2, num_heads=2),
        IMAGES,
    ),
    "decoder": (
        partial(DecoderTransformer, num_classes=11, features=8, depth=2, num_heads=2, hidden=12),
        np.arange(15, dtype=np.int32).reshape(3, 5) % 11,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_batch(name, tmp_path):
    constructor, x = NETWORKS[name]
    model = build(constructor)
    space = jasgnas.search_space(model, x[:1])
    removed = space.random_redundant(jax.random.key(0), len(space.largest_removal) // 2)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    subnet.eval()
    network = jasgnas.load(jasgnas.save(tmp_path / "network", subnet))
    for size in (1, 3):
        expected = subnet(jnp.asarray(x[:size]))
        np.testing.assert_allclose(network(x[:size]), expected, rtol=1e-4, atol=1e-5)


def test_a_symbolic_length(tmp_path):
    def fn(params, x, y):
        return jnp.tanh(x @ params["a"]).sum(1) + (x @ params["b"]).mean(1) + y

    params = {"a": jnp.full((4, 3), 0.2), "b": jnp.zeros((4, 3))}
    space = jasgnas.search_space(fn, jnp.ones((2, 5, 4)), jnp.ones((2, 3)), params=params)
    subnet = jasgnas.construct_subnet(space, params)
    folder = jasgnas.save(tmp_path / "network", *subnet, symbolic=("*:0", "0:1"))
    network = jasgnas.load(folder)
    assert str(network).startswith("LoadedNetwork(float32[batch,axis1,4], float32[batch,3])")
    x, y = jnp.linspace(-1, 1, 84).reshape(3, 7, 4), jnp.ones((3, 3))
    np.testing.assert_allclose(network(x, y), fn(params, x, y), rtol=1e-5)
