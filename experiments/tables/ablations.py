"""Ablations: one setting of H2SPG is varied while all others stay, on one small network, and the results are drawn."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.common.plots import new_figure, save_svg
from experiments.tables.jobs import VARIANTS, Variant
from experiments.tables.rows import ROWS
from experiments.tables.summary import Summary, standard_deviation
from jasgnas.optimizer.scores import SCORES

ROW, SCALE = ROWS["super-resnet-1m-cifar10"], "control"
"""What is trained: a small network with many removal structures."""


class Ablation(NamedTuple):
    """What is varied.

    Attributes:
        setting: name of the setting in `experiments.engine.config.H2SPGConfig`.
        label: what it is called in plots.
        values: what it is set to.
        beside: settings in which all of its trainings differ from others'.
    """

    setting: str
    label: str
    values: tuple[Any, ...]
    beside: Mapping[str, Any] = MappingProxyType({})


ABLATIONS = {
    "warmup": Ablation("warmup_fraction", "warm-up, part of the training", (0.15, 0.3, 0.45, 0.6)),
    "settle": Ablation("settle", "selection as soon as it settles", (False, True)),
    "projection": Ablation("projection_fraction", "projection, part of the training", (0.02, 0.1, 0.2, 0.4)),
    "target": Ablation(
        "target_sparsity", "structures that go, part of all (K)", (0.2, 0.4, 0.6, 0.8), {"target_macs": None}
    ),
    "score": Ablation("score", "redundancy score", ("default", *SCORES, "random")),
    "epsilon": Ablation("epsilon", "ε of the half-space", (0.0, 0.5, 0.95)),
    "periods": Ablation("periods", "rounds of selection", (1, 2, 4)),
}
"""By name."""


def variant_name(ablation: Ablation, value: Any) -> str:
    """Returns the name of the variant in which a setting has a value; usual settings are no variant of their own."""
    usual = ROW.sizes[SCALE].apply(ROW.config, ROW.native_size).h2spg
    settings = {ablation.setting: value, **ablation.beside}
    changed = [f"{name}={it}" for name, it in settings.items() if it not in (None, getattr(usual, name))]
    return ", ".join(changed) or "h2spg"


def ablation_variants(ablation: Ablation) -> dict[str, Variant]:
    """Returns the trainings of an ablation by name, that of the full network among them."""
    varied = {variant_name(ablation, value): {ablation.setting: value, **ablation.beside} for value in ablation.values}
    return {"full": VARIANTS["full"]} | {name: Variant(name, settings) for name, settings in varied.items()}


def plot(name: str, found: Iterable[Summary], path: Path) -> None:
    """Draws an ablation as SVG: every seed, their mean and standard deviation, and the full network's mean.

    Args:
        name: name of the ablation.
        found: its trainings.
        path: the file to write.

    Raises:
        ConfigError: Matplotlib is not installed.
        OSError: the file cannot be written.
    """
    ablation = ABLATIONS[name]
    accuracies = {summary.key.variant: summary.accuracies for summary in found}
    figure = new_figure(5, 3.2)
    axes = figure.subplots()
    for place, value in enumerate(ablation.values):
        if values := accuracies.get(variant_name(ablation, value)):
            axes.plot([place] * len(values), values, ".", color="0.6")
            axes.errorbar(place, np.mean(values), standard_deviation(values), fmt="o", color="tab:blue", capsize=3)
    if full := accuracies.get("full"):
        axes.axhline(float(np.mean(full)), linestyle="--", color="tab:green", label="full network")
        axes.legend()
    axes.set(xticks=range(len(ablation.values)), xlabel=ablation.label, ylabel="test accuracy, %")
    axes.set_xticklabels([str(value).replace("_", "\n") for value in ablation.values])
    save_svg(figure, name, path)
