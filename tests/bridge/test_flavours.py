"""Models of every flavour are told apart without loading the libraries of the others."""

import subprocess
import sys

import jax.numpy as jnp
import pytest
from flax import nnx

import jasgnas

PLAIN = """
import sys
import jax.numpy as jnp
import jasgnas

params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
fn = lambda params, x: x @ params["a"] + jnp.tanh(x @ params["b"])
space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params, inputs="x")
sub_fn, sub_params = jasgnas.construct_subnet(space, space.zero(params, [0]), verify=True)
assert jasgnas.count_params(sub_params) == 9
scores = jasgnas.score_groups(space, params, lambda params, x: fn(params, x).sum(), [jnp.ones((2, 3))])
assert scores.shape == (2,)
assert jasgnas.count_params({"params": params, "batch_stats": params}) == 18
print("flax.nnx" in sys.modules, "jasgnas.bridge.nnx_model" in sys.modules)
"""


def test_a_function_of_parameters_is_searched_without_loading_nnx():
    found = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


class Network(nnx.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Network(), {"params": {}}, "an nnx.Module holds its own parameters: leave out `params=`"),
        (Network(), {"method": "other"}, "an nnx.Module holds its own parameters: leave out `method=`"),
        (jnp.tanh, {"method": "other"}, "pass `params=` and leave out `method=`"),
        (Network, {}, "got the class Network: pass an instance of it"),
        (3, {}, "got <class 'int'>"),
    ],
)
def test_what_does_not_go_with_a_model_is_refused(model, given, message):
    with pytest.raises(jasgnas.ArgumentError, match=message):
        jasgnas.count_macs(model, jnp.ones((2, 3)), **given)
