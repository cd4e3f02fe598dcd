"""What H2SPG costs, and what its judgement of validity is worth: `python -m experiments.bench_h2spg`.

Ratios are of the least times of interleaved calls in one process: what else the machine does can only add to them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.table import Table

import jasgnas
import models
from experiments.benchmarks.measure import interleaved_calls
from experiments.common.cli import check_names
from jasgnas.optimizer.ablation import FORWARD_PASSES
from jasgnas.optimizer.layout import Remainder, grouped_leaves, lay_out
from jasgnas.space.groups import NOBODY
from jasgnas.space.selection import (
    SizeCosts,
    TakeFn,
    falling_order,
    select_redundant,
    take_number,
    take_to_size,
    to_digits,
)
from jasgnas.space.sizes import Costs, Measure, subnet_size
from jasgnas.space.validity import DependenceGraph, critical_vertices, is_valid, largest_removal

LEARNING_RATE = 1e-3
WARMUP_STEPS = PROJECTION_STEPS = 10_000
UNTIMED_STEPS = 2
MOST_FORWARD_PASSES = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the cost of H2SPG and the share of valid networks without its hierarchy."""

    steps: int = 20
    """Timed steps of every variant."""
    networks: tuple[tuple[str, int], ...] = (("demo_net", 64), ("resnet18_cifar", 32))
    """Names of networks in `models.list_models()` and their batch sizes."""
    num_blocks: int = 500
    """Blocks of two groups and ten segments in the graph that the selection is timed on."""
    draws: int = 100
    """Random score vectors of the ablation."""
    output: Path | None = None
    """Where to write the tables as JSON."""


def run(config: Config) -> Iterator[Table]:
    """Yields one table for each question."""
    check_names("network", (name for name, _ in config.networks), models.list_models())
    for name, batch_size in config.networks:
        yield measure_network(name, batch_size, config.steps)
    yield measure_selection(config.num_blocks)
    yield ablate_hierarchy(("demo_net", "stacked_unets"), config.draws)


def measure_network(name: str, batch_size: int, steps: int) -> Table:
    """Returns a table of seconds and ratios: training steps and optimizer updates with H2SPG and without."""
    x = models.example_input(name, batch_size=batch_size)
    model = models.create(name)
    space = jasgnas.search_space(model, x)
    plain = optax.sgd(LEARNING_RATE, momentum=0.9)
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.as_pure, states)
    images = jax.random.normal(jax.random.key(0), x.shape, x.dtype)

    def with_score(score: str) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            plain,
            jasgnas.h2spg(
                space,
                learning_rate=LEARNING_RATE,
                target_groups=1,
                warmup_steps=WARMUP_STEPS,
                projection_steps=PROJECTION_STEPS,
                selection_steps=UNTIMED_STEPS + steps,
                score=score,
                # Every update of the window is to cost the same: some groups, and two sets.
                forward_passes=MOST_FORWARD_PASSES,
            ),
        )

    def loss_fn(images: jax.Array, params: Any) -> jax.Array:
        return jnp.mean(nnx.merge(graphdef, params, rest, copy=True)(images) ** 2)

    def update_only(tx: Any, grads: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
        return tx.update(grads, opt_state, params, grad=grads)

    def update_and_apply(tx: Any, grads: Any, params: Any, opt_state: Any, **given: Any) -> tuple[Any, Any]:
        updates, opt_state = tx.update(grads, opt_state, params, grad=grads, **given)
        return optax.apply_updates(params, updates), opt_state

    def train_step(tx: Any, images: jax.Array, params: Any, opt_state: Any) -> tuple[Any, Any]:
        value_fn = partial(loss_fn, images)
        value, grads = jax.value_and_grad(value_fn)(params)
        return update_and_apply(tx, grads, params, opt_state, value=value, value_fn=value_fn)

    table = Table("step", "score", "phase", "ms", "ratio", "temporary MiB", "compile s", "compile ratio")
    table.title = f"{name}, batch {batch_size}"
    grads = jax.tree.map(lambda x: 1e-3 * x, params)
    # The update must be whole before its norms are known. In training it lies where the gradients were; alone, it needs
    # a buffer of its own if parameters and state are donated, while else both sides allocate their results anew.
    without_loss = ("magnitude", "gate", "taylor")
    state_size = 0
    for label, step, data, donated, scores in (
        ("training", train_step, images, (1, 2), (*without_loss, "ablation")),
        ("tx.update alone", update_only, grads, (), without_loss),
        ("the same applied, donated", update_and_apply, grads, (1, 2), without_loss[:1]),
    ):
        transformations = {"": optax.with_extra_args_support(plain)} | {score: with_score(score) for score in scores}
        compiled, facts = {}, {}
        for score, tx in transformations.items():
            start = time.process_time()
            jitted = jax.jit(partial(step, tx), donate_argnums=donated)
            executable = jitted.lower(data, params, tx.init(params)).compile()
            seconds = time.process_time() - start
            compiled[score] = partial(executable, data)
            memory = executable.memory_analysis()
            facts[score] = (f"{memory.temp_size_in_bytes / 2**20:.1f}" if memory else "unknown", seconds)
        starts = {("", "plain"): (compiled[""], params, plain.init(params))}
        for score in scores:
            momentum, state = transformations[score].init(params)
            state_size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            gone = space.random_redundant(jax.random.key(0), 1)
            selected = jnp.zeros_like(state.redundant).at[jnp.array(gone)].set(True)
            # The step that a measurement starts with, and what is redundant and zero then, for each phase.
            phases = {
                "warm-up": (0, state.redundant, ()),
                "scoring": (WARMUP_STEPS - UNTIMED_STEPS - steps, state.redundant, ()),
                "projection": (WARMUP_STEPS, state.redundant, ()),
                "target met": (WARMUP_STEPS + PROJECTION_STEPS - 1, selected, gone),
            }
            starts |= {
                (score, phase): (
                    compiled[score],
                    space.zero(params, zero),
                    (momentum, state._replace(step=jnp.int32(start), redundant=redundant)),
                )
                for phase, (start, redundant, zero) in phases.items()
                # Outside of the scoring window, scores differ in nothing that is measured here.
                if phase == "scoring" or score == scores[0]
            }
        # The first rounds do not count: they select, or meet the target.
        calls = interleaved_calls(
            {name: _Training(*start, applies=step is not update_only) for name, start in starts.items()},
            steps,
            warm_up=UNTIMED_STEPS,
        )
        seconds_of = {name: min(seconds) for name, seconds in calls.items()}
        if (measuring := ("ablation", "scoring")) in seconds_of:
            # What is measured in one update here is spread over several.
            before = seconds_of[scores[0], "warm-up"]
            share = FORWARD_PASSES / min(MOST_FORWARD_PASSES, len(space.groups) + 2)
            seconds_of["ablation", "scoring, on average"] = before + share * (seconds_of[measuring] - before)
        for (score, phase), seconds in seconds_of.items():
            (memory_size, compiling), (_, plainly) = facts[score], facts[""]
            ratios = seconds / seconds_of["", "plain"], compiling / plainly
            table.add_row(
                *(label, score, phase, f"{1e3 * seconds:.2f}", f"{ratios[0]:.3f}"),
                *(memory_size, f"{compiling:.1f}", f"{ratios[1]:.2f}"),
            )
    table.caption = (
        f"{len(space.groups)} groups, {jasgnas.count_params(model):,} parameters, state {state_size} bytes; of the "
        f"gradient {_gradient_bytes(space, params)}"
    )
    return table


def _gradient_bytes(space: jasgnas.SearchSpace, params: Any) -> str:
    """Returns what of the gradient, the third array beside parameters and updates, the scores look at."""
    layout = lay_out(space.candidates, params, Remainder())
    leaves = list(zip(grouped_leaves(layout, params), layout.leaves, strict=True))
    every = sum(leaf.nbytes for leaf, _ in leaves)
    of_gates = sum(leaf.nbytes for leaf, own in leaves if any(np.any(each.groups != NOBODY) for each in own.gates))
    return f"`gate` reads {of_gates:,} bytes and `taylor` {every:,}"


class _Training:
    """A training that makes one step whenever it is called; its step may be donated what it keeps between them."""

    def __init__(self, step: Callable[..., Any], params: Any, opt_state: Any, applies: bool):
        self._step = step
        self._applies = applies
        self._params, self._opt_state = jax.tree.map(jnp.copy, (params, opt_state))

    def __call__(self) -> Any:
        """Returns parameters, or their updates where the step does not apply them, and the optimizer state."""
        result, self._opt_state = self._step(self._params, self._opt_state)
        if self._applies:
            self._params = result
        return result, self._opt_state


def measure_selection(num_blocks: int) -> Table:
    """Returns a table of the seconds that a selection takes on a chain of blocks of two parallel branches."""
    graph = chain_of_blocks(num_blocks)
    num_groups, num_segments = 2 * num_blocks, len(graph.group)
    start = time.perf_counter()
    fallback = np.isin(np.arange(num_groups), largest_removal(graph, num_groups))
    critical = critical_vertices(graph)
    host_seconds = time.perf_counter() - start

    macs = np.random.default_rng(0).integers(0, 10**9, num_segments)
    none = np.zeros(0, np.int32)
    costs = Costs(none, none, {"macs": Measure(0, macs, np.zeros(0, np.int64))})
    size_costs = SizeCosts(to_digits(macs), none, none, to_digits(none))
    least = subnet_size(graph, costs, fallback)["macs"]
    targets: dict[str, TakeFn] = {
        "number of groups": partial(take_number, num=num_blocks),
        "multiply-adds": partial(take_to_size, graph, size_costs, size=to_digits(least)),
    }
    orders = {
        "random": np.random.default_rng(0).random(num_groups),
        "from the input": -np.arange(num_groups),
        "from the output": np.arange(num_groups),
    }
    table = Table("target", "visiting order", "s", title=f"selection, {num_groups} groups, {num_segments} segments")
    table.caption = f"once: {host_seconds:.2f} s on the host"
    for target, take in targets.items():
        select = jax.jit(
            partial(
                select_redundant,
                graph,
                critical,
                take=take,
                fallback=jnp.asarray(fallback),
                accepted=jnp.zeros(num_groups, bool),
            )
        )
        start = time.perf_counter()
        compiled = select.lower(scores=jnp.zeros(num_groups)).compile()
        table.add_row(target, "compilation", f"{time.perf_counter() - start:.3f}")
        for name, scores in orders.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(scores=jnp.asarray(scores, jnp.float32)))
            table.add_row(target, name, f"{time.perf_counter() - start:.3f}")
    return table


def chain_of_blocks(num_blocks: int) -> DependenceGraph:
    """Returns a chain of blocks, each of two groups side by side, the sum of them, and seven segments in a row."""
    edges: list[tuple[int, int]] = []
    for first in range(1, 10 * num_blocks, 10):
        edges += [(first - 1, first), (first - 1, first + 1), (first, first + 2), (first + 1, first + 2)]
        edges += [(segment, segment + 1) for segment in range(first + 2, first + 9)]
    senders, receivers = np.array(edges, np.int32).T
    place = (np.arange(10 * num_blocks + 1) - 1) % 10
    place[0] = -1
    group = np.full(len(place), -1, np.int32)
    group[(place == 0) | (place == 1)] = np.arange(2 * num_blocks)
    return DependenceGraph(
        senders=senders,
        receivers=receivers,
        passes_zeros=np.ones(len(senders), bool),
        additive=place == 2,
        num_external=(place == -1).astype(np.int32),
        outputs=np.array([10 * num_blocks], np.int32),
        required=np.array([10 * num_blocks], np.int32),
        group=group,
        segment=np.arange(len(place), dtype=np.int32),
    )


def ablate_hierarchy(names: tuple[str, ...], draws: int) -> Table:
    """Returns a table of the share of random score vectors for which a selection leaves a valid network."""
    table = Table("network", "groups", "target", "H2SPG", "hierarchical=False", title=f"valid of {draws} selections")
    for name in names:
        space = jasgnas.search_space(models.create(name), models.example_input(name))
        graph, num_groups = space.candidates.dependence, len(space.groups)
        largest = np.isin(np.arange(num_groups), space.largest_removal)
        none = jnp.zeros(num_groups, bool)
        scores = jax.random.normal(jax.random.key(0), (draws, num_groups))
        for target in sorted({max(1, int(largest.sum()) // 2), int(largest.sum())}):
            select = partial(
                select_redundant,
                graph,
                space.candidates.critical,
                take=partial(take_number, num=target),
                fallback=jnp.asarray(largest),
                accepted=none,
            )

            def take_best(scores: jax.Array, target: int = target, none: jax.Array = none) -> jax.Array:
                return take_number(falling_order(scores, none), ~none, target)[0]

            shares = [
                sum(
                    is_valid(space.candidates.dependence, selected) for selected in np.asarray(jax.vmap(method)(scores))
                )
                / draws
                for method in (lambda scores, select=select: select(scores=scores), take_best)
            ]
            table.add_row(name, str(num_groups), str(target), *(f"{share:.0%}" for share in shares))
    return table
