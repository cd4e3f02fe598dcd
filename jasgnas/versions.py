"""The versions of what something was made with."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Returns the version of each package by its name, `unknown` where it is imported without being installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # imported from a checkout
            found[name] = "unknown"
    return found
