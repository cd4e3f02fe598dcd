"""Time and memory of the analysis: see `benchmarks/analysis.py`."""

from experiments.benchmarks import analysis
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(analysis.Config, "bench_analysis", analysis.__doc__)
    run_command(lambda: publish(analysis.run(config), config.output))


if __name__ == "__main__":
    main()
