"""A Sphinx extension: docstrings are written for people who read the code; this says the same in reStructuredText."""

import re
from typing import Any


def translate(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Changes a docstring in place, before its sections are looked at."""
    del app, what, name, obj, options
    for place, line in enumerate(lines):
        # A word in backticks may go on after them, and |x| is the size of x.
        line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)
        lines[place] = re.sub(r"\|(\w+)\|", r"\\|\1\\|", line)
    for place in range(len(lines) - 2):
        before, between, after = lines[place : place + 3]
        if before.endswith(":") and not between and after.startswith(_indent(before) + "    "):
            lines[place] += ":"  # what is indented is code


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def setup(app: Any) -> dict[str, bool]:
    """Registers the translation, before that of napoleon."""
    app.connect("autodoc-process-docstring", translate, priority=400)
    return {"parallel_read_safe": True}
