"""The loss of an NNX module as a function of its parameters, in training steps with optimizers that call it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
from tests.networks import arrays, random_input, randomize

X, Y = random_input((8, 5)), random_input((8, 3), seed=1)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.inputs = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.tanh(self.norm(self.inputs(x)))))


def make_net():
    model = Net(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    model.train()
    return model


def loss_fn(model):
    return jnp.mean((model(X) - Y) ** 2)


def raw(model):
    return {
        path: np.asarray(jax.random.key_data(array) if path.endswith("key") else array)
        for path, array in arrays(model).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, array in found.items():
        assert array.tobytes() == expected[path].tobytes(), path


@pytest.mark.parametrize("has_aux", [False, True])
def test_it_is_the_loss_with_other_parameters(has_aux):
    model = make_net()
    before = raw(model)
    value_fn = jasgnas.nnx_value_fn(model, (lambda model: (loss_fn(model), model(X))) if has_aux else loss_fn)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    other = randomize(params, seed=5)
    changed = nnx.clone(model)
    nnx.update(changed, other)
    # The same random numbers each time.
    for _ in range(2):
        assert float(value_fn(params)) == pytest.approx(float(loss_fn(nnx.clone(model))), rel=1e-6)
        assert float(jax.jit(value_fn)(other)) == pytest.approx(float(loss_fn(nnx.clone(changed))), rel=1e-6)
    assert_same(raw(model), before)
    expected = nnx.grad(loss_fn)(nnx.clone(changed))
    for a, b in zip(jax.tree.leaves(jax.grad(value_fn)(other)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_it_does_not_follow_the_model():
    model = make_net()
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    value_fn = jasgnas.nnx_value_fn(model, loss_fn)
    before = float(value_fn(params))
    model(X)
    model.eval()
    assert float(value_fn(params)) == before


def searching(model):
    """An optimizer that looks for a step length by the loss."""
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=10))
    return nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def searching_step(model, optimizer):
    loss, grads = nnx.value_and_grad(loss_fn)(model)
    value_fn = jasgnas.nnx_value_fn(model, loss_fn)
    optimizer.update(model, grads, value=loss, grad=grads, value_fn=value_fn)
    return loss


def test_a_line_search_inside_a_jitted_step():
    model = make_net()
    expected = nnx.clone(model)
    optimizer = searching(model)
    lengths = [1.0]
    for _ in range(3):
        # The same by hand: shorten the step until the loss has fallen enough, with the dropout that comes next.
        loss, grads = nnx.value_and_grad(loss_fn)(expected)
        decrease = sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(grads))
        start = nnx.as_pure(nnx.state(expected, nnx.Param))
        for length in min(1.0, 1.5 * lengths[-1]) * 0.8 ** np.arange(11):
            candidate = nnx.clone(expected)
            nnx.update(candidate, jax.tree.map(lambda x, g, a=length: x - a * g, start, nnx.as_pure(grads)))
            if float(loss_fn(nnx.clone(candidate))) <= float(loss) - 1e-4 * length * decrease:
                break
        expected = candidate
        lengths.append(length)
        found = searching_step(model, optimizer)
        assert float(found) == pytest.approx(float(loss), rel=1e-4)
        for path, array in arrays(model).items():
            if not path.endswith("key"):
                np.testing.assert_allclose(array, arrays(expected)[path], rtol=2e-3, atol=2e-4, err_msg=path)
    assert min(lengths) < 1
    # One forward pass a step has left its traces, and no more.
    assert int(model.dropout.rngs.count[...]) == 3


def test_other_parameters_than_param():
    class Scale(nnx.Param):
        pass

    class Scaled(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.scale = nnx.Linear(5, 3, rngs=rngs), Scale(jnp.ones(3))

        def __call__(self, x):
            return self.linear(x) * self.scale

    model = Scaled(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, Scale))
    value_fn = jasgnas.nnx_value_fn(model, loss_fn, wrt=Scale)
    found = value_fn(jax.tree.map(lambda x: 0 * x, params))
    assert float(found) == pytest.approx(float(jnp.mean(Y**2)))


def test_what_is_refused():
    with pytest.raises(jasgnas.ArgumentError, match="expected an nnx.Module, got dict: where the parameters"):
        jasgnas.nnx_value_fn({"kernel": X}, loss_fn)
    model = make_net()
    with pytest.raises(jasgnas.ArgumentError, match=r"a real scalar, or \(loss, aux\), got float32 of shape \(8, 3\)"):
        jasgnas.nnx_value_fn(model, lambda model: model(X))(nnx.as_pure(nnx.state(model, nnx.Param)))
