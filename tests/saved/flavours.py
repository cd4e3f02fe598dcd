"""One network of each flavour, of which one branch is removed, and what is used of it in this process and in others."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jasgnas
from jasgnas.saved.tensors import raw
from tests.networks import arrays, randomize

X = jnp.sin(jnp.arange(24.0).reshape(6, 4))
ROOT = Path(__file__).parents[2]


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.blocks[0](x)) + jnp.sin(self.blocks[1](x))
        return self.head(self.dropout(self.norm(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = jnp.tanh(nn.Dense(5, name="left")(x)) + jnp.sin(nn.Dense(5, name="right")(x))
        return {"logits": nn.Dense(3, name="head")(nn.BatchNorm(use_running_average=not train, name="norm")(x))}


def function(params, x):
    (left, bias), right = params["branches"]
    return (jnp.tanh(x @ left + bias) + jnp.sin(x @ right)) @ params["head"].astype(x.dtype)


class Saved(NamedTuple):
    """A model, what goes with it, and the sub-network of it.

    Attributes:
        model: what is given to `load`: its own parameters are others than those that were saved.
        subnet: the sub-network and, where it is apart, its variables.
        call: calls them in inference mode.
    """

    model: Any
    subnet: tuple[Any, ...]
    call: Any


def make_nnx():
    model = NNXNet(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    space = jasgnas.search_space(model, X)
    subnet = jasgnas.construct_subnet(space, space.zero(model, [0]))
    return Saved(
        NNXNet(nnx.Rngs(7)),
        (subnet,),
        lambda subnet, x: nnx.view(subnet, deterministic=True, use_running_average=True)(x),
    )


def make_linen():
    module = LinenNet()
    variables = randomize(jax.tree.map(jnp.asarray, module.init(jax.random.key(0), X, train=False)))
    space = jasgnas.search_space(module, X, variables=variables, train=False)
    subnet = jasgnas.construct_subnet(space, space.zero(variables, [0]))
    return Saved(module, subnet, lambda module, variables, x: module.apply(variables, x, train=False))


def make_function():
    shapes = {"branches": [((4, 5), (5,)), (4, 5)], "head": (5, 3)}
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda node: isinstance(node, tuple) and isinstance(node[0], int))
    params = randomize(params)
    params["head"] = params["head"].astype(jnp.bfloat16)
    space = jasgnas.search_space(function, X, params=params)
    return Saved(
        function, jasgnas.construct_subnet(space, space.zero(params, [1])), lambda fn, params, x: fn(params, x)
    )


MAKE = {"nnx": make_nnx, "linen": make_linen, "function": make_function}


def bits(holder):
    """The bytes of the arrays of a module or pytree by path."""
    return {path: np.frombuffer(np.asarray(raw(array)).tobytes(), np.uint8) for path, array in arrays(holder).items()}


def run_python(code, *options, **env):
    """Runs code in a process of its own, and returns what it prints."""
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
