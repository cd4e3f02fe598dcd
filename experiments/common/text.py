"""Tables and figures as people read them."""

from collections.abc import Sequence

import numpy as np
import rich
from rich.measure import Measurement
from rich.table import Table

_WIDER_THAN_ANY_TEXT = 100_000


def time_text(time: float, decimals: int = 1) -> str:
    """Returns a time with so many decimals, or with two digits where these would show next to nothing.

    Example:
        >>> time_text(28.72), time_text(0.0432), time_text(0.0432, 2), time_text(0.00071, 2)
        ('28.7', '0.043', '0.04', '0.00071')
    """
    return f"{time:.{decimals}f}" if time >= 10**-decimals or not time else f"{time:.2g}"


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """Returns a mean and, of several values, the standard deviation.

    Example:
        >>> mean_text([90.0, 91.0, 92.0]), mean_text([2.5], 3)
        ('91.00 ± 1.00', '2.500')
    """
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


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


def show(table: Table) -> None:
    """Prints a table as wide as the terminal, or as wide as its words need it: none of them is ever cut off."""
    console = rich.get_console()
    unlimited = console.options.update(width=_WIDER_THAN_ANY_TEXT)
    least, most = [], []
    for column in table.columns:
        texts = [Measurement.get(console, unlimited, text) for text in (column.header, *column.cells)]
        least.append(max(text.minimum for text in texts))
        most.append(max(text.maximum for text in texts))
    frame = Measurement.get(console, unlimited, table).maximum - sum(most)
    widths = _shared_out(console.width - frame, least, most)
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    table.width = frame + sum(widths)
    console.print(table, crop=False)


def _shared_out(available: int, least: list[int], most: list[int]) -> list[int]:
    """Returns widths between the least and the most that columns need, as even as what is available allows."""
    widths = list(least)
    for _ in range(available - sum(least)):
        growing = [place for place, width in enumerate(widths) if width < most[place]]
        if growing:
            widths[min(growing, key=widths.__getitem__)] += 1
    return widths
