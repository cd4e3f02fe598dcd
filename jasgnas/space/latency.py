"""How long a forward pass takes, as another measure of size: what was measured of each segment, and how it scales."""

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jasgnas.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jasgnas.space.search import SearchSpace

FEMTOSECONDS = 1e15
"""In a second; sizes are integers, and so are times as sizes."""


class SegmentLatency(NamedTuple):
    """What was measured of a segment.

    Attributes:
        seconds: in the full network.
        macs_share: part of it that is proportional to its multiply-adds.
        elements_share: part of it that is proportional to the elements of its results. The rest is there as long as the
            segment is.
    """

    seconds: float
    macs_share: float
    elements_share: float


class LatencyTable(NamedTuple):
    """What a forward pass takes on a device, by `jasgnas.measure_latency`.

    Attributes:
        device: the kind of device.
        inputs: dtypes and shapes of the inputs.
        seconds: measured of the full network; those of its segments add up to it.
        fingerprint: the search space that it is of.
        num_measured: how many different programs of segments were measured.
        segments: by segment, in the order of the trace.
    """

    device: str
    inputs: tuple[str, ...]
    seconds: float
    fingerprint: int
    num_measured: int
    segments: tuple[SegmentLatency, ...]

    def predict(self, space: "SearchSpace", indices: "Iterable[int]" = ()) -> float:
        """Returns the predicted seconds of a forward pass of the sub-network without some groups.

        Branches that go with them are left out. A sum counts as long as it has a summand left.

        Raises:
            ArgumentError: the table is of another search space, or an index is no group's.
        """
        candidates = space.candidates.with_latency(self)
        return candidates.subnet_size(space.removed(indices))["latency"] / FEMTOSECONDS

    def to_json(self) -> str:
        """Returns the table as JSON that `from_json` reads."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """Returns the table that a JSON text holds.

        Raises:
            ArgumentError: it holds none.
        """
        try:
            record = json.loads(text)
            segments = tuple(SegmentLatency(*map(float, each)) for each in record.pop("segments"))
            return cls(**record | {"inputs": tuple(record["inputs"])}, segments=segments)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArgumentError(f"expected JSON of a LatencyTable, as its to_json returns it: {error}") from None

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the constant part of each segment, that of multiply-adds and that of elements, in femtoseconds."""
        seconds, *shares = np.array(self.segments, float).reshape(-1, 3).T
        macs, elements = (FEMTOSECONDS * seconds * share for share in shares)
        return FEMTOSECONDS * seconds - macs - elements, macs, elements
