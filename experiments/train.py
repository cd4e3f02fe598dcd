"""The job of every run: train in full and with H2SPG, construct the sub-network, compare, and save.

    python -m experiments.train --help
    python -m experiments.train demonet-fashion-mnist --epochs 3

Both trainings see the same images in the same order for the same number of steps, and start from the same
initialisation. What comes out is checked: the sub-network must return what the sparse full network returns.
"""

import tyro
from rich.table import Table

from experiments.common.cli import run_command, usage_name
from experiments.common.text import show, time_text
from experiments.engine.config import Config
from experiments.engine.job import Results, run
from experiments.engine.presets import PRESETS, Presets, read_config
from experiments.engine.runs import RESULTS

_NAMES_SHOWN = 20
"""Lines on what was removed that the printed table has room for."""


def results_table(config: Config, results: Results) -> Table:
    """Returns the table that compares the full network and the sub-network."""
    full, subnet, network = results.full, results.subnet, config.model.name
    table = Table(
        "",
        "full network",
        "sub-network",
        title=f"{network} on {config.data.name}: {config.epochs} epochs, seed {config.seed}, {results.device}",
    )
    for label, field, before in (
        ("parameters", "num_params", results.full_params),
        ("multiply-adds", "macs", results.full_macs),
    ):
        after = None if subnet is None else getattr(subnet, field)
        table.add_row(label, f"{before:,}", "" if after is None else f"{after:,} ({after / before:.0%})")

    def add_both(label: str, field: str, form: str) -> None:
        table.add_row(label, *("" if r is None else form.format(getattr(r, field)) for r in (full, subnet)))

    add_both("test accuracy", "test_accuracy", "{:.2%}")
    if config.data.name == "imagenet2012":
        add_both("test accuracy, top 5", "test_top5", "{:.2%}")
    table.add_row("seconds of training", *("" if r is None else time_text(r.training_seconds) for r in (full, subnet)))
    for part, seconds in results.seconds.items():
        table.add_row(f"seconds of {part}", "", time_text(seconds))
    table.add_section()
    table.add_row("removed", "", _removed_text(results))
    if (both := results.comparison) is not None:
        table.add_row("when it was constructed:", "", "")
        table.add_row("test accuracy, sparse network", "", f"{both.sparse_accuracy:.2%}")
        table.add_row("test accuracy, sub-network", "", f"{both.subnet_accuracy:.2%}")
        table.add_row("largest output difference", "", f"{both.largest_difference:.1e} of {both.largest_output:.1f}")
    return table


def run_and_report(config: Config) -> None:
    """Runs a job and prints its results."""
    is_first = not (config.output_dir / RESULTS).exists() or config.restart
    results = run(config)
    show(results_table(config, results))
    print(f"Saved in {config.output_dir}" if is_first else f"Finished before: read from {config.output_dir}")


def main() -> None:
    """Runs the job that the command line asks for."""
    # Errors in the settings themselves are found while the command line is read.
    run_command(lambda: run_and_report(read_config(PRESETS, _parse)))


def _parse(presets: Presets) -> Config:
    return tyro.extras.overridable_config_cli(presets, prog=usage_name("train"), description=__doc__)


def _removed_text(results: Results) -> str:
    """Returns what went, as far as there is room for it."""
    left_out = len(results.removed) - _NAMES_SHOWN
    return "\n".join([*results.removed[:_NAMES_SHOWN], *([f"and {left_out} more"] if left_out > 0 else [])])


if __name__ == "__main__":
    main()
