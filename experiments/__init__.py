"""Runnable jobs on public names of `jasgnas` alone.

`python -m experiments.demo` is the main job, `python -m experiments.train` runs named settings, `python -m
experiments.prepare` makes data sets ready, `python -m experiments.tables` reproduces the papers' tables, and
`experiments.load(folder)` returns the sub-network of a finished run.

The files beside this one are commands: each reads its settings and calls one of the rooms. A room imports only those
above it, and no command:

- `common/`: command lines, errors, files, figures as text, and the machine that they are taken on;
- `data/`: data sets, from the files that they are prepared from to augmented batches;
- `engine/`: what one run does, from its settings to the folder with its results;
- `tables/`, `oracle/` and `benchmarks/`, which know nothing of each other: the papers' tables, the oracle that
  selections are judged by, and what is measured beside them. All are commands as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax import nnx


def load(folder: Path | str) -> "nnx.Module":
    """Returns the sub-network of a finished run, see `experiments.engine.runs.load`."""
    from experiments.engine.runs import load  # not at the top: processes that prepare batches do without JAX

    return load(folder)
