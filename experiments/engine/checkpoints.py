"""Checkpoints by Orbax, written in the background, with a record that tells a damaged one from a good one."""

import contextlib
import dataclasses
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.errors import CheckpointError, DivergedError
from experiments.engine.compare import Comparison

_ARRAYS, _RECORD = "arrays", "record"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a training is, beside its arrays.

    Attributes:
        step: number of steps made.
        iterator: state of the data iterator.
        removed: indices of the groups that the network has been shrunk by.
        seconds: time that the training has taken.
        comparison: of the sparse network and the sub-network when it was last shrunk.
        construction_seconds: part of `seconds` that constructing sub-networks and comparing them has taken.
    """

    step: int
    iterator: dict[str, Any]
    removed: tuple[int, ...] = ()
    seconds: float = 0.0
    comparison: Comparison | None = None
    construction_seconds: float = 0.0


class CheckpointWarning(UserWarning):
    """A checkpoint was damaged and is passed over."""


class Checkpoints:
    """The checkpoints of one training.

    Use it as a context manager: at the end it waits for what is still being written.
    """

    def __init__(self, folder: Path, keep: int):
        """Opens the checkpoints in a folder, which is made if need be.

        Args:
            folder: the folder.
            keep: how many to keep.
        """
        # Orbax tells of every file through absl's logger, and prints tracebacks of errors that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_names=(_ARRAYS, _RECORD))

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Waits for what is still being written; that it cannot be is no news after another error."""
        try:
            with self._told_apart():
                self._manager.close()
        except CheckpointError:
            if error is None:
                raise

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Turns what Orbax raises when it cannot write, perhaps an earlier checkpoint, into a `CheckpointError`."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {self._manager.directory}: {_first_line(error)} Is the disk "
                "full or read-only? The same command goes on from the last checkpoint that was written"
            ) from None

    def save(self, state: Any, position: Position) -> None:
        """Starts to write a checkpoint.

        Args:
            state: pytree of NumPy arrays that nobody will change.
            position: where the training is.

        Raises:
            DivergedError: an array holds NaN or infinity; nothing is written.
            CheckpointError: this or an earlier checkpoint could not be written.
        """
        arrays = _by_path(state)
        if bad := [path for path, array in arrays.items() if not np.all(np.isfinite(array))]:
            raise DivergedError(f"{', '.join(bad[:3])} hold NaN or infinity after step {position.step}")
        record = dataclasses.asdict(position) | {"arrays": {path: _facts(array) for path, array in arrays.items()}}
        # Orbax refuses arrays without entries; the record is enough to make them again.
        filled = {path: array for path, array in arrays.items() if array.size}
        items = {_ARRAYS: ocp.args.PyTreeSave(filled), _RECORD: ocp.args.JsonSave(record)}
        with self._told_apart():
            self._manager.save(position.step, args=ocp.args.Composite(**items))

    def latest(self) -> Position | None:
        """Returns the position of the newest good checkpoint, None if there is none.

        Newer ones that are damaged are deleted, with a warning.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                record, _ = self._read(step)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                _warn(step, error)
                self._manager.delete(step)
            else:
                return _position(record)
        return None

    def restore(self, state: Any, position: Position) -> Any:
        """Returns the arrays of a checkpoint.

        Args:
            state: pytree of arrays of the same structure, shapes and dtypes.
            position: the position that `latest` has returned.

        Raises:
            CheckpointError: the checkpoint was made by another training.
        """
        _, arrays = self._read(position.step)
        expected = _by_path(state)
        faults = [f"{path} is missing" for path in expected.keys() - arrays.keys()]
        faults += [f"{path} is too many" for path in arrays.keys() - expected.keys()]
        faults += [
            f"{path} is {arrays[path].dtype}{list(arrays[path].shape)} instead of {array.dtype}{list(array.shape)}"
            for path, array in expected.items()
            if path in arrays and (arrays[path].shape, arrays[path].dtype) != (array.shape, array.dtype)
        ]
        if faults:
            raise CheckpointError(
                f"the checkpoint in {self._manager.directory / str(position.step)} does not belong to this training: "
                f"{'; '.join(sorted(faults)[:3])} ({len(faults)} faults). Give another output folder, or --restart to "
                "start anew in this one"
            )
        return jax.tree.unflatten(jax.tree.structure(state), [arrays[path] for path in expected])

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns record and arrays of a checkpoint; if it is damaged, raises a ValueError or whatever Orbax raises."""
        record = self._manager.restore(step, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()}))[_RECORD]
        arrays = self._read_arrays(step, record)
        for path, facts in record["arrays"].items():
            if _facts(arrays[path]) != facts:
                raise ValueError(f"{path} is not what was written")
        return record, arrays

    def _read_arrays(self, step: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {path: np.empty(facts["shape"], facts["dtype"]) for path, facts in record["arrays"].items()}
        filled = {path: 0 for path, array in arrays.items() if array.size}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), filled)
        read = ocp.args.PyTreeRestore(filled, restore_args=as_numpy)
        return arrays | self._manager.restore(step, args=ocp.args.Composite(**{_ARRAYS: read}))[_ARRAYS]


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="."): np.asarray(leaf) for keys, leaf in leaves}


def _facts(array: np.ndarray) -> dict[str, Any]:
    """Returns shape, dtype and checksum of an array."""
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes())
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": checksum}


def _position(record: dict[str, Any]) -> Position:
    comparison = record["comparison"]
    return Position(
        record["step"],
        record["iterator"],
        tuple(record["removed"]),
        record["seconds"],
        None if comparison is None else Comparison(**comparison),
        record.get("construction_seconds", 0.0),  # not there in checkpoints of earlier versions
    )


def _warn(step: int, error: Exception) -> None:
    text = f"the checkpoint of step {step} is damaged and deleted: {_first_line(error)}"
    warnings.warn(text, CheckpointWarning, stacklevel=3)


def _first_line(error: Exception) -> str:
    """Returns the beginning of an error's text."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
