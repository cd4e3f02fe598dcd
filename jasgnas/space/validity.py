"""What survives a removal, and which removals leave a valid network: reachability in an AND–OR graph.

Owns the judgement, on the host; `selection.py` judges inside `jax.jit`, and how a network becomes the graph that is
judged is the business of `dependence.py`.

A removal is valid if every output still depends on the network input through what is left, where an operator that is
not additive needs all of its inputs: a product that has lost a factor is lost, although the biases that are left of
the factor, or the 0.5 that a sigmoid makes of nothing, may let it vary still. In this it is stricter than to ask
whether the outputs vary. Nor can it see what cancels whatever the parameters are, other than in a sum (`sums.py`):
x / x, or the product of two concatenations of which complementary ranges are left. In all else it agrees with removing,
running and looking (tests/whole/test_generated.py).
"""

from collections.abc import Collection, Iterable, Sequence
from functools import reduce
from operator import and_, or_
from typing import NamedTuple

import numpy as np

# Alternatives that `largest_removal` remembers per vertex. The number of alternatives can be exponential in the
# number of joints; without truncation the search is exact.
_MAX_ALTERNATIVES = 16

# Bits that stand for the largest group when removals are compared by size.
_MAX_WIDTH = 64

_ALL = -1  # the bit mask of every set there is


class DependenceGraph(NamedTuple):
    """What depends on what, as index arrays: all that validity depends on, and where sizes are counted.

    A vertex is a segment, or what is read of it in its own right, see `dependence.py`. Vertices are numbered
    topologically: every edge goes from a lower to a higher number.

    Attributes:
        senders: int32 `[num_edges]`, vertex each edge leaves.
        receivers: int32 `[num_edges]`, vertex each edge enters; a joint that reads one vertex twice has two edges.
        passes_zeros: bool `[num_edges]`, whether the receiver is zero when the sender is.
        additive: bool `[num_vertices]`, joints that are alive if any input is; other vertices need all of theirs.
        num_external: int32 `[num_vertices]`, network inputs that are read, which are always alive.
        outputs: int32 `[num_outputs]`, vertex of each network output; network inputs that are returned as they are do
            not count.
        required: int32 `[num_required]`, those of the outputs that are to stay alive.
        group: int32 `[num_vertices]`, group with which the vertex goes, or -1.
        segment: int32 `[num_vertices]`, segment that the vertex belongs to, or what several of them share, see
            `Sharing`.
    """

    senders: np.ndarray
    receivers: np.ndarray
    passes_zeros: np.ndarray
    additive: np.ndarray
    num_external: np.ndarray
    outputs: np.ndarray
    required: np.ndarray
    group: np.ndarray
    segment: np.ndarray


def alive_vertices(graph: DependenceGraph, removed: np.ndarray) -> np.ndarray:
    """Returns which vertices are alive, bool `[num_vertices]`.

    Runs on the host, in one sweep along the topological order.

    Args:
        graph: what depends on what.
        removed: bool `[num_groups]`, groups taken away.
    """
    alive: list[bool] = []
    for (senders, additive, num_external), gone in zip(_vertices(graph), _gone(graph, removed), strict=True):
        inputs = (alive[sender] for sender in senders)
        fed = num_external > 0 or any(inputs) if additive else all(inputs)
        alive.append(fed and not gone)
    return np.array(alive, dtype=bool)


def is_valid(graph: DependenceGraph, removed: np.ndarray) -> bool:
    """Returns whether every required output is alive without the groups marked in `removed`, bool `[num_groups]`."""
    return bool(alive_vertices(graph, removed)[graph.required].all())


def largest_removal(
    graph: DependenceGraph, num_groups: int, sizes: Sequence[int] | None = None, gone: Collection[int] = ()
) -> tuple[int, ...]:
    """Returns a valid removal, as large as it can find, as sorted group indices.

    A vertex is kept alive by sets of groups: one that needs all of its inputs by every union of sets that keep
    these alive, an additive joint by every set that keeps one of them alive. One sweep finds the smallest such sets of
    every vertex, and what the required outputs do not need may go. The problem is NP-hard, so at most
    `_MAX_ALTERNATIVES` sets per vertex are remembered: where no more exist the result is the largest; it is never
    contained in a larger one.

    Args:
        graph: what depends on what.
        num_groups: number of groups.
        sizes: how much each group counts, to about a part in `_MAX_WIDTH` of the largest; None counts them equally.
        gone: a valid set of groups that the removal contains.

    Returns:
        The groups to remove; empty if the network needs every one of them.
    """
    # Sets of groups are integers, to which each group contributes bits of its own, as many as it counts: unions and
    # comparisons of thousands of groups stay quick.
    masks = _disjoint_masks([1] * num_groups if sizes is None else _widths(sizes))
    keepers: list[list[int]] = []
    for (senders, additive, num_external), group in zip(_vertices(graph), graph.group.tolist(), strict=True):
        alternatives = [keepers[sender] for sender in senders]
        if not additive:
            fed = _needing_all(alternatives)
        elif num_external:
            fed = [0]
        else:
            fed = _smallest(groups for sender in alternatives for groups in sender)
        if group in gone:
            fed = []  # nothing keeps it alive
        keepers.append([groups | masks[group] for groups in fed] if group >= 0 else fed)
    needed_groups = _needing_all([keepers[output] for output in graph.required])[0]
    removed = np.array([not needed_groups & mask for mask in masks], dtype=bool)
    bits = [masks[group] if group >= 0 else 0 for group in graph.group.tolist()]
    while True:
        needed = _sole_killers(graph, bits, removed)
        spare = [group for group in range(num_groups) if not removed[group] and not needed & masks[group]]
        if not spare:
            return tuple(np.flatnonzero(removed).tolist())
        removed[max(spare, key=lambda group: masks[group].bit_count())] = True


def critical_vertices(graph: DependenceGraph) -> np.ndarray:
    """Returns the vertices whose death alone kills a required output, bool `[num_vertices]`. Runs on the host."""
    num_vertices = len(graph.group)
    nothing = np.zeros(graph.group.max(initial=-1) + 1, bool)
    killers = _sole_killers(graph, [1 << vertex for vertex in range(num_vertices)], nothing)
    return np.array([killers >> vertex & 1 for vertex in range(num_vertices)], dtype=bool)


def _vertices(graph: DependenceGraph) -> list[tuple[list[int], bool, int]]:
    """Returns the senders, `additive` and `num_external` of every vertex as Python values, quick to loop over."""
    senders: list[list[int]] = [[] for _ in graph.group]
    for sender, receiver in zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True):
        senders[receiver].append(sender)
    return list(zip(senders, graph.additive.tolist(), graph.num_external.tolist(), strict=True))


def _gone(graph: DependenceGraph, removed: np.ndarray) -> list[bool]:
    """Returns for every vertex whether its own group is in `removed`, bool `[num_groups]`."""
    return np.append(removed, False)[graph.group].tolist()  # group -1 finds the appended entry


def _sole_killers(graph: DependenceGraph, bits: list[int], removed: np.ndarray) -> int:
    """Returns everything that, if it alone went beside `removed`, would kill a required output, as a bit mask.

    Args:
        graph: what depends on what.
        bits: for each vertex the bit of that whose going takes the vertex, 0 where nothing does.
        removed: bool `[num_groups]`, groups taken away already, without which every required output is alive.
    """
    killers: list[int] = []
    rows = zip(_vertices(graph), bits, _gone(graph, removed), strict=True)
    for (senders, additive, num_external), bit, gone in rows:
        inputs = [killers[sender] for sender in senders]
        if not additive:
            shared = reduce(or_, inputs, 0)
        else:
            shared = 0 if num_external else reduce(and_, inputs, _ALL)
        killers.append(_ALL if gone else shared | bit)
    return reduce(or_, [killers[output] for output in graph.required], 0)


def _widths(sizes: Sequence[int]) -> list[int]:
    """Returns numbers of bits, at least 1, in proportion to the sizes."""
    unit = max([1, *sizes]) / _MAX_WIDTH
    return [max(1, round(size / unit)) for size in sizes]


def _disjoint_masks(widths: list[int]) -> list[int]:
    """Returns integers of as many bits as asked for, no two of which share one."""
    ends = np.cumsum(widths).tolist()
    return [(1 << end) - (1 << end - width) for end, width in zip(ends, widths, strict=True)]


def _needing_all(alternatives: list[list[int]]) -> list[int]:
    """Returns the smallest unions of one set from each list, sets given as bit masks."""
    if not alternatives:
        return [0]
    return reduce(lambda unions, sets: _smallest(union | groups for union in unions for groups in sets), alternatives)


def _smallest(sets: Iterable[int]) -> list[int]:
    """Returns the smallest of the sets, given as bit masks, that contain no other, by rising size."""
    chosen: list[int] = []
    for candidate in sorted(set(sets), key=lambda groups: (groups.bit_count(), groups)):
        if all(groups & ~candidate for groups in chosen):
            chosen.append(candidate)
        if len(chosen) == _MAX_ALTERNATIVES:
            break
    return chosen
