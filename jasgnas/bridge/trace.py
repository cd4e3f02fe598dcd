"""From a model and example inputs to a program: nothing is computed, inputs may be abstract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from jasgnas.bridge import Leaf, Model
from jasgnas.errors import ArgumentError
from jasgnas.program.jaxpr import Atom, Program, abstract, is_array, trace
from jasgnas.program.scans import unroll
from jasgnas.pytree import path_str


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call, arrays apart from everything else.

    Attributes:
        arrays: the array arguments, concrete or abstract.
        static: the other arguments, by position among all of them.
        treedef: how they make up `(args, kwargs)`.
    """

    arrays: tuple[Any, ...]
    static: tuple[tuple[int, Any], ...]
    treedef: Any

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Call":
        """Takes arguments apart; Python numbers and anything that is no array are static."""
        flat, treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
        arrays = tuple(value for value in flat if is_array(value))
        return cls(arrays, tuple((i, value) for i, value in enumerate(flat) if not is_array(value)), treedef)

    def __reduce__(self) -> Any:
        """Pickles the arguments themselves, since not every tree structure can be pickled."""
        return Call.of, self.arguments(self.arrays)

    @property
    def avals(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of the arrays."""
        return tuple(map(abstract, self.arrays))

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each array stands among the arguments: `0` or `0/image` for positional ones, `mask` for named ones."""
        return tuple(path_str(keys[1:]) for keys in self.keys)

    @property
    def keys(self) -> tuple[tuple[Any, ...], ...]:
        """The keys of each array in `(args, kwargs)`."""
        static = dict(self.static)
        indices = jax.tree.unflatten(self.treedef, range(self.treedef.num_leaves))
        flat = jax.tree_util.tree_leaves_with_path(indices)
        return tuple(keys for keys, index in flat if index not in static)

    @property
    def variants(self) -> "tuple[Call, ...]":
        """The call itself and, where it has boolean arguments (`train=False`), the call with all of them inverted."""
        flipped = tuple((i, not value if isinstance(value, bool) else value) for i, value in self.static)
        return (self,) if flipped == self.static else (self, replace(self, static=flipped))

    def arguments(self, arrays: Sequence[Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Puts the arguments together again, with other arrays."""
        static, rest = dict(self.static), iter(arrays)
        flat = [static[i] if i in static else next(rest) for i in range(self.treedef.num_leaves)]
        return jax.tree.unflatten(self.treedef, flat)


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A model traced at certain shapes.

    Attributes:
        leaves: its leaves, which are the first inputs of the program; the network inputs follow.
        program: the nested program, scans over stacked leaves unrolled. Its outputs are the network outputs, then each
            leaf after the call.
        out_tree: tree structure of the network outputs.
    """

    leaves: tuple[Leaf, ...]
    program: Program
    out_tree: Any

    @property
    def num_outputs(self) -> int:
        """Number of arrays among the network outputs."""
        return self.out_tree.num_leaves

    @property
    def outputs(self) -> tuple[Atom, ...]:
        """The network outputs."""
        return self.program.outputs[: self.num_outputs]

    @cached_property
    def updated(self) -> tuple[int, ...]:
        """The leaves that the call changes."""
        after = zip(self.program.inputs, self.program.outputs[self.num_outputs :], strict=False)
        return tuple(index for index, (before, atom) in enumerate(after) if atom != before)

    @property
    def output_names(self) -> list[str]:
        """Paths of the network outputs, `output` for one that is no part of anything."""
        indices = jax.tree.unflatten(self.out_tree, range(self.num_outputs))
        return [path_str(keys) or "output" for keys, _ in jax.tree_util.tree_leaves_with_path(indices)]

    @property
    def output_avals(self) -> list[Any]:
        """Shapes and dtypes of the network outputs."""
        return [self.program.avals[atom] if isinstance(atom, int) else atom.aval for atom in self.outputs]


def in_dtypes_of(leaves: tuple[Leaf, ...], arrays: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Returns leaves in the dtypes of given arrays, by path, which may have been cast since the leaves were made.

    A leaf of which no array is left goes with the others of its dtype, if these are of one dtype now.
    """
    now = {path: abstract(array).dtype for path, array in arrays.items()}
    cast: dict[Any, set[Any]] = {}
    for leaf in leaves:
        if leaf.path in now:
            cast.setdefault(leaf.dtype, set()).add(now[leaf.path])
    of_others = {before: next(iter(after)) for before, after in cast.items() if len(after) == 1}
    return tuple(leaf._replace(dtype=now.get(leaf.path, of_others.get(leaf.dtype, leaf.dtype))) for leaf in leaves)


def trace_model(model: Model, call: Call, leaves: tuple[Leaf, ...] | None = None) -> TracedModel:
    """Traces a model.

    Args:
        model: the model.
        call: what it is called with.
        leaves: its leaves, if they are of other dtypes than those it was made with.

    Raises:
        ArgumentError: there is no input array.
    """
    if not call.arrays:
        given = ", ".join(repr(value) for _, value in call.static[:4])
        found = f"; {given} is none" if given else ""
        raise ArgumentError(
            f"no network input was given: pass an example input, an array or a jax.ShapeDtypeStruct{found}"
        )
    out_trees = []

    def run(values: Sequence[Any], arrays: Sequence[Any]) -> Any:
        args, kwargs = call.arguments(arrays)
        outputs, after = model.apply(values, args, kwargs)
        flat, out_tree = jax.tree.flatten(outputs)
        out_trees.append(out_tree)
        return flat, after

    leaves = model.leaves if leaves is None else leaves
    values = [leaf.aval for leaf in leaves]
    program = trace(run, values, call.avals)
    program = unroll(program, [position < len(values) for position in range(len(program.inputs))])
    return TracedModel(leaves, program, out_trees[-1])
