"""Search spaces and runs for people to look at: a page for the browser, a drawing for papers."""

from jasgnas.pages.drawing import draw
from jasgnas.pages.page import embedded, report

__all__ = ["draw", "embedded", "report"]
