"""Sets of groups: all valid ones, random ones within a budget, and those that scores choose."""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

import jasgnas
from jasgnas.optimizer.scores import SCORES

Set = tuple[int, ...]
"""Indices of the groups that go, in rising order."""

_ATTEMPTS_PER_SET = 20


def all_sets(space: jasgnas.SearchSpace) -> list[Set]:
    """Returns all valid sets but the empty one, those of fewest groups first."""
    indices = range(len(space.groups))
    sets = itertools.chain.from_iterable(itertools.combinations(indices, num) for num in range(1, len(indices) + 1))
    return list(filter(space.is_valid, sets))


def macs_of(space: jasgnas.SearchSpace, removed: Set) -> float:
    """Returns the multiply-adds that a set leaves, as a part of the full network's."""
    return space.subnet_size(removed)[1] / space.subnet_size(())[1]


def is_maximal(space: jasgnas.SearchSpace, removed: Set, budget: float) -> bool:
    """Tells whether a set meets a budget, and no group of it could stay."""
    fewer = itertools.combinations(removed, len(removed) - 1)
    return macs_of(space, removed) <= budget < min(macs_of(space, each) for each in fewer)


def drawn_sets(space: jasgnas.SearchSpace, budget: float, number: int) -> list[Set]:
    """Returns different random maximal sets within a budget, the same ones every time; fewer if there are not so many.

    Groups are visited in random order until the budget is met, as H2SPG visits them by falling score.
    """
    rng = np.random.default_rng(0)
    found: dict[Set, None] = {}
    for _ in range(_ATTEMPTS_PER_SET * number):
        if len(found) == number:
            break
        found[space.select(rng.permutation(len(space.groups)), target_macs=budget)] = None
    return list(found)


def choices(space: jasgnas.SearchSpace, scores: Mapping[str, ArrayLike], budget: float) -> dict[str, Set]:
    """Returns the sets that scores choose within a budget, by what the choice is called.

    Scores in units of the loss choose by what a group costs for what it saves, and by plain falling score as well. Each
    also chooses by plain falling score without regard to validity: what a choice without the graph would come to.
    """
    found = {}
    for name, score in SCORES.items():
        found[name] = space.select(scores[name], target_macs=budget, per_cost=score.is_cost)
        if score.is_cost:
            found[f"{name}, plain order"] = space.select(scores[name], target_macs=budget)
        unchecked = space.select(scores[name], target_macs=budget, hierarchical=False)
        found[f"{name}, `hierarchical=False`"] = unchecked
    return found
