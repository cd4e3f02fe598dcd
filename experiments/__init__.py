"""Runnable jobs on public names of `jasgnas` alone.

`python -m experiments.demo` is the main job, `python -m experiments.train` runs named settings, `python -m
experiments.prepare` makes data sets ready, `python -m experiments.tables` reproduces the papers' tables, and
`experiments.load(folder)` returns the sub-network of a finished run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax import nnx


def load(folder: Path | str) -> "nnx.Module":
    """Returns the sub-network of a finished run, see `experiments.runs.load`."""
    from experiments.runs import load  # not at the top: processes that prepare batches do without JAX

    return load(folder)
