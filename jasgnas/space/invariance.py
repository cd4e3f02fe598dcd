"""What the zero result of a structure does beyond it: which parameters must be zero, too, and which are of no use.

Nothing is looked up by the name of a layer: zeros and needs are followed through the equations of operators
(arXiv 2305.18030, definition 3.2).

Example: the convolutions a and b, with 4 channels each, are concatenated, and a batch norm and another convolution
follow. Without a, channels 0 to 3 of the concatenation are zero. The norm would make its bias of them, so the entries 0
to 3 of its scale and bias join the group of a, and with them its result is zero there. The next convolution mixes all
channels, so nothing of it joins; but the columns 0 to 3 of its kernel then meet zeros alone, and are idle.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jasgnas.graph.graph import Graph, Operator
from jasgnas.program.masks import NOTHING, everything
from jasgnas.space.groups import NOBODY
from jasgnas.space.ranges import (
    Ranges,
    flows_of_ranges,
    needed_along,
    needs_of_ranges,
    numbers_in,
    told_apart,
    zeros_after,
)


class Effect(NamedTuple):
    """What zero ranges do to a part of a leaf that an operator reads.

    Attributes:
        operator: index of the operator.
        part: index of the part.
        axis: an axis of it.
        groups: int `[size of the axis]`, the group whose range each index meets, `NOBODY` for no group.
        joins: whether these entries must be zero themselves for the ranges to stay zero; else they are of no use.
    """

    operator: int
    part: int
    axis: int
    groups: np.ndarray
    joins: bool


def effects_of_parts(graph: Graph, effects: Iterable[Effect]) -> dict[tuple[int, int], np.ndarray]:
    """Returns what zero ranges do to parts of leaves, wherever these are read.

    Of a leaf that stacks several layers an index goes from all of them or from none.

    Args:
        graph: the network.
        effects: what they do to the parts that single operators read.

    Returns:
        By part and axis the group without which each index is of no use, or zero, to any operator that reads the part.
    """
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for effect in effects:
        found.setdefault((effect.part, effect.axis), []).append(effect.groups)
    by_part = _agreed(found, {part: len(users) for part, users in graph.users.items()})
    stacked: dict[tuple[int, int], list[np.ndarray]] = {}
    for (part, axis), groups in by_part.items():
        stacked.setdefault((graph.parts[part].leaf, axis), []).append(groups)
    by_leaf = _agreed(stacked, Counter(part.leaf for part in graph.parts))
    leaves = {(part, axis): (graph.parts[part].leaf, axis) for part, axis in by_part}
    return {place: by_leaf[leaf] for place, leaf in leaves.items() if leaf in by_leaf}


def _agreed(
    found: Mapping[tuple[int, int], Sequence[np.ndarray]], number: Mapping[int, int]
) -> dict[tuple[int, int], np.ndarray]:
    """Returns for each index the group that all name, `NOBODY` where they differ.

    Args:
        found: by owner and axis what is named.
        number: for each owner how many have a say; an axis that not all have named something for is left out.
    """
    return {
        place: np.where(np.all(np.equal(several, several[0]), axis=0), several[0], NOBODY)
        for place, several in found.items()
        if len(several) == number[place[0]]
    }


class RangeFollower:
    """Follows the zero ranges of all groups through a network, operator by operator in the order of the trace."""

    def __init__(self, graph: Graph, eligible: frozenset[int]):
        """Prepares a network.

        Args:
            graph: the network.
            eligible: parts that may be asked to be zero on a range; whole leaves.
        """
        self._graph = graph
        self._eligible = eligible
        # By variable, the group whose removal makes each index zero: of results of operators, and of parameters that
        # join groups.
        self.ranges: dict[int, Ranges] = {}

    def start(self, operator: int, group: int) -> None:
        """Notes that the results of an operator are zero without a group."""
        for var in self._graph.results(operator):
            self.ranges[var] = tuple(np.full(size, group) for size in self._graph.program.avals[var].shape)

    def through(self, index: int) -> list[Effect]:
        """Follows the ranges through an operator, as far as parameters can keep them zero; returns what they do."""
        operator = self._graph.operators[index]
        given = {var: self.ranges[var] for var in self._graph.operands(index) if var in self.ranges}
        if not given or operator.kind == "unknown":
            return []
        effects = self._joining(operator, given) if operator.parts else []
        if operator.kind == "stem":
            # Ranges end at a stem, but for those that it keeps apart from all others, as a depthwise convolution does.
            apart = numbers_in((effect.groups,) for effect in effects)
            ended = _restricted(given, lambda groups: ~np.isin(groups, apart))
            effects += self._idle(operator, ended) if ended else []
            given = _restricted(given, lambda groups: np.isin(groups, apart))
        if given:
            joined = self._held(effect for effect in effects if effect.joins)
            self.ranges |= joined | zeros_after(self._graph, [index], given | joined, self._graph.results(index))
        return effects

    def _joining(self, operator: Operator, given: Mapping[int, Ranges]) -> list[Effect]:
        """Returns the parameters that act on ranges of the operator's result alone, and being zero keep these zero."""
        result, *others = self._graph.results(operator.index)
        shape = self._graph.program.avals[result].shape
        effects: list[Effect] = []
        for var, ranges in given.items():
            for axis, groups in enumerate(ranges if len(ranges) == len(shape) and not others else ()):
                if groups is None or len(groups) != shape[axis]:
                    continue
                groups = np.where(np.isin(groups, numbers_in((effect.groups,) for effect in effects)), NOBODY, groups)
                if len(np.unique(groups)) == 1:
                    continue  # Nothing is left to do, or all of the value is zero and not a range of it.
                joined = {effect.part for effect in effects}  # A part is divided along one axis.
                acting = [each for each in self._acting(operator, var, axis, groups) if each.part not in joined]
                if not acting:
                    continue
                after = zeros_after(self._graph, [operator.index], {**given, **self._held(acting)}, [result])
                found = after.get(result, (None,) * len(shape))[axis]
                is_zero = self._graph.full.zeros[result].apart.axis(axis, shape[axis])
                is_lost = ~is_zero & (groups != NOBODY) & (groups != (NOBODY if found is None else found))
                effects += _without(acting, np.unique(groups[is_lost]))
        return effects

    def _acting(self, operator: Operator, var: int, axis: int, groups: np.ndarray) -> list[Effect]:
        """Returns the ranges of parameters that act on ranges of the result's channels and on no others."""
        numbers, needs = needs_of_ranges(self._graph, operator.index, axis, groups)
        is_apart = np.ones(len(numbers), bool)
        if operator.kind == "stem":
            # Where it mixes channels, ranges end.
            read = [needed_along(needs, var, each, n) for each, n in enumerate(self._graph.program.avals[var].shape)]
            is_apart = np.any([_exclusive(*told_apart(rows, numbers), numbers) for rows in read], axis=0)
        effects = []
        for part in operator.parts if is_apart.any() else ():
            if part not in self._eligible:
                continue
            (held,) = self._graph.part_vars[part]
            shape = self._graph.program.avals[held].shape
            along = [needed_along(needs, held, each, size) for each, size in enumerate(shape)]
            divided = [each for each, rows in enumerate(along) if not np.all(rows)]
            if len(divided) == 1:
                found, possible = told_apart(along[divided[0]], numbers)
                own = numbers[is_apart & _exclusive(found, possible, numbers)]
                effects.append(
                    Effect(operator.index, part, divided[0], np.where(np.isin(found, own), found, NOBODY), True)
                )
        return _without(effects, [])

    def _idle(self, operator: Operator, given: Mapping[int, Ranges]) -> list[Effect]:
        """Returns the ranges of an operator's parameters that meet nothing but zeros."""
        whole = {var: everything(self._graph.ndim(var)) for var in self._graph.results(operator.index)}
        before = self._graph.needs_before([operator.index], whole)
        numbers, flows = flows_of_ranges(self._graph, [operator.index], given)
        after = [self._graph.needs_before([operator.index], whole, flow) for flow in flows]
        effects = []
        for part in operator.parts:
            for held in self._graph.part_vars[part]:
                need = before.get(held, NOTHING)
                for axis, size in enumerate(self._graph.program.avals[held].shape if need != NOTHING else ()):
                    if need[axis] is None:
                        rows = [~row for row in needed_along(after, held, axis, size)]
                        effects.append(Effect(operator.index, part, axis, told_apart(rows, numbers)[0], joins=False))
        return _without(effects, [])

    def _held(self, effects: Iterable[Effect]) -> dict[int, Ranges]:
        """Returns the ranges of parameters that join groups."""
        found: dict[int, Ranges] = {}
        for effect in effects:
            (held,) = self._graph.part_vars[effect.part]
            found[held] = tuple(effect.groups if i == effect.axis else None for i in range(self._graph.ndim(held)))
        return found


def _exclusive(found: np.ndarray, possible: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Tells for each range whether all indices that may belong to it belong to it alone, bool `[num]`."""
    return ~(possible & (found != numbers[:, None])).any(1)


def _without(effects: Iterable[Effect], groups: Sequence[int] | np.ndarray) -> list[Effect]:
    """Returns the effects of all but some groups."""
    left = (
        effect._replace(groups=np.where(np.isin(effect.groups, groups), NOBODY, effect.groups)) for effect in effects
    )
    return [effect for effect in left if (effect.groups != NOBODY).any()]


def _restricted(given: Mapping[int, Ranges], chosen: Callable[[np.ndarray], np.ndarray]) -> dict[int, Ranges]:
    """Returns the ranges of the chosen groups; `chosen` tells which of some group indices these are."""
    found = {}
    for var, ranges in given.items():
        axes = [None if axis is None else np.where(chosen(axis), axis, NOBODY) for axis in ranges]
        left = tuple(None if axis is None or (axis == NOBODY).all() else axis for axis in axes)
        if any(axis is not None for axis in left):
            found[var] = left
    return found
