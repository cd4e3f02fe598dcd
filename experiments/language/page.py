"""What the trainings came to as a page, written from the recorded lines."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.common.files import write_atomically
from experiments.common.text import markdown_table, mean_text
from experiments.language.records import Record, read_records
from experiments.language.training import FULL, VARIANTS

PAGE = "language.md"
"""Name of the page beside the lines."""

_LEGEND = (
    "Bits per byte of text that was not trained on: mean, and standard deviation where there are several seeds. All "
    "trainings of a seed begin with the same parameters, read the same windows in the same order and make equally many "
    "steps. `erase` removes structures, attentions and SwiGLU networks; `slim` narrows widths and takes heads; `both` "
    "does both. As soon as all that is to go is zero, a training goes on with the smaller network; in "
    "`both-distilled` it then also follows the predictions of the full network of its seed. `above full` is the mean "
    "difference to the full networks of the same seeds. Seconds are wall time with compilation; ms are medians of the "
    "steps before and after the network became smaller."
)


def write_page(results: Path) -> Path:
    """Writes what all lines of a results file say as a page beside it, and returns its path.

    Raises:
        ConfigError: a line is no record.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for key, record in read_records(results).items():
        groups.setdefault(key.group, {name: [] for name in VARIANTS})[key.variant].append(record)
    parts = ["# A language model", _LEGEND]
    for by_variant in groups.values():
        own = {name: sorted(found, key=lambda each: each.seed) for name, found in by_variant.items() if found}
        parts += _section(own)
    path = results.with_name(PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _section(by_variant: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    records = [each for found in by_variant.values() for each in found]
    first = records[0]
    text, settings, machine = first.text, first.settings, first.machine
    yield (
        f"## {settings['features']} features, {settings['depth']} blocks, {settings['steps']:,} steps of "
        f"{settings['batch_size'] * settings['context']:,} bytes"
    )
    yield (
        f"Text: the modules of Python {text['python']}'s standard library, {text['files'][0]:,} files of "
        f"{text['bytes'][0]:,} bytes to learn from and {text['files'][1]:,} of {text['bytes'][1]:,} for the test. "
        f"Device: {machine['device']} ({machine['processor']}, usable cores: {machine['cores']}), load: "
        f"{_range_text([each.machine['load'] for each in records])}; jax {machine['jax']}, flax {machine['flax']}."
    )
    full = {each.seed: each.test_bits for each in by_variant.get(FULL, ())}
    rows = [_row(name, found, full) for name, found in by_variant.items()]
    yield markdown_table(
        ("variant", "seeds", "bits", "above full", "training bits", "parameters", "multiply-adds", "seconds", "ms"),
        *rows,
    )
    if smaller := [each for each in records if each.smaller is not None]:
        yield "\n".join(f"- {_what_is_left(each)}" for each in smaller)
        worst = max(each.smaller["error"] for each in smaller if each.smaller is not None)
        yield (
            "Where the sub-networks took the place of the networks with zeros in them, their logits were compared: "
            f"they differ by at most {worst:.1e} of the largest one."
        )
    if wrong := [each for each in smaller if each.smaller is not None and each.smaller["predicted"] != each.size]:
        yield f"Of another size than predicted: {', '.join(f'{each.variant} of seed {each.seed}' for each in wrong)}."
    yield f"Each line of the results has the command that makes it, the first one `{first.command}`."


def _row(name: str, found: Sequence[Record], full: Mapping[int, float]) -> tuple[str, ...]:
    above = [each.test_bits - full[each.seed] for each in found if each.seed in full]
    params, macs = (np.mean([each.size[place] for each in found]) for place in range(2))
    steps = np.median([each.step_seconds for each in found], axis=0)
    return (
        name,
        " ".join(str(each.seed) for each in found),
        mean_text([each.test_bits for each in found], 3),
        f"{np.mean(above):+.3f}" if above and name != FULL else "",
        f"{np.mean([each.train_bits for each in found]):.3f}",
        f"{params:,.0f}",
        f"{macs:,.0f}",
        f"{np.median([each.seconds for each in found]):.0f}",
        ", ".join(f"{1000 * each:.0f}" for each in steps),
    )


def _what_is_left(record: Record) -> str:
    """Returns what went from one network, in a line."""
    assert record.smaller is not None
    narrowed = [
        f"{name} {left} of {size}" for name, (size, left) in record.smaller["widths"].items() if 0 < left < size
    ]
    return (
        f"{record.variant}, seed {record.seed}, after step {record.smaller['after']:,}: without "
        f"{', '.join(record.smaller['structures']) or 'any structure'}"
        + (f"; narrowed: {', '.join(narrowed)}" if narrowed else "")
    )


def _range_text(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{each:.1f}" for each in (min(values), max(values))))
