"""H2SPG on several devices and through checkpoints."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jasgnas.errors import TreeMismatchError
from jasgnas.optimizer.state import h2spg_metrics, h2spg_state
from tests.optimizer.h2spg_problem import (
    CANDIDATES,
    DEFAULT,
    SHAPES,
    assert_trees_equal,
    default_history,
    jax_grads,
    make_h2spg,
    make_params,
    make_step,
    train,
)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_pmap_selects_the_same_on_every_device(num_devices):
    history = default_history()

    @partial(jax.pmap, axis_name="data", in_axes=(0, 0, None, 0), devices=jax.devices()[:num_devices])
    def step(params, opt_state, number, shard):
        def grads_fn(params, number):
            # Every device's own gradient is off; their mean is not.
            grads = jax.tree.map(lambda grad: shard * grad, jax_grads(params, number))
            return jax.lax.pmean(grads, "data")

        return make_step(DEFAULT, grads_fn)(params, opt_state, number)

    shards = jnp.linspace(0.5, 1.5, num_devices) if num_devices > 1 else jnp.ones(1)
    params = make_params()
    carry = jax.tree.map(lambda x: jnp.stack([x] * num_devices), (params, DEFAULT.init(params)))
    for number in range(12):
        carry = step(*carry, number, shards)
    carry = jax.device_get(carry)
    for device in range(num_devices):
        found = jax.tree.map(lambda x, device=device: x[device], carry)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, history[11])
        for name in ("redundant", "zero"):
            ours, theirs = (getattr(h2spg_state(opt_state), name) for _, opt_state in (found, history[11]))
            np.testing.assert_array_equal(ours, theirs)


def collective_sizes(compiled):
    """The number of elements of every array that a collective operation of the compiled program returns."""
    collective = r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(re.findall(collective, compiled.as_text())))
    return [math.prod(int(length) for length in shape.split(",") if length) for shape in shapes]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 4)], ids=["1 device", "2 devices", "8 devices"])
def test_sharded_parameters_cost_no_large_collective(shape, axis_type):
    history = default_history()
    devices = jax.devices()[: math.prod(shape)]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(axis_type,) * 2, devices=devices)
    specs = {
        "conv2/kernel": P("model"),
        "conv3/kernel": P("model"),
        "conv4/kernel": P(None, "model"),
        "conv4/bias": P("model"),
        "mixed/kernel": P(None, "model"),
    }
    shardings = {path: NamedSharding(mesh, specs.get(path, P())) for path in SHAPES}
    params = jax.device_put(make_params(), shardings)
    opt_state = optax.tree_map_params(
        DEFAULT, jax.device_put, DEFAULT.init(params), shardings,
        transform_non_params=lambda x: jax.device_put(x, NamedSharding(mesh, P())),
    )  # fmt: skip
    carry = (params, opt_state)
    shardings = jax.tree.map(lambda x: x.sharding, carry)
    step = jax.jit(make_step(DEFAULT), out_shardings=shardings).lower(*carry, 0).compile()
    sizes = collective_sizes(step)
    assert bool(sizes) == (mesh.size > 1) and max(sizes, default=0) <= 3 * CANDIDATES.num_groups
    for number in range(12):
        carry = step(*carry, number)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), carry, history[11])
    np.testing.assert_array_equal(h2spg_state(carry[1]).zero, h2spg_state(history[11][1]).zero)
    for name, found in h2spg_metrics(carry[1]).items():
        np.testing.assert_allclose(found, h2spg_metrics(history[11][1])[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("saved_after", [2, 4, 7, 12], ids=["warm-up", "before selection", "projection", "done"])
def test_training_goes_on_bit_identically_from_a_checkpoint(saved_after, tmp_path):
    history = default_history()
    saved = history[saved_after - 1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: (make_params(), DEFAULT.init(make_params())))
        restored = checkpointer.restore(tmp_path / "state", target)
    params, opt_state = jax.tree.map(jnp.array, jax.device_get(restored))
    resumed = train(DEFAULT, params, 16, opt_state=opt_state, start=saved_after)
    assert_trees_equal(resumed[-1], history[-1])


def test_state_of_a_space_with_another_number_of_groups_is_refused():
    params, tx = make_params(), make_h2spg()
    foreign = jax.tree.map(lambda x: jnp.zeros(7, x.dtype) if x.ndim else x, tx.init(params))
    with pytest.raises(TreeMismatchError, match="the 7 groups of another search space than the given one, which has 5"):
        jax.jit(tx.update)(params, foreign, params)


def test_state_of_a_space_with_as_many_groups_is_refused():
    params, tx = make_params(), make_h2spg()
    foreign = tx.init(params)._replace(space_id=jnp.uint32(CANDIDATES.fingerprint + 1))
    with pytest.raises(TreeMismatchError, match="of another search space"):
        h2spg_state((foreign,), CANDIDATES)
    with pytest.raises(TreeMismatchError, match="of another search space"):
        tx.update(params, foreign, params)
    assert h2spg_state((tx.init(params),), CANDIDATES).scores.shape == (5,)
