"""Equinox modules."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import tree_map_with_path

from jasgnas.bridge.base import Model, Recipe, Shown, abstracted
from jasgnas.bridge.carry import GONE
from jasgnas.errors import ArgumentError
from jasgnas.pytree import leaves_by_path, path_str

_STATE = "~state"
"""What the paths of states start with: no name of a field."""


@dataclass(frozen=True, eq=False)
class EquinoxModel(Model):
    """An Equinox module, called like a function of its inputs, or by a function that takes the module first.

    The paths of arrays are their places in the module (`blocks/0/weight`); those of a state start with `~state`.

    Attributes:
        shapes: the module with shapes and dtypes in the place of its arrays, and None in the place of all else.
        rest: the module with None in the place of its arrays.
        method: what is called instead of `__call__`: the name of a method, or a function that is called as
            `method(module, *inputs)`; None for `__call__`.
        state: the state that is the last of the inputs and of the outputs, shapes and dtypes only; None where the
            module has none.
    """

    options = ("method", "variables")
    why = "an Equinox module holds its own parameters"
    kind = "Equinox module"

    shapes: Any
    rest: Any
    method: str | Callable[..., Any] | None = None
    state: eqx.nn.State | None = None

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is an Equinox module that holds arrays; others are functions."""
        return isinstance(model, eqx.Module) and any(map(_is_array, jax.tree.leaves(model)))

    @classmethod
    def of(
        cls,
        module: eqx.Module,
        method: str | Callable[..., Any] | None = None,
        variables: eqx.nn.State | None = None,
    ) -> "EquinoxModel":
        """Describes a module, and the state that comes with it; arrays are only looked at for their shapes.

        Raises:
            ArgumentError: what comes with it is no state.
        """
        if variables is not None and not isinstance(variables, eqx.nn.State):
            raise ArgumentError(
                "an Equinox module holds its own parameters: `variables=` is for its eqx.nn.State, as "
                f"eqx.nn.make_with_state returns it; got {type(variables).__name__}"
            )
        return cls(abstracted(_arrays(module)), _rest(module), method, abstracted(variables))

    @cached_property
    def abstract(self) -> Any:
        """The arrays by path, shapes and dtypes only."""
        return self._by_path(self.shapes, self.state)

    @staticmethod
    def _by_path(module: Any, state: Any) -> dict[str, Any]:
        of_state = {f"{_STATE}/{path}": value for path, value in leaves_by_path(state).items()}
        return leaves_by_path(_arrays(module)) | of_state

    @staticmethod
    def parameters(holder: Any) -> Any:
        """Returns the floating-point arrays of a module, which are what Equinox takes gradients of."""
        return eqx.filter(holder, eqx.is_inexact_array) if isinstance(holder, eqx.Module) else None

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, EquinoxModel] | None":
        """Returns what a sub-network computes with."""
        return (subnet._jasgnas_recipe, subnet._jasgnas_full) if isinstance(subnet, SubNetwork) else None

    def part_name(self, path: str) -> str:
        """Returns the class of a part."""
        part: Any = self.rest
        for key in filter(None, path.split("/")):
            part = part[int(key)] if isinstance(part, list | tuple) else getattr(part, key, None)
        return type(part).__name__ if isinstance(part, eqx.Module) else ""

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of the module."""
        return self.argument_names(self.rest, self.method)

    def called(self, holder: Any) -> Any:
        """Returns the module that holds its own arrays."""
        return holder[0] if isinstance(holder, tuple) else holder

    def holder_of(self, arrays: Mapping[str, Any]) -> Any:
        """Returns the module with these arrays, or the pair of it and its state."""
        module = eqx.combine(_filled(self.shapes, arrays), self.rest)
        return self.holder(module, None if self.state is None else _filled(self.state, arrays, _STATE))

    @property
    def is_apart(self) -> bool:
        """Whether there is a state beside the module."""
        return self.state is not None

    def holder(self, model: Any, apart: Any) -> Any:
        """Returns the module, or the pair of it and its state."""
        return model if apart is None else (model, apart)

    def given(self) -> dict[str, Any]:
        """Returns the method and the state, where there are any."""
        given = {"method": self.method, "variables": self.state}
        return {name: value for name, value in given.items() if value is not None}

    def trainable(self) -> Any:
        """Returns the arrays of floating-point numbers."""
        of_module = leaves_by_path(self.shapes).items()
        return {path: aval for path, aval in of_module if jax.numpy.issubdtype(aval.dtype, jax.numpy.inexact)}

    @property
    def static(self) -> Any:
        """What is no array, `inference` flags and functions among it; what cannot be hashed goes by its identity."""
        leaves, treedef = jax.tree.flatten(self.rest)
        return treedef, tuple(leaf if isinstance(leaf, Hashable) else id(leaf) for leaf in leaves)

    def in_mode(self, training: bool) -> "EquinoxModel":
        """Returns the module with all of its `inference` flags set."""
        return replace(self, rest=eqx.nn.inference_mode(self.rest, value=not training))

    def tree(self, holder: Any) -> Any:
        """Returns the arrays of a module, or of the pair of a module and its state, by path."""
        return self._by_path(*holder) if isinstance(holder, tuple) else self._by_path(holder, None)

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns the module, or the pair, with other arrays, and what is no array as it is."""
        module, state = holder if isinstance(holder, tuple) else (holder, None)
        module = eqx.combine(_filled(_arrays(module), tree), _rest(module))
        return (module, _filled(state, tree, _STATE)) if isinstance(holder, tuple) else module

    def switched(self, holder: Any, training: bool) -> Any:
        """Returns a module, or the pair, with all of its `inference` flags set."""
        return eqx.nn.inference_mode(holder, value=not training)

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls the module. It cannot change itself; a state is given to it, and returned anew."""
        module = eqx.combine(_filled(self.shapes, tree), self.rest)
        if self.method is None:
            called: Callable[..., Any] = module
        else:
            called = getattr(module, self.method) if isinstance(self.method, str) else partial(self.method, module)
        if self.state is None:
            return called(*args, **kwargs), tree
        outputs, state = called(*args, _filled(self.state, tree, _STATE), **kwargs)
        return outputs, {**tree, **self._by_path(None, state)}

    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        """Returns a module of a class derived from that of the full one, with None for the arrays that are gone.

        It comes with its state where the full one has one.

        Raises:
            ArgumentError: there are parameters that the full module has no fields for.
        """
        if added:
            raise ArgumentError(
                "an Equinox module has no fields for gates: pass the function of its arrays that eqx.partition and "
                "eqx.combine make, with params="
            )
        module = holder[0] if isinstance(holder, tuple) else holder
        left = _filled(self.shapes, arrays)
        subnet = _subnet_of(eqx.combine(left, _rest(self.full(module))), recipe, self)
        return subnet if self.state is None else (subnet, _filled(self.state, arrays, _STATE))

    def full(self, module: Any) -> Any:
        """Returns a module of the full class with the fields of one that may be a sub-network already."""
        return _with_fields(type(self.rest), module)

    def carry(
        self, state: Any, subnet: Any, move: Callable[[str | None, Any], Any], is_leaf: Callable[[Any], bool]
    ) -> Any:
        """Returns an optimizer state for the parameters of a sub-network: its modules become such sub-networks."""
        paths = {leaf.path for leaf in self.leaves}

        def is_whole(node: Any) -> bool:
            return isinstance(node, type(self.rest)) or is_leaf(node)

        def move_leaf(keys: Any, leaf: Any) -> Any:
            path = path_str(keys)
            moved = move(path if path in paths else None, leaf)
            return None if moved is GONE else moved

        def move_node(path: str | None, node: Any) -> Any:
            if not isinstance(node, type(self.rest)):
                return move(path, node)
            module = subnet[0] if isinstance(subnet, tuple) else subnet
            return _subnet_of(tree_map_with_path(move_leaf, node), module._jasgnas_recipe, self)

        return super().carry(state, subnet, move_node, is_whole)


class SubNetwork(Shown, eqx.Module):
    """A smaller module that computes what the full one does; its class is derived from that of the full one, too.

    It has the fields of the full module, with None for the arrays that are gone, and is called like it: by `__call__`,
    also where the search space was made with `method=`. Its other methods would compute with arrays that are narrower,
    or not there.
    """

    _jasgnas_recipe: Recipe = eqx.field(static=True, init=False, repr=False)
    _jasgnas_full: EquinoxModel = eqx.field(static=True, init=False, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full module would: where it has a state, the last argument, the new state comes second."""
        full = replace(self._jasgnas_full, rest=_rest(self._jasgnas_full.full(self)))
        if full.state is None:
            return self._jasgnas_recipe.apply(full, full.tree(self), args, kwargs)[0]
        if not (args and isinstance(args[-1], eqx.nn.State)):
            raise ArgumentError("the last positional argument must be the state, as construct_subnet returned it")
        state = args[-1]
        outputs, changed = self._jasgnas_recipe.apply(full, full.tree((self, state)), args[:-1], kwargs)
        return outputs, _filled(state, full.tree((self, state)) | changed, _STATE)

    def __reduce__(self) -> Any:
        """Pickles a module of the full class: the class of the sub-network is made anew."""
        return _subnet_of, (self._jasgnas_full.full(self), self._jasgnas_recipe, self._jasgnas_full)


def _subnet_of(module: Any, recipe: Recipe, full: EquinoxModel) -> SubNetwork:
    """Returns a sub-network with the fields of a module."""
    kind: Any = type(full.rest)
    return _with_fields(_subclass(kind), module, _jasgnas_recipe=recipe, _jasgnas_full=full)


def _with_fields(cls: type, module: Any, **further: Any) -> Any:
    """Returns an object of a class with the fields of a module, and further ones; its `__init__` is not called."""
    found = {each.name: getattr(module, each.name) for each in fields(module) if hasattr(module, each.name)}
    names = {each.name for each in fields(cls)}
    result: Any = object.__new__(cls)
    for name, value in (found | further).items():
        if name in names:
            object.__setattr__(result, name, value)
    return result


@cache
def _subclass(full: Any) -> type[SubNetwork]:
    """Returns the class of the sub-networks of a class of modules."""
    return type(f"Sub{full.__name__}", (SubNetwork, full), {"__module__": __name__, "__doc__": SubNetwork.__doc__})


def _is_array(value: Any) -> bool:
    # Of NumPy, too: Equinox takes gradients of them.
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _arrays(module: Any) -> Any:
    """Returns a module with None in the place of all that is no array."""
    return eqx.filter(module, _is_array)


def _filled(tree: Any, arrays: Mapping[str, Any], *above: str) -> Any:
    """Returns a tree with other arrays in the place of its own, given by path; None where there is none."""
    return tree_map_with_path(lambda keys, _: arrays.get("/".join([*above, path_str(keys)])), tree)


def _rest(module: Any) -> Any:
    """Returns a module with None in the place of its arrays."""
    return eqx.filter(module, _is_array, inverse=True)
