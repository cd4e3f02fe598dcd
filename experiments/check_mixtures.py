"""Whether random sub-networks are exact and as large as predicted: see `benchmarks/mixtures.py`."""

from experiments.benchmarks import mixtures
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs what the command line asks for."""
    config = parse(mixtures.Config, "check_mixtures", mixtures.__doc__)
    run_command(lambda: mixtures.run(config))


if __name__ == "__main__":
    main()
