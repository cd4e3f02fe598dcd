"""What the program of an update consists of.

Leaves of one shape share their loops, so that more leaves cost little; to evaluate the loss copies no parameters.
"""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jasgnas
from tests.networks import optimized


def branches(params, x):
    return sum(jnp.tanh(x @ kernel) for kernel in params)


def loops_of(num_branches):
    """Returns how many loops the program of an update has, and how many different ones, each compiled once."""
    params, x = [jnp.ones((16, 16))] * num_branches, jnp.ones((2, 16))
    space = jasgnas.search_space(branches, x, params=params)
    assert len(space.groups) == num_branches
    last = jasgnas.h2spg(space, learning_rate=0.1, target_groups=2, warmup_steps=4, projection_steps=4, score="gate")
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), last)

    def update(grads, state, params):
        updates, state = tx.update(grads, state, params, grad=grads)
        return optax.apply_updates(params, updates), state

    with optimized():
        text = jax.jit(update).lower(params, tx.init(params), params).compile().as_text()
    bodies = dict(re.findall(r"^%([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    called = [bodies[name] for name in re.findall(r" fusion\(.*?calls=%([\w.\-]+)", text)]
    return len(called), len(set(map(unnamed, called)))


def unnamed(body):
    """Numbers the values of a loop anew, and leaves out where it came from."""
    numbers: dict[str, str] = {}
    body = re.sub(r", metadata=\{[^}]*\}", "", body)
    return re.sub(r"%[\w.\-]+", lambda name: numbers.setdefault(name[0], f"%{len(numbers)}"), body)


def test_more_leaves_of_one_shape_bring_no_loops_that_are_not_there_yet():
    (few, few_kinds), (many, many_kinds) = loops_of(13), loops_of(26)
    assert many >= few + 3 * 13  # each leaf is summed, moved and applied
    assert many_kinds < few_kinds + 13 // 2


AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else None
"""Loops as they are compiled without the options of conftest.py."""


@pytest.mark.parametrize(("score", "around"), [("ablation", False), ("gate", False), ("gate", True)])
def test_loss_is_evaluated_with_one_more_copy_of_the_parameters_at_most(score, around):
    """Each group is masked where the loss is evaluated without it; beside that there are the gradients, as always."""
    params, x = [0.1 * jnp.ones((256, 256))] * 4, jnp.ones((2, 256))
    space = jasgnas.search_space(branches, x, params=params)
    plain = optax.sgd(0.1, momentum=0.9)
    inner = plain if around else None
    options = {"learning_rate": 0.1, "target_groups": 2, "warmup_steps": 40, "projection_steps": 4, "score": score}
    h2spg = jasgnas.h2spg(space, inner=inner, **options)

    def compiled(tx):
        def step(params, state):
            def loss_fn(params):
                return jnp.mean(branches(params, x) ** 2)

            loss, grads = jax.value_and_grad(loss_fn)(params)
            given = {} if around else {"grad": grads}
            updates, state = tx.update(grads, state, params, value=loss, value_fn=loss_fn, **given)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params))
        return lowered.compile(compiler_options=AS_FOR_USERS)

    with optimized():
        simple = compiled(optax.with_extra_args_support(plain))
        program = compiled(h2spg if around else optax.chain(plain, h2spg))
    size = sum(leaf.nbytes for leaf in params)
    sizes = [each.memory_analysis().temp_size_in_bytes for each in (simple, program)]
    assert sizes[1] <= sizes[0] + 1.2 * size
    assert not re.findall(r"f32\[256,256\]\S* copy\(", program.as_text())
