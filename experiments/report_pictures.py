"""Makes the pictures of the report that the documentation shows: `python -m experiments.report_pictures`.

DemoNet learns scikit-learn's digits for a minute and loses three of its five branches; DARTS with 14 cells is only
searched. Needs Debian's package `chromium` and the extra `test`, which brings Playwright.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.datasets import load_digits

import jasgnas
import models
from experiments.benchmarks.report import OPTIONS
from experiments.common.cli import parse, run_command

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """Makes the pictures of the report that the documentation shows."""

    output_dir: Path = Path("docs/_static")
    """Folder for the pictures."""
    num_steps: int = 300
    """Updates of DemoNet; two fifths of them before the selection, two fifths for the way to zero."""
    large: str = "darts_14"
    """The large network, by its name in `models.list_models()`."""
    axe: Path | None = None
    """The file axe.min.js of the npm package axe-core: checks the accessibility of every page that is opened, and of
    the large graph in the dark theme and a page of several runs beside them."""


def main() -> None:
    """Makes the pictures in the folder that the command line names."""
    config = parse(Config, "report_pictures", Config.__doc__)
    run_command(lambda: run(config))


def run(config: Config) -> None:
    """Writes the reports, opens them in a browser and saves what it shows.

    Raises:
        FileNotFoundError: there is no browser.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no browser: install Debian's package chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        small, large, several = (Path(folder) / f"{name}.html" for name in ("small", "large", "several"))
        _small_reports(config, small, several)
        space = jasgnas.search_space(models.create_abstract(config.large), models.example_input(config.large))
        jasgnas.report(space, path=large, title=config.large, redundant=space.largest_removal[::2])
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        for name, page in _pages(browser, small, large):
            page.screenshot(path=config.output_dir / f"report-{name}.png")
            if config.axe is not None:
                _check(name, page, config.axe.read_text())
            page.close()
        if config.axe is not None:
            for name, page in _checked_pages(browser, large, several):
                _check(name, page, config.axe.read_text())
                page.close()
        browser.close()


def _opened(browser: Browser, path: Path, tab: str, width: int = 1280, height: int = 800, **options: Any) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.goto(f"{path.as_uri()}#tab={tab}")
    page.wait_for_selector("html[data-ready]", timeout=300_000)
    return page


def _checked_pages(browser: Browser, large: Path, several: Path) -> Iterator[tuple[str, Page]]:
    """Opens pages that have no picture and are checked all the same, by a name."""
    yield "folded, dark", _opened(browser, large, "graph", color_scheme="dark")
    for scheme in ("light", "dark"):
        for tab in ("overview", "training"):
            yield f"several runs, {tab}, {scheme}", _opened(browser, several, tab, color_scheme=scheme)


def _pages(browser: Browser, small: Path, large: Path) -> Iterator[tuple[str, Page]]:
    """Opens the pages, each as its picture shows it, by the name of the picture."""
    yield "overview", _opened(browser, small, "overview", height=1000)
    yield "training", _opened(browser, small, "training")
    yield "folded", _opened(browser, large, "graph")
    yield "dark", _opened(browser, small, "graph", color_scheme="dark")
    yield "narrow", _opened(browser, small, "overview", width=420)

    page = _opened(browser, small, "graph", width=1440)
    page.get_by_text("Side by side").click()
    page.wait_for_selector("#viewport-2[aria-busy=false] .node")
    page.locator('#viewport .node[data-name="conv6-bn6"]').click()
    yield "side-by-side", page

    page = _opened(browser, small, "overview", width=703, height=1000)  # A4 without its margins
    page.emulate_media(media="print")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    yield "print", page


def _check(name: str, page: Page, axe: str) -> None:
    """Prints the faults that axe-core finds in a page."""
    page.evaluate(axe)
    found = page.evaluate("() => axe.run().then(({ violations }) => violations)")
    for fault in found:
        targets = ", ".join(node["target"][0] for node in fault["nodes"][:3])
        print(f"{name}: {fault['impact']}: {fault['help']} ({len(fault['nodes'])}: {targets})")
    print(f"{name}: {len(found)} faults")


def _small_reports(config: Config, path: Path, several: Path) -> None:
    """Trains DemoNet without three of its branches and writes the report of that, and one beside a random choice."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order].reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32), labels[order]
    train, test = slice(0, 1440), slice(1440, None)

    model = models.create("demo_net", width=0.5)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    steps = 2 * config.num_steps // 5
    full = _fit(model, optax.adam(2e-3), images[train], labels[train], config.num_steps, lambda _: {})
    reference = {"test accuracy": _accuracy(model, images[test], labels[test])}

    model = models.create("demo_net", width=0.5)
    adam: Any = jasgnas.ADAM_DEFAULTS
    h2spg = jasgnas.h2spg(
        space, learning_rate=2e-3, target_groups=3, warmup_steps=steps, projection_steps=steps, **adam
    )
    tx = optax.chain(optax.adam(2e-3), h2spg)
    fitted = _fit(model, tx, images[train], labels[train], config.num_steps, jasgnas.h2spg_metrics)
    for own, other in zip(fitted.history, full.history, strict=True):
        own["full network/loss"] = other["loss"]
        own["with H2SPG/loss"] = own.pop("loss")
    subnet = jasgnas.construct_subnet(space, model, opt_state=fitted.opt_state)
    construction = {"test accuracy": _accuracy(subnet, images[test], labels[test])}
    jasgnas.recalibrate(subnet, [images[train]])
    results = {"test accuracy": _accuracy(subnet, images[test], labels[test])}
    chosen = jasgnas.Run(name="H2SPG", opt_state=fitted.opt_state, history=fitted.history, sub=results)
    random = jasgnas.Run(name="at random", redundant=space.random_redundant(jax.random.key(0), 3))
    jasgnas.compare(space, [chosen, random], path=several)
    jasgnas.report(
        space,
        path=path,
        title="DemoNet on digits",
        opt_state=fitted.opt_state,
        history=fitted.history,
        full=reference,
        construction=construction,
        sub=results,
        settings={
            "target_groups": 3,
            "warmup_steps": steps,
            "projection_steps": steps,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "updates": config.num_steps,
            "batch": _BATCH,
        },
        command="python -m experiments.report_pictures",
    )


@dataclasses.dataclass(frozen=True)
class _Fitted:
    history: list[dict[str, Any]]
    opt_state: Any


def _fit(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    images: Any,
    labels: Any,
    num_steps: int,
    metrics: Callable[[Any], dict[str, Any]],
) -> _Fitted:
    """Trains a network, and keeps what is worth logging of every update."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def loss_fn(model: nnx.Module, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)

        def value_of(model: nnx.Module) -> jax.Array:
            return loss_fn(model, images, labels)

        optimizer.update(model, grads, grad=grads, value=loss, value_fn=jasgnas.nnx_value_fn(model, value_of))
        return loss

    rng = np.random.default_rng(1)
    history: list[dict[str, Any]] = []
    for _ in range(num_steps):
        batch = rng.integers(len(labels), size=_BATCH)
        loss = step(model, optimizer, images[batch], labels[batch])
        history.append({"loss": float(loss)} | metrics(optimizer.opt_state))
    return _Fitted(history, optimizer.opt_state)


def _accuracy(model: Any, images: Any, labels: Any) -> str:
    model.eval()
    return f"{np.mean(np.argmax(model(images), axis=1) == labels):.1%}"


if __name__ == "__main__":
    main()
