"""A browser, reports of a few networks, and pages that are opened in it."""

import os
import shutil
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import jasgnas
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import build
from tests.pages.opened import AUTHORS_REDUNDANT, REMOVED, Opened, history, removed_of

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# No graphics card, no user account, and no talk with the network.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        message = "needs a browser: install Debian's package chromium (apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo():
    return jasgnas.search_space(build(DemoNet, width=0.1), jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))


@pytest.fixture(scope="module")
def unets():
    return jasgnas.search_space(build(StackedUnets, width=0.1), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))


@pytest.fixture(scope="module")
def large():
    """Wider and higher than a sheet of paper: many branches side by side, and many residual blocks below each other."""
    names = [str(index) for index in range(36)]

    def fn(params, x):
        x = sum(x @ params["branches"][name] for name in names)
        for name in names:
            x = x + x @ params["blocks"][name]
        return x @ params["head"]

    weight = np.ones((4, 4), np.float32)
    params = {"branches": dict.fromkeys(names, weight), "blocks": dict.fromkeys(names, weight), "head": weight}
    return jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)


@pytest.fixture(scope="module")
def files(demo, unets, large, tmp_path_factory):
    """A report of DemoNet with everything, one of it without a run, and one of each other network."""
    folder = tmp_path_factory.mktemp("reports")
    scores = [0.3, 0.1, 0.9, np.nan, 0.5]
    run = list(history(len(demo.groups)))
    jasgnas.report(
        demo,
        path=folder / "demo.html",
        title="DemoNet on digits",
        redundant=REMOVED,
        scores=scores,
        history=run,
        full={"test accuracy": 0.99},
        sub={"test accuracy": 0.98},
        command="python -m train --steps 60",
    )
    jasgnas.report(demo, path=folder / "plain.html")
    jasgnas.report(unets, path=folder / "unets.html", redundant=AUTHORS_REDUNDANT)
    jasgnas.report(large, path=folder / "large.html")
    return folder


@pytest.fixture(scope="module")
def stack():
    """Thirty equal residual blocks of two branches, each in a module of its own."""

    def fn(params, x):
        for block in params["blocks"].values():
            x = jnp.tanh(x + jnp.tanh(x @ block["wide"]["a"]) @ block["wide"]["b"] + x @ block["short"]["w"])
        return x @ params["head"]["w"]

    def block(i):
        wide = {"a": np.full((4, 8), 0.1 + i, np.float32), "b": np.ones((8, 4), np.float32)}
        return {"wide": wide, "short": {"w": np.ones((4, 4), np.float32)}}

    params = {"blocks": {f"{i:02}": block(i) for i in range(30)}, "head": {"w": np.ones((4, 3), np.float32)}}
    return jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params), params


@pytest.fixture(scope="module")
def stack_page(files, stack):
    space, _ = stack
    jasgnas.report(space, path=files / "stack.html", redundant=removed_of(stack))


@pytest.fixture(scope="module")
def branches_page(files):
    """A network of which more is dead than the two groups that go."""

    def fn(p, x):
        y = x @ p["a"] + x @ p["b"]
        constant = jnp.tanh(y @ p["c"] + p["bias"])
        return (x @ p["stays"] + constant + jnp.tanh(y @ p["f"]) + (x @ p["d"]) * (y @ p["e"])) @ p["head"]

    params = {name: np.ones((4, 4), np.float32) for name in ("a", "b", "c", "d", "e", "f", "stays", "head")}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params | {"bias": np.ones(4)})
    removed = [group.index for group in space.groups if group.name in ("a", "b")]
    jasgnas.report(space, path=files / "branches.html", redundant=removed)


@pytest.fixture
def open_page(browser, files):
    opened: list[Opened] = []

    def open_one(name: str, tab: str = "graph", **options) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}} | options)
        opened.append(Opened(page))
        page.goto(f"{(files / name).as_uri()}#tab={tab}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for each in opened:
        each.page.close()
    # Every test also checks that the page was quiet, and asked for nothing but itself and its worker.
    assert [text for each in opened for text in each.said] == []
    assert {url.partition(":")[0] for each in opened for url in each.requests} <= {"file", "blob"}
