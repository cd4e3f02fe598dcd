"""Compares what scores chose with the best choice there was. Accuracies are in percent.

The best set is sought among all that were trained. What is said of sets in general, their median, a random choice and
percentiles, is over the sets that no score had a say in: all valid ones, or those drawn at random where there are too
many. Sets that scores chose would otherwise be compared with each other, and move the mean that they are judged by.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.oracle.sets import Set

Accuracies = Mapping[Set, Mapping[int, float]]
"""Test accuracies by set and then by seed."""

_TIMES = 3.0
"""By how many times the spread between sets must exceed that over seeds."""


class Spread(NamedTuple):
    """Whether it matters which sets go.

    Attributes:
        num_sets: number of sets trained.
        best: accuracy of the best one of them.
        median: that of the median of the sets that no score had a say in.
        over_seeds: standard deviation of the accuracy of a set over the seeds.
    """

    num_sets: int
    best: float
    median: float
    over_seeds: float

    @property
    def ratio(self) -> float:
        """How many times the spread over the seeds the best set is above the median set; NaN for a single seed."""
        return (self.best - self.median) / self.over_seeds if self.over_seeds > 0 else np.nan

    @property
    def passes(self) -> bool:
        """Whether the choice matters more than luck."""
        return bool(self.ratio >= _TIMES)


class Verdict(NamedTuple):
    """How good a way to choose is at one budget.

    Attributes:
        label: what it is called.
        budget: the budget.
        regrets: by how many points the best set within the budget is better, for each seed.
        percentiles: share in percent of the other sets that are worse, for each seed; of sets within the budget that no
            score had a say in.
        num_invalid: seeds in which the choice leaves no network.
        spread: standard deviation over random sets, None for a single choice. Where a set has one seed its luck counts.
    """

    label: str
    budget: float
    regrets: tuple[float, ...]
    percentiles: tuple[float, ...]
    num_invalid: int = 0
    spread: float | None = None


def completed(accuracies: Accuracies) -> dict[Set, dict[int, float]]:
    """Returns accuracies in which sets that were not trained with a seed have what is to be expected there.

    That is the set's mean over the seeds it was trained with, corrected by how much better or worse those seeds are
    for the sets that were trained with all of them.

    Example:
        >>> completed({(0,): {0: 80.0, 1: 82.0}, (1,): {0: 70.0}})
        {(0,): {0: 80.0, 1: 82.0}, (1,): {0: 70.0, 1: 72.0}}
    """
    seeds = sorted({seed for own in accuracies.values() for seed in own})
    everywhere = [[own[seed] for seed in seeds] for own in accuracies.values() if len(own) == len(seeds)]
    if not everywhere:
        return {removed: dict(own) for removed, own in accuracies.items()}
    effects = dict(zip(seeds, np.mean(everywhere, axis=0) - np.mean(everywhere), strict=True))
    found = {}
    for removed, own in accuracies.items():
        level = np.mean([accuracy - effects[seed] for seed, accuracy in own.items()])
        found[removed] = {seed: own.get(seed, float(level + effects[seed])) for seed in seeds}
    return found


def spread_of(accuracies: Accuracies, unchosen: Collection[Set]) -> Spread:
    """Returns the spread of some sets.

    Args:
        accuracies: those of all sets.
        unchosen: the sets that no score had a say in, which the median is that of.
    """
    means = {removed: np.mean(list(own.values())) for removed, own in completed(accuracies).items()}
    variances = [np.var(list(own.values()), ddof=1) for own in accuracies.values() if len(own) > 1]
    return Spread(
        len(accuracies),
        float(np.max(list(means.values()))),
        float(np.median([means[removed] for removed in unchosen])),
        float(np.sqrt(np.mean(variances))) if variances else 0.0,
    )


def best_sets(accuracies: Accuracies, number: int) -> list[Set]:
    """Returns the sets of the best mean accuracies, the best one first."""
    means = {removed: np.mean(list(own.values())) for removed, own in completed(accuracies).items()}
    return sorted(means, key=means.__getitem__, reverse=True)[:number]


def judged(
    label: str,
    budget: float,
    chosen: Mapping[int, Set],
    within: Accuracies,
    unchosen: Collection[Set],
    chance: float,
) -> Verdict:
    """Returns the verdict on a way to choose.

    Args:
        label: what it is called.
        budget: the budget.
        chosen: what it chose with each seed.
        within: accuracies of the sets within the budget. A choice that is not among them leaves no network.
        unchosen: those of them that no score had a say in, which the percentiles are among.
        chance: accuracy without a network.
    """
    known = completed(within)
    best = best_sets(within, 1)[0]
    regrets, percentiles = [], []
    for seed, removed in chosen.items():
        accuracy = known[removed][seed] if removed in known else chance
        others = [known[each][seed] for each in unchosen if each != removed]
        regrets.append(known[best][seed] - accuracy)
        percentiles.append(_percentile(accuracy, others))
    num_invalid = sum(removed not in known for removed in chosen.values())
    return Verdict(label, budget, tuple(regrets), tuple(percentiles), num_invalid)


def judged_random(budget: float, sets: Collection[Set], within: Accuracies, unchosen: Collection[Set]) -> Verdict:
    """Returns the verdict on a random choice, that is the mean over the sets that could have been drawn.

    Args:
        budget: the budget.
        sets: those that could have been drawn, maximal ones that no score had a say in.
        within: accuracies of the sets within the budget.
        unchosen: those of them that no score had a say in, which the percentiles are among.
    """
    known = completed(within)
    best = best_sets(within, 1)[0]
    regrets, percentiles = [], []
    for seed in sorted(known[best]):
        regrets.append([known[best][seed] - known[each][seed] for each in sets])
        others = [[known[other][seed] for other in unchosen if other != each] for each in sets]
        percentiles.append([_percentile(known[each][seed], own) for each, own in zip(sets, others, strict=True)])
    return Verdict(
        "random",
        budget,
        tuple(np.mean(regrets, axis=1).tolist()),
        tuple(np.mean(percentiles, axis=1).tolist()),
        spread=float(np.std(np.mean(regrets, axis=0), ddof=1)) if len(sets) > 1 else 0.0,
    )


def _percentile(accuracy: float, others: Sequence[float]) -> float:
    """Returns the share in percent of other accuracies that are lower, equal ones counted half.

    Example:
        >>> _percentile(80.0, [70.0, 80.0, 90.0, 75.0])
        62.5
    """
    if not others:
        return 100.0
    values = np.array(others)
    return float(100 * np.mean((values < accuracy) + 0.5 * (values == accuracy)))
