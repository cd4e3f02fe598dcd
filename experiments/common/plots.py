"""Plots as SVG files that are the same whenever the results are."""

from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError


def new_figure(width: float, height: float) -> Any:
    """Returns an empty Matplotlib figure.

    Raises:
        ConfigError: Matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ConfigError("plots need Matplotlib: pip install 'jasgnas[plots]'") from None
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def save_svg(figure: Any, name: str, path: Path) -> None:
    """Writes a figure as SVG, in which words are words.

    Args:
        figure: the figure.
        name: what it is called; the same figure of the same name makes the same file.
        path: the file.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
