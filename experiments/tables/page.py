"""The results as a section of a page of the documentation, written from the results files alone."""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from experiments.common.errors import ConfigError
from experiments.common.text import markdown_table, time_text
from experiments.tables.ablations import ABLATIONS, ROW, SCALE, variant_name
from experiments.tables.jobs import VARIANTS
from experiments.tables.records import Line, Record, read_lines
from experiments.tables.rows import ROWS, Figures, Row
from experiments.tables.summary import Summary, enumeration, summaries

START, END = "<!-- results: written by `python -m experiments.tables page` -->", "<!-- end of results -->"
"""What the section stands between."""

MAIN_START = "<!-- main results: written by `python -m experiments.tables page` -->"
"""What the main results start with; they end as the section does."""

PAGE, README = Path("docs/results.md"), Path("README.md")
"""The page, and where the main results stand."""

TABLES, ABLATED = Path("experiments/results/tables.jsonl"), Path("experiments/results/ablations.jsonl")
"""Results files of the rows and of the ablations."""

PLOTS = Path("experiments/results/ablations")
"""Folder of the plots."""

_SMOKE = "smoke"
_MAIN_SCALES = r"full|control( with epochs \d+)?"
_BESIDE = {"h2spg-equal-time": "at equal time", "random": "random selection"}
"""Variants whose accuracies stand beside the sub-network's in the main results, and what they are called there."""

_HEADINGS = ("", "network", "M parameters", "M multiply-adds", "top-1 %", "steps", "seeds", "lines")


def section(tables: Path = TABLES, ablations: Path = ABLATED, page: Path = PAGE) -> str:
    """Returns the section, markers included.

    Args:
        tables: results of the rows.
        ablations: results of the ablations.
        page: the page that it is for; links start there.

    Raises:
        ConfigError: a results file is damaged.
    """
    found = summaries(read_lines(tables).values())
    parts = [START, _tables(_link(tables, page), found), _missing(found)]
    if ablated := summaries(read_lines(ablations).values()):
        parts.append(_ablations(_link(ablations, page), _link(PLOTS, page), ablated))
    return "\n\n".join([*filter(None, parts), END])


def main_results(tables: Path = TABLES) -> str:
    """Returns the table of full and sub-networks beside the papers', markers included.

    Of each row it has what was trained by the full recipe on the row's own data, or else at the scale `control`, of
    the most epochs: both in the same number of steps, and, where they were made, the trainings of equal time and with
    a random selection.
    """
    found = summaries(read_lines(tables).values())
    headings = (
        *("", "training images", "M parameters", "multiply-adds", "top-1 %", *_BESIDE.values(), "seeds", "device"),
        *("paper: M parameters", "top-1 %"),
    )
    cells: list[Sequence[str]] = []
    for row in ROWS.values():
        own = [summary for summary in of_row(found, row) if not summary.records[0].stands_in_for]
        for scale in sorted({summary.key.scale for summary in own if _is_main(summary)}, key=_preference):
            variants = {summary.key.variant: summary for summary in own if summary.key.scale == scale}
            full, sub = variants.get("full"), variants.get("h2spg")
            if full and sub:
                break
        else:
            continue
        share = np.mean([record.macs / record.full_macs for record in sub.records if record.macs and record.full_macs])
        (params, _, top1), (sub_params, _, sub_top1) = figures_text(row.full), figures_text(row.subnet)
        cells.append(
            (
                title(row, full.records[0]),
                full.images,
                f"{full.params} → {sub.params}",
                f"{100 * share:.0f} %",
                f"{full.accuracy} → {sub.accuracy}",
                *(_beside(variants.get(name), sub) for name in _BESIDE),
                sub.seeds,
                ", ".join(dict.fromkeys(filter(None, (record.device for record in full.records + sub.records)))),
                " → ".join(filter(None, (params, sub_params))),
                " → ".join(filter(None, (top1, sub_top1))),
            )
        )
    return "\n\n".join([MAIN_START, markdown_table(headings, *cells), END])


def _is_main(summary: Summary) -> bool:
    return re.fullmatch(_MAIN_SCALES, summary.key.scale) is not None


def _preference(scale: str) -> tuple[bool, int]:
    """Returns what sorts the scales of the main results, the best one first: `full`, then by falling epochs."""
    epochs = re.search(r"\d+", scale)
    return scale != "full", -int(epochs.group()) if epochs else 0


def _beside(other: Summary | None, sub: Summary) -> str:
    """Returns an accuracy that stands beside the sub-network's, with its seeds where they are others."""
    if other is None:
        return ""
    return other.accuracy if other.seeds == sub.seeds else f"{other.accuracy} (seeds {other.seeds})"


def replaced(text: str, new: str) -> str:
    """Returns a text with another section, which starts and ends with its markers.

    Raises:
        ConfigError: the text does not hold both markers.
    """
    first, last = new.splitlines()[0], new.splitlines()[-1]
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        raise ConfigError(f"there are no lines {first!r} and {last!r} to write the results between")
    return before + new + after


def title(row: Row, record: Record) -> str:
    """Returns what was trained, on what, and at which scale."""
    if record.stands_in_for:
        return f"{row.network} on {record.dataset}, which is not {row.dataset}; {record.scale}"
    return f"{row.network} on {row.dataset}, {record.scale}"


def of_row(found: Iterable[Summary], row: Row) -> list[Summary]:
    """Returns the summaries of a row, those of one scale and data set together, in the order of the variants."""
    own = [summary for summary in found if summary.key.row == row.preset]
    order = {name: place for place, name in enumerate(VARIANTS)}
    return sorted(own, key=lambda summary: (*_place(summary), order.get(summary.key.variant, len(order))))


def figures_text(figures: Figures) -> tuple[str, str, str]:
    """Returns what a paper reports: parameters, multiply-adds and accuracy, empty where it does not."""
    top5 = f" (top-5 {figures.top5:g})" if figures.top5 else ""
    params, macs, top1 = ("" if figure is None else f"{figure:g}" for figure in figures[:3])
    return params, macs, top1 + top5


def _link(path: Path, page: Path) -> Path:
    return Path(os.path.relpath(path, page.parent))


def _tables(path: Path, found: Sequence[Summary]) -> str:
    """Returns the table of all rows that were trained beyond smoke scale, and below it how each part was made."""
    cells: list[Sequence[str]] = []
    sources = []
    for row in ROWS.values():
        measured = [summary for summary in of_row(found, row) if not _is_smoke(summary)]
        if not measured:
            continue
        for label, figures in (("full network", row.full), ("sub-network", row.subnet)):
            if figures != Figures():
                cells.append((f"{row.network} on {row.dataset}, paper", label, *figures_text(figures), "", "", ""))
        for together in _parts(measured):
            name = title(row, together[0].records[0])
            cells += [(name, s.label, s.params, s.macs, s.accuracy, s.steps, s.seeds, s.numbers) for s in together]
            sources.append(f"- {name}: {_source(together)}")
    if not cells:
        return ""
    legend = (
        "Mean ± standard deviation over the seeds. Trainings of a part make the same number of steps, but for those of "
        "equal time, which make as many as last as long as the full network's: steps of both were timed in turns, and "
        "compilation and the construction of the sub-network are not counted. What is trained further starts from the "
        "full network of the same seed, and makes half as many epochs, but one at least, at a tenth of the learning "
        f"rate. The lines are those of [{path.name}]({path}), each with its settings, machine and command. A training "
        "fails where validity is ignored and no path is left from the input to the output."
    )
    return "\n\n".join([legend, markdown_table(_HEADINGS, *cells), "\n".join(sources)])


def _source(together: Sequence[Summary]) -> str:
    """Returns how the trainings of one row at one scale were made."""
    records = [record for summary in together for record in summary.records]
    whole = next((record for record in records if record.image_shape), records[0])
    hours = sum(record.seconds or 0 for record in records) / 3600
    size = "×".join(map(str, whole.image_shape or ()))
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(record.command for record in records))
    return (
        f"{whole.num_train or 0:,} training and {whole.num_test or 0:,} test images of {size} ({whole.origin}), "
        f"{whole.epochs} epochs, batches of {whole.batch_size}, {whole.num_steps or 0:,} steps; {whole.device} "
        f"({whole.machine['processor']}), jax {whole.machine['jax']}, {time_text(hours)} hours in all. {commands}"
    )


def _missing(found: Sequence[Summary]) -> str:
    """Returns which rows were not trained by the full recipe on their own data, and how they were instead."""
    texts = []
    for row in ROWS.values():
        own = of_row(found, row)
        if any(summary.key.scale == "full" and not summary.records[0].stands_in_for for summary in own):
            continue
        texts.append(f"{row.network} on {row.dataset} ({'; '.join(map(_instead, _parts(own))) or 'not run'})")
    if not texts:
        return ""
    return (
        f"**Not reproduced** by the full recipe on its own data: {', '.join(texts)}. "
        "Smoke scale shows that everything runs; its accuracies mean nothing."
    )


def _instead(together: Sequence[Summary]) -> str:
    """Returns at which scale a row was trained, and on what if not on its own data."""
    key, record = together[0].key, together[0].records[0]
    stand_in = f" with {key.dataset} in its place" if record.stands_in_for else ""
    return f"{key.scale}{stand_in}, {_line_numbers([line for summary in together for line in summary.lines])}"


def _ablations(path: Path, plots: Path, found: Sequence[Summary]) -> str:
    """Returns the table of the ablations; nothing if none was made at the scale that they are made at."""
    by_scale = [summary for summary in found if summary.key.row == ROW.preset and summary.key.scale == SCALE]
    by_variant = {summary.key.variant: summary for summary in by_scale}
    cells = []
    for name, ablation in ABLATIONS.items():
        label = f"[{ablation.label}]({plots / name}.svg)"
        for value in ablation.values:
            if summary := by_variant.get(variant_name(ablation, value)):
                cells.append((label, str(value), summary.params, summary.accuracy, summary.seeds, summary.numbers))
                label = ""
    if not cells:
        return ""
    full = by_variant.get("full")
    legend = f"**Ablations**, one setting at a time, on {ROW.network} made small (lines of [{path.name}]({path}))." + (
        f" The full network, of {full.params} M parameters, has {full.accuracy} % ({_line_numbers(full.lines)})."
        if full
        else ""
    )
    headings = ("varied", "value", "M parameters", "top-1 %", "seeds", "lines")
    return f"{legend}\n\n{markdown_table(headings, *cells)}"


def _line_numbers(lines: Sequence[Line]) -> str:
    return f"line{'s' if len(lines) > 1 else ''} {enumeration(line.number for line in lines)}"


def _parts(found: Iterable[Summary]) -> list[list[Summary]]:
    """Returns summaries in their order, those of one scale and data set together."""
    return [list(group) for _, group in groupby(found, _place)]


def _is_smoke(summary: Summary) -> bool:
    return summary.key.scale.startswith(_SMOKE)


def _place(summary: Summary) -> tuple[bool, str, str]:
    """Returns where a summary stands among those of its row."""
    return _is_smoke(summary), summary.key.scale, summary.key.dataset
