"""The report: one HTML file that holds everything it needs, opens without a network, and runs nothing of the user's."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jasgnas.errors import ArgumentError
from jasgnas.pages.data import page_data
from jasgnas.pages.files import asset, packed_engine
from jasgnas.pages.history import History
from jasgnas.pages.runs import Results, Run
from jasgnas.space.latency import LatencyTable

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

_STYLES = ("theme.css", "drawing.css", "page.css")
# In this order they make one script; the first is also the worker's.
_SCRIPTS = (
    "scene.js",
    "modules.js",
    "columns.js",
    "dom.js",
    "model.js",
    "downloads.js",
    "tables.js",
    "charts.js",
    "heat.js",
    "panels.js",
    "runs.js",
    "overview.js",
    "details.js",
    "minimap.js",
    "graph.js",
    "print.js",
    "page.js",
)
_WORKER_SCRIPTS = ("scene.js", "worker.js")

_FRAME_HEIGHT = 640


def report(
    space: "SearchSpace",
    *,
    path: str | Path = "report.html",
    title: str | None = None,
    opt_state: Any = None,
    redundant: Iterable[int] | None = None,
    scores: Sequence[float] | None = None,
    history: History | None = None,
    full: Results | None = None,
    construction: Results | None = None,
    recalibrated: Results | None = None,
    sub: Results | None = None,
    latency: LatencyTable | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Path:
    """Writes a page that shows a search space and, where given, what a run made of it.

    The page is one file that needs no network: an overview of what went, why and at what cost; the graphs laid out from
    top to bottom, with every segment, operator and parameter and why it is or is not removable, large ones folded by
    the modules of the network; the groups; full and sub-network side by side; the curves of the run. The sizes of the
    sub-network are those that `construct_subnet` arrives at, and take about as long to find.

    Args:
        space: the search space.
        path: the file to write.
        title: heading of the page.
        opt_state: anything `jasgnas.h2spg_state` accepts: says which groups are redundant and zero, and their scores.
        redundant: instead of `opt_state`, indices of the groups that go.
        scores: instead of `opt_state`, a redundancy score per group, `[num_groups]`.
        history: the course of the run: a mapping per logged step, or a mapping of names to columns of one length.
            Entries may be what `jasgnas.h2spg_metrics` returns, with whatever else was logged. Of the names, `step`,
            `phase` (that of `H2SPGState`), `group_norms` and all that `h2spg_metrics` returns have a meaning; every
            other column is a curve, and columns `a/loss`, `b/loss` are curves of one chart. None and what is not finite
            is left out. Long histories are thinned out.
        full: results of the full network, numbers or texts by label, as in `{"test accuracy": "99.2 %"}`. Parameters
            and multiply-adds need not be given.
        construction: the same of the sub-network as it was constructed.
        recalibrated: the same once its running statistics were those of `jasgnas.recalibrate`.
        sub: the same of the sub-network in the end.
        latency: what `jasgnas.measure_latency` has measured, for the seconds that are predicted of both; those measured
            of them are results.
        settings: what the run was made with, by name: numbers, and anything else as `str` writes it.
        command: the command that made the run.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: arguments contradict each other or do not fit the search space.
        OSError: the file cannot be written.

    Example:
        >>> import jax.numpy as jnp, jasgnas
        >>> params = {name: jnp.ones((3, 3)) for name in "abc"}
        >>> fn = lambda p, x: (x @ p["a"] + x @ p["b"]) @ p["c"]
        >>> space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params)
        >>> history = [{"loss": loss} | jasgnas.h2spg_metrics(opt_state) for loss, opt_state in run]  # doctest: +SKIP
        >>> jasgnas.report(space, opt_state=opt_state, history=history, sub={"test accuracy": 0.98})  # doctest: +SKIP
        PosixPath('report.html')
    """
    run = Run(
        opt_state=opt_state,
        redundant=redundant,
        scores=scores,
        history=history,
        full=full,
        construction=construction,
        recalibrated=recalibrated,
        sub=sub,
        latency=latency,
        settings=settings,
        command=command,
    )
    return _write(space, [run], path, title or "Search space")


def compare(
    space: "SearchSpace", runs: Iterable[Run], *, path: str | Path = "compare.html", title: str | None = None
) -> Path:
    """Writes one page of several runs of one network: their results beside each other, and the report of each.

    Args:
        space: the search space that all of them are of.
        runs: the runs, each with a name of its own.
        path: the file to write.
        title: heading of the page.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: there is no run, two have one name, or what is known of one does not fit the search space.
        OSError: the file cannot be written.

    Example:
        >>> runs = [jasgnas.Run(name=f"seed {i}", opt_state=state) for i, state in enumerate(states)]  # doctest: +SKIP
        >>> jasgnas.compare(space, runs)  # doctest: +SKIP
        PosixPath('compare.html')
    """
    runs = list(runs)
    for run in runs:
        if not isinstance(run, Run):
            raise ArgumentError(f"expected runs of jasgnas.Run(name=…, opt_state=…), got {type(run).__name__}")
    names = [run.name for run in runs]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ArgumentError(f"expected one run at least and a name of its own for each, got the names {names}")
    return _write(space, runs, path, title or "Runs")


def embedded(space: "SearchSpace") -> str:
    """Returns the page of a search space in a frame of its own, for notebooks."""
    page = _page("Search space", page_data(space, [Run()]))
    # A sandboxed frame: its scripts run, but reach nothing of the notebook.
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" title="Search space" style="width: 100%; '
        f'height: {_FRAME_HEIGHT}px; border: 1px solid #8884; border-radius: 8px" srcdoc="{html.escape(page)}">'
        "</iframe>"
    )


def _write(space: "SearchSpace", runs: Sequence[Run], path: str | Path, title: str) -> Path:
    page = _page(title, page_data(space, runs))
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _page(title: str, data: dict[str, Any]) -> str:
    style = "\n".join(map(asset, _STYLES))
    script = "\n".join(map(asset, _SCRIPTS))
    filled = {
        "title": html.escape(title),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "worker": "\n".join(map(asset, _WORKER_SCRIPTS)),
        "engine": base64.b64encode(packed_engine()).decode(),
        "data": _script_json(data),
    }
    # One pass: what is filled in is not searched for marks again.
    return re.sub(r"@@(\w+)@@", lambda match: filled[match[1]], asset("page.html"))


def _policy(style: str, script: str) -> str:
    """Returns a content security policy that forbids all but this style, this script, and a worker made by it."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}' 'wasm-unsafe-eval'; "
        "worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _script_json(data: Any) -> str:
    """Returns JSON that cannot end the script element it is put in, whatever strings it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half a surrogate pair has no encoding.
    return text.encode("utf-8", "replace").decode()
