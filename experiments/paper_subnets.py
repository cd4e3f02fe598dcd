"""Sub-networks of the papers' sizes, found in the search spaces of `models`: `python -m experiments.paper_subnets`.

Nothing is trained: what is shown is that some valid set of groups leaves the parameters and multiply-adds that ASGNAS
and OTOv3 report (arXiv 2305.18030, arXiv 2312.09411).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import jasgnas
import models


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
    construct: bool = True
    """Construct the sub-networks and count theirs as well."""
    output: Path = Path("runs/paper_subnets/results.json")
    """File for the sets of groups, by the names of their structures."""


def find_removal(
    space: jasgnas.SearchSpace, target: Size, *, tolerance: float = 0.05, attempts: int = 20, seed: int = 0
) -> tuple[int, ...]:
    """Returns a valid set of groups whose removal leaves a sub-network of a given size.

    From the whole network on, groups are visited in random order, and one is removed or put back where that brings the
    size nearer to the target, until no visit helps. Where this ends elsewhere, another order is tried.

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
                if max(distances) <= math.log1p(tolerance):
                    return tuple(sorted(removed))
                changed = removed ^ {group}
                found = _distances(space, changed, target)
                if sum(found) < sum(distances) and space.is_valid(changed):
                    removed, distances = changed, found
            if removed == before:
                break
    raise jasgnas.TargetError(
        f"no valid set of groups was found that leaves {target} within {tolerance:.0%} in {attempts} attempts; "
        "allow more attempts, or a greater tolerance"
    )


def _distances(space: jasgnas.SearchSpace, removed: set[int], target: Size) -> list[float]:
    """Returns how far each figure of a sub-network is from its target, as an absolute difference of logarithms."""
    pairs = zip(space.subnet_size(removed), target, strict=True)
    return [abs(math.log(size / wanted)) for size, wanted in pairs if wanted is not None]


def construct(name: str, space: jasgnas.SearchSpace, removed: Sequence[int]) -> tuple[int, int]:
    """Constructs a sub-network and returns its parameters and multiply-adds, counted on the constructed module."""
    graphdef, state = nnx.split(models.create_abstract(name))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state)
    subnet = jasgnas.construct_subnet(space, space.zero(nnx.merge(graphdef, ones), removed))
    return jasgnas.count_params(subnet), jasgnas.count_macs(subnet, models.example_input(name))


def run(config: Config) -> None:
    """Finds, constructs and prints the sub-networks one after another, and saves their groups."""
    console = Console(width=110)
    table = Table("sub-network", "found in", title="Sub-networks of the papers' sizes")
    for heading in ("groups removed", "parameters", "of the paper", "multiply-adds", "of the paper"):
        table.add_column(heading, justify="right")
    records = {}
    for label in config.names:
        name, target = PAPER_SIZES[label]
        space = jasgnas.search_space(models.create_abstract(name), models.example_input(name))
        removed = find_removal(space, target)
        size = Size(*space.subnet_size(removed))
        if config.construct:
            size = Size(*construct(name, space, removed))
        names = [group.name for group in space.groups if group.index in removed]
        records[label] = {"network": name, **size._asdict(), "target": target._asdict(), "removed": names}
        left = [group.name for group in space.groups if group.index not in removed]
        shorter = f"all groups but {', '.join(left)}" if len(left) < len(names) else ", ".join(names)
        console.print(f"[bold]{label}[/bold]: {name} without {shorter}")
        table.add_row(
            label,
            name,
            f"{len(removed)} of {len(space.groups)}",
            *(cell for figure, wanted in zip(size, target, strict=True) for cell in _compared(figure, wanted)),
        )
    console.print(table)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(records, indent=2) + "\n")
    console.print(f"Saved in {config.output}")


def _compared(figure: float | None, wanted: float | None) -> tuple[str, str]:
    """Returns a figure in millions, and what it is of the one that was wanted."""
    assert figure is not None
    return f"{figure / 1e6:.2f} M", f"{figure / wanted:.1%}" if wanted else "not published"


def main() -> None:
    """Runs what the command line asks for."""
    run(tyro.cli(Config, description=Config.__doc__))


if __name__ == "__main__":
    main()
