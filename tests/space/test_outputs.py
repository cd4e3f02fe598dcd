"""Outputs that need not stay connected to the input."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas

X = jax.random.normal(jax.random.key(0), (3, 4))
PARAMS = {
    name: jax.random.normal(key, (4, 4)) / 2
    for name, key in zip("abcde", jax.random.split(jax.random.key(1), 5), strict=True)
}


def fn(params, x):
    """Returns logits, the result of a branch, that of an auxiliary head beside it, and a temperature."""
    branch = jnp.tanh(x @ params["b"])
    stream = x @ params["a"] + branch
    auxiliary = jnp.sin(x @ params["c"]) + branch
    return {
        "logits": stream @ params["d"],
        "parts": (branch, auxiliary),
        "temperature": jnp.exp(params["e"][0, 0]),
    }


def varies(removed, name):
    """Tells whether an output of the network without some parameters depends on the input."""
    params = {key: jnp.zeros_like(value) if key in removed else value for key, value in PARAMS.items()}
    one, other = (jax.tree.leaves(fn(params, x)[name]) for x in (X, X[::-1] + 1))
    return all(not np.allclose(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("outputs", "names", "wanted"),
    [
        (("logits",), "bac", ["logits"]),
        ("logits", "bac", ["logits"]),
        (("logits", "parts/1"), "bac", ["logits", "parts"]),
    ],
)
def test_only_named_outputs_stay_connected(outputs, names, wanted):
    space = jasgnas.search_space(fn, X, params=PARAMS, outputs=outputs)
    assert [group.name for group in space.groups] == list(names)
    for number in range(1, len(names) + 1):
        for removed in itertools.combinations(range(len(names)), number):
            taken = {names[index] for index in removed}
            # The branch is returned as part 0, which nobody asks for here.
            expected = varies(taken, "logits") and ("parts" not in wanted or not {"b", "c"} <= taken)
            assert space.is_valid(removed) == expected
            if expected:
                params = space.zero(PARAMS, removed)
                sub_fn, sub_params = jasgnas.construct_subnet(space, params, verify=True)
                jax.tree.map(np.testing.assert_allclose, sub_fn(sub_params, X), fn(params, X))
                sizes = jasgnas.count_params(sub_params), jasgnas.count_macs(sub_fn, X, params=sub_params)
                assert sizes == space.subnet_size(removed)


def test_all_outputs_stay_connected_by_default():
    with pytest.raises(jasgnas.DisconnectedOutputError, match=r"temperature .* outputs=\('logits',\)"):
        jasgnas.search_space(fn, X, params=PARAMS)
    space = jasgnas.search_space(fn, X, params=PARAMS, outputs=("logits", "parts"))
    assert [group.name for group in space.groups] == ["a", "c"] and space.is_valid([0, 1])


def test_optimizer_and_copies_go_by_the_same_outputs(tmp_path):
    space = jasgnas.search_space(fn, X, params=PARAMS, outputs="logits")
    again = pickle.loads(pickle.dumps(space))
    assert again.is_valid([0, 2]) and not again.is_valid([0, 1])
    jasgnas.save(tmp_path / "saved", *jasgnas.construct_subnet(space, space.zero(PARAMS, [0, 2])))
    sub_fn, sub_params = jasgnas.load(tmp_path / "saved", fn)
    assert sorted(sub_params) == ["a", "d", "e"]
    assert sub_fn(sub_params, X)["parts"][0].shape == (3, 4)


@pytest.mark.parametrize(("outputs", "message"), [(("logit",), "which is logits, parts/0"), ((), "leaves no output")])
def test_outputs_that_are_not_there_are_refused(outputs, message):
    with pytest.raises(jasgnas.ArgumentError, match=message):
        jasgnas.search_space(fn, X, params=PARAMS, outputs=outputs)


def test_tied_parts_may_take_an_output_with_them_that_need_not_stay():
    def tied(params, x):
        part = jnp.tanh(x @ params["b"])
        return {"logits": (x @ params["a"] + part) @ params["d"], "auxiliary": jnp.tanh(x[::-1] @ params["b"])}

    space = jasgnas.search_space(tied, X, params=PARAMS, outputs="logits")
    groups = {group.name: group for group in space.groups}
    assert sorted(groups) == ["a", "b"] and len(groups["b"].segments) == 2
    sparse = space.zero(PARAMS, [groups["b"].index])
    sub_fn, sub_params = jasgnas.construct_subnet(space, sparse, verify=True)
    jax.tree.map(np.testing.assert_allclose, sub_fn(sub_params, X), tied(sparse, X))
    with pytest.raises(jasgnas.NoRemovableStructureError):
        jasgnas.search_space(lambda params, x: {**tied(params, x), "a": x @ params["a"]}, X, params=PARAMS)
