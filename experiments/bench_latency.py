"""Whether the time of sub-networks is what was predicted of them: see `benchmarks/latency.py`."""

from experiments.benchmarks import latency
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(latency.Config, "bench_latency", latency.__doc__)
    run_command(lambda: publish(latency.run(config), config.output))


if __name__ == "__main__":
    main()
