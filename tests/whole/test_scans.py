"""Layers stacked along several axes, as scans within scans read them: beside the same layers one after the other."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from tests.whole.double import D, assert_same, double_settings, perturbed, random_array


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.expand = nnx.Linear(4, 6, **double_settings(rngs))
        self.project = nnx.Linear(6, 4, **double_settings(rngs))

    def __call__(self, x):
        return x + self.project(jnp.tanh(self.expand(x)))


class NestedStack(nnx.Module):
    def __init__(self, rngs):
        def make(rngs):
            return Residual(rngs)

        for length in (3, 2):
            make = nnx.split_rngs(splits=length)(nnx.vmap(make))
        self.layers = make(rngs)

    def __call__(self, x):
        def run(x, layer):
            return layer(x)

        for _ in range(2):
            run = nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.layers)


class NormalisedBlock(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        y = nn.BatchNorm(use_running_average=not self.train, **D)(nn.Dense(6, **D)(x))
        return x + nn.Dense(4, **D)(nn.relu(y))


def _scanned(layer, params, x, depth):
    """Applies layers whose parameters are stacked along some leading axes."""
    if depth == 0:
        return layer(params, x)
    return jax.lax.scan(lambda x, row: (_scanned(layer, row, x, depth - 1), None), x, params)[0]


def _plain_layer(params, x):
    return x + jnp.tanh(x @ params["expand"] + params["bias"]) @ params["project"]


def _plain_stack(lengths):
    shapes = {"expand": (4, 6), "bias": (6,), "project": (6, 4)}
    params = {name: jnp.zeros((*lengths, *shape)) for name, shape in shapes.items()}
    return lambda params, x: _scanned(_plain_layer, params, x, len(lengths)), _plain_layer, params


def _linen_stack(lengths):
    module, layer = nn.remat_scan(NormalisedBlock, lengths=lengths)(False), NormalisedBlock(False)
    variables = module.init(jax.random.key(0), random_array(0, 5, 4))
    return module.apply, layer.apply, variables


def _nnx_stack(lengths):
    graphdef, params = nnx.split(NestedStack(nnx.Rngs(0)))
    layer = nnx.graphdef(Residual(nnx.Rngs(0)))
    assert lengths == (2, 3)
    return (
        lambda params, x: nnx.merge(graphdef, params)(x),
        lambda params, x: nnx.merge(layer, params["layers"])(x),
        nnx.to_pure_dict(params),
    )


def _num_entries(tree):
    return sum(array.size for array in jax.tree.leaves(tree))


STACKS = [(_plain_stack, (2, 1, 3)), (_linen_stack, (2, 3)), (_nnx_stack, (2, 3))]


def _with_unrolled(make, lengths):
    """A network of stacked layers, and the same layers in a loop; the parameters of either, given those of a stack."""
    stacked, layer, params = make(lengths)
    indices = list(np.ndindex(*lengths))

    def unrolled(layers, x):
        for index in map(str, indices):
            x = layer(layers[index], x)
        return x

    def unstack(params):
        return {str(index): jax.tree.map(itemgetter(index), params) for index in indices}

    return stacked, unrolled, unstack, perturbed(params)


@pytest.mark.parametrize(("make", "lengths"), STACKS)
def test_layers_of_nested_scans_go_one_by_one(make, lengths):
    stacked, unrolled, unstack, params = _with_unrolled(make, lengths)
    x = random_array(0, 5, 4)
    space = jasgnas.search_space(stacked, x, params=params)
    loop = jasgnas.search_space(unrolled, x, params=unstack(params))
    assert len(space.groups) == len(loop.groups) == len({group.name for group in space.groups}) == np.prod(lengths)
    assert [group.num_params for group in space.groups] == [group.num_params for group in loop.groups]
    for removed in [(1,), space.random_redundant(jax.random.key(0), 3)]:
        full = space.zero(params, removed)
        assert_same(unstack(full), loop.zero(unstack(params), removed))
        subnet, sub_params = jasgnas.construct_subnet(space, full)
        _, loop_params = jasgnas.construct_subnet(loop, unstack(full))
        assert_same(jax.jit(stacked)(full, x), jax.jit(subnet)(sub_params, x))
        assert _num_entries(sub_params) == _num_entries(loop_params)
        assert space.subnet_size(removed) == loop.subnet_size(removed)


def _branch(x, kernel):
    return x + jnp.tanh(x @ kernel)


def _rows_one_by_one(params, x):
    for i, j in np.ndindex(2, 3):
        x = _branch(x, params["stack"][i, j])
    return x


def _rows_of_rows(params, x):
    for i in range(2):
        row = params["stack"][i]
        for j in range(3):
            x = _branch(x, row[j])
    return x


def _one_row_whole(params, x):
    x = _branch(x, params["stack"][0].sum(0))
    for j in range(3):
        x = _branch(x, params["stack"][1][j])
    return x


def _one_row_also_whole(params, x):
    return _branch(_one_row_whole(params, x), params["stack"][0, 1])


def _all_also_whole(params, x):
    return _branch(_rows_of_rows(params, x), params["stack"].sum((0, 1)))


def _rows_that_share_a_layer(params, x):
    return _branch(_rows_of_rows(params, x), params["stack"][0, 0] * params["stack"][1, 2])


READINGS = {
    _rows_one_by_one: ["[0, 0]", "[0, 1]", "[0, 2]", "[1, 0]", "[1, 1]", "[1, 2]"],
    _rows_of_rows: ["[0, 0]", "[0, 1]", "[0, 2]", "[1, 0]", "[1, 1]", "[1, 2]"],
    _one_row_whole: ["[0]", "[1, 0]", "[1, 1]", "[1, 2]"],
    _one_row_also_whole: [""],
    _all_also_whole: [""],
    _rows_that_share_a_layer: ["[0, 0]", "[1, 2]", "[0, 1]", "[0, 2]", "[1, 0]", "[1, 1]"],
}


@pytest.mark.parametrize("fn", READINGS, ids=lambda fn: fn.__name__)
def test_rows_are_removed_as_they_are_read(fn):
    """A leaf that is read in overlapping parts is taken as a whole, and ties all that read it."""

    def network(params, x):
        return _branch(fn(params, x), params["other"])

    params = perturbed({"stack": jnp.zeros((2, 3, 4, 4)), "other": jnp.zeros((4, 4))})
    x = random_array(0, 5, 4)
    space = jasgnas.search_space(network, x, params=params)
    found = [path for group in space.groups for path in group.paths if path.startswith("stack")]
    assert found == [f"stack{row}" for row in READINGS[fn]]
    for removed in [(0,), space.largest_removal[1:]]:
        full = space.zero(params, removed)
        subnet, sub_params = jasgnas.construct_subnet(space, full, allow_nothing=not removed)
        assert_same(jax.jit(network)(full, x), jax.jit(subnet)(sub_params, x))
        assert _num_entries(sub_params) == space.subnet_size(removed)[0]


class NormalisedStack(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.remat_scan(NormalisedBlock, lengths=(2, 2))(train)(x)


def test_a_layer_of_a_nested_scan_takes_its_statistics_with_it():
    module, x = NormalisedStack(), random_array(0, 5, 4)
    variables = perturbed(module.init(jax.random.key(0), x))
    space = jasgnas.search_space(module, x, variables=variables, train=False)
    full = space.zero(variables, (1,))
    subnet, sub_variables = jasgnas.construct_subnet(space, full)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(sub_variables)} == {3}
    (expected, updated), (found, sub_updated) = (
        jax.jit(lambda variables, net=net: net.apply(variables, x, train=True, mutable=["batch_stats"]))(variables)
        for net, variables in ((module, full), (subnet, sub_variables))
    )
    assert_same(expected, found)
    left = jax.tree.map(lambda leaf: leaf.reshape(4, -1)[np.array([0, 2, 3])], updated)
    assert_same(left, sub_updated)


def test_h2spg_treats_layers_of_nested_scans_as_layers():
    """In two rounds; the network may be shrunk between them."""
    stacked, unrolled, unstack, params = _with_unrolled(_plain_stack, (2, 1, 2))
    x = random_array(0, 5, 4)

    def training(fn, space):
        options = {"learning_rate": 0.01, "warmup_steps": 2, "projection_steps": 8, "periods": 2, "score": "magnitude"}
        tx = optax.chain(optax.sgd(0.01, momentum=0.9), jasgnas.h2spg(space, target_groups=2, **options))

        @jax.jit
        def step(params, state):
            grads = jax.grad(lambda params: jnp.mean((fn(params, x) - jnp.sin(x)) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def train(params, state, steps):
            for _ in range(steps):
                params, state = step(params, state)
            return params, state

        return train, tx

    space = jasgnas.search_space(stacked, x, params=params)
    train, tx = training(stacked, space)
    first = train(params, tx.init(params), 8)
    found, state = train(*first, 6)
    zero = np.asarray(jasgnas.h2spg_state(state).zero)
    assert zero.sum() == 2
    assert_same(found, space.zero(found, np.flatnonzero(zero)))

    loop = jasgnas.search_space(unrolled, x, params=unstack(params))
    train, tx = training(unrolled, loop)
    expected, state = train(unstack(params), tx.init(unstack(params)), 14)
    np.testing.assert_array_equal(jasgnas.h2spg_state(state).zero, zero)
    assert_same(expected, unstack(found))

    (fn, small), state = jasgnas.shrink(space, *first)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(small)} == {3}
    train, _ = training(fn, space)
    small, state = train(small, state, 6)
    np.testing.assert_array_equal(jasgnas.h2spg_state(state).zero, zero)
    assert_same(jasgnas.construct_subnet(space, found)[1], jasgnas.shrink(space, small, state)[0][1])
