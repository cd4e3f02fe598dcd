"""Networks written by `jasgnas.to_source`: do they compute the same, and how long are they?

Every registered network, and a sub-network of it without a random third of its groups (structures and channels), is
written as source. Executed and given random parameters in float64, it must return what the network returns, in
inference and in training mode, where running statistics must become the same. Networks that are recorded already are
left out; `--examples` writes the sources shown in the documentation instead.
"""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

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

TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 1e-4
"""The largest difference, relative to the largest entry."""
EXAMPLES = ("demo_net", "resnet18", "vit_s16")


@dataclasses.dataclass(frozen=True)
class Config:
    """Checks networks written as source."""

    networks: tuple[str, ...] = ()
    """Registered networks of `models`; all of them by default."""
    batch_size: int = 2
    """Inputs per call."""
    output: Path = Path("experiments/results/sources")
    """Folder for what was found so far (results.json), to be added to, and the table (table.md)."""
    examples: Path | None = None
    """A folder to write the examples to, in place of all else; they are checked in float32."""


def run(config: Config) -> None:
    """Checks networks one after the other, and shows all that is recorded."""
    check_names("network", config.networks, models.list_models())
    if config.examples is not None:
        write_examples(config.examples)
        return
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # each network is called once: compiling takes longest
    results = config.output / "results.json"
    found: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    failed: dict[str, str] = {}
    config.output.mkdir(parents=True, exist_ok=True)
    for name in config.networks or models.list_models():
        for is_sub in (False, True):
            key = f"{name}/sub-network" if is_sub else name
            if key in found:
                continue
            try:
                found[key] = check(name, is_sub, config.batch_size)
            except jasgnas.SourceError as error:
                failed[key] = f"{key} cannot be written: {error}"
                continue
            write_atomically(results, json.dumps(found, indent=1, sort_keys=True) + "\n")
            write_atomically(config.output / "table.md", f"# Networks as source\n\n{markdown_table(*_lines(found))}\n")
    heading, *lines = _lines(found)
    table = Table(*heading, title="Networks as source")
    for line in lines:
        table.add_row(*line)
    show(table)
    if wrong := [key for key, row in found.items() if not row["difference"] <= TOLERANCE]:
        failed["wrong"] = f"{', '.join(wrong)} written as source compute something else: report it"
    if failed:
        raise ExperimentError("\n".join(failed.values()))


def check(name: str, is_sub: bool, batch_size: int) -> dict[str, Any]:
    """Writes one network as source, and compares what both compute.

    Returns:
        `lines`, those of the source that are not blank; `of_model`, those of the file of the model; `difference`, the
        largest of an output or array after a call, relative to the largest entry; `modes`,
        how many ways it computes in.
    """
    network = made(name, is_sub, jnp.float64)
    aval = models.example_input(name)
    source = jasgnas.to_source(network) if is_sub else jasgnas.to_source(network, aval)
    x = _inputs(name, batch_size)
    return {
        "lines": count_lines(source),
        "of_model": count_lines(inspect.getsource(inspect.getmodule(type(models.create_abstract(name))) or models)),
        "difference": largest_difference(network, source, x),
        "modes": 2 if "def train_once" in source else 1,
    }


def _inputs(name: str, batch_size: int) -> jax.Array:
    """Returns random inputs of a registered network."""
    aval = models.example_input(name)
    rng = np.random.default_rng(0)
    shape = (batch_size, *aval.shape[1:])
    return jnp.asarray(rng.integers(0, 16, shape) if aval.dtype == jnp.int32 else rng.normal(size=shape), aval.dtype)


def made(name: str, is_sub: bool, dtype: Any) -> nnx.Module:
    """Returns a registered network with random parameters, or a sub-network of it."""
    graphdef, state = nnx.split(models.create_abstract(name, param_dtype=dtype))
    full = nnx.merge(graphdef, randomized(state, dtype))
    if not is_sub:
        return full
    space = jasgnas.search_space(full, models.example_input(name), channels=True)
    return jasgnas.construct_subnet(
        space, space.zero(full, space.random_redundant(jax.random.key(0), len(space.groups) // 3))
    )


def randomized(state: Any, dtype: Any) -> Any:
    """Returns random values in the place of all arrays; variances are positive."""
    rng = np.random.default_rng(0)

    def draw(keys: Any, leaf: Any) -> Any:
        values = rng.normal(size=leaf.shape) * (2 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5)
        is_variance = "var" in [getattr(key, "key", None) for key in keys]
        return jnp.asarray(np.abs(values) + 0.5 if is_variance else values, dtype)

    return jax.tree_util.tree_map_with_path(draw, state)


def module_of(source: str) -> nnx.Module:
    """Returns the network that a source defines, with shapes and dtypes in the place of its arrays."""
    space: dict[str, Any] = {"__name__": "source"}
    exec(compile(source, "source", "exec"), space)
    classes = [each for each in space.values() if isinstance(each, type) and issubclass(each, nnx.Module)]
    make: Any = classes[-1]
    return nnx.eval_shape(lambda: make(rngs=models.CountedKeys()))


def largest_difference(network: nnx.Module, source: str, x: jax.Array) -> float:
    """Returns the largest difference between a network and its source, in any mode, output or array after a call."""
    written = module_of(source)
    nnx.update(written, nnx.state(network))
    worst = 0.0
    for is_training in (False, True):
        results = []
        for module in (network, written):
            own = nnx.merge(*nnx.split(module), copy=True)
            own.train() if is_training else own.eval()
            results.append(_called(own, x))
        for found, expected in zip(*map(jax.tree.leaves, reversed(results)), strict=True):
            scale = max(float(jnp.abs(expected).max()), 1e-300)
            difference = float(jnp.abs(found - expected).max()) / scale
            worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


def _called(module: nnx.Module, x: jax.Array) -> Any:
    # Operation by operation: compiled as one program, the 14 cells of DARTS take many minutes and gigabytes.
    outputs = module(x)
    return outputs, nnx.to_pure_dict(nnx.state(module))


def count_lines(text: str) -> int:
    """Returns the number of lines that are not blank."""
    return sum(1 for line in text.splitlines() if line.strip())


def write_examples(folder: Path) -> None:
    """Writes the sources that the documentation shows, once they have computed what the sub-networks compute.

    Raises:
        ExperimentError: one computes something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        space = jasgnas.search_space(models.create_abstract(name), models.example_input(name))
        removed = space.random_redundant(jax.random.key(0), len(space.largest_removal) // 3)
        full = made(name, is_sub=False, dtype=jnp.float32)
        subnet = jasgnas.construct_subnet(space, space.zero(full, removed))
        source = jasgnas.to_source(subnet)
        difference = largest_difference(subnet, source, _inputs(name, 2))
        if not difference <= FLOAT32_TOLERANCE:
            raise ExperimentError(f"{name} written as source computes something else, by {difference:.1e}: report it")
        write_atomically(folder / f"{name}.py", source)
        of_model = count_lines(inspect.getsource(inspect.getmodule(type(full)) or models))
        said = f"{count_lines(source)} lines, {of_model} of the file of the model"
        print(f"{name}: {said}; largest difference {difference:.1e}")


def _lines(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the lines of a table, the headings first."""
    lines = [["network", "lines", "of the model", "ratio", "bodies", "difference"]]
    for key, row in sorted(found.items()):
        ratio = f"{row['lines'] / row['of_model']:.2f}"
        numbers = map(str, (row["lines"], row["of_model"], ratio, row["modes"]))
        lines.append([key, *numbers, f"{row['difference']:.1e}"])
    return lines
