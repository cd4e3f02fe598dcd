"""How fast images come, against how fast a training step takes them: see `benchmarks/input.py`."""

from experiments.benchmarks import input as images
from experiments.benchmarks.measure import publish
from experiments.common.cli import parse, run_command


def main() -> None:
    """Measures what the command line asks for."""
    settings = parse(images.Settings, "bench_input", images.__doc__)
    run_command(lambda: publish(images.measure(settings), settings.output))


if __name__ == "__main__":
    main()
