"""The command that trains a language model, on a text that the test has written."""

import dataclasses
import json
import re
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
from experiments.common.errors import ConfigError, DataError
from experiments.language.__main__ import Command, run
from experiments.language.text import Text, drawn_windows, is_for_test, read_text, spread_windows
from experiments.language.training import Settings, Trainer, make_step

TINY = Settings(
    features=8,
    depth=1,
    num_heads=2,
    hidden=16,
    context=8,
    batch_size=4,
    steps=12,
    learning_rate=0.01,
    rise=0.1,
    target_macs=0.7,
    multiple_of=2,
    test_windows=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty modules of one line each that says what it is called, in two folders."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("inside", "tests", "site-packages"):
        (folder / name).mkdir()
    for number in range(40):
        name = f"inside/m{number}.py" if number % 2 else f"m{number}.py"
        (folder / name).write_text(f"name = {name!r}\n")
    for name in ("tests/test_m.py", "site-packages/m.py", "_sysconfigdata__linux.py", "notes.txt"):
        (folder / name).write_text("left_out\n")
    return folder


def names_in(text: np.ndarray) -> list[str]:
    """Returns the names of the whole files that a part of the text is made of, in order."""
    *files, end = text.tobytes().decode().split("\0")
    found = [re.fullmatch(r"name = '(.*)'\n", file) for file in files]
    assert end == "" and all(found)
    return [each[1] for each in found if each]


def test_every_file_is_learned_from_or_left_to_the_test(folder: Path) -> None:
    text = read_text(folder)
    train, test = names_in(text.train), names_in(text.test)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/m*.py"))
    names.remove("site-packages/m.py")
    assert sorted(train + test) == names and train == sorted(train) and test == sorted(test)
    assert test == [name for name in names if is_for_test(name)] and len(test) < len(train)
    assert text.facts["files"] == [len(train), len(test)] and text.facts["bytes"] == [len(text.train), len(text.test)]


def test_the_language_reference_is_learned_from() -> None:
    topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py").read_bytes()
    assert b"The standard type hierarchy" in topics and topics in read_text().train.tobytes()


def test_a_file_more_moves_no_other_one(folder: Path, tmp_path: Path) -> None:
    for name in (names := names_in(read_text(folder).test)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(DataError, match=f"has 0 modules to learn from and {len(names)} for the test"):
        read_text(tmp_path)
    new = next(name for name in map("new{}.py".format, range(99)) if not is_for_test(name))
    (tmp_path / new).write_text(f"name = {new!r}\n")
    text = read_text(tmp_path)
    assert names_in(text.train) == [new] and names_in(text.test) == names
    assert text.facts["sha256"] != read_text(folder).facts["sha256"]


def test_windows_are_pieces_of_the_text() -> None:
    text = np.arange(100, dtype=np.uint8)
    spread = spread_windows(text, 4, 10)
    np.testing.assert_array_equal(spread, np.array([0, 30, 60, 90])[:, None] + np.arange(10))
    drawn = drawn_windows(text, 500, 10, (0, 3))
    assert drawn.shape == (500, 10) and drawn.dtype == np.int32
    np.testing.assert_array_equal(drawn, drawn[:, :1] + np.arange(10))
    assert (drawn.min(), drawn.max()) == (0, 99)
    np.testing.assert_array_equal(drawn, drawn_windows(text, 500, 10, (0, 3)))
    assert not np.array_equal(drawn, drawn_windows(text, 500, 10, (0, 4)))


def test_a_teacher_is_a_second_target() -> None:
    weight, rate = 0.7, 0.5
    student, teacher = (
        models.create("decoder_small", features=8, depth=1, num_heads=2, hidden=16, rngs=nnx.Rngs(seed))
        for seed in (0, 1)
    )
    nnx.update(teacher, jax.tree.map(lambda array: 10 * array, nnx.state(teacher)))  # sure of something
    windows = np.random.default_rng(0).integers(256, size=(3, 9))
    graphdef, params = nnx.split(student)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, ...]:
        """The divergence but for the teacher's entropy, which does not depend on the student."""
        tokens = jax.nn.one_hot(windows[:, 1:], 256)
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        of_both = tokens + weight * jax.nn.softmax(teacher(windows[:, :-1]))
        return tuple(jnp.mean(optax.softmax_cross_entropy(logits, each)) for each in (of_both, tokens))

    grads, loss = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
    expected = jax.tree.map(lambda array, grad: array - rate * grad, params, grads)
    optimizer = nnx.Optimizer(student, optax.sgd(rate), wrt=nnx.Param)
    found = make_step(weight)(student, optimizer, teacher, windows)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), nnx.state(student), expected)


def test_trainings_are_recorded_and_not_made_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = tmp_path / "lines.jsonl"
    command = Command(settings=TINY, variants=("full", "both-distilled"), text=folder, results=results)
    run(command)
    full, small = map(json.loads, results.read_text().splitlines())
    assert (full["variant"], small["variant"]) == ("full", "both-distilled") and full["smaller"] is None
    assert all(0 < each["test_bits"] < 9 and 0 < each["train_bits"] < 9 for each in (full, small))
    assert full["text"] == read_text(folder).facts
    assert small["size"] == small["smaller"]["predicted"] and small["size"][1] <= 0.7 * full["size"][1]
    assert small["smaller"]["error"] < 1e-5 and small["smaller"]["after"] <= 5
    assert [len(each["step_seconds"]) for each in (full, small)] == [1, 2]
    assert small["command"].endswith("--test-windows 6 --variants both-distilled --seeds 0")

    page = (tmp_path / "language.md").read_text()
    assert f" {full['size'][0]:,} |" in page and f"{small['test_bits'] - full['test_bits']:+.3f}" in page
    lines, cut_off = results.read_text(), '{"variant": "fu'  # as by a command that is killed while it writes
    with results.open("a") as file:
        file.write(cut_off)
    capsys.readouterr()
    run(command)
    assert results.read_text() == lines + cut_off and (tmp_path / "language.md").read_text() == page
    assert capsys.readouterr().out == f"Written in {tmp_path / 'language.md'}\n"


def test_the_page_is_written_from_the_lines_alone(tmp_path: Path) -> None:
    results = tmp_path / "lines.jsonl"
    smaller = {
        "after": 5,
        "structures": ["blocks/0/project"],
        "widths": {"embed": [8, 6], "blocks/0/gate": [16, 0], "blocks/1/gate": [16, 16]},
        "predicted": [60, 500],
        "error": 2e-7,
    }
    machine = {"device": "cpu", "processor": "P", "cores": 1, "load": 2.0, "jax": "1", "flax": "2"}
    common = {
        "settings": dataclasses.asdict(TINY),
        "text": {"python": "3.11.7", "files": [30, 3], "bytes": [5000, 600], "sha256": "0"},
        "train_bits": 2.0,
        "date": "2026-01-01",
        "command": "python -m experiments.language",
        "machine": machine,
    }
    whole = common | {"size": [100, 1000], "seconds": 8.0, "step_seconds": [0.5], "smaller": None}
    part = common | {"size": [60, 500], "seconds": 6.0, "step_seconds": [0.5, 0.25], "smaller": smaller}
    lines = [
        whole | {"variant": "full", "seed": 1, "test_bits": 3.0},
        part | {"variant": "both", "seed": 1, "test_bits": 3.25, "size": [60, 499]},
        whole | {"variant": "full", "seed": 0, "test_bits": 9.0},
        whole | {"variant": "full", "seed": 0, "test_bits": 2.0},  # takes the place of the one before
        part | {"variant": "both", "seed": 0, "test_bits": 2.75},
        part | {"variant": "slim", "seed": 7, "test_bits": 2.5},
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(Command(seeds=(), results=results))
    page = (tmp_path / "language.md").read_text()
    heading, *rows = ([*re.split(r" *\| *", row)[1:-1]] for row in page.splitlines() if row.startswith("| "))
    assert rows[1:] == [
        ["full", "0 1", "2.500 ± 0.707", "", "2.000", "100", "1,000", "8", "500"],
        ["both", "0 1", "3.000 ± 0.354", "+0.500", "2.000", "60", "500", "6", "500, 250"],
        ["slim", "7", "2.500", "", "2.000", "60", "500", "6", "500, 250"],
    ]
    assert len(heading) == len(rows[1])
    assert "- both, seed 0, after step 5: without blocks/0/project; narrowed: embed 6 of 8\n" in page
    assert "differ by at most 2.0e-07" in page and "Of another size than predicted: both of seed 1." in page
    with results.open("a") as file:
        file.write('{"variant": "full"}\n')
    with pytest.raises(ConfigError, match="line 7 of .*lines.jsonl is no record of a training"):
        run(Command(seeds=(), results=results))


def test_what_cannot_be_trained_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no variant 'slimm': did you mean slim"):
        run(Command(variants=("slimm",), results=tmp_path / "lines.jsonl"))
    with pytest.raises(ConfigError, match="rise must be a positive part"):
        Settings(rise=0.4)
    with pytest.raises(ConfigError, match="depth, hidden must be at least 1"):
        Settings(depth=0, hidden=0)
    with pytest.raises(ConfigError, match="num_heads must divide features into even parts, got 3 and 256"):
        Settings(num_heads=3)
    short = read_text(folder)._replace(test=np.zeros(8, np.uint8))
    assert isinstance(short, Text)
    with pytest.raises(DataError, match="there are 8 bytes of a part of the text, which is no window of 9"):
        Trainer(TINY, short)
