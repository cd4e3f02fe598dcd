"""What the commands of this package share: how they are called, names, and mistakes told in one clear line."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import tyro

import jasgnas
from experiments.common.errors import ConfigError, ExperimentError

T = TypeVar("T")


def usage_name(module: str) -> str:
    """Returns how a command is called, which usage lines and errors name it by."""
    return f"python -m experiments.{module}"


def command_line(module: str, given: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Returns the command that asks for settings, by name: those that are not its own defaults.

    Example:
        >>> command_line("train", {"num_epochs": 3, "seed": 0}, {"num_epochs": 5, "seed": 0})
        'python -m experiments.train --num-epochs 3'
    """
    changed = {name: value for name, value in given.items() if name not in defaults or value != defaults[name]}
    return " ".join([usage_name(module), *(f"--{name.replace('_', '-')} {value}" for name, value in changed.items())])


def parse(kind: type[T], module: str, description: str | None = None) -> T:
    """Returns the settings that the command line of `python -m experiments.<module>` asks for."""
    return tyro.cli(kind, prog=usage_name(module), description=description)


def run_command(command: Callable[[], object]) -> None:
    """Runs a command; what went wrong through no fault of the code is told in one line."""
    try:
        command()
    except ExperimentError as error:
        _stop(error, error.exit_code)
    except (jasgnas.JasgnasError, OSError) as error:
        _stop(error, 1)
    except KeyboardInterrupt:
        _stop("interrupted", 128 + signal.SIGINT)


def find(kind: str, name: str, named: Mapping[str, T]) -> T:
    """Returns what has a name.

    Raises:
        ConfigError: nothing has; the message gives the nearest names.
    """
    check_names(kind, (name,), named)
    return named[name]


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that nothing has.

    Raises:
        ConfigError: the message gives the nearest names.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"there is no {kind} {name!r}: {hint}")


def _stop(error: Exception | str, exit_code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(exit_code)
