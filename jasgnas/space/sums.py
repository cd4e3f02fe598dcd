"""Sums that take away again what they add: x + (q − x) varies with q only, whatever x is.

A straight-through estimator, `x + stop_gradient(q - x)`, is written like this. Seen addend by addend it would seem to
depend on the network input even if q, which replaces x, is gone. The same happens where a sum runs along axes: what a
norm has made of an image has the same mean for every image.
"""

import heapq
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import count
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Literal, Program
from jasgnas.rules import rule_for
from jasgnas.rules.elementwise import Elementwise

_SIGNS = {"add": (1, 1), "add_any": (1, 1), "sub": (1, -1)}
_SAME = ("convert_element_type", "copy", "name", "optimization_barrier", "reduce_precision", "stop_gradient")
_LINEAR = (
    *("reduce_sum", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"),
    *("concatenate", "pad", "slice", "split", "mul", "div", "dot_general", "conv_general_dilated"),
)

_SUMMED = -1
_UNIT = -2
_OTHER = -3  # and less: see `_Term.own_mark`
_MOST_AXES = 64


class _Term(NamedTuple):
    """A variable, or sums along some of its axes.

    Attributes:
        var: the variable.
        axes: for each of its axes the axis of the whole that it runs along, or one of the marks above.
        around: the linear maps around it, outermost first, as their results with the axes of these and the number of
            the operand. Only terms in the same place of the same maps can cancel.
        product: the outermost product around it whose other factor depends on the network input, or None.
    """

    var: int
    axes: tuple[int, ...]
    around: tuple[tuple[int, tuple[int, ...], int], ...] = ()
    product: int | None = None

    def instead(self, var: int, axes: Iterable[int]) -> "_Term":
        """Returns the term of an operand that its variable is a copy of, or the sum along some axes."""
        return self._replace(var=var, axes=tuple(axes))

    def within(self, var: int, axes: Iterable[int], number: int = 0) -> "_Term":
        """Returns the term of an operand that its variable is a linear map of."""
        return self._replace(var=var, axes=tuple(axes), around=(*self.around, (self.var, self.axes, number)))

    def own_mark(self, number: int) -> int:
        """Returns a mark for an axis that only the next map around knows of."""
        return _OTHER - _MOST_AXES * len(self.around) - number

    @property
    def outermost(self) -> int:
        """The variable that varies with the network input if the term does."""
        return self.var if self.product is None else self.product


_Parts = list[tuple[_Term, Fraction]]


class Sums:
    """Finds the variables that a sum is made of, through sums of sums, multiples by constants, and sums along axes."""

    def __init__(self, program: Program, static: Container[int] = ()):
        """Looks through the equations once.

        Args:
            program: the program.
            static: variables that do not depend on the network input.
        """
        self._program = program
        self._static = static
        self._addends: dict[int, list[tuple[int, Fraction]]] = {}
        self._takes_away: set[int] = set()
        self._position = {var: place for place, eqn in enumerate(program.equations) for var in eqn.outputs}
        for eqn in program.equations:
            if (addends := _addends(eqn)) is not None:
                (result,) = eqn.outputs
                self._addends[result] = addends
                data = [(var, weight) for var, weight in addends if var not in static]
                if any(weight < 0 or var in self._takes_away for var, weight in data):
                    self._takes_away.add(result)
            if eqn.primitive in _LINEAR and not self._takes_away.isdisjoint(_variables(eqn)):
                self._takes_away.update(eqn.outputs)

    def remainder(self, result: int) -> list[int] | None:
        """Returns the variables that a sum is made of if it takes away again any that it adds, otherwise None.

        Variables that do not depend on the network input are left out.

        Args:
            result: variable that holds the sum.
        """
        if result not in self._takes_away:
            return None
        whole = _Term(result, self._marked(result, tuple(range(self._rank(result)))))
        weights = {whole: Fraction(1)}
        numbers = count()
        pending = [(-self._position[result], next(numbers), whole)]
        met: dict[int, None] = {}
        found: dict[int, None] = {}
        while pending:
            *_, term = heapq.heappop(pending)
            weight = weights.pop(term)
            met.setdefault(term.outermost)
            if weight == 0 or (term.var in self._static and term.product is None):
                continue
            if (parts := self._expanded(term)) is None:
                found.setdefault(term.outermost)
                continue
            if term.product is None:
                met.pop(term.var, None)
            for part, factor in parts:
                part = part._replace(axes=self._marked(part.var, part.axes))
                if part not in weights:
                    # What is no result of an equation comes last.
                    heapq.heappush(pending, (-self._position.get(part.var, -1), next(numbers), part))
                weights[part] = weights.get(part, Fraction(0)) + weight * factor
        gone = [var for var in met if var not in found and var not in self._static]
        return list(found) if gone else None

    def _expanded(self, term: _Term) -> _Parts | None:
        """Returns the terms that a term is the weighted sum of, or None if it is none that is understood."""
        if term.var not in self._position:
            return None
        eqn = self._program.equations[self._position[term.var]]
        if term.product is not None and _adds_constant(eqn):
            return None
        if term.var in self._addends:
            return [self._addend(term, var, weight) for var, weight in self._addends[term.var]]
        if eqn.primitive == "reduce_sum":
            return self._reduction(eqn, term)
        if eqn.primitive == "broadcast_in_dim":
            return self._broadcast(eqn, term)
        if eqn.primitive not in _LINEAR or _SUMMED not in term.axes:
            return None
        match eqn.primitive:
            case "transpose":
                return _one(eqn, term.instead, (term.axes[axis] for axis in np.argsort(eqn.params["permutation"])))
            case "concatenate":
                return self._concatenation(eqn, term)
            case "pad" | "slice" | "split":
                return self._part(eqn, term)
            case "mul" | "div":
                return self._product(eqn, term)
            case "dot_general":
                return self._contraction(eqn, term)
            case "conv_general_dilated":
                return self._pointwise_convolution(eqn, term)
        return self._reshape(eqn, term)

    def _addend(self, term: _Term, var: int, weight: Fraction) -> tuple[_Term, Fraction]:
        """One operand of a weighted sum, which may have no axes, or axes of length 1 that are repeated."""
        before, after = (self._program.avals[each].shape for each in (var, term.var))
        repeated = [not before or n != after[axis] for axis, n in enumerate(before or after)]
        repeats = prod(n for n, mark, more in zip(after, term.axes, repeated, strict=True) if more and mark == _SUMMED)
        axes = (_UNIT if more else mark for more, mark in zip(repeated, term.axes, strict=True))
        return term.instead(var, axes if before else ()), weight * repeats

    def _reduction(self, eqn: Equation, term: _Term) -> _Parts:
        kept = iter(term.axes)
        rank = len(eqn.in_avals[0].shape)
        return _one(eqn, term.instead, (_SUMMED if axis in eqn.params["axes"] else next(kept) for axis in range(rank)))

    def _broadcast(self, eqn: Equation, term: _Term) -> _Parts:
        """A sum along an axis that the operand is repeated along is a multiple of it."""
        before, after = (aval.shape for aval in (eqn.in_avals[0], eqn.out_avals[0]))
        own = {axis: n for axis, n in zip(eqn.params["broadcast_dimensions"], before, strict=True) if n == after[axis]}
        repeats = prod(n for axis, n in enumerate(after) if axis not in own and term.axes[axis] == _SUMMED)
        axes = (term.axes[axis] if axis in own else _UNIT for axis in eqn.params["broadcast_dimensions"])
        return _one(eqn, term.instead, axes, repeats)

    def _reshape(self, eqn: Equation, term: _Term) -> _Parts | None:
        """Axes that are summed along may be divided and merged; all others only hold what they held, elsewhere."""
        before, after = (aval.shape for aval in (eqn.in_avals[0], eqn.out_avals[0]))
        axes: list[int] = []
        moved = False
        for old, new in _matched(before, after):
            marks = [term.axes[axis] for axis in new]
            if len(old) == len(new) == 1:
                axes += marks
            elif all(mark in (_SUMMED, _UNIT) for mark in marks):
                axes += [_SUMMED] * len(old)
            elif _SUMMED in marks:
                return None
            else:
                moved = True
                axes += [term.own_mark(axis) for axis in old]
        return _one(eqn, term.within if moved else term.instead, axes)

    def _part(self, eqn: Equation, term: _Term) -> _Parts | None:
        """A part of an array, or an array with a constant around it, if the axes of a sum are taken whole."""
        before, after = eqn.in_avals[0].shape, self._program.avals[term.var].shape
        changed = [n != m for n, m in zip(before, after, strict=True)]
        if eqn.primitive == "pad":
            cut = [min(low, high) < 0 for low, high, _ in eqn.params["padding_config"]]
            # Constants have been seen to be zero where that matters.
            if not (self._is_static(eqn.inputs[1]) if term.product is None else isinstance(eqn.inputs[1], Literal)):
                return None
        else:
            cut = changed
        if any(less and mark == _SUMMED for less, mark in zip(cut, term.axes, strict=True)):
            return None
        axes = (
            term.own_mark(axis) if moved and mark != _SUMMED else mark
            for axis, (moved, mark) in enumerate(zip(changed, term.axes, strict=True))
        )
        return _one(eqn, term.within, axes)

    def _concatenation(self, eqn: Equation, term: _Term) -> _Parts:
        axis = eqn.params["dimension"]
        operands = [(number, var) for number, var in enumerate(eqn.inputs) if isinstance(var, int)]
        if term.axes[axis] == _SUMMED:
            return [(term.instead(var, term.axes), Fraction(1)) for _, var in operands]
        axes = [term.own_mark(axis) if place == axis else mark for place, mark in enumerate(term.axes)]
        return [(term.within(var, axes, number), Fraction(1)) for number, var in operands]

    def _product(self, eqn: Equation, term: _Term) -> _Parts | None:
        """A factor that is the same all along an axis of a sum is taken out of it."""
        for place in (0, 1) if eqn.primitive == "mul" else (0,):
            var, other = eqn.inputs[place], eqn.inputs[1 - place]
            if not isinstance(var, int) or var not in self._takes_away or not self._has_shape_of(var, term.var):
                continue
            axes = tuple(
                term.own_mark(axis) if mark == _SUMMED and not self._is_uniform(other, axis) else mark
                for axis, mark in enumerate(term.axes)
            )
            if _SUMMED in axes:
                inner = term.within(var, axes)
                if not self._is_static(other):
                    inner = inner._replace(product=term.outermost)
                return [(inner, Fraction(1))]
        return None

    def _contraction(self, eqn: Equation, term: _Term) -> _Parts | None:
        """A sum over places before a dense layer gives the same as after it."""
        place = 1 if self._is_static(eqn.inputs[0]) else 0
        var, other = eqn.inputs[place], eqn.inputs[1 - place]
        if not isinstance(var, int) or not self._is_static(other):
            return None
        contracted, batch = (axes[place] for axes in eqn.params["dimension_numbers"])
        rank = len(eqn.in_avals[place].shape)
        num_free = rank - len(contracted) - len(batch)
        first = len(batch) if place == 0 else len(term.axes) - num_free
        free = iter(term.axes[first : first + num_free])
        if _SUMMED in (*term.axes[:first], *term.axes[first + num_free :]):
            return None
        axes = (
            term.own_mark(axis) if axis in contracted else term.axes[batch.index(axis)] if axis in batch else next(free)
            for axis in range(rank)
        )
        return [(term.within(var, axes), Fraction(1))]

    def _pointwise_convolution(self, eqn: Equation, term: _Term) -> _Parts | None:
        """The same for a convolution that looks at one place at a time."""
        var, kernel = eqn.inputs
        numbers = eqn.params["dimension_numbers"]
        (examples, features, *places), (_, kernel_features, *window) = numbers.lhs_spec, numbers.rhs_spec
        result_examples, channels, *results = numbers.out_spec
        before, size, after = (aval.shape for aval in (*eqn.in_avals, *eqn.out_avals))
        pointwise = all(size[axis] == 1 for axis in window) and not np.any(eqn.params["padding"])
        same_places = [before[axis] for axis in places] == [after[axis] for axis in results]
        plain = before[features] == size[kernel_features] and eqn.params["batch_group_count"] == 1
        known = isinstance(var, int) and self._is_static(kernel) and term.axes[channels] != _SUMMED
        if not (pointwise and same_places and plain and known):
            return None
        axes = [term.own_mark(0)] * len(term.axes)
        for own, result in zip((examples, *places), (result_examples, *results), strict=True):
            axes[own] = term.axes[result]
        return _one(eqn, term.within, axes)

    def _is_uniform(self, atom: Atom, axis: int) -> bool:
        return isinstance(atom, Literal) or not self._rank(atom) or axis in self._uniform[atom]

    def _has_shape_of(self, var: int, other: int) -> bool:
        return self._program.avals[var].shape == self._program.avals[other].shape

    def _is_static(self, atom: Atom) -> bool:
        return isinstance(atom, Literal) or atom in self._static

    def _rank(self, var: int) -> int:
        return len(self._program.avals[var].shape)

    def _marked(self, var: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes with those marked along which there is nothing to sum.

        The others of length 1 are not: as many examples as a network is traced with, it will not always be called with.
        """
        shape = self._program.avals[var].shape
        return tuple(_UNIT if n == 1 and mark == _SUMMED else mark for n, mark in zip(shape, axes, strict=True))

    @cached_property
    def _uniform(self) -> dict[int, frozenset[int]]:
        """For each variable the axes along which its entries are equal, as far as broadcasts show it."""
        uniform = {
            var: frozenset(axis for axis, n in enumerate(aval.shape) if n == 1)
            for var, aval in self._program.avals.items()
        }
        for eqn in self._program.equations:
            operands = [(uniform[var], len(self._program.avals[var].shape)) for var in _variables(eqn)]
            if eqn.primitive == "broadcast_in_dim" and operands:
                after, places = eqn.out_avals[0].shape, eqn.params["broadcast_dimensions"]
                own = {place for axis, place in enumerate(places) if axis not in operands[0][0]}
                uniform[eqn.outputs[0]] = frozenset(set(range(len(after))) - own)
            elif isinstance(rule_for(eqn.primitive), Elementwise) and operands:
                everywhere = [axes for axes, rank in operands if rank]
                uniform[eqn.outputs[0]] |= frozenset.intersection(*everywhere) if everywhere else frozenset()
        return uniform


def _one(eqn: Equation, make: Callable[[int, Iterable[int]], _Term], axes: Iterable[int], weight: int = 1) -> _Parts:
    """Returns the term of the first operand; a constant has none."""
    operand = eqn.inputs[0]
    return [(make(operand, axes), Fraction(weight))] if isinstance(operand, int) else []


def _adds_constant(eqn: Equation) -> bool:
    """Tells whether anything in a result stands there whatever its operands are."""
    factors = ("mul", "div", "dot_general", "conv_general_dilated")
    constants = [np.asarray(atom.value) for atom in eqn.inputs if isinstance(atom, Literal)]
    return eqn.primitive not in factors and any(np.any(value != 0) for value in constants)


def _matched(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yields the axes of two shapes of one size in runs, as short as can be, that hold the same number of entries."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        if before[i : i + 1] == after[j : j + 1]:
            i, j = i + 1, j + 1
            yield range(first, i), range(second, j)
            continue
        old = new = 1
        while old != new or (i, j) == (first, second):
            if j == len(after) or (old <= new and i < len(before)):
                old, i = old * before[i], i + 1
            else:
                new, j = new * after[j], j + 1
        yield range(first, i), range(second, j)


def _variables(eqn: Equation) -> list[int]:
    return [atom for atom in eqn.inputs if isinstance(atom, int)]


def _addends(eqn: Equation) -> list[tuple[int, Fraction]] | None:
    """Returns the operands of a weighted sum of real numbers and their weights, constants left out."""
    if len(eqn.outputs) != 1 or not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in (*eqn.in_avals, *eqn.out_avals)):
        return None
    if eqn.primitive in _SIGNS:
        weights = [Fraction(sign) for sign in _SIGNS[eqn.primitive]]
    elif eqn.primitive in _SAME:
        weights = [Fraction(1)]
    elif eqn.primitive == "neg":
        weights = [Fraction(-1)]
    elif eqn.primitive == "mul" and len(factors := _factors(eqn)) == 1:
        weights = factors * 2
    elif eqn.primitive == "div" and isinstance(eqn.inputs[1], Literal) and (factors := _factors(eqn)) and factors[0]:
        weights = [1 / factors[0]]
    else:
        return None
    # An operand may stand twice in a sum.
    pairs = zip(eqn.inputs, weights, strict=False)
    return [(atom, weight) for atom, weight in pairs if isinstance(atom, int)]


def _factors(eqn: Equation) -> list[Fraction]:
    """Returns the finite real constants among the operands."""
    values = [np.asarray(atom.value) for atom in eqn.inputs if isinstance(atom, Literal)]
    return [Fraction(float(v)) for v in values if np.isrealobj(v) and np.ndim(v) == 0 and np.isfinite(v)]
