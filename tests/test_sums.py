"""Sums that take away again what they add, against the derivatives of the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.jaxpr import inline, trace
from jasgnas.sums import Sums

ADDENDS = 4


def remainder(fn, num_inputs=ADDENDS):
    """The inputs that the result of a function is made of, by number, or None if nothing is taken away again."""
    program = inline(trace(fn, *[jax.ShapeDtypeStruct((2,), jnp.float32)] * num_inputs))
    found = Sums(program).remainder(program.outputs[0])
    return None if found is None else sorted(map(program.inputs.index, found))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x, q: x + jax.lax.stop_gradient(q - x), [1]),
        (lambda x, q: (x + q) - x, [1]),
        (lambda x, q: (x + q) - x - q, []),
        (lambda x, q: 3 * q + 0.5 * x - x / 2, [1]),
        (lambda x, q: (x.astype(jnp.bfloat16) + q.astype(jnp.bfloat16)) - x.astype(jnp.bfloat16), [1]),
        (lambda x, q: x + 1.0 + (q - x), [1]),
        (lambda x, q: x - q, None),
        (lambda x, q: x + q, None),
        (lambda x, q: x - 0.9 * x + q, None),
        (lambda x, q: x + (q - x * x), None),
        (lambda x, q: x + (q - jnp.tanh(x)), None),
        (lambda x, q: x * (q - x), None),
    ],
)
def test_what_remains_by_hand(fn, expected):
    assert remainder(fn, 2) == expected


@pytest.mark.parametrize("seed", range(40))
def test_what_remains_is_what_has_a_derivative(seed):
    rng = np.random.default_rng(seed)
    steps = [(rng.integers(4), *rng.integers(ADDENDS + i, size=2), rng.choice([-2.0, -0.5, 2.0])) for i in range(8)]

    def fn(inputs, sign):
        """The sum, or with a sign of +1 the same without taking anything away."""
        values = list(inputs)
        for kind, a, b, factor in steps:
            a, b = values[a], values[b]
            values.append((a + b, a + sign * b, sign * a, a * (-sign * factor if factor < 0 else factor))[kind])
        return values[-1] + values[-2]

    zeros = [jnp.zeros(2)] * ADDENDS
    moving, read = (
        [i for i, slope in enumerate(jax.grad(lambda xs, sign=sign: jnp.sum(fn(xs, sign)))(zeros)) if slope.any()]
        for sign in (-1.0, 1.0)
    )
    found = remainder(lambda *inputs: fn(inputs, -1.0))
    assert found == moving or (found is None and moving == read)
