"""What a wheel is tried with, where nothing but its dependencies is installed and the repository is not in reach."""

import subprocess
import sys
import time
from pathlib import Path

start = time.perf_counter()
import jasgnas  # noqa: E402, whose import is timed

seconds = time.perf_counter() - start
assert "flax" not in sys.modules, "flax is loaded where nobody has asked for it"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


class Network(nnx.Module):
    """Two branches."""

    def __init__(self, rngs: nnx.Rngs):
        """Initialises them."""
        self.left = nnx.Linear(3, 3, rngs=rngs)
        self.right = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns their sum."""
        return nnx.tanh(self.left(x)) + nnx.relu(self.right(x))


network = Network


def loss_fn(model: Network) -> jax.Array:
    """Returns the mean squared output."""
    return jnp.mean(model(X) ** 2)


def main() -> None:
    """Searches, trains, constructs, saves and loads."""
    assert Path(jasgnas.__file__).is_relative_to(sys.prefix), f"{jasgnas.__file__} is not what was installed"
    model = Network(nnx.Rngs(0))
    space = jasgnas.search_space(model, X)
    tx = optax.chain(
        optax.sgd(0.1),
        jasgnas.h2spg(space, learning_rate=0.1, target_groups=1, warmup_steps=2, projection_steps=2),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(5):
        grads = nnx.grad(loss_fn)(model)
        optimizer.update(model, grads, grad=grads)
    subnet = jasgnas.construct_subnet(space, model, opt_state=optimizer.opt_state)
    assert jnp.allclose(model(X), subnet(X), atol=1e-6)
    jasgnas.save("subnet", subnet)
    assert jnp.allclose(jasgnas.load("subnet")(X), subnet(X), atol=1e-6)
    subprocess.run([sys.executable, "subnet/run.py"], check=True)
    print(f"jasgnas {jasgnas.__version__}: imported in {seconds:.2f} s; {jasgnas.count_params(subnet)} parameters left")


if __name__ == "__main__":
    main()
