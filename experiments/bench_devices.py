"""A training step on 1 to 8 devices, with H2SPG and without: see `benchmarks/devices.py`."""

import jax

from experiments.benchmarks import devices
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Runs the benchmark with the command line's settings."""
    config = parse(devices.Config, "bench_devices", devices.__doc__)
    jax.config.update("jax_num_cpu_devices", max(config.devices))  # of no effect where there are others
    run_command(lambda: publish(devices.run(config), config.output))


if __name__ == "__main__":
    main()
