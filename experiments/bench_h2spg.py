"""What H2SPG costs, and what its judgement of validity is worth: see `benchmarks/h2spg.py`."""

from experiments.benchmarks import h2spg
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(h2spg.Config, "bench_h2spg", h2spg.__doc__)
    run_command(lambda: publish(h2spg.run(config), config.output))


if __name__ == "__main__":
    main()
