"""How large saved sub-networks are, how exact, and how soon they run: `python -m experiments.bench_saved`.

Sub-networks without half of the groups that can go, with random parameters, are saved for any batch size and loaded
without their models in processes of their own. The first call compiles; later ones are medians.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import in_fresh_process, interleaved_seconds
from experiments.common.cli import check_names


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures saved sub-networks."""

    networks: tuple[str, ...] = (
        "demo_net",
        "super_resnet",
        "resnet18_cifar",
        "mobilenet_v3_small",
        "vit_s16",
        "decoder_small",
    )
    """Registered networks of `models`."""
    batch_size: int = 4
    """Inputs per call."""
    repeats: int = 20
    """Timed calls after the first one."""
    output: Path | None = None
    """Where to write the table as JSON."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one saved sub-network.

    Attributes:
        params: trainable parameters.
        sizes: bytes of each file of the folder, by name.
        save_seconds: seconds to save it.
        load_seconds: seconds to load it without its model, in a process that has done nothing before.
        first_seconds: seconds of the first call there.
        later_seconds: median seconds of later calls there.
        difference: the largest difference in an output to that of the sub-network.
        scale: the largest output.
    """

    params: int
    sizes: dict[str, int]
    save_seconds: float
    load_seconds: float
    first_seconds: float
    later_seconds: float
    difference: float
    scale: float


def measure(name: str, batch_size: int, repeats: int) -> Result:
    """Saves the sub-network of one network, and loads it."""
    model = models.create(name)
    space = jasgnas.search_space(model, models.example_input(name))
    removed = space.random_redundant(jax.random.key(0), len(space.largest_removal) // 2)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    subnet.eval()
    aval = models.example_input(name, batch_size=batch_size)
    rng = np.random.default_rng(0)
    is_integer = np.issubdtype(aval.dtype, np.integer)
    x = (rng.integers(0, 16, aval.shape) if is_integer else rng.normal(size=aval.shape)).astype(aval.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path, save_seconds = _timed(lambda: jasgnas.save(Path(folder) / "network", subnet))
        sizes = {each.name: each.stat().st_size for each in path.iterdir()}
        (found, load_seconds, first_seconds, later_seconds), _ = in_fresh_process(load_and_call, path, x, repeats)
    pairs = list(zip(jax.tree.leaves(subnet(x)), found, strict=True))
    return Result(
        params=jasgnas.count_params(subnet),
        sizes=sizes,
        save_seconds=save_seconds,
        load_seconds=load_seconds,
        first_seconds=first_seconds,
        later_seconds=later_seconds,
        difference=max(float(np.max(np.abs(np.asarray(a, np.float32) - b))) for a, b in pairs),
        scale=max(float(np.max(np.abs(a))) for a, _ in pairs),
    )


def load_and_call(path: Path, x: np.ndarray, repeats: int) -> tuple[list[np.ndarray], float, float, float]:
    """Returns the outputs of a saved network, and the seconds to load it, of the first and of later calls."""
    network, load_seconds = _timed(lambda: jasgnas.load(path))
    outputs, first_seconds = _timed(lambda: network(x))
    later_seconds = interleaved_seconds({"later": lambda: network(x)}, repeats)["later"]
    found = [np.asarray(output, np.float32) for output in jax.tree.leaves(outputs)]
    return found, load_seconds, first_seconds, later_seconds


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what a function returns, and its seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - start


def run(config: Config) -> Iterator[Table]:
    """Yields one table of all networks."""
    check_names("network", config.networks, models.list_models())
    table = Table(
        *("network", "parameters", "params.safetensors", "model.jax_export", "all files"),
        *("save", "load", "first call", "later calls", "largest difference", "largest output"),
        title=f"saved sub-networks, batch {config.batch_size}",
    )
    for name in config.networks:
        result = measure(name, config.batch_size, config.repeats)
        sizes = result.sizes
        table.add_row(
            name,
            f"{result.params / 1e6:.2f} M",
            f"{sizes['params.safetensors'] / 2**20:.2f} MiB",
            f"{sizes['model.jax_export'] / 2**10:.0f} KiB",
            f"{sum(sizes.values()) / 2**20:.2f} MiB",
            f"{result.save_seconds:.1f} s",
            f"{result.load_seconds * 1e3:.0f} ms",
            f"{result.first_seconds:.2f} s",
            f"{result.later_seconds * 1e3:.1f} ms",
            f"{result.difference:.2g}",
            f"{result.scale:.2g}",
        )
    yield table
