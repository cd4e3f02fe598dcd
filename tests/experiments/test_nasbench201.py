"""The command that judges searches by NAS-Bench-201, with a table in the package's format that the test has written."""

import dataclasses
import itertools
import json
import os
import pickle
import re
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.common.errors import ConfigError, DataError
from experiments.engine.networks import create_module
from experiments.engine.runs import make_space
from experiments.gpu.races import RACES
from experiments.nasbench201 import table as tables
from experiments.nasbench201.__main__ import Command, run
from experiments.nasbench201.search import Settings
from experiments.nasbench201.table import read_table
from models.nasbench201 import EDGES, OPERATIONS, NasBench201, cell_from_string, cell_to_string

SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
CELL = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"


def written(path, numbers):
    """Writes a table in which a cell has the accuracy that `numbers` makes of the numbers of its operations."""
    module = types.ModuleType("analognasbench.data")
    module.Architecture = type("Architecture", (), {"__module__": module.__name__})
    records = {}
    for key in itertools.product(range(5), repeat=6):
        records[key] = module.Architecture()
        records[key].baseline_accuracy = numbers(key)
    sys.modules |= {"analognasbench": types.ModuleType("analognasbench"), module.__name__: module}
    try:
        path.write_bytes(pickle.dumps(records))
    finally:
        for name in ("analognasbench", module.__name__):
            del sys.modules[name]
    return path


def accuracy_of(key):
    """By hand: the numbers are of the edges 0→1, 0→2, 0→3, 1→2, 1→3, 2→3, and 1 is none; convolutions count most."""
    first, second, third, fourth, fifth, sixth = (number != 1 for number in key)
    reaches_two = second or (first and fourth)
    if not (third or (first and fifth) or (reaches_two and sixth)):
        return 10.0
    return 20.0 + sum((2.0, 0.0, 10.0, 5.0, 1.0)[number] for number in key) + key[0] / 100


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return written(tmp_path_factory.mktemp("table") / "data.anb", accuracy_of)


def test_a_cell_is_its_string_and_the_other_way_round():
    assert cell_to_string(cell_from_string(CELL)) == CELL
    assert cell_from_string(CELL)[1, 3] == "nor_conv_1x1"
    for wrong in ("|skip_connect~0|", CELL.replace("none", "zero"), CELL.replace("~1", "~2"), f" {CELL}"):
        with pytest.raises(ValueError, match="node 1|no operation|a cell has"):
            cell_from_string(wrong)


def test_the_network_of_a_cell_is_the_super_network_with_nothing_else(path):
    del path
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: NasBench201(cell=CELL, features=2, num_cells=1, rngs=nnx.Rngs(0)))
    )
    paths = {"/".join(map(str, keys[:4])) for keys, _ in nnx.to_flat_state(state) if keys[0] == "cells"}
    assert paths == {f"cells/{i}/edges/{edge}" for i in range(3) for edge in ("0_1", "1_3")}
    assert jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x).shape == (2, 10)


def test_accuracies_and_ranks_are_read_off(path):
    table = read_table(path)
    cell = cell_from_string(CELL)
    assert table.accuracy(cell) == 20 + 10 + 1 + 2 + 5 + 0.02
    assert table.accuracy(cell_from_string(SKIPS)) == 32
    accuracies = sorted(map(accuracy_of, itertools.product(range(5), repeat=6)))
    assert table.rank(accuracies[-1]) == 1
    assert table.rank(10.0) == sum(accuracy > 10 for accuracy in accuracies) + 1
    assert table.percentile(50) == np.median(accuracies)
    assert len(table.of_random_choice) == 4**6


def test_what_is_no_such_table_is_refused(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    evil = tmp_path / "evil.anb"
    evil.write_bytes(pickle.dumps({(0,) * 6: Evil()}))
    with pytest.raises(DataError, match=r"holds posix.system, which is no number"):
        read_table(evil)
    with pytest.raises(
        DataError, match="classifies 42.0 % of the images: its operations or edges are in another order"
    ):
        read_table(written(tmp_path / "other.anb", lambda key: 42.0))
    evil.write_bytes(b"no pickle")
    with pytest.raises(DataError, match="is not the table"):
        read_table(evil)
    monkeypatch.setattr(tables, "_PACKAGE", "no_such_package")
    with pytest.raises(DataError, match="pip install --no-deps analog-nasbench"):
        read_table()


def test_the_row_of_the_gpu_command_reads_the_cell_off_and_looks_it_up(path, monkeypatch):
    race = next(race for race in RACES if race.name == "nasbench201-cifar10").small
    shape, h2spg = (16, 16, 1), race.config.h2spg
    space = make_space(create_module(race.config, 10, shape), shape, tie=h2spg.tie, keep=h2spg.keep)
    assert len(space.groups) == 6 * (len(OPERATIONS) - 1), "an operation of an edge is one decision in all cells"
    gone = [group.index for group in space.groups if "0_3" in group.paths[0] or "nor_conv_3x3" not in group.paths[0]]
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    with monkeypatch.context() as without:
        without.setattr(tables, "_PACKAGE", "no_such_package")
        assert race.read(space, gone) == {"cell": cell}
    monkeypatch.setattr(tables, "_installed", lambda: path)
    table = read_table(path)
    accuracy = table.accuracy(cell_from_string(cell))
    assert race.read(space, gone) == {"cell": cell, "cell_accuracy": accuracy, "cell_rank": table.rank(accuracy)}


def test_one_training_leaves_one_operation_of_each_edge(path, tmp_path, capsys):
    settings = Settings(
        dataset="digits", num_train=48, features=2, num_cells=1, epochs=2, batch_size=16, warmup=0.6, projection=0.4
    )
    results = tmp_path / "lines.jsonl"
    run(Command(settings=settings, seeds=(0,), score="gate", table=path, results=results))
    (line,) = map(json.loads, results.read_text().splitlines())
    cell = cell_from_string(line["cell"])
    assert tuple(cell) == EDGES
    assert line["accuracy"] == read_table(path).accuracy(cell)
    # The operation that stays is the one without which the loss would rise most.
    for (source, target), name in cell.items():
        own = {key.split("/")[1]: rise for key, rise in line["rises"].items() if key.startswith(f"{source}_{target}/")}
        assert set(own) == set(OPERATIONS) - {"none"}
        assert name == max(own, key=own.get)
    assert "random     seed 0" in (printed := capsys.readouterr().out)
    assert "gate: mean" in printed
    page = (tmp_path / "nasbench201.md").read_text()
    table = page[page.index("| edge") :].strip()
    assert table in printed
    # Every edge by every operation, and bold what stays.
    heading, _, *rows = (re.split(r" *\| *", row)[1:-1] for row in table.splitlines())
    for (source, target), (edge, *numbers) in zip(EDGES, rows, strict=True):
        assert edge == f"{source} → {target}"
        for name, number in zip(heading[1:], numbers, strict=True):
            assert float(number.strip("*")) == pytest.approx(line["rises"][f"{source}_{target}/{name}"], abs=6e-4)
            assert number.startswith("**") == (cell[source, target] == name)


def test_the_page_is_written_from_the_lines_alone(path, tmp_path, capsys):
    results = tmp_path / "lines.jsonl"
    rises = {f"{source}_{target}/{name}": 0.5 for source, target in EDGES for name in OPERATIONS if name != "none"}
    settings = dataclasses.asdict(Settings(features=8, num_train=4000))
    del settings["data_dir"]
    lines = [
        {"score": score, "seed": seed, "cell": CELL, "accuracy": accuracy, "rank": 7, "rises": rises, "settings": own}
        for score, seed, accuracy, own in (
            ("ablation", 1, 92.0, settings),
            ("gate", 0, 91.5, settings),
            ("ablation", 0, 91.0, settings),
            ("ablation", 0, 93.0, settings | {"features": 16}),
        )
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(Command(seeds=(), table=path, results=results))
    assert capsys.readouterr().out == f"Written in {tmp_path / 'nasbench201.md'}\n"
    first, second = (tmp_path / "nasbench201.md").read_text().split("\n## ")[1:]
    assert first.startswith("`python -m experiments.nasbench201 --num-train 4000 --features 8`\n")
    cells = [re.split(r" *\| *", row)[1:-1] for row in first.split("\n\n")[1].splitlines()[2:]]
    random = read_table(path).of_random_choice
    assert cells == [
        ["ablation", "0", "91.00", "7"],
        ["ablation", "1", "92.00", "7"],
        ["ablation, mean", "2 seeds", "91.50 ± 0.71", ""],
        ["gate", "0", "91.50", "7"],
        ["random, mean", "all 4,096", f"{random.mean():.2f} ± {random.std(ddof=1):.2f}", ""],
        ["random, median", "", f"{np.median(random):.2f}", f"{read_table(path).rank(np.median(random)):,}"],
    ]
    assert second.startswith("`python -m experiments.nasbench201 --num-train 4000`\n") and "93.00" in second
    with results.open("a") as file:
        file.write('{"score": "gate"}\n')
    with pytest.raises(ConfigError, match="line 5 of .*lines.jsonl is no record of a training: KeyError"):
        run(Command(seeds=(), table=path, results=results))
    with pytest.raises(ConfigError, match="holds no lines"):
        run(Command(seeds=(), table=path, results=tmp_path / "none.jsonl"))
