"""The journal as tables that people read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.files import write_atomically
from experiments.common.text import markdown_table, mean_text
from experiments.gpu.journal import Line, read_lines
from experiments.gpu.training import FULL, NUM_DRAWS


def write_page(folder: Path, scale: str) -> Path:
    """Writes the tables of all lines of a scale in a journal's folder, and returns the page's path."""
    lines = {line.key: line for line in read_lines(folder / "gpu.jsonl") if line.scale == scale}
    path = folder / ("gpu.md" if scale == "full" else f"gpu-{scale}.md")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n\n".join(_sections(list(lines.values()))) + "\n")
    return path


def _sections(lines: list[Line]) -> Iterator[str]:
    yield "# On a GPU"
    devices = sorted({line.device for line in lines})
    versions = sorted({f"jax {line.machine['jax']}, flax {line.machine['flax']}" for line in lines})
    yield (
        f"Device: {', '.join(devices) or 'none'}; {'; '.join(versions)}. Made by `python -m experiments.gpu`, from the "
        "lines of `gpu.jsonl` beside this page."
    )
    good = [line for line in lines if "fault" not in line.figures]
    for part, section in (
        ("exactness", _exactness),
        ("selection", _selection),
        ("speed", _speed),
        ("plan", _seeds_at_once),
        ("training", _training),
    ):
        if found := [line for line in good if line.part == part]:
            yield from section(found)
    if faults := [line for line in lines if "fault" in line.figures]:
        yield "## What failed"
        yield "\n".join(f"- {line.part}, {line.name}: {line.figures['fault']}" for line in faults)


def _exactness(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Exactness"
    yield (
        "The largest difference between the outputs of the sub-network and of the full network with zeros where the "
        "groups were, as a part of the largest output. Parameters are random, the sets are random valid ones."
    )
    rows = [
        (line.name, f"{f['removed']} of {f['groups']}", *(f"{n:,}" for n in f["params"]), f"{f['error']:.1e}")
        for line in lines
        for f in [line.figures]
    ]
    yield markdown_table(("network", "removed", "parameters", "left", "difference"), *sorted(rows))


def _selection(lines: Sequence[Line]) -> Iterator[str]:
    yield "H2SPG's selection after the same gradients is the CPU's:"
    rows = [(line.name, str(line.figures["selected"]), str(line.figures["groups"])) for line in lines]
    yield markdown_table(("network", "selected", "groups"), *sorted(rows))


def _speed(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Time"
    networks = [line for line in lines if "step_ms" in line.figures]
    if networks:
        yield (
            "Training steps and forward passes, computed in bfloat16; medians of interleaved calls. The sub-network is "
            "a random valid one."
        )
        for key, how in (("step_ms", "one by one"), ("joined_step_ms", "ten in one call, as an epoch is here")):
            yield f"Steps {how}:"
            names = list(networks[0].figures[key])
            rows = [
                (line.name, f"{ms['plain']:.2f}", *(f"{ms[name] / ms['plain']:.2f}" for name in names[1:]))
                for line in networks
                for ms in [line.figures[key]]
            ]
            yield markdown_table(("network", "plain step, ms", *(f"{name} ÷ plain" for name in names[1:])), *rows)
        yield markdown_table(
            (
                "network",
                "multiply-adds left",
                "forward, ms",
                "sub ÷ full",
                "compiling, s",
                "with H2SPG",
                "memory, MiB",
                "with H2SPG",
            ),
            *(_costs(line) for line in networks),
        )
    for line in lines:
        if "groups" in line.figures and "ms" in line.figures:
            f = line.figures
            yield f"One selection among {f['groups']:,} groups takes {f['ms']:.1f} ms, once compiled."


def _costs(line: Line) -> tuple[str, ...]:
    f = line.figures
    forward, compiling, memory = f["forward_ms"], f["compile_seconds"], f["temporary_mib"]
    return (
        line.name,
        f"{f['macs_share']:.2f}",
        f"{forward['full']:.2f}",
        f"{forward['sub-network'] / forward['full']:.2f}",
        *(f"{compiling[key]:.1f}" for key in ("plain", "H2SPG")),
        *(f"{memory[key]:.0f}" for key in ("plain", "H2SPG")),
    )


def _seeds_at_once(lines: Sequence[Line]) -> Iterator[str]:
    measured = [(line.name, line.figures) for line in lines if "epoch_seconds_at_once" in line.figures]
    if measured:
        yield (
            "Seconds that an epoch of the full network takes for each seed, alone and with all seeds at once by "
            "`jax.vmap`:"
        )
        rows = [
            (name, *(f"{f[key]:.3g}" for key in ("epoch_seconds", "epoch_seconds_at_once"))) for name, f in measured
        ]
        yield markdown_table(("row", "alone", "at once"), *rows)


def _training(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Trained"
    yield (
        "Test accuracy in percent: mean and standard deviation over the seeds. All variants of a row begin with the "
        "same initialisations and make equally many steps, but for those of equal time, which make as many as take as "
        "long as the full network's. Once what is redundant is zero, a training goes on with the smaller network. "
        "`random` is a random valid selection within the same budget. Shares are of the full network's parameters and "
        "multiply-adds, the means over the seeds, and of its time of training, compilation and construction aside, the "
        "medians: a training may wait for others' compilation."
    )
    by_row: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        f = line.figures
        by_row.setdefault(f["row"], {}).setdefault(f["variant"], []).append(f)
    rows = [
        _row(row if place == 0 else "", variant, found, variants[FULL.name])
        for row, variants in by_row.items()
        if FULL.name in variants
        for place, (variant, found) in enumerate(variants.items())
    ]
    yield markdown_table(
        ("row", "variant", "epochs", "seeds", "accuracy", "params", "macs", "time", "s / epoch"), *rows
    )
    if drawn := dict.fromkeys(line.figures["row"] for line in lines if "draw" in line.figures):
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
            f"{len(checked)} of the sub-networks were compared with the network of full size as they took its place: "
            f"their logits of all test images differ by at most {worst:.1e} of the largest one."
        )
    at_once = {f"{f['row']}, {f['variant']}": None for line in lines if (f := line.figures).get("at_once", 1) > 1}
    if at_once:
        yield f"All seeds at once, where that was faster, until the network became smaller: {'; '.join(at_once)}."
    if wrong := [
        line.name for line in lines if line.figures.get("predicted_size", line.figures["size"]) != line.figures["size"]
    ]:
        yield f"Of another size than predicted: {', '.join(wrong)}."


def _row(row: str, variant: str, found: list[dict[str, Any]], full: list[dict[str, Any]]) -> tuple[str, ...]:
    accuracies = [f["accuracy"] for f in found]
    shares = [f"{100 * np.mean([f['size'][place] / f['full_size'][place] for f in found]):.1f} %" for place in range(2)]
    epochs = " ".join(sorted({str(f["epochs"]) for f in found}))
    time = np.median([f["train_seconds"] for f in found]) / np.median([f["train_seconds"] for f in full])
    seconds = ", ".join(f"{each:.2f}" for each in np.median([f["epoch_seconds"] for f in found], axis=0))
    return row, variant, epochs, str(len(found)), mean_text(accuracies), *shares, f"{time:.2f}", seconds


def _cell(line: Line) -> tuple[str, ...]:
    f = line.figures
    looked_up = (f"{f['cell_accuracy']:.2f}", f"{f['cell_rank']:,}") if "cell_accuracy" in f else ("", "")
    # The bars of a cell would be those of the table.
    return f["variant"], str(f["seed"]), f["cell"].replace("|", r"\|"), *looked_up
