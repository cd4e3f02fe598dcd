"""Shrinking during training: from then on the same result as without, whatever optimizer and flavour."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jasgnas
from jasgnas.optimizer.state import DONE
from jasgnas.pytree import leaves_by_path
from tests.networks import error as float_error
from tests.networks import randomize


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def error(found, expected):
    """The largest relative difference between two pytrees, whose leaves may also be integers and truth values."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    return float_error(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (found, expected)))


# Two branches into a concatenation whose scale and bias are divided between them, then three parallel branches.
SHAPES = {
    "left": {"kernel": (3, 4)},
    "right": {"kernel": (3, 5)},
    "norm": {"scale": (9,), "bias": (9,)},
    "mix": {"kernel": (9, 6)},
    "branches": [{"kernel": (6, 6)}, {"kernel": (6, 6), "bias": (6,)}, {"kernel": (6, 6)}],
    "head": {"kernel": (6, 2)},
}
NUM_GROUPS = 5


def network(params, x):
    both = jnp.concatenate([x @ params["left"]["kernel"], x @ params["right"]["kernel"]], -1)
    both = jax.nn.relu(both * params["norm"]["scale"] + params["norm"]["bias"])
    mixed = jnp.tanh(both @ params["mix"]["kernel"])
    total = 0.0
    for branch in params["branches"]:
        total += jnp.tanh(mixed @ branch["kernel"] + branch.get("bias", 0.0))
    return total @ params["head"]["kernel"]


def make_params(seed=0):
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float64), SHAPES, is_leaf=lambda node: isinstance(node, tuple)
    )
    return randomize(shapes, seed)


@cache
def make_space():
    return jasgnas.search_space(network, jax.ShapeDtypeStruct((2, 3), jnp.float64), params=make_params())


def batch(number):
    """Inputs and targets that differ from step to step."""
    x = jnp.sin(jnp.arange(24.0).reshape(8, 3) * 1.3 + number)
    return x, jnp.cos(x[:, :2] * (number % 7))


def make_step(fn, tx):
    """A step of training: parameters, optimizer state and averaged parameters, as a user would write it."""

    def loss_fn(params, number):
        x, y = batch(number)
        return jnp.mean((fn(params, x) - y) ** 2)

    @jax.jit
    def step(params, opt_state, averaged, number):
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, number), opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, optax.incremental_update(params, averaged, 0.1)

    return step


def train(step, carry, steps):
    for number in steps:
        carry = step(*carry, number)
    return carry


def h2spg(target_groups=2, **options):
    options = {"warmup_steps": 5, "projection_steps": 6, "learning_rate": 0.05, "score": "magnitude"} | options
    return jasgnas.h2spg(make_space(), target_groups=target_groups, **options)


def no_bias(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIMIZERS = {
    "momentum": lambda: (optax.add_decayed_weights(1e-3), optax.sgd(0.05, momentum=0.9, nesterov=True)),
    "adam": lambda: (optax.adam(optax.cosine_decay_schedule(0.05, 80)),),
    "adamw, decay masked": lambda: (optax.adamw(0.05, weight_decay=0.1, mask=no_bias),),
    "labelled": lambda: (
        optax.multi_transform(
            {"matrix": optax.lion(0.01), "vector": optax.amsgrad(0.05)},
            lambda params: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params),
        ),
    ),
    "injected": lambda: (optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.01, momentum=0.5),),
    "averaged updates": lambda: (optax.ema(0.7), optax.clip(0.5), optax.sgd(0.05)),
}
WRAPPERS = {
    "multi steps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    "if finite": lambda tx: optax.apply_if_finite(tx, 3),
}
CASES = [(name, None) for name in OPTIMIZERS] + [("adam", name) for name in WRAPPERS]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("optimizer", "wrapper"), CASES)
def test_next_steps_are_those_of_the_full_network(optimizer, wrapper):
    tx = optax.chain(*OPTIMIZERS[optimizer](), h2spg())
    tx = WRAPPERS[wrapper](tx) if wrapper else tx
    # With accumulated gradients an odd number of steps leaves half a batch in the state.
    met = 23 if wrapper == "multi steps" else 11
    params, space = make_params(), make_space()
    step = make_step(network, tx)
    full = train(step, (params, tx.init(params), params), range(met))
    assert int(jasgnas.h2spg_state(full[1], space).phase) == DONE
    (sub_fn, sub_params), (opt_state, averaged) = jasgnas.shrink(space, full[0], full[1:])
    assert jasgnas.count_params(sub_params) < jasgnas.count_params(params)
    assert int(jasgnas.h2spg_metrics(opt_state)["num_removed"]) == 2
    steps = range(met, met + 50)
    found = train(make_step(sub_fn, tx), (sub_params, opt_state, averaged), steps)
    full = train(step, full, steps)
    (_, expected), _ = jasgnas.shrink(space, full[0], full[1])
    assert error(found[0], expected) < 1e-10
    # All of the state, too: what is left of every array of the full one.
    _, expected = jasgnas.shrink(space, full[0], full[1:])
    assert error(found[1:], expected) < 1e-10


def test_shrinking_after_every_period():
    tx = optax.chain(optax.sgd(0.05, momentum=0.9), h2spg(3, projection_steps=12, periods=3))
    space, params = make_space(), make_params()
    step = make_step(network, tx)
    full = train(step, (params, tx.init(params), params), range(40))
    fn, carry, sizes = network, (params, tx.init(params), params), []
    for number in range(40):
        carry = step(*carry, number)
        metrics = jasgnas.h2spg_metrics(carry[1])
        if metrics["num_removed"] < metrics["num_zero"] == metrics["num_redundant"]:
            (fn, sub_params), state = jasgnas.shrink(space, carry[0], carry[1:])
            carry = (sub_params, *state)
            step = make_step(fn, tx)
            sizes.append((number, int(metrics["num_zero"]), jasgnas.count_params(sub_params)))
    assert [size[:2] for size in sizes] == [(8, 1), (12, 2), (16, 3)]
    assert sizes[0][2] > sizes[1][2] > sizes[2][2]
    state, expected = jasgnas.h2spg_state(carry[1]), jasgnas.h2spg_state(full[1])
    np.testing.assert_array_equal(state.redundant, expected.redundant)
    assert int(state.phase) == DONE
    (_, params), rest = jasgnas.shrink(space, full[0], full[1:])
    assert error((carry[0], carry[2]), (params, rest[1])) < 1e-10


def test_an_optimizer_without_h2spg():
    space, tx = make_space(), optax.adam(0.1)
    params = space.zero(make_params(), [1, 2])
    (sub_fn, sub_params), opt_state = jasgnas.shrink(space, params, tx.init(params), removed=[1, 2])
    assert "right" not in sub_params and "right" not in opt_state[0].mu
    assert sub_params["norm"]["scale"].shape == opt_state[0].nu["norm"]["scale"].shape == (4,)
    assert sub_params["branches"][0] is None and opt_state[0].mu["branches"][0] is None
    x, _ = batch(0)
    assert error(sub_fn(sub_params, x), network(params, x)) < 1e-12


class Block(nnx.Module):
    """A residual block with statistics and randomness."""

    def __init__(self, rngs):
        self.layers = nnx.List([
            nnx.Linear(6, 6, param_dtype=jnp.float64, rngs=rngs),
            nnx.BatchNorm(6, param_dtype=jnp.float64, rngs=rngs),
        ])  # fmt: skip
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + self.dropout(nnx.relu(y))


class Net(nnx.Module):
    """Two residual blocks between two layers; nothing in it is called by what it is for."""

    def __init__(self, rngs):
        self.full = nnx.Linear(3, 6, param_dtype=jnp.float64, rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.out = nnx.Linear(6, 2, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        x = self.full(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@nnx.jit
def nnx_step(model, optimizer, number):
    x, y = batch(number)
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss


def test_nnx_module_and_optimizer():
    model = Net(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat)), dtype=jnp.float64))
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 3), jnp.float64))
    tx = optax.chain(
        optax.adam(0.01),
        jasgnas.h2spg(
            space, learning_rate=0.01, target_groups=1, warmup_steps=2, projection_steps=3, score="magnitude"
        ),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for number in range(5):
        nnx_step(model, optimizer, number)
    subnet, sub_optimizer = jasgnas.shrink(space, model, optimizer)
    assert isinstance(subnet, nnx.Module) and isinstance(sub_optimizer, nnx.Optimizer)
    assert jasgnas.count_params(subnet) < jasgnas.count_params(model)
    for number in range(5, 25):
        expected = nnx_step(model, optimizer, number)
        assert error(nnx_step(subnet, sub_optimizer, number), expected) < 1e-8
    left = jasgnas.construct_subnet(space, model)
    kinds = (nnx.Param, nnx.BatchStat)
    assert error(nnx.to_pure_dict(nnx.state(subnet, kinds)), nnx.to_pure_dict(nnx.state(left, kinds))) < 1e-8
    assert int(sub_optimizer.step[...]) == 25
    with pytest.raises(jasgnas.ArgumentError, match="has been shrunk already: the groups 0"):
        jasgnas.construct_subnet(space, subnet, opt_state=sub_optimizer.opt_state)
    # Nothing more is to go: the same network once more.
    again, _ = jasgnas.shrink(space, subnet, sub_optimizer)
    model.eval(), again.eval()
    x, _ = batch(3)
    assert error(again(x), model(x)) < 1e-8


class LinenNet(nn.Module):
    """A residual network whose normalisations keep statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, param_dtype=jnp.float64)(x)
        for _ in range(2):
            y = nn.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(x)
            x = x + nn.Dense(6, param_dtype=jnp.float64)(nn.relu(y))
        return nn.Dense(2, param_dtype=jnp.float64)(x)


def test_linen_variables():
    module = LinenNet()
    variables = randomize(jax.eval_shape(module.init, jax.random.key(0), batch(0)[0]), dtype=jnp.float64)
    space = jasgnas.search_space(module, batch(0)[0], variables=variables, train=False)
    tx = optax.chain(
        optax.sgd(0.01, momentum=0.9),
        jasgnas.h2spg(
            space, learning_rate=0.01, target_groups=1, warmup_steps=2, projection_steps=3, score="magnitude"
        ),
    )

    @partial(jax.jit, static_argnums=0)
    def step(module, variables, opt_state, number):
        x, y = batch(number)

        def loss_fn(params):
            out, updated = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.mean((out - y) ** 2), updated

        grads, updated = jax.grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state

    opt_state = tx.init(variables["params"])
    for number in range(5):
        variables, opt_state = step(module, variables, opt_state, number)
    (sub, sub_variables), sub_state = jasgnas.shrink(space, variables, opt_state)
    assert len(sub_variables["batch_stats"]) == 1
    for number in range(5, 20):
        variables, opt_state = step(module, variables, opt_state, number)
        sub_variables, sub_state = step(sub, sub_variables, sub_state, number)
    _, expected = jasgnas.construct_subnet(space, variables)
    assert error(sub_variables, expected) < 1e-10
    (_, again), _ = jasgnas.shrink(space, sub_variables, sub_state)
    assert error(again, sub_variables) == 0


def trained(num_steps=11, **options):
    """Space, transformation, and what training with momentum comes to after some steps."""
    tx = optax.chain(optax.sgd(0.05, momentum=0.9), h2spg(**options))
    params = make_params()
    return make_space(), tx, train(make_step(network, tx), (params, tx.init(params), params), range(num_steps))


def test_checkpoint_of_a_shrunk_run(tmp_path):
    space, tx, (params, opt_state, averaged) = trained(12, periods=2, projection_steps=10)
    zero = np.flatnonzero(jasgnas.h2spg_state(opt_state).zero)
    assert len(zero) == 1
    (fn, params), (opt_state, averaged) = jasgnas.shrink(space, params, (opt_state, averaged))
    saved = train(make_step(fn, tx), (params, opt_state, averaged), range(12, 14))
    expected = train(make_step(fn, tx), saved, range(14, 20))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        # Another process knows the network and which groups were gone.
        fresh = space.zero(make_params(1), zero)
        (fn, params), rest = jasgnas.shrink(space, fresh, (tx.init(fresh), fresh), removed=zero)
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: (params, *rest)))
    assert jasgnas.h2spg_state(restored[1], space).remainder.removed == tuple(zero)
    found = train(make_step(fn, tx), jax.tree.map(jnp.array, jax.device_get(restored)), range(14, 20))
    assert error(found, expected) == 0


def test_parameters_sharded_over_devices():
    space, tx, carry = trained()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    carry = jax.device_put(carry, NamedSharding(mesh, P()))
    # Every matrix whose rows can be divided among the devices is.
    (fn, params), rest = jasgnas.shrink(space, *carry[:2])
    found, state, _ = train(make_step(fn, tx), (params, rest, params), range(11, 15))
    full = train(make_step(network, tx), carry, range(11, 15))
    (_, expected), _ = jasgnas.shrink(space, *full[:2])
    assert error(found, expected) < 1e-12
    assert len(jax.tree.leaves(found)[0].sharding.device_set) == len(jax.devices())
    assert int(jasgnas.h2spg_state(state).step) == 15


def test_calls_are_traced_once_for_each_shape():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return network(params, x)

    params = make_params()
    space = jasgnas.search_space(counted, jax.ShapeDtypeStruct((2, 3), jnp.float64), params=params)
    sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, [0]))
    traces.clear()
    jitted = jax.jit(sub_fn)
    for batch_size in (4, 5, 4, 5):
        jitted(sub_params, jnp.ones((batch_size, 3)))
        sub_fn(sub_params, jnp.ones((batch_size, 3)))
    assert traces == [(4, 3), (5, 3)] and jitted._cache_size() == 2


def with_adafactor():
    params = make_space().zero(make_params(), [0])
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    return params, tx.init(params), {"removed": [0]}


def replicated():
    _, _, carry = trained()
    return *jax.tree.map(lambda x: jnp.stack([x, x]), carry[:2]), {}


def of_another_space():
    _, _, (params, opt_state, _) = trained()
    foreign = opt_state[1]._replace(space_id=jnp.uint32(1))
    return params, (opt_state[0], foreign), {}


def not_finite():
    _, _, (params, opt_state, _) = trained()
    return {**params, "head": {"kernel": params["head"]["kernel"] * jnp.nan}}, opt_state, {}


def of_the_full_network():
    space, _, (params, opt_state, _) = trained()
    _, opt_state = jasgnas.shrink(space, params, opt_state)
    return params, opt_state, {}


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (lambda: (make_params(), (), {}), jasgnas.ArgumentError, "one H2SPGState, found 0"),
        (
            lambda: (make_params(), (), {"removed": [1]}),
            jasgnas.ArgumentError,
            r"1 \(.*right.*\) are not entirely zero",
        ),
        (lambda: (make_params(), (), {"removed": [0, 1]}), jasgnas.InvalidRemovalError, "no path is left"),
        (lambda: (make_params(), (), {"removed": [9]}), jasgnas.ArgumentError, "no group 9"),
        (with_adafactor, jasgnas.ArgumentError, "Only arrays of the parameter's own shape"),
        (replicated, jasgnas.ArgumentError, "replicated"),
        (of_another_space, jasgnas.TreeMismatchError, "of another search space"),
        (not_finite, jasgnas.NonFiniteError, "head/kernel"),
        (of_the_full_network, jasgnas.TreeMismatchError, "branches/0/kernel: not in the search space"),
    ],
)
def test_errors(make, kind, match):
    holder, opt_state, options = make()
    before = leaves_by_path(holder)
    with pytest.raises(kind, match=match):
        jasgnas.shrink(make_space(), holder, opt_state, **options)
    assert all(leaf is before[path] for path, leaf in leaves_by_path(holder).items())


def test_parameters_and_state_must_belong_together():
    space, params = make_space(), make_params()
    params, tx = space.zero(params, [0]), h2spg()
    (_, sub_params), sub_state = jasgnas.shrink(space, params, tx.init(params), removed=[0])
    with pytest.raises(jasgnas.TreeMismatchError, match=r"norm/scale has shape \(9,\) instead of \(5,\)"):
        tx.update(params, sub_state, params)
    with pytest.raises(jasgnas.TreeMismatchError, match=r"jasgnas\.shrink"):
        tx.init(sub_params)


def test_updates_go_on_where_no_group_is_left():
    params = {"a": jnp.zeros((3, 3)), "b": jnp.zeros((3, 3)), "head": jnp.ones((3, 2))}
    space = jasgnas.search_space(
        lambda p, x: (x + jnp.tanh(x @ p["a"]) + jnp.tanh(x @ p["b"])) @ p["head"], jnp.ones((2, 3)), params=params
    )
    tx = jasgnas.h2spg(space, learning_rate=0.1, target_groups=2, warmup_steps=1, projection_steps=2, score="magnitude")
    (_, params), state = jasgnas.shrink(space, params, tx.init(params), removed=[0, 1])
    assert set(params) == {"head"} and not state.remainder.is_final
    for _ in range(4):
        updates, state = jax.jit(tx.update)({"head": jnp.ones((3, 2))}, state, params)
        np.testing.assert_array_equal(updates["head"], 1)
