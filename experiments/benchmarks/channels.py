"""Time and memory of finding channels: `python -m experiments.bench_channels`.

Registered networks, with and without their channels; then decoders of rising depth and width, with the exponents of the
growth, of which the largest has 7 billion parameters. Seconds are processor time, the least of several, and nothing
that JAX has traced before is there; of the values of the networks none is computed.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import in_fresh_process
from experiments.common.cli import check_names
from experiments.common.text import time_text


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the search for channels."""

    networks: tuple[str, ...] = (
        "resnet18_cifar",
        "resnet50",
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "convnext_tiny",
        "regnet_y_400mf",
        "vit_s16",
        "decoder_small",
    )
    """Registered networks."""
    depths: tuple[int, ...] = (8, 16, 32)
    """Numbers of blocks of decoders of the largest width, rising."""
    widths: tuple[int, ...] = (1024, 2048, 4096)
    """Widths of decoders of the largest depth, rising multiples of 128, the width of a head."""
    repeats: int = 3
    """How often each time is taken; the least one counts."""
    output: Path | None = None
    """Where to write the tables as JSON."""


class Timing(NamedTuple):
    """What finding the channels of one network takes.

    Attributes:
        num_params: its parameters.
        num_channels: channel groups.
        space: seconds of `jasgnas.search_space`, tracing included.
        channels: the same with `channels=True`.
    """

    num_params: int
    num_channels: int
    space: float
    channels: float


def run(config: Config) -> Iterator[Table]:
    """Yields the table of the networks and those of the decoders; each is measured in a process of its own."""
    check_names("network", config.networks, models.list_models())
    yield _table("networks", config.networks, [in_fresh_process(measure, x, config.repeats) for x in config.networks])
    depth, width = max(config.depths), max(config.widths)
    for title, values, sizes in (
        (f"decoders of width {width}", config.depths, [(each, width) for each in config.depths]),
        (f"decoders of {depth} blocks", config.widths, [(depth, each) for each in config.widths]),
    ):
        measured = [in_fresh_process(measure_decoder, *size, config.repeats) for size in sizes]
        names = [f"{own} blocks of width {each}" for own, each in sizes]
        table = _table(title, names, measured)
        table.add_section()
        times = np.log([(timing.space, timing.channels) for timing, _ in measured])
        exponents = np.polyfit(np.log(values), times, 1)[0]
        table.add_row("exponent", "", "", *(f"{each:.2f}" for each in exponents))
        yield table


def _table(title: str, names: Sequence[str], measured: Sequence[tuple[Timing, float]]) -> Table:
    headings = ("network", "parameters", "channels", "search space s", "with channels s", "ratio", "peak MiB")
    table = Table(*headings, title=title)
    for name, (timing, peak) in zip(names, measured, strict=True):
        seconds = time_text(timing.space, 2), time_text(timing.channels, 2), f"{timing.channels / timing.space:.1f}"
        table.add_row(name, f"{timing.num_params:,}", f"{timing.num_channels:,}", *seconds, f"{peak:.0f}")
    return table


def measure(name: str, repeats: int) -> Timing:
    """Times a registered network."""
    return _timing(models.create_abstract(name), models.example_input(name), repeats)


def measure_decoder(depth: int, width: int, repeats: int) -> Timing:
    """Times a decoder whose layers have the proportions of the larger ones in use (as arXiv 2302.13971, table 2)."""
    proportions = {"num_heads": width // 128, "hidden": width * 43 // 16}
    model = models.create_abstract("decoder_small", num_classes=32_000, features=width, depth=depth, **proportions)
    return _timing(model, models.example_input("decoder_small"), repeats)


def _timing(model: nnx.Module, x: jax.ShapeDtypeStruct, repeats: int) -> Timing:
    jasgnas.search_space(model, x)  # The first one imports and registers things.
    least, num_channels = [], 0
    for channels in (False, True):
        seconds = []
        for _ in range(repeats):
            jax.clear_caches()
            start = time.process_time()
            space = jasgnas.search_space(model, x, channels=channels)
            seconds.append(time.process_time() - start)
            num_channels = len(space.channels)
        least.append(min(seconds))
    return Timing(jasgnas.count_params(model), num_channels, *least)
