"""Where the groups lie in a tree of parameters, and the two passes over it: sums over the groups, and their moves.

All that H2SPG does to arrays as large as the parameters is here; what it does to the groups is in `h2spg.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasgnas.errors import TreeMismatchError
from jasgnas.program.masks import NOTHING, Axes, Layout, everything, stored_shape
from jasgnas.pytree import leaves_by_path, path_str
from jasgnas.space.candidates import Candidates
from jasgnas.space.groups import NOBODY, Owners

T = TypeVar("T")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Remainder:
    """What is left of the parameters once the network has been shrunk; static, a pytree node without leaves.

    Attributes:
        removed: indices of the groups that are gone.
        is_final: whether no group is ever to go after these.
        layouts: which entries are left of every leaf that holds groups, by path; decided by `removed`.
    """

    removed: tuple[int, ...] = ()
    is_final: bool = False
    layouts: Mapping[str, Layout] = field(default_factory=dict, compare=False, repr=False)


@cache
def make_known_to_flax() -> None:
    """Lets `flax.serialization` handle states: a remainder has no arrays, and stays that of the state restored into."""
    from flax import serialization  # here, because those who only run a sub-network never load Flax

    serialization.register_serialization_state(Remainder, lambda remainder: {}, lambda remainder, saved: remainder)


class GroupedLeaf(NamedTuple):
    """Where the groups lie in a leaf.

    Attributes:
        position: place of the leaf among the leaves of the tree.
        owners: which entries of what is left of it belong to which group; several where an entry belongs to a structure
            and to channels.
        gates: the same for the entries that the gate of their group is made of, `NOBODY` for all others.
    """

    position: int
    owners: tuple[Owners, ...]
    gates: tuple[Owners, ...]


class GroupLayout(NamedTuple):
    """Where the groups lie in a tree of parameters.

    Attributes:
        leaves: the leaves that hold groups.
        num_groups: number of groups.
        num_params: int `[num_groups]`, number of parameters of each group; in the full network for those gone.
        dtype: dtype to compute norms in, at least float32.
    """

    leaves: tuple[GroupedLeaf, ...]
    num_groups: int
    num_params: np.ndarray
    dtype: Any


class GroupSums(NamedTuple):
    """Inner products of parameters x, updates u and gradients g over each group, float `[num_groups]` each.

    Attributes:
        gate: ⟨x, g⟩ over the entries of the group's gate alone.
    """

    x_x: jax.Array
    x_u: jax.Array
    u_u: jax.Array
    x_g: jax.Array | None = None
    g_g: jax.Array | None = None
    gate: jax.Array | None = None


class GroupMoves(NamedTuple):
    """What becomes of each group, `[num_groups]` each.

    Attributes:
        scale: float, factor on the update u.
        shift: float, factor on the parameters x: the group's update is `scale·u + shift·x`.
        zero: bool, the group is to be exactly zero instead.
        bounds: float, an entry in several groups goes with that of the least bound; infinite for one that stays.
    """

    scale: jax.Array
    shift: jax.Array
    zero: jax.Array
    bounds: jax.Array | None = None


def lay_out(candidates: Candidates, params: optax.Params, remainder: Remainder) -> GroupLayout:
    """Returns where the groups lie in the parameters. Looks at paths, shapes and dtypes only.

    Args:
        candidates: the groups of the full network.
        params: the parameters of the full network or of what is left of it.
        remainder: what is left of it.

    Raises:
        TreeMismatchError: lists every grouped leaf that is missing or has another shape.
    """
    found = {path: (position, leaf) for position, (path, leaf) in enumerate(leaves_by_path(params).items())}
    grouped, dtypes, faults = [], [], []
    num_params = np.zeros(candidates.num_groups, int)
    for path, full in candidates.owners.items():
        layout = remainder.layouts.get(path, everything(len(candidates.shapes[path])))
        if layout == NOTHING:
            continue
        shape = stored_shape(candidates.shapes[path], layout)
        owners = tuple(_left(each, layout) for each in full)
        gates = tuple(_left(each, layout) for each in candidates.gates[path])
        for each in owners:
            inside = each.groups[each.groups != NOBODY]
            np.add.at(num_params, inside, int(np.prod(shape)) // each.groups.size)
        # In a Linen tree of variables the parameters lie one level down.
        full_path = path if path in found else f"params/{path}"
        if full_path not in found:
            faults.append(f"{path} is missing")
            continue
        position, leaf = found[full_path]
        dtypes.append(leaf.dtype)
        if np.shape(leaf) != shape:
            faults.append(f"{path} has shape {np.shape(leaf)} instead of {shape}")
        if any(np.any(each.groups != NOBODY) for each in owners):
            grouped.append(GroupedLeaf(position, owners, gates))
    # A tree without leaves is what `optax.tree_map_params` finds out with which states are shaped like the parameters.
    if faults and found:
        raise TreeMismatchError(
            f"the parameters do not belong to the search space: {'; '.join(faults)}. Expected the parameters of the "
            "network that the space was made from; those of its sub-network need the optimizer state that "
            "jasgnas.shrink returns beside it. Parameters that the optimizer does not get to see (masked, or left "
            "out by a filter) cannot go to zero: name them when the space is made, search_space(..., keep=('path/*',))"
        )
    is_gone = np.isin(np.arange(candidates.num_groups), remainder.removed)
    num_params = np.where(is_gone, candidates.num_params, num_params)
    return GroupLayout(tuple(grouped), candidates.num_groups, num_params, jnp.result_type(jnp.float32, *dtypes))


def _left(owners: Owners, layout: Axes) -> Owners:
    """Returns the owners of what a layout stores of a leaf, given those of the full leaf."""
    axes, groups = owners
    rows = layout[0] if axes[:1] == (0,) else None
    if rows is not None and rows.ndim > 1:
        # These axes have become one.
        groups = groups.reshape(*groups.shape, *(1,) * (rows.ndim - groups.ndim))
        groups = np.broadcast_to(groups, (*rows.shape, *groups.shape[rows.ndim :]))[rows]
        axes = tuple(range(groups.ndim))
        layout = None, *layout[rows.ndim :]
    for position, axis in enumerate(axes):
        if (mask := layout[axis]) is not None:
            groups = np.compress(mask, groups, position)
    return Owners(axes, groups)


def check_updates(layout: GroupLayout, params: optax.Params, updates: optax.Updates) -> None:
    """Raises a `TreeMismatchError` unless the updates are of the same tree as the parameters."""
    expected, found = leaves_by_path(params), leaves_by_path(updates)
    if list(expected) != list(found):
        faults = [f"{path} has no update" for path in expected if path not in found]
        faults += [f"{path} has an update, but is no parameter" for path in found if path not in expected]
        raise TreeMismatchError(
            f"the updates do not belong to the parameters: {'; '.join(faults) or 'they are in another order'}. "
            "Expected a tree of the same structure, as jax.grad returns it"
        )
    for x, u in zip(grouped_leaves(layout, params), grouped_leaves(layout, updates), strict=True):
        if np.shape(x) != np.shape(u):
            raise TreeMismatchError(f"an update has the shape {np.shape(u)}, its parameter {np.shape(x)}")


def grouped_leaves(layout: GroupLayout, tree: Any) -> list[jax.Array]:
    """Returns the leaves of a tree of parameters or updates that hold groups, in the order of the layout."""
    leaves = jax.tree.leaves(tree)
    return [leaves[leaf.position] for leaf in layout.leaves]


def grouped_gradients(layout: GroupLayout, params: optax.Params, grads: optax.Updates) -> list[jax.Array]:
    """Returns the gradients of the leaves that hold groups, in the order of the layout, found by their paths.

    There may be gradients of other leaves, too: what selects a part of the parameters, such as
    `optax.multi_transform`, hands extra arguments on as they are.

    Raises:
        TreeMismatchError: lists every leaf whose gradient is missing or has another shape.
    """
    found = leaves_by_path(grads)
    paths = list(leaves_by_path(params))
    named = [(paths[leaf.position], x) for leaf, x in zip(layout.leaves, grouped_leaves(layout, params), strict=True)]
    faults = [path for path, x in named if path not in found or np.shape(found[path]) != np.shape(x)]
    if faults:
        raise TreeMismatchError(
            f"the gradient grad= has nothing, or another shape, for {', '.join(faults)}. Expected a tree like the "
            "parameters, as jax.grad returns it"
        )
    return [found[path] for path, _ in named]


def with_grouped_leaves(layout: GroupLayout, tree: T, leaves: list[jax.Array]) -> T:
    """Returns the tree with other leaves where it holds groups."""
    all_leaves, treedef = jax.tree.flatten(tree)
    for leaf, value in zip(layout.leaves, leaves, strict=True):
        all_leaves[leaf.position] = value
    return jax.tree.unflatten(treedef, all_leaves)


def without_updates(updates: T, paths: Collection[str]) -> T:
    """Returns updates of which those of some leaves, by path, are zero."""
    if not paths:
        return updates

    def held(keys: Any, update: Any) -> Any:
        # In a Linen tree of variables the parameters lie one level down.
        return jnp.zeros_like(update) if path_str(keys).removeprefix("params/") in paths else update

    return jax.tree_util.tree_map_with_path(held, updates)


def sum_over_groups(
    layout: GroupLayout,
    xs: list[jax.Array],
    us: list[jax.Array],
    gs: list[jax.Array] | None = None,
    *,
    gates_alone: bool = False,
) -> GroupSums:
    """Returns the inner products over each group, in one pass over the grouped leaves.

    Args:
        layout: where the groups lie.
        xs: grouped leaves of the parameters.
        us: grouped leaves of the updates.
        gs: grouped leaves of the gradients; without them, what they enter is None.
        gates_alone: whether of the gradients only those of gates are looked at; what others enter is None.
    """
    names = ["x_x", "x_u", "u_u"]
    if gs is not None:
        names += ["gate"] if gates_alone else ["x_g", "g_g", "gate"]
    found: dict[str, list[tuple[jax.Array, np.ndarray]]] = {name: [] for name in names}
    for index, leaf in enumerate(layout.leaves):
        x, u = xs[index].astype(layout.dtype), us[index].astype(layout.dtype)
        products = {"x_x": x * x, "x_u": x * u, "u_u": u * u}
        if gs is not None:
            g = gs[index].astype(layout.dtype)
            products |= {} if gates_alone else {"x_g": x * g, "g_g": g * g}
            found["gate"] += [_summed(each, x * g) for each in leaf.gates if np.any(each.groups != NOBODY)]
        for name, product in products.items():
            found[name] += [_summed(each, product) for each in leaf.owners]
    return GroupSums(**{name: _total(layout, sums) for name, sums in found.items()})


def _summed(owners: Owners, products: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """Returns the sums of a leaf's entries over the groups that hold some of them, and the indices of these groups."""
    others = tuple(axis for axis in range(products.ndim) if axis not in owners.axes)
    sums = jnp.sum(products, others).reshape(-1)
    groups = np.setdiff1d(owners.groups, NOBODY)
    if len(groups) > _MOST_RANGES:
        return sums, owners.groups.reshape(-1)
    if owners.axes:
        # Where an axis is sharded, devices thus exchange one sum per group and not the whole axis.
        sums = jnp.sum(jnp.where(groups[:, None] == owners.groups.reshape(-1), sums, 0), axis=1)
    return sums, groups


def _total(layout: GroupLayout, found: Sequence[tuple[jax.Array, np.ndarray]]) -> jax.Array:
    """Returns the sums of each group over all leaves, `[num_groups]`."""
    if not found:  # all groups are gone
        return jnp.zeros(layout.num_groups, layout.dtype)
    sums, groups = zip(*found, strict=True)
    indices = np.concatenate(groups)
    # What belongs to no group goes behind the last one, and away.
    indices = np.where(indices == NOBODY, layout.num_groups, indices)
    return jax.ops.segment_sum(jnp.concatenate(sums), indices, layout.num_groups + 1)[:-1]


_MOST_RANGES = 32
"""With more groups along an axis, channels that is, to sum each by itself first takes more than it saves."""


def without_groups(layout: GroupLayout, xs: list[jax.Array], is_gone: jax.Array) -> list[jax.Array]:
    """Returns the grouped leaves of parameters or gradients with some groups, bool `[num_groups]`, set to zero."""
    marked = jnp.append(is_gone, False)[None]  # NOBODY takes the last entry
    left = list(xs)
    for index, leaf in enumerate(layout.leaves):
        for each in leaf.owners:
            left[index] = _cleared(left[index], *_values_of(each, marked, left[index].ndim))
    return left


def move_groups(layout: GroupLayout, xs: list[jax.Array], us: list[jax.Array], moves: GroupMoves) -> list[jax.Array]:
    """Returns the grouped leaves of the updates, changed; their dtypes stay.

    Args:
        layout: where the groups lie.
        xs: grouped leaves of the parameters.
        us: grouped leaves of the updates, in a dtype as wide as the parameters'.
        moves: what becomes of each group.
    """
    bounds = jnp.zeros_like(moves.scale) if moves.bounds is None else moves.bounds
    # The last entry is for NOBODY.
    columns = [
        jnp.append(jnp.where(moves.zero, 1, moves.scale), 1),
        jnp.append(jnp.where(moves.zero, -1, moves.shift), 0),
        jnp.append(moves.zero, False),
        jnp.append(bounds, jnp.inf),
    ]
    # Keeps the compiler from doing the arithmetic on groups again for every single parameter.
    values = jax.lax.optimization_barrier(jnp.stack([column.astype(layout.dtype) for column in columns]))
    moved = []
    for leaf, x, u in zip(layout.leaves, xs, us, strict=True):
        first, *others = leaf.owners
        scale, shift, zero, least = _values_of(first, values, x.ndim)
        is_zero = zero != 0
        for each in others:
            own_scale, own_shift, own_zero, bound = _values_of(each, values, x.ndim)
            is_less = bound < least
            scale, shift = jnp.where(is_less, own_scale, scale), jnp.where(is_less, own_shift, shift)
            is_zero, least = is_zero | (own_zero != 0), jnp.minimum(bound, least)
        if others:
            scale, shift = jnp.where(is_zero, 1, scale), jnp.where(is_zero, -1, shift)
        # Cleared, not multiplied by zero: x − x is exactly zero in every dtype, even where u is not finite.
        moved.append((scale * _cleared(u, is_zero) + shift * x).astype(u.dtype))
    return moved


def _values_of(owners: Owners, values: jax.Array, ndim: int) -> list[jax.Array]:
    """Returns several values of the group that each entry belongs to, in shapes that broadcast against the leaf.

    They are looked up in one list of places, of two at least. What is taken from a single place is written into the
    loop over the leaf, so that a compiler sees as many different loops as there are leaves: some 15 ms for each, where
    leaves of one shape could have the same.

    Args:
        owners: to which group each entry belongs.
        values: `[num_values, num_groups + 1]`, those of each group, and of no group.
        ndim: number of axes of the leaf.
    """
    num_values, size = values.shape
    places = np.arange(max(num_values, 2)) % num_values * size
    found = values.reshape(-1)[np.add.outer(places, owners.groups % size)]
    return [owners.over(each, ndim) for each in found[:num_values]]


def _cleared(x: jax.Array, is_zero: jax.Array) -> jax.Array:
    """Returns an array with zeros where `is_zero`, which broadcasts against it.

    By its bits: of a selection whose condition is the same for all of a leaf, the compiler makes two loops instead of
    one, which takes it twice the time, for hundreds of leaves.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.where(is_zero, jnp.zeros_like(x), x)
    bits = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    kept = jnp.where(is_zero, 0, -1).astype(bits)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, bits) & kept, x.dtype)
