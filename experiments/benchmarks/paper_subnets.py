"""Sub-networks of the papers' sizes, found in the search spaces of `models`: `python -m experiments.paper_subnets`.

Nothing is trained: what is shown is that some valid set of groups leaves the parameters and multiply-adds that ASGNAS
and OTOv3 report (arXiv 2305.18030, arXiv 2312.09411), and that the sub-network without it, constructed and counted,
returns what the full network returns. The sets in `experiments/results/paper_subnets` are made by
`python -m experiments.paper_subnets --output experiments/results/paper_subnets`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import jasgnas
import models
from experiments.common.cli import check_names
from experiments.common.text import markdown_table


class Size(NamedTuple):
    """Size of a network.

    Attributes:
        num_params: number of trainable parameters.
        macs: multiply-adds of one forward pass; None where the papers do not say.
    """

    num_params: float
    macs: float | None = None


PAPER_SIZES = {
    "DemoNet": ("demo_net", Size(0.45e6, 107e6)),
    "StackedUnets": ("stacked_unets", Size(0.37e6, 115e6)),
    "DARTS, 8 cells": ("darts_8_stl10", Size(0.64e6, 127e6)),
    "DARTS, 14 cells": ("darts_14", Size(4.8e6, 547e6)),
    "SuperResNet 1M": ("super_resnet", Size(1.0e6)),
    "SuperResNet 2M": ("super_resnet", Size(2.0e6)),
}
"""Sub-networks that the papers report: the registered network that they are found in, and their size."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Finds valid sets of groups whose removal leaves sub-networks of the papers' sizes."""

    names: tyro.conf.Positional[tuple[str, ...]] = tuple(PAPER_SIZES)
    """Names of sub-networks: keys of `PAPER_SIZES`."""
    output: Path = Path("runs/paper_subnets")
    """Folder for the groups that are left (results.json) and the table (table.md); an earlier run's are overwritten."""


class Found(NamedTuple):
    """A sub-network of a paper's size.

    Attributes:
        network: name of the registered network that it is a part of.
        num_groups: number of groups of the search space.
        kept: names of the groups that are left; all others are removed.
        size: size of the constructed sub-network.
        difference: between the outputs of full and sub-network, relative to the largest output.
    """

    network: str
    num_groups: int
    kept: tuple[str, ...]
    size: Size
    difference: float


def find_removal(
    space: jasgnas.SearchSpace, target: Size, *, tolerance: float = 0.05, attempts: int = 20, seed: int = 0
) -> tuple[int, ...]:
    """Returns a valid set of groups whose removal leaves a sub-network of a given size.

    From the whole network on, groups are visited in random order, and one is removed or put back where that brings the
    size nearer to the target, until no visit helps. Where this ends too far from it, another order is tried.

    Args:
        space: the search space.
        target: the size that is wanted.
        tolerance: by how much parameters and multiply-adds may each differ from it, relatively.
        attempts: number of orders to try.
        seed: fixes the orders.

    Raises:
        TargetError: no such set was found.
    """
    rng = np.random.default_rng(seed)
    for _ in range(attempts):
        removed: set[int] = set()
        distances = _distances(space, removed, target)
        while True:
            before = removed
            for group in rng.permutation(len(space.groups)).tolist():
                changed = removed ^ {group}
                found = _distances(space, changed, target)
                if sum(found) < sum(distances) and space.is_valid(changed):
                    removed, distances = changed, found
            if removed == before:
                break
        if max(distances) <= math.log1p(tolerance):
            return tuple(sorted(removed))
    raise jasgnas.TargetError(
        f"no valid set of groups was found that leaves {target} within {tolerance:.0%} in {attempts} attempts; "
        "allow more attempts, or a greater tolerance"
    )


def _distances(space: jasgnas.SearchSpace, removed: set[int], target: Size) -> list[float]:
    """Returns how far each figure of a sub-network is from its target, as an absolute difference of logarithms."""
    pairs = zip(space.subnet_size(removed), target, strict=True)
    return [abs(math.log(size / wanted)) for size, wanted in pairs if wanted is not None]


def find(network: str, target: Size) -> Found:
    """Finds a sub-network of a given size, constructs it and compares it with the full network, in float64."""
    x = models.example_input(network)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = randomized(network, rng)
        space = jasgnas.search_space(model, jax.ShapeDtypeStruct(x.shape, jnp.float64))
        removed = find_removal(space, target)
        full = space.zero(model, removed)
        subnet = jasgnas.construct_subnet(space, full)
        images = jnp.asarray(rng.normal(size=(2, *x.shape[1:])))
        # Not compiled as a whole, which takes minutes for a network of thousands of operators.
        expected, found = np.asarray(full(images)), np.asarray(subnet(images))
    kept = tuple(group.name for group in space.groups if group.index not in removed)
    size = Size(jasgnas.count_params(subnet), jasgnas.count_macs(subnet, x))
    return Found(network, len(space.groups), kept, size, float(np.abs(found - expected).max() / np.abs(expected).max()))


def randomized(network: str, rng: np.random.Generator) -> nnx.Module:
    """Returns a network in which nothing is zero or one by chance, as biases and norms are at first."""
    model = models.create_abstract(network)
    params, statistics = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) / math.sqrt(math.prod(p.shape[:-1]))), params)
    statistics = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), statistics)
    nnx.update(model, params, statistics)
    return model


def run(config: Config) -> dict[str, Found]:
    """Finds the sub-networks one after another, prints them and saves their groups.

    Raises:
        ConfigError: there is no sub-network of a name.
        TargetError: none of a size was found.
        OSError: the folder cannot be written.
    """
    check_names("sub-network", config.names, PAPER_SIZES)
    config.output.mkdir(parents=True, exist_ok=True)
    found = {}
    for label in config.names:
        network, target = PAPER_SIZES[label]
        found[label] = find(network, target)
        print(f"{label}: of the groups of {found[label].network} these are left: {', '.join(found[label].kept)}\n")
    table = subnets_table(found)
    print(table)
    (config.output / "table.md").write_text(f"# Sub-networks of the papers' sizes\n\n{table}\n")
    records = {label: subnet._asdict() | {"size": subnet.size._asdict()} for label, subnet in found.items()}
    (config.output / "results.json").write_text(json.dumps(records, indent=2) + "\n")
    print(f"Saved in {config.output}")
    return found


def subnets_table(found: Mapping[str, Found]) -> str:
    """Returns the sizes beside those of the papers, as Markdown."""
    headings = (
        "sub-network",
        "found in",
        "groups removed",
        "parameters",
        "of the paper's",
        "multiply-adds",
        "of the paper's",
        "outputs differ by",
    )
    lines = (
        (
            label,
            subnet.network,
            f"{subnet.num_groups - len(subnet.kept)} of {subnet.num_groups}",
            *itertools.chain.from_iterable(map(_compared, subnet.size, PAPER_SIZES[label][1])),
            f"{subnet.difference:.0e}",
        )
        for label, subnet in found.items()
    )
    return markdown_table(headings, *lines)


def _compared(figure: float | None, wanted: float | None) -> tuple[str, str]:
    """Returns a figure in millions, and what it is of the one that was wanted."""
    assert figure is not None
    return f"{figure / 1e6:.3f} M", f"{figure / wanted:.1%}" if wanted else "not published"
