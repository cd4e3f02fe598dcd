"""From steps to the lines of a function: what goes into one expression, and what everything is called."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from jasgnas.source.expression import ATOM, Expression
from jasgnas.source.flow import Step
from jasgnas.source.parts import Loop
from jasgnas.source.plain import operand

WIDTH = 112
"""Expressions are joined up to this many characters, with the indentation of a method on top."""
_DEPTH = 4
_NAMES = ("x", "y", "z", "u", "v", "w", "a", "b", "c", "d", "e", "f", "g", "h", "p", "q", "r", "s", "t")


@dataclass(frozen=True, eq=False)
class Statement:
    """A line of a function.

    Attributes:
        step: what is computed last.
        folded: the steps that are computed within the line, by the variable they make.
    """

    step: Step
    folded: dict[int, Step]

    @property
    def reads(self) -> list[int]:
        """The variables that must have a value before, in the order of the text."""
        found = []
        for var in self.step.variables:
            found += Statement(self.folded[var], self.folded).reads if var in self.folded else [var]
        return found


def statements(steps: Sequence[Step], results: Sequence[Any]) -> list[Statement]:
    """Joins steps whose result is used once, by a later one, to lines of a readable length.

    Args:
        steps: the steps, in the order of the computation.
        results: what is returned or stored in the end.
    """
    uses = Counter(var for step in steps for var in step.variables)
    uses.update(var for var in results if isinstance(var, int))
    kept = {var for var in results if isinstance(var, int)}
    open_lines: dict[int, Statement] = {}
    lines: list[Statement | None] = []
    position: dict[int, int] = {}
    for step in steps:
        folded: dict[int, Step] = {}
        size, depth = len(step.expression.text) if step.expression else 0, 1
        for var in dict.fromkeys(step.variables):
            line = open_lines.get(var)
            if line is None or step.expression is None or not _reads_once(step, var):
                continue
            length, deep = _measure(line)
            if size + length > WIDTH - 20 or deep >= _DEPTH:
                continue
            size, depth = size + length, max(depth, deep + 1)
            folded |= line.folded | {var: line.step}
            lines[position[var]] = None
            del open_lines[var]
        statement = Statement(step, folded)
        if len(step.outputs) == 1 and uses[step.outputs[0]] == 1 and step.outputs[0] not in kept and step.expression:
            open_lines[step.outputs[0]] = statement
            position[step.outputs[0]] = len(lines)
        lines.append(statement)
    return [line for line in lines if line is not None]


def _without_repeats(steps: Sequence[Step]) -> list[Step]:
    """Returns steps such that what is computed from constants alone is computed once."""
    same: dict[Any, Any] = {}
    constant: dict[Any, int] = {}
    left = []
    for step in steps:
        if any(var in same for var in step.variables):
            step = replace(step, inputs=tuple(same.get(atom, atom) for atom in step.inputs))
        if step.expression is not None and not step.layer and all(var in constant.values() for var in step.variables):
            key = step.expression, step.variables
            if key in constant:
                same[step.outputs[0]] = constant[key]
                continue
            if len(step.outputs) == 1:
                constant[key] = step.outputs[0]
        left.append(step)
    return left


def _reads_once(step: Step, var: int) -> bool:
    assert step.expression is not None
    places = [f"{{{index}}}" for index, atom in enumerate(step.inputs) if atom == var]
    return sum(map(step.expression.text.count, places)) == 1


def _measure(line: Statement) -> tuple[int, int]:
    """Returns about how long a line is, and how deep its calls are nested."""
    depth = 1 + max(
        (_measure(Statement(line.folded[var], line.folded))[1] for var in line.step.variables if var in line.folded),
        default=0,
    )
    length = sum(len(step.expression.text) for step in (line.step, *line.folded.values()) if step.expression)
    return length, depth


class Names:
    """Gives names to variables; names of what is no longer needed are given again."""

    def __init__(self, given: Mapping[int, str], taken: Sequence[str] = ()):
        """Takes the names of arguments, and those that are never given."""
        self.of = dict(given)
        self._taken = set(taken)

    def free(self, var: int) -> None:
        """Lets the name of a variable be given again."""
        self.of.pop(var, None)

    def give(self, var: int, preferred: Sequence[str] = ()) -> str:
        """Names a variable."""
        used = {*self.of.values(), *self._taken}
        numbered = (f"x{number}" for number in range(1, 10_000))
        self.of[var] = next(name for name in (*preferred, *_NAMES, *numbered) if name not in used)
        return self.of[var]


class BodyWriter:
    """Writes steps as the lines of a function.

    Attributes:
        leaves: how the leaves are read, by variable.
        layers: returns how a layer is got at, by its path.
        loop_of: returns the first line of a loop over some parts, and what each of them is called in it.
        sizes: what symbolic sizes are called.
    """

    def __init__(
        self,
        leaves: Mapping[int, Expression],
        layers: Callable[[str], str],
        loop_of: Callable[[Sequence[str]], tuple[str, str]],
        sizes: Mapping[str, str],
    ):
        """Takes what is the same in all lines."""
        self.leaves, self.layers, self.loop_of, self.sizes = leaves, layers, loop_of, sizes

    def lines(
        self, steps: Sequence[Step], arguments: Mapping[int, str], results: Sequence[Any]
    ) -> tuple[list[str], list[Expression]]:
        """Returns the lines, and what the results are called after them."""
        rest = statements(_without_repeats(steps), results)
        last = {var: index for index, line in enumerate(rest) for var in line.reads}
        last |= {var: len(rest) for var in results if isinstance(var, int)}
        names, lines = Names(arguments, ("self", *self.sizes.values())), []
        for index, line in enumerate(rest):
            dying = [var for var in dict.fromkeys(line.reads) if last[var] == index and var in names.of]
            if isinstance(line.step, Loop):
                lines += self._loop(line.step, dying, names)
                continue
            text = self._text(line.step, line.folded, names).text
            preferred = [names.of[var] for var in dying]
            for var in dying:
                names.free(var)
            targets = ", ".join(names.give(var, preferred) for var in line.step.outputs)
            for var in line.step.outputs:
                if var not in last:
                    names.free(var)
            lines.append(f"{targets} = {text}")
        found = [self._atom(atom, {}, names) for atom in results]
        # What is only returned needs no name.
        if (
            len(found) == 1
            and lines
            and lines[-1].startswith(f"{found[0].text} = ")
            and rest[-1].step.outputs == tuple(results)
        ):
            found = [Expression(lines.pop().partition(" = ")[2], 0)]
        return lines, found

    def _loop(self, loop: Loop, dying: Sequence[int], names: Names) -> list[str]:
        """Returns the lines of a loop."""
        lines, own = [], {}
        for position, (var, (kind, source)) in enumerate(zip(loop.inputs, loop.carried, strict=True)):
            if (kind, source) == ("in", position):
                own[position] = self._atom(var, {}, names).text
            elif isinstance(var, int) and var in dying and names.of[var] not in own.values():
                own[position] = names.of[var]
            else:
                value = self._atom(var, {}, names).text
                own[position] = names.give(-1 - position)
                lines.append(f"{own[position]} = {value}")
        header, item = self.loop_of(loop.items)
        call = f"{item}({', '.join(own[position] for position in range(len(loop.inputs)))})"
        moved = [position for position, source in enumerate(loop.carried) if source != ("in", position)]
        targets = ", ".join(own[position] for position in moved)
        sources = [call if loop.carried[position][0] == "out" else own[loop.carried[position][1]] for position in moved]
        values = call if len(loop.outputs) > 1 else ", ".join(sources)
        lines += [header, f"    {targets} = {values}"]
        for var in dying:
            names.free(var)
        for position in range(len(loop.inputs)):
            names.free(-1 - position)
        for position in moved:
            kind, source = loop.carried[position]
            if kind == "out":
                names.of[loop.outputs[source]] = own[position]
        return lines

    def _text(self, step: Step, folded: Mapping[int, Step], names: Names) -> Expression:
        operands = [self._atom(atom, folded, names) for atom in step.inputs]
        assert step.expression is not None
        sizes = {**self.sizes, "layer": self.layers(step.layer) if step.layer else ""}
        return Expression(step.expression.format(operands, sizes), step.expression.level)

    def _atom(self, atom: Any, folded: Mapping[int, Step], names: Names) -> Expression:
        if not isinstance(atom, int):
            return operand(atom, typed=True)
        if atom in folded:
            return self._text(folded[atom], folded, names)
        return self.leaves[atom] if atom in self.leaves else Expression(names.of[atom], ATOM)


def wrapped(line: str, indent: int, width: int = 120) -> list[str]:
    """Breaks a line at the commas of its outermost brackets, until every part is short enough."""
    space = " " * indent
    if len(line) + indent <= width:
        return [space + line]
    opened = _last_bracket(line)
    if opened is None:
        return [space + line]
    start, end = opened
    parts = _parts(line[start + 1 : end])
    joined = ", ".join(parts)
    if len(joined) + indent + 4 <= width:
        return [space + line[: start + 1], " " * (indent + 4) + joined, space + line[end:]]
    # A comma behind a single part would make a tuple of it, but in a list.
    is_alone = len(parts) == 1 and (line[start] != "[" or re.search(r"\bfor\b", parts[0]) is not None)
    inner = [text for part in parts for text in wrapped(part + ("" if is_alone else ","), indent + 4, width)]
    return [space + line[: start + 1], *inner, *wrapped(line[end:], indent, width)]


def _last_bracket(line: str) -> tuple[int, int] | None:
    """Returns where the outermost brackets that hold most of a line begin and end."""
    start, found = 0, []
    for index, char, depth in _depths(line):
        if char in "([{" and depth == 1:
            start = index
        elif char in ")]}" and depth == 0 and index - start > 1:
            found.append((start, index))
    return max(found, key=lambda pair: pair[1] - pair[0], default=None)


def _parts(text: str) -> list[str]:
    """Splits a text at the commas that are in no brackets."""
    commas = [index for index, char, depth in _depths(text) if char == "," and depth == 0]
    parts = [text[start + 1 : end].strip() for start, end in pairwise([-1, *commas, len(text)])]
    return [part for part in parts if part]


def _depths(text: str) -> Iterator[tuple[int, str, int]]:
    """Yields the characters that are in no quotes: their place, and how many brackets are open behind them."""
    depth, quoted = 0, ""
    for index, char in enumerate(text):
        if quoted:
            quoted = "" if char == quoted else quoted
            continue
        quoted = char if char in "\"'" else ""
        depth += (char in "([{") - (char in ")]}")
        yield index, char, depth
