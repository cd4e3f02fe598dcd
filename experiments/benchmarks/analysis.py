"""Time and memory of the analysis: `python -m experiments.bench_analysis`.

Residual and dense chains of rising length, with the exponents of the growth, and networks that other tools are measured
on.
Beside each stands `jax.make_jaxpr` alone, which no analysis of a jaxpr can do without.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import in_fresh_process
from experiments.common.cli import check_names
from experiments.common.text import time_text


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures tracing, search space and construction."""

    blocks: tuple[int, ...] = (50, 100, 200, 400)
    """Numbers of blocks of the residual chains, rising."""
    layers: tuple[int, ...] = (25, 50, 100)
    """Numbers of layers of the dense chains, each of which reads all before it, rising."""
    networks: tuple[tuple[str, int], ...] = (
        ("resnet18", 224),
        ("resnet50", 224),
        ("convnext_tiny", 224),
        ("densenet121", 32),
        ("densenet121", 224),
        ("vit_b16", 224),
        ("darts_14", 224),
    )
    """Registered networks, and the height and width of the images."""
    repeats: int = 3
    """How often each time is taken; the least one counts."""
    output: Path | None = None
    """Where to write the tables as JSON."""


class Timing(NamedTuple):
    """Seconds for one network.

    Attributes:
        jaxpr: `jax.make_jaxpr` alone.
        space: `jasgnas.search_space`, tracing included.
        construction: `jasgnas.construct_subnet` without every other group that can go, tracing in both modes included;
            None for dense chains, whose arrays are all of different shapes: it is XLA's time that would be measured.
    """

    jaxpr: float
    space: float
    construction: float | None


FEATURES = 4
"""Channels of the images that the chains read, and that each dense layer adds."""

Params = dict[str, dict[str, jax.Array]]


def residual_params(blocks: int) -> Params:
    """Returns the parameters of a chain of residual blocks, all one."""
    kernel, vector = jnp.ones((3, 3, FEATURES, FEATURES)), jnp.ones(FEATURES)
    block = {"in": kernel, "scale": vector, "bias": vector, "out": kernel}
    return {f"block{index:04d}": dict(block) for index in range(blocks)}


def residual_chain(params: Params, x: jax.Array) -> jax.Array:
    """Convolution, norm, relu and convolution beside each shortcut; images `[batch, height, width, features]`."""
    for name in sorted(params):
        block = params[name]
        y = _norm_and_relu(_conv(x, block["in"]), block)
        x = x + _conv(y, block["out"])
    return x


def dense_params(layers: int) -> Params:
    """Returns the parameters of a chain of dense layers, all one."""
    params = {}
    for index in range(layers):
        width = FEATURES * (1 + index)
        vector = jnp.ones(width)
        params[f"layer{index:04d}"] = {"scale": vector, "bias": vector, "out": jnp.ones((3, 3, width, FEATURES))}
    # The last convolution reads all layers.
    return params | {"mix": {"out": jnp.ones((1, 1, FEATURES * (1 + layers), FEATURES))}}


def dense_chain(params: Params, x: jax.Array) -> jax.Array:
    """Norm, relu and convolution of all before, concatenated to it; images `[batch, height, width, features]`."""
    for name in sorted(name for name in params if name != "mix"):
        x = jnp.concatenate([x, _conv(_norm_and_relu(x, params[name]), params[name]["out"])], axis=-1)
    return _conv(x, params["mix"]["out"])


def _norm_and_relu(x: jax.Array, block: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.relu((x - x.mean((0, 1, 2))) * block["scale"] + block["bias"])


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def run(config: Config) -> Iterator[Table]:
    """Yields the tables of the chains and the table of the networks; each is measured in a process of its own."""
    check_names("network", (name for name, _ in config.networks), models.list_models())
    for measure, title, lengths, unit in (
        (measure_residual_chain, "residual chains", config.blocks, "blocks"),
        (measure_dense_chain, "dense chains", config.layers, "layers"),
    ):
        measured = [in_fresh_process(measure, length, config.repeats) for length in lengths]
        table = _table(title, [f"{length} {unit}" for length in lengths], measured)
        table.add_section()
        columns = zip(*(timing for timing, _ in measured), strict=True)
        table.add_row("exponent", *("" if None in own else _exponent(lengths, own) for own in columns))
        yield table
    names = [f"{name}, {size}×{size}" for name, size in config.networks]
    measured = [in_fresh_process(measure_network, *network, config.repeats) for network in config.networks]
    yield _table("networks", names, measured)


def _table(title: str, names: Sequence[str], measured: Sequence[tuple[Timing, float]]) -> Table:
    table = Table("network", "make_jaxpr s", "search space s", "construction s", "peak MiB", title=title)
    for name, (timing, peak) in zip(names, measured, strict=True):
        table.add_row(name, *("" if s is None else time_text(s, 2) for s in timing), f"{peak:.0f}")
    return table


def _exponent(lengths: Sequence[int], seconds: Sequence[float]) -> str:
    return f"{np.polyfit(np.log(lengths), np.log(seconds), 1)[0]:.2f}"


def measure_residual_chain(blocks: int, repeats: int) -> Timing:
    """Times the analysis of a chain of residual blocks."""
    params = residual_params(blocks)
    space, timing = _measure_chain(residual_chain, params, repeats)
    return timing._replace(construction=_construction_seconds(space, params, repeats))


def measure_dense_chain(layers: int, repeats: int) -> Timing:
    """Times the analysis of a chain of dense layers."""
    return _measure_chain(dense_chain, dense_params(layers), repeats)[1]


def _measure_chain(
    chain: Callable[[Params, jax.Array], jax.Array], params: Params, repeats: int
) -> tuple[jasgnas.SearchSpace, Timing]:
    x = jax.ShapeDtypeStruct((1, 8, 8, FEATURES), jnp.float32)
    return jasgnas.search_space(chain, x, params=params), Timing(
        jaxpr=_least_seconds(lambda: jax.make_jaxpr(lambda p, x: chain(p, x))(params, x), repeats),
        space=_least_seconds(lambda: jasgnas.search_space(chain, x, params=params), repeats),
        construction=None,
    )


def measure_network(name: str, size: int, repeats: int) -> Timing:
    """Times the analysis of a registered network; its parameters are all one."""
    example = models.example_input(name)
    x = jax.ShapeDtypeStruct((1, size, size, example.shape[-1]), example.dtype)
    graphdef, state = nnx.split(models.create_abstract(name))
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state)
    model = nnx.merge(graphdef, state)
    model.eval()

    graphdef, state = nnx.split(model)
    space = jasgnas.search_space(model, x)
    # A new function each time: what has been traced once is not traced again.
    return Timing(
        jaxpr=_least_seconds(
            lambda: jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s, copy=True)(x))(state, x), repeats
        ),
        space=_least_seconds(lambda: jasgnas.search_space(model, x), repeats),
        construction=_construction_seconds(space, model, repeats),
    )


def _construction_seconds(space: jasgnas.SearchSpace, holder: Any, repeats: int) -> float:
    sparse = space.zero(holder, sorted(space.largest_removal)[::2])
    return _least_seconds(lambda: jasgnas.construct_subnet(space, sparse), repeats)


def _least_seconds(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
