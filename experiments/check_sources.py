"""Whether networks written as source compute the same, and how long they are: see `benchmarks/sources.py`."""

from experiments.benchmarks import sources
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs what the command line asks for."""
    config = parse(sources.Config, "check_sources", sources.__doc__)
    run_command(lambda: sources.run(config))


if __name__ == "__main__":
    main()
