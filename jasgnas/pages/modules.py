"""Which module of the user's each segment belongs to, by the paths of its parameters: large graphs are folded by it."""

from itertools import groupby
from os.path import commonprefix
from typing import TYPE_CHECKING

from jasgnas.graph.graph import INPUT

if TYPE_CHECKING:
    from jasgnas.space.search import SearchSpace

Path = tuple[str, ...]


def module_paths(space: "SearchSpace") -> list[Path]:
    """Returns the path of the module that holds each segment, the empty path for the network itself.

    A segment with parameters belongs to the smallest module that holds all of them; the rows of stacked modules, which
    a scan runs over, are modules of their own. Where a joint or a pooling is called
    is not recorded; it is taken to be in the deepest of these: the module that was called before and after it, the one
    that holds all that it reads, and, where the segment before it ends an item of a list of modules that it reads, that
    item, as the sum of a residual block does.
    """
    segments = space.graph.segments
    stacks = _stacks(space)
    own = [_own_path(space, stacks, index) for index in range(len(segments))]
    leaf_modules = {tuple(leaf.path.split("/")[:-1]) for leaf in space.leaves}
    following: list[Path] = [()] * len(own)
    after: Path = ()
    for index in reversed(range(len(own))):
        following[index] = after
        after = own[index] or after
    paths: list[Path] = []
    before = INPUT
    for index, segment in enumerate(segments):
        path = own[index]
        if path is not None:
            before = index
        else:
            read = sorted({source for source in segment.sources if source != INPUT})
            around = _common([paths[before], following[index]]) if before != INPUT else ()
            is_joint = len(read) > 1 or (read and own[read[0]] is None)
            inside = _common([paths[source] for source in read]) if is_joint else ()
            path = max(around, inside, key=len)
            item = paths[before][: len(path) + 1] if before in read else path
            if item and item[-1][-1:].isdigit() and item not in leaf_modules:
                path = item
        paths.append(path)
    return paths


def _common(paths: list[Path]) -> Path:
    return tuple(commonprefix(paths))


def _own_path(space: "SearchSpace", stacks: dict[str, Path], segment: int) -> Path | None:
    """Returns the smallest module that holds the trainable parameters of a segment, None where it has none."""
    graph = space.graph
    read = sorted({part for each in graph.segments[segment].operators for part in graph.operators[each].parts})
    modules = []
    for part in (graph.parts[index] for index in read):
        leaf = space.leaves[part.leaf]
        module = tuple(leaf.path.split("/")[:-1])
        if part.row:
            stack = stacks[leaf.path.partition("/")[0]]
            module = (*stack, ",".join(map(str, part.row)), *module[len(stack) :])
        if leaf.trainable:
            modules.append(module)
    return _common(modules) if modules else None


def _stacks(space: "SearchSpace") -> dict[str, Path]:
    """Returns the modules of which a scan reads row by row, by the first name of their paths."""
    paths = sorted({space.leaves[part.leaf].path for part in space.graph.parts if part.row})
    by_name = groupby(paths, key=lambda path: path.partition("/")[0])
    return {name: _common([tuple(path.split("/")[:-1]) for path in own]) for name, own in by_name}
