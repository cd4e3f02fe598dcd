"""All benchmarks, one after another: `python -m experiments.benchmarks --data-dir DIR`.

Each prints its tables and writes them, with the facts about the machine, to a file of its own. Every ratio is of times
taken side by side in one process; for the times themselves the machine should have nothing else to do.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

from experiments.common.cli import check_names, parse, run_command

PARTS = {
    "training": "total time to a trained sub-network: shrinking, not shrinking, the full network alone",
    "h2spg": "overhead of the optimizer, and the share of valid selections without its hierarchy",
    "analysis": "time of the analysis by size of the network",
    "channels": "time of finding channels, up to a decoder of 7 billion parameters",
    "subnet": "time and memory of sub-networks beside the full network",
    "latency": "predicted and measured time of sub-networks, and of rounded widths",
    "saved": "saved sub-networks: sizes on disk, largest difference, time to load and of the first call",
    "devices": "a training step on 1 to 8 devices",
    "input": "images per second of the input pipelines beside the training steps, and the training loop's own time",
}
"""What each benchmark measures, by the name of its module."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs the benchmarks."""

    only: tuple[str, ...] = tuple(PARTS)
    """Which ones: training, h2spg, analysis, channels, subnet, latency, saved, devices, input."""
    data_dir: Path | None = None
    """Folder of the prepared data sets, for `training` and `input`."""
    output_dir: Path = Path("runs/benchmarks")
    """Folder for the results."""


def run(config: Config) -> None:
    """Runs each benchmark in a process of its own, so that none inherits another's memory or devices.

    Raises:
        ConfigError: there is no benchmark of a name.
        CalledProcessError: one of them failed.
    """
    check_names("benchmark", config.only, PARTS)
    for name in config.only:
        print(f"\n{name}: {PARTS[name]}", flush=True)
        command = [
            sys.executable,
            "-m",
            f"experiments.bench_{name}",
            "--output",
            str(config.output_dir / f"{name}.json"),
        ]
        if name in ("training", "input") and config.data_dir is not None:
            command += ["--data-dir", str(config.data_dir)]
        subprocess.run(command, check=True)


def main() -> None:
    """Runs the benchmarks that the command line asks for."""
    config = parse(Config, "benchmarks", __doc__)
    try:
        run_command(lambda: run(config))
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None


if __name__ == "__main__":
    main()
