"""What the benchmarks share: interleaved timing, processes of their own, and results in a file."""

import json
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from rich.table import Table

from experiments.common.files import write_atomically
from experiments.common.machine import machine_facts
from experiments.common.text import show

K = TypeVar("K")
T = TypeVar("T")

_TURNS = 5
"""Of each function in `least_seconds`."""


def interleaved_seconds(runs: Mapping[K, Callable[[], Any]], repeats: int, *, warm_up: int = 1) -> dict[K, float]:
    """Returns the median seconds of each of several functions, called in turns so that a busy machine slows all alike.

    Args:
        runs: the functions; what they return is waited for.
        repeats: number of timed rounds; each starts with another function.
        warm_up: rounds before these that do not count.
    """
    calls = interleaved_calls(runs, repeats, warm_up=warm_up)
    return {name: float(np.median(seconds)) for name, seconds in calls.items()}


def interleaved_calls(runs: Mapping[K, Callable[[], Any]], repeats: int, *, warm_up: int = 1) -> dict[K, list[float]]:
    """Returns the seconds of every call of several functions, called in turns as by `interleaved_seconds`."""
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(-warm_up, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def least_seconds(runs: Mapping[K, Callable[[], Any]], repeats: int) -> dict[K, float]:
    """Returns the least seconds of each of several functions, as of one that is called again and again.

    The functions take turns as in `interleaved_seconds`, each with several calls, of which the first does not count: it
    finds in the caches what another one has left there.

    Args:
        runs: the functions; what they return is waited for.
        repeats: number of timed calls in each turn.
    """
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    for _ in range(_TURNS):
        for name, run in runs.items():
            seconds[name].append(min(interleaved_calls({name: run}, repeats)[name]))
    return {name: min(values) for name, values in seconds.items()}


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


def publish(tables: Iterable[Table], path: Path | None, *, keep: bool = False) -> None:
    """Prints tables as they come, and writes them and the facts about the machine to a JSON file after each.

    Args:
        tables: the tables.
        path: the file, or None for none. An interrupted write leaves the old one.
        keep: whether tables of other titles that the file has already stay in it. Their captions should then say what
            they were measured on: the facts about the machine are those of the last command.
    """
    results: dict[str, Any] = {"machine": machine_facts(), "tables": []}
    if keep and path is not None and path.exists():
        results["tables"] = json.loads(path.read_text())["tables"]
    for table in tables:
        show(table)
        columns = {str(column.header): list(column.cells) for column in table.columns}
        others = [other for other in results["tables"] if not keep or other["title"] != str(table.title)]
        new = {"title": str(table.title), "caption": table.caption, "columns": columns}
        results["tables"] = [*others, new]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(results, indent=2) + "\n")
