"""The loss of an NNX module as a function of its parameters alone, which is what optimizers take."""

from collections.abc import Callable
from typing import Any

import jax

from jasgnas.checks import loss_value
from jasgnas.errors import ArgumentError


def nnx_value_fn(model: Any, loss_fn: Callable[[Any], Any], wrt: Any = None) -> Callable[[Any], jax.Array]:
    """Returns the loss of an `nnx.Module` as a function of the parameters that its optimizer trains.

    Optimizers that look at the loss itself, `h2spg` and the line searches of optax, call it with other parameters than
    those at hand. It is made inside the training step, where the batch is known:

        @nnx.jit
        def train_step(model, optimizer, batch):
            def loss_fn(model):
                return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

            loss, grads = nnx.value_and_grad(loss_fn)(model)
            value_fn = jasgnas.nnx_value_fn(model, loss_fn)
            optimizer.update(model, grads, grad=grads, value=loss, value_fn=value_fn)

    Everything but the parameters (running statistics, random states, the mode) is as the model has it now. Each call
    works on a copy, so that the model stays as it is, and every call draws the same random numbers.

    Args:
        model: the module; arrays may be traced.
        loss_fn: takes the module and returns the loss, or a tuple of the loss and anything else.
        wrt: filter of the parameters, as the `nnx.Optimizer` was given; None stands for `nnx.Param`.

    Returns:
        A pure function of the state of `wrt`, as `nnx.Optimizer` hands it on (`nnx.as_pure(nnx.state(model, wrt))`),
        that returns the loss, a scalar.

    Raises:
        ArgumentError: the model is no `nnx.Module`; or, when called, `loss_fn` returns something else.
    """
    from flax import nnx  # here, because those who use another flavour never load it

    if not isinstance(model, nnx.Module):
        raise ArgumentError(
            f"expected an nnx.Module, got {type(model).__name__}: where the parameters are an argument, the loss is "
            "a function of them as it is, value_fn=lambda params: loss_fn(params, batch)"
        )
    graphdef, _, *rest = nnx.split(model, nnx.Param if wrt is None else wrt, ...)
    # Arrays and not variables, whose values change with the model.
    rest = nnx.as_pure(rest)

    def value_fn(params: Any) -> jax.Array:
        return loss_value(loss_fn(nnx.merge(graphdef, nnx.as_pure(params), *rest, copy=True)))

    return value_fn
