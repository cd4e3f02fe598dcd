"""What searches found as a page, written from the lines that the command has recorded."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.cli import command_line
from experiments.common.errors import ConfigError
from experiments.common.files import write_atomically
from experiments.common.lines import read_json_lines
from experiments.common.text import markdown_table, mean_text
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
    return [line for _, line in read_json_lines(path, _checked, "a training")]


def _checked(line: Line) -> Line:
    line["score"], line["seed"], line["accuracy"], line["rank"], line["rises"], line["settings"]
    cell_from_string(line["cell"])
    return line


def write_page(results: Path, table: Table) -> Path:
    """Writes what all lines of a results file say as a page beside it, and returns its path.

    Raises:
        ConfigError: there are no lines, or one is no record of a training.
    """
    if not (lines := read_lines(results)):
        raise ConfigError(f"{results} holds no lines: give seeds to search with")
    by_settings: dict[str, list[Line]] = {}
    for line in lines:
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
            cells.append((f"{score}, mean", f"{len(own)} seeds", mean_text([line["accuracy"] for line in own]), ""))
    of_random = table.of_random_choice
    cells.append(("random, mean", f"all {len(of_random):,}", mean_text(of_random.tolist()), ""))
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
    """Returns the command that settings were asked for with."""
    return command_line("nasbench201", settings, dataclasses.asdict(Settings()))
