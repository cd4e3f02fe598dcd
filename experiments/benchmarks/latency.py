"""Whether the time of sub-networks is what was predicted of them, and what rounded widths are worth.

Each network is measured segment by segment (`jasgnas.measure_latency`). Then random mixtures of structures and channels
are removed, and the predicted seconds of a forward pass are compared with those of the constructed network, in one
process, in turns with the full network, so that a machine that is busy at times slows both alike. As in the table, the
least of many calls counts. The second table narrows the network alone, by random scores to parts of its multiply-adds,
with channels in multiples of 1, 8 and 16.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import least_seconds
from experiments.benchmarks.mixtures import draw_mixture
from experiments.common.cli import check_names

SHARES = (0.75, 0.5, 0.25)
"""Parts of the multiply-adds."""
MULTIPLES = (1, 8, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares predicted with measured seconds of a forward pass."""

    networks: tuple[tuple[str, int], ...] = (("resnet18_cifar", 8),)
    """Names of networks, and the batch of each."""
    num_subnets: int = 20
    """How many sub-networks of each."""
    repeats: int = 20
    """How often each program is run, and a network in each of its turns."""
    output: Path | None = None
    """File for the results."""


def run(config: Config) -> Iterator[Table]:
    """Yields two tables for each network."""
    check_names("network", (name for name, _ in config.networks), models.list_models())
    for name, batch_size in config.networks:
        x = models.example_input(name, batch_size=batch_size)
        model = models.create(name)
        model.eval()
        space = jasgnas.search_space(model, x, channels=True)
        table = jasgnas.measure_latency(space, repeats=config.repeats)
        race = _Race(model, space, config.repeats)
        yield _predictions(f"{name}, batch {batch_size}", race, table, config.num_subnets)
        yield _rounded(f"{name}, batch {batch_size}", race)


class _Race:
    """Times sub-networks in turns with the full network, which is compiled once."""

    def __init__(self, model: nnx.Module, space: jasgnas.SearchSpace, repeats: int):
        self._model, self.space, self._repeats = model, space, repeats
        (aval,) = space.call.avals
        self._x = jnp.ones(aval.shape, aval.dtype)
        self._full = _compiled(model, self._x)

    def seconds(self, removed: Sequence[int]) -> tuple[float, float]:
        """Returns the seconds of a forward pass of the full network and of the one without some groups."""
        subnet = jasgnas.construct_subnet(self.space, self.space.zero(self._model, removed), allow_nothing=True)
        subnet.eval()
        seconds = least_seconds({"full": self._full, "sub": _compiled(subnet, self._x)}, self._repeats)
        return seconds["full"], seconds["sub"]


def _predictions(title: str, race: _Race, table: jasgnas.LatencyTable, num_subnets: int) -> Table:
    """Compares predicted and measured seconds of random mixtures of structures and channels."""
    space = race.space
    removals = [draw_mixture(space, seed) for seed in range(num_subnets)]
    # The table is of the time that the full network took then; what it takes now may differ on a busy machine.
    pairs = [(table.predict(space, removed) / table.seconds, race.seconds(removed)) for removed in removals]
    errors = [abs(share * full - own) / own for share, (full, own) in pairs]
    shown = Table(
        "multiply-adds",
        "predicted, ms",
        "measured, ms",
        "error",
        title=f"{title}: median error {np.median(errors):.0%}, worst {max(errors):.0%}",
        caption=f"{table.num_measured} programs measured; the full network takes {1e3 * table.seconds:.3g} ms",
    )
    whole = space.subnet_size(())[1]
    for removed, (share, (full, own)), error in zip(removals, pairs, errors, strict=True):
        macs = space.subnet_size(removed)[1] / whole
        shown.add_row(f"{macs:.0%}", f"{1e3 * share * full:.3g}", f"{1e3 * own:.3g}", f"{error:.0%}")
    return shown


def _rounded(title: str, race: _Race) -> Table:
    """Compares the time of narrowed networks with their share of multiply-adds, by the multiple of their widths."""
    space = race.space
    shown = Table(
        "multiple of", "multiply-adds", "forward time", title=f"{title}: share of the full network's, channels alone"
    )
    scores = np.random.default_rng(0).random(len(space.groups))
    scores[: len(space.structures)] = -1
    whole = space.subnet_size(())[1]
    for multiple in MULTIPLES:
        for share in SHARES:
            removed = space.select(scores, target_macs=share, multiple_of=multiple)
            full, own = race.seconds(removed)
            shown.add_row(str(multiple), f"{space.subnet_size(removed)[1] / whole:.0%}", f"{own / full:.0%}")
    return shown


def _compiled(network: nnx.Module, x: jax.Array) -> Callable[[], Any]:
    graphdef, state = nnx.split(network)
    executable = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x)).lower(state, x).compile()
    return lambda: executable(state, x)
