"""What a trained sub-network costs in time: see `benchmarks/training.py`."""

from experiments.benchmarks import training
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(training.Config, "bench_training", training.__doc__)
    run_command(lambda: publish(training.run(config), config.output, keep=True))


if __name__ == "__main__":
    main()
