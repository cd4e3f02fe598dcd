"""Random sub-networks: do they return what the full networks at zero return, and are they as large as predicted?

Of every registered network random valid sets of structures and channels are removed. The sub-network must return what
the network with these parameters at zero returns, in float64, and must not be larger than predicted. What is recorded
already is left out: delete the results to have it done again.

JAX computes the softmax of its attention in float32, whatever it is given. A network with one returns the same up to
the rounding of float32 where the sums before it are taken in another order: those of a class token alone.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.common.cli import check_names
from experiments.common.errors import ExperimentError
from experiments.common.files import write_atomically
from experiments.common.text import markdown_table, show
from jasgnas.program.jaxpr import inline, trace

TOLERANCE = 1e-10
"""The largest difference, relative to the largest entry, of networks that compute in float64 throughout."""
CAPTION = """\
Random mixtures of structures and channels removed from each network: the largest difference of an output to that of the
network with the same parameters at zero, in float64, as a part of the largest output; how many sub-networks have as
many parameters and multiply-adds as predicted; and by how much more was predicted at most. Where both operations of a
node of DARTS_V2 go, one that reads the node has nothing left but the biases of its norm; predicted is that it stays.
What is predicted of a vision transformer does not know that after the last attention only the class token is read. JAX
computes the softmax of its attention in float32, which shows where the sums before it are taken in another order."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Checks random sub-networks of networks."""

    networks: tuple[str, ...] = ()
    """Registered networks of `models`; all of them by default."""
    num: int = 10
    """Sub-networks of each."""
    output: Path = Path("experiments/results/mixtures")
    """Folder for what was found so far (results.json), to be added to, and the table (table.md)."""


class Mixture(NamedTuple):
    """What a random sub-network showed.

    Attributes:
        difference: largest difference of an output to that of the network with the same parameters at zero, in float64,
            as a part of the largest output.
        params: how many parameters it has.
        said_params: how many were predicted.
        macs: how many multiply-adds it has.
        said_macs: how many were predicted.
    """

    difference: float
    params: int
    said_params: int
    macs: int
    said_macs: int


def run(config: Config) -> None:
    """Checks networks one after the other, and shows all that is recorded.

    Raises:
        ConfigError: there is no network of a name.
        ExperimentError: a sub-network returns something else, or is larger than predicted.
    """
    check_names("network", config.networks, models.list_models())
    results = config.output / "results.json"
    recorded = json.loads(results.read_text()) if results.exists() else {}
    found = {name: [Mixture(**each) for each in mixtures] for name, mixtures in recorded.items()}
    config.output.mkdir(parents=True, exist_ok=True)
    # Each sub-network is called once: what takes longest is to compile operators at its shapes.
    jax.config.update("jax_disable_most_optimizations", True)
    for name in config.networks or models.list_models():
        mixtures = found.setdefault(name, [])
        seeds = range(len(mixtures), config.num)
        for mixture in check(models.create_abstract(name), models.example_input(name), seeds):
            mixtures.append(mixture)
            shown = {key: [each._asdict() for each in row] for key, row in found.items()}
            write_atomically(results, json.dumps(shown, indent=1, sort_keys=True) + "\n")
            text = markdown_table(*_lines(found))
            write_atomically(config.output / "table.md", f"# Random sub-networks\n\n{CAPTION}\n\n{text}\n")
        jax.clear_caches()  # or compiled sub-networks fill the memory
    heading, *lines = _lines(found)
    table = Table(*heading, title="Random sub-networks")
    for line in lines:
        table.add_row(*line)
    show(table)
    if wrong := [name for name, mixtures in found.items() if not _are_as_said(name, mixtures)]:
        raise ExperimentError(f"sub-networks of {', '.join(wrong)} are not what they are said to be: report it")


def check(model: nnx.Module, x: jax.ShapeDtypeStruct, seeds: Sequence[int]) -> Iterator[Mixture]:
    """Removes random mixtures of structures and channels of an abstract network, whose parameters are drawn here."""
    if not seeds:
        return
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        graphdef, params, *others = nnx.split(model, nnx.Param, ...)
        params = jax.tree.map(lambda leaf: _drawn(rng, leaf) * rng.choice([-1, 1], leaf.shape), params)
        others = jax.tree.map(lambda leaf: _drawn(rng, leaf), others)
        full = nnx.merge(graphdef, *jax.device_put((params, *others)))
        full.eval()
        is_real = jnp.issubdtype(x.dtype, jnp.floating)
        data = jax.device_put(rng.normal(size=x.shape) if is_real else rng.integers(0, 2, x.shape))
        space = jasgnas.search_space(full, data, channels=True)
        for seed in seeds:
            removed = draw_mixture(space, seed)
            zeroed = space.zero(full, removed)
            subnet = jasgnas.construct_subnet(space, zeroed, allow_nothing=True)
            expected, found = _apply(zeroed, data), _apply(subnet, data)
            difference = float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected)))
            said_params, said_macs = space.subnet_size(removed)
            macs = jasgnas.count_macs(subnet, data)
            yield Mixture(difference, jasgnas.count_params(subnet), said_params, macs, said_macs)


@nnx.jit
def _apply(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x)


def draw_mixture(space: jasgnas.SearchSpace, seed: int) -> list[int]:
    """Returns a random valid set: about half of the structures that can go, and channels of each dimension."""
    rng = np.random.default_rng(seed)
    removed: list[int] = []
    for index in rng.permutation(len(space.structures)).tolist():
        if rng.random() < 0.5 and space.is_valid([*removed, index]):
            removed.append(index)
    for dimension in space.dimensions:
        channels = rng.permutation(np.asarray(dimension.groups)).tolist()
        removed += channels[: rng.integers(0, dimension.size)]
    return removed


def _drawn(rng: np.random.Generator, leaf: Any) -> Any:
    """Returns random positive values for an abstract leaf, none near zero; zeros for counters and random keys."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.zeros((*leaf.shape, 2), jnp.uint32))
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
    return (rng.random(leaf.shape) + 0.1) / np.sqrt(fan_in)


def _are_as_said(name: str, mixtures: Sequence[Mixture]) -> bool:
    worst = max((each.difference for each in mixtures), default=0.0)
    is_same = worst <= TOLERANCE or worst <= 10 * _coarsest(name)
    return is_same and all(each.params <= each.said_params and each.macs <= each.said_macs for each in mixtures)


def _coarsest(name: str) -> float:
    """Returns the largest relative rounding of what a network computes, given float64 throughout."""
    with jax.enable_x64(True):
        graphdef, state = nnx.split(models.create_abstract(name))
        given = jax.tree.map(_in_double, (state, models.example_input(name)))
        program = inline(trace(lambda state, x: nnx.merge(graphdef, state)(x), *given))
    dtypes = {var.dtype for var in program.avals.values() if jnp.issubdtype(var.dtype, jnp.floating)}
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _in_double(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)


def _lines(found: dict[str, list[Mixture]]) -> list[list[str]]:
    """Returns the lines of a table, the headings first."""
    lines = [
        [
            "network",
            "sub-networks",
            "largest difference",
            "parameters as predicted",
            "multiply-adds as predicted",
            "largest excess of parameters",
            "of multiply-adds",
        ]
    ]
    for name, mixtures in sorted(found.items()):
        if mixtures:
            same = [sum(each.params == each.said_params for each in mixtures)]
            same += [sum(each.macs == each.said_macs for each in mixtures)]
            excess = [max(each.said_params / each.params - 1 for each in mixtures)]
            excess += [max(each.said_macs / each.macs - 1 for each in mixtures)]
            difference = f"{max(each.difference for each in mixtures):.0e}"
            parts = [f"{share:.1%}" for share in excess]
            lines.append([name, str(len(mixtures)), difference, *map(str, same), *parts])
    return lines
