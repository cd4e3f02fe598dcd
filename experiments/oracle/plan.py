"""Decides what is trained next, on which core, and records each training as it ends."""

import datetime
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common.errors import ConfigError
from experiments.common.machine import machine_facts
from experiments.data import Dataset, open_dataset
from experiments.oracle.judge import Accuracies, Spread, Verdict, best_sets, judged, judged_random, spread_of
from experiments.oracle.records import ChoiceRecord, Line, Results, ScoresRecord, SetRecord, append_line, read_results
from experiments.oracle.sets import Set, all_sets, choices, drawn_sets, is_maximal, macs_of
from experiments.oracle.settings import Settings
from experiments.oracle.trainings import Chosen, Scored, Trained, Trainer

Task = tuple[Set, int]
"""A set and a seed; the empty set is the full network, with its snapshot and scores."""

Outcome = tuple[Trained, list[Scored | Chosen]]
"""What came of a task."""

Performer = Callable[[Iterable[Task]], Iterable[tuple[Task, Outcome]]]
"""Does tasks, and gives each with what came of it as it ends."""


class Plan(NamedTuple):
    """One oracle.

    Attributes:
        network: name of the network's preset.
        settings: what is trained and judged.
        seeds: all seeds; the first one trains all sets.
        num_best: how many of the best sets within each budget, by their mean, are trained with every seed.
        results: the results file.
        folder: where snapshots are kept.
        command: what was asked for.
        changes: settings that differ from the preset's.
    """

    network: str
    settings: Settings
    seeds: tuple[int, ...]
    num_best: int
    results: Path
    folder: Path
    command: str
    changes: list[str]


MEASURED = "ablation of sets"
"""What a choice by the loss without whole sets is called."""


class Judgement(NamedTuple):
    """What came of an oracle.

    Attributes:
        network: name of the network's preset.
        sets: all sets judged, and the multiply-adds they leave as a part of the full network's.
        drawn: those of them that were drawn at random; None where all valid sets are judged.
        accuracies: test accuracies in percent.
        full: test accuracies of the full network, by seed.
        spreads: by budget.
        verdicts: on all ways to choose, budget by budget.
        chosen: by budget, way to choose and seed.
        results: all lines.
    """

    network: str
    sets: dict[Set, float]
    drawn: frozenset[Set] | None
    accuracies: Accuracies
    full: dict[int, float]
    spreads: dict[float, Spread]
    verdicts: list[Verdict]
    chosen: dict[float, dict[str, dict[int, Set]]]
    results: Results


def perform(plan: Plan, processes: int) -> Judgement:
    """Trains what is not recorded yet, and judges.

    Args:
        plan: the oracle.
        processes: number of processes; more than one keep to one core each.

    Raises:
        ExperimentError: settings or data are unfit, or a training diverged.
        jasgnas.JasgnasError: a budget cannot be met.
        OSError: a file cannot be written.
    """
    data = plan.settings.data
    dataset = open_dataset(data.name, data.data_dir, data.image_size).take(data.num_train, data.num_test)
    trainer = Trainer(plan.settings, dataset, plan.folder)
    results = read_results(plan.results, plan.network, plan.settings.fingerprint)
    seeds = plan.seeds
    with _workers(plan, dataset, trainer, processes) as done:

        def train(tasks: Iterable[Task]) -> None:
            tasks = [task for task in dict.fromkeys(tasks) if not _is_recorded(task, results, plan.settings)]
            for number, (task, outcome) in enumerate(done(tasks), start=1):
                for line in _lines(plan, trainer, task, outcome):
                    append_line(plan.results, line)
                    results.add(line)
                print(f"{plan.network}, {number} of {len(tasks)}: {_summary(results.sets[task])}", flush=True)

        listed = _judged_sets(plan, trainer)  # before any training, so that a budget out of reach costs nothing
        train(((), seed) for seed in seeds)
        chosen = _chosen(plan, trainer, results)
        each_chosen = (removed for ways in chosen.values() for by_seed in ways.values() for removed in by_seed.values())
        by_score = list(filter(trainer.space.is_valid, each_chosen))
        sets = list(dict.fromkeys([*itertools.chain.from_iterable(listed.values()), *by_score]))
        train([*((removed, seeds[0]) for removed in sets), *((each, seed) for seed in seeds for each in by_score)])
        left = {removed: macs_of(trainer.space, removed) for removed in sets}
        # More seeds may show that others are the best: regrets are from the best set, and it must not be one of luck.
        while missing := _seeds_of_the_best(plan, results, left):
            train(missing)
    return _judge(plan, trainer, results, listed, left, chosen)


def _seeds_of_the_best(plan: Plan, results: Results, left: Mapping[Set, float]) -> list[Task]:
    """Returns what is not trained yet of the best sets within each budget, by their mean over the seeds so far."""
    accuracies = _accuracies(plan, results, left)
    budgets = plan.settings.budgets
    best = [each for budget in budgets for each in best_sets(_within(accuracies, left, budget), plan.num_best)]
    return [(each, seed) for seed in plan.seeds for each in dict.fromkeys(best) if seed not in accuracies[each]]


def _is_recorded(task: Task, results: Results, settings: Settings) -> bool:
    removed, seed = task
    points = () if removed else {*settings.points, settings.snapshot}
    budgets = () if removed else settings.budgets
    has_scores = all((seed, point) in results.scores for point in points)
    return task in results.sets and has_scores and all((seed, budget) in results.choices for budget in budgets)


def _lines(plan: Plan, trainer: Trainer, task: Task, outcome: Outcome) -> Iterator[Line]:
    """Returns what is recorded of a training."""
    removed, seed = task
    trained, found = outcome
    origin: dict[str, Any] = {
        "network": plan.network,
        "settings_id": plan.settings.fingerprint,
        "seed": seed,
        "changes": plan.changes,
        "command": plan.command,
        "machine": machine_facts(),
        "date": datetime.date.today().isoformat(),
    }
    for each in found:
        kind = ScoresRecord if isinstance(each, Scored) else ChoiceRecord
        yield kind(**origin, **each._asdict())
    num_params, macs = trainer.space.subnet_size(removed)
    names = [trainer.space.groups[index].name for index in removed]
    yield SetRecord(
        **origin,
        **trained._asdict(),
        removed=removed,
        names=names,
        num_params=num_params,
        macs=macs,
        num_steps=trainer.num_steps,
    )


def _summary(line: SetRecord) -> str:
    return (
        f"seed {line.seed}, without {', '.join(line.names) or 'nothing'}: {line.test_accuracy:.2%}, loss "
        f"{line.test_loss:.3f} (training {line.train_loss:.3f}), {line.seconds:.0f} s"
    )


def _judged_sets(plan: Plan, trainer: Trainer) -> dict[float, list[Set]]:
    """Returns the sets to judge by budget, without regard to what scores choose.

    Those are all valid sets, also those that are not within the budget, or those drawn at random for it.
    """
    settings = plan.settings
    if settings.num_drawn is None:
        sets = all_sets(trainer.space)
        smallest = min(settings.budgets)
        if smallest < (least := min(macs_of(trainer.space, removed) for removed in sets)):
            raise ConfigError(f"no valid set is within the budget of {smallest}: give none below {least:.2f}")
        return dict.fromkeys(settings.budgets, sets)
    return {budget: drawn_sets(trainer.space, budget, settings.num_drawn) for budget in settings.budgets}


def _chosen(plan: Plan, trainer: Trainer, results: Results) -> dict[float, dict[str, dict[int, Set]]]:
    """Returns what the scores choose at the snapshot."""
    chosen: dict[float, dict[str, dict[int, Set]]] = {}
    for budget in plan.settings.budgets:
        for seed in plan.seeds:
            scores = results.scores[seed, plan.settings.snapshot].scores
            ways = choices(trainer.space, scores, budget) | {MEASURED: results.choices[seed, budget].removed}
            for label, removed in ways.items():
                chosen.setdefault(budget, {}).setdefault(label, {})[seed] = removed
    return chosen


def _accuracies(plan: Plan, results: Results, sets: Iterable[Set]) -> Accuracies:
    """Returns the accuracies of sets with the plan's seeds; others may be recorded, too."""
    found = results.accuracies()
    return {each: {seed: found[each][seed] for seed in plan.seeds if seed in found[each]} for each in sets}


def _within(accuracies: Accuracies, left: Mapping[Set, float], budget: float) -> Accuracies:
    return {removed: own for removed, own in accuracies.items() if left[removed] <= budget}


def _judge(
    plan: Plan,
    trainer: Trainer,
    results: Results,
    listed: Mapping[float, list[Set]],
    left: dict[Set, float],
    chosen: dict[float, dict[str, dict[int, Set]]],
) -> Judgement:
    space = trainer.space
    accuracies = _accuracies(plan, results, left)
    spreads, verdicts = {}, []
    for budget in plan.settings.budgets:
        within = _within(accuracies, left, budget)
        unchosen = [removed for removed in listed[budget] if removed in within]
        spreads[budget] = spread_of(within, unchosen)
        maximal = [removed for removed in within if is_maximal(space, removed, budget)]
        by_params = sorted(maximal, key=lambda removed: space.subnet_size(removed))
        for label, removed in (("most parameters kept", by_params[-1]), ("fewest parameters kept", by_params[0])):
            chosen[budget][label] = dict.fromkeys(plan.seeds, removed)
        for label, by_seed in chosen[budget].items():
            verdicts.append(judged(label, budget, by_seed, within, unchosen, trainer.chance))
        at_random = [removed for removed in maximal if removed in unchosen]
        verdicts.append(judged_random(budget, at_random, within, unchosen))
    full = {seed: 100 * results.sets[(), seed].test_accuracy for seed in plan.seeds}
    drawn = None if plan.settings.num_drawn is None else frozenset(itertools.chain.from_iterable(listed.values()))
    return Judgement(plan.network, left, drawn, accuracies, full, spreads, verdicts, chosen, results)


def _done_here(trainer: Trainer, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
    """Does tasks in this process; yields each as it ends."""
    for task in tasks:
        yield task, _do(trainer, task)


@contextmanager
def _workers(plan: Plan, dataset: Dataset, trainer: Trainer, processes: int) -> Iterator[Performer]:
    """Yields what does tasks: this process, or as many others as are wanted, which keep to one core each."""
    if processes == 1:
        yield partial(_done_here, trainer)
        return
    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for number in range(processes):
        cores.put(usable[number % len(usable)])

    arguments = (cores, plan.settings, dataset, plan.folder)  # the images, too: to decode them takes a minute

    def done_there(tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        started = {pool.submit(_work, task): task for task in tasks}
        for future in as_completed(started):
            yield started[future], future.result()

    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        try:
            yield done_there
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_trainers: list[Trainer] = []
"""The one trainer of a worker."""


def _start_worker(cores: Any, settings: Settings, dataset: Dataset, folder: Path) -> None:
    """Makes a worker's trainer. Before: JAX takes as many threads as there are cores when it is first used."""
    if (core := cores.get()) is not None:
        os.sched_setaffinity(0, {core})
    keep_compiled(folder)
    _trainers.append(Trainer(settings, dataset, folder))


def keep_compiled(folder: Path) -> None:
    """Keeps what is compiled for other processes and later starts, since each number of groups has its own step."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))


def _work(task: Task) -> Outcome:
    return _do(_trainers[0], task)


def _do(trainer: Trainer, task: Task) -> Outcome:
    removed, seed = task
    return (trainer.train_set(removed, seed), []) if removed else trainer.train_full(seed)
