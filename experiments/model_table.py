"""Sizes of the networks in `models` and of their search spaces: `python -m experiments.model_table [NAMES…]`."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

import jasgnas
import models

CONTRACTIONS = ("conv_general_dilated", "dot_general")
TABLE_WIDTH = 124


@dataclasses.dataclass(frozen=True)
class Config:
    """Prints a table of registered networks and their search spaces, and saves its figures as JSON."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names in `models.list_models()`; all of them by default."""
    verify: bool = False
    """Compare the multiply-adds with XLA's cost analysis of the compiled forward pass."""
    output: Path = Path("runs/model_table/results.json")
    """File for the figures; an earlier run's are overwritten."""


@dataclasses.dataclass(frozen=True)
class XlaCost:
    """What XLA counts for one forward pass.

    XLA leaves out multiplications with padding and counts elementwise work and reductions, `jasgnas.count_macs` does
    neither: so its total may lie on either side of twice the multiply-adds.

    Attributes:
        flops: floating-point operations of the compiled forward pass.
        contraction_flops: those of its convolutions and matrix products, each counted by itself.
        padded_flops: the same where padding is a part of the input: twice the multiply-adds.
    """

    flops: float
    contraction_flops: float
    padded_flops: float


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
        jaxpr_seconds: wall time of `jax.make_jaxpr` alone.
        space_seconds: wall time of `jasgnas.search_space`, its own trace included.
        largest_removal: number of groups in the largest valid removal.
        least_params: parameters that are left after it.
        least_macs: multiply-adds that are left after it.
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
    xla: XlaCost | None


def run(config: Config) -> list[Row]:
    """Measures the networks one after another, prints the table and saves its figures."""
    console = Console(width=TABLE_WIDTH)
    rows = []
    for name in config.names or models.list_models():
        rows.append(measure(name, verify=config.verify))
        console.print(f"[dim]{name}: {rows[-1].num_groups} groups in {rows[-1].space_seconds:.2f} s")
    console.print(sizes_table(rows))
    if config.verify:
        console.print(xla_table(rows))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    console.print(f"Saved in {config.output}")
    return rows


def measure(name: str, *, verify: bool) -> Row:
    """Measures one network, without computing any of its values."""
    model, x = models.create_abstract(name), models.example_input(name)
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, x: jax.Array) -> Any:
        return nnx.merge(graphdef, state)(x)

    # Both are timed as in a new process, in which no function has been traced yet.
    jax.clear_caches()
    start = time.perf_counter()
    jaxpr = jax.make_jaxpr(forward)(state, x)
    jaxpr_seconds = time.perf_counter() - start
    jax.clear_caches()
    start = time.perf_counter()
    space = jasgnas.search_space(model, x)
    space_seconds = time.perf_counter() - start
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
        xla_cost(forward, state, x, jaxpr) if verify else None,
    )


def xla_cost(forward: Any, state: nnx.State, x: jax.ShapeDtypeStruct, jaxpr: Any) -> XlaCost:
    """Returns what XLA counts for a forward pass, given as a function and as its jaxpr."""
    # The code is never run, so it need not be fast.
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    compiled = jax.jit(forward).lower(state, x).compile(compiler_options=options)
    known: dict[str, float] = {}
    return XlaCost(
        _flops(compiled),
        contraction_flops(jaxpr, known, pad_first=False),
        contraction_flops(jaxpr, known, pad_first=True),
    )


def contraction_flops(jaxpr: Any, known: dict[str, float], *, pad_first: bool) -> float:
    """Returns XLA's count for the convolutions and matrix products of a jaxpr, each lowered by itself.

    Args:
        jaxpr: the jaxpr; those inside its equations are counted as well.
        known: counts by operands and parameters, to which new ones are added.
        pad_first: whether the input of a convolution is taken to hold its padding already.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            total += contraction_flops(inner, known, pad_first=pad_first) if hasattr(inner, "eqns") else 0
        if eqn.primitive.name in CONTRACTIONS:
            operands, params = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars], eqn.params
            if pad_first and "padding" in params:
                operands[0] = _padded(operands[0], params)
                params = params | {"padding": ((0, 0),) * len(params["padding"])}
            key = f"{operands} {params}"
            if key not in known:
                contraction = jax.jit(lambda *args, bind=eqn.primitive.bind, params=params: bind(*args, **params))
                known[key] = _flops(contraction.lower(*operands))
            total += known[key]
    return total


def _flops(stage: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Returns the floating-point operations of XLA's cost analysis."""
    cost = stage.cost_analysis()
    assert cost is not None, "this backend of XLA has no cost analysis"
    return cost["flops"]


def _padded(operand: jax.ShapeDtypeStruct, params: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """Returns a convolution's input with its padding."""
    shape = list(operand.shape)
    for axis, (low, high) in zip(params["dimension_numbers"].lhs_spec[2:], params["padding"], strict=True):
        shape[axis] += low + high
    return jax.ShapeDtypeStruct(tuple(shape), operand.dtype)


def sizes_table(rows: list[Row]) -> Table:
    """Returns the table of networks and search spaces."""
    headings = (
        "input",
        "parameters\nM",
        "multiply-\nadds M",
        "oper-\nators",
        "seg-\nments",
        "groups",
        "trace\nalone s",
        "space\ns",
        "largest\nremoval",
        "leaves\nM",
        "and\nM",
    )
    table = Table(title="Networks and their search spaces", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("network", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            "×".join(map(str, row.input_shape[1:])),
            f"{row.num_params / 1e6:.3f}",
            f"{row.macs / 1e6:.1f}",
            *map(str, (row.num_operators, row.num_segments, row.num_groups)),
            f"{row.jaxpr_seconds:.2f}",
            f"{row.space_seconds:.2f}",
            str(row.largest_removal),
            f"{row.least_params / 1e6:.3f}",
            f"{row.least_macs / 1e6:.1f}",
        )
    table.caption = "Parameters and multiply-adds in millions, for one example."
    return table


def xla_table(rows: list[Row]) -> Table:
    """Returns the comparison with XLA, all figures relative to twice the multiply-adds."""
    table = Table(title="XLA's count of floating-point operations, relative to twice the multiply-adds")
    table.add_column("network")
    for heading in ("contractions", "less padding", "plus other work", "compiled forward pass"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.xla is not None:
            twice, padding = 2 * row.macs, row.xla.padded_flops - row.xla.contraction_flops
            cells = (row.xla.padded_flops, -padding, row.xla.flops - row.xla.contraction_flops, row.xla.flops)
            style = None if math.isclose(row.xla.flops, twice, rel_tol=0.05) else "yellow"
            table.add_row(row.name, *(f"{100 * cell / twice:.1f}%" for cell in cells), style=style)
    table.caption = "Marked: off by more than 5 %, because XLA leaves out padding and counts elementwise work."
    return table


def main() -> None:
    """Runs what the command line asks for."""
    run(tyro.cli(Config, description=Config.__doc__))


if __name__ == "__main__":
    main()
