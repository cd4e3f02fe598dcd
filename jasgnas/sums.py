"""Sums that take away again what they add: x + (q − x) varies with q only, whatever x is.

A straight-through estimator, `x + stop_gradient(q - x)`, is written like this. Seen addend by addend it would seem to
depend on the network input even if q, which replaces x, is gone.
"""

import heapq
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from jasgnas.jaxpr import Equation, Literal, Program

_SIGNS = {"add": (1, 1), "add_any": (1, 1), "sub": (1, -1)}
_SAME = ("convert_element_type", "copy", "name", "optimization_barrier", "reduce_precision", "stop_gradient")


class Sums:
    """Finds the variables that a sum is made of, through sums of sums and multiples by constants."""

    def __init__(self, program: Program):
        """Looks through the equations once."""
        # The operands of each weighted sum with their weights, and the sums in which anything is taken away.
        self._addends: dict[int, list[tuple[int, Fraction]]] = {}
        self._takes_away: set[int] = set()
        for eqn in program.equations:
            if (addends := _addends(eqn)) is not None:
                (result,) = eqn.outputs
                self._addends[result] = addends
                if any(weight < 0 or var in self._takes_away for var, weight in addends):
                    self._takes_away.add(result)
        self._order = {var: place for place, eqn in enumerate(program.equations) for var in eqn.outputs}

    def remainder(self, result: int) -> list[int] | None:
        """Returns the variables that a sum is made of if it takes away again any that it adds, otherwise None.

        Args:
            result: variable that holds the sum.
        """
        if result not in self._takes_away:
            return None
        weights = {result: Fraction(1)}
        pending = [(-self._order[result], result)]
        cancelled = False
        found = []
        while pending:
            _, var = heapq.heappop(pending)
            weight = weights.pop(var)
            if weight == 0:
                cancelled = True
            elif var not in self._addends:
                found.append(var)
            else:
                for addend, factor in self._addends[var]:
                    if addend not in weights:
                        # What is no result of an equation comes last.
                        heapq.heappush(pending, (-self._order.get(addend, -1), addend))
                    weights[addend] = weights.get(addend, Fraction(0)) + weight * factor
        return found if cancelled else None


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
