"""Multiply-adds of equations and programs."""

import math
from collections.abc import Sequence

import numpy as np

from jasgnas.program.jaxpr import Equation, Program


def equation_macs(eqn: Equation) -> int:
    """Returns the multiply-adds of one equation: those of contractions; everything else counts as none.

    Of the branches of a `cond` or `switch` the largest counts; a `scan` as often as it runs; a `while` loop, of which
    nobody knows how often it runs, as none: see `has_uncounted_loop`.
    """
    return eqn.repeats * _single_macs(eqn)


def _single_macs(eqn: Equation) -> int:
    match eqn.primitive:
        case "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.in_avals[0].shape[axis] for axis in summed)
            return _real_products(eqn) * math.prod(eqn.out_avals[0].shape) * depth
        case "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            kernel = eqn.in_avals[1].shape
            window = math.prod(kernel) // max(kernel[numbers.rhs_spec[0]], 1)
            # A transposed convolution meets only the entries between the zeros it is dilated with.
            total = math.prod(eqn.out_avals[0].shape) * window // math.prod(eqn.params["lhs_dilation"])
            return _real_products(eqn) * total
        case "cond":
            return max(map(program_macs, eqn.inner))
        case "scan":
            return eqn.params["length"] * sum(map(program_macs, eqn.inner))
    return 0


def _real_products(eqn: Equation) -> int:
    """Returns the real products in the product of two entries: a complex one has four."""
    return math.prod(2 if np.issubdtype(aval.dtype, np.complexfloating) else 1 for aval in eqn.in_avals)


def program_macs(program: Program, constant: Sequence[bool] = ()) -> int:
    """Returns the multiply-adds of one evaluation of a program, calls included.

    What is computed from constants alone is computed once, when the program is compiled, and does not count.

    Args:
        program: the program.
        constant: for each of its inputs, whether it is a constant; none is by default.
    """
    known = {*program.constants, *(var for var, fixed in zip(program.inputs, constant, strict=False) if fixed)}
    total = 0
    for eqn in program.equations:
        fixed = [not isinstance(atom, int) or atom in known for atom in eqn.inputs]
        if all(fixed):
            known.update(eqn.outputs)
        elif eqn.body is not None:
            total += program_macs(eqn.body, fixed)
        else:
            total += equation_macs(eqn)
    return total


def has_uncounted_loop(program: Program) -> bool:
    """Tells whether a `while` loop in a program has multiply-adds, none of which are counted."""
    for eqn in program.equations:
        inner = eqn.inner
        if (eqn.primitive == "while" and any(map(program_macs, inner))) or any(map(has_uncounted_loop, inner)):
            return True
    return False
