"""Equinox modules."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
from jax.tree_util import tree_map_with_path

from jasgnas.bridge.base import Model, Recipe, abstracted
from jasgnas.bridge.carry import GONE
from jasgnas.pytree import leaves_by_path, path_str


@dataclass(frozen=True, eq=False)
class EquinoxModel(Model):
    """An Equinox module, called like a function of its inputs, or by a function that takes the module first.

    Attributes:
        abstract: the module with shapes and dtypes in the place of its arrays, and None in the place of all else.
        rest: the module with None in the place of its arrays.
        method: what is called instead of `__call__`: the name of a method, or a function that is called as
            `method(module, *inputs)`; None for `__call__`.
    """

    options = ("method",)
    why = "an Equinox module holds its own parameters"
    kind = "Equinox module"

    abstract: Any
    rest: Any
    method: str | Callable[..., Any] | None = None

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is an Equinox module that holds arrays; others are functions."""
        return isinstance(model, eqx.Module) and any(map(_is_array, jax.tree.leaves(model)))

    @classmethod
    def of(cls, module: eqx.Module, method: str | Callable[..., Any] | None = None) -> "EquinoxModel":
        """Describes a module; arrays are only looked at for their shapes."""
        return cls(abstracted(_arrays(module)), _rest(module), method)

    @staticmethod
    def parameters(holder: Any) -> Any:
        """Returns the floating-point arrays of a module, which are what Equinox takes gradients of."""
        return eqx.filter(holder, eqx.is_inexact_array) if isinstance(holder, eqx.Module) else None

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, EquinoxModel] | None":
        """Returns what a sub-network computes with."""
        return (subnet._recipe, subnet._full) if isinstance(subnet, SubNetwork) else None

    def part_name(self, path: str) -> str:
        """Returns the class of a part."""
        part: Any = self.rest
        for key in filter(None, path.split("/")):
            part = part[int(key)] if isinstance(part, list | tuple) else getattr(part, key, None)
        return type(part).__name__ if isinstance(part, eqx.Module) else ""

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of the module."""
        return self.argument_names(self.rest, self.method)

    def given(self) -> dict[str, Any]:
        """Returns the method, if there is one."""
        return {} if self.method is None else {"method": self.method}

    def trainable(self) -> Any:
        """Returns the arrays of floating-point numbers."""
        inexact = jax.numpy.inexact
        return jax.tree.map(lambda aval: aval if jax.numpy.issubdtype(aval.dtype, inexact) else None, self.abstract)

    @property
    def static(self) -> Any:
        """What is no array, `inference` flags and functions among it; what cannot be hashed goes by its identity."""
        leaves, treedef = jax.tree.flatten(self.rest)
        return treedef, tuple(leaf if isinstance(leaf, Hashable) else id(leaf) for leaf in leaves)

    def in_mode(self, training: bool) -> "EquinoxModel":
        """Returns the module with all of its `inference` flags set."""
        return replace(self, rest=eqx.nn.inference_mode(self.rest, value=not training))

    def tree(self, holder: Any) -> Any:
        """Returns the arrays of a module."""
        return _arrays(holder)

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns the module with other arrays, and what is no array as it is."""
        return eqx.combine(tree, _rest(holder))

    def switched(self, holder: Any, training: bool) -> Any:
        """Returns a module with all of its `inference` flags set."""
        return eqx.nn.inference_mode(holder, value=not training)

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls the module. It cannot change: a new state is among its outputs."""
        module = eqx.combine(tree, self.rest)
        called = getattr(module, self.method) if isinstance(self.method, str) else partial(self._function, module)
        return called(*args, **kwargs), tree

    @property
    def _function(self) -> Callable[..., Any]:
        return self.method if callable(self.method) else lambda module, *args, **kwargs: module(*args, **kwargs)

    def wrap_subnet(self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any]) -> "SubNetwork":
        """Returns a module of a class derived from that of the full one, with None for the arrays that are gone."""
        left = tree_map_with_path(lambda keys, _: arrays.get(path_str(keys)), self.abstract)
        return _subnet_of(eqx.combine(left, _rest(self.full(holder))), recipe, self)

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
            return _subnet_of(tree_map_with_path(move_leaf, node), subnet._recipe, self)

        return super().carry(state, subnet, move_node, is_whole)


class SubNetwork(eqx.Module):
    """A smaller module that computes what the full one does; its class is derived from that of the full one, too.

    It has the fields of the full module, with None for the arrays that are gone, and is called like it: by `__call__`,
    also where the search space was made with `method=`. Its other methods would compute with arrays that are narrower,
    or not there.
    """

    _recipe: Recipe = eqx.field(static=True, init=False, repr=False)
    _full: EquinoxModel = eqx.field(static=True, init=False, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full module would."""
        full = replace(self._full, rest=_rest(self._full.full(self)))
        return self._recipe.apply(full, leaves_by_path(_arrays(self)), args, kwargs)[0]

    def __reduce__(self) -> Any:
        """Pickles a module of the full class: the class of the sub-network is made anew."""
        return _subnet_of, (self._full.full(self), self._recipe, self._full)


def _subnet_of(module: Any, recipe: Recipe, full: EquinoxModel) -> SubNetwork:
    """Returns a sub-network with the fields of a module."""
    kind: Any = type(full.rest)
    return _with_fields(_subclass(kind), module, _recipe=recipe, _full=full)


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
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct)


def _arrays(module: Any) -> Any:
    """Returns a module with None in the place of all that is no array."""
    return eqx.filter(module, _is_array)


def _rest(module: Any) -> Any:
    """Returns a module with None in the place of its arrays."""
    return eqx.filter(module, _is_array, inverse=True)
