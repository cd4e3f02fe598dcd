"""The oracle that selections are judged by, from the command line: `python -m experiments.oracle --help`."""

import dataclasses
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.common.cli import run_command, usage_name
from experiments.common.errors import ConfigError
from experiments.oracle.pages import network_page, write_pages
from experiments.oracle.plan import Plan, perform
from experiments.oracle.settings import PRESETS, Settings, changes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle:
    """Trains sets of groups of one network from one snapshot, and judges what scores would have chosen.

    Every training is a line in a results file; what is recorded is not trained again, so that a command that was
    interrupted goes on where it was when it is given again.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    network: tyro.conf.Suppress[str] = ""
    """Name of the preset."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds. All sets are trained with the first one, the best and the chosen ones with all."""
    num_best: int = 6
    """How many of the best sets within each budget are trained with all seeds: by their mean, which each training may
    change, so that seeds are added until the best have all."""
    processes: int = 1
    """Train so many sets at a time, in processes of their own, each on one core."""
    results: Path = Path("experiments/results/oracle")
    """Folder of the results."""
    output_dir: Path = Path("runs/oracle")
    """Folder of the snapshots."""

    def __post_init__(self) -> None:
        """Refuses what no oracle could do."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if self.num_best < 1 or self.processes < 1:
            raise ConfigError("num_best and processes must be at least 1")


def run(oracle: Oracle, command: str) -> None:
    """Trains what is not recorded yet, prints what came of it, and writes it down.

    Args:
        oracle: the settings.
        command: what was asked for, for the records.
    """
    settings = oracle.settings
    plan = Plan(
        oracle.network,
        settings,
        oracle.seeds,
        oracle.num_best,
        oracle.results / f"{oracle.network}.jsonl",
        oracle.output_dir / f"{oracle.network}-{settings.fingerprint}",
        command,
        changes(PRESETS[oracle.network][1], settings),
    )
    judgement = perform(plan, oracle.processes)
    print(network_page(judgement))
    print(f"Written in {', '.join(map(str, write_pages(judgement, oracle.results)))}")


def main() -> None:
    """Judges the network that the command line asks for."""
    # Errors in the settings themselves are found while the command line is read.
    run_command(lambda: run(_parse(), _command()))


def _parse() -> Oracle:
    presets = {name: (text, Oracle(settings=settings, network=name)) for name, (text, settings) in PRESETS.items()}
    return tyro.extras.overridable_config_cli(presets, prog=usage_name("oracle"), description=__doc__)


def _command() -> str:
    """Returns the command line; the folder of the data is a matter of the machine."""
    flags = os.environ.get("XLA_FLAGS")
    given = shlex.join(["python", "-m", "experiments.oracle", *sys.argv[1:]])
    line = re.sub(r" --data\.data-dir[ =]('[^']*'|\S+)", "", given)
    return (f"XLA_FLAGS={shlex.quote(flags)} " if flags else "") + line


if __name__ == "__main__":
    main()
