"""The training loop: one for full training and for H2SPG, which differ in their optimizer alone."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import jasgnas
from experiments.common.errors import DivergedError, Interrupted
from experiments.data import Batch, TrainBatches
from experiments.engine.checkpoints import Checkpoints, Position
from experiments.engine.compare import Comparison, compare
from experiments.engine.logs import Display, Record, RunLog
from experiments.engine.networks import Network
from experiments.engine.optimizers import round_ends
from experiments.engine.parallel import Parallel
from experiments.engine.runs import Run, checkpoint_folder
from experiments.engine.steps import Hits, Metrics, StepOptions, TrainState, init_state, make_eval_step, make_train_step

_STEPS_IN_FLIGHT = 2
"""Steps that may be under way on the device while the next one is prepared."""


class Evaluation(NamedTuple):
    """What a test found.

    Attributes:
        loss: mean cross-entropy.
        top1: fraction of images whose class has the largest logit.
        top5: fraction of images whose class is among the five largest.
    """

    loss: float
    top1: float
    top5: float


class Trained(NamedTuple):
    """What a training ends with.

    Attributes:
        module: the network, with averaged variables if the run averages them.
        opt_state: state of the optimizer.
        history: all log entries.
        evaluation: result of the test at the end.
        seconds: time it took, compilation, construction on the way and earlier starts included.
        comparison: of the sparse network and the sub-network when it was last shrunk, None if it never was.
        construction_seconds: part of `seconds` that constructing sub-networks and comparing them took.
    """

    module: nnx.Module
    opt_state: Any
    history: list[Record]
    evaluation: Evaluation
    seconds: float
    comparison: Comparison | None
    construction_seconds: float


class StopRequest:
    """Notes that a signal asked to stop, so that a training can save its state first; a second one stops at once."""

    signal_number: int | None = None

    def raise_if_made(self, message: str) -> None:
        """Raises `Interrupted` if there was a signal."""
        if self.signal_number is not None:
            raise Interrupted(message, self.signal_number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM while its body runs."""
    request = StopRequest()

    def restore_handlers() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        del frame
        request.signal_number = number
        restore_handlers()

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        restore_handlers()


class Training:
    """One training of a run, which goes on after the newest good checkpoint."""

    def __init__(
        self,
        run: Run,
        name: str,
        module: nnx.Module,
        tx: optax.GradientTransformation,
        schedule: optax.Schedule,
        space: jasgnas.SearchSpace | None = None,
    ):
        """Prepares the training.

        Args:
            run: what belongs to the whole run.
            name: name of the training, and of its folder.
            module: the network, freshly initialised.
            tx: its optimizer.
            schedule: its learning rate, for the log.
            space: the network's search space, if `tx` holds H2SPG.
        """
        self._run = run
        self._name = name
        self._tx = tx
        # All at once: a schedule is a dozen operations of JAX, which take long one by one.
        self._learning_rates = np.asarray(jax.vmap(schedule)(np.arange(run.train_batches().num_steps)))
        self._space = space
        self._folder = run.log_folder(name)
        self._options = StepOptions.of(run.config, run.dataset)
        self._comparison: Comparison | None = None
        self._construction_seconds = 0.0
        self._num_explained = 0
        self._state: TrainState
        self._set_network(module, init_state(Network.variables(module), tx, run.config.ema))

    def train(self, display: Display) -> Trained:
        """Trains to the end.

        Raises:
            DivergedError: the loss or a parameter became NaN or infinite.
            Interrupted: a signal asked to stop; the state is saved.
            CheckpointError: a checkpoint belongs to another training, or could not be written.
            OSError: the log could not be written.
        """
        config = self._run.config
        self._folder.mkdir(parents=True, exist_ok=True)
        batches = self._run.train_batches()
        iterator = iter(batches)
        with Checkpoints(checkpoint_folder(self._run.folder, self._name), config.keep_checkpoints) as checkpoints:
            position = self._restore(checkpoints)
            if position.step:
                iterator.set_state(position.iterator)
            display.start(self._name, batches.num_steps, position.step)
            with RunLog(self._folder, position.step) as log, stop_requests() as request:
                seconds = self._train(batches, iterator, position, checkpoints, log, display, request)
        seconds += self.shrink_if_due()
        state = self._fetched_state()
        module = self._network.module(state.result)
        evaluation = self.evaluate()
        return Trained(
            module, state.opt_state, log.history, evaluation, seconds, self._comparison, self._construction_seconds
        )

    def step(self, batch: Batch) -> Metrics:
        """Makes one step; what it returns may still be under way."""
        self._state, metrics = self._train_step(self._state, self._run.parallel.place_batch(batch))
        return metrics

    def shrink_if_due(self) -> float:
        """Replaces the network by a smaller one once all groups selected so far are zero.

        Returns:
            The seconds of construction and comparison, 0 if nothing is due.
        """
        if self._space is None or not self._run.config.shrink:
            return 0.0
        h2spg = self._fetched_h2spg()
        redundant = np.flatnonzero(h2spg.redundant)
        if np.isin(redundant, h2spg.remainder.removed).all() or not np.asarray(h2spg.zero)[redundant].all():
            return 0.0
        started = time.perf_counter()
        sparse = self._network.module(self._fetched_state().variables)
        subnet, state = self._shrunk()
        self._comparison = compare(self._run, sparse, subnet)
        seconds = time.perf_counter() - started
        self._construction_seconds += seconds
        self._set_network(subnet, state)
        return seconds

    def evaluate(self) -> Evaluation:
        """Tests the network as it is now."""
        parallel, images = self._run.parallel, self._run.dataset.test
        variables = self._state.result
        counted = [self._eval_step(variables, parallel.place_batch(batch)) for batch in self._run.eval_batches()]
        total = Hits(*np.sum([parallel.fetch(hits) for hits in counted], axis=0))
        return Evaluation(*(float(each) / len(images) for each in total))

    def _train(
        self,
        batches: TrainBatches,
        iterator: Any,
        position: Position,
        checkpoints: Checkpoints,
        log: RunLog,
        display: Display,
        request: StopRequest,
    ) -> float:
        """Makes all steps from `position` on, and returns the seconds that the training has taken in all."""
        config, parallel = self._run.config, self._run.parallel
        per_epoch, num_steps = batches.steps_per_epoch, batches.num_steps
        due = round_ends(config.h2spg, num_steps)
        started = time.perf_counter() - position.seconds
        window = _Window(position.step)
        for step in range(position.step + 1, num_steps + 1):
            if step - 1 in due:
                self.shrink_if_due()
            window.add(self.step(next(iterator)))
            epoch, is_last = step // per_epoch, step == num_steps
            ends_epoch = step % per_epoch == 0
            stops = request.signal_number is not None  # asked once: the signal may come while this step is saved
            is_saved = is_last or stops or (ends_epoch and epoch % config.checkpoint_every == 0)
            is_tested = not is_last and ends_epoch and config.eval_every and epoch % config.eval_every == 0
            if is_saved or is_tested or step % config.log_every == 0:
                record = window.close(step, parallel, config.batch_size)
                record |= {"seconds": time.perf_counter() - started, "epoch": step / per_epoch}
                record |= {"learning_rate": float(self._learning_rates[step - 1])}
                record |= self._sparsity()
                if is_tested or is_last:
                    evaluation = self.evaluate()
                    record |= {"test/loss": evaluation.loss, "test/accuracy": evaluation.top1}
                log.write(record)
                display.update(record)
                if is_saved:
                    seconds = time.perf_counter() - started
                    where = Position(
                        step,
                        iterator.get_state(),
                        self._removed,
                        seconds,
                        self._comparison,
                        self._construction_seconds,
                    )
                    checkpoints.save(self._fetched_state(), where)
                window = _Window(step)
            if stops:
                request.raise_if_made(
                    f"stopped after step {step} of {num_steps} ({self._name}); the same command goes on from here"
                )
        return time.perf_counter() - started

    def _set_network(self, module: nnx.Module, state: TrainState) -> None:
        """Goes on with a network: the one place that a new training and a smaller network come through."""
        run = self._run
        axis_name = run.parallel.axis_name
        self._network = Network(module, axis_name if run.config.parallel.sync_batch_norm else None)
        train_step = make_train_step(self._network, self._tx, self._options, axis_name)
        self._train_step = run.parallel.compile(train_step, donate=True)
        self._eval_step = run.parallel.compile(make_eval_step(self._network, self._options, axis_name), donate=False)
        self._state = run.parallel.place_state(state)

    @property
    def _removed(self) -> tuple[int, ...]:
        """Indices of the groups that the network has been shrunk by."""
        if self._space is None:
            return ()
        return jasgnas.h2spg_state(self._state.opt_state).remainder.removed

    def _restore(self, checkpoints: Checkpoints) -> Position:
        """Goes to the newest good checkpoint, if there is one."""
        position = checkpoints.latest()
        if position is None:
            return Position(0, {})
        self._comparison, self._construction_seconds = position.comparison, position.construction_seconds
        if position.removed:
            self._set_network(*self._shrunk(position.removed))
        self._state = self._run.parallel.place_state(checkpoints.restore(self._fetched_state(), position))
        if position.removed:
            self._set_network(*self._shrunk())  # once more: the phase, now known, decides what a step has to compute
        if self._space is not None:
            self._num_explained = int(np.sum(self._fetched_h2spg().redundant))
        return position

    def _sparsity(self) -> Record:
        """Returns what H2SPG has to say."""
        if self._space is None:
            return {}
        h2spg = self._fetched_h2spg()
        return {
            "phase": int(h2spg.phase),
            "num_redundant": int(np.sum(h2spg.redundant)),
            "num_zero": int(np.sum(h2spg.zero)),
            "num_removed": len(h2spg.remainder.removed),
            "num_groups": len(self._space.groups),
            "group_sparsity": float(np.mean(h2spg.zero)),
            "num_skipped": int(np.sum(h2spg.num_skipped)),
            **(self._selection(h2spg) if h2spg.redundant.any() else {}),
            "group_norms": h2spg.norms.tolist() if h2spg.norms.any() else None,  # not measured early in the warm-up
        }

    def _selection(self, h2spg: jasgnas.H2SPGState) -> Record:
        """Returns which groups were selected and when, what came next, and what the loss was to be and is without them.

        The scores that decided stay as they are after the last selection: with the groups they are written once.
        """
        num_redundant = int(np.sum(h2spg.redundant))
        is_new, self._num_explained = num_redundant != self._num_explained, num_redundant
        return {
            "selected_at": int(h2spg.selected_at),
            "runner_up": int(h2spg.runner_up),
            "predicted_rise": float(h2spg.predicted_rise),
            "measured_rise": float(h2spg.measured_rise),
            "redundant": h2spg.redundant.tolist() if is_new else None,
            "scores": h2spg.scores.tolist() if is_new else None,
        }

    def _shrunk(self, removed: tuple[int, ...] | None = None) -> tuple[nnx.Module, TrainState]:
        """Returns the network without the groups that are zero, and its state.

        Args:
            removed: groups to set to zero first, to make the state that a checkpoint is restored into.
        """
        assert self._space is not None  # nothing is removed without H2SPG
        state = self._fetched_state()
        module = self._network.module(state.variables)
        if removed is not None:
            module = self._space.zero(module, removed)
        carried = (state.opt_state, state.average)
        module, (opt_state, average) = jasgnas.shrink(self._space, module, carried, removed=removed)
        return module, TrainState(state.step, Network.variables(module), opt_state, average)

    def _fetched_h2spg(self) -> jasgnas.H2SPGState:
        return self._run.parallel.fetch(jasgnas.h2spg_state(self._state.opt_state))

    def _fetched_state(self) -> TrainState:
        return self._run.parallel.fetch(self._state)


class _Window:
    """The steps since the last log entry."""

    def __init__(self, step: int):
        """Begins after `step` steps."""
        self._first = step
        self._metrics: list[Metrics] = []
        self._started = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        """Adds a step's metrics; waits for those of earlier steps, so that no more than a few are under way."""
        self._metrics.append(metrics)
        if len(self._metrics) > _STEPS_IN_FLIGHT:
            jax.block_until_ready(self._metrics[-1 - _STEPS_IN_FLIGHT])

    def close(self, step: int, parallel: Parallel, batch_size: int) -> Record:
        """Returns the means over the window, which ends with `step`.

        Raises:
            DivergedError: a loss is NaN or infinite.
        """
        losses, accuracies = np.array([parallel.fetch(metrics) for metrics in self._metrics], np.float64).T
        if not np.all(np.isfinite(losses)):
            bad = self._first + 1 + int(np.argmin(np.isfinite(losses)))
            raise DivergedError(f"the loss of step {bad} is {losses[bad - self._first - 1]}")
        rate = len(losses) * batch_size / (time.perf_counter() - self._started)
        return {
            "step": step,
            "train/loss": float(losses.mean()),
            "train/accuracy": float(accuracies.mean()),
            "images_per_second": rate,
        }
