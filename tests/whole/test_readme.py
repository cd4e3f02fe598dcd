"""The README's code runs, as a reader would run it: from top to bottom, in JAX's default 32-bit mode."""

import re
import textwrap
from pathlib import Path

import jax
import pytest

from jasgnas.rules import base

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^( *)```(\S*)\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)


def test_python_is_marked_as_such():
    # Code that is marked otherwise would not run here.
    assert len([language for _, language, _ in BLOCKS if language == "python"]) >= 5
    others = [code for _, language, code in BLOCKS if language != "python"]
    assert not any(re.search(r"jasgnas\.\w+\(|^ *import ", code, re.MULTILINE) for code in others)


def test_snippets_run_one_after_the_other(monkeypatch, capsys):
    # A snippet registers a rule, which is not to stay.
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))
    assert not jax.config.jax_enable_x64
    namespace = {}
    for _, language, code in BLOCKS:
        if language == "python":
            exec(compile(textwrap.dedent(code), "README.md", "exec"), namespace)
    assert re.search(r"\d+ parameters became \d+", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["search_space", "h2spg", "construct_subnet", "shrink"])
def test_readme_uses_what_it_is_about(name):
    assert any(language == "python" and f"jasgnas.{name}(" in code for _, language, code in BLOCKS)
