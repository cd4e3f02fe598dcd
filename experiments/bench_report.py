"""How large and how quick the report of a network is, in a real browser: see `benchmarks/report.py`."""

import dataclasses
import json

from experiments.benchmarks import report
from experiments.common.cli import parse, run_command


def main() -> None:
    """Prints the figures of the network that the command line names."""
    config = parse(report.Config, "bench_report", report.Config.__doc__)
    run_command(lambda: print(json.dumps(dataclasses.asdict(report.run(config)), indent=2)))


if __name__ == "__main__":
    main()
