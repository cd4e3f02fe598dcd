"""What the commands of this package share: mistakes end with one clear line and a non-zero exit code."""

import sys
from collections.abc import Callable

import jasgnas
from experiments.errors import ExperimentError


def run_command(command: Callable[[], object]) -> None:
    """Runs a command; what went wrong through no fault of the code is told in one line."""
    try:
        command()
    except ExperimentError as error:
        _stop(error, error.exit_code)
    except (jasgnas.JasgnasError, OSError) as error:
        _stop(error, 1)


def _stop(error: Exception, exit_code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(exit_code)
