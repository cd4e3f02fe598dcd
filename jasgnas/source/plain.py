"""Writes every equation that no recogniser has taken as a plain expression, which is compared with it."""

from typing import Any

from jasgnas.errors import SourceError
from jasgnas.program.jaxpr import Equation, Literal
from jasgnas.source.agreement import Judge
from jasgnas.source.expression import ATOM, SIGN, Expression
from jasgnas.source.flow import Flow, Step
from jasgnas.source.primitives import literal_text, written


def write_plainly(judge: Judge, flow: Flow, known: dict[Any, Any]) -> None:
    """Replaces each equation by a step with an expression.

    Args:
        judge: says what agrees.
        flow: the flow.
        known: what was found for equations like these before, filled here.

    Raises:
        SourceError: an equation cannot be written.
    """
    for step in flow.steps:
        if step.equation is not None:
            flow.replace(_written(judge, flow, step.equation, known))


def _written(judge: Judge, flow: Flow, eqn: Equation, known: dict[Any, Any]) -> Step:
    key = (
        eqn.primitive,
        str(eqn.params),
        tuple(str(atom.value) if isinstance(atom, Literal) else "" for atom in eqn.inputs),
        tuple(map(str, (*eqn.in_avals, *eqn.out_avals))),
    )
    if key not in known:
        expression = written(eqn)
        known[key] = (
            expression
            and next((typed for typed in (False, True) if _is_right(judge, flow, eqn, expression, typed)), None),
            expression,
        )
    typed, expression = known[key]
    if expression is None or typed is None:
        what = "no way to write it is known" if expression is None else f"written as {expression.text}, it is another"
        raise SourceError(
            f"the primitive {eqn.primitive} cannot be written as Python source: {what}. It takes "
            f"{', '.join(map(str, eqn.in_avals))} and returns {', '.join(map(str, eqn.out_avals))}. Compute it in "
            "another way, or keep the network as jasgnas.save writes it"
        )
    return Step(eqn.inputs, eqn.outputs, None, with_literals(expression, eqn.inputs, typed))


def operand(atom: Any, typed: bool = False) -> Any:
    """Returns a literal as an expression."""
    text = literal_text(atom.value, atom.aval.dtype, typed=typed)
    return Expression(text, SIGN if text.startswith("-") else ATOM)


def with_literals(expression: Expression, inputs: Any, typed: bool = False) -> Expression:
    """Returns an expression of several operands with literals in their places; the numbers of the others stay."""
    places = [operand(atom, typed) if isinstance(atom, Literal) else f"{{{i}}}" for i, atom in enumerate(inputs)]
    if not any(isinstance(place, Expression) for place in places):
        return expression
    return Expression(expression.format(places, KEPT), expression.level, expression.needs)


KEPT = {name: f"{{{name}}}" for name in ("layer", "batch", *(f"axis{axis}" for axis in range(1, 9)))}
"""Leaves the places of sizes and layers in an expression as they are."""


def _is_right(judge: Judge, flow: Flow, eqn: Equation, expression: Expression, typed: bool) -> bool:
    variables = list(dict.fromkeys(atom for atom in eqn.inputs if isinstance(atom, int)))
    text = with_literals(expression, eqn.inputs, typed)
    places = [f"{{{variables.index(atom)}}}" if isinstance(atom, int) else "" for atom in eqn.inputs]
    program = judge.program_of(Expression(text.format(places, KEPT)), [flow.aval(var) for var in variables])
    return program is not None and judge.agrees(flow.part([eqn], variables, eqn.outputs), program)
