"""Where a sub-network comes from: enough to find out again, in another process, what it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from jasgnas.bridge import Model
from jasgnas.bridge.trace import Call
from jasgnas.space.search import Kinds, SearchSpace, search


@dataclass(frozen=True, eq=False)
class Origin:
    """What the search space of a sub-network was made with, and what was removed.

    Attributes:
        call: the example inputs, shapes and dtypes only.
        kept: indices of the leaves that `keep=` named.
        connected: for each array among the inputs, whether outputs must stay connected to it.
        outputs: paths of the outputs that must stay connected, None for all.
        tie: the patterns that `tie=` gave.
        kinds: which kinds of groups were searched for.
        fingerprint: that of the groups of the space.
        removed: indices of the groups that are gone.
        names: their names.
    """

    call: Call
    kept: frozenset[int]
    connected: tuple[bool, ...]
    outputs: tuple[str, ...] | None
    tie: tuple[str, ...]
    kinds: Kinds
    fingerprint: int
    removed: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, space: SearchSpace, removed: Sequence[int]) -> "Origin":
        """Describes the sub-network of a space without some groups."""
        indices = tuple(map(int, removed))
        names = tuple(map(space.name_of, indices))
        known = space.call, space.kept, space.connected, space.outputs, space.tie, space.kinds
        return cls(*known, space.candidates.fingerprint, indices, names)

    def space(self, model: Model) -> SearchSpace:
        """Makes the search space again, of the full model."""
        inference = model.in_mode(training=False)
        return search(inference, self.call, self.kept, self.connected, self.outputs, self.tie, self.kinds)
