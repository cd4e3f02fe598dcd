"""What searches found as a page, written from the lines that the command has recorded."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cli import usage_name
from experiments.common.errors import ConfigError
from experiments.common.files import write_atomically
from experiments.common.text import markdown_table
from experiments.nasbench201.search import Settings
from experiments.nasbench201.table import Table
from models.nasbench201 import EDGES, OPERATIONS, cell_from_string

PAGE = "nasbench201.md"
"""Name of the page beside the lines."""

Line = Mapping[str, Any]
"""One training: its score, seed, settings, what it found, and the `rises` of `search.Found`."""


def read_lines(path: Path) -> list[Line]:
    """Reads the lines of a results file.

    Raises:
        ConfigError: a line is no record of a training.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            line["score"], line["seed"], line["accuracy"], line["rank"], line["rises"], line["settings"]
            cell_from_string(line["cell"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"line {number} of {path} is no record of a training: {error!r}") from None
        lines.append(line)
    return lines


def write_page(results: Path, table: Table) -> Path:
    """Writes what all lines of a results file say as a page beside it, and returns its path."""
    by_settings: dict[str, list[Line]] = {}
    for line in read_lines(results):
        by_settings.setdefault(json.dumps(line["settings"]), []).append(line)
    parts = ["# Searches of NAS-Bench-201", _legend(table), *(_section(own, table) for own in by_settings.values())]
    path = results.with_name(PAGE)
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def accuracy_table(lines: Sequence[Line], table: Table) -> str:
    """Returns the accuracies of the cells that were found, and those of random ones, as Markdown."""
    cells = []
    for score, own in _by_score(lines):
        cells += [(score, str(line["seed"]), f"{line['accuracy']:.2f}", f"{line['rank']:,}") for line in own]
        if len(own) > 1:
            cells.append((f"{score}, mean", f"{len(own)} seeds", _mean_text([line["accuracy"] for line in own]), ""))
    of_random = table.of_random_choice
    cells.append(("random, mean", f"all {len(of_random):,}", _mean_text(of_random), ""))
    median = statistics.median(of_random)
    cells.append(("random, median", "", f"{median:.2f}", f"{table.rank(median):,}"))
    return markdown_table(("score", "seed", "accuracy, %", "rank"), *cells)


def rises_table(line: Line) -> str:
    """Returns by how much the loss rises without each operation, edge by edge, as Markdown; bold is what stays."""
    cell = cell_from_string(line["cell"])
    names = [name for name in OPERATIONS if name != "none"]
    rows = []
    for source, target in EDGES:
        rises = [f"{line['rises'][f'{source}_{target}/{name}']:.3f}" for name in names]
        left = cell[source, target]
        rows.append(
            [f"{source} → {target}", *(f"**{r}**" if n == left else r for n, r in zip(names, rises, strict=True))]
        )
    return markdown_table(("edge", *names), *rows)


def _legend(table: Table) -> str:
    median, ninetieth, best = map(table.percentile, (50, 90, 100))
    return (
        f"Accuracy on CIFAR-10 and rank among all 15,625 cells, looked up at full scale. Of all cells the median is "
        f"{median:.2f} %, the 90th percentile {ninetieth:.2f} %, the best {best:.2f} %. `random` are all cells with an "
        "operation on every edge, of which random scores choose any alike.\n\n"
        "Below, for each seed: minus the score of each operation when the selection was made, which for `ablation` is "
        "the rise of the training loss without that operation in any cell, measured beside all that was planned to go. "
        "What stays is bold; an edge without anything bold has lost all five. The set that goes is the one whose own "
        "rise was the least of those that were tried, so that what stays need not be the largest of its edge."
    )


def _section(lines: Sequence[Line], table: Table) -> str:
    parts = [f"## `{_command(lines[0]['settings'])}`", accuracy_table(lines, table)]
    for score, own in _by_score(lines):
        for line in own:
            parts += [f"### {score}, seed {line['seed']}: {line['accuracy']:.2f} %", rises_table(line)]
    return "\n\n".join(parts)


def _by_score(lines: Iterable[Line]) -> list[tuple[str, list[Line]]]:
    """Returns the lines of each score by seed, the scores in the order of their first lines."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["score"], []).append(line)
    return [(score, sorted(own, key=lambda line: line["seed"])) for score, own in found.items()]


def _command(settings: Mapping[str, Any]) -> str:
    """Returns the command with which settings are asked for: those that are not its own defaults."""
    own = dataclasses.asdict(Settings())
    changed = {name: value for name, value in settings.items() if value != own.get(name)}
    return " ".join([usage_name("nasbench201"), *(f"--{n.replace('_', '-')} {v}" for n, v in changed.items())])


def _mean_text(values: Iterable[float]) -> str:
    own = np.array([*values])
    return f"{own.mean():.2f} ± {own.std(ddof=1):.2f}"
