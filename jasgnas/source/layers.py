"""Which equations are a layer of Flax NNX: proposed by the names of its arrays, believed once it computes the same."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasgnas.bridge import Leaf
from jasgnas.bridge.nnx_model import NNXModel
from jasgnas.bridge.trace import Call, trace_model
from jasgnas.program.jaxpr import Equation, Literal, Program, inline
from jasgnas.pytree import path_str
from jasgnas.source.agreement import Judge
from jasgnas.source.expression import Expression
from jasgnas.source.flow import Flow, Step
from jasgnas.source.norms import NARROW_NORMS
from jasgnas.source.primitives import number_text
from jasgnas.source.sizes import concrete
from jasgnas.source.tree import Constructor

_MOST_INPUTS, _MOST_OUTPUTS = 8, 4


@dataclass(frozen=True, eq=False)
class Site:
    """Equations that may be one call of a layer.

    Attributes:
        layer: path of the layer.
        leaves: its leaves that are read, by name.
        input: the variable that the layer is called with.
        output: the variable that it returns.
        changed: the variables that become its arrays, by name.
        equations: what computes the output and the changed arrays.
    """

    layer: str
    leaves: dict[str, int]
    input: int
    output: int
    changed: dict[str, int]
    equations: Sequence[Equation]

    def literals(self) -> list[float]:
        """Returns the floating-point constants in the equations, each once."""
        found = {
            number_text(atom.value, atom.aval.dtype): None
            for eqn in self.equations
            for atom in eqn.inputs
            if isinstance(atom, Literal) and jnp.issubdtype(atom.aval.dtype, jnp.floating) and np.isfinite(atom.value)
        }
        return [float(text) for text in found]


Proposals = Iterator[Constructor]


@dataclass
class Layers:
    """Finds the layers of a network.

    Attributes:
        leaves: the arrays of the network, by path.
        judge: says what agrees.
        found: what makes each layer that was found.
        programs: what proposed layers compute.
    """

    leaves: dict[str, Leaf]
    judge: Judge
    found: dict[str, Constructor] = field(default_factory=dict)
    programs: dict[Any, Program | None] = field(default_factory=dict)

    def find(self, training: Flow, inference: Flow) -> None:
        """Replaces equations by calls of layers, in both modes alike.

        Args:
            training: the flow in training mode.
            inference: the flow in inference mode.
        """
        owners: dict[str, list[str]] = {}
        for path in self.leaves:
            owner, _, name = path.rpartition("/")
            if owner:
                owners.setdefault(owner, []).append(name)
        for owner, names in owners.items():
            if self._is_layer(owner, names):
                self._find_one(owner, names, training, inference)

    def _is_layer(self, owner: str, names: Sequence[str]) -> bool:
        inner = any(path.startswith(f"{owner}/") and "/" in path[len(owner) + 1 :] for path in self.leaves)
        return not inner and any(required <= set(names) <= allowed for required, allowed, _ in _KINDS)

    def _find_one(self, owner: str, names: Sequence[str], training: Flow, inference: Flow) -> None:
        constructor, steps = None, []
        for flow, is_training in ((training, True), (inference, False)):
            own = {name: flow.changed.get(f"{owner}/{name}") for name in names}
            after = {name: var for name, var in own.items() if isinstance(var, int)}
            found = self._calls(owner, names, flow, after, constructor, is_training)
            if found is None:
                return
            constructor, calls = found
            steps.append((flow, calls))
        assert constructor is not None
        for flow, calls in steps:
            for site in calls:
                flow.replace(Step((site.input,), (site.output,), None, Expression("{layer}({0})"), owner))
                flow.settle(f"{owner}/{name}" for name in site.changed)
        self.found[owner] = constructor

    def _calls(
        self,
        owner: str,
        names: Sequence[str],
        flow: Flow,
        changed: dict[str, int],
        constructor: Constructor | None,
        is_training: bool,
    ) -> tuple[Constructor | None, list[Site]] | None:
        """Returns what makes a layer and all its calls; None if some use of its arrays is no such call."""
        by_path = {path: var for var, path in flow.paths.items()}
        leaves = {name: by_path[f"{owner}/{name}"] for name in names}
        derived = _derived(flow, leaves.values())
        pending = [step for var in derived for step in flow.users(var) if not set(step.outputs) <= derived]
        pending = sorted({id(step): step for step in pending}.values(), key=lambda step: min(step.outputs))
        calls: list[Site] = []
        covered: set[int] = set()
        while pending:
            step = pending.pop()
            if min(step.outputs) in covered:
                continue
            found = self._site(
                flow, owner, leaves, derived, step, changed if not calls else {}, constructor, is_training
            )
            if found is None:
                return None
            constructor, site = found
            calls.append(site)
            covered.update(min(eqn.outputs) for eqn in site.equations)
        return constructor, calls

    def _site(
        self,
        flow: Flow,
        owner: str,
        leaves: dict[str, int],
        derived: set[int],
        last: Step,
        changed: dict[str, int],
        constructor: Constructor | None,
        is_training: bool,
    ) -> tuple[Constructor, Site] | None:
        if last.equation is None:
            return None
        sites = []
        for output in _outputs(flow, last):
            for given in _inputs(flow, output, set(leaves.values())):
                equations = flow.between([output, *changed.values()], [given, *leaves.values()])
                if equations is not None:
                    sites.append(Site(owner, leaves, given, output, changed, equations))
        # Most often some layer has the very same equations, and nothing needs to be computed.
        for compute in (False, True):
            for site in sites:
                for proposed in [constructor] if constructor else self._proposals(flow, site):
                    if self._is_right(flow, site, proposed, is_training, compute):
                        return proposed, site
        return None

    def _proposals(self, flow: Flow, site: Site) -> Proposals:
        avals = {name: flow.program.avals[var] for name, var in site.leaves.items()}
        names = set(avals)
        for required, allowed, propose in _KINDS:
            if required <= names <= allowed:
                yield from propose(flow, site, avals)

    def _is_right(self, flow: Flow, site: Site, constructor: Constructor, is_training: bool, compute: bool) -> bool:
        """Tells whether a layer computes what the equations of a call compute."""
        avals = flow.program.avals
        arrays = tuple((name, str(avals[var])) for name, var in site.leaves.items())
        key = constructor, is_training, str(avals[site.input]), arrays, tuple(site.changed)
        if key not in self.programs:
            arrays_of = {name: avals[var] for name, var in site.leaves.items()}
            self.programs[key] = _program(constructor, avals[site.input], arrays_of, tuple(site.changed), is_training)
        if (program := self.programs[key]) is None:
            return False
        rows = min((int(avals[var].shape[0]) for var in site.leaves.values() if avals[var].shape), default=3)
        return self.judge.agrees(
            flow.part(site.equations, [*site.leaves.values(), site.input], [site.output, *site.changed.values()]),
            program,
            compute=compute,
            spread=3.0,
            whole=rows,
            positive=[position for position, name in enumerate(site.leaves) if name == "var"],
        )


def _program(
    constructor: Constructor, aval: Any, arrays: dict[str, Any], changed: tuple[str, ...], is_training: bool
) -> Program | None:
    """Returns what a layer computes: from its arrays and its input to its output and the arrays that it changes.

    None if it cannot be made or called so, or has or changes other arrays.

    Args:
        constructor: what makes the layer.
        aval: shape and dtype of its input.
        arrays: those of its arrays, by name.
        changed: names of the arrays that it changes.
        is_training: whether it is in training mode.
    """
    space = {"nnx": nnx, "jnp": jnp, "jax": jax, "_zeros": nnx.initializers.zeros} | NARROW_NORMS
    text = constructor.text()
    if (initial := _INITIAL.get(constructor.name)) is not None:
        text = f"{text[:-1]}, {initial}=_zeros)"  # what is only compared needs no random values
    try:
        model = NNXModel.of(nnx.eval_shape(lambda: eval(text, space | {"rngs": nnx.Rngs(0)})))
        if {leaf.path: leaf.shape for leaf in model.leaves} != {name: own.shape for name, own in arrays.items()}:
            return None
        # The arrays may be loaded in another dtype than the layer would make them in.
        tree = jax.tree_util.tree_map_with_path(lambda keys, _: _described(arrays[path_str(keys)]), model.abstract)
        traced = trace_model(replace(model, abstract=tree).in_mode(is_training), Call.of((_described(aval),), {}))
    except (NameError, SyntaxError):
        raise  # no proposal of ours is to be so: a mistake here, and none of the network
    except Exception:
        # A layer is made and called on what it may not fit, which Flax and JAX refuse with errors of every class. One
        # that cannot be traced is not the layer that was looked for; what it would have been is written plainly.
        return None
    program, leaves = inline(traced.program), [leaf.path for leaf in traced.leaves]
    after = dict(zip(leaves, program.outputs[traced.num_outputs :], strict=True))
    if {leaves[index] for index in traced.updated} != set(changed) or traced.num_outputs != 1:
        return None
    inputs = dict(zip(leaves, program.inputs, strict=False))
    return replace(
        program,
        inputs=(*(inputs[name] for name in arrays), program.inputs[-1]),
        outputs=(program.outputs[0], *(after[name] for name in changed)),
    )


def _described(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


_INITIAL = {
    "nnx.Conv": "kernel_init",
    "nnx.Linear": "kernel_init",
    "nnx.LinearGeneral": "kernel_init",
    "nnx.Embed": "embedding_init",
}


def _derived(flow: Flow, leaves: Any) -> set[int]:
    """Returns the variables that are computed from some leaves and constants alone, and these leaves."""
    found = set(leaves)
    pending = list(found)
    while pending:
        for step in flow.users(pending.pop()):
            is_new = step.equation is not None and not found.issuperset(step.outputs)
            if is_new and all(var in found or _is_constant(flow, var) for var in step.variables):
                found.update(step.outputs)
                pending += step.outputs
    return found


def _is_constant(flow: Flow, var: int) -> bool:
    return var in flow.program.constants


def _outputs(flow: Flow, last: Step) -> Iterator[int]:
    """Yields what a layer may return: the result of the last equation that reads its arrays, or what follows it."""
    var = last.outputs[0]
    for _ in range(_MOST_OUTPUTS):
        yield var
        users = flow.users(var)
        if len(users) != 1 or users[0].equation is None or len(users[0].outputs) != 1 or flow.is_kept(var):
            return
        var = users[0].outputs[0]


def _inputs(flow: Flow, output: int, leaves: set[int]) -> Iterator[int]:
    """Yields what a layer may be called with: the variables that everything else which it reads passes through."""
    needed: set[int] = {output}
    yielded = 0
    for _ in range(200):
        # The variable made last cannot be what the others are computed from, unless it is the only one.
        var = max(needed)
        if len(needed) == 1 and var != output:
            yield var
            yielded += 1
            if yielded == _MOST_INPUTS:
                return
        eqn = flow.equation_of(var)
        if eqn is None:
            return
        needed.remove(var)
        needed |= {
            atom for atom in eqn.inputs if isinstance(atom, int) and atom not in leaves and not _is_constant(flow, atom)
        }
        if not needed:
            return


def _positional(*values: Any) -> tuple[tuple[str, str], ...]:
    return tuple(("", str(value)) for value in values)


def _options(**values: Any) -> tuple[tuple[str, str], ...]:
    """Returns keyword arguments, but those that are None."""
    return tuple((name, str(value)) for name, value in values.items() if value is not None)


def _dtypes(avals: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    wide = next(iter(avals.values())).dtype
    return () if wide == jnp.float32 else (("param_dtype", f"jnp.{np.dtype(wide).name}"),)


def _bias(avals: dict[str, Any]) -> Any:
    return None if "bias" in avals else False


def _convs(flow: Flow, site: Site, avals: dict[str, Any]) -> Proposals:
    found = [
        eqn
        for eqn in site.equations
        if eqn.primitive == "conv_general_dilated" and site.leaves["kernel"] == eqn.inputs[1]
    ]
    if len(found) != 1:
        return
    (eqn,) = found
    params, kernel = eqn.params, tuple(avals["kernel"].shape)
    window, strides = kernel[:-2], tuple(map(int, params["window_strides"]))
    rhs = tuple(map(int, params["rhs_dilation"]))
    pads = tuple(tuple(map(int, pair)) for pair in params["padding"])
    groups = params["feature_group_count"]
    spatial = [concrete(eqn.in_avals[0].shape, flow.sizes)[axis] for axis in params["dimension_numbers"].lhs_spec[2:]]
    dilated = [(size - 1) * step + 1 for size, step in zip(window, rhs, strict=True)]
    if all(step == 1 for step in params["lhs_dilation"]):
        for name in ("SAME", "VALID"):
            if tuple(jax.lax.padtype_to_pads(spatial, dilated, strides, name)) == pads:
                pads = f'"{name}"'  # type: ignore[assignment]
                break
    yield Constructor(
        "nnx.Conv",
        _positional(kernel[-2] * groups, kernel[-1], window)
        + _options(
            strides=_short(strides),
            padding=None if pads == '"SAME"' else pads,
            input_dilation=_short(params["lhs_dilation"]),
            kernel_dilation=_short(rhs),
            feature_group_count=None if groups == 1 else groups,
            use_bias=_bias(avals),
        )
        + _dtypes(avals),
    )


def _short(numbers: Sequence[Any]) -> Any:
    """Returns numbers as one if they are equal, and None if they are 1."""
    numbers = tuple(map(int, numbers))
    if len(set(numbers)) == 1:
        return None if numbers[0] == 1 else numbers[0]
    return numbers


def _linears(flow: Flow, site: Site, avals: dict[str, Any]) -> Proposals:
    kernel = avals["kernel"].shape
    if len(kernel) == 2:
        yield Constructor("nnx.Linear", _positional(*kernel) + _options(use_bias=_bias(avals)) + _dtypes(avals))
    elif len(kernel) == 3:
        yield from _general_linears(kernel, avals)


def _general_linears(kernel: tuple[int, ...], avals: dict[str, Any]) -> Proposals:
    options = _options(use_bias=_bias(avals)) + _dtypes(avals)
    yield Constructor("nnx.LinearGeneral", _positional(kernel[0], kernel[1:]) + options)
    yield Constructor("nnx.LinearGeneral", _positional(kernel[:-1], kernel[-1]) + _options(axis=(-2, -1)) + options)


def _embeds(flow: Flow, site: Site, avals: dict[str, Any]) -> Proposals:
    yield Constructor("nnx.Embed", _positional(*avals["embedding"].shape) + _dtypes(avals))


def _batch_norms(flow: Flow, site: Site, avals: dict[str, Any]) -> Proposals:
    features = avals["mean"].shape[0]
    options = _options(use_bias=_bias(avals), use_scale=None if "scale" in avals else False) + _dtypes(avals)
    small = [value for value in site.literals() if 0 < value < 0.5]
    momenta = [value for value in site.literals() if 0.5 <= value < 1] or [0.99]
    for epsilon, momentum in itertools.product(small, momenta):
        yield Constructor(
            "nnx.BatchNorm",
            _positional(features)
            + _options(momentum=momentum if momentum != 0.99 else None, epsilon=_epsilon(epsilon, 1e-5))
            + options,
        )


def _epsilon(value: float, default: float) -> float | None:
    return None if value == default else value


def _norms(flow: Flow, site: Site, avals: dict[str, Any]) -> Proposals:
    """Proposes norms over the last axis, all of it or what is left of it, and over groups of it."""
    features = next(iter(avals.values())).shape[0]
    literals = site.literals()
    small = [value for value in literals if 0 < value < 0.5]
    before = [int(value) for value in literals if value > features and value == int(value)]
    bias = _options(use_bias=_bias(avals), use_scale=None if "scale" in avals else False) + _dtypes(avals)
    wide = _dtypes(avals)
    for epsilon in small:
        option = _options(epsilon=_epsilon(epsilon, 1e-6))
        yield Constructor("nnx.LayerNorm", _positional(features) + option + bias)
        if "scale" in avals and "bias" not in avals:
            yield Constructor("nnx.RMSNorm", _positional(features) + option + wide)
        for full in before:
            if "bias" in avals:
                yield Constructor("NarrowLayerNorm", _positional(features, full) + option, rngs=False)
            else:
                yield Constructor("NarrowRMSNorm", _positional(features, full) + option, rngs=False)
        shapes = itertools.chain.from_iterable(aval.shape for eqn in site.equations for aval in eqn.out_avals)
        groups = {
            int(size) for size in shapes if isinstance(size, int) and 1 < size <= features and features % size == 0
        }
        for number in sorted(groups):
            yield Constructor("nnx.GroupNorm", _positional(features, number) + option + bias)


Propose = Callable[[Flow, Site, dict[str, Any]], Proposals]

_KINDS: tuple[tuple[set[str], set[str], Propose], ...] = (
    ({"kernel"}, {"kernel", "bias"}, _convs),
    ({"kernel"}, {"kernel", "bias"}, _linears),
    ({"embedding"}, {"embedding"}, _embeds),
    ({"mean", "var"}, {"mean", "var", "scale", "bias"}, _batch_norms),
    ({"scale"}, {"scale", "bias"}, _norms),
)
"""Names of the arrays that a layer must have and may have, and what it may be."""
