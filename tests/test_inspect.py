"""The command `jasgnas inspect`: models of every flavour, and one clear line for everything that can go wrong."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from jasgnas.cli import main

USER_CODE = """
import jax
import jax.numpy as jnp
from flax import linen, nnx


class Net(nnx.Module):
    def __init__(self, width: int = 4, *, rngs: nnx.Rngs):
        self.a = nnx.Linear(3, width, rngs=rngs)
        self.b = nnx.Linear(3, width, rngs=rngs)
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.a(x) + self.b(x)))


def make_net():
    return Net(5, rngs=nnx.Rngs(1))


def with_rngs(rngs):
    return Net(rngs=rngs)


net = make_net()


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(4)(x) + linen.Dense(4)(x)
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))


def with_variables():
    module = Dense()
    return module, module.init(jax.random.key(0), jnp.ones((1, 3)), False)


def fn(params, x, y):
    return (x @ params["a"] + y @ params["b"]) @ params["head"]


def with_params():
    return fn, {name: jnp.ones((3, 3)) for name in ("a", "b", "head")}


def embed(params, tokens):
    return (params["table"][tokens] + params["other"][tokens]) @ params["head"]


def with_tokens():
    return embed, {"table": jnp.ones((7, 3)), "other": jnp.ones((7, 3)), "head": jnp.ones((3, 3))}


def failing():
    raise RuntimeError("no weights at hand\\nsecond line")


def needs(size):
    return size


def number():
    return 3


def chain():
    return lambda params, x: x @ params["a"], {"a": jnp.ones((3, 3))}
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    """A package of the user's in the current directory."""
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(USER_CODE)
    (package / "broken.py").write_text("import no_such_thing\n")
    (package / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_package"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("factory", "options", "groups"),
    [
        ("Net", ["--input", "2,3"], ["a", "b"]),
        ("make_net", ["--input", "2,3"], ["a", "b"]),
        ("with_rngs", ["--input", "2,3"], ["a", "b"]),
        ("net", ["--input", "2,3"], ["a", "b"]),
        ("Net", ["--input", "2,3", "--keep", "a/*"], ["b"]),
        ("Dense", ["--input", "2,3", "--set", "train=False"], ["Dense_0", "Dense_1"]),
        ("with_variables", ["--input", "2,3", "--set", "train=False"], ["params/Dense_0", "params/Dense_1"]),
        ("with_params", ["--input", "2,3", "--input", "2,3"], ["a", "b"]),
        ("with_params", ["--input", "2,3", "--input", "2,3", "--dtype", "bfloat16"], ["a", "b"]),
        ("with_tokens", ["--input", "2,5", "--dtype", "int32"], ["table", "other"]),
    ],
)
def test_models_of_every_flavour(capsys, tmp_path, factory, options, groups):
    assert main(["inspect", f"their_package.models:{factory}", *options]) == 0
    output = capsys.readouterr()
    rows = [line.split() for line in output.out.splitlines() if line[:5].strip().isdigit()]
    assert [row[1].removeprefix("params/") for row in rows] == [name.removeprefix("params/") for name in groups]
    assert output.out.endswith("Report in report.html\n") and output.err == ""
    assert f"<title>their_package.models:{factory}</title>" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("option", "written"), [(["--report", "other.html"], {"other.html"}), (["--no-report"], set())]
)
def test_where_the_report_goes(tmp_path, option, written):
    assert main(["inspect", "their_package.models:Net", "--input", "2,3", *option]) == 0
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == written


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["their_package.models"], 2, "'their_package.models' is not of the form package.module:factory"),
        (["no_package.models:Net"], 2, "there is no module no_package"),
        (["their_package.none:Net"], 2, "there is no module their_package.none"),
        (["their_package.models:None_"], 2, "their_package.models has no None_; it has Dense, Net, chain"),
        (
            ["their_package.models:Net", "--input", "2,3", "--dtype", "int8", "--dtype", "int8", "--dtype", "int8"],
            2,
            "2 inputs were given with 3 dtypes",
        ),
        (["their_package.broken:Net"], 1, "their_package.broken cannot be imported: No module named 'no_such_thing'"),
        (["their_package.wrong:Net"], 1, "their_package.wrong cannot be imported: ZeroDivisionError"),
        (["their_package.models:failing"], 1, "models:failing failed: RuntimeError: no weights at hand"),
        (["their_package.models:needs"], 1, "models:needs failed: TypeError: needs() missing 1 required"),
        (["their_package.models:number"], 1, "models:number gave int; expected an nnx.Module, a Linen module"),
        (["their_package.models:chain"], 1, "no removable structure"),
        (["their_package.models:Net", "--keep", "z*"], 1, "keep='z*' matches no parameter path"),
        (
            ["their_package.models:make_net", "--input", "5"],
            1,
            "the model failed on float32[2, 4], float32[5]: TypeError",
        ),
        (["their_package.models:Dense"], 1, "the model failed on float32[2, 4]: TypeError"),
        (["their_package.models:Net"], 1, "the model failed on float32[2, 4]: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_errors_are_one_line(capsys, tmp_path, arguments, code, message):
    # Every model here takes three features: four are wrong.
    shape = "2,3" if arguments[0].endswith("chain") or "--keep" in arguments else "2,4"
    assert main(["inspect", arguments[0], "--input", shape, *arguments[1:]]) == code
    output = capsys.readouterr()
    assert output.out == ""
    first, *rest = output.err.splitlines()
    assert first.startswith("jasgnas: error: ") and message in first
    assert not rest or "chain" in arguments[0]
    assert "Traceback" not in output.err
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written(capsys):
    assert main(["inspect", "their_package.models:Net", "--input", "2,3", "--report", "none/report.html"]) == 1
    assert "No such file or directory: 'none/report.html'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "2,x"], "'2,x' is no shape; give positive integers"),
        (["--input", "2,0"], "'2,0' is no shape"),
        (["--input", "2,3", "--dtype", "float33"], "'float33' is no dtype"),
        (["--input", "2,3", "--set", "train"], "'train' is not of the form name=value"),
        ([], "the following arguments are required: --input"),
    ],
)
def test_options_that_cannot_be_read(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "their_package.models:Net", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"jasgnas {metadata.version('jasgnas')}\n"


@pytest.mark.parametrize("module", ["jasgnas", "jasgnas.cli"])
def test_as_a_command(tmp_path, module):
    run = subprocess.run(
        [sys.executable, "-m", module, "inspect", "their_package.models:Net", "--input", "2,3"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "report.html").exists()
