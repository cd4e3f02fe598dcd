"""How large saved sub-networks are, how exact, and how soon they run: see `benchmarks/saved.py`."""

from experiments.benchmarks import saved
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(saved.Config, "bench_saved", saved.__doc__)
    run_command(lambda: publish(saved.run(config), config.output))


if __name__ == "__main__":
    main()
