"""What came of oracles as tables for the terminal and for the README, and as plots."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.common.files import write_atomically
from experiments.common.plots import new_figure, save_svg
from experiments.common.text import markdown_table, mean_text
from experiments.oracle.judge import Spread, Verdict
from experiments.oracle.plan import Judgement
from experiments.oracle.records import ScoresRecord
from jasgnas.optimizer.scores import SCORES

SUMMARY = "oracle.md"
"""Name of the page on all networks in the folder of results."""

_UNCHECKED = (
    "`hierarchical=False` takes groups by falling score until the budget is met, whether a network is left or not; "
    "where none is, the accuracy is that of chance."
)

_LEGEND = (
    "Regret in points of accuracy: best set within the budget, by the mean over the seeds, minus the chosen one, at "
    "the same seed, so that it can be negative. Percentile: other sets within the budget that are worse. A set of one "
    f"seed counts at the others as that seed and their mean difference suggest. {_UNCHECKED}"
)


def correlations(lines: Iterable[ScoresRecord]) -> dict[float, dict[str, list[float]]]:
    """Returns Spearman's correlation of scores with what the loss says, by point and by name, one for each seed.

    What is correlated is how much a score wants a group to stay, and how much the loss on batches held out rises
    without that group alone: 1 is a score that ranks the groups as the loss does.
    """
    found: dict[float, dict[str, list[float]]] = {}
    for line in sorted(lines, key=lambda line: (line.point, line.seed)):
        for name, scores in line.scores.items():
            correlation = stats.spearmanr(-np.array(scores), line.loss_rises).statistic
            found.setdefault(line.point, {}).setdefault(name, []).append(float(correlation))
    return found


def network_page(judgement: Judgement) -> str:
    """Returns what came of one network, as Markdown."""
    full = list(judgement.full.values())
    parts = [
        f"### {judgement.network}",
        f"{_sets_text(judgement)} The full network has {mean_text(full, 2)} %.",
        _LEGEND,
        spread_table(judgement.spreads),
        *(_verdicts_table(judgement, budget) for budget in judgement.spreads),
        "Rank correlation of the scores with the measured rise of the loss when one structure goes:",
        correlation_table(correlations(judgement.results.scores.values())),
    ]
    return "\n\n".join(parts)


def _sets_text(judgement: Judgement) -> str:
    """Says which sets were trained, with how many seeds, and which of them what is said of sets in general is over."""
    number, seeds = len(judgement.sets), len(judgement.full)
    with_all = sum(len(own) == seeds for own in judgement.accuracies.values())
    text = f"{number} sets, {with_all} of them trained with all seeds ({seeds}) and the others with the first: "
    if judgement.drawn is None:
        return text + "all valid ones. `random` is the mean over the maximal sets within the budget."
    return text + (
        f"{len(judgement.drawn)} drawn at random, the others chosen by scores. Median, percentiles and `random`, the "
        "mean, are over the sets drawn alone; the best set, and those of most and fewest parameters, are sought among "
        "all."
    )


def spread_table(spreads: Mapping[float, Spread]) -> str:
    """Returns the test of whether the choice matters, as Markdown."""
    lines = [
        (
            f"{budget:.0%} of the multiply-adds",
            str(spread.num_sets),
            f"{spread.best:.2f}",
            f"{spread.median:.2f}",
            f"{spread.over_seeds:.2f}",
            "" if np.isnan(spread.ratio) else f"{spread.ratio:.1f}",
            "yes" if spread.passes else "no",
        )
        for budget, spread in spreads.items()
    ]
    headings = ("sets within", "number", "best, %", "median, %", "sd over seeds", "best − median in sd", "at least 3")
    return markdown_table(headings, *lines)


def correlation_table(found: Mapping[float, Mapping[str, Sequence[float]]]) -> str:
    """Returns rank correlations, mean ± standard deviation over the seeds, as Markdown."""
    headings = ("score", *(f"after {point:.0%} of the steps" for point in found))
    lines = [(name, *(mean_text(by_name[name], 2) for by_name in found.values())) for name in SCORES]
    return markdown_table(headings, *lines)


def plot_correlations(network: str, found: Mapping[float, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draws the rank correlations over the training.

    Raises:
        ConfigError: Matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = new_figure(5, 3.2)
    axes = figure.subplots()
    points = 100 * np.array(list(found))
    for name in SCORES:
        values = [by_name[name] for by_name in found.values()]
        deviations = [np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in values]
        axes.errorbar(points, [np.mean(each) for each in values], deviations, fmt=".-", capsize=3, label=name)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="part of the training, %", ylabel="rank correlation with the loss", ylim=(-1.05, 1.05))
    axes.set_title(network)
    axes.legend(fontsize="x-small", ncols=2)
    save_svg(figure, f"{network} correlations", path)


def write_pages(judgement: Judgement, folder: Path) -> list[Path]:
    """Writes what came of a network as Markdown, JSON and SVG, and the page on all networks in the folder anew.

    Raises:
        ConfigError: Matplotlib is not installed.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = correlations(judgement.results.scores.values())
    names = [f"{judgement.network}.md", f"{judgement.network}.json", f"{judgement.network}.svg", SUMMARY]
    page, record, drawing, summary = paths = [folder / name for name in names]
    write_atomically(page, network_page(judgement) + "\n")
    write_atomically(record, json.dumps(_record(judgement), indent=1) + "\n")
    plot_correlations(judgement.network, found, drawing)
    write_atomically(summary, summary_page([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]))
    return paths


def summary_page(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the regrets of all ways to choose on all networks, at the budgets at which choices matter, as Markdown.

    Args:
        records: one for each network, see `write_pages`.
    """
    labels = dict.fromkeys(verdict["label"] for record in records for verdict in record["verdicts"])
    headings = ("choice", *(record["network"] for record in records))
    spreads: list[tuple[str, ...]] = [
        ("best − median in sd over seeds", *(_ratios(record) for record in records)),
        ("budgets at which that is at least 3", *(_passing(record) for record in records)),
    ]
    lines = [(label, *(_regrets_text(_of_label(record, label)) for record in records)) for label in labels]
    legend = (
        "Regret in points of accuracy: best set within the budget minus the chosen one, at the same seed; median, and "
        "in brackets the mean, over seeds and those budgets, and the mean percentile: other sets within the budget "
        "that are worse. `random` is the mean over the maximal sets within the budget, of all valid sets or, where "
        f"there are too many, of those drawn at random, without the ones that scores chose. {_UNCHECKED}"
    )
    return "\n\n".join([markdown_table(headings, *spreads, *lines), legend]) + "\n"


def _verdicts_table(judgement: Judgement, budget: float) -> str:
    verdicts = [verdict for verdict in judgement.verdicts if verdict.budget == budget]
    headings = (f"within {budget:.0%}", "regret", "each seed", "percentile", "removed at the first seed")
    return markdown_table(headings, *(_verdict_line(judgement, verdict) for verdict in verdicts))


def _verdict_line(judgement: Judgement, verdict: Verdict) -> tuple[str, ...]:
    if verdict.spread is not None:
        regret = f"{np.mean(verdict.regrets):.2f} ± {verdict.spread:.2f}"
        removed = ""
    else:
        regret = f"{np.mean(verdict.regrets):.2f}"
        first = next(iter(judgement.chosen[verdict.budget][verdict.label].values()))
        removed = " ".join(map(str, first))
    return (
        verdict.label + (f" (no network with {verdict.num_invalid} seeds)" if verdict.num_invalid else ""),
        regret,
        ", ".join(f"{each:.2f}" for each in verdict.regrets),
        f"{np.mean(verdict.percentiles):.0f}",
        removed,
    )


def _record(judgement: Judgement) -> dict[str, Any]:
    return {
        "network": judgement.network,
        "spreads": {
            str(budget): spread._asdict()
            | {"ratio": spread.ratio if np.isfinite(spread.ratio) else None, "passes": spread.passes}
            for budget, spread in judgement.spreads.items()
        },
        "verdicts": [verdict._asdict() for verdict in judgement.verdicts],
        "correlations": {str(point): found for point, found in correlations(judgement.results.scores.values()).items()},
    }


def _passing(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{float(each):.0%}" for each, spread in record["spreads"].items() if spread["passes"]) or "none"


def _ratios(record: Mapping[str, Any]) -> str:
    ratios = [spread["ratio"] for spread in record["spreads"].values()]
    return ", ".join("" if ratio is None else f"{ratio:.1f}" for ratio in ratios)


def _of_label(record: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    """Returns the verdicts on a way to choose at those budgets at which sets can be told apart."""
    passing = [float(budget) for budget, spread in record["spreads"].items() if spread["passes"]]
    return [verdict for verdict in record["verdicts"] if verdict["label"] == label and verdict["budget"] in passing]


def _regrets_text(verdicts: Sequence[Mapping[str, Any]]) -> str:
    regrets = [regret for verdict in verdicts for regret in verdict["regrets"]]
    percentiles = [each for verdict in verdicts for each in verdict["percentiles"]]
    if not regrets:
        return ""
    return f"{np.median(regrets):.2f} ({np.mean(regrets):.2f}), {np.mean(percentiles):.0f}"
