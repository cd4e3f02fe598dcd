"""Collects what a machine with a GPU and without a network lacks: see `gpu/bundling.py`."""

from experiments.common.cli import parse, run_command
from experiments.gpu import bundling


def main() -> None:
    """Collects what the command line asks for."""
    run_command(lambda: bundling.run(parse(bundling.Bundle, "bundle_gpu")))


if __name__ == "__main__":
    main()
