"""What operators and segments are called, for people; nothing depends on it."""

from collections.abc import Iterable, Sequence

from jasgnas.bridge import Leaf
from jasgnas.graph.build import Graph, Operator, Segment


def _modules(operators: Iterable[Operator], graph: Graph, leaves: Sequence[Leaf]) -> list[str]:
    """Returns the modules whose parameters some operators hold, in order."""
    found: dict[str, None] = {}
    for part in (graph.parts[index] for operator in operators for index in operator.parts):
        if leaves[part.leaf].trainable:
            path = leaves[part.leaf].path
            found[(path.rpartition("/")[0] or path) + "".join(f"[{index}]" for index in part.row)] = None
    return list(found)


def operator_label(operator: Operator, graph: Graph, leaves: Sequence[Leaf]) -> str:
    """Names an operator: what it is, and the modules whose parameters it holds."""
    modules = _modules([operator], graph, leaves)
    return f"{operator.name} {'-'.join(modules)}" if modules else operator.name


def segment_label(segment: Segment, graph: Graph, leaves: Sequence[Leaf]) -> str:
    """Names a segment: its modules, or its operators where it has none."""
    operators = [graph.operators[index] for index in segment.operators]
    modules = _modules(operators, graph, leaves)
    if not modules:
        return ", ".join(operator.name for operator in operators)
    parents = {module.rpartition("/")[0] for module in modules}
    prefix = ""
    if len(parents) == 1 and (parent := parents.pop()):
        prefix = f"{parent}/"
        modules = [module.rpartition("/")[2] for module in modules]
    return prefix + ("-".join(modules) if len(modules) <= 4 else f"{modules[0]}-…-{modules[-1]}")
