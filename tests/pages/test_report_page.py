"""The report in a real browser: what it draws, how it answers to pointer and keys, and that it stays quiet."""

import csv
import os
import re
import shutil
from collections.abc import Iterator
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from playwright.sync_api import Browser, Page, sync_playwright

import jasgnas
import models
from jasgnas.pages.page import embedded
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import arrays, build, randomize
from tests.small_models import SMALL

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

REMOVED = (0, 2, 4)
# StackedUnets with the authors' redundant set, and what is left of it.
AUTHORS_REDUNDANT = (0, 3, 4, 5)
UNETS_LEFT = {
    "conv0-bn1-conv3",
    "conv5-conv7-bn9",
    "conv11-conv12",
    "resize",
    "conv26-conv27-bn28",
    "conv36-bn38",
    "fc",
}


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


def history(num_groups):
    for step in range(60):
        yield {
            "step": step,
            "train/loss": 2.0 - step / 30,
            "test/loss": 2.1 - step / 30 if step % 10 == 0 else None,
            "learning_rate": 0.1,
            "phase": min(2, step // 20),
            "group_norms": np.linspace(1, 2, num_groups) * (60 - step),
        }


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


class Opened:
    """A page and everything it said or asked for."""

    def __init__(self, page: Page):
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))


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


def settle(page):
    """Waits until a layout that is under way is drawn."""
    page.wait_for_selector("#viewport[aria-busy=false]")


def numbers(locator, name):
    return sorted(int(value) for value in locator.evaluate_all(f"found => found.map((each) => each.dataset.{name})"))


def names(page, selector=".node"):
    """The names of segments, in the order of the trace."""
    return page.locator(f"#viewport {selector}").evaluate_all(
        """found => found.sort((a, b) => a.dataset.segment - b.dataset.segment)
            .map((each) => each.dataset.name)"""
    )


# Drawing.


@pytest.mark.parametrize("name", ["demo", "unets"])
def test_every_vertex_and_edge_is_drawn(open_page, request, name):
    space = request.getfixturevalue(name)
    page = open_page(f"{name}.html")
    assert numbers(page.locator("#viewport .node"), "segment") == list(range(space.segment_graph.n_node[0]))
    assert names(page) == list(space.segment_names)
    graph = space.segment_graph
    edges = page.locator("#viewport .edge").evaluate_all("found => found.map((e) => [+e.dataset.from, +e.dataset.to])")
    assert sorted(map(tuple, edges)) == sorted(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))

    page.click("#unfold")
    page.wait_for_selector(".operator")
    assert numbers(page.locator("#viewport [data-operator]"), "operator") == list(range(space.trace_graph.n_node[0]))
    assert page.locator("#viewport .edge, #viewport .link").count() == space.trace_graph.n_edge[0]
    page.click("#unfold")
    page.wait_for_selector(".operator", state="detached")


@pytest.mark.parametrize("is_unfolded", [False, True])
def test_boxes_do_not_overlap_and_stand_below_what_they_read(open_page, is_unfolded):
    page = open_page("unets.html")
    if is_unfolded:
        page.click("#unfold")
        settle(page)
    boxes = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("#viewport .node")].map((node) => {
            const { x, y, width, height } = node.querySelector(".shape").getBoundingClientRect();
            return [node.dataset.segment, [x, y, width, height]];
        }))"""
    )
    places = list(boxes.values())
    for i, (x, y, width, height) in enumerate(places):
        for other_x, other_y, other_width, other_height in places[:i]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or y >= other_y + other_height or other_y >= y + height
    edges = page.locator("#viewport .edge").evaluate_all("found => found.map((e) => [e.dataset.from, e.dataset.to])")
    assert all(boxes[a][1] + boxes[a][3] <= boxes[b][1] for a, b in edges)


def test_marks_of_what_went(open_page, unets):
    page = open_page("unets.html")
    assert names(page, ".redundant") == [unets.groups[index].name for index in AUTHORS_REDUNDANT]
    assert page.locator("#viewport .redundant .cross").count() == len(AUTHORS_REDUNDANT)
    dashes = page.locator("#viewport .redundant .shape").evaluate_all(
        "found => found.map((e) => getComputedStyle(e).strokeDasharray)"
    )
    assert set(dashes) != {"none"} and "none" not in dashes
    dead = names(page, ".dead")
    assert dead == ["conv39-bn40", "conv42-conv43", "conv45-bn47-conv48-conv49", "add", "resize", "add", "add"]
    assert len(names(page, ".joint")) == sum(kind == "add" for kind in unets.segment_names)
    assert len(names(page, ".removable")) == len(unets.groups)


def test_switch_to_the_subnetwork_and_back(open_page, unets):
    page = open_page("unets.html")
    page.locator("#network").get_by_text("Sub-network").click()
    page.wait_for_function("() => document.querySelectorAll('#viewport .redundant').length === 0")
    left = names(page)
    assert set(left) == {*UNETS_LEFT, "add"}
    # Of the joints, those with two inputs left: of the skip connections within the first U-net.
    assert left.count("add") == 2 and len(left) == len(UNETS_LEFT) + 2
    assert page.locator("#viewport .terminal").count() == 2
    page.locator("#network").get_by_text("Full network").click()
    page.wait_for_selector(".redundant")
    assert names(page) == list(unets.segment_names)


def test_without_a_run_there_is_nothing_to_switch(open_page, demo):
    page = open_page("plain.html")
    assert page.locator("#network").is_hidden()
    assert page.locator(".tabs button").all_inner_texts() == ["Overview", "Graph", "Groups", "Networks"]
    assert page.locator("#viewport .redundant").count() == 0
    page.click("#tab-groups")
    assert page.locator("#groups th").all_inner_texts()[:3] == ["Group", "Structure", "Parameters"]


@pytest.mark.parametrize("removed", [(0, 1, 2), (3, 4), (0, 1, 2, 3, 4)], ids=str)
def test_a_removal_that_cuts_the_network_is_told(open_page, files, demo, removed):
    jasgnas.report(demo, path=files / "cut.html", redundant=removed)
    page = open_page("cut.html")
    assert "no path is left" in page.locator("#warning").inner_text()
    assert len(names(page, ".redundant")) == len(removed)
    page.locator("#network").get_by_text("Sub-network").click()
    page.wait_for_selector("#viewport .redundant", state="detached")
    page.click("#zoom-fit")


def test_nothing_is_warned_of_without_need(open_page):
    assert all(open_page(name).locator("#warning").is_hidden() for name in ("demo.html", "plain.html", "unets.html"))


# The sizes of the sub-network.


def facts(page):
    """What the details say of the selected segment, by name."""
    names, values = (page.locator(f"#details .facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def parts(page):
    """The shapes that the details show, by path."""
    paths, shapes = (page.locator(f"#details .parts {tag}").all_inner_texts() for tag in ("code", "span"))
    return dict(zip(paths, shapes, strict=True))


def shown(count):
    """A count as boxes show it."""
    return f"{count / 1000:#.3g}k" if count >= 1000 else str(count)


@pytest.mark.parametrize(
    ("name", "constructor", "removed", "shape"),
    [("demo", DemoNet, REMOVED, (2, 8, 8, 1)), ("unets", StackedUnets, AUTHORS_REDUNDANT, (1, 16, 16, 3))],
)
def test_the_subnetwork_has_its_own_sizes(open_page, request, name, constructor, removed, shape):
    space, model = request.getfixturevalue(name), build(constructor, width=0.1)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    page = open_page(f"{name}.html")
    page.locator("#network").get_by_text("Sub-network").click()
    page.wait_for_selector("#viewport .redundant", state="detached")
    shapes: dict[str, str] = {}
    params = macs = 0
    for node in page.locator("#viewport .node").all():
        node.dispatch_event("click")
        own = int(facts(page)["Parameters"].replace(",", ""))
        assert node.locator(".amount").all_text_contents() == ([shown(own)] if own else [])
        params += own
        macs += int(facts(page)["Multiply-adds"].replace(",", ""))
        shapes |= parts(page)
    assert (params, macs) == (
        jasgnas.count_params(subnet),
        jasgnas.count_macs(subnet, jax.ShapeDtypeStruct(shape, jnp.float32)),
    )
    assert shapes == {path: "×".join(map(str, array.shape)) for path, array in arrays(subnet).items()}


def test_details_follow_the_view(open_page):
    page = open_page("demo.html")
    page.locator('#viewport .node[data-name="conv6-bn6"]').click()
    full, shape = facts(page)["Parameters"], parts(page)["conv6/kernel"]
    assert shape == "3×3×18×11" and facts(page)["Left of it"].startswith("627 parameters")
    page.locator("#network").get_by_text("Sub-network").click()
    page.wait_for_function("() => document.querySelector('#details .parts').innerText.includes('3×3×6×11')")
    assert facts(page)["Parameters"] == "627" and facts(page)["In the full network"].startswith(f"{full} parameters")
    # What it read was joined with what is gone.
    assert page.locator("#details .neighbours").first.inner_text() == "conv3-bn3"
    page.locator("#network").get_by_text("Full network").click()
    page.wait_for_function("() => document.querySelector('#details .parts').innerText.includes('3×3×18×11')")
    assert facts(page)["Parameters"] == full


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


def test_the_dead_are_drawn_dead_and_say_why(open_page, branches_page):
    page = open_page("branches.html")
    gone = "removed with others: its inputs are all gone"
    reasons = {
        "bias-c": f"{gone}: a constant is left of it",
        "d": "removed with others: nothing that is left needs it",
        "e": gone,
        "f": gone,
        "mul": "removed with others: it needs e, which went",
    }
    assert set(names(page, ".dead")) == {*reasons, "add"}
    for name, reason in reasons.items():
        page.locator(f'#viewport .node[data-name="{name}"]').dispatch_event("click")
        assert facts(page)["In the sub-network"] == reason
    # Of the dead, only that is drawn in the sub-network of which something is left, as dead.
    page.locator("#network").get_by_text("Sub-network").click()
    page.wait_for_selector("#viewport .redundant", state="detached")
    assert set(names(page)) == {"stays", "bias-c", "add", "head"}
    assert names(page, ".dead") == ["bias-c"]
    assert page.locator("#viewport .dead .amount").all_text_contents() == ["4"]


# The overview.


def rows_of(page, selector):
    """The titles of drawn bars and squares, which say their numbers in full."""
    return page.locator(f"{selector} title").evaluate_all("found => found.map((each) => each.textContent)")


def test_the_overview_has_the_sizes_of_the_constructed_network(open_page, demo):
    model = build(DemoNet, width=0.1)
    subnet = jasgnas.construct_subnet(demo, demo.zero(model, REMOVED))
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    page = open_page("demo.html", tab="overview")
    expected = {
        "parameters, Full network": jasgnas.count_params(model),
        "parameters, Sub-network": jasgnas.count_params(subnet),
        "multiply-adds, Full network": jasgnas.count_macs(model, x),
        "multiply-adds, Sub-network": jasgnas.count_macs(subnet, x),
    }
    bars = dict(text.split(": ") for text in rows_of(page, "#overview .panels"))
    assert {name: int(bars[name].replace(",", "")) for name in expected} == expected
    assert bars["test accuracy, Sub-network"] == "0.98"
    layers = page.locator("#overview .layer").evaluate_all(
        "found => found.map((g) => [+g.dataset.size, +g.dataset.left])"
    )
    assert np.sum(layers, axis=0).tolist() == [jasgnas.count_params(model), jasgnas.count_params(subnet)]
    text = page.locator("#overview").inner_text()
    assert f"3 of {len(demo.groups)}, which hold" in text
    assert all(demo.groups[index].name in text for index in REMOVED)
    assert f"jax {jax.__version__}" in text and "python -m train --steps 60" in text
    # By size, the points that were chosen are where the removed groups lead.
    (params, macs), (left, macs_left) = demo.subnet_size(()), demo.subnet_size(REMOVED)
    dots = page.locator("#overview .dot").evaluate_all(
        "found => found.map((dot) => [+dot.dataset.step, +dot.dataset.value])"
    )
    assert dots == [[3, pytest.approx(100 * left / params)], [3, pytest.approx(100 * macs_left / macs)]]


def network_of(name):
    """A small version of a registered network: its model with random parameters, and what it is called with."""
    _, options, shape = next(row for row in SMALL if row[0] == name)
    graphdef, abstract = nnx.split(models.create_abstract(name, **options))
    dtype = jnp.int32 if name.startswith("decoder") else jnp.float32
    return nnx.merge(graphdef, randomize(abstract)), jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18_cifar", {"channels": True}), ("vit_s16", {}), ("darts_8", {}), ("decoder_small", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_network_has_the_sizes_of_its_subnetwork(open_page, files, name, options):
    model, x = network_of(name)
    space = jasgnas.search_space(model, x, **options)
    removed = space.largest_removal[::2]
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    sizes = jasgnas.count_params(subnet), jasgnas.count_macs(subnet, x)
    jasgnas.report(space, path=files / f"{name}.html", redundant=removed)
    page = open_page(f"{name}.html", tab="overview")
    bars = dict(text.rsplit(": ", 1) for text in rows_of(page, "#overview .panels"))
    assert (
        tuple(int(bars[f"{each}, Sub-network"].replace(",", "")) for each in ("parameters", "multiply-adds")) == sizes
    )
    layers = page.locator("#overview .layer").evaluate_all("found => found.map((g) => +g.dataset.left)")
    assert sum(layers) == sizes[0]
    # Closed, the boxes of the graph hold as much as all that is in them.
    page.click("#tab-graph")
    page.click("#modules")
    settle(page)
    page.locator("#network").get_by_text("Sub-network").click()
    settle(page)
    held = np.zeros(2, int)
    for node in page.locator("#viewport .node").all():
        node.dispatch_event("click")
        held += [int(facts(page)[each].replace(",", "")) for each in ("Parameters", "Multiply-adds")]
    assert page.locator("#viewport .module").count() > 0 and tuple(held) == sizes


def test_many_groups_are_a_heat_map(open_page, files, stack):
    space, _ = stack
    norms = [np.arange(len(space.groups)) + step for step in range(3)]
    marks = {"phase": [0, 1, 2], "selected_at": [1, 1, 1], "num_removed": [0, 0, 30]}
    jasgnas.report(space, path=files / "heat.html", redundant=removed_of(stack), history={"group_norms": norms} | marks)
    page = open_page("heat.html", tab="training")
    chart = page.locator("#training .chart").last
    assert chart.locator("image").count() == 1 and chart.locator(".line").count() == 0
    texts = page.locator("#training .moment title").all_text_contents()
    assert {"selection", "shrunk: 30 groups cut out"} <= {text.partition(", ")[0] for text in texts}
    # The first row is of the last group that goes, at its right end in the last step.
    box = chart.locator("image").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 1)
    index = removed_of(stack)[-1]
    assert chart.locator("output").inner_text() == f"{index} {space.groups[index].name}, step 2: {index + 2}"


def test_the_overview_says_when_and_why(open_page, files, demo):
    run = [
        row | {"selected_at": 20, "runner_up": 1, "predicted_rise": 0.012, "measured_rise": 0.017} for row in history(5)
    ]
    results = {"test accuracy": "97.0 %"}
    jasgnas.report(demo, path=files / "why.html", redundant=REMOVED, history=run, construction=results, sub=results)
    page = open_page("why.html", tab="overview")
    text = re.sub(r"\s+", " ", page.locator("#overview").inner_text())
    for said in ("Selected at update 20", f"Came next {demo.groups[1].name}", "predicted 0.012", "measured 0.017"):
        assert said in text
    assert "At construction" in text and "At the end" in text


def test_runs_are_compared(open_page, files, demo):
    sets = {"seed 0": (0, 2, 4), "seed 1": (1, 2, 3)}
    runs = [
        jasgnas.Run(name=name, redundant=removed, history={"loss": [2.0, 1.0]}, sub={"test accuracy": 0.9 + len(name)})
        for name, removed in sets.items()
    ]
    jasgnas.compare(demo, runs, path=files / "compare.html")
    page = open_page("compare.html", tab="overview")
    table = [row.split("\t") for row in page.locator("#overview tbody tr").all_inner_texts()]
    for (name, *found), (expected, removed) in zip(table, sets.items(), strict=True):
        params, macs = demo.subnet_size(removed)
        assert (name, *found[:2], found[3]) == (expected, f"{params:,}", f"{macs:,}", str(len(removed)))
    squares = [title for title in rows_of(page, "#overview .panels") if " in seed" in title]
    assert {title for title in squares if "went" in title} == {
        f"{demo.groups[index].name} went in {name}" for name, removed in sets.items() for index in removed
    }
    page.click("#tab-training")
    assert page.locator("#training .line").count() == 2
    page.select_option("#run", "1")
    page.wait_for_function("() => document.readyState === 'complete' && document.getElementById('run')?.value === '1'")
    page.wait_for_selector("html[data-ready]")
    assert names(page, ".redundant") == [demo.groups[index].name for index in sets["seed 1"]]


# Details and search.


def test_a_click_tells_everything(open_page, demo):
    page = open_page("demo.html")
    page.locator('#viewport .node[data-name="conv2-bn2"]').click()
    text = page.locator("#details").inner_text()
    leaves = {leaf.path: leaf for leaf in demo.leaves}
    for name in ("conv2/kernel", "conv2/bias", "bn2/scale", "bn2/mean"):
        shape = "×".join(map(str, leaves[name].shape))
        assert re.search(rf"{name}\s+{shape}\s", f"{text}\n")
    group = demo.groups[0]
    macs = demo.segment_graph.nodes["macs"][group.segments[0]]
    for expected in ("removable, group 0", f"{group.num_params:,}", f"{macs:,}", "0.3", "batch_norm", "conv1-bn1"):
        assert expected in text
    page.get_by_role("button", name="concatenate").and_(page.locator("#details button")).click()
    assert "it joins several inputs" in page.locator("#details").inner_text()
    assert names(page, ".selected") == ["concatenate"]


def test_every_segment_says_why(open_page, demo):
    page = open_page("demo.html")
    for name, reason in zip(demo.segment_names, demo.reasons, strict=True):
        page.locator(f'#viewport .node[data-name="{name}"]').dispatch_event("click")
        assert page.locator("#details h2").inner_text() == name
        assert page.locator("#details .reason").inner_text() == reason


def test_unfold_one_segment(open_page):
    page = open_page("demo.html")
    page.locator('#viewport .node[data-name="conv4-bn4-conv5-bn5"]').dblclick()
    page.wait_for_selector(".operator")
    assert page.locator("#viewport .operator .title").all_text_contents() == [
        "avg_pool",
        "conv",
        "batch_norm",
        "conv",
        "batch_norm",
    ]
    page.get_by_role("button", name="Fold", exact=True).click()
    page.wait_for_selector(".operator", state="detached")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("conv4", ["conv4-bn4-conv5-bn5"]),
        ("BN2/SCALE", ["conv2-bn2"]),
        ("max_pool", ["conv3-bn3"]),
        ("group 4", ["conv8-bn8"]),
        ("bn7/", ["conv7-bn7"]),
        ("nothing like it", []),
    ],
)
def test_search(open_page, text, found):
    page = open_page("demo.html")
    page.fill("#search", text)
    assert names(page, ".match") == found
    assert page.locator("#matches").inner_text() == ("1 segment" if found else "nothing found")
    page.press("#search", "Enter")
    assert names(page, ".selected") == found
    page.press("#search", "Escape")
    assert page.input_value("#search") == "" and names(page, ".match") == []


def test_enter_walks_through_the_matches(open_page):
    page = open_page("demo.html")
    page.fill("#search", "avg_pool")
    seen = []
    for _ in range(3):
        page.press("#search", "Enter")
        seen += names(page, ".selected")
    assert seen == ["conv4-bn4-conv5-bn5", "fc1-fc2", "conv4-bn4-conv5-bn5"]
    assert page.locator("#matches").inner_text() == "1 of 2 segments"


# Large networks, and both networks beside each other.


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


def removed_of(stack):
    """The wide branch of every block goes."""
    space, _ = stack
    return [group.index for group in space.groups if "wide" in group.paths[0]]


def test_a_large_graph_is_folded_by_its_modules(open_page, stack_page, stack):
    space, params = stack
    fn_left, left = jasgnas.construct_subnet(space, space.zero(params, removed_of(stack)))
    page = open_page("stack.html")
    # Thirty blocks below each other would not fit on a screen.
    assert names(page) == ["module blocks", "head"]
    page.locator("#viewport .module").click()
    blocks = jasgnas.count_params(params["blocks"])
    blocks_left = sum(array.size for path, array in arrays_of(left).items() if path.startswith("blocks/"))
    said = facts(page)
    assert said["Parameters"] == f"{blocks:,}" and said["Left of it"].startswith(f"{blocks_left:,} parameters")
    assert said["Removable"] == str(len(space.groups)) and said["Removed"].startswith("30,")
    assert page.locator("#viewport .module .amount").text_content() == f"{shown(blocks)} → {shown(blocks_left)}"
    # Equal blocks are one, with their number; what ends the last block is in the segment of the head.
    page.click("#repeats")
    settle(page)
    assert names(page) == ["module blocks/00 … 28", "module blocks/29", "head"]
    assert page.locator("#viewport .module .tag").text_content() == "×29"
    page.click("#repeats")
    settle(page)
    page.locator("#viewport .module").dblclick()
    page.wait_for_function("() => document.querySelectorAll('#viewport .module').length === 30")
    assert page.locator("#minimap").is_visible()
    # A row of a table opens the module that its segment is in.
    page.click("#tab-groups")
    group = space.groups[removed_of(stack)[7]]
    page.locator("#groups").get_by_role("button", name=group.name, exact=True).click()
    page.wait_for_selector("#viewport .node.selected:not(.module)")
    assert names(page, ".selected") == [group.name]
    assert page.locator("#viewport .module").count() == 29
    page.get_by_role("button", name="Fold blocks", exact=True).click()
    page.wait_for_function("() => document.querySelectorAll('#viewport .module').length === 1")
    page.click("#modules")
    page.wait_for_function("() => document.querySelectorAll('#viewport .module').length === 0")
    assert names(page) == list(space.segment_names)


def arrays_of(tree):
    """The arrays of a tree of parameters by path."""
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_a_search_finds_what_is_inside_a_closed_module(open_page, stack_page):
    page = open_page("stack.html")
    page.fill("#search", "blocks/17/short")
    assert page.locator("#matches").inner_text() == "1 segment"
    assert names(page, ".match") == ["module blocks"]


@pytest.mark.parametrize("name", ["demo", "stack"])
def test_every_text_can_be_read_when_all_is_shown(open_page, stack_page, name):
    page = open_page(f"{name}.html")
    page.click("#zoom-fit")
    heights = page.locator("#viewport .node text").evaluate_all(
        "found => found.map((text) => text.getBoundingClientRect().height).filter((height) => height > 0)"
    )
    assert min(heights) > 7


def test_both_networks_beside_each_other(open_page, demo):
    model = build(DemoNet, width=0.1)
    subnet = arrays(jasgnas.construct_subnet(demo, demo.zero(model, REMOVED)))
    page = open_page("demo.html")
    page.locator("#network").get_by_text("Side by side").click()
    page.wait_for_selector("#viewport-2 .node")
    page.wait_for_selector("#viewport-2[aria-busy=false]")
    assert names(page) == list(demo.segment_names)
    second = page.locator("#viewport-2 .node")
    left = ["conv1-bn1", "conv3-bn3", "conv6-bn6", "conv7-bn7", "fc1-fc2"]
    assert sorted(second.evaluate_all("found => found.map((each) => each.dataset.name)")) == left
    # What is narrowed by its inputs says so.
    modules = ("conv6/kernel", "conv6/bias", "bn6/scale", "bn6/bias")
    before, after = (sum(own[path].size for path in modules if path in own) for own in (arrays(model), subnet))
    node = page.locator('#viewport .node[data-name="conv6-bn6"]')
    assert node.locator(".amount").text_content() == f"{shown(before)} → {shown(after)}"
    assert page.locator('#viewport-2 .node[data-name="conv6-bn6"] .amount').text_content() == shown(after)
    node.click()
    assert page.locator("#viewport-2 .selected").get_attribute("data-name") == "conv6-bn6"
    page.locator('#viewport-2 .node[data-name="conv7-bn7"]').click()
    assert names(page, ".selected") == ["conv7-bn7"]
    assert (
        facts(page)["Parameters"]
        == f"{sum(subnet[path].size for path in subnet if re.match('conv7/|bn7/(scale|bias)', path)):,}"
    )
    page.locator("#network").get_by_text("Full network").click()
    page.wait_for_selector("#viewport-2", state="hidden")


# Tables.


def column(page, table, index):
    cells = page.locator(f"{table} tbody tr").evaluate_all(f"rows => rows.map((row) => row.cells[{index}].innerText)")
    return [cell.replace(",", "") for cell in cells]


def test_tables_sort(open_page, demo):
    page = open_page("demo.html")
    page.click("#tab-groups")
    assert column(page, "#groups", 0) == list("01234")
    params = [group.num_params for group in demo.groups]
    heading = page.locator("#groups th", has_text="Parameters").first
    for order, expected in (("descending", sorted(params, reverse=True)), ("ascending", sorted(params))):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        assert column(page, "#groups", 4) == [str(value) for value in expected]
    score = page.get_by_role("button", name="Redundancy score")
    score.focus()
    page.keyboard.press("Enter")
    # What has no score comes last, whatever the order.
    assert column(page, "#groups", 3) == ["0.9", "0.5", "0.3", "0.1", "–"]
    page.keyboard.press("Enter")
    assert column(page, "#groups", 3) == ["0.1", "0.3", "0.5", "0.9", "–"]
    assert column(page, "#groups", 2).count("removed") == len(REMOVED)


def test_dimensions_are_narrowed(open_page, tmp_path):
    model = build(DemoNet, width=0.1)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), channels=True)
    path = tmp_path / "channels.html"
    last = space.dimensions[-1]
    run = list(history(len(space.groups)))
    jasgnas.report(space, path=path, redundant=[0, *last.groups[1:]], history=run)
    page = open_page(path)
    page.locator("#tab-groups").click()
    rows = page.locator("#groups table").nth(1).locator("tbody tr")
    assert rows.count() == len(space.dimensions)
    assert rows.last.locator("td").all_inner_texts()[:3] == [last.name, str(last.size), "1"]
    assert page.locator("#groups tr.redundant").count() == 2  # the structure, and the dimension that goes with it
    page.locator("#tab-training").click()
    assert page.locator("#training .line-gone").count() >= 1


def test_tables_are_filtered_and_saved(open_page, unets, tmp_path):
    page = open_page("unets.html", tab="networks")
    table = page.locator("#networks table").nth(1)
    tools = page.locator("#networks .tools").nth(1)
    tools.get_by_role("searchbox").fill("conv5")
    visible = table.locator("tbody tr:visible")
    found = [name for name in unets.segment_names if "conv5" in name]
    assert [row.split("\t")[1] for row in visible.all_inner_texts()] == found
    assert tools.locator("output").inner_text() == f"{len(found)} of {len(unets.segment_names)}"
    with page.expect_download() as download:
        tools.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "segments.csv")
    with open(tmp_path / "segments.csv", newline="") as file:
        saved = list(csv.DictReader(file))
    params = dict(zip(unets.segment_names, unets.segment_graph.nodes["num_params"].tolist(), strict=True))
    assert {row["Name"]: int(row["Parameters"]) for row in saved} == {name: params[name] for name in found}


@pytest.mark.parametrize("kind", ["SVG", "PNG"])
def test_pictures_are_saved(open_page, tmp_path, kind):
    page = open_page("demo.html", tab="overview")
    with page.expect_download() as download:
        page.locator("#overview .picture").first.get_by_role("button", name=kind).click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    if kind == "PNG":
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        return
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag.endswith("svg") and "var(" not in path.read_text("utf-8")
    titles = [each.text for each in root.iter() if each.tag.endswith("title")]
    assert "test accuracy, Sub-network: 0.98" in titles


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [("conv1-bn1", "conv1-bn1"), ("cells/0/op/a-cells/0/op/b", "cells/0/op/a - b"), ("a/b-c/d", "a/b-c/d")],
)
def test_a_shared_prefix_is_said_once(open_page, name, shown_as):
    folded = "(name) => { const made = foldedName(name); return made.textContent ?? made; }"
    assert open_page("plain.html").evaluate(folded, name) == shown_as


def test_names_sort_as_people_count(open_page, unets):
    page = open_page("unets.html")
    page.click("#tab-networks")
    page.locator("#networks th", has_text="Name").get_by_role("button").click()
    found = [name for name in column(page, "#networks table:nth-of-type(2)", 1) if name.startswith("conv")]
    assert found == sorted(found, key=lambda name: int(re.findall(r"\d+", name)[0]))


def test_networks_are_compared(open_page, demo):
    page = open_page("demo.html")
    page.click("#tab-networks")
    (params, macs), (left, macs_left) = demo.subnet_size(()), demo.subnet_size(REMOVED)
    rows = page.locator("#networks table:nth-of-type(1) tbody tr").all_inner_texts()
    assert [row.split("\t")[:3] for row in rows] == [
        ["parameters", f"{params:,}", f"{left:,}"],
        ["multiply-adds", f"{macs:,}", f"{macs_left:,}"],
        ["test accuracy", "0.99", "0.98"],
    ]
    sizes = column(page, "#networks table:nth-of-type(2)", 5)
    assert sum(map(int, sizes)) == left


def test_a_row_opens_its_segment(open_page, demo):
    page = open_page("demo.html")
    page.locator("#network").get_by_text("Sub-network").click()
    settle(page)
    page.click("#tab-groups")
    # It is gone in the sub-network, so the page goes back to the full one.
    page.get_by_role("button", name="conv8-bn8").and_(page.locator("#groups button")).click()
    page.wait_for_selector("#viewport .selected")
    assert names(page, ".selected") == ["conv8-bn8"]
    assert page.locator("#graph").is_visible() and page.locator("#groups").is_hidden()


# Curves.


def test_curves_of_the_run(open_page, demo):
    page = open_page("demo.html")
    page.click("#tab-training")
    titles = [text.split("\n")[0].lower() for text in page.locator("#training figcaption").all_inner_texts()]
    assert [re.split(r"\s{2}|\t| \d|train", title)[0].strip() for title in titles] == [
        "loss",
        "learning rate",
        "group norms",
    ]
    lines = [chart.locator(".line").count() for chart in page.locator(".chart").all()]
    assert lines == [2, 1, len(demo.groups)]
    assert page.locator(".chart").last.locator("path.line-gone").count() == len(REMOVED)
    shades = page.locator(".chart").first.locator(".phase title").all_text_contents()
    assert shades == ["warm-up", "projection", "target met"]
    # The curve falls from the top left to the bottom right.
    path = page.locator(".chart").first.locator(".line").first.get_attribute("d")
    points = [tuple(map(float, point.split(","))) for point in path[1:].split("L")]
    assert len(points) == 60 and points[0][0] < points[-1][0] and points[0][1] < points[-1][1]


def test_the_pointer_reads_the_curves(open_page):
    page = open_page("demo.html")
    page.click("#tab-training")
    chart = page.locator(".chart").first
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + box["height"] / 2)
    text = chart.locator("output").inner_text()
    step = int(re.search(r"step (\d+)", text)[1])
    assert f"train {float(f'{2 - step / 30:.4g}'):g}" in text and "test" in text


@pytest.mark.parametrize("width", [420, 1280])
def test_axes_and_phases_have_names(open_page, files, demo, width):
    # The first two phases are too short for a name inside the chart.
    run = [row | {"phase": min(2, row["step"] // 3)} for row in history(len(demo.groups))]
    jasgnas.report(demo, path=files / "short.html", redundant=REMOVED, history=run)
    page = open_page("short.html", viewport={"width": width, "height": 800})
    page.click("#tab-training")
    measures = ["loss", "learning rate", "norm of each group's parameters"]
    for chart, measure in zip(page.locator(".chart").all(), measures, strict=True):
        assert chart.locator(".axis-name").all_text_contents() == [measure, "step (optimizer updates)"]
        assert chart.locator(".phases li").all_inner_texts() == [
            "warm-up: steps 0 to 3",
            "projection: steps 3 to 6",
            "target met: steps 6 to 59",
        ]
        assert chart.locator(".phase-name").all_text_contents() == ["target met"]
        texts = chart.locator("svg text").evaluate_all(
            """found => found.map((text) => {
                const own = text.getBoundingClientRect();
                const frame = text.ownerSVGElement.getBoundingClientRect();
                const isInside = own.left >= frame.left - 1 && own.right <= frame.right + 1
                    && own.top >= frame.top - 1 && own.bottom <= frame.bottom + 1;
                return [isInside, own.height];
            })"""
        )
        assert all(is_inside and height > 9 for is_inside, height in texts)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.00012345, "0.012 %"),
        (0.0346, "3.5 %"),
        (0.5604, "56 %"),
        (0.99, "99 %"),
        (0.9962, "99.62 %"),
        (0.99996, "99.996 %"),
        (1, "100 %"),
        (1.234, "123 %"),
    ],
)
def test_shares_have_two_digits_that_say_something(open_page, share, text):
    assert open_page("plain.html").evaluate(f"() => percent({share})") == text


# Pointer, keys, looks.


def test_zoom_and_move(open_page):
    page = open_page("unets.html")
    width = "() => document.querySelector('#viewport svg').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.click("#zoom-in")
    page.keyboard.press("+")
    assert page.evaluate(width) == pytest.approx(before * 1.25**2, rel=1e-3)
    for _ in range(4):
        page.click("#zoom-in")
    scroll = "() => [document.getElementById('viewport').scrollLeft, document.getElementById('viewport').scrollTop]"
    left, top = page.evaluate(scroll)
    page.mouse.move(300, 500)
    page.mouse.down()
    page.mouse.move(260, 440, steps=4)
    page.mouse.up()
    page.wait_for_function(f"() => ({scroll})().every((at, i) => Math.abs(at - {[left + 40, top + 60]}[i]) <= 1)")
    assert names(page, ".selected") == []  # a drag is no click
    page.keyboard.press("0")
    assert page.evaluate(width) == pytest.approx(before, rel=1e-3)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -250)
    page.keyboard.up("Control")
    page.wait_for_function(f"() => ({width})() > {before * 1.5}")


def test_everything_by_keyboard(open_page):
    page = open_page("demo.html")

    def focused():
        return page.evaluate("() => document.activeElement.dataset.name ?? document.activeElement.id")

    page.keyboard.press("/")
    assert focused() == "search"
    page.keyboard.type("bn6")
    page.keyboard.press("Enter")
    assert names(page, ".selected") == ["conv6-bn6"]
    page.keyboard.press("Escape")
    assert names(page, ".selected") == []
    while focused() != "conv6-bn6":  # the one place in the graph that Tab stops at
        page.keyboard.press("Tab")
    for key, expected in [
        ("ArrowDown", "conv7-bn7"),
        ("ArrowRight", "conv8-bn8"),
        ("ArrowLeft", "conv7-bn7"),
        ("ArrowDown", "add"),
        ("ArrowUp", "conv7-bn7"),
    ]:
        page.keyboard.press(key)
        assert focused() == expected
    page.keyboard.press("Enter")
    assert page.locator("#details h2").inner_text() == "conv7-bn7"
    page.keyboard.press("u")
    page.wait_for_selector(".operator")
    page.locator("#tab-graph").focus()
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-groups" and page.locator("#groups").is_visible()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert focused() == "tab-training" and page.locator("#training").is_visible()


def luminance(colour):
    red, green, blue = (int(value) / 255 for value in re.findall(r"\d+", colour)[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def colours(page):
    """Text and ground of the page, of a removable and of a redundant box."""
    return page.evaluate(
        """() => {
            const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
            const stays = ".node.removable:not(.redundant)";
            return [
                [of("body", "color"), of("body", "backgroundColor")],
                [of(".heading p", "color"), of(".top", "backgroundColor")],
                [of(`${stays} .title`, "fill"), of(`${stays} .shape`, "fill")],
                [of(".node.redundant .title", "fill"), of(".node.redundant .shape", "fill")],
                [of(".node.redundant .subtitle", "fill"), of(".node.redundant .shape", "fill")],
            ];
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(open_page, scheme):
    page = open_page("demo.html", color_scheme=scheme)
    for _ in range(2):
        assert all(contrast(text, ground) >= 4.5 for text, ground in colours(page))
        assert (luminance(colours(page)[0][1]) < 0.1) is (scheme == "dark")
        page.click("#theme")
        scheme = "dark" if scheme == "light" else "light"


def test_print_shows_every_part(open_page):
    page = open_page("demo.html", color_scheme="dark")
    page.emulate_media(media="print")
    assert all(page.locator(f"#{name}").is_visible() for name in ("graph", "groups", "networks", "training"))
    assert not any(page.locator(selector).is_visible() for selector in (".toolbar", ".tabs", "#details", "#theme"))
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen")
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"


# Of every sheet of paper: its scale, and the segments that are on it as a whole.
SHEETS = """() => [...document.querySelectorAll("#paper svg")].map((svg) => {
    const paper = svg.getBoundingClientRect();
    const isWhole = (node) => {
        const box = node.querySelector(".shape").getBoundingClientRect();
        return box.left >= paper.left && box.right <= paper.right && box.top >= paper.top && box.bottom <= paper.bottom;
    };
    const whole = [...svg.querySelectorAll(".node")].filter(isWhole).map((node) => Number(node.dataset.segment));
    return [paper.width / svg.viewBox.baseVal.width, whole];
})"""


@pytest.mark.parametrize(("name", "several"), [("demo", False), ("unets", False), ("large", True)])
def test_paper_shows_every_segment_at_a_size_that_can_be_read(open_page, request, name, several):
    num_segments = request.getfixturevalue(name).segment_graph.n_node[0]
    page = open_page(f"{name}.html", viewport={"width": 703, "height": 1000})  # A4 without its margins
    if page.get_by_role("button", name="Open modules").is_visible():
        page.click("#modules")
        settle(page)
    page.emulate_media(media="print")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    sheets = page.evaluate(SHEETS)
    assert (len(sheets) > 4) is several
    overview, *_ = sheets
    assert sorted(overview[1]) == list(range(num_segments))
    sheets = sheets[1:] if several else sheets
    assert all(11 * scale * 0.75 > 4.9 for scale, _ in sheets)  # points of a text of 11 px
    assert {segment for _, whole in sheets for segment in whole} == set(range(num_segments))
    names = page.locator("#paper .place-name").all_text_contents()
    captions = page.locator("#paper figcaption").all_text_contents()
    assert [f"Sheet {name}" for name in names] == captions[1:]
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator("#paper svg").count() == 0


# What reaches beyond the window, or beyond what scrolls up and down only; the drawing is for moving about.
SIDEWAYS = """() => {
    const isFree = (each) => each.closest("#viewport, [hidden]") !== null;
    const isWide = (each) => each.getBoundingClientRect().right > innerWidth + 0.5
        || (each.scrollWidth > each.clientWidth && getComputedStyle(each).overflowX === "auto");
    const shown = [...document.querySelectorAll("body *")].filter((each) => each.getClientRects().length > 0);
    const wide = shown.filter((each) => !isFree(each) && isWide(each));
    return [document.documentElement.scrollWidth, ...wide.map((each) => each.outerHTML.slice(0, 100))];
}"""


@pytest.mark.parametrize("name", ["demo", "plain", "unets", "large", "nasty", "branches"])
def test_narrow_screens_need_no_sideways_scrolling(open_page, request, name):
    if name in ("nasty", "branches"):
        request.getfixturevalue(f"{name}_page")
    page = open_page(f"{name}.html", viewport={"width": 420, "height": 800})
    page.locator("#viewport .node").first.dispatch_event("click")
    for tab in page.locator(".tabs button").all():
        tab.click()
        assert page.evaluate(SIDEWAYS) == [420]


def test_a_narrow_table_says_what_each_number_is(open_page, demo):
    page = open_page("demo.html", viewport={"width": 420, "height": 800})
    page.click("#tab-groups")
    said = (
        page.locator("#groups tbody tr")
        .first.locator("td")
        .evaluate_all("cells => cells.map((cell) => [getComputedStyle(cell, '::before').content, cell.innerText])")
    )
    group = demo.groups[0]
    assert ['"Parameters"', f"{group.num_params:,}"] in said and ['"Structure"', group.name] in said
    page.get_by_role("columnheader", name="Parameters", exact=True).get_by_role("button").click()
    assert column(page, "#groups", 4) == [str(n) for n in sorted((g.num_params for g in demo.groups), reverse=True)]


# Strangers' names.

NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "<!--<script>",
    "javascript:alert(4)",
    "&lt;b&gt;",
    "a\u2028b",
    "@@script@@",
]


@pytest.fixture(scope="module")
def nasty_space():
    def fn(params, x):
        return sum(x @ params[name]["w"] for name in NASTY) @ params["head"]["w"]

    params = {name: {"w": np.ones((4, 4), np.float32)} for name in [*NASTY, "head"]}
    return jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)


@pytest.fixture(scope="module")
def nasty_page(files, nasty_space):
    run = [{name: 1.0 for name in NASTY}]
    texts = {name: name for name in NASTY}
    jasgnas.report(
        nasty_space, path=files / "nasty.html", title=NASTY[0], redundant=[0], history=run, full=texts, sub=texts
    )


def test_names_are_text_and_nothing_else(open_page, nasty_page, nasty_space):
    page = open_page("nasty.html")
    assert page.title() == page.locator("h1").inner_text() == NASTY[0]
    assert set(NASTY) <= set(names(page))
    for tab in ("groups", "networks", "training", "graph"):
        page.click(f"#tab-{tab}")
    for node in page.locator("#viewport .node").all():
        node.dispatch_event("click")
    assert page.locator("#viewport .node").count() == nasty_space.segment_graph.n_node[0]
    assert page.locator("img, iframe, [onload], [onerror], body > svg").count() == 0
    # The page's own: data, engine, worker, script.
    assert page.locator("script").count() == 4


def test_the_policy_forbids_the_network_and_other_scripts(browser, files):
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((files / "plain.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("() => fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.wasRun = true";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("() => window.wasRun") is None
    assert len(refused) >= 2 and all("Content Security Policy" in text for text in refused)
    page.close()


def test_a_notebook_shows_the_page_in_a_frame(browser, nasty_space):
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_content(f"<p>cell</p>{embedded(nasty_space)}")
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    assert frame.locator("#viewport .node").count() == nasty_space.segment_graph.n_node[0]
    assert said == []
    page.close()
