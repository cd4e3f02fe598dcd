"""The graph of a report in a real browser: what it draws, what it says of a part, and how large graphs are folded."""

import re

import jax
import jax.numpy as jnp
import pytest

import jasgnas
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import arrays, build
from tests.pages.opened import (
    AUTHORS_REDUNDANT,
    REMOVED,
    UNETS_LEFT,
    arrays_of,
    facts,
    names,
    numbers,
    parts,
    removed_of,
    require_one_screen,
    settle,
    shown,
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


def test_a_large_graph_is_folded_by_its_modules(open_page, stack_page, stack):
    space, params = stack
    fn_left, left = jasgnas.construct_subnet(space, space.zero(params, removed_of(stack)))
    page = open_page("stack.html")
    # Thirty blocks fit on a screen in columns.
    assert names(page) == [*(f"module blocks/{i:02}" for i in range(30)), "head"]
    require_one_screen(page)
    page.locator("#viewport .module").first.click()
    page.get_by_role("button", name="Fold blocks", exact=True).click()
    settle(page)
    assert names(page) == ["module blocks", "head"]
    page.locator("#viewport .module").click()
    blocks = jasgnas.count_params(params["blocks"])
    blocks_left = sum(array.size for path, array in arrays_of(left).items() if path.startswith("blocks/"))
    said = facts(page)
    assert said["Parameters"] == f"{blocks:,}" and said["Left of it"].startswith(f"{blocks_left:,} parameters")
    assert said["Removable"] == str(len(space.groups)) and said["Removed"].startswith("30,")
    assert page.locator("#viewport .module .amount").text_content() == f"{shown(blocks)} → {shown(blocks_left)}"
    page.locator("#viewport .module").dblclick()
    page.wait_for_function("() => document.querySelectorAll('#viewport .module').length === 30")
    # Equal blocks are one, with their number; what ends the last block is in the segment of the head.
    page.click("#repeats")
    settle(page)
    assert names(page) == ["module blocks/00 … 28", "module blocks/29", "head"]
    assert page.locator("#viewport .module .tag").text_content() == "×29"
    page.click("#repeats")
    settle(page)
    assert page.locator("#viewport .module").count() == 30
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


# Of the map, the part that is marked as seen: its left, top, right and bottom edge as shares of the map.
SEEN = """() => {
    const map = document.querySelector("#minimap svg").getBoundingClientRect();
    const seen = document.querySelector("#minimap .map-window").getBoundingClientRect();
    const shares = (x, y) => [(x - map.left) / map.width, (y - map.top) / map.height];
    return [...shares(seen.left, seen.top), ...shares(seen.right, seen.bottom)];
}"""
# The same of the drawing itself.
SCROLLED = """() => {
    const of = document.getElementById("viewport");
    const [right, bottom] = [of.scrollLeft + of.clientWidth, of.scrollTop + of.clientHeight];
    const shares = (x, y) => [x / of.scrollWidth, y / of.scrollHeight];
    return [...shares(of.scrollLeft, of.scrollTop), ...shares(Math.min(right, of.scrollWidth), bottom)];
}"""


def test_the_map_shows_what_is_seen_and_goes_there(open_page, stack_page):
    page = open_page("stack.html")
    page.click("#modules")
    settle(page)

    def is_followed():
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page.evaluate(SEEN) == pytest.approx(page.evaluate(SCROLLED), abs=0.02)

    assert is_followed()
    page.evaluate("() => document.getElementById('viewport').scrollTo(40, 1000)")
    assert is_followed() and page.evaluate(SCROLLED)[1] > 0
    for _ in range(3):
        page.click("#zoom-in")
    assert is_followed()
    box = page.locator("#minimap svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert is_followed()
    _, top, _, bottom = page.evaluate(SCROLLED)
    assert (top + bottom) / 2 == pytest.approx(0.5, abs=0.02)


def test_a_search_finds_what_is_inside_a_closed_module(open_page, stack_page):
    page = open_page("stack.html")
    page.fill("#search", "blocks/17/short")
    assert page.locator("#matches").inner_text() == "1 segment"
    assert names(page, ".match") == ["module blocks/17"]


@pytest.mark.parametrize("name", ["demo", "stack"])
def test_every_text_can_be_read_when_all_is_shown(open_page, stack_page, name):
    page = open_page(f"{name}.html")
    page.click("#zoom-fit")
    settle(page)
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
