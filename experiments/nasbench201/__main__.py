"""Cells of NAS-Bench-201 from one training each, looked up: `python -m experiments.nasbench201 --help`."""

import dataclasses
import statistics
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.common.cli import check_names, parse, run_command
from experiments.common.lines import append_json_line
from experiments.nasbench201.page import rises_table, write_page
from experiments.nasbench201.search import Search, Settings
from experiments.nasbench201.table import Table, look_up, read_table
from jasgnas.optimizer.scores import SCORES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains super-networks, reads the cell off each, and looks its published accuracy on CIFAR-10 up."""

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds, one training each; without any, only the page is written anew."""
    score: str = "gate"
    """The score to select by; the guide on gates says what the others find."""
    other_scores: tuple[str, ...] = ()
    """Scores to train with the first seed alone, for comparison."""
    table: Path | None = None
    """File of the table; by default that of the package analog-nasbench."""
    results: Path | None = None
    """File to which a line of JSON is added for every training; a page is written beside it from all its lines."""


def run(command: Command) -> None:
    """Trains, looks up and prints; records each training as soon as it has ended, and writes the page.

    Raises:
        ConfigError: there is no such score; there are no recorded lines, or one is damaged.
        DataError: there is no table, or no data set.
        DivergedError: a loss became NaN or infinite.
        OSError: the lines or the page cannot be written.
    """
    check_names("score", (command.score, *command.other_scores), SCORES)
    table = read_table(command.table)
    if command.seeds:
        _search(command, table)
    if command.results is not None:
        print(f"Written in {write_page(command.results, table)}")


def _search(command: Command, table: Table) -> None:
    """Trains, looks up, prints and records."""
    search = Search(command.settings)
    settings = dataclasses.asdict(command.settings)
    del settings["data_dir"], settings["files"]  # are this machine's
    accuracies = []
    trainings = [(command.score, seed) for seed in command.seeds]
    trainings += [(score, command.seeds[0]) for score in command.other_scores]
    for number, (score, seed) in enumerate(trainings):
        found = search.train(seed, score)
        looked_up = look_up(table, found.cell)
        line = {"score": score, "seed": seed, **looked_up, "loss": found.loss, "seconds": found.seconds}
        line |= {"rises": found.rises, "settings": settings}
        print(_row(score, seed, looked_up), f"{found.seconds:.0f} s", rises_table(line), sep="\n", flush=True)
        if command.results is not None:
            append_json_line(command.results, line)
        if number < len(command.seeds):
            accuracies.append(looked_up["accuracy"])
    for seed in command.seeds:
        print(_row("random", seed, look_up(table, search.random_cell(seed))))
    of_random = table.of_random_choice
    median, ninetieth, best = map(table.percentile, (50, 90, 100))
    print(
        f"{command.score}: mean {statistics.fmean(accuracies):.2f} %, least {min(accuracies):.2f} %. Random: mean "
        f"{of_random.mean():.2f} %, median {statistics.median(of_random):.2f} %. All cells: median {median:.2f} %, "
        f"90th percentile {ninetieth:.2f} %, best {best:.2f} %."
    )


def _row(score: str, seed: int, found: dict[str, Any]) -> str:
    return f"{score:<10} seed {seed}: {found['accuracy']:.2f} %, rank {found['rank']:,} of 15,625  {found['cell']}"


def main() -> None:
    """Does what the command line asks for."""
    run_command(lambda: run(parse(Command, "nasbench201")))


if __name__ == "__main__":
    main()
