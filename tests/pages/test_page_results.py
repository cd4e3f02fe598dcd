"""The results of a report in a real browser: the overview, tables and curves."""

import csv
import re
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from models.demo_net import DemoNet
from tests.networks import build
from tests.pages.opened import (
    REMOVED,
    column,
    history,
    names,
    removed_of,
    rows_of,
    settle,
)

# The overview.


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


@pytest.mark.parametrize("width", [420, 1280])
def test_names_of_runs_do_not_overlap(open_page, files, demo, width):
    """Two of them stand at one place, two others near it, one apart."""
    accuracies = {"H2SPG": 0.91, "at random": 0.91, "magnitude": 0.912, "seed 3": 0.909, "other": 0.8}
    runs = [
        jasgnas.Run(name=name, redundant=(0, 2, 4), sub={"test accuracy": accuracy})
        for name, accuracy in accuracies.items()
    ]
    jasgnas.compare(demo, runs, path=files / "near.html")
    page = open_page("near.html", tab="overview", viewport={"width": width, "height": 800})
    boxes = page.locator("#overview .curves .tick").evaluate_all(
        """(found, names) => found.filter((text) => names.includes(text.textContent)).map((text) => {
            const { left, right, top, bottom } = text.getBoundingClientRect();
            return [left, right, top + 2, bottom - 2];
        })""",
        list(accuracies),
    )
    assert len(boxes) == len(accuracies)
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other_left, other_right, other_top, other_bottom in boxes[:i]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top


# Tables.


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
    assert "var(" not in path.read_text("utf-8")
    assert "test accuracy, Sub-network: 0.98" in titles_of(path)


def titles_of(path):
    """The titles in an SVG file."""
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag.endswith("svg")
    return [each.text for each in root.iter() if each.tag.endswith("title")]


def test_the_graph_is_saved_as_it_is_shown(open_page, demo, tmp_path):
    page = open_page("demo.html")
    for network, expected in (("Full network", len(demo.segment_names)), ("Sub-network", 5)):
        page.locator("#network").get_by_text(network).click()
        settle(page)
        with page.expect_download() as download:
            page.locator("#graph .toolbar").get_by_role("button", name="SVG").click()
        download.value.save_as(tmp_path / "graph.svg")
        assert len(titles_of(tmp_path / "graph.svg")) == expected


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
