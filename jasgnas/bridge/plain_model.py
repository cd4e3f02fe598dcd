"""Plain functions `fn(params, *inputs)` of a pytree of parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax

from jasgnas.bridge.base import Model, Recipe, Shown, abstracted, positional_names
from jasgnas.bridge.carry import pruned
from jasgnas.errors import ArgumentError
from jasgnas.pytree import leaves_by_path


@dataclass(frozen=True, eq=False)
class PlainModel(Model):
    """A function and the pytree of its parameters.

    Attributes:
        fn: called as `fn(params, *inputs, **kwargs)`.
        abstract: the parameters, shapes and dtypes only.
    """

    needs = ("params",)
    why = "a function fn(params, x) needs its parameters"
    kind = "function"
    is_module = False

    fn: Callable[..., Any]
    abstract: Any

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model can be called; a class is no function of parameters."""
        return callable(model) and not isinstance(model, type)

    @classmethod
    def of(cls, fn: Callable[..., Any], params: Any) -> "PlainModel":
        """Describes a function; the parameters are only looked at for their shapes."""
        return cls(fn, abstracted(params))

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, PlainModel] | None":
        """Returns what a sub-network computes with."""
        return (subnet.recipe, subnet.full) if isinstance(subnet, SubNetworkFunction) else None

    def part_name(self, path: str) -> str:
        """Returns the name of the function, as a class would be called."""
        name = getattr(self.fn, "__name__", "")
        return "".join(word.capitalize() for word in name.split("_")) if not path and name.isidentifier() else ""

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of the function after the parameters."""
        return self.argument_names(self.fn, None)

    def called(self, holder: Any) -> Any:
        """Returns the function."""
        del holder
        return self.fn

    def given(self) -> dict[str, Any]:
        """Returns the parameters."""
        return {"params": self.abstract}

    @staticmethod
    def argument_names(model: Any, method: Any) -> tuple[str, ...]:
        """Returns the names of the positional arguments of a function, without the parameters, as far as known."""
        del method
        return positional_names(model)[1:]

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls the function, with containers of its own, which it may change."""
        return self.fn(jax.tree.map(lambda value: value, tree), *args, **kwargs), tree

    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple["SubNetworkFunction", Any]:
        """Returns a function of the smaller parameters, and these; removed leaves are None, or missing keys.

        Raises:
            ArgumentError: there are parameters to be added, and no keys to add them under.
        """
        params = pruned(holder, arrays)
        if added and not isinstance(params, dict):
            raise ArgumentError(
                f"gates are added to the parameters by name, and these are a {type(params).__name__}: give a "
                "dictionary, {'model': params} for a function fn(p, x) that reads p['model']"
            )
        return SubNetworkFunction(recipe, self), {**params, **added} if added else params


@dataclass(frozen=True, eq=False)
class SubNetworkFunction(Shown):
    """A function of smaller parameters that computes what the full one does; pickled if the full one can be.

    Attributes:
        recipe: how the sub-network computes.
        full: the full function.
    """

    recipe: Recipe
    full: PlainModel

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full function would."""
        return self.recipe.apply(self.full, leaves_by_path(params), args, kwargs)[0]
