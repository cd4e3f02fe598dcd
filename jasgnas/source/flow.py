"""What a network computes, as steps; recognisers replace equations by fewer steps that compute the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jasgnas.program.jaxpr import Atom, Equation, Program, aval_of
from jasgnas.source.expression import Expression

IDENTITIES = ("copy", "copy_p", "device_put", "sharding_constraint", "name", "pvary")
"""Primitives that return their operand."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a computation.

    Attributes:
        inputs: the operands.
        outputs: variables of the results.
        equation: the equation that it is, while nothing else is known.
        expression: the Python expression that computes it.
        layer: path of the layer that the expression calls, as its operand 0; empty for none.
    """

    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    equation: Equation | None = None
    expression: Expression | None = None
    layer: str = ""

    @property
    def variables(self) -> tuple[int, ...]:
        """The operands that are variables."""
        return tuple(atom for atom in self.inputs if isinstance(atom, int))


@dataclass(eq=False)
class Flow:
    """The steps of a network in one mode, each variable made by one of them.

    Attributes:
        program: the program.
        paths: paths of the leaves, by variable.
        sizes: numbers for the sizes that are not known, to compute examples with.
        made_by: the step that makes a variable.
        used_by: the steps that use a variable.
        outputs: what the network returns.
        changed: what arrays of the network become, by path, unless a layer sees to it.
    """

    program: Program
    paths: dict[int, str]
    sizes: dict[str, int]
    made_by: dict[int, Step] = field(default_factory=dict)
    used_by: dict[int, list[Step]] = field(default_factory=dict)
    outputs: tuple[Atom, ...] = ()
    changed: dict[str, Atom] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, paths: Sequence[str], changed: Sequence[str], sizes: dict[str, int]) -> "Flow":
        """Takes the equations of a program, but those that change nothing.

        Args:
            program: the program; its first inputs are leaves, and its last outputs those that it changes.
            paths: paths of the leaves.
            changed: paths of the leaves that are changed.
            sizes: numbers for the sizes that are not known.
        """
        same: dict[int, Atom] = {}

        def read(atom: Atom) -> Atom:
            return same.get(atom, atom) if isinstance(atom, int) else atom

        flow = cls(program, dict(zip(program.inputs, paths, strict=False)), sizes)
        for eqn in program.equations:
            inputs = tuple(map(read, eqn.inputs))
            if eqn.primitive in IDENTITIES and isinstance(inputs[0], int):
                same[eqn.outputs[0]] = inputs[0]
                continue
            eqn = Equation(
                eqn.primitive, eqn.bind, eqn.params, inputs, eqn.outputs, eqn.in_avals, eqn.out_avals, None, eqn.calls
            )
            flow._add(Step(inputs, eqn.outputs, eqn))
        outputs = tuple(map(read, program.outputs))
        number = len(outputs) - len(changed)
        flow.outputs, flow.changed = outputs[:number], dict(zip(changed, outputs[number:], strict=True))
        for step in reversed(flow.steps):
            flow._drop_unused([step])
        return flow

    @property
    def steps(self) -> list[Step]:
        """All steps, in the order of the computation."""
        found = {id(step): step for step in self.made_by.values()}
        return sorted(found.values(), key=lambda step: min(step.outputs))

    def aval(self, atom: Atom) -> Any:
        """Returns shape and dtype of a variable or literal."""
        return aval_of(self.program, atom)

    def part(self, equations: Sequence[Equation], inputs: Sequence[int], outputs: Sequence[Atom]) -> Program:
        """Returns some equations as a program, from some variables to others."""
        return replace(self.program, inputs=tuple(inputs), outputs=tuple(outputs), equations=tuple(equations))

    def is_kept(self, var: int) -> bool:
        """Tells whether a variable is an output, or becomes an array of the network."""
        return var in self.outputs or var in self.changed.values()

    def users(self, var: int) -> list[Step]:
        """Returns the steps that use a variable, in the order of the computation."""
        return sorted(self.used_by.get(var, ()), key=lambda step: min(step.outputs))

    def equation_of(self, atom: Atom) -> Equation | None:
        """Returns the equation that makes a variable, if it is made by one that is not recognised."""
        step = self.made_by.get(atom) if isinstance(atom, int) else None
        return step.equation if step is not None else None

    def between(self, outputs: Iterable[Atom], inputs: Iterable[Atom], most: int = 400) -> list[Equation] | None:
        """Returns the equations that compute variables from others.

        None if they need anything but these, literals and constants, or are more than `most`.
        """
        stops = set(inputs)
        found: dict[int, Equation] = {}
        pending = [atom for atom in outputs if isinstance(atom, int) and atom not in stops]
        while pending:
            var = pending.pop()
            if var in self.program.constants:
                continue
            eqn = self.equation_of(var)
            if eqn is None or len(found) > most:
                return None
            if min(eqn.outputs) not in found:
                found[min(eqn.outputs)] = eqn
                pending += [atom for atom in eqn.inputs if isinstance(atom, int) and atom not in stops]
        return [found[key] for key in sorted(found)]

    def replace(self, step: Step) -> None:
        """Has variables be made by another step, and drops what nothing uses any more."""
        old = {id(made): made for var in step.outputs if (made := self.made_by.get(var)) is not None}
        for var in step.outputs:
            self.made_by[var] = step
        for var in dict.fromkeys(step.variables):
            self.used_by.setdefault(var, []).append(step)
        self._drop_unused(list(old.values()))

    def settle(self, paths: Iterable[str]) -> None:
        """Leaves it to a layer to change arrays of the network."""
        atoms = [self.changed.pop(path) for path in paths]
        self._drop_unused([self.made_by[atom] for atom in atoms if isinstance(atom, int) and atom in self.made_by])

    def _add(self, step: Step) -> None:
        self.made_by.update(dict.fromkeys(step.outputs, step))
        for var in dict.fromkeys(step.variables):
            self.used_by.setdefault(var, []).append(step)

    def _drop_unused(self, steps: list[Step]) -> None:
        while steps:
            step = steps.pop()
            own = [var for var in step.outputs if self.made_by.get(var) is step]
            if any(self.is_kept(var) or self.used_by.get(var) for var in own):
                continue
            for var in own:
                del self.made_by[var]
            for var in dict.fromkeys(step.variables):
                users = self.used_by[var]
                if step in users:
                    users.remove(step)
                if not users and (maker := self.made_by.get(var)) is not None:
                    steps.append(maker)
