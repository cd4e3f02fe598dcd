"""A network as the source of a Flax NNX module."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jasgnas.collector import collector_paused


def to_source(
    network: Any, *inputs: Any, variables: Any = None, params: Any = None, method: Any = None, **kwargs: Any
) -> str:
    """Writes a network as the source of a Flax NNX module that needs nothing of jasgnas.

    The network is traced anew, in inference and in training mode, and its equations are read as layers and functions of
    Flax and JAX. Each reading is believed only once it has computed what the equations compute, for random inputs and
    parameters. What is read as nothing else is written in calls of `jax.numpy` and `jax.lax`.

    The module has the layers that are left, under the names of their parameters. The array of the path `a/b/kernel` is
    its `a.b.kernel`, without the name of a collection of Linen (`batch_stats/a/mean` is `a.mean`), so that
    `nnx.update(module, nnx.state(subnet))` gives it those of a sub-network that is an `nnx.Module`. It is in training
    mode once it is made, like any module of Flax; `.eval()` and `.train()` switch it. Where the two modes compute in
    different ways that are no layers of Flax, as dropout does, it has a method for each.

    Args:
        network: a sub-network: the `nnx.Module`, the Linen module or the function that `construct_subnet` returned; or
            a model, as `search_space` takes it.
        *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s; those of the search space for a sub-network. The
            first axis of each may have any size, unless the network cannot be traced so.
        variables: the variables of a Linen module that is no sub-network.
        params: the parameters of a function that is no sub-network.
        method: the method of that Linen module that is called.
        **kwargs: further arguments of the call. What is no array is fixed; the mode in which `train=False` or the like
            is inverted is the other mode of the module.

    Returns:
        The source.

    Raises:
        ArgumentError: the network is of an unknown kind, or an argument is missing or superfluous.
        SourceError: a primitive cannot be written as source; the message names it.

    Warns:
        OneModeWarning: the network cannot be traced in the mode in which boolean arguments are inverted.
        FixedSizeWarning: the network cannot be traced at a batch of any size, and is written for that of the inputs.
        DerivativeWarning: a function has a derivative of its own, and is recognised as none of JAX's. The docstring of
            the source says all of these, too.
    """
    given = {"variables": variables, "params": params, "method": method}
    source = written_source(network, inputs, given, kwargs)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    return source.text


@dataclass(frozen=True)
class WrittenSource:
    """The source of a network.

    Attributes:
        text: the source.
        notes: what the written network does not do that the network does, as warnings.
        paths: the path of each array in the network, by that in the written module.
    """

    text: str
    notes: tuple[UserWarning, ...]
    paths: dict[str, str]


@collector_paused()
def written_source(
    network: Any, inputs: Sequence[Any], given: Mapping[str, Any], settings: Mapping[str, Any]
) -> WrittenSource:
    """Writes a network as source, see `to_source`.

    Args:
        network: the network.
        inputs: the positional arguments of its call.
        given: what goes with it, by the name of the argument of `to_source`; None for what is not given.
        settings: the arguments of its call by keyword.
    """
    # Flax is loaded by those who use it.
    from jasgnas.source.module import module_source
    from jasgnas.source.network import opened_network
    from jasgnas.source.recognised import recognised

    opened = opened_network(network, inputs, given, settings)
    found = recognised(opened)
    paths = {own.path: leaf.path for own, leaf in zip(found.leaves, opened.leaves, strict=True)}
    return WrittenSource(module_source(found), found.notes, paths)
