"""Reports that are printed and kept as Markdown."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

from experiments.measure import usable_cores


def markdown_table(*lines: Sequence[str]) -> str:
    """Returns a table with aligned columns, the first to the left and the others to the right.

    Args:
        *lines: cells of each line, the headings first.
    """
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def machine() -> dict[str, str]:
    """Returns the facts of the machine and the software that measurements depend on."""
    packages = {name: version(name) for name in ("jax", "flax")}
    return {"cores": str(usable_cores()), "Python": platform.python_version(), **packages}
