"""The folder of a run: what is in it, who may write to it, and how the sub-network comes out of it again."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

import jasgnas
from experiments.common.errors import ConfigError, DivergedError, OutputError
from experiments.common.files import save_arrays, write_atomically
from experiments.data import Dataset, EvalBatches, Shard, TrainBatches
from experiments.engine.config import Config, differences, from_json, to_json
from experiments.engine.networks import create_module
from experiments.engine.parallel import Parallel

RESULTS = "results.json"
GENOTYPE = "genotype.svg"
_CONFIG = "config.json"
_SUBNET = "subnet"
_FAULT = "fault.txt"
TRAININGS = ("full", "h2spg")
"""Names of the trainings of a run, and of their folders in its own."""

_OWN = (RESULTS, _SUBNET, *TRAININGS, "search_space.txt", "report.html", GENOTYPE, _CONFIG, _FAULT)
"""What a run makes in its folder, in the order in which it is deleted: what is left halfway is still known as a run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What belongs to a whole run.

    Attributes:
        config: its settings.
        dataset: its images.
        parallel: its devices.
    """

    config: Config
    dataset: Dataset
    parallel: Parallel

    def __post_init__(self) -> None:
        """Refuses a batch that the devices cannot share."""
        parts = self.parallel.num_devices * self.config.accumulate
        if self.config.batch_size % parts:
            raise ConfigError(
                f"a batch of {self.config.batch_size} images cannot be divided equally among "
                f"{self.parallel.num_devices} devices times {self.config.accumulate} parts of a step"
            )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.config.output_dir

    @property
    def shard(self) -> Shard:
        """Which part of every batch this process loads."""
        return Shard(jax.process_index(), jax.process_count())

    def log_folder(self, name: str) -> Path:
        """Returns the folder of a training's log: on several hosts each has its own."""
        folder = self.folder / name
        return folder if self.shard.index == 0 else folder / f"process-{self.shard.index}"

    def train_batches(self) -> TrainBatches:
        """Returns the training batches, which are the same for every training of the run."""
        config = self.config
        return TrainBatches(
            self.dataset,
            config.batch_size,
            seed=config.seed,
            epochs=config.epochs,
            num_steps=config.num_steps,
            augmentation=config.data.augmentation,
            workers=config.data.workers,
            shard=self.shard,
        )

    def eval_batches(self, at_most: int | None = None) -> EvalBatches:
        """Returns the test batches, of all images or of a fixed random choice of at most so many."""
        return EvalBatches(self.dataset.take(None, at_most).test, self.config.batch_size, self.shard)


def check_folder(config: Config) -> None:
    """Refuses the folder of a run with other settings, unless that run came to nothing or is to be overwritten.

    Raises:
        ConfigError: the folder holds such a run; the message names the settings.
    """
    folder = config.output_dir
    if not config.restart and _is_worth_keeping(folder) and (changed := _changes(config)):
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}). Give another --output-dir, or --restart "
            "(`experiments.tables`: --again) to overwrite it"
        )


@contextlib.contextmanager
def claimed_folder(config: Config) -> Iterator[None]:
    """Makes a run's folder, or takes over the one of a run with the same settings or of one that came to nothing.

    Enter it once nothing about the settings can be refused any more. While its body runs, no other run gets the folder.

    Raises:
        ConfigError: the folder holds a run with other settings that came to something.
        OutputError: the folder cannot be written, or another run is at work in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if jax.process_index() == 0:
                config.output_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(config.output_dir))
                check_folder(config)
                _take_over(config)
        except OSError as error:
            raise OutputError(
                f"the output folder {config.output_dir} cannot be written: {error.strerror}. Give another --output-dir"
            ) from None
        multihost_utils.sync_global_devices("the output folder is claimed")
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder while its body runs; the lock ends with the process in any case."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another run is at work in {folder}. Wait for its end, or give another --output-dir"
            ) from None
        except OSError:
            pass  # some network file systems know no locks
        yield
    finally:
        os.close(descriptor)


def _take_over(config: Config) -> None:
    folder = config.output_dir
    if config.restart or _changes(config):
        for name in _OWN:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    write_atomically(folder / _CONFIG, to_json(config))
    (folder / _FAULT).unlink(missing_ok=True)


@contextlib.contextmanager
def noted_fault(folder: Path) -> Iterator[None]:
    """Notes in a run's folder why its body could not end well, so that corrected settings may have the folder.

    Only what the same settings would come to again is noted, not that a run was interrupted or a disk was full.
    """
    try:
        yield
    except (DivergedError, jasgnas.JasgnasError) as error:
        write_atomically(folder / _FAULT, f"{type(error).__name__}: {error}\n")
        raise


def _changes(config: Config) -> list[str]:
    """Returns how the settings of the run in a config's folder differ from it; nothing if there is no run."""
    path = config.output_dir / _CONFIG
    if not path.exists():
        return [f"{path.name} is missing"] if _is_worth_keeping(config.output_dir) else []
    try:
        return differences(from_json(path.read_text()), config)
    except ConfigError as error:  # another version of this package has written it
        return [f"{path.name} cannot be read: {error}"]


def _is_worth_keeping(folder: Path) -> bool:
    """Tells whether a run's folder holds results, or a checkpoint that the same settings would come to an end from."""
    checkpoints = (path for name in TRAININGS for path in checkpoint_folder(folder, name).glob("*"))
    is_begun = (folder / RESULTS).exists() or any(path.name.isdigit() for path in checkpoints)
    return is_begun and not (folder / _FAULT).exists()


def checkpoint_folder(folder: Path, training: str) -> Path:
    """Returns the folder of a training's checkpoints in the folder of its run."""
    return folder / training / "checkpoints"


class SubnetRecord(NamedTuple):
    """What is needed to rebuild a sub-network, beside its arrays and the config.

    Attributes:
        removed: indices of the groups that are gone.
        removed_names: their names, to check that the space is still the same.
        image_shape: height, width and channels of the images.
        num_classes: number of classes.
        mean: what to subtract from each colour of an image in [0, 1].
        std: what to divide it by then.
    """

    removed: tuple[int, ...]
    removed_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def save_subnet(run: Run, space: jasgnas.SearchSpace, removed: tuple[int, ...], subnet: nnx.Module) -> None:
    """Saves a sub-network in the run's folder, so that `load` brings it back."""
    folder = run.folder / _SUBNET
    folder.mkdir(exist_ok=True)
    save_arrays(folder / "variables.npz", arrays_of(subnet))
    names = tuple(space.groups[index].name for index in removed)
    dataset = run.dataset
    record = SubnetRecord(removed, names, dataset.image_shape, dataset.num_classes, *dataset.normalisation)
    write_atomically(folder / "subnet.json", json.dumps(record._asdict(), indent=2) + "\n")


class Finished(NamedTuple):
    """What a finished run started from and came to.

    Attributes:
        config: its settings.
        record: what it has removed.
        module: its full network, freshly initialised.
        space: the search space of that.
        arrays: parameters and statistics of the sub-network, by path.
    """

    config: Config
    record: SubnetRecord
    module: nnx.Module
    space: jasgnas.SearchSpace
    arrays: Mapping[str, np.ndarray]


def read_finished(folder: Path) -> Finished:
    """Reads the folder of a finished run.

    Raises:
        ConfigError: the folder holds no finished run, or the network of that name has changed since.
    """
    path = folder / _SUBNET / "subnet.json"
    if not path.exists():
        raise ConfigError(f"{folder} holds no finished run: there is no {path}")
    record = SubnetRecord(**json.loads(path.read_text()))
    config = from_json((folder / _CONFIG).read_text())
    module = create_module(config, record.num_classes, record.image_shape)
    space = make_space(module, record.image_shape, config.h2spg.kinds, config.h2spg.tie, config.h2spg.keep)
    if tuple(space.groups[index].name for index in record.removed) != tuple(record.removed_names):
        raise ConfigError(
            f"the network {config.model.name} has other groups now than when the run in {folder} was made"
        )
    with np.load(folder / _SUBNET / "variables.npz") as arrays:
        return Finished(config, record, module, space, dict(arrays))


def load(folder: Path | str) -> nnx.Module:
    """Returns the sub-network of a finished run, in inference mode.

    It takes images normalised as `subnet/subnet.json` in the folder says: `(image / 255 - mean) / std`.

    Args:
        folder: the run's output folder.

    Raises:
        ConfigError: the folder holds no finished run, or the network of that name has changed since.

    Example:
        >>> subnet = load("runs/demo")  # doctest: +SKIP
        >>> subnet(jnp.zeros((1, 8, 8, 1))).shape  # doctest: +SKIP
        (1, 10)
    """
    run = read_finished(Path(folder))
    subnet = subnet_with(run.space, run.module, run.record.removed, run.arrays)
    subnet.eval()
    return subnet


def subnet_with(
    space: jasgnas.SearchSpace, module: nnx.Module, removed: Sequence[int], arrays: Mapping[str, np.ndarray]
) -> nnx.Module:
    """Returns a sub-network with given arrays, and without the gates that its groups were selected by.

    Args:
        space: the search space of the full network.
        module: the full network.
        removed: groups that are gone.
        arrays: parameters and statistics of the sub-network, by path; more than these do no harm.
    """
    subnet = jasgnas.construct_subnet(space, space.zero(module, removed))
    _fill(subnet, arrays)
    return subnet


def save_full(run: Run, full: nnx.Module) -> None:
    """Saves a trained full network in the run's folder, so that other runs can start from it."""
    save_arrays(_full_path(run.folder), arrays_of(full))


def start_from(folder: Path, module: nnx.Module) -> None:
    """Gives a freshly initialised module the parameters and statistics of the full network that a run has trained.

    Args:
        folder: the run's output folder.
        module: the same network, for as many classes; it is changed in place.

    Raises:
        ConfigError: the folder holds no trained full network, or another one.
    """
    path = _full_path(folder)
    if not path.exists():
        raise ConfigError(f"{folder} holds no full network that was trained: there is no {path}")
    with np.load(path) as arrays:
        trained = dict(arrays)
    shapes, expected = ({name: array.shape for name, array in each.items()} for each in (trained, arrays_of(module)))
    if faults := sorted({name for name, _ in shapes.items() ^ expected.items()}):
        raise ConfigError(
            f"the full network in {folder} is not the one to be trained: they differ in {', '.join(faults[:3])} "
            f"({len(faults)} arrays)"
        )
    _fill(module, trained)


def _full_path(folder: Path) -> Path:
    return folder / TRAININGS[0] / "variables.npz"


def _fill(module: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a module parameters and statistics by path; more than it has do no harm."""
    state = nnx.state(module, nnx.Not(nnx.RngState))
    for keys, variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(arrays[_name(keys)]))
    nnx.update(module, state)


def make_space(
    module: nnx.Module,
    image_shape: Sequence[int],
    kinds: str = "structures",
    tie: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> jasgnas.SearchSpace:
    """Returns the search space of a network for images of this shape; for the settings see `H2SPGConfig`."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jasgnas.search_space(
        module, image, structures=kinds != "channels", channels=kinds != "structures", tie=tie, keep=keep
    )


def arrays_of(module: nnx.Module) -> dict[str, np.ndarray]:
    """Returns parameters and statistics by path."""
    state = nnx.state(module, nnx.Not(nnx.RngState))
    return {_name(keys): np.asarray(variable[...]) for keys, variable in nnx.to_flat_state(state)}


def _name(keys: tuple[Any, ...]) -> str:
    return "/".join(map(str, keys))
