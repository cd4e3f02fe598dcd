"""How large saved sub-networks are, how exact, and how soon they run: `python -m experiments.bench_saved`.

Sub-networks without half of the groups that can go, with random parameters, are saved for any batch size and loaded
without their models, in processes of their own: as JAX exports them, as source, and as ONNX. The first call compiles;
later ones are medians.
"""

import dataclasses
import os
import runpy
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import in_fresh_process, interleaved_seconds
from experiments.common.cli import check_names
from experiments.common.errors import ExperimentError


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures saved sub-networks."""

    networks: tuple[str, ...] = ("demo_net", "resnet18_cifar", "mobilenet_v3_small", "vit_s16", "decoder_small")
    """Registered networks of `models`."""
    batch_size: int = 4
    """Inputs per call."""
    repeats: int = 20
    """Timed calls after the first one."""
    onnx_python: Path | None = None
    """The Python of an environment with jasgnas[onnx], for ONNX beside the other formats."""
    output: Path | None = None
    """Where to write the table as JSON."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one sub-network in one format.

    Attributes:
        format: the format.
        size: bytes of what it is loaded from.
        write_seconds: seconds to save the folder, or to convert it.
        load_seconds: seconds to load it without its model, in a process that has done nothing before.
        first_seconds: seconds of the first call there.
        later_seconds: median seconds of later calls there.
        difference: the largest difference in an output to that of the sub-network.
        scale: the largest output.
    """

    format: str
    size: int
    write_seconds: float
    load_seconds: float
    first_seconds: float
    later_seconds: float
    difference: float
    scale: float


def measure(name: str, config: Config) -> Iterator[Result]:
    """Saves the sub-network of one network, and loads it in every format."""
    model = models.create(name)
    space = jasgnas.search_space(model, models.example_input(name))
    removed = space.random_redundant(jax.random.key(0), len(space.largest_removal) // 2)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    subnet.eval()
    aval = models.example_input(name, batch_size=config.batch_size)
    rng = np.random.default_rng(0)
    is_integer = np.issubdtype(aval.dtype, np.integer)
    x = (rng.integers(0, 16, aval.shape) if is_integer else rng.normal(size=aval.shape)).astype(aval.dtype)
    expected = np.asarray(subnet(x))
    with tempfile.TemporaryDirectory() as place:
        folder, seconds = _timed(lambda: jasgnas.save(Path(place) / "network", subnet))

        def result(format: str, size: int, write_seconds: float, found: Measured) -> Result:
            difference, scale = (float(np.max(np.abs(each))) for each in (found[0] - expected, expected))
            return Result(format, size, write_seconds, *found[1:], difference, scale)

        for format in ("model.jax_export", "model.py"):
            size = sum((folder / file).stat().st_size for file in (format, "params.safetensors"))
            found, _ = in_fresh_process(load_and_call, folder, format, x, config.repeats)
            yield result(format, size, seconds, found)
        if config.onnx_python is not None:
            seconds, found = _through_onnx(config.onnx_python, folder, x, config.repeats)
            yield result("ONNX", Path(f"{folder}.onnx").stat().st_size, seconds, found)


Measured = tuple[np.ndarray, float, float, float]
"""Outputs, and the seconds to load, of the first and of later calls."""


def load_and_call(folder: Path, format: str, x: np.ndarray, repeats: int) -> Measured:
    """Loads a saved network from one of its files, and calls it."""

    def load() -> Callable[[Any], Any]:
        if format == "model.jax_export":
            return jasgnas.load(folder)
        return nnx.jit(runpy.run_path(str(folder / format))["load"](folder / "params.safetensors"))

    network, load_seconds = _timed(load)
    outputs, first_seconds = _timed(lambda: network(x))
    later_seconds = interleaved_seconds({"later": lambda: network(x)}, repeats)["later"]
    return np.asarray(outputs), load_seconds, first_seconds, later_seconds


_CALL_ONNX = """
import sys, time
import numpy as np, onnxruntime

path, given, results, repeats = sys.argv[1:]
x = np.load(given)
moments = [time.perf_counter()]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
moments.append(time.perf_counter())
for _ in range(1 + int(repeats)):
    outputs = session.run(None, {session.get_inputs()[0].name: x})
    moments.append(time.perf_counter())
load, first, *later = np.diff(moments)
np.savez(results, outputs=outputs[0], seconds=[load, first, np.median(later)])
"""


def _through_onnx(python: Path, folder: Path, x: np.ndarray, repeats: int) -> tuple[float, Measured]:
    """Converts a saved network in another environment and calls it there; returns the seconds of converting it, too."""
    given, results = folder.with_name("x.npy"), folder.with_name("results.npz")
    np.save(given, x)
    environment = os.environ | {"PYTHONPATH": str(Path(jasgnas.__file__).parents[1])}

    def run(*arguments: Any) -> None:
        done = subprocess.run([python, *map(str, arguments)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ExperimentError(f"{python} {' '.join(map(str, arguments[:3]))} failed: {done.stderr[-2000:]}")

    _, seconds = _timed(lambda: run("-m", "jasgnas", "onnx", folder))
    run("-c", _CALL_ONNX, f"{folder}.onnx", given, results, repeats)
    found = np.load(results)
    load_seconds, first_seconds, later_seconds = found["seconds"]
    return seconds, (found["outputs"], load_seconds, first_seconds, later_seconds)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what a function returns, and its seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - start


def run(config: Config) -> Iterator[Table]:
    """Yields one table of all networks."""
    check_names("network", config.networks, models.list_models())
    table = Table(
        *("network", "format", "size", "save or convert", "load", "first call", "later calls"),
        *("largest difference", "largest output"),
        title=f"saved sub-networks, batch {config.batch_size}",
        caption="The size of model.jax_export and of model.py is that with params.safetensors; both are written by one "
        "jasgnas.save. ONNX is converted from the folder in an environment of its own, and run by onnxruntime.",
    )
    for name in config.networks:
        for result in measure(name, config):
            table.add_row(
                name,
                result.format,
                f"{result.size / 2**20:.2f} MiB",
                f"{result.write_seconds:.1f} s",
                f"{result.load_seconds * 1e3:.0f} ms",
                f"{result.first_seconds:.2f} s",
                f"{result.later_seconds * 1e3:.1f} ms",
                f"{result.difference:.2g}",
                f"{result.scale:.2g}",
            )
    yield table
