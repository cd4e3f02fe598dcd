"""Sets of groups: all valid ones, random ones within a budget, and those that scores choose."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

import jasgnas
from jasgnas.optimizer.scores import SCORES

Set = tuple[int, ...]
"""Indices of the groups that go, in rising order."""

_ATTEMPTS_PER_SET = 20
_UNCHECKED = "gate"
"""Score that also selects without regard to validity."""


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
        found[select(space, rng.permutation(len(space.groups)), target_macs=budget)] = None
    return list(found)


def choices(space: jasgnas.SearchSpace, scores: Mapping[str, ArrayLike], budget: float) -> dict[str, Set]:
    """Returns the sets that scores choose within a budget, by what the choice is called.

    Scores in units of the loss choose by what a group costs for what it saves, and by plain falling score as well.
    """
    found = {}
    for name, score in SCORES.items():
        found[name] = select(space, scores[name], target_macs=budget, per_cost=score.is_cost)
        if score.is_cost:
            found[f"{name}, plain order"] = select(space, scores[name], target_macs=budget)
    found[f"{_UNCHECKED}, `hierarchical=False`"] = select(
        space, scores[_UNCHECKED], target_macs=budget, hierarchical=False
    )
    return found


def select(
    space: jasgnas.SearchSpace,
    scores: ArrayLike,
    *,
    target_macs: float,
    per_cost: bool = False,
    hierarchical: bool = True,
) -> Set:
    """Returns the groups that H2SPG would take.

    Args:
        space: the search space.
        scores: `[num_groups]`, larger for groups to remove sooner.
        target_macs: most multiply-adds that may be left, as a part of the full network's.
        per_cost: whether minus the scores are costs in units of the loss: groups that cost nothing go first, by falling
            saving, then those that cost least for what they save given what is gone; in the end single groups are
            swapped where that lowers the cost.
        hierarchical: whether the network must stay valid.

    Raises:
        TargetError: no selection meets the target.
    """
    scores = np.asarray(scores)
    groups = range(len(space.groups))
    most = space.candidates.largest_removal("macs")

    def size(removed: list[int]) -> float:
        return macs_of(space, tuple(removed))

    def is_allowed(removed: list[int]) -> bool:
        return not hierarchical or space.is_valid(removed)

    def visited(candidates: Iterable[int]) -> list[int] | None:
        """Returns what is chosen of some groups, None where the target is out of their reach."""
        chosen: list[int] = []

        def price(group: int) -> tuple[bool, float]:
            saving = size(chosen) - size([*chosen, group])
            is_free = scores[group] >= 0
            return (not is_free, -saving if is_free else -scores[group] / max(saving, 1e-12))

        while size(chosen) > target_macs:
            eligible = [group for group in candidates if group not in chosen and is_allowed([*chosen, group])]
            if not eligible:
                return None
            chosen.append(min(eligible, key=price) if per_cost else max(eligible, key=scores.__getitem__))
        return chosen

    # Visits can end in a set that cannot grow and is too small.
    chosen = visited(groups) or visited(most)
    if chosen is None:
        least = size([*most])
        raise jasgnas.TargetError(f"{target_macs:.2f} of the multiply-adds are too few: at least {least:.2f} are left")
    for group in reversed(chosen.copy()):
        if size(fewer := [each for each in chosen if each != group]) <= target_macs:
            chosen = fewer
    swaps = itertools.product(groups, groups) if per_cost else ()
    for out, into in sorted(swaps, key=lambda pair: scores[pair[1]], reverse=True):
        swapped = [each for each in chosen if each != out] + [into]
        if out in chosen and into not in chosen and scores[into] > scores[out] and is_allowed(swapped):
            chosen = swapped if size(swapped) <= size(chosen) else chosen
    return tuple(sorted(chosen))
