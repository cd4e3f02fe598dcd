"""How fast sub-networks run beside the full network, and in how much memory: `python -m experiments.bench_subnet`.

Sub-networks of the papers' sizes (see `experiments.paper_subnets`; of RegNet, whose size is not published, half of the
groups that can go), with random parameters. Times are medians of interleaved calls. The last row looks for what partial
evaluation may leave behind in the compiled forward pass: instructions that move data without computing anything.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import interleaved_seconds
from experiments.benchmarks.paper_subnets import PAPER_SIZES, find_removal
from experiments.common.cli import check_names

LEARNING_RATE = 1e-3
MOVES = ("concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "gather", "pad", "slice", "transpose")
"""Instructions of XLA that compute nothing."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures full and sub-networks side by side."""

    networks: tuple[tuple[str, int], ...] = (
        ("DemoNet", 32),
        ("StackedUnets", 32),
        ("SuperResNet 1M", 16),
        ("SuperResNet 2M", 16),
        ("DARTS, 8 cells", 2),
        ("DARTS, 14 cells", 1),
        ("regnet_x_200mf_cifar", 16),
    )
    """Sub-networks of `experiments.paper_subnets`, or registered networks of `models`, and their batch sizes."""
    repeats: int = 20
    """Timed calls of every function."""
    output: Path | None = None
    """Where to write the tables as JSON."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one network; pairs are for the full network and the sub-network.

    Attributes:
        name: the sub-network.
        batch_size: images per call.
        removed: number of groups removed.
        params: trainable parameters.
        macs: multiply-adds of the forward pass of one image.
        forward_seconds: median seconds of the forward pass in inference mode.
        training_seconds: median seconds of a training step with SGD.
        forward_mib: temporary memory of the forward pass, in MiB.
        training_mib: temporary memory of the training step, in MiB.
        moves: number of instructions in the forward pass that compute nothing.
    """

    name: str
    batch_size: int
    removed: int
    params: tuple[int, int]
    macs: tuple[int, int]
    forward_seconds: tuple[float, float]
    training_seconds: tuple[float, float]
    forward_mib: tuple[float, float]
    training_mib: tuple[float, float]
    moves: tuple[int, int]


def measure(name: str, batch_size: int, repeats: int) -> Result:
    """Measures one full network and its sub-network."""
    registered, *size = PAPER_SIZES.get(name, (name,))
    model = models.create(registered)
    space = jasgnas.search_space(model, models.example_input(registered, batch_size=1))
    if size:
        removed = find_removal(space, size[0])
    else:
        removed = space.random_redundant(jax.random.key(0), len(space.largest_removal) // 2)
    model = space.zero(model, removed)
    networks = {"full": model, "sub": jasgnas.construct_subnet(space, model)}
    aval = models.example_input(registered, batch_size=batch_size)
    images = jax.random.normal(jax.random.key(0), aval.shape, aval.dtype)
    forward = {key: _compile(network, images, training=False) for key, network in networks.items()}
    training = {key: _compile(network, images, training=True) for key, network in networks.items()}
    seconds = [
        interleaved_seconds({key: run for key, (run, _) in runs.items()}, repeats) for runs in (forward, training)
    ]
    executables = [[executable for _, executable in runs.values()] for runs in (forward, training)]
    memory = [_pair(each.memory_analysis().temp_size_in_bytes / 2**20 for each in pair) for pair in executables]
    return Result(
        name=name,
        batch_size=batch_size,
        removed=len(removed),
        params=_pair(map(jasgnas.count_params, networks.values())),
        macs=_pair(jasgnas.count_macs(network, images[:1]) for network in networks.values()),
        forward_seconds=_pair(seconds[0].values()),
        training_seconds=_pair(seconds[1].values()),
        forward_mib=memory[0],
        training_mib=memory[1],
        moves=_pair(_count_moves(executable.as_text()) for executable in executables[0]),
    )


def _pair(values: Iterable[Any]) -> tuple[Any, Any]:
    full, sub = values
    return full, sub


def _compile(network: nnx.Module, images: jax.Array, *, training: bool) -> tuple[Callable[[], Any], Any]:
    """Returns a call of the compiled forward pass or training step, and the executable."""
    network.train() if training else network.eval()
    split: Any = nnx.split(network, nnx.Param, ...)
    graphdef, params, rest = split

    def forward(params: Any, rest: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        merged = nnx.merge(graphdef, params, rest, copy=True)
        outputs = merged(images)
        # An auxiliary head makes a network return more than its logits.
        mean_square = jnp.sum(jnp.stack([jnp.mean(output**2) for output in jax.tree.leaves(outputs)]))
        return mean_square, (outputs, nnx.state(merged, nnx.Not(nnx.Param)))

    def step(params: Any, rest: Any, images: jax.Array) -> tuple[Any, Any]:
        grads, (_, rest) = jax.grad(forward, has_aux=True)(params, rest, images)
        return jax.tree.map(lambda x, grad: x - LEARNING_RATE * grad, params, grads), rest

    run = jax.jit(step if training else lambda *arguments: forward(*arguments)[1][0])
    executable = run.lower(params, rest, images).compile()
    return lambda: executable(params, rest, images), executable


def _count_moves(hlo: str) -> int:
    """Returns how many instructions of a compiled program compute nothing."""
    counts = Counter(re.findall(r"= \S+ ([a-z-]+)\(", hlo))
    return sum(counts[name] for name in MOVES)


def run(config: Config) -> Iterator[Table]:
    """Yields a table for each network."""
    known = (*PAPER_SIZES, *models.list_models())
    check_names("network", (name for name, _ in config.networks), known)
    for name, batch_size in config.networks:
        yield _table(measure(name, batch_size, config.repeats))


def _table(result: Result) -> Table:
    macs = result.macs[1] / result.macs[0]
    table = Table("", "full", "sub", "ratio", "÷ ratio of macs", title=f"{result.name}, batch {result.batch_size}")
    rows = [
        ("parameters", result.params, 1e-6, "M"),
        ("multiply-adds of an image", result.macs, 1e-6, "M"),
        ("forward pass", result.forward_seconds, 1e3, "ms"),
        ("training step", result.training_seconds, 1e3, "ms"),
        ("memory, forward pass", result.forward_mib, 1, "MiB"),
        ("memory, training step", result.training_mib, 1, "MiB"),
        ("instructions that move data", result.moves, 1, ""),
    ]
    for label, (full, sub), scale, unit in rows:
        ratio = sub / full if full else math.nan
        relative = f"{ratio / macs:.2f}" if unit == "ms" else ""
        table.add_row(label, f"{scale * full:.4g} {unit}", f"{scale * sub:.4g} {unit}", f"{ratio:.3f}", relative)
    return table
