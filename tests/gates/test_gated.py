"""Gates on edges without parameters: nothing changes by them, and without an edge the network is what it says."""

import copy
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
from jasgnas.errors import ArgumentError, GatesLeftWarning, TargetError
from jasgnas.pytree import leaves_by_path
from tests.networks import error, random_input

X = random_input((4, 6, 6, 3))


class Cell(nnx.Module):
    """A skip, a pooling and two convolutions, summed."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.conv1 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, skip=1.0, pool=1.0):
        x = self.stem(x)
        with jax.named_scope("cell/pool"):
            pooled = nnx.avg_pool(x, (3, 3), (1, 1), "SAME")
        branch = self.dropout(nnx.relu(self.norm1(self.conv1(x))))
        return self.head((x * skip + pooled * pool + branch + self.conv2(x)).mean((1, 2)))


def cell():
    model = Cell(nnx.Rngs(0))
    model.norm1.mean[...] = random_input((4,), seed=1)
    model.eval()
    return model


def test_the_outputs_and_the_state_are_those_of_the_network_in_both_modes_at_any_batch_size():
    model = cell()
    gated = jasgnas.gated(model, X[:2])
    assert error(gated(X), model(X)) == 0
    for each in (model, gated):
        each.train()
    assert error(gated(X), model(X)) == 0
    before, after = (leaves_by_path(nnx.state(each)) for each in (model, gated))
    assert set(after) - set(before) == {"gates/cell/pool", "gates/head/input0"}
    assert all(np.array_equal(value, after[path]) for path, value in before.items() if "dropout" not in path)


def test_without_an_edge_the_network_is_that_without_the_term_and_no_gate_is_left():
    model = cell()
    gated = jasgnas.gated(model, X)
    space = jasgnas.search_space(gated, X)
    by_name = {group.name: group for group in space.groups}
    assert {name for name, group in by_name.items() if group.kind == "gate"} == {"gates/cell/pool", "gates/head/input0"}
    for name, factors in (("gates/cell/pool", (1, 0)), ("gates/head/input0", (0, 1))):
        zeroed = space.zero(gated, [by_name[name].index])
        assert error(zeroed(X), model(X, *map(float, factors))) < 1e-6
        subnet = jasgnas.construct_subnet(space, zeroed, verify=True)
        assert not [path for path in leaves_by_path(nnx.state(subnet)) if path.startswith("gates")]
        assert jasgnas.count_params(subnet) == jasgnas.count_params(model) == space.subnet_size([])[0]
        assert error(subnet(X[:1]), zeroed(X[:1])) < 1e-6
    alone = [index for index, group in enumerate(space.groups) if group.kind == "structure"]
    subnet = jasgnas.construct_subnet(space, space.zero(gated, alone))
    assert set(leaves_by_path(nnx.state(subnet, nnx.Param))) == {
        f"{part}/{name}" for part in ("stem", "head") for name in ("kernel", "bias")
    }


def test_functions_and_linen_modules_get_theirs_under_the_names_of_their_parameters():
    params = {"w": random_input((3, 3), seed=2)}

    def fn(params, x):
        return jnp.concatenate([x, jnp.tanh(x @ params["w"])], -1)

    x = random_input((2, 3))
    gated, own = jasgnas.gated(fn, x, params=params, scalar=True)
    assert jax.tree.map(jnp.shape, own) == {"w": (3, 3), "gates": {"output": {"input0": ()}}}
    assert error(gated(own, x), fn(params, x)) == 0

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dense(4)(x)
            y = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))
            return nn.Dense(2)(x + y)

    module = Block()
    variables = module.init(jax.random.key(0), x)
    gated, own = jasgnas.gated(module, x, variables=variables)
    assert own["params"]["gates"]["Dense_2"]["input0"].shape == (4,)
    for settings in (
        {"mutable": []},
        {"train": True, "rngs": {"dropout": jax.random.key(1)}, "mutable": "batch_stats"},
    ):
        expected = module.apply(variables, x, **settings)
        found = gated.apply(own, x, **settings)
        assert error(found, expected) == 0
    space = jasgnas.search_space(gated, x, variables=own)
    gate = next(group.index for group in space.groups if group.kind == "gate")
    subnet, left = jasgnas.construct_subnet(space, space.zero(own, [gate]), verify=True)
    assert "gates" not in left["params"]
    assert jax.tree.structure(left["params"]) == jax.tree.structure(variables["params"])


def test_a_product_keeps_the_derivative_that_a_function_in_the_network_defines():
    @jax.custom_jvp
    def rounded(x):
        return jnp.round(x)

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), *tangents))

    @jax.checkpoint
    def block(w, x):
        return x + rounded(x @ w)

    params = {"w": random_input((3, 3), seed=2), "v": random_input((3, 3), seed=3)}

    def fn(params, x):
        return jnp.tanh(block(params["v"], block(params["w"], x)))

    x = random_input((2, 3))
    gated, own = jasgnas.gated(fn, x, params=params)
    expected = jax.grad(lambda params: fn(params, x).sum())(params)
    found = jax.grad(lambda params: gated(params, x).sum())(own)
    gates = found.pop("gates")
    assert error(found, expected) < 1e-6
    assert len(jax.tree.leaves(gates)) == 2
    assert "remat" in str(jax.make_jaxpr(gated)(own, x))


def test_keep_names_gates_that_are_not_made_and_what_cannot_be_is_said():
    model = cell()
    gated = jasgnas.gated(model, X, keep="gates/head/*")
    assert [path for path in leaves_by_path(nnx.state(gated)) if path.startswith("gates")] == ["gates/cell/pool"]
    with pytest.raises(ArgumentError, match="keep='nothing' matches no path of a gate; there are gates/head/input0"):
        jasgnas.gated(model, X, keep="nothing")
    with pytest.raises(ArgumentError, match="no edge to put a gate on.* names all 2"):
        jasgnas.gated(model, X, keep="*")
    with pytest.raises(ArgumentError, match="no edge to put a gate on"):
        jasgnas.gated(lambda p, x: x @ p["a"], jnp.ones((1, 2)), params={"a": jnp.ones((2, 2))})
    with pytest.raises(ArgumentError, match="these are a list"):
        jasgnas.gated(lambda p, x: x + x @ p[0], jnp.ones((1, 2)), params=[jnp.ones((2, 2))])
    with pytest.raises(ArgumentError, match="gates/a already"):
        jasgnas.gated(lambda p, x: x + x @ p["gates"]["a"], jnp.ones((1, 2)), params={"gates": {"a": jnp.ones((2, 2))}})


def test_what_is_left_is_saved_and_written_and_a_gated_network_is_no_sub_network(tmp_path):
    x = random_input((2, 4))
    params = {name: random_input((4, 4), seed=seed) for seed, name in enumerate("abc", 5)}
    gated, own = jasgnas.gated(useful_skip, x, params=params)
    space = jasgnas.search_space(gated, x, params=own)
    gate = next(group.index for group in space.groups if group.kind == "gate")
    full = space.zero(own, [0, gate])
    sub_fn, left = jasgnas.construct_subnet(space, full)
    jasgnas.save(tmp_path / "net", sub_fn, left)
    assert error(jasgnas.load(tmp_path / "net")(x), gated(full, x)) < 1e-6
    assert "gate" not in str(jasgnas.to_source(sub_fn))
    with pytest.raises(ArgumentError, match="expected a sub-network"):
        jasgnas.save(tmp_path / "other", gated, own)
    assert error(copy.deepcopy(gated)(own, x), gated(own, x)) == 0


def train(space, params, loss, steps, **options):
    schedule = optax.constant_schedule(0.05)
    options = {"warmup_steps": steps // 2, "projection_steps": steps // 4} | options
    tx = jasgnas.h2spg(
        space,
        inner=optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, 0.9)),
        learning_rate=schedule,
        **options,
    )

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def useful_skip(params, x):
    """Three branches beside a skip."""
    return x + sum(jnp.tanh(x @ params[name]) for name in "abc")


@pytest.mark.parametrize("is_vital", [True, False])
@pytest.mark.parametrize("score", ["gate", "ablation"])
def test_gates_go_if_they_are_useless_and_stay_if_they_are_vital(is_vital, score):
    """The target is the skip, or the tanh of a branch: the other is what the network can do without."""
    x = random_input((64, 4))
    params = {name: 0.5 * random_input((4, 4), seed=seed) for seed, name in enumerate("abc", 5)}
    gated, own = jasgnas.gated(useful_skip, x, params=params)
    space = jasgnas.search_space(gated, x, params=own)
    target = 3 * x if is_vital else sum(jnp.tanh(x @ params[name]) for name in "abc")
    gate = next(group.index for group in space.groups if group.kind == "gate")
    number = {"structure": 2} if is_vital else {"gate": 1}
    loss = lambda p: jnp.mean((gated(p, x) - target) ** 2)  # noqa: E731
    trained, state = train(space, own, loss, 80, score=score, target_groups=number)
    removed = jasgnas.h2spg_state(state).zero
    assert bool(removed[gate]) is not is_vital
    value = trained["gates"]["output"]["input0"]
    assert np.array_equal(value, np.ones(4) if is_vital else np.zeros(4))
    fn, left = jasgnas.construct_subnet(space, trained, opt_state=state)
    assert "gates" not in left
    assert error(fn(left, x), gated(trained, x)) < 1e-5


def test_structures_gates_and_channels_go_together_within_a_limit():
    x = random_input((32, 4))
    params = {
        name: {"up": random_input((4, 6), seed=seed), "down": random_input((6, 4), seed=seed + 3)}
        for seed, name in enumerate("abc", 5)
    }

    def fn(params, x):
        return x + sum(jnp.tanh(x @ params[name]["up"]) @ params[name]["down"] for name in "abc")

    gated, own = jasgnas.gated(fn, x, params=params, scalar=True)
    space = jasgnas.search_space(gated, x, params=own, channels=True)
    worth = {"a": 1.0, "gates/output/input0": 0.9}
    scores = [-worth.get(group.name, 0.5 if group.kind == "channel" else 0.0) for group in space.groups]
    loss = lambda params: jnp.mean((gated(params, x) - x) ** 2)  # noqa: E731
    trained, state = train(space, own, loss, 24, score=np.array(scores), at_most={"**": 1}, target_macs=0.2)
    zero = np.flatnonzero(jasgnas.h2spg_state(state).zero)
    gone = [space.groups[index] for index in zero]
    # All channels are worth less than the gate, and it saves nothing: the limit takes it. Of a branch alone, a third of
    # the multiply-adds, half of the channels go for the size.
    assert {group.name for group in gone if group.kind != "channel"} == {"b", "c", "gates/output/input0"}
    assert space.subnet_size(zero)[1] <= 0.2 * space.subnet_size(())[1]
    assert sum(group.paths[0].startswith("a/") for group in gone) == 3
    sub_fn, left = jasgnas.construct_subnet(space, trained, opt_state=state)
    assert error(sub_fn(left, x), gated(trained, x)) < 1e-5


def test_trained_gates_that_stay_are_named_and_norms_do_not_judge_gates():
    x = random_input((8, 4))
    params = {name: random_input((4, 4), seed=seed) for seed, name in enumerate("abc", 5)}
    gated, own = jasgnas.gated(useful_skip, x, params=params)
    space = jasgnas.search_space(gated, x, params=own)

    def loss(params):
        return jnp.mean(gated(params, x) ** 2)

    trained, _ = train(space, own, loss, 8, score="gate", target_groups={"structure": 1}, train_gates=True)
    with pytest.warns(GatesLeftWarning, match="gates/output/input0"):
        fn, left = jasgnas.construct_subnet(space, trained)
    assert error(fn(left, x), gated(trained, x)) < 1e-5
    with pytest.raises(ArgumentError, match="magnitude goes by the norms .* those of gates"):
        train(space, own, loss, 4, score="magnitude", target_groups={"gate": 1})
    with pytest.raises(ArgumentError, match="norms"), warnings.catch_warnings(action="ignore"):
        tx = jasgnas.h2spg(space, learning_rate=0.1, target_groups={"gate": 1}, warmup_steps=2, projection_steps=2)
        tx.update(own, tx.init(own), own)
    with pytest.raises(ArgumentError, match="published goes by the norms"):
        jasgnas.score_groups(space, own, lambda params, batch: loss(params), [x], score="published")
    with pytest.raises(TargetError, match="cannot remove 0 of 3 structures and 2 of 1 gates"):
        space.select(np.arange(4.0), target_groups={"gate": 2})
