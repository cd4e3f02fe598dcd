"""The journal as tables that people read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np

from experiments.common.files import write_atomically
from experiments.common.text import markdown_table, mean_text
from experiments.gpu.checks import checks
from experiments.gpu.journal import Line, read_lines
from experiments.gpu.races import RACES, SEEDS
from experiments.gpu.speed import measurements
from experiments.gpu.training import FULL, NUM_DRAWS


class _Found(NamedTuple):
    """What the page shows together: all trainings of a plan, or one line of another part.

    Attributes:
        lines: the lines, at least one.
        is_current: whether the command would find them done on such a device.
    """

    lines: tuple[Line, ...]
    is_current: bool

    @property
    def part(self) -> str:
        return self.lines[0].part

    @property
    def name(self) -> str:
        return self.lines[0].name

    @property
    def figures(self) -> dict[str, Any]:
        return self.lines[0].figures

    @property
    def origin(self) -> tuple[str, bool]:
        """Where it comes from."""
        return self.lines[0].device, self.is_current


_Lettered = tuple[_Found, str]
"""With the letter of where it comes from."""


def write_page(folder: Path, scale: str) -> Path:
    """Writes the tables of all lines of a scale in a journal's folder, and returns the page's path."""
    lines = [line for line in read_lines(folder / "gpu.jsonl") if line.scale == scale]
    path = folder / ("gpu.md" if scale == "full" else f"gpu-{scale}.md")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n\n".join(_sections(lines, tiny=scale != "full")) + "\n")
    return path


def _sections(lines: Sequence[Line], *, tiny: bool) -> Iterator[str]:
    yield "# On a GPU"
    yield "Made by `python -m experiments.gpu`, from the lines of `gpu.jsonl` beside this page."
    shown = _shown(lines, _current(lines, tiny=tiny))
    letters = dict(zip(dict.fromkeys(found.origin for found in shown), ascii_lowercase, strict=False))
    if letters:
        yield "The letters in the tables say what was recorded where:"
        yield "\n".join(_origin(letter, [each for each in shown if each.origin == o]) for o, letter in letters.items())
    for part, section in (
        ("exactness", _exactness),
        ("selection", _selection),
        ("speed", _speed),
        ("plan", _seeds_at_once),
        ("training", _training),
    ):
        if of_part := [(found, letters[found.origin]) for found in shown if found.part == part]:
            yield from section(of_part)
    last = {(line.part, line.name): line for line in lines}
    if faults := [line for line in last.values() if line.failed]:
        yield "## What failed"
        yield "\n".join(f"- {line.part}, {line.name}: {line.figures['fault']}" for line in faults)


def _current(lines: Iterable[Line], *, tiny: bool) -> set[tuple[str, str, str]]:
    """Returns part, name and settings of all that the command does now, with as many epochs as are planned in lines."""
    things = [thing for thing, _ in (*checks(tiny=tiny), *measurements(tiny=tiny))]
    planned = [line for line in lines if line.part == "plan" and not line.failed]
    for race in (race.small if tiny else race for race in RACES):
        things.append(race.plan)
        for epochs in {line.figures["epochs"] for line in planned if line.settings_id == race.plan.settings_id}:
            things += [race.training(each.name, seed, epochs) for each in race.variants for seed in SEEDS]
    return {(thing.part, thing.name, thing.settings_id) for thing in things}


def _shown(lines: Iterable[Line], current: set[tuple[str, str, str]]) -> list[_Found]:
    """Returns what no newer lines have taken the place of, in the order in which it was begun.

    Trainings are held against each other: those of a plan are shown, all of them, until newer ones have the names of
    them all.
    """
    good = [line for line in lines if not line.failed]
    newest = {line.key: line for line in good}
    places = {line.key: place for place, line in enumerate(good)}
    together: dict[tuple[str, ...], list[Line]] = {}
    for line in newest.values():
        plan = (line.figures["row"], line.figures.get("plan", "")) if line.part == "training" else line.key
        together.setdefault((line.part, line.device, *plan), []).append(line)
    taken: set[tuple[str, str]] = set()
    for key in sorted(together, key=lambda key: max(places[line.key] for line in together[key]), reverse=True):
        names = {(line.part, line.name) for line in together[key]}
        if names <= taken:
            del together[key]
        taken |= names
    return [
        _Found(tuple(each), all((line.part, line.name, line.settings_id) in current for line in each))
        for each in together.values()
    ]


def _origin(letter: str, found: Sequence[_Found]) -> str:
    """Returns what is known of the lines that a letter stands for."""
    lines = [line for each in found for line in each.lines]
    dates = sorted({line.date for line in lines})
    versions = sorted({f"jax {line.machine['jax']}, flax {line.machine['flax']}" for line in lines})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    earlier = "" if found[0].is_current else "; recorded earlier, with other settings than now or without naming them"
    return f"- {letter}: {lines[0].device}, {when}, {'; '.join(versions)}{earlier}"


def _exactness(found: Sequence[_Lettered]) -> Iterator[str]:
    yield "## Exactness"
    yield (
        "The largest difference between the outputs of the sub-network and of the full network with zeros where the "
        "groups were, as a part of the largest output. Parameters are random, the sets are random valid ones."
    )
    rows = [
        (each.name, f"{f['removed']} of {f['groups']}", *(f"{n:,}" for n in f["params"]), f"{f['error']:.1e}", letter)
        for each, letter in found
        for f in [each.figures]
    ]
    yield markdown_table(("network", "removed", "parameters", "left", "difference", "from"), *sorted(rows))


def _selection(found: Sequence[_Lettered]) -> Iterator[str]:
    yield "H2SPG's selection after the same gradients is the CPU's:"
    rows = [(each.name, *(str(each.figures[key]) for key in ("selected", "groups")), letter) for each, letter in found]
    yield markdown_table(("network", "selected", "groups", "from"), *sorted(rows))


def _speed(found: Sequence[_Lettered]) -> Iterator[str]:
    yield "## Time"
    networks = [(each, letter) for each, letter in found if "step_ms" in each.figures]
    if networks:
        yield (
            "Training steps and forward passes, computed in bfloat16; medians of interleaved calls. The sub-network is "
            "a random valid one. Temporary memory is what the compiler says of one step; a peak is what the device "
            "held in it, where that is known."
        )
        for key, how in (("step_ms", "one by one"), ("joined_step_ms", "ten in one call, as an epoch is here")):
            yield f"Steps {how}:"
            names = list(networks[0][0].figures[key])[1:]
            rows = [
                (each.name, f"{ms['plain']:.2f}", *(f"{ms[name] / ms['plain']:.2f}" for name in names), letter)
                for each, letter in networks
                for ms in [each.figures[key]]
            ]
            yield markdown_table(("network", "plain step, ms", *(f"{name} ÷ plain" for name in names), "from"), *rows)
        yield markdown_table(
            (
                "network",
                "multiply-adds left",
                "forward, ms",
                "sub ÷ full",
                "compiling, s",
                "with H2SPG",
                "temporary memory (peak), MiB",
                "with H2SPG",
                "from",
            ),
            *((*_costs(each), letter) for each, letter in networks),
        )
    for each, letter in found:
        if "groups" in (f := each.figures) and "ms" in f:
            yield f"One selection among {f['groups']:,} groups takes {f['ms']:.1f} ms, once compiled ({letter})."


def _costs(found: _Found) -> tuple[str, ...]:
    f = found.figures
    forward, compiling, memory, peaks = f["forward_ms"], f["compile_seconds"], f["temporary_mib"], f.get("peak_mib", {})
    return (
        found.name,
        f"{f['macs_share']:.2f}",
        f"{forward['full']:.2f}",
        f"{forward['sub-network'] / forward['full']:.2f}",
        *(f"{compiling[key]:.1f}" for key in ("plain", "H2SPG")),
        *(
            f"{memory[key]:.0f}" if peaks.get(key) is None else f"{memory[key]:.0f} ({peaks[key]:.0f})"
            for key in ("plain", "H2SPG")
        ),
    )


def _seeds_at_once(found: Sequence[_Lettered]) -> Iterator[str]:
    measured = [(each, letter) for each, letter in found if "epoch_seconds_at_once" in each.figures]
    if measured:
        yield (
            "Seconds that an epoch of the full network takes for each seed, alone and with all seeds at once by "
            "`jax.vmap`:"
        )
        rows = [
            (each.name, *(f"{each.figures[key]:.3g}" for key in ("epoch_seconds", "epoch_seconds_at_once")), letter)
            for each, letter in measured
        ]
        yield markdown_table(("row", "alone", "at once", "from"), *rows)


def _training(found: Sequence[_Lettered]) -> Iterator[str]:
    yield "## Trained"
    yield (
        "Test accuracy in percent: mean and standard deviation over the seeds. All variants of a row begin with the "
        "same initialisations and make equally many steps, but for those of equal time, which make as many as take as "
        "long as the full network's. Where an epoch has two times, the training went on with the smaller network as "
        "soon as what was redundant was zero, and the second one is of that. `random` is a random valid selection "
        "within the same budget. Shares are of the full network's parameters and multiply-adds, the means over the "
        "seeds, and of its time of training, compilation and construction aside, the medians: a training may wait for "
        "others' compilation."
    )
    places = {row: place for place, row in enumerate(dict.fromkeys(each.figures["row"] for each, _ in found))}
    rows: list[tuple[str, ...]] = []
    for each, letter in sorted(found, key=lambda of: places[of[0].figures["row"]]):
        variants: dict[str, list[dict[str, Any]]] = {}
        for line in each.lines:
            variants.setdefault(line.figures["variant"], []).append(line.figures)
        if full := variants.get(FULL.name):
            names = [each.figures["row"], *[""] * (len(variants) - 1)]
            rows += [
                (row, *_row(name, of, full), letter) for row, (name, of) in zip(names, variants.items(), strict=True)
            ]
    heading = ("row", "variant", "computed in", "epochs", "seeds", "accuracy", "params", "macs", "time", "s / epoch")
    yield markdown_table((*heading, "from"), *rows)
    lines = [line for each, _ in found for line in each.lines]
    drawn = {
        f"{each.figures['row']} ({letter})": None
        for each, letter in found
        if any("draw" in line.figures for line in each.lines)
    }
    if drawn:
        yield (
            f"Of {', '.join(drawn)} the random selection is, of {NUM_DRAWS} that meet the target, the one whose "
            "multiply-adds are nearest to those that H2SPG has left with the same seed."
        )
    if cells := [line for line in lines if "cell" in line.figures]:
        yield (
            "Cells of NAS-Bench-201 that were found, with accuracy on CIFAR-10 and rank among all 15,625 where the "
            "published table was at hand. Of each edge one operation is left, or none:"
        )
        yield markdown_table(("variant", "seed", "cell", "accuracy, %", "rank"), *map(_cell, cells))
    checked = [line for line in lines if "subnet_error" in line.figures]
    if checked:
        worst = max(line.figures["subnet_error"] for line in checked)
        yield (
            f"{len(checked)} of the sub-networks were compared with the network of full size whose place they took: "
            f"their logits of all test images differ by at most {worst:.1e} of the largest one."
        )
    at_once = {f"{f['row']}, {f['variant']}": None for line in lines if (f := line.figures).get("at_once", 1) > 1}
    if at_once:
        yield f"All seeds at once, where that was faster, until the network became smaller: {'; '.join(at_once)}."
    if wrong := [
        line.name for line in lines if line.figures.get("predicted_size", line.figures["size"]) != line.figures["size"]
    ]:
        yield f"Of another size than predicted: {', '.join(wrong)}."


def _row(variant: str, found: list[dict[str, Any]], full: list[dict[str, Any]]) -> tuple[str, ...]:
    accuracies = [f["accuracy"] for f in found]
    shares = [f"{100 * np.mean([f['size'][place] / f['full_size'][place] for f in found]):.1f} %" for place in range(2)]
    dtypes, epochs = (" ".join(sorted({str(f[key]) for f in found})) for key in ("dtype", "epochs"))
    time = np.median([f["train_seconds"] for f in found]) / np.median([f["train_seconds"] for f in full])
    seconds = ", ".join(f"{each:.2f}" for each in np.median([f["epoch_seconds"] for f in found], axis=0))
    return variant, dtypes, epochs, str(len(found)), mean_text(accuracies), *shares, f"{time:.2f}", seconds


def _cell(line: Line) -> tuple[str, ...]:
    f = line.figures
    looked_up = (f"{f['cell_accuracy']:.2f}", f"{f['cell_rank']:,}") if "cell_accuracy" in f else ("", "")
    # The bars of a cell would be those of the table.
    return f["variant"], str(f["seed"]), f["cell"].replace("|", r"\|"), *looked_up
