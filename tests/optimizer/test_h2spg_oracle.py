"""H2SPG step by step beside its oracle."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jasgnas.optimizer.h2spg import ADAM_DEFAULTS
from jasgnas.optimizer.state import h2spg_state
from jasgnas.space.validity import is_valid
from tests.optimizer.h2spg_oracle import BRANCHES, Adam, Oracle, Sgd
from tests.optimizer.h2spg_problem import GRAPH, INDICES, make_h2spg, make_params, make_problem, make_step, mask

SGD, MOMENTUM = partial(Sgd), partial(Sgd, momentum=0.9, weight_decay=1e-3)
OPTAX_BASE = {
    SGD: optax.sgd,
    MOMENTUM: lambda lr: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(lr, momentum=0.9)),
    Adam: optax.adam,
}


def warmup_then_decay(step):
    """A learning rate that starts at 0, and rises for 20 of the 40 updates of the warm-up."""
    return 0.004 * step * 0.95**step


def constant(step):
    return 0.01 + 0.0 * step


ORACLE_CASES = {
    "sgd-strong": (SGD, constant, {"lmbda": 0.3, "amplify": 1.5, "hat": 3.0, "guarantee_target": False}),
    "sgd-weak": (
        SGD,
        constant,
        {"lmbda": 0.05, "amplify": 1.1, "hat": 100.0, "epsilon": 0.95, "projection_steps": 250},
    ),
    "sgd-periods": (SGD, warmup_then_decay, {"lmbda": 0.02, "periods": 3, "omega": 0.7}),
    "momentum-schedule": (MOMENTUM, warmup_then_decay, {"lmbda": 0.1, "epsilon": 0.3, "num_redundant": 2}),
    "adam": (Adam, constant, dict(ADAM_DEFAULTS)),
    "adam-periods": (Adam, warmup_then_decay, {**ADAM_DEFAULTS, "periods": 3, "guarantee_target": False}),
}


def make_oracle(base, learning_rate, options):
    options = {"num_redundant": 3, "warmup_steps": 40, "projection_steps": 160, **options}
    return Oracle(INDICES, lambda removed: is_valid(GRAPH, mask(removed)), base(), learning_rate, **options)


ORACLE_STEPS = 300
SILENCED_AT = 60  # before this step group 2 is set to zero by hand, whatever it was going to be


@pytest.fixture(scope="module")
def oracle_runs():
    """For every case the oracle, and what it held after each step: parameters, scores, redundant and zero groups."""
    runs = {}
    for seed, (case, (base, learning_rate, options)) in enumerate(ORACLE_CASES.items()):
        oracle, grads = make_oracle(base, learning_rate, options), make_problem(seed)
        params = jax.tree.map(np.float64, make_params(seed))
        history = []
        for number in range(ORACLE_STEPS):
            if number == SILENCED_AT:
                params = jax.tree.map(np.array, params)
                oracle.write(params, 2, np.zeros(23))
            params = oracle.step(params, grads(params, number))
            history.append((params, oracle.scores, mask(oracle.redundant), mask(oracle.zero)))
        runs[case] = oracle, jax.tree.map(lambda *steps: np.stack(steps), *history)
    return runs


@pytest.mark.parametrize("case", ORACLE_CASES)
def test_iterates_agree_with_oracle(case, oracle_runs):
    base, learning_rate, options = ORACLE_CASES[case]
    options = {"warmup_steps": 40, "projection_steps": 160, **options}
    options["target_groups"] = options.pop("num_redundant", 3)
    seed = list(ORACLE_CASES).index(case)
    with jax.enable_x64(True):
        tx = optax.chain(OPTAX_BASE[base](learning_rate), make_h2spg(learning_rate, score="published", **options))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), make_params(seed))
        step = make_step(tx, partial(make_problem(seed), sin=jnp.sin))

        def body(carry, number):
            params, opt_state = carry
            silenced = {path: params[path].at[index].multiply(number != SILENCED_AT) for path, index in INDICES[2]}
            params = {**params, **silenced}
            params, opt_state = step(params, opt_state, number)
            state = h2spg_state(opt_state)
            return (params, opt_state), (params, state.scores, state.redundant, state.zero)

        _, found = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(ORACLE_STEPS)))((params, tx.init(params)))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-10), found, oracle_runs[case][1])


def test_oracle_cases_meet_every_branch(oracle_runs):
    met = sum((oracle.branches for oracle, _ in oracle_runs.values()), Counter())
    assert set(met) == BRANCHES
