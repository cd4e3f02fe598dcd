"""Flax NNX modules."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from jasgnas.bridge.base import Model, Recipe, Shown, abstracted
from jasgnas.bridge.carry import GONE, pruned
from jasgnas.errors import ArgumentError, MissingPartError
from jasgnas.pytree import leaves_by_path


class Gate(nnx.Param[jax.Array]):
    """A factor that `jasgnas.gated` has put on an edge: a parameter like all others, told apart by its type."""


@dataclass(frozen=True)
class NNXModel(Model):
    """An `nnx.Module`.

    Attributes:
        graphdef: its static part.
        abstract: its state, shapes and dtypes only.
    """

    why = "an nnx.Module holds its own parameters"
    kind = "nnx.Module"

    graphdef: Any
    abstract: nnx.State = field(compare=False)

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is an `nnx.Module`."""
        return isinstance(model, nnx.Module)

    @classmethod
    def of(cls, module: nnx.Module) -> "NNXModel":
        """Splits a module; its arrays are only looked at for their shapes."""
        graphdef, state = nnx.split(module)
        return cls(graphdef, abstracted(state))

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, NNXModel] | None":
        """Returns what a sub-network computes with."""
        return (subnet._jasgnas_recipe, subnet._jasgnas_full) if isinstance(subnet, SubNetwork) else None

    @staticmethod
    def parameters(holder: Any) -> Any:
        """Returns the `nnx.Param`s of a module."""
        return nnx.state(holder, nnx.Param) if isinstance(holder, nnx.Module) else None

    @cached_property
    def _skeleton(self) -> nnx.Module:
        """The module, of which only the static part can be looked at."""
        found = []
        jax.eval_shape(lambda state: found.append(nnx.merge(self.graphdef, state)), self.abstract)
        return found[0]

    def part_name(self, path: str) -> str:
        """Returns the class of a part."""
        part: Any = self._skeleton
        for key in filter(None, path.split("/")):
            part = part[int(key)] if isinstance(part, nnx.List | list) else getattr(part, key, None)
        return type(part).__name__ if isinstance(part, nnx.Module) else ""

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of the module."""
        return self.argument_names(self._skeleton, None)

    def trainable(self) -> Any:
        """Returns the `nnx.Param`s."""
        return nnx.filter_state(self.abstract, nnx.Param)

    def gate_paths(self) -> Collection[str]:
        """Returns the paths of the `Gate`s."""
        return leaves_by_path(nnx.filter_state(self.abstract, Gate)).keys()

    def called(self, holder: Any) -> Any:
        """Returns the module that holds its own arrays."""
        return holder

    def holder_of(self, arrays: Mapping[str, Any]) -> nnx.Module:
        """Returns the module with these arrays."""
        return nnx.merge(self.graphdef, super().holder_of(arrays), copy=True)

    @property
    def static(self) -> Any:
        """The graph definition."""
        return self.graphdef

    def in_mode(self, training: bool) -> "NNXModel":
        """Returns the module after `.train()` or `.eval()`."""
        return self.changed(lambda module: module.train() if training else module.eval())

    def changed(self, change: Callable[[nnx.Module], nnx.Module | None]) -> "NNXModel":
        """Returns the module after a change of its static attributes, made in place or to a copy.

        Raises:
            ArgumentError: the change adds or removes arrays, or gives them another shape.
        """
        models = []

        def run(state: nnx.State) -> None:
            # While it is traced, so that the module holds arrays, and not descriptions of them, as far as it can see.
            module = nnx.merge(self.graphdef, state, copy=True)
            models.append(NNXModel.of(change(module) or module))

        jax.eval_shape(run, self.abstract)
        if models[-1].leaves != self.leaves:
            raise ArgumentError(
                "this changes the arrays of the network, and only settings that are no arrays can be changed here: "
                "change the full model, and make a new search space of it"
            )
        return replace(self, graphdef=models[-1].graphdef)

    def tree(self, holder: Any) -> Any:
        """Returns the state of a module; a state or pure pytree as it is."""
        return nnx.state(holder) if isinstance(holder, nnx.Module) else holder

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns a copy of the module with another state, or that state."""
        return nnx.merge(nnx.graphdef(holder), tree, copy=True) if isinstance(holder, nnx.Module) else tree

    def switched(self, holder: Any, training: bool) -> Any:
        """Switches a module to training or inference mode; a state is as it was."""
        if isinstance(holder, nnx.Module):
            holder.train() if training else holder.eval()
        return holder

    def stored(self, holder: Any, changed: Mapping[str, Any]) -> Any:
        """Sets the arrays of a module at some paths."""
        nnx.update(holder, pruned(nnx.state(holder), changed))
        return holder

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls a copy of the module."""
        module = nnx.merge(self.graphdef, tree, copy=True)
        outputs = module(*args, **kwargs)
        return nnx.as_pure(outputs), nnx.state(module)

    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> "SubNetwork":
        """Returns the sub-network as a module, in the mode of the given one."""
        if not isinstance(holder, nnx.Module):
            raise ArgumentError(f"expected the nnx.Module that the search space was made for, got {type(holder)}")
        graphdef, state = nnx.split(holder)
        # A sub-network may be one of this model, or be this model.
        full = replace(self, graphdef=graphdef)
        if isinstance(holder, SubNetwork) and holder._jasgnas_full.leaves == self.leaves:
            full = holder._jasgnas_full
        children = _left_of(holder, pruned(state, arrays)) | {key: _gates(gates) for key, gates in added.items()}
        return SubNetwork(children, recipe, full)

    def carry(
        self, state: Any, subnet: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]
    ) -> Any:
        """Returns an optimizer state for the parameters of a sub-network, or an `nnx.Optimizer` that holds it.

        Modules with the parameters of the model, averaged ones, become sub-networks like the given one.
        """
        paths = {leaf.path for leaf in self.leaves}

        def is_whole(node: Any) -> bool:
            if isinstance(node, nnx.Module):
                arrays = leaves_by_path(nnx.state(node)).keys()
                return bool(arrays) and arrays <= paths
            return isinstance(node, nnx.Optimizer | nnx.Variable) or is_leaf(node)

        def move_node(path: str | None, node: Any) -> Any:
            if isinstance(node, nnx.Optimizer):
                optimizer = nnx.merge(*nnx.split(node), copy=True)
                optimizer.opt_state = nnx.data(self.carry(optimizer.opt_state, subnet, move, is_leaf))
                if isinstance(optimizer, nnx.ModelAndOptimizer):
                    optimizer.model = subnet
                return optimizer
            if isinstance(node, nnx.Module):
                moved = {path: move(path, array) for path, array in leaves_by_path(nnx.state(node)).items()}
                left = {path: array for path, array in moved.items() if array is not GONE}
                return self.wrap_subnet(subnet._jasgnas_recipe, node, left)
            if not isinstance(node, nnx.Variable):
                return move(path, node)
            array = move(path, node.get_value())
            return array if array is GONE else node.copy(array)

        return super().carry(state, subnet, move_node, is_whole)


def _left_of(node: Any, state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns what is left below a node of a module, by key: variables, arrays, and nodes of the sub-network."""
    left = dict(state)
    for key, value in state.items():
        if isinstance(value, Mapping):
            is_item = isinstance(node, Mapping) or isinstance(key, int)
            left[key] = _like(node[key] if is_item else getattr(node, key), value)
    return left


def _like(node: Any, state: Mapping[Any, Any]) -> Any:
    """Returns a node of the sub-network in the place of a node of the full module."""
    children = _left_of(node, state)
    if isinstance(node, nnx.Dict):
        return _Entries(children)
    if isinstance(node, Mapping):
        return children
    if any(isinstance(key, int) for key in children):
        return _Items(children, node.full_length if isinstance(node, _Items) else len(node))
    return _Part(children)


def _gates(added: Any) -> Any:
    """Returns nested dictionaries of gates as parts of a module."""
    return _Part({key: _gates(each) for key, each in added.items()}) if isinstance(added, Mapping) else Gate(added)


def _is_tabulated(part: nnx.Module) -> bool:
    """Tells whether a module is the copy that `nnx.tabulate` works on."""
    return "_nnx_tabulate_id" in vars(part)


def _list_parts(node: Any) -> None:
    """Calls the parts of a sub-network that `nnx.tabulate` is to list: it lists what is called, and no more."""
    # Of an `nnx.Dict`, too: its own methods are listed while it is tabulated.
    for child in (vars(node) if isinstance(node, nnx.Module) else node).values():
        if isinstance(child, _Part):
            child()
        elif isinstance(child, dict):
            _list_parts(child)


class _Part(nnx.Module):
    """A part of a sub-network: the arrays and parts that are left of a part of the full module, as attributes.

    It holds values. How they are computed with is the business of the full module alone, so that a part cannot be
    called, and settings are not its own.
    """

    def __init__(self, children: Mapping[Any, Any]):
        """Takes the children by key."""
        for key, child in children.items():
            super().__setattr__(str(key), nnx.data(child))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Says that only a sub-network as a whole computes.

        Raises:
            ArgumentError: always, but where `nnx.tabulate` looks for what to list.
        """
        if _is_tabulated(self) and not (args or kwargs):
            _list_parts(self)
            return
        raise ArgumentError(
            "a part of a sub-network holds what is left of the arrays of the full model's part, and cannot be called "
            "by itself: call the sub-network, or make a search space of the part alone"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an array that is there to another one.

        Raises:
            ArgumentError: nothing is set that the network would compute with.
        """
        is_array = isinstance(value, nnx.Variable | jax.Array | np.ndarray)
        if not name.startswith("_") and not (is_array and name in vars(self)):
            raise ArgumentError(
                f"setting {name} here would have no effect: a sub-network has the arrays it was constructed with, and "
                f"computes as the full model is set to. For settings of its layers, call "
                f"subnet.set_attributes({name}=…) on the whole sub-network, with filters for some layers only "
                f'(nnx.Dropout, nnx.PathContains("layer")), or nnx.view(subnet, {name}=…)'
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Says that something is not there.

        Raises:
            MissingPartError: always.
        """
        raise MissingPartError(
            f"there is no {name} here: a sub-network has the arrays that are left of the full model, under their "
            "names, and neither its settings nor its methods"
        )


class _Entries(_Part, nnx.Dict):
    """What is left of an `nnx.Dict`."""


class _Items(_Part):
    """What is left of a list: as many items as are left. Each has the index that it has in the full module."""

    _pytree__has_int_keys = True

    def __init__(self, children: Mapping[int, Any], full_length: int):
        """Takes the items by index."""
        super().__init__(children)
        self._full_length = full_length

    @property
    def full_length(self) -> int:
        """Length of the list in the full module."""
        return self._full_length

    def __len__(self) -> int:
        return len(self[:])

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __getitem__(self, index: int | slice) -> Any:
        """Returns the item with an index of the full module, or those left of a slice.

        Raises:
            MissingPartError: there is no such item any more.
        """
        places = range(self._full_length)
        if isinstance(index, slice):
            return [getattr(self, str(place)) for place in places[index] if str(place) in vars(self)]
        if not -len(places) <= index < len(places) or str(places[index]) not in vars(self):
            left = ", ".join(str(place) for place in places if str(place) in vars(self))
            raise MissingPartError(
                f"there is no item {index}: of the {len(places)} items in the full model, those with index {left} are "
                "left, which keep their indices"
            )
        return getattr(self, str(places[index]))


class SubNetwork(Shown, _Part):
    """A smaller module that computes what the full one does.

    Its parameters and state have the names they had in the full module (`subnet.conv1.kernel`, `subnet.blocks[2]`);
    what the full module no longer needs is not there. It is called like the full module.
    """

    def __init__(self, children: Mapping[Any, Any], recipe: Recipe, full: NNXModel):
        """Takes what is left of the full module.

        Args:
            children: variables, arrays and parts by name.
            recipe: how the sub-network computes.
            full: the full module's description, in the mode to start in.
        """
        super().__init__(children)
        self._jasgnas_recipe = recipe
        self._jasgnas_full = full

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full module would; running statistics and random states are updated."""
        if _is_tabulated(self):
            _list_parts(self)
        state = nnx.state(self)
        outputs, changed = self._jasgnas_recipe.apply(self._jasgnas_full, leaves_by_path(state), args, kwargs)
        if changed:
            nnx.update(self, pruned(state, changed))
        return outputs

    def set_attributes(
        self, *filters: Any, raise_if_not_found: bool = True, graph: bool | None = None, **attributes: Any
    ) -> None:
        """Sets attributes of the layers of the full module, as `.train()` and `.eval()` do; arrays are refused."""
        if arrays := [name for name, value in attributes.items() if nnx.is_data(value)]:
            raise ArgumentError(f"{', '.join(arrays)} would be arrays of the full model, which a sub-network has not")
        self._jasgnas_full = self._jasgnas_full.changed(
            lambda module: module.set_attributes(
                *filters, raise_if_not_found=raise_if_not_found, graph=graph, **attributes
            )
        )

    def set_view(self, **settings: Any) -> None:
        """Changes the layers of the full module as `nnx.view` does, which calls this."""
        self._jasgnas_full = self._jasgnas_full.changed(lambda module: nnx.view(module, **settings))
