"""Time and memory of finding channels: see `benchmarks/channels.py`."""

from experiments.benchmarks import channels
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(channels.Config, "bench_channels", channels.__doc__)
    run_command(lambda: publish(channels.run(config), config.output))


if __name__ == "__main__":
    main()
