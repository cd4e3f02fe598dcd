"""How a report answers in a real browser: to pointer and keys, narrow windows and paper, and that it stays quiet."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas.pages.page import embedded
from tests.pages.opened import column, names, settle

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
