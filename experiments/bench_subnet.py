"""How fast sub-networks run beside the full network, and in how much memory: see `benchmarks/subnet.py`."""

from experiments.benchmarks import subnet
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(subnet.Config, "bench_subnet", subnet.__doc__)
    run_command(lambda: publish(subnet.run(config), config.output))


if __name__ == "__main__":
    main()
