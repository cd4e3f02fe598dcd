"""What several segments share: parts of leaves that each of them reads, what is made of these alone, or their group.

A block that is applied twice computes two segments from one set of parameters. Its multiply-adds are those of either
segment; its parameters are there, once, as long as any of them is, and go with its group. So what the same segments
share is like a segment that each of them reads: it is numbered after the segments of the network, counts what is
shared, and being gone takes its readers with it.
"""

from collections.abc import Iterator, Sequence

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
        self._prepared_for = {
            position: tuple(sorted({graph.segment_of[operator] for operator in operators}))
            for position, operators in graph.prepared.items()
            if equation_macs(graph.program.equations[position])
        }
        found = {*self._users.values(), *self._prepared_for.values(), *(group.segments for group in groups)}
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

    @property
    def prepared(self) -> Iterator[tuple[int, int]]:
        """The contractions of leaves alone, as positions of equations, each with the number that it counts in."""
        return ((position, self._number(users)) for position, users in self._prepared_for.items())

    def _number(self, users: tuple[int, ...]) -> int:
        return self.shared[users] if len(users) > 1 else users[0]

    def read_by(self, segment: int) -> Sequence[int]:
        """Returns the numbers of what a segment shares with others."""
        return self._read_by.get(segment, ())
