"""The search space: which parts of a network may be removed, as groups of parameters."""

import contextlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from jasgnas.bridge import Leaf, Model, argument_names, open_model
from jasgnas.bridge.trace import Call, TracedModel, trace_model
from jasgnas.collector import collector_paused
from jasgnas.errors import (
    ArgumentError,
    DisconnectedOutputError,
    InvalidRemovalError,
    NoRemovableStructureError,
    TargetError,
    TreeMismatchError,
)
from jasgnas.graph.build import build_graph
from jasgnas.graph.graph import Graph
from jasgnas.graph.graphs_tuple import segment_graph, trace_graph
from jasgnas.graph.names import operator_label, segment_label
from jasgnas.program.jaxpr import Program, inline
from jasgnas.program.masks import NOTHING, Zeros, everything
from jasgnas.pytree import leaves_by_path, path_str
from jasgnas.rules.flow import propagate_needs, propagate_zeros
from jasgnas.space.alignment import Aligner
from jasgnas.space.candidates import Candidates
from jasgnas.space.channels import find_channels
from jasgnas.space.crowds import AtMost
from jasgnas.space.dependence import build_dependence
from jasgnas.space.dimensions import Channels, Dimension
from jasgnas.space.explanation import KeepPattern, explanation, why_nothing
from jasgnas.space.groups import (
    NOBODY,
    Group,
    Groups,
    cleared,
    gate_table,
    leaf_zeros,
    owner_table,
    zeros_of_leaves,
)
from jasgnas.space.invariance import Effect
from jasgnas.space.latency import LatencyTable
from jasgnas.space.limits import Limit, Limits
from jasgnas.space.loops import with_loops_refused, with_loops_unfolded
from jasgnas.space.mixtures import Mixture, resolve
from jasgnas.space.named import connected_inputs, kept_leaves, require_connected, required_outputs
from jasgnas.space.selection import Selection
from jasgnas.space.sharing import Sharing
from jasgnas.space.sizes import build_costs, counted_segments
from jasgnas.space.structures import FoundGroups, find_groups, num_params
from jasgnas.space.table import description, table
from jasgnas.space.targets import Target
from jasgnas.space.validity import is_valid
from jasgnas.space.widths import WidthCounter


class Kinds(NamedTuple):
    """Which kinds of groups are searched for."""

    structures: bool
    channels: bool


@dataclass(frozen=True, eq=False, repr=False)
class SearchSpace:
    """What may be removed from a network, and what depends on what.

    Attributes:
        model: the model, as a pure function of its leaves.
        call: the example inputs it was traced with.
        traced: the trace, in inference mode.
        graph: its operators and segments.
        structures: the parameters of each minimal removal structure, which are the first groups.
        channels: the channel groups, which come after them, and their dimensions.
        aligner: what knows which axes of the operands and results of an operator are the same.
        reasons: for each segment, why it is or is not removable.
        effects: what the groups do to parameters of other segments than their own.
        kept: indices of the leaves that `keep=` names.
        connected: for each array among the inputs, whether it is one of those that outputs must stay connected to.
        outputs: paths of the outputs that must stay connected to one of those, None for all.
        tie: patterns of the paths of structures that are one group.
        kinds: which kinds of groups were searched for.
    """

    model: Model
    call: Call
    traced: TracedModel
    graph: Graph
    structures: tuple[Group, ...]
    channels: Channels
    aligner: Aligner
    reasons: tuple[str, ...]
    effects: tuple[Effect, ...]
    kept: frozenset[int]
    connected: tuple[bool, ...]
    outputs: tuple[str, ...] | None
    tie: tuple[str, ...]
    kinds: Kinds

    def __reduce__(self) -> Any:
        """Copies and pickles search anew: a trace can be neither copied nor pickled, and the model says it all."""
        return search, (self.model, self.call, self.kept, self.connected, self.outputs, self.tie, self.kinds)

    @cached_property
    def groups(self) -> Sequence[Group]:
        """The groups: structures, and then channels by dimension and index, each made when it is asked for."""
        if not self.dimensions:
            return self.structures
        sizes = self.candidates.num_params

        def channel(index: int) -> Group:
            return self.channels.group(index, self.leaves, int(sizes[index]))

        return Groups(self.structures, len(self.channels), channel)

    def name_of(self, index: int) -> str:
        """Returns the name of a group, without making the group."""
        return self.structures[index].name if index < len(self.structures) else self.channels.name(index)

    def names_of(self, indices: Iterable[int]) -> str:
        """Returns groups in words: structures by index and name, channels by their number and dimension."""
        removed = self.removed(indices)
        words = [f"{group.index} ({group.name})" for group in self.structures if removed[group.index]]
        counts = [int(removed[each.groups].sum()) for each in self.dimensions]
        words += [
            f"{number} of {each.size} channels of {each.name}"
            for each, number in zip(self.dimensions, counts, strict=True)
            if number
        ]
        return ", ".join(words)

    def describe(self, indices: Iterable[int]) -> str:
        """Returns what is left without some groups as text: the structures that go, the widths, the size.

        Raises:
            ArgumentError: an index is no group's.
        """
        return description(self, list(indices))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The widths that can be narrowed; none unless the space was made with `channels=True`."""
        return self.channels.dimensions

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """All arrays of the model, in the order of its pytree."""
        return self.model.leaves

    @cached_property
    def traces(self) -> tuple[TracedModel, ...]:
        """The network traced in inference and training mode, and with its boolean arguments inverted."""
        traces = {(self.model.static, self.call.static): self.traced}
        for call in self.call.variants:
            for training in (False, True):
                model = self.model.in_mode(training)
                if (model.static, call.static) not in traces:
                    # With inverted arguments a model may fail; then nobody will ever call it so. In training it may
                    # need what only the training step provides, such as the axis that statistics are averaged over.
                    with contextlib.suppress(Exception):
                        traces[model.static, call.static] = trace_model(model, call)
        return tuple(traces.values())

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the leaves, by path."""
        return {leaf.path: leaf.shape for leaf in self.leaves}

    @cached_property
    def candidates(self) -> Candidates:
        """The groups as arrays, without the network."""
        structures = owner_table(self.structures, self.shapes)
        channels = self.channels.owners(self.leaves)
        owners = {path: (*structures.get(path, ()), *channels.get(path, ())) for path in {**structures, **channels}}
        gates = gate_table(self.structures, structures)
        described = [[(str(each), self.shapes[each.path]) for each in group.slices] for group in self.structures]
        fingerprint = zlib.crc32(repr(described).encode())
        for path, own in channels.items():
            for axes, groups in own:
                fingerprint = zlib.crc32(f"{path}{axes}".encode() + groups.astype("<i8").tobytes(), fingerprint)
        sizes = [group.num_params for group in self.structures]
        sharing = Sharing(self.graph, self.structures)
        widths = None
        if self.channels.dimensions:
            places = self.channels.places
            counter = WidthCounter(self.graph, self.leaves, self.effects, places, self.kept, self.aligner, sharing)
            widths = counter.count()
        return Candidates(
            num_params=np.array([*sizes, *self.channels.num_params(self.leaves)]),
            group_of=np.array([sharing.group_of.get(segment, NOBODY) for segment in range(sharing.num_all)], int),
            shapes=self.shapes,
            owners=owners,
            gates={path: (*gates.get(path, ()), *channels.get(path, ())) for path in owners},
            dependence=build_dependence(self.graph, sharing, structures, self.leaves, self.connected),
            costs=build_costs(self.graph, self.leaves, self.effects, self.kept, sharing),
            fingerprint=fingerprint,
            gate_leaves=frozenset(leaf.path for leaf in self.leaves if leaf.is_gate),
            paths=tuple(tuple(own.path for own in each.slices if own.axis is None) for each in self.structures),
            gate_groups=tuple(group.index for group in self.structures if group.kind == "gate"),
            channels=self.channels if self.dimensions else None,
            inner_of=self.channels.inner_of(structures, self.leaves) if self.dimensions else None,
            widths=widths,
        )

    def channels_left(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Returns how many channels of each dimension are left without some groups, 0 where all that makes it goes."""
        removed = self.removed(indices)
        structures, channels = np.split(removed, [len(self.structures)])
        left = np.bincount(self.channels.dimension_of, ~channels, len(self.dimensions)).astype(int)
        return tuple(np.where(self._gone_with(structures), 0, left).tolist())

    def subnet_size(self, indices: Iterable[int]) -> tuple[int, int]:
        """Returns the parameters and multiply-adds that are left without some groups, at most.

        Branches that only the removed groups made use of are gone too. Nothing is constructed: the count follows the
        dependence graph. It is exact unless a branch is left with nothing but its biases, or features of a layer that
        stays have lost their use; then less is left than it says.
        """
        sizes = self.candidates.subnet_size(self.removed(indices))
        return sizes["params"], sizes["macs"]

    @cached_property
    def trace_graph(self) -> jraph.GraphsTuple:
        """The operators, as a graph whose node features are dictionaries of arrays of shape `[num_operators]`."""
        return trace_graph(self.graph, self._segment_groups, self._num_params)

    @cached_property
    def segment_graph(self) -> jraph.GraphsTuple:
        """The segments, as a graph whose node features are dictionaries of arrays of shape `[num_segments]`."""
        return segment_graph(self.graph, self._segment_groups, self._num_params)

    @cached_property
    def operator_names(self) -> tuple[str, ...]:
        """Name of every node of the trace graph: what it is, and the modules whose parameters it holds."""
        return tuple(operator_label(operator, self.graph, self.leaves) for operator in self.graph.operators)

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """Name of every node of the segment graph: its modules, or its operators where it has none."""
        return tuple(segment_label(segment, self.graph, self.leaves) for segment in self.graph.segments)

    @cached_property
    def largest_removal(self) -> tuple[int, ...]:
        """Indices of a valid set of groups, as large as any known."""
        channels = [index for each in self.dimensions for index in each.groups[each.min_channels :]]
        return (*self.candidates.largest_removal(), *channels)

    @property
    def _segment_groups(self) -> np.ndarray:
        """Group of each segment, or -1."""
        return self.candidates.group_of[: len(self.graph.segments)].astype(np.int32)

    @cached_property
    def _num_params(self) -> list[int]:
        counted: set[int] = set()
        numbers = []
        for operator in self.graph.operators:
            own = [part for part in operator.parts if part not in counted]
            counted.update(own)
            numbers.append(sum(num_params(self.graph.parts[part], self.leaves) for part in own))
        return numbers

    def removed(self, indices: Iterable[int]) -> np.ndarray:
        """Returns group indices as a bool vector `[num_groups]`.

        Raises:
            ArgumentError: an index is out of range or not an integer, such as an entry of a boolean vector.
        """
        try:
            listed = list(indices)
        except TypeError:
            raise ArgumentError(f"expected group indices, such as [0, 2], got {indices!r}") from None
        marked = np.zeros(len(self.groups), bool)
        for index in listed:
            number = np.asarray(index)
            if number.ndim or not np.issubdtype(number.dtype, np.integer):
                hint = "; those of a boolean vector over the groups are np.flatnonzero(vector)"
                raise ArgumentError(f"expected group indices, got {index!r}{hint if number.dtype == bool else ''}")
            if not 0 <= number < len(self.groups):
                raise ArgumentError(f"no group {number}: the search space has groups 0 to {len(self.groups) - 1}")
            marked[number] = True
        return marked

    def is_valid(self, indices: Iterable[int]) -> bool:
        """Tells whether every network output still depends on the network input without these groups.

        A dimension must keep its `min_channels`, unless all that makes it goes with the structures among the groups.
        """
        removed = self.removed(indices)
        structures = removed[: len(self.structures)]
        if not is_valid(self.candidates.dependence, structures):
            return False
        emptied = self.channels.emptied(removed)
        return not emptied or bool(self._gone_with(structures)[emptied].all())

    def _gone_with(self, structures: np.ndarray) -> np.ndarray:
        """Returns the dimensions of which nothing is left that makes them without some structures.

        Args:
            structures: bool `[num_structures]`.

        Returns:
            bool `[num_dimensions]`.
        """
        table = owner_table([group for group in self.structures if structures[group.index]], self.shapes)
        marked = np.ones(len(self.structures), bool)
        candidates = self.candidates
        counted = counted_segments(candidates.dependence, structures, candidates.costs.num_segments)
        needed = {
            leaf
            for segment in np.flatnonzero(counted[: len(self.graph.segments)]).tolist()
            for operator in self.graph.segments[segment].operators
            for leaf in self.graph.leaves_of(operator)
        }
        gone = np.ones(len(self.dimensions), bool)
        for each in self.channels.axes:
            if not each.makes or each.leaf not in needed:
                continue
            leaf = self.leaves[each.leaf]
            zeros = leaf_zeros(table.get(leaf.path, ()), marked, len(leaf.shape))
            is_zero = zeros.apart.axis(each.axis, len(each.groups))
            left = each.groups[~is_zero & (each.groups != NOBODY)] - self.channels.first
            gone[self.channels.dimension_of[left]] = False
        return gone

    def require_valid(self, indices: Iterable[int]) -> None:
        """Raises `InvalidRemovalError` if removing these groups would cut off a network output.

        Stricter than `is_valid` alone: the zeros are followed through the whole network, too.
        """
        indices = np.flatnonzero(self.removed(indices)).tolist()
        cut = [] if self.is_valid(indices) else ["an output"]
        if cut or (cut := self._cut_off(indices)):
            raise InvalidRemovalError(
                f"without the groups {self.names_of(indices)} no path is left from the network input to "
                f"{', '.join(cut)}. Check a set with space.is_valid(indices), or let jasgnas.h2spg choose it."
            )

    def _cut_off(self, indices: Sequence[int]) -> list[str]:
        """Returns the outputs that must stay and need no entry of an input that they must stay connected to."""
        program = self.traced.program
        inputs = program.inputs[len(self.leaves) :]
        flow = propagate_zeros(program, self.zeros_of_leaves(indices))
        connected = list(compress(inputs, self.connected))
        outputs = [everything(len(aval.shape)) for aval in self.traced.output_avals]
        cut = []
        for index, name in compress(enumerate(self.traced.output_names), required_outputs(self.traced, self.outputs)):
            wanted = [need if index == i else NOTHING for i, need in enumerate(outputs)]
            needs = propagate_needs(program, flow, [*wanted, *[NOTHING] * len(self.leaves)])
            if all(needs.read(var) == NOTHING for var in connected):
                cut.append(name)
        return cut

    def zero(self, holder: Any, indices: Iterable[int]) -> Any:
        """Returns the same kind of object with the parameters of some groups set to zero.

        Args:
            holder: the model, its variables, or a pytree of its parameters.
            indices: indices of the groups.

        Raises:
            ArgumentError: an index is no group's, or the parameters are abstract.
            TreeMismatchError: a parameter of the groups is missing or has another shape.
        """
        marked = self.removed(indices)
        owners = {
            path: own for path, own in self.candidates.owners.items() if any(np.any(each.mask(marked)) for each in own)
        }
        tree = self.model.tree(holder)
        found = leaves_by_path(tree)
        faults = [path for path in owners if path not in found or np.shape(found[path]) != self.shapes[path]]
        if faults:
            raise TreeMismatchError(
                f"the parameters {', '.join(faults)} are missing or have another shape than in the search space; "
                "pass the model that the space was made for, or its parameters"
            )
        if any(isinstance(found[path], jax.ShapeDtypeStruct) for path in owners):
            raise ArgumentError(
                "these parameters are abstract: only arrays can be set to zero. Pass the initialised ones"
            )

        def clear(keys: Any, leaf: Any) -> Any:
            own = owners.get(path_str(keys))
            return leaf if own is None else cleared(own, marked, leaf)

        return self.model.like(holder, jax.tree_util.tree_map_with_path(clear, tree))

    def of_model(self, model: Model) -> "SearchSpace":
        """Returns the space of a model with some of the leaves of this one, each structure of it by itself."""
        kept = {self.leaves[index].path for index in self.kept}
        indices = frozenset(index for index, leaf in enumerate(model.leaves) if leaf.path in kept)
        return search(model.in_mode(training=False), self.call, indices, self.connected, self.outputs, (), self.kinds)

    def zeros_of_leaves(self, indices: Iterable[int]) -> list[Zeros]:
        """Returns what is known to be zero in each leaf without some groups."""
        return zeros_of_leaves(self.candidates.owners, self.leaves, self.removed(indices))

    def random_redundant(self, key: jax.Array, k: int) -> tuple[int, ...]:
        """Returns a random valid set of `k` group indices, in rising order.

        Groups are visited in random order, as H2SPG visits them by score; where that ends in a set that is too small
        and cannot grow, the set is drawn from `largest_removal`.

        Raises:
            TargetError: no valid set of `k` groups is known.
        """
        self.require_reachable(k)
        order = np.asarray(jax.random.permutation(key, len(self.groups))).tolist()
        dependence, num_structures = self.candidates.dependence, len(self.structures)
        spare = [dimension.size - dimension.min_channels for dimension in self.dimensions]
        removed = np.zeros(len(self.groups), bool)
        num_chosen = 0
        for index in order:
            if num_chosen == k:
                break
            removed[index] = True
            if index < num_structures:
                removed[index] = is_valid(dependence, removed[:num_structures])
            else:
                dimension = self.channels.dimension_of[index - num_structures]
                removed[index] = spare[dimension] > 0
                spare[dimension] -= 1
            num_chosen += int(removed[index])
        if num_chosen < k:
            return tuple(sorted([index for index in order if index in set(self.largest_removal)][:k]))
        return tuple(np.flatnonzero(removed).tolist())

    def select(
        self,
        scores: Any,
        *,
        target_groups: int | Mapping[str, int] | None = None,
        target_sparsity: float | Mapping[str, float] | None = None,
        target_params: int | float | None = None,
        target_macs: int | float | None = None,
        target_latency: float | None = None,
        target_seconds: float | None = None,
        latency: LatencyTable | None = None,
        min_channels: Limit | None = None,
        multiple_of: Limit | None = None,
        at_most: AtMost | None = None,
        per_cost: bool = False,
        hierarchical: bool = True,
    ) -> tuple[int, ...]:
        """Returns the groups that H2SPG would remove with these scores, in rising order.

        Args:
            scores: float `[num_groups]`, larger for groups to remove sooner; NaN comes last.
            target_groups: how many groups to remove. Exactly one target is needed; they are those of
                `jasgnas.h2spg`.
            target_sparsity: the same as a fraction of the number of groups.
            target_params: the most trainable parameters of the sub-network, or a fraction of the full network's.
            target_macs: the same for multiply-adds.
            target_latency: the most time of a forward pass, as a fraction of the full network's by `latency`.
            target_seconds: the same in seconds.
            latency: what `jasgnas.measure_latency` has measured of this space.
            min_channels: how many channels of a dimension stay at least, as in `jasgnas.h2spg`.
            multiple_of: what the number of those that stay is a multiple of, as there.
            at_most: how many groups stay at most of those that match a pattern, as there.
            per_cost: whether scores are in units of the loss, minus its rise when the group goes. A target in
                parameters or multiply-adds is then met at little cost: groups go by rising cost per unit saved. By
                falling score without it.
            hierarchical: False ignores whether the network stays valid; for comparisons only, of structures.

        Where there are channels, structures and channels go by one order to a size; of each kind so many as
        `target_groups` or `target_sparsity` says.

        Raises:
            ArgumentError: the scores are not one number for each group, or all of them are NaN; not exactly one target
                is given, or it or a limit is of the wrong kind.
            TargetError: no removal meets the target within the limits, or none is needed.
        """
        values = np.asarray(scores)
        num_groups = len(self.groups)
        is_real = jnp.issubdtype(values.dtype, jnp.floating) or np.issubdtype(values.dtype, np.integer)
        if values.shape != (num_groups,) or not is_real:
            raise ArgumentError(
                f"expected scores of shape [num_groups], here ({num_groups},), got {values.dtype} of shape "
                f"{values.shape}. Give one number for each of space.groups"
            )
        if np.isnan(values).all():
            raise ArgumentError("all scores are NaN: nothing says which groups should go. Give those that are known")
        targets = {
            "target_groups": target_groups,
            "target_sparsity": target_sparsity,
            "target_params": target_params,
            "target_macs": target_macs,
            "target_latency": target_latency,
            "target_seconds": target_seconds,
        }
        target = resolve(self.candidates, targets, 1, hierarchical, Limits(min_channels, multiple_of), latency, at_most)
        reachable = np.isin(np.arange(num_groups), target.reachable)
        floats = jnp.asarray(values.astype(np.float64), float)  # as wide as JAX has them
        # Which groups are known to reach the target is no constant of the program, and so compiles none anew.
        target = replace(target, reachable=()) if isinstance(target, Target) else target
        selected = _select(target, floats, reachable, by_cost=per_cost, hierarchical=hierarchical)
        return tuple(np.flatnonzero(selected.redundant).tolist())

    def require_reachable(self, k: int) -> None:
        """Raises `TargetError` if no valid set of `k` groups is known."""
        most = len(self.largest_removal)
        if not 0 <= k <= most:
            raise TargetError(
                f"{k} redundant groups were asked for; at most {most} of the {len(self.groups)} groups can go "
                "if every network output is to stay connected to the input"
            )

    def explain(self, path: KeepPattern | None = None) -> str:
        """Says why operators are or are not removable.

        Args:
            path: a parameter path, a pattern such as `blocks/*/kernel` or a compiled regular expression; only the
                segments that own a parameter that matches are explained. All of them without it.

        Raises:
            ArgumentError: no parameter matches.
        """
        return explanation(self, path)

    def __repr__(self) -> str:
        """Returns what the space is about, in one line."""
        total = sum(int(np.prod(leaf.shape)) for leaf in self.leaves if leaf.trainable)
        inside = sum(group.num_params for group in self.structures)
        narrow = f", {len(self.channels)} channels in {len(self.dimensions)} dimensions" if self.dimensions else ""
        return (
            f"<SearchSpace: {len(self.structures)} groups with {inside:,} of {total:,} parameters{narrow}; print() "
            "shows them>"
        )

    def __str__(self) -> str:
        """Returns a table of the groups, and what else a person wants to know first."""
        return table(self)

    def _repr_html_(self) -> str:
        """Returns the report of the space in a frame, which notebooks show."""
        from jasgnas.pages.page import embedded  # here, because the report is made of spaces

        return embedded(self)

    def _repr_svg_(self) -> str | None:
        """Returns a drawing of the space, for notebooks that are shown where no scripts run."""
        from jasgnas.pages.drawing import picture  # here, because drawings are made of spaces

        return picture(self)


def require_space(space: Any) -> None:
    """Raises an `ArgumentError` unless the first argument is a search space."""
    if not isinstance(space, SearchSpace):
        raise ArgumentError(
            f"expected the search space first, as jasgnas.search_space returns it, got {type(space).__name__}; the "
            "model, its variables or its parameters come after it"
        )


@partial(jax.jit, static_argnames=("by_cost", "hierarchical"))
def _select(
    target: Target | Mixture, scores: jax.Array, reachable: jax.Array, *, by_cost: bool, hierarchical: bool
) -> Selection:
    """Selects what is to go all at once; compiled once for all scores and amounts of one space."""
    nothing = jnp.zeros_like(reachable)
    return target.select(scores, -1, reachable, nothing, by_cost=by_cost, hierarchical=hierarchical)


def search_space(
    model: Any,
    *args: Any,
    variables: Any = None,
    params: Any = None,
    method: Any = None,
    keep: Sequence[KeepPattern] | KeepPattern = (),
    inputs: Sequence[str | int] | str | int | None = None,
    outputs: Sequence[str | int] | str | int | None = None,
    tie: Sequence[str] | str = (),
    structures: bool = True,
    channels: bool = False,
    **kwargs: Any,
) -> SearchSpace:
    """Finds what may be removed from a network (arXiv 2305.18030, section 3.1; arXiv 2312.09411, section 3).

    The model is traced once, in inference mode, with abstract values: nothing is computed.

    Args:
        model: an `nnx.Module`, an Equinox module, a Linen module, a Haiku transform, or a function
            `fn(params, *inputs)`.
        *args: example inputs, arrays or `jax.ShapeDtypeStruct`s (or pytrees of them). Those of a Haiku transform are
            what its `apply` takes after parameters and state, a random key or None among them; an Equinox module takes
            one example, unless its `method` is a function with `jax.vmap` in it.
        variables: the variables of a Linen module, as `module.init` returns them; the state of an Equinox module, as
            `equinox.nn.make_with_state` returns it, which the module takes as its last argument and returns second.
        params: the parameter pytree of a function; of a Haiku transform what its `init` returned, the parameters or the
            pair of parameters and state.
        method: the method of a Linen or Equinox module that is called instead of `__call__`, by its name or as a
            function that takes the module first: `lambda module, x: jax.vmap(module)(x)`.
        keep: patterns (as in a shell, or compiled regular expressions) of parameter paths that are never candidates.
        inputs: the arguments that outputs must stay connected to, by name or position, or `x/image` for a leaf of a
            pytree: every output must depend on one of them. By default all but random keys, typed ones and those under
            the keyword `rngs`; keys that are plain uint32 arrays are left out by naming the others.
        outputs: the outputs that must stay connected, by their path in what the model returns: `logits`, `0`, or `0/x`;
            one with all below it. By default all. The others may lose everything that they depend on, and are then
            constant: features that are returned beside the prediction, new states, or a temperature.
        tie: patterns of parameter paths, `cells/*/{edge}/{op}/**` for example: `*` and `{name}` are one component of a
            path or a part of it, `**` any number of components. A structure matches if the paths of all leaves that it
            holds as a whole, or rows of, match with the same names; structures for which the names stand for the same
            are one group: they go together or not at all. Structures that share a leaf are one group without that.
        structures: whether minimal removal structures are candidates.
        channels: whether single channels are, beside them: indices of an axis that is the same axis everywhere, of the
            features of a convolution, the width of a residual stream, or the heads of an attention.
        **kwargs: further arguments of the call (`train=False`, for a Linen module also `rngs`).

    Returns:
        The search space. Group indices and names follow the order of the trace: the same model gives the same space.

    Raises:
        ArgumentError: the model is of an unknown kind, an argument is missing, or a pattern matches or ties nothing.
        DisconnectedOutputError: a network output does not depend on the input.
        NoRemovableStructureError: nothing can be removed.
    """
    for name, value in {"structures": structures, "channels": channels}.items():
        if not isinstance(value, bool):
            raise ArgumentError(
                f"{name} must be True or False, got a {type(value).__name__}: an argument of the network that has this "
                "name can be given by position alone"
            )
    if not (structures or channels):
        raise ArgumentError("structures=False leaves nothing to search for without channels=True")
    with collector_paused():
        opened = open_model(model, variables=variables, params=params, method=method).in_mode(training=False)
        call = Call.of(args, kwargs)
        chosen = [inputs] if isinstance(inputs, str | int) else inputs
        ties = (tie,) if isinstance(tie, str) else tuple(tie)
        if ties and not structures:
            raise ArgumentError("tie= is about structures, and structures=False leaves none: leave one of them out")
        connected = connected_inputs(call, argument_names(model, method), chosen)
        kept = kept_leaves(opened.leaves, [keep] if isinstance(keep, str | re.Pattern) else keep)
        named = [outputs] if isinstance(outputs, str | int) else outputs
        wanted = None if named is None else tuple(map(str, named))
        return search(opened, call, kept, connected, wanted, ties, Kinds(structures, channels))


def _graph_of(traced: TracedModel, required: Sequence[bool], loops: Mapping[int, Program]) -> Graph:
    """Returns operators and segments of a network, with some loops unfolded, given by number."""
    program = inline(replace(traced.program, outputs=traced.outputs), loops)
    return build_graph(program, len(traced.leaves), [leaf.trainable for leaf in traced.leaves], required)


def search(
    opened: Model,
    call: Call,
    kept: frozenset[int],
    connected: tuple[bool, ...],
    outputs: tuple[str, ...] | None,
    tie: tuple[str, ...],
    kinds: Kinds,
) -> SearchSpace:
    """Makes the search space of a model in inference mode; the arguments are those attributes of the space."""
    traced = trace_model(opened, call)
    required = required_outputs(traced, outputs)
    graph_of = partial(_graph_of, traced, required)
    graph = graph_of({})
    require_connected(graph, traced, required)
    found = FoundGroups()
    if kinds.structures:
        graph, refused = with_loops_unfolded(graph, opened.leaves, kept, graph_of)
        found = find_groups(graph, opened.leaves, kept, tie)
        found = found._replace(reasons=with_loops_refused(graph, found.reasons, refused))
    aligner, channels = Aligner(), Channels()
    if kinds.channels:
        channels = find_channels(graph, opened.leaves, kept, len(found.groups), aligner)
    if not (found.groups or channels.dimensions):
        of_axes = [f"{opened.leaves[leaf].path}, axis {axis}: {why}" for (leaf, axis), why in channels.reasons.items()]
        raise NoRemovableStructureError(why_nothing(graph, found.reasons, of_axes))
    groups, reasons, effects = found
    reasons = reasons or ("structures=False: no structures were searched for",) * len(graph.segments)
    call = Call(call.avals, call.static, call.treedef)
    space = SearchSpace(
        opened, call, traced, graph, groups, channels, aligner, reasons, effects, kept, connected, outputs, tie, kinds
    )
    if not space.is_valid(()):
        raise DisconnectedOutputError(
            "a network output reads only such entries as no network input has an influence on, a class token before "
            "the first attention for example, or only random keys. Return only what is computed from the input, or "
            "name the arguments that outputs are to stay connected to, inputs=('x',), or the outputs that must stay, "
            "outputs=('logits',)."
        )
    return space
