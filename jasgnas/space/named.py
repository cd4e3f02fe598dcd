"""What a user names: inputs to stay connected to, outputs that must stay, and leaves that are kept."""

from collections.abc import Sequence
from itertools import compress

import jax

from jasgnas.bridge import Leaf
from jasgnas.bridge.trace import Call, TracedModel
from jasgnas.errors import ArgumentError, DisconnectedOutputError
from jasgnas.graph.graph import Graph
from jasgnas.space.explanation import KeepPattern, matches


def connected_inputs(call: Call, names: Sequence[str], selectors: Sequence[str | int] | None) -> tuple[bool, ...]:
    """Returns for each array of a call whether outputs must stay connected to it, see `search_space`."""
    paths = call.paths
    if selectors is None:
        return tuple(
            path.partition("/")[0] != "rngs" and not jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
            for path, array in zip(paths, call.arrays, strict=True)
        )
    # A positional argument can be called by its position and by its name.
    called = [
        (path, "/".join((names[int(first)], *rest)) if first.isdecimal() and int(first) < len(names) else path)
        for path in paths
        for first, *rest in [path.split("/")]
    ]
    chosen = [False] * len(paths)
    for selector in map(str, selectors):
        found = [any(f"{path}/".startswith(f"{selector}/") for path in both) for both in called]
        if not any(found):
            raise ArgumentError(
                f"inputs={selector!r} names no array among the arguments; there are "
                + ", ".join(" or ".join(dict.fromkeys(both)) for both in called)
            )
        chosen = [a or b for a, b in zip(chosen, found, strict=True)]
    if not any(chosen):
        raise ArgumentError("inputs=() leaves nothing for the outputs to stay connected to: name at least one argument")
    return tuple(chosen)


def required_outputs(traced: TracedModel, outputs: Sequence[str] | None) -> tuple[bool, ...]:
    """Returns for each array that a model returns whether it must stay connected, see `search_space`."""
    names = traced.output_names
    if outputs is None:
        return (True,) * len(names)
    chosen = [False] * len(names)
    for selector in outputs:
        found = [f"{name}/".startswith(f"{selector}/") for name in names]
        if not any(found):
            raise ArgumentError(
                f"outputs={selector!r} names nothing that the model returns, which is {', '.join(names)}"
            )
        chosen = [a or b for a, b in zip(chosen, found, strict=True)]
    if not any(chosen):
        raise ArgumentError("outputs=() leaves no output that must stay: name at least one")
    return tuple(chosen)


def require_connected(graph: Graph, traced: TracedModel, required: Sequence[bool]) -> None:
    """Raises a `DisconnectedOutputError` if an output that must stay does not depend on any network input."""
    cut = [
        name
        for name, atom in compress(zip(traced.output_names, graph.program.outputs, strict=True), required)
        if not isinstance(atom, int) or atom in graph.independent
    ]
    if cut:
        raise DisconnectedOutputError(
            f"the network output {', '.join(cut)} does not depend on any network input. Return only what is computed "
            "from the input, pass as inputs whatever it is computed from, or name the outputs that must stay: "
            "outputs=('logits',)."
        )


def kept_leaves(leaves: Sequence[Leaf], patterns: Sequence[KeepPattern]) -> frozenset[int]:
    """Returns the indices of the leaves whose paths patterns match, see `search_space`."""
    kept: set[int] = set()
    for pattern in patterns:
        found = {index for index, leaf in enumerate(leaves) if matches(pattern, leaf.path)}
        if not found:
            raise ArgumentError(
                f"keep={pattern!r} matches no parameter path; paths look like {leaves[0].path!r} (`*` also matches `/`)"
            )
        kept |= found
    return frozenset(kept)
