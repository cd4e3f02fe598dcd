"""What tests of the report in a browser have in common: an opened page, and how it is read."""

import re

import jax
import numpy as np
from playwright.sync_api import Page

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


def settle(page):
    """Waits until a layout that is under way is drawn."""
    page.wait_for_selector("#viewport[aria-busy=false]")


# Of the drawing on the screen: how many boxes are not in the window as a whole, the smallest text in px, the edges that
# do not begin and end at their boxes, and those that run through a box.
SEEN_AT_ONCE = """() => {
    const viewport = document.getElementById("viewport");
    const all = (selector) => [...viewport.querySelectorAll(selector)];
    const boxOf = (each) => each.getBoundingClientRect();
    const isIn = (box, { x, y }, by) =>
        x > box.left - by && x < box.right + by && y > box.top - by && y < box.bottom + by;
    const boxes = all(".node, .terminal").map(boxOf);
    const ends = new Map(all(".node").map((node) => [node.dataset.segment, boxOf(node)]));
    const edges = all(".edge, .wire").map((path) => {
        const points = Array.from({ length: 201 }, (_, i) =>
            path.getPointAtLength((path.getTotalLength() * i) / 200).matrixTransform(path.getScreenCTM()));
        const isAt = (segment, point) => !ends.has(segment) || isIn(ends.get(segment), point, 3);
        const { from, to } = path.dataset;
        return {
            name: `${from} to ${to}`,
            isLoose: !isAt(from, points[0]) || !isAt(to, points.at(-1)),
            isAcross: points.some((point) => boxes.some((box) => isIn(box, point, -3))),
        };
    });
    const { left, right, top, bottom } = boxOf(viewport);
    const isWhole = (box) => box.left >= left && box.right <= right && box.top >= top && box.bottom <= bottom;
    const scale = viewport.firstChild.getScreenCTM().a;
    return {
        outside: boxes.filter((box) => !isWhole(box)).length,
        text: Math.min(...all(".node text").map((text) => parseFloat(getComputedStyle(text).fontSize) * scale)),
        loose: edges.filter((edge) => edge.isLoose).map((edge) => edge.name),
        across: edges.filter((edge) => edge.isAcross).map((edge) => edge.name),
    };
}"""


def require_one_screen(page):
    """Requires that Fit shows every box as a whole, in texts that can be read, and edges from box to box."""
    page.click("#zoom-fit")
    settle(page)
    seen = page.evaluate(SEEN_AT_ONCE)
    assert seen.pop("text") >= 7
    assert seen == {"outside": 0, "loose": [], "across": []}


def numbers(locator, name):
    return sorted(int(value) for value in locator.evaluate_all(f"found => found.map((each) => each.dataset.{name})"))


def names(page, selector=".node"):
    """The names of segments, in the order of the trace."""
    return page.locator(f"#viewport {selector}").evaluate_all(
        """found => found.sort((a, b) => a.dataset.segment - b.dataset.segment)
            .map((each) => each.dataset.name)"""
    )


def facts(page):
    """What the details say of the selected segment, by name."""
    names, values = (page.locator(f"#details .facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def parts(page):
    """The shapes that the details show, by path."""
    paths, shapes = (page.locator(f"#details .parts {tag}").all_inner_texts() for tag in ("code", "span"))
    return dict(zip(paths, shapes, strict=True))


def row_of(path):
    """Returns the leaf and the row that a part's path names."""
    leaf, row = re.fullmatch(r"(.*?)(?:\[([\d, ]+)\])?", path).groups()
    return leaf, None if row is None else tuple(map(int, row.split(", ")))


def details(page):
    """What the details say of every box that is drawn, by its name: as `facts` and `parts` do, at one go."""
    found = page.locator("#viewport .node").evaluate_all(
        """found => found.map((node) => {
            node.dispatchEvent(new MouseEvent("click", { bubbles: true }));
            const texts = (of) => [...document.querySelectorAll(`#details ${of}`)].map((each) => each.innerText);
            const pairs = (names, values) => Object.fromEntries(names.map((name, i) => [name, values[i]]));
            return [
                node.dataset.name,
                pairs(texts(".facts dt"), texts(".facts dd")),
                pairs(texts(".parts code"), texts(".parts span")),
            ];
        })"""
    )
    return [(name, facts, parts) for name, facts, parts in found]


def number(text):
    """The number that a text begins with."""
    return int(re.match(r"[\d,]+", text)[0].replace(",", ""))


def shown(count):
    """A count as boxes show it."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:#.3g}".rstrip(".") + letter
    return str(count)


def rows_of(page, selector):
    """The titles of drawn bars and squares, which say their numbers in full."""
    return page.locator(f"{selector} title").evaluate_all("found => found.map((each) => each.textContent)")


def arrays_of(tree):
    """The arrays of a tree of parameters by path."""
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def removed_of(stack):
    """The wide branch of every block goes."""
    space, _ = stack
    return [group.index for group in space.groups if "wide" in group.paths[0]]


def column(page, table, index):
    cells = page.locator(f"{table} tbody tr").evaluate_all(f"rows => rows.map((row) => row.cells[{index}].innerText)")
    return [cell.replace(",", "") for cell in cells]
