"""A Sphinx extension: shows what the commands under `experiments/` have recorded, as pages beside the others.

The files stay where they are. The site gets a copy of them, tables of the benchmarks, and links that lead to the copy.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[2] / "experiments" / "results"


def copy(app: Any) -> None:
    """Copies the recorded files into the folder of the pages, and writes the page of the benchmarks."""
    target = Path(app.srcdir) / "recorded"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(RECORDED, target)
    pages = [benchmark_section(path) for path in sorted((RECORDED / "benchmarks").glob("*.json"))]
    (target / "benchmarks.md").write_text("\n\n".join(["# Tables of the benchmarks", *pages]))


def benchmark_section(path: Path) -> str:
    """Returns the tables of one benchmark, and the machine that it ran on, in Markdown."""
    recorded = json.loads(path.read_text())
    machine = ", ".join(f"{name} {value}" for name, value in recorded["machine"].items())
    parts = [f"## {path.stem}", f"`python -m experiments.bench_{path.stem}` on {machine}."]
    for table in recorded["tables"]:
        lines = [list(table["columns"]), ["---"] * len(table["columns"]), *zip(*table["columns"].values(), strict=True)]
        rows = [f"| {' | '.join(str(cell).strip() for cell in line)} |" for line in lines]
        parts += [f"### {table['title']}", *filter(None, [table["caption"]]), "\n".join(rows)]
    return "\n\n".join(parts)


def link(app: Any, docname: str, source: list[str]) -> None:
    """Points links beside the folder of the pages to the copy; gives recorded tables without a title their name."""
    del app
    source[0] = re.sub(r"\]\((?:\.\./)+experiments/results/", f"]({'../' * docname.count('/')}recorded/", source[0])
    if docname.startswith("recorded/") and not source[0].startswith("# "):
        source[0] = f"# {docname.removeprefix('recorded/')}\n\n{source[0]}"


def setup(app: Any) -> dict[str, bool]:
    """Registers both."""
    app.connect("builder-inited", copy)
    app.connect("source-read", link)
    return {"parallel_read_safe": True}
