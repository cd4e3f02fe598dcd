"""A network with a gate on every edge that has no parameters: what it computes, and how it becomes a model again."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from jasgnas.bridge import Leaf, Model, open_model
from jasgnas.bridge.trace import Call, TracedModel, in_dtypes_of, trace_model
from jasgnas.collector import collector_paused
from jasgnas.errors import ArgumentError
from jasgnas.gates.edges import Edge, find_edges
from jasgnas.gates.insertion import Factor, evaluate_gated, fixed_numbers
from jasgnas.graph.build import build_graph
from jasgnas.program.jaxpr import inline
from jasgnas.pytree import leaves_by_path
from jasgnas.space.explanation import KeepPattern, matches

ROOM = "gates"
"""The key below which the gates lie in the tree of a network's parameters."""


@dataclass(frozen=True, eq=False)
class GatedRecipe:
    """How to compute a network with gates from its arrays and the gates.

    Attributes:
        leaves: the arrays of the network itself.
        sizes: of every edge that can have a gate, its name and the size of its feature axis, in the order of the trace.
        gates: the edges that have one, by name.
    """

    leaves: tuple[Leaf, ...]
    sizes: tuple[tuple[str, int], ...]
    gates: frozenset[str]
    _calls: dict[Any, tuple[TracedModel, list[Edge]]] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> Any:
        """Copies and pickles trace their calls anew: what a trace consists of can be neither copied nor pickled."""
        return GatedRecipe, (self.leaves, self.sizes, self.gates)

    @property
    def gate_paths(self) -> frozenset[str]:
        """Paths of the gates, those of the network itself among them."""
        return frozenset([f"{ROOM}/{name}" for name in self.gates] + [x.path for x in self.leaves if x.is_gate])

    def apply(
        self, model: Model, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Calls the network with its gates.

        Args:
            model: the network without gates, in the mode asked for.
            arrays: its arrays and the gates, by path.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Returns:
            The network outputs, and the arrays that the call has changed, by path.

        Raises:
            ArgumentError: in this call the network has other edges than in the one that the gates were made for.
        """
        call = Call.of(args, kwargs)
        traced, edges = self._prepare(model, call, in_dtypes_of(self.leaves, arrays))
        values = [arrays[leaf.path] for leaf in self.leaves]
        factors = {(each.number, each.operand): _factor(arrays[f"{ROOM}/{each.name}"], each.axis) for each in edges}
        results = evaluate_gated(traced.program, [*values, *call.arrays], factors)
        after = results[traced.num_outputs :]
        changed = {self.leaves[index].path: after[index] for index in traced.updated}
        return jax.tree.unflatten(traced.out_tree, results[: traced.num_outputs]), changed

    def _prepare(self, model: Model, call: Call, leaves: tuple[Leaf, ...]) -> tuple[TracedModel, list[Edge]]:
        """Traces a call, and finds the edges that have a gate."""
        key = (model.static, call.avals, call.static, call.treedef, tuple(leaf.dtype for leaf in leaves))
        if (known := self._calls.get(key)) is not None:
            return known
        traced = trace_model(model, call, leaves)
        edges = edges_of(traced)
        if (found := _sizes(edges)) != self.sizes:
            others = [f"{name} ({size})" for name, size in sorted(set(found) ^ set(self.sizes))]
            raise ArgumentError(
                "in this call the network has other edges without parameters than in the one that it was given gates "
                f"for: {', '.join(others[:6]) or 'the order differs'}. Call it with the same kind of arguments, or "
                "give it gates with an example of this call"
            )
        prepared = traced, [each for each in edges if each.name in self.gates]
        # Constants that belong to a transformation under way must not outlive it.
        if not any(isinstance(value, jax.core.Tracer) for value in traced.program.constants.values()):
            self._calls[key] = prepared
        return prepared


def gated(
    model: Any,
    *args: Any,
    variables: Any = None,
    params: Any = None,
    method: Any = None,
    keep: Sequence[KeepPattern] | KeepPattern = (),
    scalar: bool = False,
    **kwargs: Any,
) -> Any:
    """Puts gates on the edges of a network that have no parameters, so that they can be searched for.

    Removal structures are made of parameters, and a skip connection, a pooling or an identity has none. A gate is a
    parameter that such an edge is multiplied by on its way into a sum or a concatenation: it starts at 1, so that the
    network returns what it did, and at 0 the edge is gone. The gates are ordinary parameters of the gated network, and
    groups of its search space of the kind `gate`:

        model = jasgnas.gated(model, x)
        space = jasgnas.search_space(model, x)

    An edge reaches back from an operand of the joint to the last value that is read elsewhere, too, or to an input of
    the network. It is left alone where a trainable parameter lies on it, and where it is a sum itself.

    `h2spg` holds gates at exactly 1 until they are selected, so that those that stay vanish when the sub-network is
    constructed; `h2spg(..., train_gates=True)` trains them. Trained ones are folded into the parameters of what they
    multiply, or of all that reads it, where that is exact, and stay a multiplication elsewhere.

    Args:
        model: an `nnx.Module`, a Linen module, or a function `fn(params, *inputs)`.
        *args: example inputs, arrays or `jax.ShapeDtypeStruct`s.
        variables: the variables of a Linen module.
        params: the parameters of a function, a dictionary.
        method: the method of a Linen module that is called, instead of `__call__`.
        keep: patterns (as in a shell, or compiled regular expressions) of paths of gates that are not to be made.
        scalar: one number for each gate instead of one for each index of the feature axis.
        **kwargs: further arguments of the call.

    Returns:
        What `construct_subnet` returns for a model of this flavour, with the same parameters under the same names, and
        the gates under `gates/`: `gates/<scope>` where the edge was made in a `jax.named_scope` of its own, else
        `gates/<first stem after the joint>/input<number>`. They are float32, or float64 where the edge is, and of shape
        `[features]`, or `[]` for scalars.

    Raises:
        ArgumentError: the model is of an unknown kind, an argument is missing, no edge is left to get a gate, a pattern
            matches none, or the model has a parameter `gates` of its own.

    Example:
        >>> import jasgnas
        >>> params = {"a": jnp.ones((3, 3))}
        >>> fn, params = jasgnas.gated(lambda p, x: x + jnp.tanh(x @ p["a"]), jnp.ones((2, 3)), params=params)
        >>> params["gates"]["output"]["input0"].tolist()
        [1.0, 1.0, 1.0]
        >>> [group.kind for group in jasgnas.search_space(fn, jnp.ones((2, 3)), params=params).groups]
        ['structure', 'gate']
    """
    with collector_paused():
        opened = open_model(model, variables=variables, params=params, method=method)
        call = Call.of(args, kwargs)
        edges = edges_of(trace_model(opened.in_mode(training=False), call))
    kept = _kept(edges, (keep,) if isinstance(keep, str | re.Pattern) else keep)
    chosen = [each for each in edges if each.name not in kept]
    if not chosen:
        raise ArgumentError(
            "there is no edge to put a gate on: a gate is for an operand of a sum or a concatenation that no trainable "
            "parameter lies on, such as a skip connection" + (f"; keep= names all {len(edges)}" if edges else "")
        )
    holder = opened.holder(model, params if variables is None else variables)
    arrays = leaves_by_path(opened.tree(holder))
    if taken := [path for path in arrays if path.partition("/")[0] == ROOM]:
        raise ArgumentError(f"the model has {taken[0]} already, and gates are put at {ROOM}/: rename what is there")
    is_abstract = all(isinstance(array, jax.ShapeDtypeStruct) for array in arrays.values())
    added: dict[str, Any] = {}
    for edge in chosen:
        shape, dtype = () if scalar or edge.axis is None else (edge.size,), jnp.promote_types(edge.dtype, jnp.float32)
        gate = jax.ShapeDtypeStruct(shape, dtype) if is_abstract else jnp.ones(shape, dtype)
        _put(added, edge.name.split("/"), gate)
    recipe = GatedRecipe(opened.leaves, _sizes(edges), frozenset(each.name for each in chosen))
    return opened.wrap_subnet(recipe, holder, arrays, {ROOM: added})


def edges_of(traced: TracedModel) -> list[Edge]:
    """Returns the edges of a traced network that can have a gate."""
    program = inline(replace(traced.program, outputs=traced.outputs))
    graph = build_graph(program, len(traced.leaves), [leaf.trainable for leaf in traced.leaves])
    fixed = fixed_numbers(traced.program)
    return [each for each in find_edges(graph, traced.leaves) if each.number not in fixed]


def without_gates(
    model: Model, holder: Any, arrays: Mapping[str, Any], paths: Collection[str]
) -> tuple[Model, Any] | None:
    """Returns a gated network without some of its gates, which are 1, and what a user would hold of it.

    Args:
        model: the network, as it was opened.
        holder: the module, its variables or its parameters.
        arrays: the arrays that it is to have, by path.
        paths: the paths of gates.

    Returns:
        The model and its holder; None if `gated` has not put these gates on the network itself, but on a part of it.
    """
    made = model.recipe_of(model.called(holder))
    if made is None or not isinstance(made[0], GatedRecipe):
        return None
    recipe, full = made
    names = {name for name in recipe.gates if f"{ROOM}/{name}" not in paths}
    if recipe.gates - names != {path.removeprefix(f"{ROOM}/") for path in paths}:
        return None
    own = {leaf.path: arrays[leaf.path] for leaf in full.leaves}
    if not names:
        return full, full.holder_of(own)
    added: dict[str, Any] = {}
    for name in sorted(names):
        _put(added, name.split("/"), arrays[f"{ROOM}/{name}"])
    network = full.wrap_subnet(replace(recipe, gates=frozenset(names)), full.holder_of(own), own, {ROOM: added})
    parts = network if isinstance(network, tuple) else (network,)
    return type(full).of(*parts), parts[-1]


def _sizes(edges: Sequence[Edge]) -> tuple[tuple[str, int], ...]:
    return tuple((each.name, each.size) for each in edges)


def _factor(gate: Any, axis: int | None) -> Factor:
    """Returns what multiplies an operand by a gate along its feature axis, or by a scalar gate."""

    def multiply(operand: Any) -> Any:
        axes = () if axis is None or not jnp.ndim(gate) else (axis,)
        factor = jax.lax.convert_element_type(gate, operand.dtype)
        return operand * jax.lax.broadcast_in_dim(factor, jnp.shape(operand), axes)

    return multiply


def _kept(edges: Sequence[Edge], patterns: Sequence[KeepPattern]) -> set[str]:
    """Returns the names of the edges that patterns of the paths of their gates match."""
    kept: set[str] = set()
    for pattern in patterns:
        found = {each.name for each in edges if matches(pattern, f"{ROOM}/{each.name}")}
        if not found:
            paths = ", ".join(f"{ROOM}/{each.name}" for each in edges[:3]) or "none, there is no such edge"
            raise ArgumentError(f"keep={pattern!r} matches no path of a gate; there are {paths} (`*` also matches `/`)")
        kept |= found
    return kept


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Puts a value into nested dictionaries."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
