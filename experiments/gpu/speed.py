"""What H2SPG costs on the device, and what a smaller network saves there."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
import models
from experiments.benchmarks.measure import interleaved_seconds
from experiments.data import Batch
from experiments.engine.networks import Network
from experiments.engine.steps import StepOptions, TrainState, init_state, make_train_step
from experiments.gpu.journal import Thing, Work, called_with
from experiments.gpu.networks import random_network
from jasgnas.space.limits import Limits
from jasgnas.space.mixtures import resolve_mixture

NETWORKS = (("resnet18_cifar", 256), ("demo_net", 256), ("vit_s16", 64), ("stacked_unets", 256))
"""Names and batch sizes, in order of value."""

Preparation = Callable[[], Work]
"""Makes and compiles what is measured, and returns the work that is left: the measurement, which wants to be alone."""

_WARMUP_STEPS = _PROJECTION_STEPS = 10_000
_NUM_CLASSES = 10
_LEARNING_RATE = 1e-3
_WIDTH, _DEPTH = 1_000, 100


class Repeats(NamedTuple):
    """How often everything is timed.

    Attributes:
        calls: steps, or forward passes, that are started one after the other before the last one is waited for.
        rounds: how many times that is done.
    """

    calls: int = 10
    rounds: int = 5


def measurements(*, tiny: bool) -> Iterator[tuple[Thing, Preparation]]:
    """Yields each measurement, and its preparation.

    Preparations may run beside each other and beside other work, but not while something is measured.
    """
    dtype = "float32" if tiny else "bfloat16"  # a CPU takes minutes to compile bfloat16
    repeats = Repeats(calls=2, rounds=1) if tiny else Repeats()  # and a tenth of a second and more for a step
    for name, batch_size in (("demo_net", 4),) if tiny else NETWORKS:
        settings = {"name": name, "batch_size": batch_size, "dtype": dtype, "repeats": repeats}
        yield called_with("speed", f"{name}, batch {batch_size}", prepare_network, **settings)
        if name == NETWORKS[0][0] or tiny:
            width, depth = (10, 4) if tiny else (_WIDTH, _DEPTH)
            what = f"selection among {width * depth:,} channels"
            yield called_with("speed", what, prepare_selection, width=width, depth=depth, rounds=repeats.rounds)


def prepare_network(name: str, batch_size: int, dtype: str, repeats: Repeats) -> Work:
    """Prepares to measure training steps and forward passes of a network and of a random sub-network.

    Args:
        name: name of the network in the zoo.
        batch_size: images of a step.
        dtype: name of the dtype that they are computed in.
        repeats: how often everything is timed.

    Returns:
        What finds milliseconds of a training step, called one by one and many in one call: plain, with H2SPG in each of
        its phases, of the sub-network; of a forward pass of both; seconds of compilation; MiB of temporary memory, as
        the compiler says, and at the peak of a step, where the device tells and has not held more before; and the
        sub-network's share of the multiply-adds.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        model = random_network(name, num_classes=_NUM_CLASSES, dtype=jnp.dtype(dtype))
        x = models.example_input(name, batch_size=batch_size)
        space = jasgnas.search_space(model, x)
        removed = space.random_redundant(jax.random.key(0), (len(space.largest_removal) + 1) // 2)
        subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
        macs = [jasgnas.count_macs(each, x) for each in (model, subnet)]
        plain = optax.sgd(_LEARNING_RATE, momentum=0.9)
        h2spg = jasgnas.h2spg(
            space,
            learning_rate=_LEARNING_RATE,
            target_groups=len(removed),
            warmup_steps=_WARMUP_STEPS,
            projection_steps=_PROJECTION_STEPS,
            selection_steps=_WARMUP_STEPS // 2,
        )
        states = {
            "plain": (model, plain),
            "H2SPG": (model, optax.chain(plain, h2spg)),
            "sub-network": (subnet, plain),
        }
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, x.shape).astype(np.uint8)
        labels = rng.integers(0, _NUM_CLASSES, batch_size).astype(np.int32)
        initial = {key: init_state(Network.variables(each), tx, 0.0) for key, (each, tx) in states.items()}
    batch = jax.device_put(Batch(images, labels, labels, np.ones(batch_size, np.float32)), jax.devices()[0])
    zeros, ones = np.zeros(x.shape[-1], np.float32), np.full(x.shape[-1], 255, np.float32)
    options = StepOptions(zeros, ones, _NUM_CLASSES, 0.0, 0.0, 1, 0.0)

    def compiled(key: str, num_steps: int = 1) -> tuple[Any, float]:
        """Returns so many steps in one call, and the seconds of compilation."""

        def steps(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            return jax.lax.scan(lambda state, _: one_step[key](state, batch), state, length=num_steps)

        started = time.perf_counter()
        called = jax.jit(one_step[key] if num_steps == 1 else steps, donate_argnums=0)
        return called.lower(initial[key], batch).compile(), time.perf_counter() - started

    def compiled_forward(network: nnx.Module) -> Any:
        arguments = jax.device_put(Network.variables(network), jax.devices()[0]), options.normalised(batch.images)
        executable = jax.jit(Network(network).evaluate).lower(*arguments).compile()
        return partial(_repeated, partial(executable, *arguments), repeats.calls)

    one_step = {key: make_train_step(Network(network), tx, options, None) for key, (network, tx) in states.items()}
    with ThreadPoolExecutor() as pool:
        sub = pool.submit(compiled, "sub-network")
        in_one_call = pool.map(lambda key: compiled(key, repeats.calls)[0], states)
        forward = dict(zip(("full", "sub-network"), pool.map(compiled_forward, (model, subnet)), strict=True))
        joined = dict(zip(states, in_one_call, strict=True))
        programs = _Programs(initial, batch, compiled, {"sub-network": sub.result()}, joined, forward)
    facts = {"macs_share": macs[1] / macs[0], "removed": len(removed)}
    chosen = np.isin(np.arange(len(space.groups)), removed)
    return lambda: facts | _measured(programs, chosen, repeats)


class _Programs(NamedTuple):
    """What is run, by what it is: `plain`, `H2SPG` and `sub-network`.

    Attributes:
        initial: states that trainings start with.
        batch: the batch of every step.
        compiled: compiles the step of one of them, and returns it with the seconds that it took.
        steps: those that are compiled, in the same form.
        joined: many steps in one call.
        forward: many forward passes of the full network and of the sub-network.
    """

    initial: dict[str, TrainState]
    batch: Batch
    compiled: Callable[[str], tuple[Any, float]]
    steps: dict[str, tuple[Any, float]]
    joined: dict[str, Any]
    forward: dict[str, Callable[[], Any]]


def _measured(programs: _Programs, chosen: np.ndarray, repeats: Repeats) -> dict[str, Any]:
    """Measures programs; `chosen`, bool `[num_groups]`, are the groups that H2SPG has selected where it has."""
    initial, batch = programs.initial, programs.batch
    # One by one, since their times of compilation are compared, and last: the first program that is compiled would take
    # longer, as the compiler starts and tries out kernels that the others have, too.
    steps = programs.steps | {key: programs.compiled(key) for key in ("plain", "H2SPG")}
    peaks = {key: _peak_mib(_Training(steps[key][0], initial[key], batch, 1)) for key in ("plain", "H2SPG")}
    momentum, state = initial["H2SPG"].opt_state
    phases = {
        "warm-up": (0, state.redundant),
        "scoring": (_WARMUP_STEPS - 1000, state.redundant),
        "projection": (_WARMUP_STEPS, chosen),
        "target met": (_WARMUP_STEPS + _PROJECTION_STEPS, chosen),
    }
    starts = {key: (key, initial[key]) for key in ("plain", "sub-network")}
    for phase, (number, redundant) in phases.items():
        there = momentum, state._replace(step=jnp.int32(number), redundant=jnp.asarray(redundant))
        starts[f"H2SPG, {phase}"] = "H2SPG", initial["H2SPG"]._replace(opt_state=there)
    runs = {name: _Training(steps[key][0], start, batch, repeats.calls) for name, (key, start) in starts.items()}
    joined_runs = {name: _Training(programs.joined[key], start, batch, 1) for name, (key, start) in starts.items()}
    seconds = interleaved_seconds(runs, repeats.rounds)
    joined_seconds = interleaved_seconds(joined_runs, repeats.rounds)
    forward_seconds = interleaved_seconds(programs.forward, repeats.rounds)
    return {
        "step_ms": {key: 1e3 * value / repeats.calls for key, value in seconds.items()},
        "joined_step_ms": {key: 1e3 * value / repeats.calls for key, value in joined_seconds.items()},
        "forward_ms": {key: 1e3 * value / repeats.calls for key, value in forward_seconds.items()},
        "compile_seconds": {key: value for key, (_, value) in steps.items()},
        "temporary_mib": {key: each.memory_analysis().temp_size_in_bytes / 2**20 for key, (each, _) in steps.items()},
        "peak_mib": peaks,
    }


class _Training:
    """A training that goes on for some steps whenever it is called."""

    def __init__(self, steps: Callable[..., Any], state: Any, batch: Batch, num_calls: int):
        self._steps, self._batch, self._num_calls = steps, batch, num_calls
        self._state = jax.device_put(jax.tree.map(np.asarray, state), jax.devices()[0])

    def __call__(self) -> Any:
        """Returns what the last call reports."""
        for _ in range(self._num_calls):
            self._state, metrics = self._steps(self._state, self._batch)
        return metrics


def _peak_mib(call: Callable[[], Any]) -> float | None:
    """Returns the most memory that the device holds in a call.

    A device keeps but the peak since the process began: None where it held more before, or keeps none.
    """

    def peak() -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    before = peak()
    jax.block_until_ready(call())
    after = peak()
    return after / 2**20 if after > before else None


def _repeated(call: Callable[[], Any], number: int) -> Any:
    return [call() for _ in range(number)][-1]


def prepare_selection(width: int, depth: int, rounds: int) -> Work:
    """Prepares to measure one selection by cost among the channels of dense layers, to half of their multiply-adds."""
    with jax.default_device(jax.devices("cpu")[0]):
        layers = nnx.eval_shape(lambda: _Stack(width, depth, nnx.Rngs(0)))
        space = jasgnas.search_space(layers, jax.ShapeDtypeStruct((1, width), jnp.float32), channels=True)
        mixture = resolve_mixture(space.candidates, {"target_macs": 0.5}, 1, True, Limits())
        scores = np.random.default_rng(0).normal(size=len(space.groups)).astype(np.float32)

    def measure() -> dict[str, Any]:
        none = jnp.zeros(len(space.groups), bool)
        select = jax.jit(lambda scores: mixture.select(scores, -1, mixture.fallback, none, by_cost=True).redundant)
        started = time.perf_counter()
        jax.block_until_ready(select(scores))
        first = time.perf_counter() - started
        seconds = interleaved_seconds({"": lambda: select(scores)}, rounds)[""]
        return {"groups": len(space.groups), "ms": 1e3 * seconds, "first_call_seconds": first}

    return measure


class _Stack(nnx.Module):
    """Dense layers with ReLU between them."""

    def __init__(self, width: int, depth: int, rngs: nnx.Rngs):
        """Makes `depth` layers of one width, and one more that returns the output."""
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth + 1)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output `[batch, width]`."""
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)
