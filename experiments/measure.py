"""What the benchmarks share: interleaved timing, facts about the machine, and results in a file."""

import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from rich.table import Table

from experiments.cli import show

T = TypeVar("T")


def interleaved_seconds(runs: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 1) -> dict[str, float]:
    """Returns the median seconds of each of several functions, called in turns so that a busy machine slows all alike.

    Args:
        runs: the functions; what they return is waited for.
        repeats: number of timed rounds; each starts with another function.
        warm_up: rounds before these that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(-warm_up, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def in_fresh_process(function: Callable[..., T], *args: Any) -> tuple[T, float]:
    """Returns what a function returns, and the peak memory in MiB of the process of its own that it is called in.

    Args:
        function: a function of a module, so that the process finds it; nothing compiled before is there.
        *args: its arguments.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_peak_memory, function, *args).result()


def _with_peak_memory(function: Callable[..., T], *args: Any) -> tuple[T, float]:
    result = function(*args)
    unit = 1 if platform.system() == "Darwin" else 2**10  # bytes there, KiB elsewhere
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def machine_facts() -> dict[str, Any]:
    """Returns what a figure depends on beside the code: processor, cores, load, and versions."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax")},
    }


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def time_text(time: float, decimals: int = 1) -> str:
    """Returns a time with so many decimals, or with two digits where these would show next to nothing.

    Example:
        >>> time_text(28.72), time_text(0.0432), time_text(0.0432, 2), time_text(0.00071, 2)
        ('28.7', '0.043', '0.04', '0.00071')
    """
    return f"{time:.{decimals}f}" if time >= 10**-decimals or not time else f"{time:.2g}"


def publish(tables: Iterable[Table], path: Path | None) -> None:
    """Prints tables as they come, and writes them and the facts about the machine to a JSON file after each.

    Args:
        tables: the tables.
        path: the file, or None for none. An interrupted write leaves the old one.
    """
    results: dict[str, Any] = {"machine": machine_facts(), "tables": []}
    for table in tables:
        show(table)
        columns = {str(column.header): list(column.cells) for column in table.columns}
        results["tables"].append({"title": str(table.title), "caption": table.caption, "columns": columns})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(results, indent=2) + "\n")
            partial.replace(path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
