"""Whether two ways of computing something agree: by their equations, and where these differ, by what they compute."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jasgnas.program.jaxpr import Atom, Literal, Program, aval_of, inline, trace
from jasgnas.source.examples import example
from jasgnas.source.expression import NAMESPACE, Expression, is_same, literal_value, run_equations
from jasgnas.source.flow import IDENTITIES


@dataclass(eq=False)
class Judge:
    """Compares programs with equations of a network.

    Attributes:
        symbols: the symbolic sizes of the network, by name.
        sizes: numbers for them, to compute examples with.
    """

    symbols: Mapping[str, Any]
    sizes: dict[str, int]
    _forms: dict[Any, int] = field(default_factory=dict)
    _known: dict[Any, bool] = field(default_factory=dict)

    def agrees(
        self,
        expected: Program,
        found: Program,
        *,
        compute: bool = True,
        spread: float = 0.0,
        whole: int = 3,
        positive: Sequence[int] = (),
    ) -> bool:
        """Tells whether two programs compute the same.

        Args:
            expected: one program, such as a part of a network.
            found: another one, whose inputs have the shapes and dtypes of the first one's.
            compute: whether to compute both where their equations differ.
            spread: see `example`.
            whole: see `example`.
            positive: positions of inputs that are positive numbers.
        """
        if list(map(partial(_form, expected), expected.outputs)) != list(map(partial(_form, found), found.outputs)):
            return False
        roots = [self._intern((_form(expected, var), position)) for position, var in enumerate(expected.inputs)]
        key = self._forms_of(expected, roots), self._forms_of(found, roots)
        if key[0] == key[1]:
            return True
        if key not in self._known and not compute:
            return False
        if key not in self._known:
            values = [
                example(expected.avals[var], position, self.sizes, spread=spread, whole=whole)
                for position, var in enumerate(expected.inputs)
            ]
            values = [abs(value) + 0.5 if position in positive else value for position, value in enumerate(values)]
            self._known[key] = self._computes_same(expected, found, values)
        return self._known[key]

    def program_of(self, expression: Expression, avals: Sequence[Any]) -> Program | None:
        """Returns an expression as a program; None if it does not fit its operands."""
        places = [f"_{position}" for position in range(len(avals))]
        text = expression.format(places, {name: f"_{name}" for name in self.symbols})
        names = {f"_{name}": symbol for name, symbol in self.symbols.items()}

        def run(*operands: Any) -> Any:
            return eval(text, NAMESPACE | names | dict(zip(places, operands, strict=True)))

        return self.traced(run, avals)

    def traced(self, run: Callable[..., Any], avals: Sequence[Any]) -> Program | None:
        """Returns a function as a program; None if it does not fit its operands."""
        try:
            return inline(trace(lambda *operands: jax.tree.leaves(run(*operands)), *avals))
        except (NameError, SyntaxError):
            raise  # no proposal of ours is to be so: a mistake here, and none of the network
        except Exception:
            # Proposals are tried on operands that they may not fit. What JAX, NumPy and Flax raise then is of every
            # class, plain `Exception` and `AssertionError` among them; one that cannot be traced is not what was
            # looked for, and another is tried, down to the plain way, which fails with a `SourceError`.
            return None

    def _intern(self, key: Any) -> int:
        return self._forms.setdefault(key, len(self._forms))

    def _forms_of(self, program: Program, roots: Sequence[int]) -> tuple[int, ...]:
        """Returns a number for each output that is the same for what is computed in the same way."""
        forms = dict(zip(program.inputs, roots, strict=True))

        def of(atom: Atom) -> int:
            if isinstance(atom, Literal):
                return self._intern(("literal", str(atom.value), str(atom.aval.dtype)))
            if atom not in forms:
                value = program.constants[atom]
                forms[atom] = self._intern(("constant", str(value.dtype), value.shape, np.asarray(value).tobytes()))
            return forms[atom]

        for eqn in program.equations:
            if eqn.primitive in IDENTITIES:
                forms[eqn.outputs[0]] = of(eqn.inputs[0])
                continue
            params = tuple((name, _normal(value)) for name, value in sorted(eqn.params.items()) if name not in _IDLE)
            key = (eqn.primitive, params, tuple(map(of, eqn.inputs)))
            for index, var in enumerate(eqn.outputs):
                forms[var] = self._intern((key, index))
        return tuple(map(of, program.outputs))

    def _computes_same(self, expected: Program, found: Program, values: Sequence[Any]) -> bool:
        with _quick_compilation():
            try:
                results = [_results(program, values, self.sizes) for program in (expected, found)]
            except ZeroDivisionError:
                return False
            return all(map(is_same, results[1], results[0]))


_IDLE = ("sharding", "out_sharding", "accuracy", "precision", "name")
"""Parameters of equations that say nothing of the result."""


def _results(program: Program, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    known = dict(zip(program.inputs, values, strict=True))
    known |= {var: jnp.asarray(value) for var, value in program.constants.items()}
    after = run_equations(program.equations, known, sizes)
    return [literal_value(atom) if isinstance(atom, Literal) else after[atom] for atom in program.outputs]


def _form(program: Program, atom: Atom) -> tuple[str, str]:
    """Returns shape and dtype of a variable or literal, such that equal ones compare equal."""
    aval = aval_of(program, atom)
    return str(tuple(aval.shape)), str(aval.dtype)


def _normal(value: Any) -> Any:
    """Returns a parameter such that equal ones compare equal, whatever kind of number they are made of."""
    if isinstance(value, tuple | list):
        return tuple(map(_normal, value))
    return int(value) if isinstance(value, np.integer) else str(value)


@contextmanager
def _quick_compilation() -> Iterator[None]:
    """Has XLA compile quickly: what is compared is small, and computed once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def symbols_of(call: Any) -> dict[str, Any]:
    """Returns the symbolic sizes of the arrays of a call, by name."""
    sizes = [size for aval in call.avals for size in aval.shape]
    return {str(size): size for size in sizes if isinstance(size, type(export.symbolic_shape("batch")[0]))}
