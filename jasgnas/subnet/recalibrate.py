"""Running statistics anew, after the network that they are statistics of has changed.

Nothing is known of layers. A running statistic is found by what a training step does to it: it is an average that
forgets at a constant rate, and nothing but that average itself looks at its past.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.bridge import Leaf, Model, flavour_of, matched, open_model
from jasgnas.bridge.trace import Call, TracedModel, trace_model
from jasgnas.checks import checked_batches
from jasgnas.errors import ArgumentError, NonFiniteError
from jasgnas.program.masks import NOTHING, everything
from jasgnas.rules.flow import propagate_needs, propagate_zeros


def recalibrate(model: Any, batches: Iterable[Any], *, variables: Any = None, method: Any = None, **kwargs: Any) -> Any:
    """Computes the running statistics of a network anew, such as the means and variances of batch norm.

    When groups go, what the layers behind them see changes, and the running statistics that inference normalises with
    are those of another network. Parameters stay as they are. The network is run once in training mode on each batch,
    and each running statistic becomes the plain mean of its values on the batches: what its moving average would
    converge to. For a variance that is the mean of the variances within batches, as in training.

    A running statistic is an array of real numbers, no parameter, that a call in training mode replaces by
    m·old + (1 − m)·new, 0 < m < 1, where `new` depends on the batch alone, and that has no other influence on what the
    call returns or updates. Averages that start at zero may be divided by 1 − mⁿ in inference, where n counts the calls
    in training (Equinox's batch norm in the mode `"batch"`): a counter that only inference reads is set to so many that
    there is nothing to correct. Everything else is left alone: other counters and random states, caches, what a call
    overwrites (m = 0), and vectors that a later call starts from, as those of spectral norm.

    Args:
        model: a sub-network or a full network, an `nnx.Module`, a Linen module, or an Equinox module.
        batches: what the network is called with: an array (or a pytree of arrays that is no tuple) as the one argument,
            or a tuple of all positional arguments. At least one, each as large as in training.
        variables: the variables of a Linen module, the state of an Equinox module.
        method: what is called instead of `__call__`, as in `search_space`.
        **kwargs: further arguments of the call. A Linen module must be told to train, as by `train=True`, and given
            `rngs` where it needs them; other modules are called in training mode by themselves.

    Returns:
        The `nnx.Module`, whose statistics were updated in place and which is in the mode in which it was; for a Linen
        module its new variables; the Equinox module and its new state.

    Raises:
        ArgumentError: the model is a function of parameters, which does not return statistics; there is no batch; or
            the call updates no running statistic.
        NonFiniteError: a statistic of a batch is not finite.

    Example:
        >>> subnet = jasgnas.recalibrate(subnet, [images_1, images_2])  # doctest: +SKIP
        >>> sub_variables = jasgnas.recalibrate(  # doctest: +SKIP
        ...     submodule, [images_1, images_2], variables=sub_variables, train=True
        ... )
    """
    if not flavour_of(model).is_module:
        raise ArgumentError(
            "a function of parameters does not return the statistics that it computes, so that they cannot be "
            "collected: expected an nnx.Module, a Linen module with `variables=`, or an Equinox module with its state"
        )
    opened = open_model(model, variables=variables, method=method).in_mode(training=True)
    holder = opened.holder(model, variables)
    values = matched(opened.leaves, opened.tree(holder))
    before = list(values)
    step: _Step | None = None
    for number, batch in enumerate(checked_batches(batches)):
        args = batch if isinstance(batch, tuple) else (batch,)
        if step is None:
            step = _Step(opened, Call.of(args, kwargs), kwargs)
            means = [_Mean(opened.leaves[index]) for index in step.statistics]
        results, carried = step.run(values, [mean.probes for mean in means], args)
        for index, value in zip(step.carried, carried, strict=True):
            values[index] = value
        for mean, result in zip(means, results, strict=True):
            if not mean.add(np.asarray(result, np.float64)):
                raise NonFiniteError(
                    f"the statistic {mean.leaf.path} of batch {number} is not finite: check batch and parameters"
                )
    assert step is not None
    running = {index: mean for index, mean in zip(step.statistics, means, strict=True) if mean.count.any()}
    kept = _read_by_nobody(step.traced, set(running))
    changed = {running[index].leaf.path: running[index].over(values[index]) for index in kept}
    for leaf in step.counters(before, values, number + 1) if changed else ():
        changed[leaf.path] = jnp.full(leaf.shape, jnp.iinfo(leaf.dtype).max // 2, leaf.dtype)
    if not changed:
        raise ArgumentError(
            "this call updates no running statistics. A Linen module must be told to train, as by train=True, and a "
            "layer that was told to use its running averages does not update them; a network without batch norm or "
            "the like has none, and needs no recalibration"
        )
    return opened.stored(holder, changed)


class _Step:
    """One call in training mode.

    Attributes:
        traced: the call, traced.
        statistics: indices of the leaves that may be running statistics.
        carried: indices of the other leaves that the call changes, which the next call continues from.
        run: the call, compiled, see `_call`.
    """

    def __init__(self, model: Model, call: Call, kwargs: Mapping[str, Any]):
        """Takes the model in training mode, and such arguments."""
        self._model = model
        self._example = call
        self._kwargs = kwargs
        self.traced = trace_model(model, call)
        self.statistics = sorted(_read_by_nobody(self.traced, _state(self.traced, jnp.floating)))
        self.carried = [index for index in self.traced.updated if index not in self.statistics]
        self.run = jax.jit(self._call)

    def counters(self, before: Sequence[Any], after: Sequence[Any], num_calls: int) -> list[Leaf]:
        """Returns the leaves that count calls in training, and that nothing but inference reads."""
        counting = [
            index
            for index in _read_by_nobody(self.traced, _state(self.traced, jnp.integer))
            if np.all(np.asarray(after[index]) - np.asarray(before[index]) == num_calls)
        ]
        if not counting:
            return []
        inference = trace_model(self._model.in_mode(training=False), self._example)
        outputs = [everything(len(aval.shape)) for aval in inference.output_avals]
        unread = [NOTHING] * len(inference.leaves)
        needs = propagate_needs(inference.program, propagate_zeros(inference.program), [*outputs, *unread])
        read = (index for index in counting if needs.read(inference.program.inputs[index]) != NOTHING)
        return [inference.leaves[index] for index in read]

    def _call(
        self, values: list[jax.Array], probes: list[Any], args: tuple[Any, ...]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns what the call makes of the probes of each statistic, and the leaves carried after it."""

        def after(statistics: list[jax.Array]) -> list[jax.Array]:
            given = list(values)
            for index, value in zip(self.statistics, statistics, strict=True):
                given[index] = value
            changed = self._model.apply(given, args, self._kwargs)[1]
            return [changed[index] for index in (*self.statistics, *self.carried)]

        # Nothing but the statistics depends on the probes, so that all else is computed only once.
        results = jax.vmap(after, axis_size=_NUM_PROBES)(probes)
        return results[: len(probes)], [result[0] for result in results[len(probes) :]]


def _state(traced: TracedModel, dtype: Any) -> set[int]:
    """Returns the leaves of numbers of a kind that the call changes, and that are no parameters."""
    pairs = [(index, traced.leaves[index]) for index in traced.updated]
    return {index for index, leaf in pairs if not leaf.trainable and jnp.issubdtype(leaf.dtype, dtype)}


def _read_by_nobody(traced: TracedModel, candidates: set[int]) -> set[int]:
    """Returns the largest part of some leaves from which the call computes no output, and nothing for other leaves.

    For those among them it may: whether they read each other is not asked.
    """
    program, leaves = traced.program, traced.leaves
    zeros = propagate_zeros(program)
    outputs = [everything(len(aval.shape)) for aval in traced.output_avals]
    while True:
        readers = set(traced.updated) - candidates
        after = [everything(len(leaf.shape)) if index in readers else NOTHING for index, leaf in enumerate(leaves)]
        needs = propagate_needs(program, zeros, [*outputs, *after])
        read = {index for index in candidates if needs.read(program.inputs[index]) != NOTHING}
        if not read:
            return candidates
        candidates = candidates - read


_NUM_PROBES = 3


class _Mean:
    """The mean over the batches of what a statistic is an average of, entry by entry.

    The update is r(s) = (1 − q)·s + q·b, with a rate q = 1 − m and the batch's own value b. It is probed at three
    points: at zero, where it is q·b; at a very large power of two L, which is multiplied exactly and where q·b is lost
    in rounding, so that q is (L − r(L) + r(0))/L with hardly a rounding; and around 1, which tells whether there are
    such q and b at all. There each entry is probed at a point of its own, which also tells whether statistics read each
    other.

    Attributes:
        leaf: the leaf.
        probes: the three points, `[num_probes, *shape]`.
        total: sum of the values b, float64.
        count: how many there were.
    """

    def __init__(self, leaf: Leaf):
        """Starts without a value."""
        self.leaf = leaf
        precision = jnp.finfo(leaf.dtype)
        around = np.random.default_rng(zlib.crc32(leaf.path.encode())).uniform(0.5, 2, leaf.shape)
        large = np.full(leaf.shape, 2.0 ** (precision.maxexp // 2))
        self.probes = np.stack([np.zeros(leaf.shape), large, around]).astype(leaf.dtype)
        self.total = np.zeros(leaf.shape)
        self.count = np.zeros(leaf.shape, int)
        self._eps = float(precision.eps)

    def add(self, results: np.ndarray) -> bool:
        """Adds the value of a batch where the update is one of an average; returns whether it is finite.

        Args:
            results: what the call makes of the probes.
        """
        _, large, around = self.probes.astype(np.float64)
        start, far, near = results
        with np.errstate(invalid="ignore"):  # what is not finite is no average
            rate = (large - far + start) / large
            error = np.abs(near - ((1 - rate) * around + start))
            is_average = (rate > self._eps) & (rate < 1) & (error <= self._eps**0.5 * (around + np.abs(start)))
        self.total += np.where(is_average, start, 0) / np.where(is_average, rate, 1)
        self.count += is_average
        return bool(np.all(np.isfinite(near)))

    def over(self, value: jax.Array) -> jax.Array:
        """Returns the mean, and the given value where there is none."""
        mean = np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.asarray(value, np.float64))
        return jnp.asarray(mean, value.dtype)
