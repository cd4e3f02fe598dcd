"""The table of owners against loops over the slices of the groups, one after the other."""

import jax.numpy as jnp
import numpy as np
import pytest

from jasgnas.program.masks import NOTHING, everything, stored_shape, without
from jasgnas.space.groups import NOBODY, Group, LeafSlice, cleared, leaf_zeros, owner_table, zero_groups

SHAPES = {"whole": (3, 4), "ranges": (2, 12), "rows": (3, 2, 4), "both": (4, 6), "scalar": ()}
SLICES = [
    (LeafSlice("whole"), LeafSlice("ranges", 1, 0, 3), LeafSlice("scalar")),
    (LeafSlice("ranges", 1, 5, 9), LeafSlice("rows", row=(0,))),
    (LeafSlice("rows", row=(1, 1)), LeafSlice("ranges", 1, 3, 5)),
    (LeafSlice("rows", row=(2, 0)),),
    (LeafSlice("both"),),
    # Channels: entries that belong to the structure above, and to one channel of either axis.
    *((LeafSlice("both", 1, index, index + 1),) for index in range(0, 6, 2)),
    *((LeafSlice("both", 0, index, index + 1),) for index in range(4)),
]
GROUPS = [Group(index, "", slices, 0, (), 0) for index, slices in enumerate(SLICES)]
TABLE = owner_table(GROUPS, SHAPES)


def random_leaves(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def cleared_one_by_one(leaves, groups):
    leaves = {path: leaf.copy() for path, leaf in leaves.items()}
    for group in groups:
        for each in SLICES[group]:
            leaves[each.path][each.indices] = 0
    return leaves


def test_every_group_that_an_entry_belongs_to_owns_it():
    for path, shape in SHAPES.items():
        found = [set() for _ in range(int(np.prod(shape)))]
        for own in TABLE[path]:
            for entry, group in enumerate(np.broadcast_to(own.over(own.groups, len(shape)), shape).reshape(-1)):
                if group != NOBODY:
                    assert group not in found[entry]
                    found[entry].add(int(group))
        expected = [set() for _ in found]
        for group, slices in enumerate(SLICES):
            for each in (each for each in slices if each.path == path):
                for entry in np.arange(len(found)).reshape(shape)[each.indices].reshape(-1):
                    expected[entry].add(group)
        assert found == expected
    assert len(TABLE["both"]) == 3 and len(TABLE["ranges"]) == len(TABLE["rows"]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_clearing_and_finding_zero_groups(seed):
    leaves, rng = random_leaves(seed), np.random.default_rng(seed)
    removed = rng.choice(len(GROUPS), rng.integers(0, len(GROUPS)), replace=False)
    marked = np.isin(np.arange(len(GROUPS)), removed)
    expected = cleared_one_by_one(leaves, removed)
    found = {path: cleared(TABLE[path], marked, jnp.asarray(leaf)) for path, leaf in leaves.items()}
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)
        assert found[path].dtype == jnp.float32
        # What is said to be zero is zero, and where rows lie in rows or axes cross, all that vectors can say is said.
        zeros = leaf_zeros(TABLE[path], marked, leaf.ndim)
        left = without(everything(leaf.ndim), zeros)
        num_left = 0 if left == NOTHING else np.prod(stored_shape(leaf.shape, left))
        assert num_left == (leaf != 0).sum()
    is_zero = [not any(expected[each.path][each.indices].any() for each in slices) for slices in SLICES]
    assert zero_groups(TABLE, found, len(GROUPS)).tolist() == is_zero
