"""What ties structures together: a leaf that each of them reads, or a pattern of paths that a user gives.

A block that is applied several times is as many segments, and none of them can go without the others, since they share
its parameters. A leaf ties segments only if they need it: where each of several branches normalises its input with one
scale before a kernel of its own, the branches go one by one.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jasgnas.errors import ArgumentError

NeedFn = Callable[[int, frozenset[int]], frozenset[int] | None]
"""Returns the parts that a segment must be without to be zero, of some that it shares with others, none if its own are
enough; None if it is no structure, whatever of these is gone with its own."""

Captures = tuple[tuple[str, str], ...]
"""What the names in a pattern stand for, by name."""


def shared_ties(users: Mapping[int, frozenset[int]], needed_of: NeedFn) -> list[tuple[int, ...]]:
    """Returns the segments that go together because of parts that they share, those of each structure in order.

    Args:
        users: the segments that read each part that several of them do.
        needed_of: what a segment needs of such parts.
    """
    allowed = dict(users)
    while True:
        readers = sorted(frozenset[int]().union(*allowed.values()))
        needed = {segment: needed_of(segment, frozenset(allowed)) for segment in readers}
        # What any other segment reads belongs to no structure.
        blocked = [part for part, own in allowed.items() if any(needed[segment] is None for segment in own)]
        if not blocked:
            break
        for part in blocked:
            del allowed[part]
    tying = frozenset[int]().union(*(own for own in needed.values() if own is not None))
    num = max(readers, default=-1) + 1
    return [own for own in united(num, [sorted(allowed[part]) for part in sorted(tying)]) if len(own) > 1]


def united(num: int, sets: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Divides the numbers below `num`, of which those of one set belong together, in the order of the first of each."""
    pairs = [(own[0], other) for own in sets for other in own[1:]]
    if not pairs:
        return [(number,) for number in range(num)]
    rows, columns = np.array(pairs).T
    _, labels = connected_components(coo_array((np.ones(len(pairs)), (rows, columns)), shape=(num, num)), False)
    found: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(number)
    return [tuple(own) for own in found.values()]


@dataclass(frozen=True)
class PathPattern:
    """A pattern of parameter paths, component by component.

    `*` and `{name}` stand for one component or a part of it, `**` for any number of components. What a name stands for
    is a *capture*, as short as can be; the same name stands for the same text wherever it occurs.

    Attributes:
        text: the pattern, `cells/*/{edge}/{op}/**` for example.
    """

    text: str

    def captures(self, paths: Iterable[str]) -> Captures | None:
        """Returns what the names stand for in all of some paths, None unless all match and agree on that."""
        found = [self._expression.fullmatch(f"{path}/") for path in paths]
        captures = {tuple(sorted(each.groupdict().items())) if each else None for each in found}
        return captures.pop() if len(captures) == 1 else None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        if not isinstance(self.text, str):
            raise ArgumentError(f"expected a pattern of paths, such as 'cells/*/{{op}}/**', got {self.text!r}")
        names: set[str] = set()

        def piece(text: str) -> str:
            if text == "*":
                return "[^/]*"
            if not (text.startswith("{") and text.endswith("}")):
                return re.escape(text)
            name = text[1:-1]
            if not name.isidentifier():
                raise ArgumentError(f"{text} in the pattern {self.text!r} is no name: write {{name}} with letters only")
            known = name in names
            names.add(name)
            return f"(?P={name})" if known else f"(?P<{name}>[^/]+?)"

        expression = ""
        for component in self.text.split("/"):
            pieces = [each for each in re.split(r"(\*|\{[^/{}]*\})", component) if each]
            expression += "(?:[^/]+/)*" if component == "**" else "".join(map(piece, pieces)) + "/"
        return re.compile(expression)


def tied_by_patterns(patterns: Sequence[str], paths: Sequence[Sequence[str]]) -> list[list[int]]:
    """Returns sets of structures that a user wants decided together.

    Args:
        patterns: patterns of parameter paths, see `PathPattern`. A structure matches if all its paths do, with the same
            captures; structures with equal captures are tied.
        paths: the paths of each structure.

    Raises:
        ArgumentError: a pattern ties nothing.
    """
    sets: list[list[int]] = []
    for text in patterns:
        pattern = PathPattern(text)
        found: dict[Captures, list[int]] = {}
        for index, own in enumerate(paths):
            if (captures := pattern.captures(own)) is not None:
                found.setdefault(captures, []).append(index)
        if all(len(own) < 2 for own in found.values()):
            raise ArgumentError(f"tie={text!r} ties nothing: {_what_matches(pattern, found, paths)}")
        sets += found.values()
    return sets


def _what_matches(pattern: PathPattern, found: Mapping[Captures, list[int]], paths: Sequence[Sequence[str]]) -> str:
    if found:
        return (
            f"{len(found)} structures match, each with other captures ({', '.join(map(_said, list(found)[:3]))}). "
            "Write * for what differs between those that are to go together"
        )
    some = [path for own in paths for path in own if pattern.captures([path]) is not None]
    if some:
        return f"{some[0]} matches, but not all of what goes with it; end the pattern with /** to match all of a module"
    first = ", ".join(paths[0][:3]) if paths else "none: there are no structures"
    return (
        f"no parameter of a structure matches (`*` is one component, `**` any number); those of the first are {first}"
    )


def _said(captures: Captures) -> str:
    return " and ".join(f"{name}={text}" for name, text in captures)
