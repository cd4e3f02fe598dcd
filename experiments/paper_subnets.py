"""Sub-networks of the papers' sizes, found in the search spaces of `models`: see `benchmarks/paper_subnets.py`."""

from experiments.benchmarks import paper_subnets
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs what the command line asks for."""
    config = parse(paper_subnets.Config, "paper_subnets", paper_subnets.Config.__doc__)
    run_command(lambda: paper_subnets.run(config))


if __name__ == "__main__":
    main()
