"""Python expressions with places for operands, evaluated and compared with the equations that they stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasgnas.program.jaxpr import Equation, Literal
from jasgnas.source.sizes import concrete, sizes_of

# How tightly an expression binds, from the loosest to the tightest.
COMPARISON, BITWISE, SUM, PRODUCT, SIGN, POWER, ATOM = range(7)

NAMESPACE = {"jax": jax, "jnp": jnp, "nnx": nnx, "np": np}
"""What emitted code may use; the modules it imports."""


@dataclass(frozen=True)
class Expression:
    """A Python expression of some operands.

    Attributes:
        text: the expression in the syntax of `str.format`: `{0}` is the first operand, `{batch}` a size that is not
            known beforehand.
        level: how tightly it binds.
        needs: how tightly each operand has to bind, or go into parentheses; any for what is not said.
    """

    text: str
    level: int = ATOM
    needs: tuple[int, ...] = ()

    def format(self, operands: Sequence["Expression | str"], sizes: Mapping[str, Any]) -> str:
        """Returns the text with operands and sizes in their places."""
        texts = []
        for position, operand in enumerate(operands):
            need = self.needs[position] if position < len(self.needs) else 0
            if isinstance(operand, str):
                texts.append(operand)
            else:
                texts.append(operand.text if operand.level >= need else f"({operand.text})")
        return self.text.format(*texts, **sizes)


def call(function: str, *arguments: str) -> Expression:
    """Returns a call."""
    return Expression(f"{function}({', '.join(filter(None, arguments))})")


def method(text: str) -> Expression:
    """Returns what is asked of the first operand, as `{0}.reshape(3)`."""
    return Expression(text, ATOM, (ATOM,))


def binary(operator: str, level: int) -> Expression:
    """Returns an operator between two operands."""
    left = POWER + 1 if operator == "**" else level if level > BITWISE else level + 1
    right = level if operator == "**" else level + 1
    return Expression(f"{{0}} {operator} {{1}}" if operator != "**" else "{0}**{1}", level, (left, right))


def run_equations(equations: Sequence[Equation], values: dict[int, Any], sizes: Mapping[str, int]) -> dict[int, Any]:
    """Computes equations one after the other; returns the values of all variables."""
    values = dict(values)
    for eqn in equations:
        operands = [literal_value(atom) if isinstance(atom, Literal) else values[atom] for atom in eqn.inputs]
        values.update(zip(eqn.outputs, run_equation(eqn, operands, sizes), strict=True))
    return values


def literal_value(literal: Literal) -> Any:
    """Returns a literal as an array."""
    return jnp.asarray(literal.value, literal.aval.dtype)


def run_equation(eqn: Equation, operands: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """Computes one equation; what is not known of its sizes is given."""
    if eqn.primitive == "dim_as_value":
        return [jnp.asarray(concrete(eqn.params["dim"], sizes), eqn.out_avals[0].dtype)]
    changes = {name: concrete(value, sizes) for name, value in eqn.params.items() if sizes_of(value)}
    return eqn.bind(*operands, **changes)


def is_same(found: Any, expected: Any) -> bool:
    """Tells whether two arrays are equal up to the order of floating-point sums."""
    if not hasattr(found, "dtype") or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if jax.dtypes.issubdtype(expected.dtype, jax.dtypes.prng_key):
        return is_same(jax.random.key_data(found), jax.random.key_data(expected))
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        return bool((found == expected).all())
    wide = jnp.complex128 if jnp.iscomplexobj(expected) else np.float64
    found, expected, eps = np.asarray(found, wide), np.asarray(expected, wide), float(jnp.finfo(expected.dtype).eps)
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return False
    largest = np.max(np.abs(expected[finite]), initial=0)
    return bool(np.max(np.abs(found[finite] - expected[finite]), initial=0) <= _tolerance(eps) * largest)


def _tolerance(eps: float) -> float:
    """Returns the largest difference, relative to the largest entry, by the distance of 1 to the next number."""
    return max(2.0**7 * eps if eps < 1e-5 else 8 * eps, 1e-11 if eps < 1e-14 else 0.0)
