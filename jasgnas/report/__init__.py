"""Search spaces and runs for people to look at: a page for the browser, a drawing for papers."""

from jasgnas.report.drawing import draw
from jasgnas.report.page import embedded, report

__all__ = ["draw", "embedded", "report"]
