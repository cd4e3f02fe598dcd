"""What is known of a run: which groups went, by which scores, and what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jasgnas.errors import ArgumentError
from jasgnas.optimizer.state import H2SPGState, h2spg_state
from jasgnas.pages.history import History, number, selection_of
from jasgnas.space.latency import LatencyTable
from jasgnas.space.validity import is_valid

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Figure = int | float | str
Results = Mapping[str, Figure]

# Points of the curve of sizes.
_MAX_SIZES = 48


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a network, for `jasgnas.compare`.

    Attributes:
        name: what the page calls it.
        opt_state: these and all others as `jasgnas.report` takes them.
        redundant: see there.
        scores: see there.
        history: see there.
        full: see there.
        construction: see there.
        recalibrated: see there.
        sub: see there.
        latency: see there.
        settings: see there.
        command: see there.
    """

    name: str = ""
    opt_state: Any = None
    redundant: Iterable[int] | None = None
    scores: Sequence[float] | None = None
    history: History | None = None
    full: Results | None = None
    construction: Results | None = None
    recalibrated: Results | None = None
    sub: Results | None = None
    latency: LatencyTable | None = None
    settings: Mapping[str, Any] | None = None
    command: str | None = None


class Removal(NamedTuple):
    """What is known of the groups after a run, or of a removal under consideration.

    Attributes:
        redundant: bool `[num_groups]`, groups that go, or None where no removal is known.
        zero: bool `[num_groups]`, groups that are zero already, or None.
        scores: float `[num_groups]`, redundancy scores, or None.
        selection: what is known of the latest selection, None where there was none.
    """

    redundant: np.ndarray | None
    zero: np.ndarray | None
    scores: np.ndarray | None
    selection: dict[str, Any] | None = None

    @classmethod
    def of(cls, space: "SearchSpace", run: Run) -> "Removal":
        """Takes either an optimizer state or what is given by hand.

        Raises:
            ArgumentError: both are given, or they are not of this search space.
        """
        num_groups = len(space.groups)
        if run.opt_state is not None and (run.redundant is not None or run.scores is not None):
            raise ArgumentError("opt_state= holds the redundant groups and their scores: leave out redundant=, scores=")
        if run.opt_state is not None:
            state = h2spg_state(run.opt_state)
            found = cls(
                redundant=np.asarray(state.redundant),
                zero=np.asarray(state.zero),
                scores=np.asarray(state.scores),
                selection=_state_selection(space, state),
            )
        else:
            marked = None if run.redundant is None else space.removed(run.redundant)
            told = None if run.history is None else selection_of(run.history)
            selection = None if told is None else _selection(space, **told)
            found = cls(marked, None, None if run.scores is None else np.asarray(run.scores, float), selection)
        for name in ("redundant", "zero", "scores"):
            vector = getattr(found, name)
            if vector is not None and vector.shape != (num_groups,):
                raise ArgumentError(f"{name} has shape {vector.shape}, the search space has {num_groups} groups")
        return found

    @property
    def indices(self) -> list[int]:
        """The groups that go, none where no removal is known."""
        return [] if self.redundant is None else np.flatnonzero(self.redundant).tolist()


def _state_selection(space: "SearchSpace", state: H2SPGState) -> dict[str, Any] | None:
    """Returns what a state says of the latest selection."""
    if np.ndim(state.zero) != 1 or not np.any(state.redundant):
        return None
    return _selection(space, state.selected_at, state.runner_up, state.predicted_rise, state.measured_rise)


def _selection(
    space: "SearchSpace", selected_at: Any, runner_up: Any, predicted_rise: Any, measured_rise: Any
) -> dict[str, Any]:
    is_known = 0 <= int(runner_up) < len(space.groups)
    return {
        "at": int(selected_at),
        "runnerUp": space.name_of(int(runner_up)) if is_known else None,
        "runnerUpGroup": int(runner_up) if is_known else None,
        "predicted": number(predicted_rise),
        "measured": number(measured_rise),
    }


def sizes_by_score(space: "SearchSpace", removal: Removal) -> dict[str, Any] | None:
    """Returns how large the network is without the first groups in the order of their scores, the highest first.

    A group without which the network would not be valid, given those before it, is passed over, as H2SPG does. That is
    the order of plain scores: H2SPG meets a target in parameters or multiply-adds by the cost per unit saved, so that
    what it has chosen may lie off the curve.

    Returns:
        `groups`, how many go, `params` and `macs` of what is left, at most 48 points; None where no scores are known.
    """
    if removal.scores is None or not np.nan_to_num(removal.scores).any():
        return None  # those of a run that has scored nothing yet are zero
    num_structures = len(space.structures)
    order = np.argsort(-np.nan_to_num(removal.scores, nan=-np.inf), kind="stable").tolist()
    spare = [dimension.size - dimension.min_channels for dimension in space.dimensions]
    removed = np.zeros(len(space.groups), bool)
    taken = []
    for index in order:
        if index < num_structures:
            removed[index] = True
            removed[index] = is_valid(space.candidates.dependence, removed[:num_structures])
        else:
            dimension = space.channels.dimension_of[index - num_structures]
            removed[index] = spare[dimension] > 0
            spare[dimension] -= 1
        if removed[index]:
            taken.append(index)
    counts = np.unique(np.linspace(0, len(taken), min(len(taken) + 1, _MAX_SIZES)).round().astype(int)).tolist()
    sizes = [space.subnet_size(taken[:count]) for count in counts]
    return {"groups": counts, "params": [each[0] for each in sizes], "macs": [each[1] for each in sizes]}
