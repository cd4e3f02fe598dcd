"""What a rule is, the rule for operators nobody knows, and the registry.

A rule answers four questions about one primitive: which entries of the results are zero, which entries of the operands
are needed, how the results grow with the operands, and how they are computed when only some entries are stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache, reduce, wraps
from typing import Any, TypeVar, cast

import jax
import numpy as np

from jasgnas.errors import JasgnasError, RuleError
from jasgnas.program.jaxpr import Equation
from jasgnas.program.masks import (
    NOTHING,
    Axes,
    Layout,
    Need,
    Zeros,
    broken,
    coarsened,
    depth,
    everything,
    stored_shape,
    union,
    unknown,
    zero,
    zero_at,
)
from jasgnas.program.sliced import Sliced
from jasgnas.rules.degrees import CONSTANT, Degree, is_constant


class Rule:
    """The rule for an operator that is not understood: it keeps no zeros and is evaluated at full width.

    Attributes:
        is_joint: whether its zeros and needs may hold masks over several axes (see `masks.py`); layouts never do.
        keeps_degree: whether the results grow in proportion with the first operand while the others stay.
    """

    is_joint = False
    keeps_degree = False

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        """Returns what is known of each result, given what is known of each operand."""
        del operands
        return [unknown(len(aval.shape)) for aval in eqn.out_avals]

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        """Returns which entries of each operand the needed entries of the results depend on.

        At least one result is needed, and none at entries that are known to be zero.
        """
        del operands, results
        return [everything(len(aval.shape)) for aval in eqn.in_avals]

    def degrees(self, eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
        """Returns the degree of homogeneity of each result, given that of each operand (see `degrees.py`)."""
        if all(map(is_constant, operands)):
            degree: Degree = CONSTANT
        else:
            degree = operands[0] if self.keeps_degree and all(map(is_constant, operands[1:])) else None
        return [degree] * len(eqn.out_avals)

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        """Computes the results, in the given layouts if it can; others are converted by the caller."""
        del layouts
        return [
            Sliced(array, everything(len(aval.shape)), aval)
            for array, aval in zip(eqn.bind(*(value.full() for value in operands)), eqn.out_avals, strict=True)
        ]


class Sourced(Rule, ABC):
    """Operators that read the same entries of their operands for given entries of the results, whatever is zero.

    Then one method, `sources`, says both what is needed and what an evaluation on slices takes. All results have the
    same shape, and what is wanted of one of them is computed of all.
    """

    @abstractmethod
    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        """Returns the entries of each operand that these entries of the results are computed from."""

    def computable(self, eqn: Equation, layout: Axes) -> Axes:
        """Returns the layout nearest to a wanted one, holding all of it, in which the results can be computed."""
        del eqn
        return layout

    def compute(self, eqn: Equation, arrays: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        """Computes the results, which have this shape, from the sources; operands without any are left out."""
        del shape
        return eqn.bind(*arrays)

    def needs(self, eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
        del operands
        return self.sources(eqn, _common(results))

    def execute(self, eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
        layout = self.computable(eqn, _common(layouts))
        sources = zip(operands, map(coarsened, self.sources(eqn, layout)), strict=True)
        arrays = [value.to(source).array for value, source in sources if source != NOTHING]
        results = self.compute(eqn, arrays, stored_shape(eqn.out_avals[0].shape, layout))
        return [Sliced(array, layout, aval) for array, aval in zip(results, eqn.out_avals, strict=True)]


def _common(wanted: Sequence[Need]) -> Axes:
    """Returns what is wanted of any result; something is."""
    need = reduce(union, wanted)
    assert need != NOTHING
    return need


class PassThrough(Sourced):
    """Operators whose axes of the results are axes of the operands, or mixtures that keep zeros.

    A subclass says where each operand axis ends up, alike in every result. Zeros of a result follow the operand of the
    same position.
    """

    @abstractmethod
    def destinations(self, eqn: Equation) -> Sequence[Sequence[int | None]]:
        """Returns, for each operand, the result axis that each of its axes becomes; None for a mixed axis."""

    def keeps_zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> bool:
        """Tells whether a result is zero where the operand that it follows is."""
        del eqn, operands
        return True

    def zeros(self, eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
        if not self.keeps_zeros(eqn, operands):
            return super().zeros(eqn, operands)
        followed = zip(operands, self.destinations(eqn), eqn.out_avals, strict=False)
        return [moved(value, axes, len(aval.shape)) for value, axes, aval in followed]

    def sources(self, eqn: Equation, result: Axes) -> Sequence[Need]:
        return [tuple(None if d is None else result[d] for d in axes) for axes in self.destinations(eqn)]

    def computable(self, eqn: Equation, layout: Axes) -> Axes:
        # An axis that comes from nowhere (a new one, a window, a gathered one) is computed in full.
        reached = {d for axes in self.destinations(eqn) for d in axes}
        return tuple(mask if axis in reached else None for axis, mask in enumerate(layout))


def moved(value: Zeros, destinations: Sequence[int | None], ndim: int) -> Zeros:
    """Returns what is known of a result of `ndim` axes that is zero where an operand is."""
    if value.everywhere:
        return zero(ndim)
    if value.is_infinite:
        return broken(ndim)
    axes: list = [None] * ndim
    for mask, destination in zip(value.axes, destinations, strict=True):
        if destination is not None:
            axes[destination] = mask
    return zero_at(axes)


_RULES: dict[str, Rule] = {}
_UNKNOWN = Rule()
_Ask = TypeVar("_Ask", bound=Callable[..., Any])


def register(rule: Rule, *primitives: str) -> None:
    """Makes `rule` the rule for the primitives of these names."""
    for primitive in primitives:
        _RULES[primitive] = rule


def rule_for(primitive: str) -> Rule:
    """Returns the rule of a primitive; unknown ones get the rule that assumes nothing."""
    return _RULES.get(primitive, _UNKNOWN)


def _naming_rule(ask: _Ask) -> _Ask:
    """Has an exception of a rule say which one it is, and for which line of the user's code."""

    @wraps(ask)
    def asked(eqn: Equation, *args: Any) -> Any:
        try:
            return ask(eqn, *args)
        except (JasgnasError, jax.errors.JaxRuntimeError):  # the latter says that there is no memory left, for example
            raise
        except Exception as error:
            rule = type(rule_for(eqn.primitive))
            raise RuleError(
                f"the rule {rule.__module__}.{rule.__qualname__} of the primitive {describe(eqn)} failed: "
                f"{type(error).__name__}: {error}. If you have registered this rule, mend it; if it is one of jasgnas, "
                "please report it together with the model"
            ) from error

    return cast(_Ask, asked)


def describe(eqn: Equation) -> str:
    """Returns the primitive of an equation and, if that is known, the line of the user's code that it comes from."""
    return f"{eqn.primitive} at {eqn.where}" if eqn.where else eqn.primitive


def unknown_in(equations: Iterable[Equation]) -> list[str]:
    """Describes the equations whose primitives have no rule, each line of the user's code once."""
    return list(dict.fromkeys(describe(eqn) for eqn in equations if not is_known(eqn.primitive)))


@_naming_rule
def zeros_of(eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
    """Returns what is known of each result of an equation; what is computed from broken operands is broken.

    Where all operands are constants, the results can tell their entries: they may be the indices of a gather.
    """
    results = _zeros_of(eqn, operands)
    sources = []
    for value, aval in zip(operands, eqn.in_avals, strict=True):
        if (source := entries_of(value, aval)) is None:
            return results
        sources.append(source)

    @cache
    def computed() -> list[Any]:
        with jax.ensure_compile_time_eval():
            return eqn.bind(*(source() for source in sources))

    def entries(index: int) -> Callable[[], Any]:
        return lambda: computed()[index]

    return [value._replace(entries=entries(index)) for index, value in enumerate(results)]


def entries_of(value: Zeros, aval: Any) -> Callable[[], Any] | None:
    """Returns what computes the entries of an operand, if they are constants."""
    if value.constant is not None and _is_integer(aval.dtype):
        return lambda: np.full(aval.shape, value.constant, aval.dtype)
    return value.entries


def _is_integer(dtype: Any) -> bool:
    return dtype == np.bool_ or jax.dtypes.issubdtype(dtype, np.integer)


def _zeros_of(eqn: Equation, operands: Sequence[Zeros]) -> Sequence[Zeros]:
    if any(value.is_broken for value in operands):
        return [broken(len(aval.shape)) for aval in eqn.out_avals]
    rule = rule_for(eqn.primitive)
    joint = [depth(value.axes) > 1 for value in operands]
    if rule.is_joint or not any(joint):
        return rule.zeros(eqn, operands)
    # The rule is not told which single rows are zero. But it is asked whether the result would be finite if they all
    # were: a quotient by a stack of layers, one of which is zero, is not.
    zeroed = [zero(len(value.axes)) if is_joint else value for value, is_joint in zip(operands, joint, strict=True)]
    if any(value.is_broken for value in rule.zeros(eqn, zeroed)):
        return [broken(len(aval.shape)) for aval in eqn.out_avals]
    return rule.zeros(eqn, [value.apart for value in operands])


@_naming_rule
def needs_of(eqn: Equation, operands: Sequence[Zeros], results: Sequence[Need]) -> Sequence[Need]:
    """Returns which entries of each operand of an equation the needed entries of the results depend on."""
    rule = rule_for(eqn.primitive)
    if rule.is_joint:
        return rule.needs(eqn, operands, results)
    return rule.needs(eqn, [value.apart for value in operands], [coarsened(need) for need in results])


@_naming_rule
def degrees_of(eqn: Equation, operands: Sequence[Degree]) -> Sequence[Degree]:
    """Returns the degree of homogeneity of each result of an equation."""
    return rule_for(eqn.primitive).degrees(eqn, operands)


def execute_of(eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> Sequence[Sliced]:
    """Computes the results of an equation, in the given layouts if its rule can."""
    try:
        return rule_for(eqn.primitive).execute(eqn, operands, layouts)
    except Exception:
        # A rule that fails does so with shapes alone. What fails with the values only is what fails in the full network
        # too: there is no memory left, arrays lie on different devices, or a callback of the user raises an exception.
        _execute_abstractly(eqn, operands, layouts)
        raise


@_naming_rule
def _execute_abstractly(eqn: Equation, operands: Sequence[Sliced], layouts: Sequence[Layout]) -> None:
    def run(arrays: Sequence[Any]) -> list[Any]:
        values = [value._replace(array=array) for value, array in zip(operands, arrays, strict=True)]
        return [result.array for result in rule_for(eqn.primitive).execute(eqn, values, layouts)]

    jax.eval_shape(run, [value.array for value in operands])


def is_known(primitive: str) -> bool:
    """Tells whether a primitive has a rule of its own."""
    return primitive in _RULES
