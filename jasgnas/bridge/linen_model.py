"""Flax Linen modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict, freeze, unfreeze
from jax.tree_util import tree_map_with_path

from jasgnas.bridge.base import Model, Recipe, Shown, abstracted, is_variables
from jasgnas.bridge.carry import pruned
from jasgnas.errors import ArgumentError
from jasgnas.pytree import leaves_by_path, path_str


@dataclass(frozen=True, eq=False)
class LinenModel(Model):
    """A Linen module and its variables.

    The paths of parameters do not mention the collection (`Dense_0/kernel`); those of other variables start with it
    (`batch_stats/BatchNorm_0/mean`).

    Attributes:
        module: the module.
        method: the method that is called, or None for `__call__`.
        abstract: its variables as one tree, shapes and dtypes only.
        collections: names of the collections other than `params`.
    """

    needs = ("variables",)
    options = ("method",)
    why = "a Linen module needs its variables, as module.init(…) returns them"
    kind = "Linen module"

    module: nn.Module
    method: Any
    abstract: Any
    collections: tuple[str, ...] = ()

    @staticmethod
    def owns(model: Any) -> bool:
        """Tells whether a model is a Linen module."""
        return isinstance(model, nn.Module)

    @classmethod
    def of(cls, module: nn.Module, variables: Mapping[str, Any], method: Any = None) -> "LinenModel":
        """Describes a module; the variables are only looked at for their shapes.

        Raises:
            ArgumentError: the variables have no collection `params`.
        """
        if not is_variables(variables):
            raise ArgumentError("expected variables={'params': …, …}, as module.init(…) returns them")
        if both := sorted(set(variables) & set(variables["params"]) - {"params"}):
            raise ArgumentError(
                f"{', '.join(both)} is a collection of variables and a submodule at once: paths could not tell them "
                "apart. Give the submodule another name"
            )
        tree = abstracted(_as_tree(variables))
        return cls(module, method, tree, tuple(name for name in variables if name != "params"))

    @staticmethod
    def initial(model: nn.Module, inputs: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables of a module, shapes and dtypes only."""
        rngs = dict.fromkeys(("params", "dropout"), jax.random.key(0))
        return {"variables": jax.eval_shape(lambda *xs: model.init(rngs, *xs, **settings), *inputs)}

    @staticmethod
    def recipe_of(subnet: Any) -> "tuple[Any, LinenModel] | None":
        """Returns what a sub-network computes with."""
        return (subnet.recipe, subnet.full) if isinstance(subnet, SubNetworkModule) else None

    def part_name(self, path: str) -> str:
        """Returns the class of the module."""
        return "" if path else type(self.module).__name__

    def call_names(self) -> tuple[str, ...]:
        """Returns the names of the arguments of the module."""
        return self.argument_names(self.module, self.method)

    def path_in_module(self, path: str) -> str:
        """Returns a path without the collection, as the variables of one layer are together in a module."""
        collection, _, rest = path.partition("/")
        return rest if collection in self.collections else path

    def given(self) -> dict[str, Any]:
        """Returns the variables, in plain dictionaries, and the method, by its name if the module has it."""
        given = {"variables": unfreeze(_as_variables(self.abstract, self.collections))}
        if self.method is None:
            return given
        name = getattr(self.method, "__name__", "")
        is_own = bool(name) and getattr(type(self.module), name, None) is self.method
        return {**given, "method": name if is_own else self.method}

    def called(self, holder: Any) -> Any:
        """Returns the module."""
        del holder
        return self.module

    def holder_of(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables with these arrays."""
        return _as_variables(super().holder_of(arrays), self.collections)

    def trainable(self) -> Any:
        """Returns the collection `params`."""
        return _as_variables(self.abstract, self.collections)["params"]

    def tree(self, holder: Any) -> Any:
        """Returns variables (or parameters alone) as one tree."""
        return _as_tree(holder) if is_variables(holder) else holder

    def like(self, holder: Any, tree: Any) -> Any:
        """Returns variables (or parameters alone) with the arrays of a tree."""
        if not is_variables(holder):
            return tree
        return _as_kind(_as_variables(tree, [name for name in holder if name != "params"]), holder)

    def call(self, tree: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Calls `module.apply`; `rngs` among the keyword arguments are its random streams."""
        variables = _as_variables(tree, self.collections)
        outputs, updated = self.module.apply(
            variables, *args, **kwargs, method=self.method, mutable=list(self.collections)
        )
        return outputs, _as_tree({**variables, **updated})

    def wrap_subnet(
        self, recipe: Recipe, holder: Any, arrays: Mapping[str, Any], added: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple["SubNetworkModule", Mapping[str, Any]]:
        """Returns the sub-network as a module, and its variables."""
        variables = _as_variables({**pruned(self.tree(holder), arrays), **added}, self.collections)
        return SubNetworkModule(recipe, self), _as_kind({"params": {}} | variables, holder)


def _as_kind(variables: dict[str, Any], holder: Mapping[str, Any]) -> Mapping[str, Any]:
    return freeze(variables) if isinstance(holder, FrozenDict) else unfreeze(variables)


def _as_tree(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {**variables["params"], **{name: value for name, value in variables.items() if name != "params"}}


def _as_variables(tree: Mapping[str, Any], collections: Sequence[str]) -> dict[str, Any]:
    params = {name: value for name, value in tree.items() if name not in collections}
    return {"params": params} | {name: tree[name] for name in collections if name in tree}


class SubNetworkModule(Shown, nn.Module):
    """A smaller module that computes what the full one does; `apply` takes the same arguments.

    Attributes:
        recipe: how the sub-network computes.
        full: the full module.
    """

    recipe: Recipe
    full: LinenModel

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the full module would; mutable collections are updated."""
        if self.is_initializing():
            raise ArgumentError("a sub-network is not initialised: use the variables that construct_subnet returned")
        assert self.scope is not None
        if self.scope.rngs:
            kwargs["rngs"] = {name: rng.as_jax_rng() for name, rng in self.scope.rngs.items()}
        tree = _as_tree({"params": {}, **self.variables})
        outputs, changed = self.recipe.apply(self.full, leaves_by_path(tree), args, kwargs)
        updated = tree_map_with_path(lambda keys, value: changed.get(path_str(keys), value), tree)
        after = _as_variables(updated, self.full.collections)
        for collection in self.full.collections:
            if self.is_mutable_collection(collection):
                for name, value in after.get(collection, {}).items():
                    self.put_variable(collection, name, value)
        return outputs
