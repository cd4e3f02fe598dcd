"""Drawings of the graphs as SVG and PNG, laid out by the same scripts as the page."""

import asyncio
import atexit
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from xml.etree import ElementTree

from jasgnas.errors import ArgumentError, JasgnasError
from jasgnas.pages.data import drawing_data
from jasgnas.pages.files import asset, engine
from jasgnas.pages.left import left_of
from jasgnas.space.search import SearchSpace
from jasgnas.subnet.construct import opened_subnet

View = Literal["segments", "operators", "subnet"]
VIEWS: tuple[View, ...] = ("segments", "operators", "subnet")

_SECONDS = 300
# Pixels of a PNG per unit of the SVG, and at most on a side.
_PNG_SCALE = 2
_MOST_PIXELS = 8192
# Segments of a drawing that a notebook makes unasked.
_MOST_DRAWN = 150
# Arrays of a full network that a notebook traces anew, unasked, for the drawing of a sub-network: a second or two.
_MOST_TRACED = 1000


class Drawing(str):
    """A drawing: the text of an SVG file, which notebooks show as an image."""

    def _repr_svg_(self) -> str:
        return str(self)


def draw(
    space: SearchSpace | Any,
    redundant: Iterable[int] = (),
    path: str | Path | None = None,
    *,
    view: View | None = None,
) -> Drawing:
    """Draws a graph of a search space or of a sub-network, top to bottom, for papers and notebooks.

    Needs the extra `draw`: `pip install 'jasgnas[draw]'`.

    Args:
        space: the search space, or a sub-network that `jasgnas.construct_subnet` or `jasgnas.shrink` returned: the
            module, the transform or the function, without its parameters. Of a sub-network the full one is traced anew.
        redundant: indices of groups to show as removed, with what is dead without them; a sub-network knows them.
        path: file to write: SVG, or PNG where the name ends in `.png`.
        view: "segments", "operators" for every operator inside its segment, or "subnet" for what is left, in its own
            sizes. By default "segments" of a search space, and "subnet" of a sub-network, of which the others show the
            full network and what is gone.

    Returns:
        The drawing: a string of SVG, which notebooks show as an image. Its texts need a monospaced font, which every
        browser has.

    Raises:
        ArgumentError: `view` or an index is none there is; what was given is neither a search space nor a sub-network,
            or it is one and `redundant` is given.
        JasgnasError: the extra is not installed.
        OSError: the file cannot be written.
    """
    if view is not None and view not in VIEWS:
        raise ArgumentError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
    redundant = list(redundant)
    if not isinstance(space, SearchSpace):
        if redundant:
            raise ArgumentError("a sub-network knows what was removed of it: leave out redundant=")
        space, redundant = _full_space(space)
        view = view or "subnet"
    removed = space.removed(redundant)
    svg = _svg(drawing_data(space, left_of(space, removed) if removed.any() else None), view or "segments")
    if path is not None:
        path = Path(path)
        path.write_bytes(_png(svg) if path.suffix.lower() == ".png" else svg.encode())
    return Drawing(svg)


def picture(network: SearchSpace | Any) -> str | None:
    """Returns the drawing of a search space or a sub-network for a notebook.

    None where nobody could read it, where it would take long to find, or where the extra `draw` is not installed: a
    notebook has something else to show.
    """
    is_space = isinstance(network, SearchSpace)
    if not is_space and ((made := opened_subnet(network)) is None or len(made[0].leaves) > _MOST_TRACED):
        return None
    space, redundant = (network, []) if is_space else _full_space(network)
    if len(space.graph.segments) > _MOST_DRAWN:
        return None
    try:
        return draw(space, redundant, view="segments" if is_space else "subnet")
    except JasgnasError:
        return None


def _full_space(subnet: Any) -> tuple[SearchSpace, list[int]]:
    """Makes the search space again that a sub-network was made of, and returns it with the groups that are gone."""
    if (made := opened_subnet(subnet)) is None:
        raise ArgumentError(
            "expected a search space, or a sub-network as jasgnas.construct_subnet returns it, without its parameters; "
            f"got {type(subnet).__name__}"
        )
    recipe, model = made
    return recipe.origin.space(model), list(recipe.origin.removed)


def _svg(data: dict[str, Any], view: View) -> str:
    run = _layout_engine()
    tree, width, height = json.loads(run(f"draw({json.dumps(data)}, {json.dumps(view)})"))
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    root = _element(["svg", {"xmlns": "http://www.w3.org/2000/svg", **size}, ["style", {}, _style()], tree])
    return ElementTree.tostring(root, encoding="unicode")


def _element(tree: list[Any]) -> ElementTree.Element:
    """Makes the element of a tree `[tag, attributes, *children]`; children that are strings are text."""
    tag, attributes, *children = tree
    element = ElementTree.Element(tag, {name: str(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, str):
            element.text = _xml_text(child)
        else:
            element.append(_element(child))
    return element


def _xml_text(text: str) -> str:
    """Replaces the characters that XML cannot hold at all."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _style() -> str:
    """Returns the style of a drawing with its colours filled in: few programs but browsers know CSS variables."""
    colours = dict(re.findall(r"(--[\w-]+): ([^;]+);", asset("theme.css").partition("}")[0]))
    return re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], asset("drawing.css"))


@cache
def _layout_engine() -> Callable[[str], Any]:
    """Returns what evaluates expressions where the scripts of the layout are loaded."""
    try:
        from py_mini_racer import init_mini_racer, mini_racer
    except ImportError as error:
        raise _missing("mini-racer", error) from error
    # Here and not in the thread of the first engine, of which the threads of later ones would not descend: where memory
    # is protected by keys, they could not write to it.
    init_mini_racer(ignore_duplicate_init=True)
    context = _served(mini_racer)
    # An evaluation ends in a number, so that nothing but that is converted to Python.
    for script in (asset("engine.js"), engine(), asset("scene.js"), asset("modules.js"), asset("draw.js")):
        context.eval(f"{script}\n;0", timeout_sec=_SECONDS)
    return lambda expression: context.eval(expression, timeout_sec=_SECONDS)


def _served(engine: Callable[[], Any]) -> Any:
    """Returns what a context manager makes, entered in a thread and an event loop of its own until the program ends.

    In a loop that runs already, as a notebook's does, the engine could not be waited for; and no thread but the one
    that it was made in may end it.
    """
    ready: Future[tuple[Any, Callable[[], Any]]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with engine() as context:
            ready.set_result((context, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:  # a library that is missing, or made for another machine
            ready.set_exception(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    context, stop = ready.result()

    def close() -> None:
        stop()
        thread.join()

    # Left to the garbage collector, it may wait for ever for its thread, which an interpreter that ends has halted.
    atexit.register(close)
    return context


def _png(svg: str) -> bytes:
    """Returns the drawing as PNG, on white."""
    try:
        import resvg_py
    except ImportError as error:
        raise _missing("resvg-py", error) from error
    root = ElementTree.fromstring(svg)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    longest = min(_PNG_SCALE * max(width, height), _MOST_PIXELS)
    # The other side follows.
    sides = (None, longest) if height > width else (longest, None)
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", width=sides[0], height=sides[1]))


def _missing(package: str, error: ImportError) -> JasgnasError:
    return JasgnasError(f"jasgnas.draw needs the package {package} ({error}): pip install 'jasgnas[draw]'")
