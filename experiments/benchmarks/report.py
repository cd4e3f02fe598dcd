"""How large and how quick the report of a network is, in a real browser: `python -m experiments.bench_report [NAME]`.

Needs Debian's package `chromium` and the extra `test`, which brings Playwright.
"""

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from playwright.sync_api import Page, sync_playwright

import jasgnas
import models
from experiments.common.cli import check_names

# One core draws, as on a machine without a graphics card: the worst case.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")

# Scrolls by some pixels in every frame, and returns the milliseconds between frames.
PAN = """async (frames) => {
  const viewport = document.getElementById("viewport");
  const times = [];
  for (let i = 0; i <= frames; i++) {
    times.push(await new Promise(requestAnimationFrame));
    viewport.scrollBy(i % 120 < 60 ? 9 : -9, 14);
  }
  return times.slice(1).map((time, i) => time - times[i]);
}"""
# The longest stretches that the page could not answer in, in milliseconds.
WATCH = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask", buffered: true });
}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the report of a registered network."""

    name: tyro.conf.Positional[str] = "darts_14"
    """Name in `models.list_models()`."""
    frames: int = 180
    """Frames of panning."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Figures of one report.

    Attributes:
        num_segments: vertices of the segment graph.
        num_operators: vertices of the trace graph.
        megabytes: size of the file.
        write_seconds: wall time of `jasgnas.report`, the search space being there.
        load_seconds: from opening the file to the drawn graph, folded by modules, layout in the worker included.
        load_cpu_seconds: processor time of the page's main thread in it, in which it does not answer to the user.
        open_seconds: from a click to the drawn segment graph, all modules open.
        open_cpu_seconds: processor time of the page's main thread in it.
        unfold_seconds: from a click to the drawn trace graph.
        unfold_cpu_seconds: processor time of the page's main thread in it.
        heap_megabytes: memory of the page's JavaScript afterwards.
        resident_megabytes: resident memory of the process that shows the page, its worker included.
        longest_task_ms: longest time without an answer to the user while loading, opening and unfolding.
        frame_ms: median and 95th percentile of the time between frames while panning, all modules open.
        frame_cpu_ms: processor time of the page's main thread in a frame.
        unfolded_frame_ms: as `frame_ms`, with everything unfolded.
        unfolded_frame_cpu_ms: as `frame_cpu_ms`, with everything unfolded.
    """

    num_segments: int
    num_operators: int
    megabytes: float
    write_seconds: float
    load_seconds: float
    load_cpu_seconds: float
    open_seconds: float
    open_cpu_seconds: float
    unfold_seconds: float
    unfold_cpu_seconds: float
    heap_megabytes: float
    resident_megabytes: float
    longest_task_ms: float
    frame_ms: tuple[float, float]
    frame_cpu_ms: float
    unfolded_frame_ms: tuple[float, float]
    unfolded_frame_cpu_ms: float


def run(config: Config) -> Results:
    """Writes the report of a network, half of its groups redundant, and opens it.

    Raises:
        ConfigError: there is no such network.
        FileNotFoundError: there is no browser.
    """
    check_names("network", (config.name,), models.list_models())
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no browser: install Debian's package chromium (apt-get install chromium)")
    space = jasgnas.search_space(models.create_abstract(config.name), models.example_input(config.name))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start = time.perf_counter()
        path = jasgnas.report(space, path=Path(folder) / "report.html", redundant=space.largest_removal[::2])
        write_seconds = time.perf_counter() - start
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(f"({WATCH})()")
        clock = _Clock(page)

        page.goto(f"{path.as_uri()}#tab=graph")
        page.wait_for_selector("html[data-ready]", timeout=300_000)
        load_seconds, load_cpu_seconds = clock.lap()
        opened = page.get_by_role("button", name="Open modules")
        if opened.is_visible():
            opened.click()
            page.wait_for_selector("#viewport[aria-busy=false]", timeout=300_000)
        open_seconds, open_cpu_seconds = clock.lap()
        frames, frame_cpu = _pan(page, config.frames, clock)
        page.click("#unfold")
        page.wait_for_selector("#viewport[aria-busy=false] .operator", timeout=300_000, state="attached")
        unfold_seconds, unfold_cpu_seconds = clock.lap()
        longest = page.evaluate("() => Math.max(0, ...window.longTasks)")
        unfolded_frames, unfolded_frame_cpu = _pan(page, config.frames, clock)
        results = Results(
            len(space.segment_names),
            len(space.operator_names),
            path.stat().st_size / 1e6,
            write_seconds,
            load_seconds,
            load_cpu_seconds,
            open_seconds,
            open_cpu_seconds,
            unfold_seconds,
            unfold_cpu_seconds,
            page.evaluate("() => performance.memory.usedJSHeapSize") / 1e6,
            _resident(browser) / 1e6,
            longest,
            frames,
            frame_cpu,
            unfolded_frames,
            unfolded_frame_cpu,
        )
        browser.close()
    return results


class _Clock:
    """Measures wall time and the processor time of a page's main thread."""

    def __init__(self, page: Page):
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._last = 0.0, 0.0
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Returns the seconds of both since the last call."""
        metrics = {each["name"]: each["value"] for each in self._session.send("Performance.getMetrics")["metrics"]}
        before = self._last
        self._last = time.perf_counter(), metrics["TaskDuration"]
        return self._last[0] - before[0], self._last[1] - before[1]


def _pan(page: Page, frames: int, clock: _Clock) -> tuple[tuple[float, float], float]:
    """Pans at a scale at which texts are drawn.

    Returns:
        Median and 95th percentile of the milliseconds between frames, and the main thread's milliseconds in a frame.
    """
    while not page.evaluate("() => document.querySelector('#viewport > svg:not(.far)') !== null"):
        page.click("#zoom-in")
    page.wait_for_timeout(500)
    clock.lap()
    times = page.evaluate(PAN, frames)
    _, busy = clock.lap()
    median, late = np.percentile(times, [50, 95])
    return (float(median), float(late)), 1000 * busy / frames


def _resident(browser: Any) -> int:
    """Returns the resident memory of the largest process that renders pages, in bytes."""
    info = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")
    renderers = [process["id"] for process in info["processInfo"] if process["type"] == "renderer"]
    return max(_resident_of(number) for number in renderers)


def _resident_of(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
