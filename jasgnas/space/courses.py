"""After how many iterations a loop repeats itself: few iterations can stand for all only if they can be told.

What is there of a state, and what of it depends on the network input, follows from what there was of the states an
iteration before, whatever groups are gone. A state that takes over itself, as the cell of an LSTM, stays once it is
there. States that take over each other in a cycle may be there every third time. So iterations come to be
alike, up to a period that the lengths of cycles divide: those of states that need not take over themselves.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import lcm

import numpy as np
from scipy.sparse.csgraph import connected_components

from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import NOTHING, Axes, Need, Zeros, digit_masks, everything, unknown, zero
from jasgnas.program.scans import Course, changing_states, scan_arity
from jasgnas.rules.flow import propagate_needs, propagate_zeros

MOST_DIFFERENT = 64
"""A loop is not looked into if more iterations than this would have to be told apart."""

# Among more states than this that all depend on each other, cycles of any length are taken for granted.
_MOST_STATES = 8


def course_of(eqn: Equation, operands: Sequence[Zeros]) -> Course | None:
    """Returns after how many iterations those of a `scan` recur, None if too many would have to be told apart.

    Args:
        eqn: the `scan`.
        operands: what is zero of its operands if all that is trained is zero.
    """
    body = _Body(eqn, operands)
    # So many iterations may pass until something that is carried is there at all, and again until it is of any use.
    least = 2 * len(body.changing)
    settled, period = recurrence(body.soft_reads())
    course = Course(max(settled, least), period)
    length = eqn.params["length"]
    if course.num_different >= length or body.moves_entries():
        course = Course(max(length - 1, least), 1)
    return course if course.num_different <= MOST_DIFFERENT else None


class _Body:
    """The body of a `scan`, which is asked what its states are computed from."""

    def __init__(self, eqn: Equation, operands: Sequence[Zeros]):
        """Prepares a scan, given what is zero of its operands if all that is trained is zero."""
        (self._program,) = eqn.inner
        num_consts, num_carry = scan_arity(eqn, self._program)
        self._constants = operands[:num_consts]
        self._states = self._program.inputs[num_consts : num_consts + num_carry]
        self._shapes = [self._program.avals[var].shape for var in self._program.inputs[num_consts:]]
        self._full = propagate_zeros(self._program)
        self.changing = changing_states(eqn, self._program)

    def soft_reads(self) -> dict[int, set[int]]:
        """Returns for each state that need not take over itself which others of these it is computed from."""
        reads = {place: {*self._read_for(place, everything(len(self._shapes[place])))} for place in self.changing}
        soft = {place for place in self.changing if place not in reads[place] or not self._lasts(place)}
        return {place: reads[place] & soft for place in soft}

    def moves_entries(self) -> bool:
        """Tells whether entries of states end up at other indices, as in a buffer that is shifted.

        Then a single state may hold what comes back after any number of iterations.
        """
        for place in self.changing:
            shape = self._shapes[place]
            for axis, size in enumerate(shape):
                for mask in digit_masks(size):
                    wanted = tuple(mask if each == axis else None for each in range(len(shape)))
                    if any(not _holds(need, axis, mask) for need in self._read_for(place, wanted).values()):
                        return True
        return False

    def _read_for(self, place: int, need: Axes) -> dict[int, Axes]:
        """Returns what is read of the states that change, by place, for some entries of what one of them becomes."""
        wanted: list[Need] = [NOTHING] * len(self._program.outputs)
        wanted[place] = need
        needs = propagate_needs(self._program, self._full, wanted)
        found = {each: needs.read(self._states[each]) for each in self.changing}
        return {each: read for each, read in found.items() if read != NOTHING}

    def _lasts(self, place: int) -> bool:
        """Tells whether all of a state is there if it was before, though nothing else is, and nothing trained."""
        before = [unknown(len(shape)) if each == place else zero(len(shape)) for each, shape in enumerate(self._shapes)]
        flow = propagate_zeros(self._program, [*self._constants, *before])
        return not flow.read(self._program.outputs[place]).anywhere


def _holds(need: Axes, axis: int, mask: np.ndarray) -> bool:
    """Tells whether what is needed holds some indices of an axis, and all others of other axes."""
    return all(
        own is None or (each == axis and own.shape == mask.shape and not np.any(mask & ~own))
        for each, own in enumerate(need)
    )


def recurrence(reads: Mapping[int, set[int]]) -> tuple[int, int]:
    """Returns after how many steps along a graph, of which edges may be gone, the steps recur, and their period.

    Among k vertices that all reach each other that is after (k - 1)² + 1 steps (Wielandt, 1950), from one such set to
    the next after one more, and by at most a period later for each set that is passed beyond the first.

    Args:
        reads: for each vertex those that it is reached from.
    """
    if not reads:
        return 0, 1
    places = sorted(reads)
    edges = np.array([[other in reads[place] for other in places] for place in places])
    num_sets, labels = connected_components(edges, connection="strong")
    sets = [[place for place, own in zip(places, labels, strict=True) if own == label] for label in range(num_sets)]
    cyclic = [own for own in sets if len(own) > 1 or own[0] in reads[own[0]]]
    period = lcm(*(length for own in cyclic for length in _cycle_lengths(reads, own)))
    several = [own for own in cyclic if len(own) > 1]
    num_passed = len(several) + (len(cyclic) > len(several))
    settled = len(places) + sum((len(own) - 1) ** 2 + 1 for own in several) + max(num_passed - 1, 0) * (period - 1)
    return settled, period


def _cycle_lengths(reads: Mapping[int, set[int]], within: Sequence[int]) -> Iterable[int]:
    """Returns the lengths of all cycles among some vertices that pass none of them twice."""
    if len(within) > _MOST_STATES:
        return range(1, len(within) + 1)
    found: set[int] = set()
    # Each cycle is followed from the lowest of its vertices.
    paths: list[tuple[int, ...]] = [(first,) for first in within]
    while paths:
        path = paths.pop()
        found |= {len(path)} if path[0] in reads[path[-1]] else set()
        onwards = reads[path[-1]].intersection(within).difference(path)
        paths += [(*path, each) for each in onwards if each > path[0]]
    return found
