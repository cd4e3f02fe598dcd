"""Time of the analysis by size of the network: tracing, search space and construction of residual chains.

    python -m experiments.bench_analysis

For each number of blocks it times `jax.make_jaxpr` alone (the floor), `jasgnas.search_space` and
`jasgnas.construct_subnet` with every other block removed, and fits the exponent of their growth.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import jasgnas


@dataclass(frozen=True)
class Config:
    """What to measure."""

    blocks: tuple[int, ...] = (50, 100, 200, 400)
    """Numbers of residual blocks, rising."""
    repeats: int = 3
    """How often each time is taken; the least one counts."""
    output: Path | None = None
    """Where to write the results as JSON."""


@dataclass(frozen=True)
class Timing:
    """Seconds for one network.

    Attributes:
        blocks: number of residual blocks.
        jaxpr: `jax.make_jaxpr` alone.
        space: `jasgnas.search_space`, tracing included.
        construction: `jasgnas.construct_subnet`, tracing in both modes included.
    """

    blocks: int
    jaxpr: float
    space: float
    construction: float


@dataclass(frozen=True)
class Chain:
    """A chain of residual blocks, convolution, norm, relu, convolution, as a function of its parameters."""

    blocks: int
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: int, features: int = 4) -> "Chain":
        """Makes a chain with parameters that are all one."""
        kernel, vector = jnp.ones((3, 3, features, features)), jnp.ones(features)
        block = {"in": kernel, "scale": vector, "bias": vector, "out": kernel}
        return cls(blocks, {f"block{index:04d}": dict(block) for index in range(blocks)})

    def __call__(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
        """Returns images `[batch, height, width, features]` of the shape of `x`."""
        for name in sorted(params):
            block = params[name]
            y = _conv(x, block["in"])
            y = jax.nn.relu((y - y.mean((0, 1, 2))) * block["scale"] + block["bias"])
            x = x + _conv(y, block["out"])
        return x


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def measure(blocks: int, repeats: int) -> Timing:
    """Times the analysis of one chain."""
    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    chain = Chain.of(blocks)
    space = jasgnas.search_space(chain, x, params=chain.params)
    sparse = space.zero(chain.params, range(0, blocks, 2))
    return Timing(
        blocks=blocks,
        jaxpr=_least_seconds(lambda: jax.make_jaxpr(lambda p, x: chain(p, x))(chain.params, x), repeats),
        space=_least_seconds(lambda: jasgnas.search_space(chain, x, params=chain.params), repeats),
        construction=_least_seconds(lambda: jasgnas.construct_subnet(space, sparse), repeats),
    )


def _least_seconds(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def exponent(timings: list[Timing], column: str) -> float:
    """Returns the slope of log time over log size."""
    sizes = [np.log(timing.blocks) for timing in timings]
    return float(np.polyfit(sizes, [np.log(getattr(timing, column)) for timing in timings], 1)[0])


def main(config: Config) -> None:
    """Measures, prints a table and writes the results."""
    timings = []
    table = Table("blocks", "make_jaxpr s", "search space s", "construction s", title="Residual chains")
    for blocks in config.blocks:
        timing = measure(blocks, config.repeats)
        timings.append(timing)
        table.add_row(str(blocks), f"{timing.jaxpr:.2f}", f"{timing.space:.2f}", f"{timing.construction:.2f}")
    exponents = {column: exponent(timings, column) for column in ("jaxpr", "space", "construction")}
    table.add_section()
    table.add_row("exponent", *(f"{value:.2f}" for value in exponents.values()))
    Console().print(table)
    if config.output is not None:
        results = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "timings": [vars(timing) for timing in timings],
            "exponents": exponents,
        }
        config.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
