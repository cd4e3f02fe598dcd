"""Scores and selections measured outside training, against plain loops and NumPy, in every flavour."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jasgnas
from jasgnas.errors import ArgumentError, NonFiniteError, TargetError, TreeMismatchError
from jasgnas.optimizer.scores import Score
from jasgnas.pytree import leaves_by_path
from tests.networks import arrays, parameters, random_input, randomize

BATCHES = [{"x": random_input((6, 5), seed=seed), "y": random_input((6, 2), seed=seed + 9)} for seed in range(3)]
X = BATCHES[0]["x"]


class Net(nnx.Module):
    """Three branches, two of which are normalised, and dropout."""

    def __init__(self, rngs):
        self.inputs = nnx.Linear(5, 4, rngs=rngs)
        self.left, self.left_norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.right, self.right_norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.inputs(x))
        x = x + nnx.relu(self.left_norm(self.left(x))) + nnx.relu(self.right_norm(self.right(x)))
        return self.head(self.dropout(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = jnp.tanh(nn.Dense(4)(x))
        branches = [nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))) for _ in range(2)]
        return nn.Dense(2)(x + sum(branches))


def plain(params, x):
    x = jnp.tanh(x @ params["inputs"])
    return (x + jnp.tanh(x @ params["left"] + params["bias"]) + jnp.sin(x @ params["right"])) @ params["head"]


def error_of(outputs, batch):
    return jnp.mean((outputs - batch["y"]) ** 2)


def make_net():
    model = Net(nnx.Rngs(0))
    nnx.update(model, randomize(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return model


def nnx_case():
    model = make_net()
    model.eval()
    space = jasgnas.search_space(model, X)
    return space, model, lambda model, batch: (error_of(model(batch["x"]), batch), "more")


@cache
def linen_case(train=False):
    model = LinenNet()
    variables = randomize(model.init(jax.random.key(0), X, train=False))

    def loss(variables, batch):
        outputs, _ = model.apply(variables, batch["x"], train=train, mutable=["batch_stats"])
        return error_of(outputs, batch)

    return jasgnas.search_space(model, X, variables=variables, train=False), variables, loss


@cache
def plain_case():
    shapes = {"inputs": (5, 4), "left": (4, 4), "bias": (4,), "right": (4, 4), "head": (4, 2)}
    params = randomize({name: jnp.zeros(shape) for name, shape in shapes.items()})
    return jasgnas.search_space(plain, X, params=params), params, lambda p, batch: error_of(plain(p, batch["x"]), batch)


CASES = {"nnx": nnx_case, "linen": linen_case, "plain": plain_case, "linen_training": lambda: linen_case(train=True)}


def value(result):
    return float(result[0] if isinstance(result, tuple) else result)


def ablations(space, holder, loss, batches):
    """Minus the mean rise of the loss without each group, one after the other."""
    rises = [
        [value(loss(space.zero(holder, [g.index]), batch)) - value(loss(holder, batch)) for batch in batches]
        for g in space.groups
    ]
    return -np.mean(rises, axis=1)


def gradients(holder, loss, batch):
    """Gradients of the loss by path, without the library."""
    if not isinstance(holder, nnx.Module):
        grads = jax.grad(lambda holder: loss(holder, batch))(holder)
        return leaves_by_path(grads["params"] if "params" in grads else grads)
    graphdef, params, rest = nnx.split(holder, nnx.Param, ...)
    return leaves_by_path(jax.grad(lambda p: loss(nnx.merge(graphdef, p, rest, copy=True), batch)[0])(params))


def trained(holder):
    if isinstance(holder, nnx.Module):
        return parameters(holder)
    return leaves_by_path(holder["params"] if "params" in holder else holder)


def entries(tree, slices):
    return np.concatenate([np.asarray(tree[each.path], np.float64)[each.indices].ravel() for each in slices])


def by_gradient(name, space, holder, grads):
    """A score by its definition, one group after the other."""
    found = []
    params = trained(holder)
    for group in space.groups:
        x, g = entries(params, group.slices), entries(grads, group.slices)
        slices = group.gate or group.slices
        found.append(
            {
                "magnitude": -np.linalg.norm(x),
                "average_magnitude": -np.linalg.norm(x) / group.num_params,
                "cosine": x @ g / np.linalg.norm(x) / np.linalg.norm(g),
                "taylor": -abs(x @ g),
                "gate": -((entries(params, slices) @ entries(grads, slices)) ** 2),
            }[name]
        )
    return found


@pytest.mark.parametrize("case", CASES)
def test_ablation_is_the_loss_without_each_group(case):
    space, holder, loss = CASES[case]()
    found = jasgnas.score_groups(space, holder, loss, iter(BATCHES))
    assert found.dtype == np.float32 and isinstance(found, np.ndarray)
    expected = ablations(space, holder, loss, BATCHES)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        *(("plain", name) for name in ("magnitude", "average_magnitude", "cosine", "taylor", "gate")),
        *(("nnx", name) for name in ("magnitude", "cosine", "gate")),
        ("linen", "taylor"),
        ("linen_training", "gate"),
    ],
)
def test_scores_of_the_gradient(case, name):
    space, holder, loss = CASES[case]()
    expected = [by_gradient(name, space, holder, gradients(holder, loss, batch)) for batch in BATCHES[:2]]
    found = jasgnas.score_groups(space, holder, loss, BATCHES[:2], score=name)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=2e-4, atol=1e-6)


def test_the_mode_of_training():
    space, model, loss = nnx_case()

    def in_training(model, batch):
        model = nnx.clone(model)
        model.train()
        return loss(model, batch)

    expected = ablations(space, model, in_training, BATCHES)
    found = jasgnas.score_groups(space, model, loss, BATCHES, train=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(found - jasgnas.score_groups(space, model, loss, BATCHES))) > 0.01


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("score", ["ablation", "gate"])
def test_the_module_stays_as_it_is(score, train):
    space, model, loss = nnx_case()
    model.train()
    before = {
        path: np.asarray(jax.random.key_data(a) if path.endswith("key") else a) for path, a in arrays(model).items()
    }

    def changing(model, batch):
        model.head.bias[...] += 1
        model.left_norm.mean[...] += 1
        return loss(model, batch)

    jasgnas.score_groups(space, model, changing, BATCHES, score=score, train=train)
    for path, array in arrays(model).items():
        found = np.asarray(jax.random.key_data(array) if path.endswith("key") else array)
        assert found.tobytes() == before[path].tobytes(), path
    assert not model.dropout.deterministic and not model.left_norm.use_running_average
    # Nothing of a transformation is left in it.
    model(X)


def test_a_function_sees_all_but_the_rise_of_the_loss():
    space, params, loss = plain_case()
    seen = []

    def score(stats):
        seen.append(stats)
        return stats.x_dot_d / stats.d_norm / stats.saved_params + 0 * stats.gate + stats.saved_macs

    found = jasgnas.score_groups(space, params, loss, BATCHES[:1], score=score)
    grads = gradients(params, loss, BATCHES[0])
    expected = []
    for group in space.groups:
        x, g = entries(params, group.slices), entries(grads, group.slices)
        expected.append(
            x @ g / np.linalg.norm(g) / group.num_params + space.segment_graph.nodes["macs"][group.segments[0]]
        )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [name for name, each in seen[0]._asdict().items() if each is None] == ["loss_rise"]
    fixed = np.arange(len(space.groups), dtype=np.float32)
    np.testing.assert_array_equal(jasgnas.score_groups(space, params, loss, BATCHES, score=fixed), fixed)
    measured = Score(lambda stats: stats.loss_rise, needs="value_fn")
    np.testing.assert_array_equal(
        jasgnas.score_groups(space, params, loss, BATCHES, score=measured),
        -jasgnas.score_groups(space, params, loss, BATCHES),
    )


def test_ablation_needs_no_gradient_and_is_compiled_once():
    space, params, loss = plain_case()
    calls = []

    def iterated(params, batch):
        calls.append(batch)
        # A loop of unknown length cannot be differentiated backwards.
        return jax.lax.while_loop(lambda a: a > 0.1, lambda a: a / 1.01, loss(params, batch))

    for name in ("default", "magnitude"):
        jasgnas.score_groups(space, params, iterated, BATCHES[:1], score=name)
    once = len(calls)
    jasgnas.score_groups(space, params, iterated, BATCHES, score="ablation")
    assert len(calls) == 2 * once
    with pytest.raises(ValueError, match="while_loop"):
        jasgnas.score_groups(space, params, iterated, BATCHES, score="taylor")


def marked(loss, without=()):
    """A loss that is not finite on batches that are marked, and anywhere without some parameters."""

    def changed(params, batch):
        is_gone = sum(jnp.all(params[name] == 0) for name in without)
        return loss(params, batch) * jnp.where(batch["bad"], jnp.nan, 1) + jnp.where(is_gone, jnp.inf, 0)

    return changed


def test_what_is_not_finite_is_left_out():
    space, params, loss = plain_case()
    batches = [{**batch, "bad": jnp.asarray(number == 1)} for number, batch in enumerate(BATCHES)]
    for name in ("ablation", "gate"):
        found = jasgnas.score_groups(space, params, marked(loss), batches, score=name)
        expected = jasgnas.score_groups(space, params, loss, [BATCHES[0], BATCHES[2]], score=name)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(
        NonFiniteError, match=r"on none of the 1 batches .* groups 0 \(bias-left\), 1 \(right\) is finite"
    ):
        jasgnas.score_groups(space, params, marked(loss), batches[1:2], score="gate")
    with pytest.raises(NonFiniteError, match=r"on none of the 3 batches .* groups 1 \(right\) is finite"):
        jasgnas.score_groups(space, params, marked(loss, without=["right"]), batches)


def test_batches_of_several_shapes():
    space, params, loss = plain_case()
    batches = [BATCHES[0], jax.tree.map(lambda a: a[:2], BATCHES[1])]
    found = jasgnas.score_groups(space, params, loss, batches)
    np.testing.assert_allclose(found, ablations(space, params, loss, batches), rtol=1e-4, atol=1e-6)


def test_scores_are_those_that_h2spg_takes():
    space, params, loss = plain_case()
    scores = jasgnas.score_groups(space, params, loss, BATCHES)
    options = {"learning_rate": 0.1, "target_groups": 1, "warmup_steps": 1, "projection_steps": 1}
    assert isinstance(jasgnas.h2spg(space, score=scores, **options), optax.GradientTransformation)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batches": []}, ArgumentError, "at least one batch, got none"),
        ({"batches": BATCHES[0]}, ArgumentError, r"an iterable of batches, \[batch\] for one, got a dict"),
        ({"batches": X}, ArgumentError, "an iterable of batches"),
        ({"batches": 3}, ArgumentError, "an iterable of batches.* got a int"),
        ({"score": "luck"}, ArgumentError, "score must be one of"),
        ({"train": True}, ArgumentError, "train=True is for an nnx.Module.* the mode is an argument of the call"),
        ({"space": "space"}, ArgumentError, "expected the search space first"),
        (
            {"loss_fn": lambda params, batch: batch["y"]},
            ArgumentError,
            r"a real scalar.* got float32 of shape \(6, 2\)",
        ),
        ({"loss_fn": lambda params, batch: None}, ArgumentError, "a real scalar, .* got None"),
        ({"loss_fn": lambda params, batch: jnp.int32(1)}, ArgumentError, "a real scalar, .* got int32"),
        ({"holder": {"left": jnp.ones((4, 4))}}, TreeMismatchError, "right is missing"),
        ({"holder": None}, ArgumentError, "the values of these parameters are not known"),
    ],
)
def test_what_is_refused(change, error, message):
    space, params, loss = plain_case()
    if "holder" in change and change["holder"] is None:
        change = {"holder": jax.eval_shape(lambda: params)}
    given = {"space": space, "holder": params, "loss_fn": loss, "batches": BATCHES} | change
    with pytest.raises(error, match=message):
        jasgnas.score_groups(
            given["space"],
            given["holder"],
            given["loss_fn"],
            given["batches"],
            score=given.get("score", "ablation"),
            train=given.get("train", False),
        )


def substitutes(params, x):
    """Either of a and b can go, but not both; c matters somewhat, and d much."""
    both = jnp.tanh(3 * (x @ params["a"] + x @ params["b"]))
    return both + 0.4 * jnp.tanh(x @ params["c"]) + 2 * jnp.tanh(x @ params["d"])


def substitutes_case():
    values = {name: random_input((5, 2), seed=seed) for seed, name in enumerate("abcd")}
    values["b"] = 1.1 * values["a"]
    space = jasgnas.search_space(substitutes, X, params=values)
    return space, values, lambda params, batch: error_of(substitutes(params, batch["x"]), {"y": substitutes(values, X)})


def test_sets_are_selected_by_what_the_loss_is_without_them():
    """All sets of two are tried one by one."""
    space, values, loss = substitutes_case()
    batches = [BATCHES[0]]
    pairs = list(filter(space.is_valid, itertools.combinations(range(4), 2)))
    losses = {pair: float(loss(space.zero(values, pair), BATCHES[0])) for pair in pairs}
    best = min(losses, key=losses.__getitem__)
    assert jasgnas.select_groups(space, values, loss, batches, target_groups=2) == best
    alone = jasgnas.score_groups(space, values, loss, batches)
    assert losses[space.select(alone, target_groups=2, per_cost=True)] > 2 * losses[best]


@pytest.mark.parametrize("case", [nnx_case, linen_case, plain_case])
def test_a_selection_that_cannot_be_bettered_is_that_of_the_scores(case):
    space, holder, loss = case()
    scores = jasgnas.score_groups(space, holder, loss, BATCHES)
    found = jasgnas.select_groups(space, holder, loss, BATCHES, target_groups=1)
    assert found == space.select(scores, target_groups=1, per_cost=True)
    assert space.is_valid(jasgnas.select_groups(space, holder, loss, BATCHES, target_params=0.9))


def test_a_target_out_of_reach_is_refused_in_a_selection_too():
    space, values, loss = substitutes_case()
    with pytest.raises(TargetError, match="cannot remove 4 of 4"):
        jasgnas.select_groups(space, values, loss, BATCHES[:1], target_groups=4)
    with pytest.raises(ArgumentError, match="exactly one of"):
        jasgnas.select_groups(space, values, loss, BATCHES[:1])
    with pytest.raises(ArgumentError, match="all scores are NaN"):
        jasgnas.select_groups(space, values, lambda params, batch: jnp.float32(jnp.nan), BATCHES[:1], target_groups=1)
