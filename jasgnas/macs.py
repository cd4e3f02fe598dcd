"""Multiply-adds of equations and programs."""

import math
from collections.abc import Sequence

from jasgnas.jaxpr import Equation, Program, from_jaxpr


def equation_macs(eqn: Equation) -> int:
    """Returns the multiply-adds of one equation: those of contractions; everything else counts as none."""
    if eqn.primitive == "dot_general":
        (summed, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.out_avals[0].shape) * math.prod(eqn.in_avals[0].shape[axis] for axis in summed)
    if eqn.primitive == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        kernel = eqn.in_avals[1].shape
        window = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        # A transposed convolution meets only the entries between the zeros it is dilated with.
        return math.prod(eqn.out_avals[0].shape) * window // math.prod(eqn.params["lhs_dilation"])
    return 0


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
        elif eqn.primitive == "scan":
            total += eqn.params["length"] * program_macs(from_jaxpr(eqn.params["jaxpr"]))
        else:
            total += equation_macs(eqn)
    return total
