"""One training of a decoder: as it is, or until parts of it are gone and then with what is left."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jasgnas
import models
from experiments.common.errors import ConfigError, DataError, DivergedError
from experiments.language.text import Text, drawn_windows, spread_windows

NUM_BYTES = 256
"""Different tokens."""
_HEADS = "*/query/*"
"""The parameters whose channels are heads: there are few of them."""
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and how; by default the network as it is registered, for which a GPU is needed."""

    features: int = 256
    """Width of a token."""
    depth: int = 6
    """Blocks."""
    num_heads: int = 8
    """Heads of each attention."""
    hidden: int = 704
    """Width inside each SwiGLU network."""
    context: int = 64
    """Bytes that are read at once; of each the next one is predicted."""
    batch_size: int = 64
    """Windows of so many bytes per step."""
    steps: int = 20_000
    """Steps of every training."""
    learning_rate: float = 1e-3
    """The largest learning rate."""
    rise: float = 0.05
    """Part of the steps over which the learning rate rises; after that it falls along a cosine."""
    weight_decay: float = 0.1
    """Strength of AdamW's weight decay."""
    warmup: float = 0.3
    """Part of the steps before the selection."""
    projection: float = 0.1
    """Part of the steps over which what is selected goes to zero."""
    target_macs: float = 0.6
    """Part of the multiply-adds that a sub-network may have."""
    multiple_of: int = 8
    """What the widths that stay are multiples of; numbers of heads are not limited."""
    distillation: float = 1.0
    """Weight of the divergence from the full network's predictions where it teaches."""
    test_windows: int = 512
    """Windows of the test's bytes, at equal distances."""

    def __post_init__(self) -> None:
        """Refuses settings that no training could meet."""
        if not 0 < self.rise <= self.warmup or not 0 < self.projection <= 1 - self.warmup:
            raise ConfigError(
                "rise must be a positive part of the steps and at most warmup, and projection a positive part that "
                f"adds up to at most 1 with warmup, got {self.rise}, {self.warmup} and {self.projection}"
            )
        sizes = ("features", "depth", "num_heads", "hidden", "context", "batch_size", "test_windows", "multiple_of")
        if small := [name for name in sizes if getattr(self, name) < 1]:
            raise ConfigError(f"{', '.join(small)} must be at least 1")
        if self.steps < 10:
            raise ConfigError(f"steps must be at least 10, got {self.steps}")
        if self.features % (2 * self.num_heads):
            raise ConfigError(
                f"num_heads must divide features into even parts, got {self.num_heads} and {self.features}"
            )


class Variant(NamedTuple):
    """How a training makes the network smaller.

    Attributes:
        structures: whether attentions and SwiGLU networks can go.
        channels: whether widths and heads can.
        distilled: whether the smaller network is taught by the full one.
    """

    structures: bool
    channels: bool
    distilled: bool = False


FULL = "full"
"""The variant that stays as it is."""
VARIANTS: Mapping[str, Variant] = {
    FULL: Variant(structures=False, channels=False),
    "both": Variant(structures=True, channels=True),
    "slim": Variant(structures=False, channels=True),
    "erase": Variant(structures=True, channels=False),
    "both-distilled": Variant(structures=True, channels=True, distilled=True),
}
"""The variants by name, in the order in which they are trained."""


class Smaller(NamedTuple):
    """What became of the network in the middle of a training.

    Attributes:
        after: the step after which it became smaller.
        structures: names of the structures that went.
        widths: of each dimension that can be narrowed, by name, its size before and after.
        predicted: parameters and multiply-adds that the search space says it has.
        error: largest difference between its logits and those of the network of full size with zeros in it, as a part
            of the largest logit.
    """

    after: int
    structures: list[str]
    widths: dict[str, tuple[int, int]]
    predicted: tuple[int, int]
    error: float


class Trained(NamedTuple):
    """A training that has ended.

    Attributes:
        module: the network that is left.
        size: its parameters and multiply-adds, counted.
        train_bits: mean cross-entropy of the last tenth of the steps, in bits per byte.
        test_bits: that of the test's windows.
        seconds: how long all steps took, with compilation, and the construction of the sub-network and its comparison.
        step_seconds: medians over the steps with the network of full size, and over those with the sub-network.
        smaller: how it became smaller, None if it did not.
    """

    module: nnx.Module
    size: tuple[int, int]
    train_bits: float
    test_bits: float
    seconds: float
    step_seconds: list[float]
    smaller: Smaller | None


Step = Callable[[nnx.Module, nnx.Optimizer, nnx.Module | None, Any], jax.Array]
"""Trains the module by windows, int32 `[batch, context + 1]`; returns their mean cross-entropy, in nats."""


class Trainer:
    """Trains networks of one size on one text."""

    def __init__(self, settings: Settings, text: Text):
        """Takes the windows of the test.

        Raises:
            DataError: a part of the text is shorter than a window.
        """
        self._settings, self._text = settings, text
        self._window = settings.context + 1
        if (shortest := min(len(text.train), len(text.test))) < self._window:
            raise DataError(f"there are {shortest:,} bytes of a part of the text, which is no window of {self._window}")
        self._tokens = jax.ShapeDtypeStruct((1, settings.context), jnp.int32)
        self._test = spread_windows(text.test, settings.test_windows, self._window)
        # The full network is a variant, and the teacher of another one.
        self._full = lru_cache(maxsize=1)(partial(self._trained, FULL))

    def train(self, variant: str, seed: int) -> Trained:
        """Trains a variant; all of a seed begin with the same parameters and read the same windows in the same order.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        return self._full(seed) if variant == FULL else self._trained(variant, seed)

    def _trained(self, variant: str, seed: int) -> Trained:
        settings, how = self._settings, VARIANTS[variant]
        model = self._module(seed)
        space = None if variant == FULL else self._space(model, how)
        optimizer = nnx.Optimizer(model, self._optimizer(space), wrt=nnx.Param)
        teacher = self._full(seed).module if how.distilled else None
        step, smaller = make_step(settings.distillation), None
        losses: list[float] = []
        times = [time.perf_counter()]
        for number in range(settings.steps):
            windows = drawn_windows(self._text.train, settings.batch_size, self._window, (seed, number))
            losses.append(float(step(model, optimizer, None if smaller is None else teacher, windows)))
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"the loss of step {number + 1} is {losses[-1]}")
            if space is not None and smaller is None and _is_over(optimizer):
                model, optimizer, smaller = self._smaller(space, model, optimizer, number + 1)
            times.append(time.perf_counter())
        steps = np.split(np.diff(times), [] if smaller is None else [smaller.after])
        return Trained(
            model,
            (jasgnas.count_params(model), jasgnas.count_macs(model, self._tokens)),
            float(np.mean(losses[-max(1, settings.steps // 10) :])) / math.log(2),
            self._bits(model),
            times[-1] - times[0],
            [float(np.median(each)) for each in steps if len(each)],
            smaller,
        )

    def _smaller(
        self, space: jasgnas.SearchSpace, model: nnx.Module, optimizer: nnx.Optimizer, after: int
    ) -> tuple[nnx.Module, nnx.Optimizer, Smaller]:
        """Returns the network and its optimizer without what is zero."""
        removed = np.flatnonzero(jasgnas.h2spg_state(optimizer.opt_state).zero).tolist()
        subnet, carried = jasgnas.shrink(space, model, optimizer)
        inputs = self._test[: self._settings.batch_size, :-1]
        before, now = (np.asarray(nnx.jit(lambda model, x: model(x))(each, inputs)) for each in (model, subnet))
        gone = [space.groups[index] for index in removed]
        widths = zip(space.dimensions, space.channels_left(removed), strict=True)
        smaller = Smaller(
            after,
            [group.name for group in gone if group.kind == "structure"],
            {each.name: (each.size, left) for each, left in widths},
            space.subnet_size(removed),
            float(np.max(np.abs(now - before)) / np.max(np.abs(before))),
        )
        return subnet, carried, smaller

    def _bits(self, model: nnx.Module) -> float:
        """Returns the mean cross-entropy of the test's windows, in bits per byte."""

        def of_window(model: nnx.Module, window: jax.Array) -> jax.Array:
            return _mean_loss(model(window[None, :-1]), window[None, 1:])

        @nnx.jit
        def of_all(model: nnx.Module, windows: jax.Array) -> jax.Array:
            return jnp.mean(jax.lax.map(partial(of_window, model), windows, batch_size=self._settings.batch_size))

        return float(of_all(model, jnp.asarray(self._test))) / math.log(2)

    def _module(self, seed: int) -> nnx.Module:
        settings = self._settings
        return models.create(
            "decoder_small",
            num_classes=NUM_BYTES,
            features=settings.features,
            depth=settings.depth,
            num_heads=settings.num_heads,
            hidden=settings.hidden,
            rngs=nnx.Rngs(seed),
        )

    def _space(self, model: nnx.Module, how: Variant) -> jasgnas.SearchSpace:
        return jasgnas.search_space(model, self._tokens, structures=how.structures, channels=how.channels)

    def _optimizer(self, space: jasgnas.SearchSpace | None) -> optax.GradientTransformation:
        settings = self._settings
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, settings.learning_rate, max(1, round(settings.rise * settings.steps)), settings.steps
        )
        tx = optax.chain(
            optax.clip_by_global_norm(_CLIP_NORM), optax.adamw(schedule, weight_decay=settings.weight_decay)
        )
        if space is None:
            return tx
        adam: Any = jasgnas.ADAM_DEFAULTS
        return optax.chain(
            tx,
            jasgnas.h2spg(
                space,
                learning_rate=schedule,
                target_macs=settings.target_macs,
                multiple_of={_HEADS: 1, "*": settings.multiple_of} if space.dimensions else None,
                warmup_steps=round(settings.warmup * settings.steps),
                projection_steps=max(1, round(settings.projection * settings.steps)),
                **adam,
            ),
        )


def make_step(distillation: float) -> Step:
    """Returns the step of a training.

    Args:
        distillation: weight of the divergence from the predictions of the teacher, where the step is given one.
    """

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, teacher: nnx.Module | None, windows: jax.Array) -> jax.Array:
        taught = None if teacher is None else nnx.log_softmax(teacher(windows[:, :-1]))

        def loss_fn(model: nnx.Module) -> tuple[jax.Array, jax.Array]:
            logits = model(windows[:, :-1])
            loss = _mean_loss(logits, windows[:, 1:])
            if taught is None:
                return loss, loss
            divergence = optax.losses.kl_divergence_with_log_targets(nnx.log_softmax(logits), taught)
            return loss + distillation * jnp.mean(divergence), loss

        (total, loss), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        value_fn = jasgnas.nnx_value_fn(model, loss_fn)
        optimizer.update(model, grads, grad=grads, value=total, value_fn=value_fn)
        return loss

    return step


def _mean_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of tokens, in nats."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens))


def _is_over(optimizer: nnx.Optimizer) -> bool:
    """Tells whether all that is to go is zero."""
    metrics = jasgnas.h2spg_metrics(optimizer.opt_state)
    return bool(0 < metrics["num_redundant"] == metrics["num_zero"])
