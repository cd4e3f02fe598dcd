"""A language model of bytes, made smaller in several ways: `python -m experiments.language --help`."""

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.common.cli import check_names, parse, run_command
from experiments.common.machine import machine_facts
from experiments.language.page import write_page
from experiments.language.records import Record, append_record, command_of, key_of, read_records
from experiments.language.text import read_text
from experiments.language.training import VARIANTS, Settings, Trained, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a decoder on the sources of Python's standard library: full, erased, slimmed, and both.

    Each training is a line in the results as soon as it has ended; what is recorded is not trained again.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    variants: tuple[str, ...] = tuple(VARIANTS)
    """What to train with each seed."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; without any, only the page is written anew."""
    text: Path | None = None
    """Folder of the modules that are the text; by default that of the standard library."""
    results: Path = Path("experiments/results/language/lines.jsonl")
    """File to which a line of JSON is added for every training; a page is written beside it from all its lines."""


def run(command: Command) -> None:
    """Trains what is not recorded yet, and writes the page after every training.

    Raises:
        ConfigError: there is no such variant, or a recorded line is damaged.
        DataError: there is too little text.
        DivergedError: a loss became NaN or infinite.
        OSError: the lines or the page cannot be written.
    """
    check_names("variant", command.variants, VARIANTS)
    if command.seeds:
        text, settings = read_text(command.text), dataclasses.asdict(command.settings)
        trainer = Trainer(command.settings, text)
        recorded = read_records(command.results)
        for seed in command.seeds:
            for variant in command.variants:
                if key_of(variant, seed, settings, text.facts) in recorded:
                    continue
                record = _record(variant, seed, settings, text.facts, trainer.train(variant, seed))
                append_record(command.results, record)
                write_page(command.results)
                print(
                    f"{variant} seed {seed}: {record.test_bits:.3f} bits per byte, {record.size[0]:,} parameters, "
                    f"{record.size[1]:,} multiply-adds, {record.seconds:.0f} s",
                    flush=True,
                )
    print(f"Written in {write_page(command.results)}")


def _record(variant: str, seed: int, settings: dict[str, Any], facts: dict[str, Any], trained: Trained) -> Record:
    return Record(
        variant=variant,
        seed=seed,
        settings=settings,
        text=facts,
        size=list(trained.size),
        train_bits=trained.train_bits,
        test_bits=trained.test_bits,
        seconds=round(trained.seconds, 3),
        step_seconds=trained.step_seconds,
        smaller=None if trained.smaller is None else trained.smaller._asdict(),
        machine=machine_facts(),
        date=datetime.date.today().isoformat(),
        command=command_of(variant, seed, settings),
    )


def main() -> None:
    """Does what the command line asks for."""
    run_command(lambda: run(parse(Command, "language")))


if __name__ == "__main__":
    main()
