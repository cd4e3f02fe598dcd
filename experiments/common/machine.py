"""The machine that figures are taken on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax


def machine_facts() -> dict[str, Any]:
    """Returns what a figure depends on beside the code: processor, cores, load, and versions."""
    return {
        "processor": _processor(),
        "cores": _usable_cores(),
        "load": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax")},
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
