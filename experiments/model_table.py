"""Sizes of the networks in `models` and of their search spaces: see `benchmarks/model_table.py`."""

from experiments.benchmarks import model_table
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs what the command line asks for."""
    config = parse(model_table.Config, "model_table", model_table.Config.__doc__)
    run_command(lambda: model_table.run(config))


if __name__ == "__main__":
    main()
