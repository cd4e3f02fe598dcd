"""Learning-rate schedules and optax chains, as a config asks for them."""

from functools import partial
from typing import Any

import jax
import optax

import jasgnas
from experiments.common.errors import ConfigError
from experiments.engine.config import TARGETS, H2SPGConfig, OptimizerConfig
from jasgnas.optimizer.scores import GroupStats, ScoreFn


def make_schedule(config: OptimizerConfig, steps_per_epoch: int, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of each step."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    rest = max(1, num_steps - warmup_steps)
    match config.schedule:
        case "cosine":
            schedule = optax.cosine_decay_schedule(config.learning_rate, rest)
        case "step":
            ends = [epoch * steps_per_epoch - warmup_steps for epoch in config.step_epochs]
            schedule = optax.piecewise_constant_schedule(config.learning_rate, dict.fromkeys(ends, config.step_factor))
        case "constant":
            schedule = optax.constant_schedule(config.learning_rate)
    if not warmup_steps:
        return schedule
    return optax.join_schedules(
        [optax.linear_schedule(0.0, config.learning_rate, warmup_steps), schedule], [warmup_steps]
    )


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer without H2SPG."""
    decay = partial(optax.add_decayed_weights, config.weight_decay, mask=is_decayed)
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    match config.name:
        case "sgd":
            return optax.chain(clip, decay(), optax.sgd(schedule, config.momentum, nesterov=config.nesterov))
        case "adamw":
            adam = optax.scale_by_adam(b1=config.momentum)
            return optax.chain(clip, adam, decay(), optax.scale_by_learning_rate(schedule))


def add_h2spg(
    tx: optax.GradientTransformation,
    space: jasgnas.SearchSpace,
    config: H2SPGConfig,
    optimizer: str,
    schedule: optax.Schedule,
    num_steps: int,
    seed: int | jax.Array = 0,
) -> optax.GradientTransformation:
    """Returns the chain of an optimizer and H2SPG; the seed decides what the score `random` selects.

    Raises:
        ConfigError: not exactly one target is given, and not `at_most` alone either.
        jasgnas.JasgnasError: the target cannot be met, or another setting is out of range.
    """
    if len(config.targets) != 1 and (config.targets or not config.at_most):
        given = ", ".join(f"{name}={value}" for name, value in config.targets.items()) or "none"
        raise ConfigError(
            f"exactly one of {', '.join(TARGETS)} is needed, or at_most, got {given}. Give one and leave out the "
            f"others; `--h2spg.{next(iter(config.targets), TARGETS[0]).replace('_', '-')} None` takes one back"
        )
    published: dict[str, Any] = dict(jasgnas.ADAM_DEFAULTS) if optimizer == "adamw" else {}
    warmup_steps, projection_steps = _phase_steps(config, num_steps)
    h2spg = jasgnas.h2spg(
        space,
        learning_rate=schedule,
        **config.targets,
        at_most=config.at_most or None,
        warmup_steps=warmup_steps,
        projection_steps=projection_steps,
        min_channels=config.min_channels,
        multiple_of=config.multiple_of,
        settle=config.settle,
        periods=config.periods,
        score=_random_score(seed) if config.score == "random" else config.score,
        look_every=config.look_every,
        forward_passes=config.forward_passes,
        hierarchical=config.hierarchical,
        epsilon=config.epsilon,
        **published,
    )
    return optax.chain(tx, h2spg)


def round_ends(config: H2SPGConfig, num_steps: int) -> frozenset[int]:
    """Returns the numbers of steps after which the structures of a round are zero."""
    warmup_steps, projection_steps = _phase_steps(config, num_steps)
    rounds = range(1, config.periods + 1)
    return frozenset(warmup_steps + number * projection_steps // config.periods for number in rounds)


def _phase_steps(config: H2SPGConfig, num_steps: int) -> tuple[int, int]:
    """Returns the steps of warm-up and of the projection."""
    return max(1, round(config.warmup_fraction * num_steps)), max(1, round(config.projection_fraction * num_steps))


def random_scores(seed: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns what the score `random` is with a seed, float32."""
    return jax.random.uniform(jax.random.key(seed), shape)


def _random_score(seed: int | jax.Array) -> ScoreFn:
    """Returns a score that looks at nothing: the same random numbers at every step."""

    def score(stats: GroupStats) -> jax.Array:
        return random_scores(seed, stats.x_norm.shape)

    return score


def is_decayed(params: optax.Params) -> optax.Params:
    """Tells of every parameter whether it is subject to weight decay: scales and biases have one axis and are not."""
    return jax.tree.map(lambda param: param.ndim > 1, params)
