"""Trainings as jobs: each is one variant of one row with one seed, makes one record, and is not done twice."""

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jasgnas
from experiments.common.cli import find
from experiments.common.errors import DivergedError
from experiments.common.files import write_atomically
from experiments.common.machine import machine_facts
from experiments.engine.config import Config, ParallelConfig, differences, essential_settings
from experiments.engine.job import run
from experiments.tables.pace import Pace, measure_pace
from experiments.tables.records import Key, Record, append_record, read_lines
from experiments.tables.rows import Row, Size


class Variant(NamedTuple):
    """A way to train the network of a row. Unless it says otherwise, it takes as many steps as the full network's.

    Attributes:
        label: what it is called in tables.
        settings: settings of H2SPG that differ from the row's; None trains the full network without it.
        equal_time: whether to take as many steps as last as long as the full network's, see `pace.measure_pace`.
        pretrained: whether to start from the full network that the same seed has trained: half as many epochs, but one
            at least, at a tenth of the learning rate, which only falls.
    """

    label: str
    settings: Mapping[str, Any] | None
    equal_time: bool = False
    pretrained: bool = False


VARIANTS = {
    "full": Variant("full network", None),
    "h2spg": Variant("H2SPG", {}),
    "magnitude": Variant("control: magnitude", {"score": "magnitude"}),
    "published": Variant("control: published score", {"score": "published"}),
    "random": Variant("control: random valid selection", {"score": "random"}),
    "unchecked": Variant("control: validity ignored", {"hierarchical": False}),
    "h2spg-equal-time": Variant("H2SPG, equal time", {}, equal_time=True),
    "continued": Variant("trained further: full network", None, pretrained=True),
    "pretrained-h2spg": Variant("trained further: H2SPG", {}, pretrained=True),
    "pretrained-random": Variant("trained further: random valid selection", {"score": "random"}, pretrained=True),
    "erase": Variant("structures alone", {"kinds": "structures"}),
    "slim": Variant("channels alone", {"kinds": "channels"}),
    "both": Variant("structures and channels", {"kinds": "both"}),
    "slim-ablation": Variant("channels alone, by the loss", {"kinds": "channels", "score": "ablation"}),
    "slim-random": Variant("control: random channels", {"kinds": "channels", "score": "random"}),
    "slim-equal-time": Variant("channels alone, equal time", {"kinds": "channels"}, equal_time=True),
}
"""By name."""

_USUAL = {
    **{"model.gated": False, "model.ungated": (), "h2spg.tie": (), "h2spg.keep": ()},
    "num_steps": None,
    **{"h2spg.kinds": "structures", "h2spg.min_channels": None, "h2spg.multiple_of": None},
    **{"h2spg.look_every": None, "h2spg.forward_passes": None},
}
"""Settings that say nothing about a run in which they are so: those of runs that were recorded without them."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        row: the row.
        scale: name of the scale, one of the row's sizes.
        variant: name of the variant.
        how: the variant.
        seed: the seed.
        command: what makes it.
        overrides: what is to differ from the scale.
        stand_in: name of the data set to use in place of the row's own; None takes that.
        data_dir: folder of the prepared data sets, None for the usual one.
        output_dir: folder for the folders of runs.
        parallel: the devices.
        quiet: whether to print plain lines in place of a live display.
    """

    row: Row
    scale: str
    variant: str
    how: Variant
    seed: int
    command: str
    overrides: Size = Size()
    stand_in: str | None = None
    data_dir: Path | None = None
    output_dir: Path = Path("runs/tables")
    parallel: ParallelConfig = ParallelConfig()
    quiet: bool = False

    @property
    def key(self) -> Key:
        """What tells this training from others."""
        given = ", ".join(f"{name} {value}" for name, value in self.overrides.given().items())
        scale = f"{self.scale} with {given}" if given else self.scale
        dataset = self.stand_in or self.row.config.data.name
        return Key(self.row.preset, scale, dataset, self.variant, self.seed)

    @property
    def config(self) -> Config:
        """The settings of the run, but for its folder."""
        config = self._smaller
        if self.how.pretrained:
            optimizer = replace(config.optimizer, learning_rate=config.optimizer.learning_rate / 10, warmup_epochs=0.0)
            epochs = max(1, config.epochs // 2)
            config = replace(config, optimizer=optimizer, epochs=epochs, pretrained=self.of_full.config.output_dir)
        return replace(
            config,
            output_dir=self.output_dir / _name(self.key),
            data=replace(config.data, name=self.key.dataset, data_dir=self.data_dir),
            h2spg=replace(config.h2spg, **self.how.settings or {}),
            parallel=self.parallel,
            seed=self.seed,
            eval_every=0,  # tests in between would take a good part of a small run's time
            train_full=self.how.settings is None,
            train_h2spg=self.how.settings is not None,
            quiet=self.quiet,
        )

    @property
    def of_full(self) -> "Job":
        """The training of the full network with the same seed."""
        return replace(self, variant="full", how=VARIANTS["full"])

    @property
    def pace_path(self) -> Path:
        """File of the pace of the row's trainings, which is measured once for all seeds."""
        return self.config.output_dir.with_name(f"{_name(self.key[:3])}-pace.json")

    @property
    def changes(self) -> list[str]:
        """Settings that differ from those of the row at full scale, variant and seed left out."""
        return differences(self.row.config, self._smaller)

    @property
    def settings_id(self) -> str:
        """Fingerprint of all that decides the result: what was recorded with other settings is not the same."""
        of_h2spg = ("h2spg.",) if self.how.settings is None else ()
        spared = ("data.data_dir", "parallel.", "train_", "pretrained", *of_h2spg)
        essential = essential_settings(self.config).items()
        settings = {k: v for k, v in essential if not k.startswith(spared) and (k, v) not in _USUAL.items()}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _smaller(self) -> Config:
        size = find("scale", self.scale, self.row.sizes)
        return size.overridden(self.overrides).apply(self.row.config, self.row.native_size)


def _name(parts: Iterable[Any]) -> str:
    """Returns a file name of several parts."""
    return "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts)


def perform(jobs: Iterable[Job], results: Path, *, again: bool = False) -> Iterator[Record]:
    """Does the jobs one after another and records each as it ends; what is recorded already is left out.

    A job that was interrupted goes on where it was.

    Args:
        jobs: the jobs.
        results: the results file.
        again: does recorded jobs anew, too.

    Yields:
        A record of every job, those left out included.

    Raises:
        ExperimentError: settings, data or checkpoints are unfit, or the run was interrupted.
        jasgnas.JasgnasError: the target cannot be met, or the sub-network differs from the sparse network.
        OSError: a folder or the results file cannot be written.
    """
    for job in jobs:
        done = None if again else read_lines(results).get(job.key)
        if done is not None and done.record.settings_id == job.settings_id:
            print(f"{' '.join(map(str, job.key))}: recorded already in line {done.number} of {results}")
            yield done.record
            continue
        print(f"{' '.join(map(str, job.key))}: training", flush=True)
        record = _perform(job, again)
        if jax.process_index() == 0:
            append_record(results, record)
        jax.clear_caches()  # or the programs of dozens of trainings run into the limit on memory maps of a process
        yield record


def _perform(job: Job, again: bool) -> Record:
    """Trains, and returns what came of it; a run that cannot end well is a result, too."""
    config = replace(job.config, restart=again)
    pace = _pace(job) if job.how.equal_time else None
    if pace is not None:
        config = replace(config, num_steps=pace.num_steps)
    record = Record(
        *job.key,
        changes=job.changes,
        stands_in_for=job.row.dataset if job.stand_in else None,
        epochs=config.epochs,
        batch_size=config.batch_size,
        machine=machine_facts(),
        date=datetime.date.today().isoformat(),
        command=job.command,
        settings_id=job.settings_id,
        pace=None if pace is None else [pace.before, pace.after],
    )
    try:
        if job.how.pretrained:  # what is recorded of the full network does not hold its parameters
            run(job.of_full.config)
        results = run(config)
    except (jasgnas.InvalidRemovalError, DivergedError) as error:
        return replace(record, fault=f"{type(error).__name__}: {error}")
    network = results.full if job.how.settings is None else results.subnet
    assert network is not None  # it is what the config asked for
    return replace(
        record,
        origin=results.dataset,
        image_shape=results.image_shape,
        num_train=results.num_train,
        num_test=results.num_test,
        num_steps=results.num_steps,
        num_params=network.num_params,
        macs=network.macs,
        test_accuracy=network.test_accuracy,
        test_top5=network.test_top5,
        full_params=results.full_params,
        full_macs=results.full_macs,
        removed=results.removed,
        num_groups=results.num_groups,
        seconds=network.training_seconds,
        device=results.device,
    )


def _pace(job: Job) -> Pace:
    """Returns the pace of a row's trainings; it is kept, so that one that was interrupted has as many steps again."""
    path = job.pace_path
    if not path.exists():
        pace = measure_pace(job.config)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(pace._asdict()) + "\n")
    return Pace(**json.loads(path.read_text()))
