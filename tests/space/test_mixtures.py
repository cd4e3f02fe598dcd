"""What is selected of structures and channels, against a plain search over the places of the order."""

import re
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas import ArgumentError, TargetError
from models.demo_net import DemoNet
from tests.networks import build

LIMITS = [
    {},
    {"min_channels": 3},
    {"multiple_of": 4},
    {"multiple_of": 4, "min_channels": 5},
    {"multiple_of": {"conv6/*": 1, "conv*": 8}, "min_channels": {re.compile("conv[12]/kernel"): 2}},
]


@cache
def demo():
    return jasgnas.search_space(build(DemoNet, width=0.2), jnp.ones((2, 8, 8, 1)), channels=True)


def alone():
    """Returns a space with channels only: three layers of 6, 10 and 7 channels."""
    shapes = {"a": (3, 6), "b": (6, 10), "c": (10, 7), "d": (7, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}

    def fn(p, x):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]) @ p["d"]

    return jasgnas.search_space(fn, jnp.ones((1, 3)), params=params, channels=True)


def limit_of(given, dimension):
    """Returns the limit on a dimension, read from what a user gives."""
    if not isinstance(given, dict):
        return given
    for pattern, number in given.items():
        if isinstance(pattern, re.Pattern):
            found = any(pattern.search(path) for path in dimension.paths)
        else:
            found = any(path.startswith(pattern.split("*")[0].rstrip("/")) for path in dimension.paths)
        if found:
            return number
    return 1


def least_left(dimension, limits, number):
    """Returns how many channels are left of a dimension at least, when so many of them are wanted to go."""
    least, multiple = (limit_of(limits.get(name, 1), dimension) for name in ("min_channels", "multiple_of"))
    possible = [left for left in range(1, dimension.size + 1) if left % multiple == 0 and left >= least]
    return min([left for left in possible if left >= dimension.size - number], default=dimension.size)


def taken_before(space, order, place, limits, structures=None):
    """Returns the groups before a place in an order, as far as they may go."""
    if structures is None:
        structures = []
        for group in order[:place]:
            if group < len(space.structures) and space.is_valid([*structures, group]):
                structures.append(group)
    inner = space.candidates.inner_of.tolist()
    taken = list(structures)
    for dimension, owner in zip(space.dimensions, inner, strict=True):
        own = [group for group in order if group in dimension.groups]
        wanted = sum(group in dimension.groups for group in order[:place])
        if owner not in structures:
            taken += own[: dimension.size - least_left(dimension, limits, wanted)]
    return structures, taken


def searched(space, scores, is_met, limits):
    """Returns the first groups in falling order that meet a target, by trying every place."""
    order = np.argsort(-scores, kind="stable").tolist()
    places = range(len(order) + 1)
    structures = next(s for s, taken in (taken_before(space, order, n, limits) for n in places) if is_met(taken))
    found = (taken_before(space, order, n, limits, structures)[1] for n in places)
    return tuple(sorted(next(taken for taken in found if is_met(taken))))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seed", range(2))
def test_what_is_selected_is_what_a_plain_search_finds(limits, seed):
    space = demo()
    scores = np.random.default_rng(seed).random(len(space.groups))
    scores[: len(space.structures)] *= seed  # none of the structures, or as many as possible
    most = int((0.5 - 0.1 * seed) * space.subnet_size(())[1])
    removed = space.select(scores, target_macs=most, **limits)
    assert removed == searched(space, scores, lambda taken: space.subnet_size(taken)[1] <= most, limits)
    assert space.is_valid(removed)


@pytest.mark.parametrize("limits", [{}, {"multiple_of": 4}, {"min_channels": 4}])
def test_numbers_of_kinds_are_met(limits):
    space = demo()
    scores = np.random.default_rng(5).random(len(space.groups))
    num_structures, inner = len(space.structures), space.candidates.inner_of

    def number(taken):
        gone = [owner in taken for owner in inner]
        channels = [g for g in taken if g >= num_structures]
        return sum(not gone[space.channels.dimension_of[g - num_structures]] for g in channels)

    removed = space.select(scores, target_groups={"structure": 2, "channel": 21}, **limits)
    order = np.argsort(-scores, kind="stable").tolist()
    places = range(len(order) + 1)
    two = next(s for s, _ in (taken_before(space, order, n, limits) for n in places) if len(s) == 2)
    found = (taken_before(space, order, n, limits, two)[1] for n in places)
    assert removed == tuple(sorted(next(taken for taken in found if number(taken) >= 21)))
    assert number(removed) == 21 or limits.get("multiple_of", 1) > 1


def test_one_kind_takes_a_plain_number():
    space = alone()
    scores = np.random.default_rng(0).random(len(space.groups))
    order = np.argsort(-scores).tolist()
    removed = space.select(scores, target_groups=5)
    assert len(removed) == 5
    assert removed == space.select(scores, target_sparsity=5 / 23) == tuple(sorted(order[:5]))
    structures = jasgnas.search_space(build(DemoNet, width=0.2), jnp.ones((2, 8, 8, 1)))
    scores = np.arange(len(structures.groups), dtype=float)
    assert structures.select(scores, target_groups={"structure": 2}) == structures.select(scores, target_groups=2)
    with pytest.raises(ArgumentError, match="channels=True"):
        structures.select(scores, target_groups=2, multiple_of=8)


@pytest.mark.parametrize("options", [{"target_macs": 0.03}, {"target_groups": {"structure": 1, "channel": 220}}])
def test_a_target_that_limits_contradict_says_so(options):
    space = demo()
    scores = np.zeros(len(space.groups))
    assert space.select(scores, **options)
    with pytest.raises(TargetError, match="min_channels=6"):
        space.select(scores, min_channels=6, **options)
    with pytest.raises(TargetError, match="multiple_of=16"):
        space.select(scores, multiple_of=16, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_channels": 0}, "min_channels must be an int, at least 1"),
        ({"multiple_of": 1.5}, "multiple_of must be an int"),
        ({"multiple_of": {"nowhere/*": 8}}, "matches no parameter"),
        ({"min_channels": {"conv6/*": "2"}}, "must be an int"),
        ({"target_macs": None, "target_groups": 3}, "structure and channel groups"),
        ({"target_macs": None, "target_groups": {"gate": 3}}, "got gate"),
        ({"target_macs": None, "target_groups": {"channel": 0.3}}, "must be an int"),
        ({"target_params": 0.5}, "exactly one"),
    ],
)
def test_what_is_of_the_wrong_kind_says_so(options, message):
    space = demo()
    with pytest.raises(ArgumentError, match=message):
        space.select(np.zeros(len(space.groups)), **{"target_macs": 0.5, **options})
