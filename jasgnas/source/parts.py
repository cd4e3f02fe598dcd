"""Which parts of a network are modules of their own: one step after the other, with no others' arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jasgnas.source.expression import Expression
from jasgnas.source.flow import Flow, Step
from jasgnas.source.sizes import sizes_of
from jasgnas.source.tree import Part


@dataclass(frozen=True, eq=False)
class Loop(Step):
    """Calls of the items of a list, each with what the one before has returned.

    Attributes:
        items: their paths.
        carried: for each input, the output of the call before that it is, as `("out", 0)`, or the input of the call
            before, as `("in", 1)`.
    """

    items: tuple[str, ...] = ()
    carried: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Body:
    """What a module computes.

    Attributes:
        inputs: the variables it is called with.
        outputs: what it returns.
        steps: what it computes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[Any, ...]
    steps: tuple[Step, ...]


class Bodies:
    """Divides the steps of a network among its parts.

    Attributes:
        of: what each part that is a module computes, by path.
    """

    def __init__(self, flow: Flow, root: Part, inputs: Sequence[int], results: Sequence[Any]):
        """Divides the steps of a flow."""
        self._flow = flow
        self.of: dict[str, Body] = {}
        self._tails: dict[str, list[Expression | None]] = {}
        self._divide(root, flow.steps, tuple(inputs), tuple(results))

    def _divide(self, part: Part, steps: Sequence[Step], inputs: tuple[int, ...], outputs: tuple[Any, ...]) -> None:
        """Gives steps to a part, and some of them on to the parts below it."""
        steps = list(steps)
        for unit, following in _units(part):
            steps = self._give(unit, following, steps, outputs)
        for kind in _lists(part):
            steps = _with_loops(kind, steps, outputs)
        self.of[part.path] = Body(inputs, outputs, tuple(steps))

    def _give(self, unit: Part, following: Part | None, steps: list[Step], results: Sequence[Any]) -> list[Step]:
        """Returns the steps with one call in the place of all that are given to a part, if it can have them."""
        touching = [index for index, step in enumerate(steps) if self._touches(step, unit.path)]
        if not touching:
            return steps
        first, last = touching[0], touching[-1]
        owned = range(first, last + 1)
        if any(self._needs(steps[index]) and index not in touching for index in owned):
            return self._give_below(unit, steps, results)
        found = self._region(unit, steps, first, last + 1, results)
        end, after = self._end(unit, following, steps, last + 1), last + 1
        for longer in range(end, last + 1, -1):
            extended = self._region(unit, steps, first, longer, results)
            if extended is not None and (found is None or len(extended.outputs) <= len(found.outputs)):
                found, last = extended, longer - 1
                break
        if found is None:
            return self._give_below(unit, steps, results)
        self._tails[unit.path.rpartition("/")[0]] = [step.expression for step in steps[after : last + 1]]
        inside = steps[first : last + 1]
        self._divide(unit, inside, found.variables, found.outputs)
        return [*steps[:first], found, *steps[last + 1 :]]

    def _give_below(self, unit: Part, steps: list[Step], results: Sequence[Any]) -> list[Step]:
        for below, following in _units(unit):
            steps = self._give(below, following, steps, results)
        for kind in _lists(unit):
            steps = _with_loops(kind, steps, results)
        return steps

    def _end(self, unit: Part, following: Part | None, steps: list[Step], start: int) -> int:
        """Returns up to where the steps after the last one with arrays of a part may be its own."""
        end = start
        while end < len(steps) and not self._needs(steps[end]):
            end += 1
        if following is not None:
            return end if end < len(steps) and self._touches(steps[end], following.path) else start
        # What follows the last item of a list belongs to it as far as it does so in the item before.
        tail = self._tails.get(unit.path.rpartition("/")[0], [])
        found = [step.expression for step in steps[start:end]][: len(tail)]
        return start + len(tail) if found == tail else start

    def _region(self, unit: Part, steps: list[Step], first: int, end: int, results: Sequence[Any]) -> Step | None:
        """Returns steps as one call; None if that is not possible."""
        inside, outside = steps[first:end], [*steps[:first], *steps[end:]]
        made = [var for step in inside for var in step.outputs]
        read_outside = {var for step in outside for var in step.variables} | {
            var for var in results if isinstance(var, int)
        }
        inputs = [var for step in inside for var in step.variables if var not in made and var not in self._flow.paths]
        inputs = list(dict.fromkeys(inputs))
        outputs = [var for var in made if var in read_outside]
        if not inputs or not outputs or any(var in self._flow.program.constants for var in inputs):
            return None
        is_sized = any(step.expression is not None and "{batch}" in step.expression.text for step in inside)
        if is_sized and not any(sizes_of(tuple(self._flow.aval(var).shape)) for var in inputs):
            return None
        places = ", ".join(f"{{{index}}}" for index in range(len(inputs)))
        return Step(tuple(inputs), tuple(outputs), None, Expression(f"{{layer}}({places})"), unit.path)

    def _touches(self, step: Step, path: str) -> bool:
        return any(need == path or need.startswith(f"{path}/") for need in self._needs(step))

    def _needs(self, step: Step) -> list[str]:
        """Returns the paths of the arrays and layers that a step needs."""
        leaves = [self._flow.paths[var] for var in step.variables if var in self._flow.paths]
        items = list(step.items) if isinstance(step, Loop) else []
        return [*leaves, *items, *([step.layer] if step.layer else [])]


def _units(part: Part) -> Iterator[tuple[Part, Part | None]]:
    """Yields the parts below a part that may be modules, each with the one after it in a list."""
    for child in part.children.values():
        if child.constructor is not None:
            continue
        if child.is_list:
            items = list(child.children.values())
            for item, following in zip(items, [*items[1:], None], strict=True):
                if item.constructor is None:
                    yield item, following
        else:
            yield child, None


def _lists(part: Part) -> Iterator[Part]:
    return (child for child in part.children.values() if child.is_list)


def _with_loops(items: Part, steps: list[Step], results: Sequence[Any]) -> list[Step]:
    """Returns steps with loops in the place of runs of calls of the items of a list."""
    order = [child.path for child in items.children.values()]
    runs: list[list[int]] = []
    for index, step in enumerate(steps):
        is_item = step.layer in order and not isinstance(step, Loop)
        if is_item and runs and runs[-1][-1] == index - 1 and _follows(order, steps[index - 1], step):
            runs[-1].append(index)
        elif is_item:
            runs.append([index])
    for run in reversed(runs):
        while len(run) > 1:
            loop = _loop([steps[index] for index in run], steps, results)
            if loop is not None:
                steps = [*steps[: run[0]], loop, *steps[run[-1] + 1 :]]
                break
            run = run[:-1]
    return steps


def _follows(order: list[str], before: Step, after: Step) -> bool:
    return order.index(after.layer) == order.index(before.layer) + 1


def _loop(calls: list[Step], steps: Sequence[Step], results: Sequence[Any]) -> Loop | None:
    """Returns calls as a loop, if each takes in the same way what the one before has left."""
    mappings = []
    for before, after in zip(calls, calls[1:], strict=False):
        if len(before.outputs) != len(after.outputs) or len(before.inputs) != len(after.inputs):
            return None
        mapping = []
        for var in after.inputs:
            if var in before.outputs:
                mapping.append(("out", before.outputs.index(var)))
            elif var in before.inputs:
                mapping.append(("in", before.inputs.index(var)))
            else:
                return None
        mappings.append(tuple(mapping))
    carried = mappings[0]
    if any(mapping != carried for mapping in mappings) or len({m for kind, m in carried if kind == "out"}) != len(
        calls[0].outputs
    ):
        return None
    inner = {var for call in calls[:-1] for var in call.outputs}
    members = {id(call) for call in calls}
    if any(inner.intersection(step.variables) for step in steps if id(step) not in members) or inner.intersection(
        var for var in results if isinstance(var, int)
    ):
        return None
    if len(calls[0].outputs) > 1 and carried != tuple(("out", index) for index in range(len(carried))):
        return None
    first, last = calls[0], calls[-1]
    return Loop(first.inputs, last.outputs, None, None, "", tuple(call.layer for call in calls), carried)
