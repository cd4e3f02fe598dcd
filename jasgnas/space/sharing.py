"""What several segments share: parts of leaves that each of them reads, what is made of these alone, or their group.

A block that is applied twice computes two segments from one set of parameters. Its multiply-adds are those of either
segment; its parameters are there, once, as long as any of them is, and go with its group. So what the same segments
share is like a segment that each of them reads: it is numbered after the segments of the network, counts what is
shared, and being gone takes its readers with it.
"""

from collections.abc import Iterable, Iterator, Sequence

from jasgnas.graph.graph import Graph
from jasgnas.program.macs import equation_macs
from jasgnas.space.groups import Group


class Sharing:
    """Which segments share something, and the numbers of what they share."""

    def __init__(self, graph: Graph, groups: Sequence[Group]):
        """Looks through a network.

        Args:
            graph: its operators and segments.
            groups: its removal structures.
        """
        self.num_segments = len(graph.segments)
        # The segments that read each part, in order.
        self._users = {
            part: tuple(sorted({graph.segment_of[operator] for operator in users}))
            for part, users in graph.users.items()
        }
        # The segments that each contraction counts in, by position of its equation.
        self._contracting = _contracting(graph)
        found = {*self._users.values(), *self._contracting.values(), *(group.segments for group in groups)}
        # By the segments that share it, the number of what they share.
        self.shared = {users: self.num_segments + i for i, users in enumerate(sorted(u for u in found if len(u) > 1))}
        self.group_of = {segment: group.index for group in groups for segment in group.segments}
        for users, number in self.shared.items():
            groups_of_users = {self.group_of.get(segment) for segment in users}
            if len(groups_of_users) == 1 and (group := groups_of_users.pop()) is not None:
                self.group_of[number] = group
        self._read_by: dict[int, list[int]] = {}
        for users, number in self.shared.items():
            for segment in users:
                self._read_by.setdefault(segment, []).append(number)

    @property
    def num_all(self) -> int:
        """Number of segments, and of what they share."""
        return self.num_segments + len(self.shared)

    def number_of(self, part: int) -> int:
        """Returns the segment that a part of a leaf counts in, or the number of what its readers share."""
        return self._number(self._users[part])

    def numbers_of(self, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yields those of some equations that have multiply-adds, by position, each with the number they count in."""
        for position in positions:
            if position in self._contracting:
                yield position, self._number(self._contracting[position])

    @property
    def contractions(self) -> Iterator[tuple[int, int]]:
        """All equations that have multiply-adds, as `numbers_of` yields them."""
        return self.numbers_of(self._contracting)

    def _number(self, users: tuple[int, ...]) -> int:
        return self.shared[users] if len(users) > 1 else users[0]

    def read_by(self, segment: int) -> Sequence[int]:
        """Returns the numbers of what a segment shares with others."""
        return self._read_by.get(segment, ())


def _contracting(graph: Graph) -> dict[int, tuple[int, ...]]:
    """Returns the segments that compute each contraction, or depend on it if it is one of leaves alone, by position.

    A loop computes in all of its iterations what is of use in any: the segments are those of all of them.
    """
    found = {position: {graph.segment_of[operator]} for position, operator in graph.operator_of.items()}
    for position, operators in graph.prepared.items():
        found[position] = {graph.segment_of[operator] for operator in operators}
    alike: dict[tuple[int, int], set[int]] = {}
    for position, segments in found.items():
        eqn = graph.program.equations[position]
        if eqn.place >= 0:
            found[position] = alike.setdefault((eqn.number, eqn.place), set())
            found[position] |= segments
    equations = graph.program.equations
    return {place: tuple(sorted(found[place])) for place in sorted(found) if equation_macs(equations[place])}
