"""The main job: train DemoNet on the embedded digits in full and with H2SPG, and compare the two.

It is `experiments.train digits`, under a name of its own so that a newcomer has nothing to choose.
"""

import tyro

from experiments.common.cli import run_command, usage_name
from experiments.engine.config import Config
from experiments.engine.presets import DIGITS, Presets, read_config
from experiments.train import run_and_report


def main() -> None:
    """Runs the job with the command line's settings."""
    run_command(lambda: run_and_report(read_config({"digits": ("the main job", DIGITS)}, _parse)))


def _parse(presets: Presets) -> Config:
    ((_, config),) = presets.values()
    return tyro.cli(Config, prog=usage_name("demo"), default=config)


if __name__ == "__main__":
    main()
