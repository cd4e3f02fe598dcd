"""A Sphinx extension: warns of public names that no page documents, which fails a build with `-W`."""

from typing import Any

from sphinx.util import logging

import jasgnas

_logger = logging.getLogger(__name__)


def check(app: Any, env: Any) -> None:
    """Compares what `jasgnas` exports with what the pages document."""
    del app
    documented = env.domains["py"].objects
    for name in jasgnas.__all__:
        if f"jasgnas.{name}" not in documented:
            _logger.warning("jasgnas.%s is public, and on no page: add it to docs/api.md", name)
    for name in documented:
        if (
            name.startswith("jasgnas.")
            and name.count(".") == 1
            and name.removeprefix("jasgnas.") not in jasgnas.__all__
        ):
            _logger.warning("%s is on a page, and not public: remove it from docs/api.md", name)


def setup(app: Any) -> dict[str, bool]:
    """Registers the check."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
