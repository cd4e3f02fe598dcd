"""A Sphinx extension: warns of public names that no page documents, which fails a build with `-W`."""

import re
from typing import Any

from sphinx.util import logging

import jasgnas

_logger = logging.getLogger(__name__)


def check(app: Any, env: Any) -> None:
    """Compares what `jasgnas` exports with what the pages document."""
    del app
    public = {f"jasgnas.{name}" for name in jasgnas.__all__}
    documented = {name for name in env.domains["py"].objects if re.fullmatch(r"jasgnas\.\w+", name)}
    for name in sorted(public - documented):
        _logger.warning("%s is public, and on no page: add it to docs/api.md", name)
    for name in sorted(documented - public):
        _logger.warning("%s is on a page, and not public: take it out of docs/api.md", name)


def setup(app: Any) -> dict[str, bool]:
    """Registers the check."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
