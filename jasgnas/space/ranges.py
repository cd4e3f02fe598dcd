"""Ranges of axes followed through operators, all of them at once.

A concatenation of the results of three groups has three ranges of channels, each of which is zero if its group is. To
follow each range by itself would take as many passes as there are groups before every operator: in a dense network,
where each layer reads all the layers before it, a time that grows with the cube of their number. So the ranges get
numbers, and in each pass those whose numbers have a certain binary digit are followed together. What becomes zero with
digit 0 of the number set, but not with it unset, belongs to an odd number; the other digits say to which one. An
entry whose zero takes several ranges is zero neither with the digit set nor unset in which these differ.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jasgnas.graph.graph import Graph
from jasgnas.program.masks import NOTHING, Need, everything, normalize, same, without, zero_at
from jasgnas.rules.flow import ZeroFlow
from jasgnas.space.groups import NOBODY

Ranges = tuple[np.ndarray | None, ...]
"""For each axis of a value the number of the range that each index lies in, int `[size]`; None if all lie in none."""


def numbers_in(several: Iterable[Ranges]) -> np.ndarray:
    """Returns the numbers of all ranges, sorted."""
    found = [axis for ranges in several for axis in ranges if axis is not None]
    return np.setdiff1d(np.concatenate(found), NOBODY) if found else np.zeros(0, int)


def _codes(axis: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns the place from 1 on of each index's range among some numbers, all there are, and 0 for no range."""
    return np.where(axis == NOBODY, 0, 1 + np.searchsorted(numbers, axis))


def _passes(num: int) -> list[tuple[int, int]]:
    """Returns the binary digit and its value in each pass, given the number of ranges."""
    return [(digit, value) for digit in range(num.bit_length()) for value in (0, 1)]


def told_apart(rows: Sequence[np.ndarray], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which range each index belongs to, given the indices found in each pass.

    Args:
        rows: bool `[size]` for each pass: digit 0 unset and set, digit 1 unset and set, and so on.
        numbers: the numbers of the ranges, int `[num]`.

    Returns:
        The number of the one range that each index belongs to, int `[size]`, `NOBODY` if there is no such; and which
        indices may belong to each range, among others perhaps, bool `[num, size]`.
    """
    unset, is_set = np.array(rows[0::2]), np.array(rows[1::2])
    digits = 1 << np.arange(len(unset))
    codes = np.where((unset ^ is_set).all(0), digits @ is_set, 0)
    found = np.where((codes > 0) & (codes <= len(numbers)), np.append(numbers, NOBODY)[codes - 1], NOBODY)
    has_digit = (1 + np.arange(len(numbers)))[:, None] & digits > 0
    possible: np.ndarray = np.all(np.where(has_digit[..., None], is_set, unset), axis=1)
    return found, possible


def flows_of_ranges(
    graph: Graph, operators: Sequence[int], given: Mapping[int, Ranges]
) -> tuple[np.ndarray, list[ZeroFlow]]:
    """Follows ranges of zeros through some operators.

    Args:
        graph: the network.
        operators: the operators.
        given: the ranges, by variable.

    Returns:
        The numbers of the ranges, and the zeros in each pass.
    """
    numbers = numbers_in(given.values())
    codes = {var: [None if axis is None else _codes(axis, numbers) for axis in own] for var, own in given.items()}
    flows = []
    for digit, value in _passes(len(numbers)):
        known = {
            var: zero_at(None if axis is None else (axis > 0) & ((axis >> digit & 1) == value) for axis in axes)
            for var, axes in codes.items()
        }
        # With one range, whose code is 1, there is none of which digit 0 is unset.
        is_empty = len(numbers) == 1 and value == 0
        flows.append(graph.full if is_empty else graph.zeros_through(operators, known))
    return numbers, flows


def zeros_after(
    graph: Graph, operators: Sequence[int], given: Mapping[int, Ranges], results: Sequence[int]
) -> dict[int, Ranges]:
    """Returns the ranges of the results of some operators that are zero where ranges of what these read are.

    What is zero anyway lies in no range.
    """
    # Most sums are not zero even if all ranges are: then no single range needs to be followed.
    known = {var: zero_at(None if axis is None else axis != NOBODY for axis in own) for var, own in given.items()}
    whole = [graph.zeros_through(operators, known).zeros[var] for var in results]
    before = [graph.full.zeros[var] for var in results]
    needs = [[without(everything(len(value.axes)), value) for value in values] for values in (whole, before)]
    # All of a vector may not be divided by its norm, 0, where a range of it may.
    if all(map(same, *needs)) and not any(value.is_broken for value in whole):
        return {}
    numbers, flows = flows_of_ranges(graph, operators, given)
    found = {}
    for var in results:
        anyway = graph.full.zeros[var].apart
        axes: list[np.ndarray | None] = []
        for axis, size in enumerate(graph.program.avals[var].shape):
            rows = [flow.zeros[var].apart.axis(axis, size) & ~anyway.axis(axis, size) for flow in flows]
            own, _ = told_apart(rows, numbers)
            axes.append(own if (own != NOBODY).any() else None)
        if any(axis is not None for axis in axes):
            found[var] = tuple(axes)
    return found


def needs_of_ranges(
    graph: Graph, operator: int, axis: int, numbers: np.ndarray
) -> tuple[np.ndarray, list[dict[int, Need]]]:
    """Returns what an operator needs for ranges of its result, for the indices of each pass.

    Args:
        graph: the network.
        operator: the operator, which has one result.
        axis: the axis of the result.
        numbers: the range that each index of the axis lies in, int `[size]`.

    Returns:
        The numbers of the ranges, and the needs by variable. Indices in no range go with digit 0.
    """
    present = np.setdiff1d(numbers, NOBODY)
    (result,) = graph.results(operator)
    codes = _codes(numbers, present)
    needs: list[dict[int, Need]] = []
    for digit, value in _passes(len(present)):
        wanted = (codes >> digit & 1) == value
        need = normalize(wanted if each == axis else None for each in range(graph.ndim(result)))
        needs.append(graph.needs_before([operator], {result: need}))
    return present, needs


def needed_along(needs: Sequence[dict[int, Need]], var: int, axis: int, size: int) -> list[np.ndarray]:
    """Returns which indices of an axis of a variable are needed in each pass, bool `[size]`."""
    rows = []
    for each in needs:
        need = each.get(var, NOTHING)
        mask = np.zeros(size, bool) if need == NOTHING else need[axis]
        rows.append(np.ones(size, bool) if mask is None else mask)
    return rows
