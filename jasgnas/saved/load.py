"""Loading a saved sub-network: as a function that needs no code of the model, or trainable again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jasgnas.bridge import Leaf, Model, flavour_of, open_model
from jasgnas.bridge.trace import Call
from jasgnas.errors import (
    ArgumentError,
    DisconnectedOutputError,
    JasgnasError,
    NoRemovableStructureError,
    TreeMismatchError,
)
from jasgnas.saved.check import Check
from jasgnas.saved.folder import MANIFEST, read_files, read_manifest, reading
from jasgnas.saved.manifest import Source, of_type
from jasgnas.saved.network import LoadedNetwork, deserialized, network_of, require_allowed
from jasgnas.saved.tensors import from_bytes, raw_aval, typed
from jasgnas.saved.trees import rebuilt
from jasgnas.subnet.construct import Recipe, make_recipe, stored_leaves

_MOST_FAULTS = 8
_ANOTHER = "this is another model than the one that was saved"


def load(path: str | Path, model: Any = None, *, variables: Any = None, params: Any = None, method: Any = None) -> Any:
    """Loads a sub-network that `jasgnas.save` has written.

    Without a model it is a function that runs in inference mode, and needs none of the code it came from. With the full
    model it is what `jasgnas.construct_subnet` returned when it was saved, to be trained further: the search space is
    made again, and the saved check inputs are computed anew. Every file must be as it was written. Nothing that the
    folder holds is run as Python code.

    Args:
        path: the folder.
        model: the full model, as `jasgnas.search_space` took it: an `nnx.Module`, a Linen module, or a function; its
            parameters need not be trained ones. None for the network alone.
        variables: the variables of the full Linen module; only for containers that are no plain dictionaries.
        params: the parameters of the full network of a function; only for containers other than dictionaries, lists and
            tuples.
        method: the method of the Linen module that is called; only where it is none of the module's own.

    Returns:
        A function of the array arguments that the sub-network was saved for; printed, it says which these are. With a
        model, a smaller `nnx.Module` in the mode of the model; a Linen module and its variables; or a function and its
        parameters. Arrays are those that were saved, bit for bit.

    Raises:
        SavedNetworkError: the folder was not written by `jasgnas.save`, or is not as it was written, or is of a newer
            format.
        ArgumentError: `model` is of another kind, or what goes with it is missing or superfluous; or the network has
            numbers of 64 bits, which JAX does not allow unless it is told to.
        TreeMismatchError: the model has other parameters, or another search space, than the one that was saved.
        VerificationError: the sub-network of this model returns something else for the check inputs.
    """
    folder = Path(path)
    given = {"variables": variables, "params": params, "method": method}
    given = {name: value for name, value in given.items() if value is not None}
    if model is None and given:
        raise ArgumentError(f"{', '.join(given)} can only be given with a model")
    manifest = read_manifest(folder)
    files = read_files(folder, manifest)
    with reading(folder / "params.safetensors"):
        arrays = from_bytes(files["params.safetensors"])
    if model is None:
        with reading(folder / "model.jax_export"):
            exported = deserialized(files["model.jax_export"], arrays)
        return LoadedNetwork(exported, arrays)
    require_allowed(arrays.values())
    with reading(folder / MANIFEST):
        source = Source.from_json(manifest)
    opened, holder = _opened(source, model, given)
    with _calling():
        recipe = _recipe(source, opened)
    typed_arrays = _typed(recipe, arrays)
    with reading(folder / "check.safetensors"):
        call = Call.of(*rebuilt(manifest["network"]["arguments"]))
        check = Check.from_bytes(files["check.safetensors"], of_type(manifest["check"]["tolerance"], float))
        _require_inputs(check, call)
    why = "The model computes in another way than the one that was saved: load with the code and settings of that one"
    with _calling():
        check.require_equal(network_of(recipe, opened, call), arrays, call, why)
    return opened.wrap_subnet(recipe, holder, typed_arrays)


def _opened(source: Source, model: Any, given: Mapping[str, Any]) -> tuple[Model, Any]:
    """Returns the description of the full model in inference mode, and what a user holds of it.

    Raises:
        ArgumentError: it is of another kind, or something must be given with it.
        TreeMismatchError: its leaves are others.
    """
    flavour = flavour_of(model)
    if flavour.kind != source.kind:
        raise ArgumentError(f"this is a sub-network of the kind {source.kind}, but the model is a {flavour.kind}")
    if missing := [name for name in source.unwritten if name not in given]:
        raise ArgumentError(
            f"pass {missing[0]}=, as for jasgnas.search_space: it was not saved, because {source.unwritten[missing[0]]}"
        )
    complete = {**source.given, **given}
    opened = open_model(model, **complete).in_mode(training=False)
    if faults := _faults(source.leaves, opened.leaves):
        rest = f"\n  and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise TreeMismatchError(
            f"{_ANOTHER}:\n  "
            + "\n  ".join(faults[:_MOST_FAULTS])
            + f"{rest}\nPass a model with the settings of that one"
        )
    return opened, opened.holder(model, complete.get("params", complete.get("variables")))


def _faults(expected: tuple[Leaf, ...], found: tuple[Leaf, ...]) -> list[str]:
    """Describes the leaves in which two models differ."""
    before, after = ({leaf.path: leaf for leaf in leaves} for leaves in (expected, found))
    faults = []
    for path in dict.fromkeys((*before, *after)):
        saved, given = before.get(path), after.get(path)
        if saved != given:
            texts = [f"{each.dtype}{list(each.shape)}" if each else "nothing" for each in (given, saved)]
            is_swapped = saved and given and saved.trainable != given.trainable
            faults.append(f"{path}: " + ("trained or not" if is_swapped else f"{texts[0]}, expected {texts[1]}"))
    return faults


@contextmanager
def _calling() -> Iterator[None]:
    """Has the model say that it is another one where it cannot be called as the one that was saved."""
    try:
        yield
    except JasgnasError:
        raise
    except Exception as error:
        raise TreeMismatchError(
            f"{_ANOTHER}: called as that one was, it fails ({type(error).__name__}: {error})"
        ) from error


def _recipe(source: Source, model: Model) -> Recipe:
    """Finds the sub-network in the full model again.

    Raises:
        TreeMismatchError: the search space is another one.
    """
    try:
        space = source.origin.space(model)
    except (DisconnectedOutputError, NoRemovableStructureError) as error:
        raise TreeMismatchError(f"{_ANOTHER}, though its parameters are alike: {error}") from error
    if space.candidates.fingerprint != source.origin.fingerprint:
        raise TreeMismatchError(
            f"the search space of this model is another one than that of the model that was saved (fingerprint "
            f"{space.candidates.fingerprint}, expected {source.origin.fingerprint}), though its parameters have the "
            "same names and shapes: its layers are connected in another way, or it was saved by a version of jasgnas "
            "that finds other groups, which the manifest names"
        )
    space.require_valid(source.origin.removed)
    return make_recipe(space, source.origin.removed)


def _typed(recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the saved arrays as those of the sub-network.

    Raises:
        TreeMismatchError: they are others.
    """
    avals = {leaf.path: leaf.aval for leaf in stored_leaves(recipe.leaves, recipe.layouts)}
    expected = {path: (each.shape, np.dtype(each.dtype)) for path, aval in avals.items() for each in [raw_aval(aval)]}
    found = {path: (array.shape, array.dtype) for path, array in arrays.items()}
    if found != expected:
        names = [path for path in dict.fromkeys((*found, *expected)) if found.get(path) != expected.get(path)]
        raise TreeMismatchError(
            f"the sub-network of this model has other arrays than the one that was saved ({', '.join(names)}): its "
            "layers compute in another way, or it was saved by a version of jasgnas that keeps others"
        )
    return {path: typed(array, avals[path]) for path, array in arrays.items()}


def _require_inputs(check: Check, call: Call) -> None:
    """Raises a `ValueError` unless the check inputs are of the shapes and dtypes of a call."""
    expected = [(aval.shape, aval.dtype) for aval in map(raw_aval, call.avals)]
    if [(value.shape, value.dtype) for value in check.inputs] != expected:
        raise ValueError("the check inputs are not those of the network")
