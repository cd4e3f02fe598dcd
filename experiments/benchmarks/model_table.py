"""Sizes of the networks in `models` and of their search spaces: `python -m experiments.model_table [NAMES…]`.

With `--verify`, the multiply-adds of `jasgnas.count_macs` are compared with XLA's own cost analysis of compiled forward
passes, as `xla_cost.py` explains: twice the multiply-adds is what XLA counts for the contractions of every
network once padding is explicit. Its count for the pass as it is lies further off where padding, which it leaves out,
or elementwise work, which it counts, has a large share; the table shows both shares, and that they predict its count.

The tables in `experiments/results/model_table` are made by
`python -m experiments.model_table --verify --output experiments/results/model_table`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from flax import nnx

import jasgnas
import models
from experiments.benchmarks.xla_cost import XlaCost, xla_cost
from experiments.common.cli import check_names
from experiments.common.machine import machine_facts
from experiments.common.text import markdown_table, time_text

T = TypeVar("T")

TOLERANCE = 0.05
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Prints a table of registered networks and their search spaces, and saves it."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names in `models.list_models()`; all of them by default."""
    verify: bool = False
    """Compare the multiply-adds with XLA's cost analysis of compiled forward passes."""
    output: Path = Path("runs/model_table")
    """Folder for the figures (results.json) and the tables (tables.md); an earlier run's are overwritten."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one network.

    Attributes:
        name: its name in the registry.
        input_shape: shape of the input, a batch of one.
        num_params: number of trainable parameters.
        macs: multiply-adds of one forward pass.
        num_operators: vertices of the trace graph.
        num_segments: vertices of the segment graph.
        num_groups: groups of the search space.
        jaxpr_seconds: processor time of `jax.make_jaxpr` alone.
        space_seconds: processor time of `jasgnas.search_space`, its own trace included.
        largest_removal: number of groups in the largest valid removal.
        least_params: parameters that are left after it.
        least_macs: multiply-adds that are left after it.
        num_dimensions: widths that can be narrowed.
        num_channels: channel groups in them.
        channels_seconds: processor time of `jasgnas.search_space(..., channels=True)`.
        xla: what XLA counts, where asked for.
    """

    name: str
    input_shape: tuple[int, ...]
    num_params: int
    macs: int
    num_operators: int
    num_segments: int
    num_groups: int
    jaxpr_seconds: float
    space_seconds: float
    largest_removal: int
    least_params: int
    least_macs: int
    num_dimensions: int
    num_channels: int
    channels_seconds: float
    xla: XlaCost | None


def run(config: Config) -> list[Row]:
    """Measures the networks one after another, prints the tables and saves the figures.

    Raises:
        ConfigError: there is no network of a name.
        OSError: the folder cannot be written.
    """
    check_names("network", config.names, models.list_models())
    config.output.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    machine = {"cores": str(facts["cores"]), "Python": facts["python"], "jax": facts["jax"], "flax": facts["flax"]}
    rows = []
    for name in config.names or models.list_models():
        rows.append(measure(name, verify=config.verify))
        print(f"{name}: {rows[-1].num_groups} groups in {time_text(rows[-1].space_seconds, 2)} s", flush=True)
    parts = [
        "# Networks and their search spaces",
        f"Measured with {', '.join(f'{key} {value}' for key, value in machine.items())}.",
        "Parameters and multiply-adds in millions, for one example. Seconds are processor time on one core, "
        f"the least of {_REPEATS} times.",
        sizes_table(rows),
    ]
    if config.verify:
        parts += ["XLA's count of floating-point operations, relative to twice the multiply-adds.", xla_table(rows)]
    report = "\n\n".join(parts)
    print(report)
    (config.output / "tables.md").write_text(report + "\n")
    figures = {"machine": machine, "networks": [dataclasses.asdict(row) for row in rows]}
    (config.output / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Saved in {config.output}")
    return rows


def measure(name: str, *, verify: bool) -> Row:
    """Measures one network; none of its values is computed."""
    model, x = models.create_abstract(name), models.example_input(name)
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, x: jax.Array) -> Any:
        return nnx.merge(graphdef, state)(x)

    jaxpr_seconds, _ = _least_seconds(lambda: jax.make_jaxpr(forward)(state, x))
    space_seconds, space = _least_seconds(lambda: jasgnas.search_space(model, x))
    channels_seconds, wide = _least_seconds(lambda: jasgnas.search_space(model, x, channels=True))
    least_params, least_macs = space.subnet_size(space.largest_removal)
    return Row(
        name,
        x.shape,
        jasgnas.count_params(model),
        jasgnas.count_macs(model, x),
        len(space.operator_names),
        len(space.segment_names),
        len(space.groups),
        jaxpr_seconds,
        space_seconds,
        len(space.largest_removal),
        least_params,
        least_macs,
        len(wide.dimensions),
        len(wide.channels),
        channels_seconds,
        xla_cost(forward, state, x) if verify else None,
    )


def _least_seconds(run: Callable[[], T]) -> tuple[float, T]:
    """Returns the least of a few times on the one core that this runs on, each as in a process that traced nothing yet.

    Whatever else the machine does only adds to them.
    """
    found = []
    for _ in range(_REPEATS):
        jax.clear_caches()
        start = time.process_time()
        result = run()
        found.append(time.process_time() - start)
    return min(found), result


def sizes_table(rows: list[Row]) -> str:
    """Returns the table of networks and search spaces."""
    headings = (
        "network",
        "input",
        "parameters",
        "multiply-adds",
        "operators",
        "segments",
        "groups",
        "trace alone s",
        "space s",
        "largest removal",
        "leaves parameters",
        "and multiply-adds",
        "dimensions",
        "channels",
        "with channels s",
    )
    cells = (
        (
            row.name,
            "×".join(map(str, row.input_shape[1:])),
            f"{row.num_params / 1e6:.3f}",
            f"{row.macs / 1e6:.1f}",
            *map(str, (row.num_operators, row.num_segments, row.num_groups)),
            time_text(row.jaxpr_seconds, 2),
            time_text(row.space_seconds, 2),
            str(row.largest_removal),
            f"{row.least_params / 1e6:.3f}",
            f"{row.least_macs / 1e6:.1f}",
            str(row.num_dimensions),
            f"{row.num_channels:,}",
            time_text(row.channels_seconds, 2),
        )
        for row in rows
    )
    return markdown_table(headings, *cells)


def xla_table(rows: list[Row]) -> str:
    """Returns the comparison with XLA, all figures relative to twice the multiply-adds."""
    headings = (
        "network",
        "contractions, padding explicit",
        "share of padding",
        "other work",
        "predicted for the pass",
        "the pass as it is",
        "off by more than 5 % because of",
    )
    cells = []
    for row in rows:
        assert row.xla is not None
        xla, twice, padding = row.xla, 2 * row.macs, 2 * row.xla.padding_macs
        figures = (xla.contraction_flops, padding, xla.other_flops, xla.predicted_flops(row.macs), xla.flops)
        near = math.isclose(xla.flops, twice, rel_tol=TOLERANCE)
        reason = "" if near else "padding" if padding > xla.other_flops else "other work"
        cells.append((row.name, *(f"{100 * figure / twice:.1f} %" for figure in figures), reason))
    return markdown_table(headings, *cells)
