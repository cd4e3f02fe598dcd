"""What the benchmarks leave in their files."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.table import Table

from experiments.benchmarks import training
from experiments.benchmarks.measure import publish
from experiments.engine.config import Config
from experiments.engine.job import NetworkResults


def table(title: str, cell: str) -> Table:
    made = Table("column", title=title)
    made.add_row(cell)
    return made


@pytest.mark.parametrize("keep", [False, True])
def test_file_keeps_tables_of_other_titles_where_it_is_to(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "new" / "results.json"
    publish([table("a", "1"), table("b", "1")], path, keep=keep)
    publish([table("a", "2")], path, keep=keep)
    found = {each["title"]: each["columns"]["column"] for each in json.loads(path.read_text())["tables"]}
    assert found == ({"b": ["1"], "a": ["2"]} if keep else {"a": ["2"]})


def test_tables_of_trainings_are_told_apart_and_say_what_they_were_measured_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(_: object, config: Config) -> tuple[training.Trained, float]:
        network = NetworkResults(1, 1, 0.7, 0.9, 1.0, 40.0 if config.train_full else 20.0)
        return training.Trained(network, ((5.0, 0.4), (10.0, 0.7))), 100.0

    monkeypatch.setattr(training, "in_fresh_process", trained)
    monkeypatch.setattr(training, "machine_facts", lambda: {"cores": 1, "processor": "a processor", "load": 2.34})
    monkeypatch.setenv("XLA_FLAGS", "--some=flag")
    config = dataclasses.replace(training.Config(), rows=(("digits", "digits"),), seeds=(0, 1))
    found = list(training.run(config))
    assert [each.title for each in found] == ["digits on digits, seed 0", "digits on digits, seed 1"]
    caption = str(found[0].caption)
    assert "12,800 training and 2,000 test images, 5 epochs, batch 64" in caption
    assert caption.endswith("1 core of a processor, load 2.3, XLA_FLAGS=--some=flag")
    assert list(found[0].columns[2].cells) == ["1.00", "0.50", "0.50"]
