"""The evaluation of a network with gates on its edges."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from jasgnas.program.jaxpr import Literal, Program
from jasgnas.program.scans import is_step

Factor = Callable[[Any], Any]
"""Multiplies an operand."""

_CUSTOM = ("custom_jvp_call", "custom_vjp_call")


def fixed_numbers(program: Program) -> set[int]:
    """Returns the equations in calls that define a derivative of their own, which nothing can be put into."""
    found: set[int] = set()

    def look(program: Program, first: int, is_fixed: bool) -> int:
        for eqn in program.equations:
            if eqn.body is not None:
                first = look(eqn.body, first, is_fixed or eqn.primitive in _CUSTOM)
                continue
            found.update([first] if is_fixed else [])
            first += 1
        return first

    look(program, 0, False)
    return found


def evaluate_gated(program: Program, values: Iterable[Any], factors: Mapping[tuple[int, int], Factor]) -> Sequence[Any]:
    """Evaluates a nested program with some operands multiplied.

    Calls without any such operand are made as they are, with their names, derivatives and rematerialisation.

    Args:
        program: the program.
        values: its inputs.
        factors: what multiplies operands, by the number of the equation (see `Equation.number`) and of the operand.
    """
    numbers = {number for number, _ in factors}
    return _evaluate(program, values, factors, numbers, 0, {})


def _evaluate(
    program: Program,
    values: Iterable[Any],
    factors: Mapping[tuple[int, int], Factor],
    numbers: Collection[int],
    first: int,
    sizes: dict[int, int],
) -> list[Any]:
    """Evaluates a program whose first equation has the given number."""
    env: dict[int, Any] = dict(zip(program.inputs, values, strict=True)) | program.constants
    for eqn in program.equations:
        operands = [atom.value if isinstance(atom, Literal) else env[atom] for atom in eqn.inputs]
        size = 1 if eqn.body is None else _size(eqn.body, sizes)
        is_opened = is_step(eqn) or any(first <= number < first + size for number in numbers)
        if eqn.body is None:
            results = eqn.bind(
                *(factors[first, place](x) if (first, place) in factors else x for place, x in enumerate(operands))
            )
        elif is_opened:
            run = _opened(eqn.body, factors, numbers, first, sizes)
            if eqn.primitive in _REMATERIALISED:
                run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
            results = run(*operands)
        else:
            results = eqn.bind(*operands)
        env.update(zip(eqn.outputs, results, strict=True))
        first += size
    return [atom.value if isinstance(atom, Literal) else env[atom] for atom in program.outputs]


_REMATERIALISED = ("remat2", "checkpoint")


def _opened(
    body: Program,
    factors: Mapping[tuple[int, int], Factor],
    numbers: Collection[int],
    first: int,
    sizes: dict[int, int],
) -> Callable[..., list[Any]]:
    return lambda *operands: _evaluate(body, operands, factors, numbers, first, sizes)


def _size(program: Program, sizes: dict[int, int]) -> int:
    """Returns how many equations there are in a program, calls opened up."""
    if id(program) not in sizes:
        sizes[id(program)] = sum(1 if eqn.body is None else _size(eqn.body, sizes) for eqn in program.equations)
    return sizes[id(program)]
