"""Structures that shared leaves, or patterns, tie together; the groups are written down by hand."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jasgnas
from jasgnas.space.ties import PathPattern, united
from tests.space.removals import check_all_sets, drawn, held

x34 = drawn(x=(3, 4))["x"]
other34 = drawn(y=(2, 3, 4))["y"][1]


def applied_twice(p, x):
    h = x @ p["stem"]
    for _ in range(2):
        h = h + jax.nn.relu(h @ p["up"] + p["bias"]) @ p["down"]
    return (h + jnp.tanh(h @ p["own"])) @ p["head"]


def siamese(p, x, y):
    def tower(x):
        h = x @ p["stem"]
        h = h + jax.nn.relu(h @ p["block"])
        return h + jnp.sin(h @ p["last"])

    return jnp.abs(tower(x) - tower(y)) @ p["head"]


def pyramid(p, x):
    """One tower over levels of two sizes; what follows the second level may be gone as a whole."""

    def tower(x):
        return x + jax.nn.relu(x @ p["tower"])

    coarse = x.reshape(-1, 2, x.shape[-1]).mean(1)
    return jnp.concatenate([tower(x) @ p["fine"], jnp.repeat(tower(coarse) @ p["coarse"], 2, 0)], -1) @ p["head"]


def norm_of_all(p, x):
    """What is shared but not needed ties nothing: one norm before kernels of their own."""
    h = x @ p["stem"]
    for name in ("a", "b"):
        h = h + jnp.tanh((h * p["scale"]) @ p[name])
    return h @ p["head"]


def gated_twice(p, x):
    """Both factors are shared: one of them is the structure, the same one in both uses."""
    h = x @ p["stem"]
    for _ in range(2):
        h = h + jnp.sin(h @ p["gate"]) * jnp.tanh(h @ p["value"])
    return h @ p["head"]


def chained_by_leaves(p, x):
    """The first and second branch share a kernel, the second and third another: all three are one group."""
    h = x @ p["stem"]
    h = h + jnp.tanh(h @ p["a"])
    h = h + jnp.tanh(jnp.tanh(h @ p["a"]) @ p["b"])
    h = h + jnp.sin(h @ p["b"])
    return h @ p["head"]


def blocked_by_the_head(p, x):
    """Embeddings tied to a head belong to no structure, nor do structures that need them."""
    h = x @ p["stem"]
    h = h + jnp.tanh(h @ p["tied"])
    h = h + jnp.tanh(h @ p["own"])
    return h @ p["tied"]


def joined_inside(p, x):
    """A block with a concatenation inside is applied twice: its branches are tied, and so is the block."""
    h = x @ p["stem"]
    for _ in range(2):
        both = jnp.concatenate([jax.nn.relu(h @ p["a"]), jnp.tanh(h @ p["b"])], -1)
        h = h + both @ p["out"]
    return h @ p["head"]


def kernel_of_two(p, x):
    """A kernel that is the product of two leaves is made once, for both branches that read it."""
    h = x @ p["stem"]
    kernel = p["a"] @ p["b"]
    return (h + jnp.tanh(h @ kernel) + jnp.tanh(h @ p["own"]) + jnp.sin(h @ kernel.T)) @ p["head"]


SQUARE = {name: (4, 4) for name in ("stem", "head")}
NETWORKS = {
    "applied twice": (
        applied_twice,
        SQUARE | {"up": (4, 6), "bias": (6,), "down": (6, 4), "own": (4, 4)},
        [{"up", "bias", "down"}, {"own"}],
        2,
    ),
    "siamese": (siamese, SQUARE | {"block": (4, 4), "last": (4, 4)}, [{"block"}, {"last"}], 2),
    "pyramid": (
        pyramid,
        {"tower": (4, 4), "fine": (4, 4), "coarse": (4, 4), "head": (8, 4)},
        [{"tower"}, {"fine"}, {"coarse"}],
        2,
    ),
    "norm of all": (norm_of_all, SQUARE | {"scale": (4,), "a": (4, 4), "b": (4, 4)}, [{"a"}, {"b"}], 1),
    "gated twice": (gated_twice, SQUARE | {"gate": (4, 4), "value": (4, 4)}, [{"gate"}], 2),
    "chained by leaves": (chained_by_leaves, SQUARE | {"a": (4, 4), "b": (4, 4)}, [{"a", "b"}], 3),
    "blocked by the head": (
        blocked_by_the_head,
        {"stem": (4, 4), "tied": (4, 4), "own": (4, 4)},
        [{"own"}],
        1,
    ),
    "kernel of two": (
        kernel_of_two,
        SQUARE | {"a": (4, 5), "b": (5, 4), "own": (4, 4)},
        [{"a", "b"}, {"own"}],
        2,
    ),
    "joined inside": (
        joined_inside,
        SQUARE | {"a": (4, 3), "b": (4, 2), "out": (5, 4)},
        [{"a"}, {"b"}, {"out"}],
        2,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tied_structures_are_one_group_over_all_uses(name):
    fn, shapes, expected, uses = NETWORKS[name]
    args, others = ((x34, other34), (other34, 2 * x34)) if fn is siamese else ((x34,), (other34,))
    if fn is pyramid:
        args, others = ((jnp.concatenate([x34, other34]),), (jnp.concatenate([other34, 2 * x34]),))
    params = drawn(**shapes)
    space = jasgnas.search_space(fn, *args, params=params)
    assert held(space) == expected
    assert len(space.groups[0].segments) == uses
    assert check_all_sets(space, fn, params, args, others) > 0
    assert space.groups[0].name in str(space)
    assert space.explain().count(", group 0") == uses


class SharedLinen(nn.Module):
    """Two blocks of one set of parameters and a branch of its own; with a layer norm inside the block."""

    @nn.compact
    def __call__(self, x):
        norm, up, down = nn.LayerNorm(name="norm"), nn.Dense(6, name="up"), nn.Dense(4, name="down")
        x = nn.Dense(4, name="stem")(x)
        for _ in range(2):
            x = x + down(nn.gelu(up(norm(x))))
        return nn.Dense(3, name="head")(x + nn.Dense(4, name="own")(x))


class SharedNnx(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.stem, self.own = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.norm, self.up, self.down = (
            nnx.LayerNorm(4, rngs=rngs),
            nnx.Linear(4, 6, rngs=rngs),
            nnx.Linear(6, 4, rngs=rngs),
        )
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = x + self.down(jax.nn.gelu(self.up(self.norm(x))))
        return self.head(x + self.own(x))


BLOCK = {"norm/scale", "norm/bias", "up/kernel", "up/bias", "down/kernel", "down/bias"}


def test_a_module_that_is_applied_twice_is_one_group_in_linen():
    model = SharedLinen()
    variables = model.init(jax.random.key(0), x34)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    space = jasgnas.search_space(model, x34, variables=variables)
    assert [{path.removeprefix("params/") for path in own} for own in held(space)] == [
        BLOCK,
        {"own/kernel", "own/bias"},
    ]
    full = space.zero(variables, [0])
    subnet, left = jasgnas.construct_subnet(space, full)
    np.testing.assert_allclose(subnet.apply(left, x34), model.apply(full, x34), atol=1e-5)
    assert jasgnas.count_params(left) == space.subnet_size([0])[0] == 20 + 20 + 15


def test_a_module_that_is_applied_twice_is_one_group_in_nnx():
    model = SharedNnx(nnx.Rngs(0))
    space = jasgnas.search_space(model, x34)
    assert held(space) == [BLOCK, {"own/kernel", "own/bias"}]
    full = space.zero(model, [0])
    subnet = jasgnas.construct_subnet(space, full)
    np.testing.assert_allclose(subnet(x34), full(x34), atol=1e-5)
    assert jasgnas.count_params(subnet) == space.subnet_size([0])[0]


def test_the_derivative_by_a_gate_is_summed_over_all_uses():
    params = drawn(**NETWORKS["applied twice"][1])

    def gated(p, x, z):
        h = x @ p["stem"]
        for _ in range(2):
            h = h + z * (jax.nn.relu(h @ p["up"] + p["bias"]) @ p["down"])
        return (h + jnp.tanh(h @ p["own"])) @ p["head"]

    space = jasgnas.search_space(applied_twice, x34, params=params)
    assert [str(each) for each in space.groups[0].gate] == ["down"]
    expected = jax.grad(lambda z: (gated(params, x34, z) ** 2).mean())(1.0)
    found = jasgnas.score_groups(space, params, lambda p, x: (applied_twice(p, x) ** 2).mean(), [x34], score="gate")
    np.testing.assert_allclose(found[0], -(expected**2), rtol=1e-4)


def test_selection_judges_ties_as_the_host_does():
    """What a refused tied group could not spare is all of it, not each of its uses."""

    def fn(p, x):
        h = x @ p["stem"]
        # The first use may go with `gate`, which a later branch replaces; the second one may not.
        first = jnp.tanh(jnp.tanh(h @ p["before"]) @ p["shared"])
        return jnp.concatenate([h + first, jnp.tanh(h @ p["shared"]) + jnp.tanh(h @ p["other"])], -1) @ p["head"]

    params = drawn(stem=(4, 4), before=(4, 4), shared=(4, 4), other=(4, 4), head=(8, 2))
    space = jasgnas.search_space(fn, x34, params=params)
    num = len(space.groups)
    for order in itertools.permutations(range(num)):
        scores = np.zeros(num)
        scores[list(order)] = np.arange(num, 0, -1)
        accepted = []
        for group in order:
            if space.is_valid([*accepted, group]):
                accepted.append(group)
        assert space.select(scores, target_groups=len(accepted)) == tuple(sorted(accepted))


def test_training_removes_a_tied_group_and_counts_it_once():
    params = jax.tree.map(lambda leaf: 0.3 * leaf, drawn(**NETWORKS["applied twice"][1]))
    space = jasgnas.search_space(applied_twice, x34, params=params)
    tx = optax.chain(
        optax.sgd(1e-2),
        jasgnas.h2spg(
            space,
            learning_rate=1e-2,
            target_params=params["stem"].size + params["own"].size + params["head"].size,
            warmup_steps=1,
            projection_steps=2,
            score="magnitude",
        ),
    )
    state = tx.init(params)
    step = jax.jit(
        lambda p, s: (lambda u, s: (optax.apply_updates(p, u), s))(
            *tx.update(jax.grad(lambda p: (applied_twice(p, x34) ** 2).mean())(p), s, p)
        )
    )
    for _ in range(5):
        params, state = step(params, state)
    assert not any(np.any(params[name]) for name in ("up", "bias", "down"))
    subnet, left = jasgnas.construct_subnet(space, params)
    np.testing.assert_allclose(subnet(left, x34), applied_twice(params, x34), atol=1e-4)


def test_sizes_of_tied_structures_are_exact_beside_channels():
    fn, shapes, *_ = NETWORKS["joined inside"]
    params = drawn(**shapes)
    space = jasgnas.search_space(fn, x34, params=params, channels=True)
    (hidden,) = [each for each in space.dimensions if each.paths == ("a",)]
    for structures in ((), (0,), (1,), (0, 1), (2,)):
        removed = [*structures, *hidden.groups[1:]]
        assert space.is_valid(removed)
        subnet, left = jasgnas.construct_subnet(space, space.zero(params, removed))
        sizes = jasgnas.count_params(left), jasgnas.count_macs(subnet, x34, params=left)
        assert space.subnet_size(removed) == sizes, structures
    scores = np.ones(len(space.groups))
    scores[2] = 2
    assert space.select(scores, target_macs=space.subnet_size([2])[1])[0] == 2


def test_sizes_of_a_kernel_that_is_made_of_two_are_exact_beside_channels():
    fn, shapes, *_ = NETWORKS["kernel of two"]
    params = drawn(**shapes)
    space = jasgnas.search_space(fn, x34, params=params, channels=True)
    (trunk,) = space.dimensions
    for structures, num_gone in (((), 0), ((), 2), ((1,), 0), ((1,), 3), ((0,), 1)):
        removed = [*structures, *trunk.groups[:num_gone]]
        assert space.is_valid(removed)
        subnet, left = jasgnas.construct_subnet(space, space.zero(params, removed), allow_nothing=True)
        sizes = jasgnas.count_params(left), jasgnas.count_macs(subnet, x34, params=left)
        assert space.subnet_size(removed) == sizes, (structures, num_gone)


# Patterns.


def cells(p, x):
    h = x @ p["stem"]
    for cell in p["cells"].values():
        h = h + jax.nn.relu(h @ cell["left"]["conv"]["kernel"] + cell["left"]["conv"]["bias"])
        h = h + jnp.tanh(h @ cell["right"]["conv"]["kernel"]) + jnp.sin(h @ cell["right"]["pool"]["kernel"])
    return h @ p["head"]


def cell_params():
    leaves = drawn(**{str(i): (4, 4) for i in range(8)}, bias0=(4,), bias1=(4,))
    return {
        "stem": leaves["6"],
        "head": leaves["7"],
        "cells": {
            name: {
                "left": {"conv": {"kernel": leaves[f"{3 * i}"], "bias": leaves[f"bias{i}"]}},
                "right": {"conv": {"kernel": leaves[f"{3 * i + 1}"]}, "pool": {"kernel": leaves[f"{3 * i + 2}"]}},
            }
            for i, name in enumerate(("a", "b"))
        },
    }


@pytest.mark.parametrize(
    ("tie", "expected"),
    [
        ("cells/*/{edge}/{op}/**", "a/l/c b/l/c, a/r/c b/r/c, a/r/p b/r/p"),
        (["cells/*/{edge}/conv/*"], "a/l/c b/l/c, a/r/c b/r/c, a/r/p, b/r/p"),
        (("cells/{cell}/right/**",), "a/l/c, a/r/c a/r/p, b/l/c, b/r/c b/r/p"),
        (("cells/{cell}/right/**", "**/pool/**"), "a/l/c, a/r/c a/r/p b/r/c b/r/p, b/l/c"),
        ("**", "a/l/c a/r/c a/r/p b/l/c b/r/c b/r/p"),
    ],
)
def test_patterns_tie_what_agrees_on_the_names(tie, expected):
    params = cell_params()
    space = jasgnas.search_space(cells, x34, params=params, tie=tie)
    found = [sorted({"/".join(part[0] for part in path.split("/")[1:-1]) for path in own}) for own in held(space)]
    assert ", ".join(map(" ".join, found)) == expected
    assert check_all_sets(space, cells, params, (x34,), (other34,)) > 0


def test_a_tied_group_has_a_gate_if_each_of_its_structures_has_one():
    space = jasgnas.search_space(cells, x34, params=cell_params(), tie="cells/*/{edge}/{op}/**")
    left, right, _ = space.groups
    assert {each.path.removeprefix("cells/") for each in left.gate} == {
        f"{cell}/left/conv/{name}" for cell in "ab" for name in ("kernel", "bias")
    }
    assert right.gate == ()
    assert left.name == "cells/a/left/conv + cells/b/left/conv"


def test_ranges_of_what_reads_a_concatenation_are_not_matched():
    def fn(p, x):
        both = jnp.concatenate([x @ p["cell0"]["a"], x @ p["cell0"]["b"]], -1) * p["scale"]
        other = jnp.concatenate([x @ p["cell1"]["a"], x @ p["cell1"]["b"]], -1)
        return both @ p["head"] + other @ p["head"]

    leaves = drawn(a0=(4, 3), b0=(4, 2), a1=(4, 3), b1=(4, 2), scale=(5,), head=(5, 2))
    params = {f"cell{i}": {name: leaves[f"{name}{i}"] for name in "ab"} for i in range(2)}
    params |= {"scale": leaves["scale"], "head": leaves["head"]}
    space = jasgnas.search_space(fn, x34, params=params, tie="cell{number}/*")
    assert held(space)[0] >= {"cell0/a", "cell0/b"}
    space = jasgnas.search_space(fn, x34, params=params, tie="cell*/{branch}")
    assert [own - {"scale"} for own in held(space)] == [{"cell0/a", "cell1/a"}, {"cell0/b", "cell1/b"}]


def test_what_ties_all_that_leads_to_an_output_is_no_structure():
    def fn(p, x):
        h = x @ p["stem"] + x @ p["own"]
        return jax.nn.sigmoid(h) @ p["head"] + jnp.exp(h) @ p["head"]

    space = jasgnas.search_space(fn, x34, params=drawn(stem=(4, 4), own=(4, 4), head=(4, 2)))
    assert held(space) == [{"stem"}, {"own"}]
    assert "head is shared with other operators" in space.explain("head")


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        ("layers/*", "matches (`*` is one component, `**` any number); those of the first are cells/a/left/conv/"),
        ("cells/{a}/{b}/{c}/*", "6 structures match, each with other captures (a=a and b=left and c=conv, "),
        ("cells/*/left/conv/kernel", "cells/a/left/conv/kernel matches, but not all of what goes with it"),
        ("cells/{1}/*", "{1} in the pattern 'cells/{1}/*' is no name"),
        ([3], "expected a pattern of paths"),
    ],
)
def test_patterns_that_tie_nothing_are_errors(tie, message):
    with pytest.raises(jasgnas.ArgumentError, match=re.escape(message)):
        jasgnas.search_space(cells, x34, params=cell_params(), tie=tie)


def test_ties_without_structures_are_an_error():
    with pytest.raises(jasgnas.ArgumentError, match="tie= is about structures"):
        jasgnas.search_space(cells, x34, params=cell_params(), tie="**", structures=False, channels=True)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a/*", "a/b", ()),
        ("a/*", "a/b/c", None),
        ("a/**", "a", ()),
        ("**/c", "a/b/c", ()),
        ("a/**/c", "a/c", ()),
        ("layer_{i}/*", "layer_12/w", (("i", "12"),)),
        ("{node}_from{i}_*", "n0_from1_max_pool", (("i", "1"), ("node", "n0"))),
        ("{x}/{x}/{y}", "a/a/b", (("x", "a"), ("y", "b"))),
        ("{x}/{x}", "a/b", None),
        ("a.b/*", "axb/c", None),
    ],
)
def test_patterns_of_paths(pattern, path, expected):
    assert PathPattern(pattern).captures([path]) == expected


def test_united():
    assert united(5, [[1, 3], [3, 4]]) == [(0,), (1, 3, 4), (2,)]
    assert united(2, []) == [(0,), (1,)]


def test_a_space_with_ties_is_searched_anew_when_it_is_copied(tmp_path):
    params = cell_params()
    space = jasgnas.search_space(cells, x34, params=params, tie="cells/*/{edge}/{op}/**")
    _, left = subnet = jasgnas.construct_subnet(space, space.zero(params, [0]))
    jasgnas.save(tmp_path / "saved", *subnet)
    loaded, leaves = jasgnas.load(tmp_path / "saved", cells)
    np.testing.assert_allclose(loaded(leaves, x34), subnet[0](left, x34), atol=1e-6)
