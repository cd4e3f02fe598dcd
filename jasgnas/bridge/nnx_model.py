"""Flax NNX modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from flax import nnx

from jasgnas.bridge.base import GONE, Leaf, Recipe, carried, leaf_of
from jasgnas.errors import ArgumentError
from jasgnas.pytree import leaves_by_path, path_str


@dataclass(frozen=True)
class NNXModel:
    """An `nnx.Module`.

    Attributes:
        graphdef: its static part.
        abstract: its state, shapes and dtypes only.
    """

    graphdef: Any
    abstract: nnx.State = field(compare=False)

    @classmethod
    def of(cls, module: nnx.Module) -> "NNXModel":
        """Splits a module; its arrays are only looked at for their shapes."""
        graphdef, state = nnx.split(module)
        return cls(graphdef, jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state))

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Its arrays; `nnx.Param`s are trainable."""
        params = leaves_by_path(nnx.filter_state(self.abstract, nnx.Param))
        return tuple(leaf_of(path, value, path in params) for path, value in leaves_by_path(self.abstract).items())

    @property
    def static(self) -> Any:
        """The graph definition."""
        return self.graphdef

    def in_mode(self, training: bool) -> "NNXModel":
        """Returns the module after `.train()` or `.eval()`."""
        module = nnx.merge(self.graphdef, self.abstract)
        module.train() if training else module.eval()
        return replace(self, graphdef=nnx.graphdef(module))

    def tree(self, holder: Any) -> Any:
        """Returns the state of a module; a state or pure pytree as it is."""
        return nnx.state(holder) if isinstance(holder, nnx.Module) else holder

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns a copy of the module with another state, or that state."""
        return nnx.merge(nnx.graphdef(holder), tree, copy=True) if isinstance(holder, nnx.Module) else tree

    def apply(self, values: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Calls a copy of the module."""
        state = jax.tree.unflatten(jax.tree.structure(self.abstract), values)
        module = nnx.merge(self.graphdef, state, copy=True)
        outputs = module(*args, **kwargs)
        after = leaves_by_path(nnx.state(module))
        return nnx.as_pure(outputs), [after[leaf.path] for leaf in self.leaves]

    def wrap_subnet(self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any]) -> "SubNetwork":
        """Returns the sub-network as a module, in the mode of the given one."""
        if not isinstance(holder, nnx.Module):
            raise ArgumentError(f"expected the nnx.Module that the search space was made for, got {type(holder)}")
        graphdef, state = nnx.split(holder)
        # A sub-network may be one of this model, or be this model.
        full = replace(self, graphdef=graphdef)
        if isinstance(holder, SubNetwork) and holder._full.leaves == self.leaves:
            full = holder._full
        variables = {}
        for keys, variable in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_variable):
            path = path_str(keys)
            if path in arrays:
                array = arrays[path]
                variables[path] = variable.copy(array) if _is_variable(variable) else nnx.Variable(array)
        return SubNetwork(recipe, full, variables)

    def carry(self, state: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]) -> Any:
        """Returns an optimizer state for the parameters of a sub-network, or an `nnx.Optimizer` that holds it."""
        if isinstance(state, nnx.Optimizer):
            optimizer = nnx.merge(*nnx.split(state), copy=True)
            optimizer.opt_state = nnx.data(self.carry(optimizer.opt_state, move, is_leaf))
            return optimizer

        def move_variable(path: str | None, node: Any) -> Any:
            if not _is_variable(node):
                return move(path, node)
            array = move(path, node.get_value())
            return array if array is GONE else node.copy(array)

        paths = {leaf.path for leaf in self.leaves}
        # What is in a list of the full module is an attribute of a sub-network, and attributes are called by strings.
        return carried(
            state, paths, move_variable, is_leaf=lambda node: _is_variable(node) or is_leaf(node), rename=str
        )


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


class _Branch(nnx.Module):
    """A node of the parameter tree; children are attributes, also by key where the original was a list."""

    def __getitem__(self, key: str | int) -> Any:
        return getattr(self, str(key))


class SubNetwork(_Branch):
    """A smaller module that computes what the full one does.

    Its parameters and state have the names they had in the full module (`subnet.conv1.kernel`); what the full module
    no longer needs is not there. It is called like the full module.
    """

    def __init__(self, recipe: Recipe, full: NNXModel, variables: Mapping[str, nnx.Variable]):
        """Puts the variables into a tree of modules.

        Args:
            recipe: how the sub-network computes.
            full: the full module's description, in the mode to start in.
            variables: the variables of the sub-network, by path.
        """
        self._recipe = recipe
        self._full = full
        for path, variable in variables.items():
            *parents, name = path.split("/")
            node: nnx.Module = self
            for parent in parents:
                if not hasattr(node, parent):
                    setattr(node, parent, _Branch())
                node = getattr(node, parent)
            setattr(node, name, variable)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full module would; running statistics and random states are updated."""
        leaves = jax.tree_util.tree_leaves_with_path(nnx.state(self), is_leaf=_is_variable)
        arrays = {path_str(keys): variable.get_value() for keys, variable in leaves}
        outputs, changed = self._recipe.apply(self._full, arrays, args, kwargs)
        for path, array in changed.items():
            self._variable(path).set_value(array)
        return outputs

    def set_attributes(
        self, *filters: Any, raise_if_not_found: bool = True, graph: bool | None = None, **attributes: Any
    ) -> None:
        """Sets attributes of the layers of the full module, as `.train()` and `.eval()` do."""
        module = nnx.merge(self._full.graphdef, self._full.abstract)
        module.set_attributes(*filters, raise_if_not_found=raise_if_not_found, graph=graph, **attributes)
        self._full = replace(self._full, graphdef=nnx.graphdef(module))

    def _variable(self, path: str) -> nnx.Variable:
        node: Any = self
        for key in path.split("/"):
            node = getattr(node, key)
        return node
