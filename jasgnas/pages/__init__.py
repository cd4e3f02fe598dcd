"""Search spaces and runs for people to look at: a page for the browser, a drawing for papers."""

from jasgnas.pages.drawing import draw
from jasgnas.pages.page import compare, embedded, report
from jasgnas.pages.runs import Run

__all__ = ["Run", "compare", "draw", "embedded", "report"]
