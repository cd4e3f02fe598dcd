"""The papers' tables from the command line: `python -m experiments.tables --help`."""

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from experiments.common.cli import find, run_command, usage_name
from experiments.common.errors import ConfigError
from experiments.common.files import write_atomically
from experiments.common.text import show
from experiments.engine.config import ParallelConfig
from experiments.tables.ablations import ABLATIONS, ROW, SCALE, ablation_variants, plot
from experiments.tables.jobs import VARIANTS, Job, Variant, perform
from experiments.tables.page import (
    ABLATED,
    PAGE,
    PLOTS,
    README,
    TABLES,
    figures_text,
    main_results,
    of_row,
    replaced,
    section,
    title,
)
from experiments.tables.records import read_lines
from experiments.tables.rows import ROWS, Figures, Size
from experiments.tables.summary import Summary, summaries

_VARIANTS_HELP = (
    f"What to train: {', '.join(f'`{name}` ({variant.label})' for name, variant in VARIANTS.items())}. At equal time a "
    "training makes as many steps as last as long as the full network's; what is trained further starts from the full "
    "network that the same seed has trained."
)
"""Made of the variants themselves, so that none can be missing."""


@dataclasses.dataclass(frozen=True)
class List:
    """Lists the rows: what the papers report, and what was measured at which scale."""

    results: Path = TABLES
    """File of the results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainings:
    """What all trainings of a command have in common."""

    seeds: tuple[int, ...] = (0,)
    """Seeds; each is a training of every variant."""
    overrides: Annotated[Size, tyro.conf.arg(name="")] = Size()
    stand_in: str | None = None
    """Name of a prepared data set, or `digits`, to use in place of the row's own; results say so."""
    data_dir: Path | None = None
    """Folder of the TFDS copies; by default TFDS's own, ~/tensorflow_datasets or the variable TFDS_DATA_DIR."""
    output_dir: Path = Path("runs/tables")
    """Folder of the runs, each of which has one of its own."""
    parallel: ParallelConfig = ParallelConfig()
    quiet: bool = False
    """Plain lines instead of a live display."""
    again: bool = False
    """Train anew what is recorded already."""

    def jobs(self, row: str, scale: str, variants: Mapping[str, Variant], command: str) -> list[Job]:
        """Returns the trainings, seed by seed.

        Args:
            row: name of the row.
            scale: name of the scale.
            variants: the variants by name.
            command: what was asked for, without what is common to all trainings.
        """
        return [
            Job(
                find("row", row, ROWS),
                scale,
                variant,
                how,
                seed,
                self._command(command),
                self.overrides,
                self.stand_in,
                self.data_dir,
                self.output_dir,
                self.parallel,
                self.quiet,
            )
            for seed in self.seeds
            for variant, how in variants.items()
        ]

    def _command(self, command: str) -> str:
        """Returns the command line, without folders and looks."""
        parts = ["python", "-m", "experiments.tables", *command.split(), "--seeds", *map(str, self.seeds)]
        for name, value in self.overrides.given().items():
            values = [str(each) for item in value.items() for each in item] if isinstance(value, dict) else [str(value)]
            parts += [f"--{name.replace('_', '-')}", *values]
        if self.stand_in:
            parts += ["--stand-in", self.stand_in]
        flags = os.environ.get("XLA_FLAGS")
        return (f"XLA_FLAGS={shlex.quote(flags)} " if flags else "") + shlex.join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Trainings):
    """Trains the variants of a row with each seed, and appends one line per training to the results.

    A command that was interrupted goes on where it was when it is given again; what is recorded is not trained again.
    """

    row: tyro.conf.Positional[str]
    """Name of the row."""
    scale: str = "full"
    """`full` is the published recipe, `reduced` is for small machines, `control` compares selections on networks that
    their capacity limits, and `smoke` shows that everything runs."""
    variants: Annotated[tuple[str, ...], tyro.conf.arg(help=_VARIANTS_HELP)] = ("full", "h2spg")
    results: Path = TABLES
    """File that the results are appended to; several hosts must share it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablate(Trainings):
    """Varies one setting of H2SPG, appends one line per training to the results, and draws them."""

    name: tyro.conf.Positional[str]
    """What is varied: `warmup`, `settle`, `projection`, `target`, `score`, `epsilon` or `periods`."""
    results: Path = ABLATED
    """File that the results are appended to."""
    plots: Path = PLOTS
    """Folder of the plots."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slim(Trainings):
    """Compares removing structures, channels and both, at equal multiply-adds; appends one line per training."""

    rows: tuple[str, ...] = ("resnet18-cifar10", "stacked-unets-cifar10")
    """Names of the rows."""
    scale: str = "control"
    """Name of the scale."""
    shares: tuple[float, ...] = (0.5, 0.33)
    """Parts of the multiply-adds that may be left."""
    results: Path = TABLES
    """File that the results are appended to."""


@dataclasses.dataclass(frozen=True)
class Page:
    """Writes the results into a page of the documentation and the main ones into the README, between their markers."""

    page: Path = PAGE
    """The page."""
    readme: Path = README
    """The README."""
    tables: Path = TABLES
    """Results of the rows."""
    ablations: Path = ABLATED
    """Results of the ablations."""


def list_rows(command: List) -> None:
    """Prints the rows."""
    if not command.results.exists():
        raise ConfigError(f"there is no results file {command.results}; `run` makes it with its first training")
    found = summaries(read_lines(command.results).values())
    table = Table(title="The papers' tables", show_lines=True)
    for heading in ("row", "trained as", "reported", "measured"):
        table.add_column(heading)
    for row in ROWS.values():
        config = row.config
        recipe = f"{config.epochs} epochs, batch {config.batch_size}, {config.optimizer.name}; {row.recipe}"
        reported = "\n".join(
            f"{label}: {_reported(*figures_text(figures))}"
            for label, figures in (("full network", row.full), ("sub-network", row.subnet))
            if figures != Figures()
        )
        measured = "\n".join(map(_measured, of_row(found, row))) or "nothing"
        table.add_row(f"[bold]{row.preset}[/]\n{row.network} on {row.dataset}", recipe, reported, measured)
    show(table)


def run_row(command: Run) -> None:
    """Trains the variants of a row."""
    variants = {name: find("variant", name, VARIANTS) for name in command.variants}
    find("scale", command.scale, find("row", command.row, ROWS).sizes)
    asked = f"run {command.row} --scale {command.scale} --variants {' '.join(variants)}"
    jobs = command.jobs(command.row, command.scale, variants, asked)
    _show(_performed(jobs, command.results, command.again))


def ablate(command: Ablate) -> None:
    """Makes an ablation."""
    variants = ablation_variants(find("ablation", command.name, ABLATIONS))
    jobs = command.jobs(ROW.preset, SCALE, variants, f"ablate {command.name}")
    found = _performed(jobs, command.results, command.again)
    _show(found)
    path = command.plots / f"{command.name}.svg"
    plot(command.name, found, path)
    print(f"Drawn in {path}")


def slim(command: Slim) -> None:
    """Compares what narrows with what erases."""
    removing = {name: VARIANTS[name] for name in ("erase", "slim", "both")}
    jobs = []
    for row in command.rows:
        find("scale", command.scale, find("row", row, ROWS).sizes)
        asked = f"slim --rows {row} --scale {command.scale} --shares {' '.join(map(str, command.shares))}"
        for share in command.shares:
            budget = command.overrides.overridden(Size(target_macs=share))
            jobs += [
                dataclasses.replace(job, overrides=budget) for job in command.jobs(row, command.scale, removing, asked)
            ]
        jobs += command.jobs(row, command.scale, {"full": VARIANTS["full"]}, asked)
    _show(_performed(sorted(jobs, key=lambda job: job.seed), command.results, command.again))


def write_page(command: Page) -> None:
    """Writes the sections of both files."""
    found = section(command.tables, command.ablations, command.page)
    for path, new in ((command.page, found), (command.readme, main_results(command.tables))):
        write_atomically(path, replaced(path.read_text(), new))
        print(f"Written into {path}")


def main() -> None:
    """Does what the command line asks for."""
    run_command(_main)


def _main() -> None:
    command = tyro.cli(
        List | Run | Ablate | Slim | Page, default=List(), prog=usage_name("tables"), description=__doc__
    )
    match command:
        case List():
            list_rows(command)
        case Run():
            run_row(command)
        case Ablate():
            ablate(command)
        case Slim():
            slim(command)
        case Page():
            write_page(command)


def _performed(jobs: Iterable[Job], results: Path, again: bool) -> list[Summary]:
    """Does jobs and returns what is known of them."""
    jobs = list(jobs)
    for _ in perform(jobs, results, again=again):
        pass
    keys = {job.key for job in jobs}
    return summaries(line for key, line in read_lines(results).items() if key in keys)


def _show(found: Iterable[Summary]) -> None:
    """Prints what was measured."""
    table = Table("", "network", "M parameters", "M multiply-adds", "top-1 %", "seeds")
    for summary in found:
        name = title(ROWS[summary.key.row], summary.records[0])
        table.add_row(name, summary.label, summary.params, summary.macs, summary.accuracy, summary.seeds)
    show(table)


def _reported(params: str, macs: str, top1: str) -> str:
    """Returns what a paper reports of a network."""
    parts = ((params, "{} M parameters"), (macs, "{} M multiply-adds"), (top1, "{} %"))
    return ", ".join(text.format(figure) for figure, text in parts if figure)


def _measured(summary: Summary) -> str:
    key = summary.key
    data = f" on {key.dataset}" if summary.records[0].stands_in_for else ""
    seeds = "seed" if len(summary.lines) == 1 else "seeds"
    return f"{key.scale}{data}, {summary.label}: {summary.accuracy} % ({seeds} {summary.seeds})"


if __name__ == "__main__":
    main()
