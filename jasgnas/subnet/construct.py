"""Sub-network construction: the full network partially evaluated at its zeros (arXiv 2305.18030, section 3.3).

The sub-network holds the arrays that are still needed, sliced to the entries that are. Called, it traces the original
model at the shapes and in the mode asked for, and evaluates that program on the smaller arrays; traces are cached.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.bridge import Leaf, Model, flavours, matched
from jasgnas.bridge.trace import Call, TracedModel, in_dtypes_of, trace_model
from jasgnas.collector import collector_paused
from jasgnas.errors import (
    ArgumentError,
    GatesLeftWarning,
    NonFiniteError,
    NothingRemovedWarning,
    TreeMismatchError,
)
from jasgnas.gates.folding import folded
from jasgnas.gates.gated import without_gates
from jasgnas.gates.modes import Mode
from jasgnas.optimizer.state import CHANGED_UPDATES, DONE, H2SPGState, h2spg_state, single_state
from jasgnas.program.jaxpr import inline
from jasgnas.program.masks import (
    NOTHING,
    Layout,
    Need,
    Zeros,
    coarsened,
    everything,
    same,
    simplified,
    stored_shape,
    union,
    unknown,
)
from jasgnas.program.sliced import Sliced, on_host
from jasgnas.rules.flow import NeedFlow, ZeroFlow, propagate_needs, propagate_zeros
from jasgnas.space.groups import zero_groups
from jasgnas.space.search import SearchSpace, require_space
from jasgnas.subnet.evaluate import Plan, choose_layout, evaluate, plan_of, whole
from jasgnas.subnet.origin import Origin
from jasgnas.subnet.verify import verify_subnet


def _wanted(traced: TracedModel, state: Sequence[Need]) -> list[Need]:
    """Returns the needs of what a call computes: all outputs of the network, and `state` of the leaves it changes."""
    outputs = [everything(len(aval.shape)) for aval in traced.output_avals]
    after = [need if index in traced.updated else NOTHING for index, need in enumerate(state)]
    return [*outputs, *after]


def _needs(traced: TracedModel, zeros: ZeroFlow, state: Sequence[Need]) -> NeedFlow:
    """Finds what is needed for all outputs of the network, and for `state` of the leaves that the call changes."""
    return propagate_needs(traced.program, zeros, _wanted(traced, state))


def _full_needs(traced: TracedModel) -> NeedFlow:
    """Finds what is needed in the full network, all of the changed leaves included."""
    return _needs(traced, propagate_zeros(traced.program), [everything(len(leaf.shape)) for leaf in traced.leaves])


def stored_leaves(leaves: Sequence[Leaf], layouts: Sequence[Layout]) -> list[Leaf]:
    """Returns the leaves of which some entries are stored, in the shapes in which they are."""
    pairs = zip(leaves, layouts, strict=True)
    return [leaf._replace(shape=stored_shape(leaf.shape, own)) for leaf, own in pairs if own != NOTHING]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to compute what the full network computes from the arrays of the sub-network.

    Attributes:
        leaves: the leaves of the full network.
        zeros: what is known to be zero in each of them.
        layouts: which entries of each the sub-network holds.
        origin: the search space, and what was removed.
    """

    leaves: tuple[Leaf, ...]
    zeros: tuple[Zeros, ...]
    layouts: tuple[Layout, ...]
    origin: Origin
    _calls: dict[Any, tuple[TracedModel, Plan]] = field(default_factory=dict, repr=False)

    @property
    def gate_paths(self) -> frozenset[str]:
        """Paths of the gates of the full network; those that are left have stayed a factor."""
        return frozenset(leaf.path for leaf in self.leaves if leaf.is_gate)

    def __reduce__(self) -> Any:
        """Copies and pickles trace their calls anew: what a trace consists of can be neither copied nor pickled."""
        return Recipe, (self.leaves, self.zeros, self.layouts, self.origin)

    def slice(self, values: Sequence[Any]) -> dict[str, Any]:
        """Returns the arrays of the sub-network by path, given those of the full network in the order of leaves."""
        found = {}
        for leaf, layout, value in zip(self.leaves, self.layouts, values, strict=True):
            if layout != NOTHING:
                found[leaf.path] = on_host(partial(_stored, leaf, layout), value)
        return found

    def apply(
        self, model: Model, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Calls the sub-network.

        Args:
            model: the full model, in the mode asked for.
            arrays: the arrays of the sub-network, by path.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Returns:
            The network outputs, and the arrays that the call has changed, by path.

        Raises:
            ArgumentError: the call needs parameters that were not needed when the sub-network was constructed.
            TreeMismatchError: the arrays are not those of the sub-network.
        """
        self.check(arrays)
        call, leaves = Call.of(args, kwargs), in_dtypes_of(self.leaves, arrays)
        traced, plan = self._prepare(model, call, leaves)
        inputs = [
            Sliced(arrays.get(leaf.path), layout, leaf.aval) for leaf, layout in zip(leaves, self.layouts, strict=True)
        ]
        results = evaluate(plan, [*inputs, *map(whole, call.arrays, call.avals)])
        outputs = [value.full() for value in results[: traced.num_outputs]]
        after = results[traced.num_outputs :]
        changed = {
            self.leaves[index].path: jnp.asarray(after[index].to(self.layouts[index]).array)
            for index in traced.updated
            if self.layouts[index] != NOTHING
        }
        return jax.tree.unflatten(traced.out_tree, outputs), changed

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Raises a `TreeMismatchError` unless these are the arrays of the sub-network, by path."""
        faults = []
        for leaf in stored_leaves(self.leaves, self.layouts):
            found = np.shape(arrays[leaf.path]) if leaf.path in arrays else "missing"
            if found != leaf.shape:
                faults.append(f"{leaf.path}: {found}, expected {leaf.shape}")
        if faults:
            raise TreeMismatchError("these are not the arrays of the sub-network:\n  " + "\n  ".join(faults))

    def _prepare(self, model: Model, call: Call, leaves: tuple[Leaf, ...]) -> tuple[TracedModel, Plan]:
        """Traces a call, and plans how to evaluate it on the arrays of the sub-network."""
        dtypes = tuple(leaf.dtype for leaf in leaves)
        key = (model.static, call.avals, call.static, call.treedef, dtypes)
        if (known := self._calls.get(key)) is not None:
            return known
        traced = trace_model(model, call, leaves)
        needs = _needs(traced, propagate_zeros(traced.program, self.zeros), self.layouts)
        for leaf, layout, var in zip(self.leaves, self.layouts, traced.program.inputs, strict=False):
            if not same(union(layout, needs.read(var)), layout):
                raise ArgumentError(
                    f"this call needs entries of {leaf.path} that were not needed by the calls that the sub-network "
                    "was constructed for. Make the search space with example inputs that use all of the network."
                )
        prepared = traced, plan_of(traced.program, needs, _full_needs(traced))
        # Constants that belong to a transformation under way must not outlive it.
        if not any(isinstance(value, jax.core.Tracer) for value in traced.program.constants.values()):
            self._calls[key] = prepared
        return prepared


def _stored(leaf: Leaf, layout: Layout, value: Any) -> Any:
    return whole(value, leaf.aval).to(layout).array


def opened_subnet(subnet: Any) -> tuple[Recipe, Model] | None:
    """Returns how a sub-network of any flavour computes, and its full model; None for what is no sub-network."""
    made = filter(None, (flavour.recipe_of(subnet) for flavour in flavours()))
    # Networks with gates are made of full ones by recipes of another kind.
    return next(((recipe, model) for recipe, model in made if isinstance(recipe, Recipe)), None)


def construct_subnet(
    space: SearchSpace, holder: Any, *, opt_state: Any = None, allow_nothing: bool = False, verify: bool = False
) -> Any:
    """Constructs the sub-network: the groups that are entirely zero are gone, and all that only they needed.

    Nothing but exact zeros of whole groups is removed, so the sub-network returns what the full network returns, up to
    the order of floating-point sums, at any batch size, in training and in inference mode, and can be trained further.

    Gates of `jasgnas.gated` that are 1 vanish. So do trained ones that parameters can be multiplied by instead: those
    that what is gated grows in proportion with, in all modes, or that it is multiplied by wherever it is read, and that
    nothing else makes use of.

    Args:
        space: the search space.
        holder: the `nnx.Module` or Equinox module (with its state, if it has one, as a pair), the variables of the
            Linen module, or the parameter pytree of the function, Haiku's `(params, state)` if it has a state.
        opt_state: the optimizer state that belongs to it, which holds one `h2spg`. Its word that groups are zero is
            checked, and messages say how far it has come.
        allow_nothing: whether it is as it should be that no group is zero.
        verify: whether to compare full and sub-network on random inputs of the traced shapes.

    Returns:
        For an `nnx.Module` a smaller `nnx.Module`; for an Equinox module a smaller one, of a class derived from its
        own, with its state if it has one; for the variables of a Linen module the tuple of a smaller module and its
        variables; for the parameters of a function the tuple of a function `sub_fn(sub_params, *inputs)` and its
        smaller parameters, of a Haiku transform that of a transform and its parameters. Parameters keep their names.

    Raises:
        ArgumentError: `space` is no search space; groups that `opt_state` says are zero are not; or it is the state of
            a network that has been shrunk.
        TreeMismatchError: the arrays do not match the search space, or the state was made for another one.
        NonFiniteError: an array holds NaN or infinity.
        InvalidRemovalError: the zero groups cut off a network output.
        VerificationError: full and sub-network differ (with `verify=True`).

    Warns:
        NothingRemovedWarning: no group is entirely zero (unless `allow_nothing`).
        GatesLeftWarning: gates of `jasgnas.gated` stay as multiplications: they are neither 1 nor could be folded.
    """
    require_space(space)
    state = None if opt_state is None else single_state(h2spg_state(opt_state, space))
    if state is not None and state.remainder.removed:
        raise ArgumentError(
            f"this network has been shrunk already: the groups {space.names_of(state.remainder.removed)} are gone, and "
            "what is left is the sub-network. To take out what has become zero since, call jasgnas.shrink again"
        )
    values = matched(space.leaves, space.model.tree(holder))
    removed = zero_indices(space, values)
    if state is not None:
        require_zero(space, np.flatnonzero(state.zero), removed, state)
    if not (removed or allow_nothing):
        warn_of_nothing(space, state)
    space.require_valid(removed)
    full, full_values = space, values
    if (left := _without_gates(space, holder, values, removed)) is not None:
        space, holder = left
        values = matched(space.leaves, space.model.tree(holder))
        removed = zero_indices(space, values)
    recipe = make_recipe(space, removed)
    arrays = recipe.slice(values)
    if verify:
        verify_subnet(full, full_values, partial(recipe.apply, space.model), arrays)
    if stayed := sorted(recipe.gate_paths & arrays.keys()):
        warnings.warn(
            f"of the {len(recipe.gate_paths)} gates these stay as a multiplication each, since they are not 1 and no "
            f"parameters can take them up: {', '.join(stayed)}. Gates that h2spg holds vanish (train_gates=False)",
            GatesLeftWarning,
            stacklevel=2,
        )
    return space.model.wrap_subnet(recipe, holder, arrays)


def _without_gates(
    space: SearchSpace, holder: Any, values: Sequence[Any], removed: Sequence[int]
) -> tuple[SearchSpace, Any] | None:
    """Returns the space of a network without those of its gates that are 1 or are folded, and its holder.

    That is None if there are no such gates.
    """
    free = [index for index in range(len(space.leaves)) if index not in space.kept]
    factors = {index: np.asarray(values[index]) for index in free if space.leaves[index].is_gate}
    # Those that are zero have been removed.
    if trained := [index for index, factor in factors.items() if np.any(factor) and np.any(factor != 1)]:
        takers = [index for index in free if space.leaves[index].trainable and index not in factors]
        values = folded(_modes(space, removed, trained), values, trained, takers)
    at_one = {space.leaves[index].path for index in factors if np.all(np.asarray(values[index]) == 1)}
    if not at_one:
        return None
    arrays = {leaf.path: value for leaf, value in zip(space.leaves, values, strict=True)}
    if (left := without_gates(space.model, holder, arrays, at_one)) is None:
        return None
    model, holder = left
    return space.of_model(model), holder


def _modes(space: SearchSpace, removed: Sequence[int], trained: Sequence[int]) -> list[Mode]:
    """Returns the network without some groups in all modes, with nothing said of some gates."""
    recipe = make_recipe(space, removed)
    known = [unknown(len(each.axes)) if i in trained else each for i, each in enumerate(recipe.zeros)]
    modes = []
    for traced in space.traces:
        program = inline(traced.program)
        modes.append(Mode(program, propagate_zeros(program, known), _wanted(traced, recipe.layouts)))
    return modes


def require_zero(space: SearchSpace, claimed: Iterable[int], zero: Iterable[int], state: H2SPGState | None) -> None:
    """Raises an `ArgumentError` if groups that are to be removed are not entirely zero."""
    if alive := sorted(set(map(int, claimed)).difference(zero)):
        said = "" if state is None else f", though the optimizer state ({_progress(state)}) says so. {CHANGED_UPDATES}"
        raise ArgumentError(
            f"the groups {space.names_of(alive)} are not entirely zero{said}. Nothing but exact zeros is removed: pass "
            "the parameters that belong to the optimizer state, or make these zero first, as an average of parameters "
            "must be: space.zero(model, removed)"
        )


def warn_of_nothing(space: SearchSpace, state: H2SPGState | None) -> None:
    """Warns that no group is zero, and says why that may be."""
    if state is None:
        why = (
            "If h2spg has trained the network, it is not through with its projection, or its updates were changed: "
            "give `opt_state=` to be told which"
        )
    elif np.any(state.revived):
        why = CHANGED_UPDATES
    elif state.phase == DONE and not np.any(state.redundant):
        why = f"h2spg selected none ({_progress(state)}): no more groups are there than at_most allows"
    else:
        why = f"h2spg is not as far yet: {_progress(state)}, {int(np.sum(state.redundant))} groups selected"
    warnings.warn(
        f"nothing was removed: none of the {len(space.groups)} groups is entirely zero. {why}. Where that is as it "
        "should be, construct_subnet(..., allow_nothing=True)",
        NothingRemovedWarning,
        stacklevel=3,
    )


def _progress(state: H2SPGState) -> str:
    """Says how far H2SPG has come."""
    phase = ("warm-up", "projection", "done")[int(state.phase)]
    return f"step {int(state.step)}, phase {int(state.phase)} ({phase})"


@collector_paused()
def make_recipe(space: SearchSpace, removed: Sequence[int]) -> Recipe:
    """Finds which entries of which leaves the network needs without some groups, in training and in inference mode."""
    known = space.zeros_of_leaves(removed)
    modes = [(traced, propagate_zeros(traced.program, known)) for traced in space.traces]
    # Leaves that `keep=` names are needed whatever goes.
    full = [everything(len(leaf.shape)) for leaf in space.leaves]
    needs: list[Need] = [need if index in space.kept else NOTHING for index, need in enumerate(full)]
    full_needs = needs
    for traced in space.traces:
        full_needs = _joined(full_needs, traced, _full_needs(traced))
    settled = False
    while not settled:
        # State that is needed must be kept up to date, which may need more.
        before = needs
        for traced, zeros in modes:
            needs = _joined(needs, traced, _needs(traced, zeros, needs))
        settled = all(map(same, before, needs))
    # Along how many axes of each leaf layers are stacked.
    stacked = [1] * len(space.leaves)
    for part in space.graph.parts:
        stacked[part.leaf] = max(stacked[part.leaf], len(part.row))
    layouts = map(choose_layout, known, needs, [unknown(len(leaf.shape)) for leaf in space.leaves], full_needs)
    stored = tuple(simplified(coarsened(layout, most)) for layout, most in zip(layouts, stacked, strict=True))
    return Recipe(space.leaves, tuple(known), stored, Origin.of(space, removed))


def _joined(needs: Sequence[Need], traced: TracedModel, found: NeedFlow) -> list[Need]:
    """Returns the needs of leaves together with those that were found in one mode."""
    return [union(need, found.read(var)) for need, var in zip(needs, traced.program.inputs, strict=False)]


def zero_indices(space: SearchSpace, values: Sequence[Any]) -> list[int]:
    """Returns the groups whose every parameter is exactly zero, given all leaves.

    Raises:
        ArgumentError: the arrays are abstract, or traced.
        NonFiniteError: an array holds NaN or infinity.
    """
    if any(isinstance(value, jax.ShapeDtypeStruct | jax.core.Tracer) for value in values):
        raise ArgumentError(
            "the values of these arrays are not known, but which groups are zero is read off them: pass the arrays "
            "themselves, outside jax.jit and other transformations"
        )
    arrays = {leaf.path: value for leaf, value in zip(space.leaves, values, strict=True)}
    zero = np.flatnonzero(zero_groups(space.candidates.owners, arrays, len(space.groups))).tolist()
    bad = [
        leaf.path
        for leaf in space.leaves
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not bool(on_host(_is_finite, arrays[leaf.path]))
    ]
    if bad:
        why = "training has diverged (a smaller learning rate or gradient clipping may help)"
        if zero:
            why += (
                ", or the gradient of a group at zero is not finite, as that of a norm is, and a link before h2spg has "
                "spread it (clipping by the global norm): make gradients finite first, with optax.zero_nans() as the "
                "first link of the chain"
            )
        raise NonFiniteError(
            f"{', '.join(bad)} hold NaN or infinity. Construct from the last finite checkpoint; {why}."
        )
    return zero


def _is_finite(array: Any) -> Any:
    xp = np if isinstance(array, np.ndarray) else jnp
    return xp.all(xp.isfinite(array))
