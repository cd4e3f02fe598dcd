"""The code of README and pages runs, as a reader would run it: from top to bottom, in JAX's default 32-bit mode.

The pages that are notebooks are executed by the site's build instead, each by itself.
"""

import re
import textwrap
from pathlib import Path

import jax
import pytest

from jasgnas.rules import base

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCKS = [
    (page.name, *block)
    for page in PAGES
    for block in re.findall(r"^( *)```(\S*)[^\n`]*\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL)
]
CELL = "{code-cell}"
"""What the pages that are notebooks have their code in; it is run when the site is built."""


def test_python_is_marked_as_such():
    # Code that is marked otherwise would not run here.
    assert len([language for _, _, language, _ in BLOCKS if language == "python"]) >= 5
    others = [code for _, _, language, code in BLOCKS if language not in ("python", CELL)]
    assert not any(re.search(r"jasgnas\.\w+\(|^ *import ", code, re.MULTILINE) for code in others)


def test_a_page_with_cells_is_a_notebook():
    pages = {page.name: page.read_text() for page in PAGES}
    with_cells = {page for page, _, language, _ in BLOCKS if language == CELL}
    assert with_cells == {name for name, text in pages.items() if "format_name: myst" in text} and len(with_cells) > 10


def test_snippets_run_one_after_the_other(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    # A snippet registers a rule, which is not to stay.
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))
    assert not jax.config.jax_enable_x64
    namespace = {}
    for page, _, language, code in BLOCKS:
        if language == "python":
            exec(compile(textwrap.dedent(code), page, "exec"), namespace)
    assert re.search(r"\d+ parameters became \d+", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["search_space", "h2spg", "construct_subnet", "shrink"])
def test_readme_uses_what_it_is_about(name):
    assert any(language in ("python", CELL) and f"jasgnas.{name}(" in code for _, _, language, code in BLOCKS)
