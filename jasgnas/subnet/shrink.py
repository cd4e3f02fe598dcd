"""Shrinking during training: the sub-network as soon as its groups are gone, with the optimizer's state carried over.

Groups that H2SPG has brought to zero stay there, so nothing is lost by going on without them, and every later step
costs what the sub-network costs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jasgnas.bridge import GONE, Leaf, matched
from jasgnas.errors import ArgumentError
from jasgnas.optimizer.layout import Remainder
from jasgnas.optimizer.state import DONE, LOST_TYPE, H2SPGState, h2spg_state, h2spg_states, single_state
from jasgnas.program.masks import NOTHING, Layout, everything, same, stored_shape
from jasgnas.program.sliced import Sliced, on_host
from jasgnas.space.search import SearchSpace, require_space
from jasgnas.subnet.construct import (
    make_recipe,
    require_zero,
    stored_leaves,
    warn_of_nothing,
    zero_indices,
)


def shrink(space: SearchSpace, holder: Any, opt_state: Any, *, removed: Iterable[int] | None = None) -> tuple[Any, Any]:
    """Constructs the sub-network without the groups that are zero for good, and carries the optimizer's state over.

    Training goes on with the same optax transformation, and ends as it would have without shrinking, up to the order of
    floating-point sums. Two things are different: what mixes parameters (clipping by their global norm; the norms of
    single leaves in Adafactor, LAMB, LARS, Muon or adaptive clipping, where a leaf loses some entries) no longer sees
    those removed, and later selections see the score of what is left of a group. Gates stay gates: folding them would
    change parameters that the optimizer has a state of. With `periods`, shrink after each of them:

        metrics = jasgnas.h2spg_metrics(opt_state)
        if metrics["num_removed"] < metrics["num_zero"] == metrics["num_redundant"]:
            model, opt_state = jasgnas.shrink(space, model, opt_state)

    Args:
        space: the search space of the full network.
        holder: the `nnx.Module`, the variables of the Linen module, or the parameter pytree of the function; from the
            second time on those of the sub-network.
        opt_state: the optimizer state, or an `nnx.Optimizer`. It may be any pytree: arrays that lie at the path of a
            parameter, below other keys, are sliced as the parameter is (momentum, moments, accumulated gradients, the
            averaged parameters in `(opt_state, averaged)`), all other ones stay as they are.
        removed: indices of the groups to remove, which are exactly zero in `holder`; by default those that are zero in
            the state of `h2spg`. To be given for an optimizer without `h2spg`, or to make the trees that a checkpoint
            is restored into: `shrink(space, space.zero(model, removed), tx.init(params), removed=removed)`.

    Returns:
        The sub-network as `construct_subnet` returns it, and the optimizer state of its parameters.

    Raises:
        TreeMismatchError: the arrays do not match the search space, or the state was made for another one.
        NonFiniteError: an array holds NaN or infinity.
        InvalidRemovalError: without the groups a network output is cut off.
        ArgumentError: a group to remove is not entirely zero; `removed` is not given and there is not exactly one state
            of `h2spg`, or it is replicated over devices; or an array of the state belongs to a parameter that is
            sliced, but has another shape.

    Warns:
        NothingRemovedWarning: the state of `h2spg` says of no group that it is zero.

    Example:
        >>> import jax.numpy as jnp, optax, jasgnas
        >>> params = {"a": jnp.ones((3, 3)), "b": jnp.zeros((3, 3))}
        >>> fn = lambda params, x: x @ params["a"] + jnp.tanh(x @ params["b"])
        >>> space = jasgnas.search_space(fn, jnp.ones((2, 3)), params=params)
        >>> opt_state = optax.adam(0.1).init(params)
        >>> (sub_fn, sub_params), opt_state = jasgnas.shrink(space, params, opt_state, removed=[1])
        >>> sorted(sub_params), sorted(opt_state[0].mu)
        (['a'], ['a'])
    """
    require_space(space)
    gone = _gone(space, opt_state)
    state = None
    if removed is None:
        state = single_state(h2spg_state(opt_state, space))
        removed = np.flatnonzero(state.zero)
    indices = np.flatnonzero(space.removed(gone) | space.removed(removed)).tolist()
    space.require_valid(indices)
    before = make_recipe(space, gone).layouts if gone else tuple(everything(len(leaf.shape)) for leaf in space.leaves)
    values = _full_values(space, before, holder)
    require_zero(space, indices, zero_indices(space, values), state)
    if state is not None and not indices:
        warn_of_nothing(space, state)
    recipe = make_recipe(space, indices)
    layouts = {leaf.path: layout for leaf, layout in zip(space.leaves, recipe.layouts, strict=True)}
    remainder = Remainder(tuple(indices), state is not None and int(state.phase) == DONE, layouts)
    moves = {leaf.path: (leaf, old, layouts[leaf.path]) for leaf, old in zip(space.leaves, before, strict=True)}

    def move(path: str | None, node: Any) -> Any:
        if isinstance(node, H2SPGState):
            return node._replace(remainder=remainder, inner=carry(node.inner))
        return node if path is None else _left_of(node, *moves[path])

    def carry(tree: Any) -> Any:
        return space.model.carry(tree, subnet, move, lambda node: isinstance(node, H2SPGState))

    subnet = space.model.wrap_subnet(recipe, holder, recipe.slice(values))
    return subnet, carry(opt_state)


def _gone(space: SearchSpace, opt_state: Any) -> list[int]:
    """Returns the groups without which the network is already: it has been shrunk before."""
    states = h2spg_states(opt_state)
    leaves = jax.tree.leaves(opt_state)
    numbers = (int(leaf) for leaf in leaves if getattr(leaf, "dtype", None) == np.uint32 and np.ndim(leaf) == 0)
    if not states and space.candidates.fingerprint in numbers:
        raise ArgumentError(f"the optimizer state holds that of h2spg without its type. {LOST_TYPE}")
    return [index for state in states[:1] for index in state.remainder.removed]


def _full_values(space: SearchSpace, layouts: Sequence[Layout], holder: Any) -> list[Any]:
    """Returns all leaves at full width, given what a model holds of them; what it has not is zero."""
    left = stored_leaves(space.leaves, layouts)
    arrays = matched(left, space.model.tree(holder))
    found = {leaf.path: array for leaf, array in zip(left, arrays, strict=True)}
    return [
        Sliced(found.get(leaf.path), layout, leaf.aval).full()
        for leaf, layout in zip(space.leaves, layouts, strict=True)
    ]


def _left_of(array: Any, leaf: Leaf, before: Layout, after: Layout) -> Any:
    """Returns what is left of an array that belongs to a parameter, or of the empty node that masks one in optax.

    Args:
        array: the array or the empty node.
        leaf: the parameter.
        before: which entries of it there are.
        after: which entries of it are left.
    """
    is_empty = not jax.tree.leaves(array)
    shape = np.shape(array) if not is_empty else None
    if after == NOTHING:
        return GONE
    if shape == () != leaf.shape:
        return array  # A number for the parameter as a whole.
    if is_empty or same(before, after):
        return array
    if shape == stored_shape(leaf.shape, before):
        aval = jax.ShapeDtypeStruct(leaf.shape, array.dtype)
        return on_host(lambda array: Sliced(array, before, aval).to(after).array, array)
    if np.size(array) == 1:
        return array
    raise ArgumentError(
        f"the optimizer's state holds an array of shape {shape} for {leaf.path}, of which entries are removed "
        f"and which had the shape {stored_shape(leaf.shape, before)}. Only arrays of the parameter's own "
        "shape can be carried over: shrink with another optimizer (or without factored or preconditioned moments), "
        "or construct the sub-network after training with jasgnas.construct_subnet"
    )
