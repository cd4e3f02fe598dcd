"""The scores themselves, by hand, and how they are named and given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.errors import ArgumentError
from jasgnas.optimizer.layout import GroupSums
from jasgnas.optimizer.scores import DEFAULT_SCORES, SCORES, GroupStats, Score, find_score, group_stats

STATS = GroupStats(
    num_params=jnp.array([2.0, 1.0, 2.0, 5.0]),
    x_norm=jnp.array([1.0, 2.0, 0.5, 0.0]),
    # Not of the gradient: no score of the loss may look at it.
    d_norm=jnp.array([7.0, 7.0, 7.0, 7.0]),
    x_dot_d=jnp.array([7.0, 7.0, 7.0, 7.0]),
    grad_norm=jnp.array([3.0, 3.0, 0.0, 1.0]),
    x_dot_grad=jnp.array([3.0, -3.0, 0.0, 0.0]),
    gate=jnp.array([-2.0, 0.5, 0.0, 3.0]),
    loss_rise=jnp.array([-0.5, 0.25, jnp.nan, 0.0]),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Cosines 1, -0.5, 0, 0 have norm √1.25; reciprocals of ‖x‖/|x| are 2, 0.5, 4 and none, of norm √20.25 = 4.5.
        ("published", [0.5 / 1.25**0.5 + 1 / 4.5, -0.25 / 1.25**0.5 + 0.25 / 4.5, 2 / 4.5, 0.5]),
        ("magnitude", [-1.0, -2.0, -0.5, 0.0]),
        ("average_magnitude", [-0.5, -2.0, -0.25, 0.0]),
        ("cosine", [1.0, -0.5, 0.0, 0.0]),
        ("taylor", [-3.0, -3.0, 0.0, 0.0]),
        ("gate", [-4.0, -0.25, 0.0, -9.0]),
        ("ablation", [0.5, -0.25, np.nan, 0.0]),
    ],
)
def test_scores_by_hand(name, expected):
    np.testing.assert_allclose(SCORES[name](STATS), expected, rtol=1e-6)


def test_published_score_is_finite_for_tiny_and_huge_groups():
    zeros = jnp.zeros(3)
    stats = GroupStats(jnp.ones(3), jnp.array([1e-30, 1.0, 1e30]), zeros, zeros, grad_norm=zeros, x_dot_grad=zeros)
    np.testing.assert_allclose(SCORES["published"](stats), [0.5, 0.0, 0.0], atol=1e-6)


def test_what_scores_need_and_are():
    assert {name: score.needs for name, score in SCORES.items() if score.needs} == {
        **dict.fromkeys(("cosine", "taylor", "published"), "grad"),
        "gate": "gate",
        "ablation": "value_fn",
    }
    assert {name for name, score in SCORES.items() if score.is_cost} == {"taylor", "gate", "ablation"}
    assert {name for name, score in SCORES.items() if score.is_mean} == {"gate", "ablation"}
    # Where there is a gradient, there is that of gates.
    assert all(SCORES[name].needs.replace("gate", "grad") == given for given, name in DEFAULT_SCORES.items())
    assert list(DEFAULT_SCORES) == ["value_fn", "grad", ""]


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.needs])
def test_a_score_says_what_it_was_not_given(name):
    with pytest.raises(ArgumentError, match=r"needs GroupStats\.\w+, which is not given: it takes the (loss|gradient)"):
        SCORES[name](GroupStats(*STATS[:4]))


def test_scores_are_found():
    def fn(stats):
        return stats.x_norm

    assert find_score("gate") is SCORES["gate"] and find_score(SCORES["gate"]) is SCORES["gate"]
    assert find_score(fn) == Score(fn, needs="any", is_cost=False, is_mean=False)
    for given in (np.arange(4), jnp.arange(4.0)):
        found = find_score(given)
        assert (found.needs, found.is_cost) == ("", False)
        assert found(STATS).tolist() == [0, 1, 2, 3]
    assert jax.jit(lambda scores: find_score(scores)(STATS))(jnp.arange(4.0)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            "luck",
            "must be one of default, magnitude, .*, ablation, a function of GroupStats, or an array .*, got 'luck'",
        ),
        (None, "got None"),
        (1.0, "got 1.0"),
        (np.ones((4, 1)), r"one finite number for each group, got float32 of shape \(4, 1\)"),
        ([1.0, np.nan], "one finite number"),
        (np.array([True, False]), "got bool of shape"),
        (np.array([1.0, np.nan]), "one finite number"),
    ],
)
def test_what_is_no_score_is_refused(score, message):
    with pytest.raises(ArgumentError, match=message):
        find_score(score)


@pytest.mark.parametrize("score", [lambda stats: stats.x_norm[:3], lambda stats: 1.0, np.ones(3)])
def test_scores_of_another_shape_are_refused(score):
    with pytest.raises(ArgumentError, match=r"a score must be an array of shape \[num_groups\], here \(4,\), got"):
        find_score(score)(STATS)


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_statistics_follow_from_sums(alpha):
    rng = np.random.default_rng(0)
    x, d, g = rng.normal(size=(3, 4, 6)).astype(np.float32)
    u = -0.5 * d if alpha else np.zeros_like(d)
    sums = [(a * b).sum(1) for a, b in ((x, x), (x, u), (u, u), (x, g), (g, g))]
    whole = GroupSums(*map(jnp.asarray, sums), gate=jnp.ones(4))
    stats = group_stats(whole, alpha, np.full(4, 6), {"macs": np.arange(4)})
    expected = GroupStats(
        num_params=np.full(4, 6.0),
        x_norm=np.linalg.norm(x, axis=1),
        d_norm=np.linalg.norm(d, axis=1) * (alpha > 0),
        x_dot_d=(x * d).sum(1) * (alpha > 0),
        grad_norm=np.linalg.norm(g, axis=1),
        x_dot_grad=(x * g).sum(1),
        gate=np.ones(4),
        saved_macs=np.arange(4.0),
    )
    for found, value in zip(stats, expected, strict=True):
        assert (found is None) == (value is None)
        if value is not None:
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
            assert found.dtype == jnp.float32
    without = group_stats(GroupSums(*map(jnp.asarray, sums[:3])), alpha, np.full(4, 6), {})
    assert without[4:] == (None,) * 6
