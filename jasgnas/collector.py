"""Python's garbage collector, out of the way of the analysis."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the cyclic garbage collector from visiting all that an analysis makes, again and again.

    Nearly all of it is kept. Else the time would grow faster than the network.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
