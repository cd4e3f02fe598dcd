"""Sums that take away again what they add: x + (q − x) varies with q only, whatever x is.

Seen addend by addend, a straight-through estimator, `x + stop_gradient(q - x)`, would seem to depend on the network
input even where q, which replaces x, is gone. The same happens where a sum runs along axes, as behind an instance norm:

    deviation = image - mean(image, places)
    normed = deviation / sqrt(mean(square(deviation), places) + epsilon) * scale + bias
    logits = mean(concatenate([normed, other]) @ kernel, places)

Of `normed` the logits hold `bias` alone, the same for every image. A sum over places is the same before the dense layer
as after it; it is that of both parts that are concatenated; factors which are the same at all places are taken out of
it; and the sum of `deviation` is the sum of the image less as many times its mean, which is nothing. So the logits
depend on `other` only, and only while the kernel is there.

Followed are sums, multiples by constants, sums along axes, reshapes, and such linear maps as treat all indices of the
summed axes alike: concatenations, parts, padding of other axes, factors, dense layers. That is the limit: what a
nonlinear function, a convolution, padding of the summed axes, or a factor that differs from place to place has been
applied to is an addend like any other, and so is each of two linear maps of which one takes away what the other adds,
such as two dense layers with one kernel. Where nothing is found, validity is judged addend by addend.
"""

import heapq
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jasgnas.program.jaxpr import Atom, Equation, Literal, Program
from jasgnas.rules import rule_for
from jasgnas.rules.base import PassThrough
from jasgnas.rules.shape import matched_axes

_SAME = ("convert_element_type", "copy", "name", "optimization_barrier", "reduce_precision", "stop_gradient")
_ALONG_AXES = ("reduce_sum", "broadcast_in_dim", "transpose")
# The weights of the operands of a sum.
_WEIGHTS = {
    **{"add": (1, 1), "add_any": (1, 1), "sub": (1, -1), "neg": (-1,)},
    **dict.fromkeys((*_SAME, *_ALONG_AXES), (1,)),
}
_RESHAPES = ("reshape", "squeeze")
_PRODUCTS = ("mul", "div", "dot_general")
_MAPS = (*_RESHAPES, *_PRODUCTS, "concatenate", "pad", "slice", "split")
# More ways through linear maps into one sum are not told apart.
_MOST_WAYS = 64


class _Term(NamedTuple):
    """A variable, summed along some of its axes.

    Attributes:
        var: the variable.
        axes: for each of its axes the axis of the whole that it lies along, None if it is summed along. The whole is
            the variable asked about, or an operand of a linear map; only terms of the same whole can cancel.
        product: the outermost product around it whose other factor depends on the network input, or None.
    """

    var: int
    axes: tuple[int | None, ...]
    product: int | None = None

    @property
    def outermost(self) -> int:
        """The variable that varies with the network input if the term does."""
        return self.var if self.product is None else self.product


class Addend(NamedTuple):
    """A variable that a sum is made of.

    Attributes:
        var: the variable.
        maps: the results of linear maps that it reaches the sum through: without one of them it is not there.
    """

    var: int
    maps: tuple[int, ...] = ()


@dataclass
class _Whole:
    """What a whole is made of.

    Attributes:
        left: the addends.
        maps: those that are linear maps, with their operands.
        gone: variables that are added and taken away again.
    """

    left: dict[Addend, None] = field(default_factory=dict)
    maps: dict[_Term, list[_Term]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    @property
    def cancels(self) -> bool:
        """Tells whether anything is gone."""
        return not self.gone <= {left.var for left in self.left}


class Sums:
    """Finds the variables that a sum is made of."""

    def __init__(self, program: Program, independent: Container[int] = ()):
        """Looks through the equations once.

        Args:
            program: the program.
            independent: variables that do not depend on the network input.
        """
        self._program = program
        self._independent = independent
        equations = enumerate(program.equations)
        self._position: dict[Atom, int] = {var: place for place, eqn in equations for var in eqn.outputs}
        self._takes_away: set[int] = set()
        for eqn in program.equations:
            weights = _weights(eqn)
            data = [place for place, atom in enumerate(eqn.inputs) if not self._is_independent(atom)]
            if (weights is not None and any(weights[place] < 0 for place in data)) or (
                (weights is not None or eqn.primitive in _MAPS)
                and any(eqn.inputs[place] in self._takes_away for place in data)
            ):
                self._takes_away.update(eqn.outputs)
        # What is computed from the network input and never varies with it, among the results of the first equations.
        self._constant: set[int] = set()
        self._num_judged = 0

    def remainder(self, result: int) -> list[Addend] | None:
        """Returns what a sum is made of if it takes away again any that it adds, otherwise None.

        Variables that do not depend on the network input are left out.

        Args:
            result: variable that holds the sum.
        """
        if result not in self._takes_away:
            return None
        top = _Term(result, tuple(range(self._rank(result))))
        wholes = {top: self._combined(top)}
        pending = [top]
        while pending:
            for operands in wholes[pending.pop()].maps.values():
                new = [operand for operand in operands if operand not in wholes]
                wholes |= {operand: self._combined(operand) for operand in new}
                pending += new
        # An operand's turn is before that of the map that it is an operand of.
        for whole in sorted(wholes, key=lambda term: self._position.get(term.var, -1)):
            self._look_into_maps(wholes, whole)
        return list(wholes[top].left) if wholes[top].cancels else None

    def _combined(self, whole: _Term) -> _Whole:
        """Returns what a whole is made of, without looking into linear maps."""
        found = _Whole()
        # A variable's turn is before all that it is computed from: the weights of its terms are complete then.
        weights = {whole.var: {whole: Fraction(1)}}
        pending = [(-self._position.get(whole.var, -1), whole.var)]
        while pending:
            _, var = heapq.heappop(pending)
            for term, weight in weights.pop(var).items():
                if term.outermost in self._independent:
                    continue
                if weight == 0:
                    found.gone.add(term.outermost)
                elif (addends := self._addends(term)) is not None:
                    for addend, factor in addends:
                        if addend.var not in weights:
                            heapq.heappush(pending, (-self._position.get(addend.var, -1), addend.var))
                        known = weights.setdefault(addend.var, {})
                        known[addend] = known.get(addend, Fraction(0)) + weight * factor
                elif operands := self._operands(term):
                    found.maps[term] = operands
                else:
                    found.left[Addend(term.outermost)] = None
        return found

    def _look_into_maps(self, wholes: Mapping[_Term, _Whole], whole: _Term) -> None:
        """Adds to what is left of a whole what is left of its linear maps' operands, where anything of these goes."""
        found = wholes[whole]
        for term, operands in found.maps.items():
            inner = [wholes[operand] for operand in operands]
            if any(each.cancels for each in inner):
                for each in inner:
                    found.gone |= each.gone
                    found.left |= {left._replace(maps=(term.var, *left.maps)): None for left in each.left}
            else:
                found.left[Addend(term.outermost)] = None
        if len(found.left) > _MOST_WAYS:
            # Then a variable counts only while all are there that it may come through: in doubt a set is not valid.
            through: dict[int, dict[int, None]] = {}
            for left in found.left:
                through.setdefault(left.var, {}).update(dict.fromkeys(left.maps))
            found.left = {Addend(var, tuple(maps)): None for var, maps in through.items()}

    def _addends(self, term: _Term) -> list[tuple[_Term, Fraction]] | None:
        """Returns the terms of the same whole that a term is the weighted sum of, or None if it is no such sum."""
        if (eqn := self._equation(term)) is None:
            return None
        if (weights := _weights(eqn)) is not None:
            shape = self._program.avals[term.var].shape
            addends = zip(eqn.inputs, _places(eqn, shape), weights, strict=False)
            return [_addend(term, shape, var, places, n) for var, places, n in addends if isinstance(var, int)]
        if eqn.primitive in _RESHAPES and (axes := _reshaped(eqn, term.axes)) is not None:
            return [(term._replace(var=var, axes=axes), Fraction(1)) for var in eqn.inputs if isinstance(var, int)]
        return None

    def _operands(self, term: _Term) -> list[_Term]:
        """Returns the operands of a linear map, with the sum taken before the map as far as it is the same there."""
        eqn = self._equation(term)
        summed = [axis for axis, place in enumerate(term.axes) if place is None]
        if eqn is None or not summed or term.var not in self._takes_away:
            return []
        operands = _summed_before(eqn, self._program.avals[term.var].shape, summed)
        terms = []
        for number, along in operands if operands[0][1] else ():
            if isinstance(var := eqn.inputs[number], int):
                is_constant = eqn.primitive not in _PRODUCTS or self._never_varies(eqn.inputs[1 - number])
                axes = tuple(None if axis in along else axis for axis in range(self._rank(var)))
                terms.append(_Term(var, axes, term.product if is_constant else term.outermost))
        return terms

    def _equation(self, term: _Term) -> Equation | None:
        """Returns the equation of a term if that adds no constant inside a product, where it is no constant."""
        if term.var not in self._position:
            return None
        eqn = self._program.equations[self._position[term.var]]
        return None if term.product is not None and _adds_constant(eqn) else eqn

    def _is_independent(self, atom: Atom) -> bool:
        return isinstance(atom, Literal) or atom in self._independent

    def _never_varies(self, atom: Atom) -> bool:
        """Tells whether an atom is the same for every input: such sums along axes of which nothing is left, too."""
        while self._num_judged <= self._position.get(atom, -1):
            eqn = self._program.equations[self._num_judged]
            self._num_judged += 1
            if not all(map(self._is_independent, eqn.inputs)) and (
                all(map(self._never_varies, eqn.inputs))
                or (eqn.primitive == "reduce_sum" and self.remainder(eqn.outputs[0]) == [])
            ):
                self._constant.update(eqn.outputs)
        return self._is_independent(atom) or atom in self._constant

    def _rank(self, var: int) -> int:
        return len(self._program.avals[var].shape)


def _weights(eqn: Equation) -> Sequence[Fraction | int] | None:
    """Returns the weights of the operands that a result is the sum of, or None if it is none of real numbers."""
    if len(eqn.outputs) != 1 or not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in (*eqn.in_avals, *eqn.out_avals)):
        return None
    match eqn.primitive:
        case "mul" if len(factors := _factors(eqn)) == 1:
            return factors * 2
        case "div" if isinstance(eqn.inputs[1], Literal) and (factors := _factors(eqn)) and factors[0]:
            return [1 / factors[0]]
    return _WEIGHTS.get(eqn.primitive)


def _factors(eqn: Equation) -> list[Fraction]:
    """Returns the finite real constants among the operands."""
    values = [np.asarray(atom.value) for atom in eqn.inputs if isinstance(atom, Literal)]
    return [Fraction(float(v)) for v in values if np.isrealobj(v) and np.ndim(v) == 0 and np.isfinite(v)]


def _places(eqn: Equation, shape: Sequence[int]) -> Sequence[Sequence[int | None]]:
    """Returns for each operand the axis of a result of this shape that each of its axes is; None if it is none."""
    if isinstance(rule := rule_for(eqn.primitive), PassThrough):
        return rule.destinations(eqn)
    return [[axis if n == shape[axis] else None for axis, n in enumerate(aval.shape)] for aval in eqn.in_avals]


def _addend(
    term: _Term, shape: Sequence[int], var: int, places: Sequence[int | None], weight: Fraction | int
) -> tuple[_Term, Fraction]:
    """Returns the term of an operand of a weighted sum of this shape; its other axes are summed along, or repeated."""
    repeats = prod(n for axis, n in enumerate(shape) if axis not in places and term.axes[axis] is None)
    axes = tuple(None if place is None else term.axes[place] for place in places)
    return term._replace(var=var, axes=axes), Fraction(weight * repeats)


def _adds_constant(eqn: Equation) -> bool:
    """Tells whether anything in a result stands there whatever its operands are."""
    constants = [np.asarray(atom.value) for atom in eqn.inputs if isinstance(atom, Literal)]
    return eqn.primitive not in _PRODUCTS and any(np.any(value != 0) for value in constants)


def _reshaped(eqn: Equation, axes: Sequence[int | None]) -> tuple[int | None, ...] | None:
    """Returns the axes of a reshape's operand, or None if others than those that are summed along change."""
    before: list[int | None] = [None] * len(eqn.in_avals[0].shape)
    for sources, targets in matched_axes(eqn.in_avals[0].shape, eqn.out_avals[0].shape):
        if len(sources) == len(targets) == 1:
            before[sources[0]] = axes[targets[0]]
        elif any(axes[target] is not None for target in targets):
            return None
    return tuple(before)


def _summed_before(eqn: Equation, shape: Sequence[int], summed: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    """Returns the operands of a linear map, by number, with those of their axes along which they may be summed before.

    `shape` is that of the result, `summed` are its axes that are summed along after the map.
    """
    before = [aval.shape for aval in eqn.in_avals]
    match eqn.primitive:
        case "concatenate":
            return [(number, summed) for number in range(len(before))]
        case "reshape" | "squeeze":
            runs = matched_axes(before[0], shape)
            return [(0, [axis for sources, targets in runs if {*targets} <= {*summed} for axis in sources])]
        case "mul" | "div":
            # A factor that is the same all along an axis is taken out of the sum.
            uniform = [[axis for axis in summed if not sizes or sizes[axis] == 1] for sizes in before]
            sides = [(0, uniform[1]), (1, uniform[0])][: 1 if eqn.primitive == "div" else 2]
        case "dot_general":
            # The result has the axes of a batch, then those of either side that are not contracted.
            contracted, batch = eqn.params["dimension_numbers"]
            first, sides = len(batch[0]), []
            for side, sizes in enumerate(before):
                free = [axis for axis in range(len(sizes)) if axis not in (*contracted[side], *batch[side])]
                sides.append((side, [axis for place, axis in enumerate(free, first) if place in summed]))
                first += len(free)
        case _:
            # A part has some axes whole, and so has what is padded; what that is padded with is a single entry.
            whole = [axis for axis in summed if axis in _places(eqn, shape)[0]]
            return [(0, whole), *((number, ()) for number in range(1, len(before)))]
    return [max(sides, key=lambda side: len(side[1]))]
