"""What operators and segments are called, for people; nothing depends on it."""

from collections.abc import Iterable, Sequence

from jasgnas.bridge import Leaf
from jasgnas.graph.graph import Graph, Operator, Segment
from jasgnas.program.jaxpr import Equation
from jasgnas.rules import rule_for
from jasgnas.rules.contraction import Convolution, DotGeneral
from jasgnas.rules.indexing import Gather
from jasgnas.rules.reduction import Reduce


def operator_name(eqns: Sequence[Equation], kind: str, state: Sequence[bool]) -> str:
    """Names an operator as a reader of the network would; for display only.

    Args:
        eqns: its equations.
        kind: its kind.
        state: for each part of a leaf it reads, whether that is not trained.
    """
    if len(eqns) == 1 and not any(name for _, name in eqns[0].calls) and kind in ("accessory", "unknown") and not state:
        return _simple_name(eqns[0])
    names = [eqn.primitive for eqn in eqns]
    calls = [eqn.calls for eqn in eqns]
    for eqn in eqns:
        rule = rule_for(eqn.primitive)
        if kind in ("stem", "joint"):
            if isinstance(rule, Convolution):
                return _conv_name(eqn)
            if isinstance(rule, DotGeneral):
                return "dense" if kind == "stem" else "matmul"
            if isinstance(rule, Gather) and kind == "stem":
                return "embed"
    if any(state) and {"mul", "sub"} & set(names):
        return "batch_norm"
    if state and any(isinstance(rule_for(name), Reduce) for name in names):
        return _norm_name(eqns)
    common = [name for number, name in calls[0] if name and all((number, name) in other for other in calls)]
    if common and not state:
        return common[0].lstrip("_")
    if "reduce_window_sum" in names:
        return "avg_pool"
    if "reduce_sum" in names and {"div", "mul"} & set(names) and len(eqns) == 2:
        return _mean_name(eqns[names.index("reduce_sum")])
    if "reduce_max" in names and "exp" in names:
        return "softmax"
    if "rsqrt" in names and "reduce_sum" in names:
        return _norm_name(eqns)
    for primitive, name in _TELLING:
        if primitive in names:
            return name
    if len(eqns) == 1 or len(set(names)) == 1:
        return _simple_name(eqns[0])
    return "scale" if state else "elementwise"


_TELLING = (
    ("reduce_window_max", "max_pool"),
    ("erf", "gelu"),
    ("erfc", "gelu"),
    ("logistic", "silu"),
    ("tanh", "gelu"),
    ("exp", "softmax"),
)
_READABLE = {
    "add_any": "add",
    "broadcast_in_dim": "broadcast",
    "convert_element_type": "cast",
    "logistic": "sigmoid",
    "reduce_window_max": "max_pool",
    "rsqrt": "rsqrt",
}


def _simple_name(eqn: Equation) -> str:
    if eqn.primitive == "name":
        return str(eqn.params["name"])
    if eqn.primitive == "reshape":
        return "flatten" if len(eqn.out_avals[0].shape) < len(eqn.in_avals[0].shape) else "reshape"
    return _READABLE.get(eqn.primitive, eqn.primitive)


def _conv_name(eqn: Equation) -> str:
    data = eqn.in_avals[0]
    numbers = eqn.params["dimension_numbers"]
    if any(dilation > 1 for dilation in eqn.params["lhs_dilation"]):
        return "conv_transpose"
    depthwise = eqn.params["feature_group_count"] == data.shape[numbers.lhs_spec[1]] > 1
    return "depthwise_conv" if depthwise else "conv"


def _norm_name(eqns: Sequence[Equation]) -> str:
    reductions = [eqn for eqn in eqns if isinstance(rule_for(eqn.primitive), Reduce)]
    first = reductions[0]
    ndim = len(first.in_avals[0].shape)
    if all(len(eqn.params["axes"]) == 1 and eqn.params["axes"][0] == ndim - 1 for eqn in reductions):
        return "layer_norm" if "sub" in [eqn.primitive for eqn in eqns] else "rms_norm"
    spatial = tuple(range(1, ndim - 1))
    return "instance_norm" if tuple(first.params["axes"]) == spatial else "group_norm"


def _mean_name(eqn: Equation) -> str:
    ndim = len(eqn.in_avals[0].shape)
    spatial = tuple(range(1, ndim - 1))
    return "global_avg_pool" if ndim > 3 and tuple(eqn.params["axes"]) == spatial else "mean"


def modules_of(operators: Iterable[Operator], graph: Graph, leaves: Sequence[Leaf]) -> list[str]:
    """Returns the modules whose parameters some operators hold, in order; of gates each by itself."""
    found: dict[str, None] = {}
    for part in (graph.parts[index] for operator in operators for index in operator.parts):
        if leaves[part.leaf].trainable:
            path = leaves[part.leaf].path
            module = path if leaves[part.leaf].is_gate else path.rpartition("/")[0] or path
            found[module + "".join(f"[{index}]" for index in part.row)] = None
    return list(found)


def operator_label(operator: Operator, graph: Graph, leaves: Sequence[Leaf]) -> str:
    """Names an operator: what it is, and the modules whose parameters it holds."""
    modules = modules_of([operator], graph, leaves)
    return f"{operator.name} {'-'.join(modules)}" if modules else operator.name


def segment_label(segment: Segment, graph: Graph, leaves: Sequence[Leaf]) -> str:
    """Names a segment: its modules, or its operators where it has none."""
    operators = [graph.operators[index] for index in segment.operators]
    modules = modules_of(operators, graph, leaves)
    if not modules:
        return ", ".join(operator.name for operator in operators)
    parents = {module.rpartition("/")[0] for module in modules}
    prefix = ""
    if len(parents) == 1 and (parent := parents.pop()):
        prefix = f"{parent}/"
        modules = [module.rpartition("/")[2] for module in modules]
    return prefix + ("-".join(modules) if len(modules) <= 4 else f"{modules[0]}-…-{modules[-1]}")
