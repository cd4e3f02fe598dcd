"""What a report says, as numbers: fates of segments, sizes, curves; and that no string can break out of the page."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jasgnas
from jasgnas import ArgumentError
from jasgnas.pages.files import packed_engine
from jasgnas.pages.history import history_data
from jasgnas.pages.modules import module_paths
from jasgnas.pages.page import _script_json
from models.demo_net import DemoNet
from models.stacked_unets import StackedUnets
from tests.networks import arrays, build, subsets
from tests.pages.joined import joined_data

# The authors' redundant set of StackedUnets: the second U-net is dead without its outputs.
AUTHORS_REDUNDANT = (0, 3, 4, 5)


@pytest.fixture(scope="module")
def demo_space():
    return jasgnas.search_space(build(DemoNet, width=0.1), jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))


@pytest.fixture(scope="module")
def unets():
    model = build(StackedUnets, width=0.1)
    return model, jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32))


def data_of(space, redundant=None, **known):
    return joined_data(space, jasgnas.Run(redundant=redundant, **known))


def fates(space, redundant):
    segments = data_of(space, redundant)["segments"]
    return dict(zip(segments["name"], segments["fate"], strict=True))


# Fates of segments and sizes.


def test_fates_of_demo_net(demo_space):
    assert fates(demo_space, (0, 2, 4)) == {
        "conv1-bn1": "kept",
        "conv2-bn2": "redundant",
        "conv3-bn3": "kept",
        "conv4-bn4-conv5-bn5": "redundant",
        "concatenate": "passing",
        "conv6-bn6": "kept",
        "conv7-bn7": "kept",
        "conv8-bn8": "redundant",
        "add": "passing",
        "fc1-fc2": "kept",
    }


def test_a_joint_with_two_inputs_left_stays(demo_space):
    assert fates(demo_space, (0,))["concatenate"] == "kept"


def test_nothing_is_known_without_a_removal(demo_space):
    data = data_of(demo_space)
    assert not data["hasRemoval"]
    assert set(data["segments"]["fate"]) == {"kept"}
    assert {"score", "redundant", "zero"}.isdisjoint(data["groups"])
    assert all(row["sub"] is None for row in data["networks"])


def test_what_is_kept_of_the_unets_owns_the_subnetworks_parameters(unets):
    model, space = unets
    data = data_of(space, AUTHORS_REDUNDANT)
    segments, operators = data["segments"], data["operators"]
    kept = [i for i, fate in enumerate(segments["fate"]) if fate in ("kept", "passing")]
    parts = {part for i in kept for operator in segments["operators"][i] for part in operators["parts"][operator]}
    subnet = jasgnas.construct_subnet(space, space.zero(model, AUTHORS_REDUNDANT))
    assert {data["parts"]["path"][part] for part in parts} == arrays(subnet).keys()
    second = [name for name in segments["name"] if re.match(r"conv(39|42|45)", name)]
    assert [fates(space, AUTHORS_REDUNDANT)[name] for name in second] == ["dead"] * 3


# Without groups 3 and 4 the network would be a constant.
@pytest.mark.parametrize("redundant", [s for s in subsets(5) if len(s) < 3 and s != (3, 4)], ids=str)
def test_segments_add_up_to_the_subnetwork(demo_space, redundant):
    data = data_of(demo_space, redundant)
    segments = data["segments"]
    sizes = demo_space.subnet_size(redundant)
    assert (sum(segments["subParams"]), sum(segments["subMacs"])) == sizes
    assert [row["sub"] for row in data["networks"]] == list(sizes)
    left = np.isin(segments["fate"], ["kept", "passing"])
    assert not np.any(np.array(segments["subParams"])[~left])


def test_columns_are_as_long_as_the_graphs(unets):
    _, space = unets
    data = data_of(space, AUTHORS_REDUNDANT, scores=np.arange(6.0))
    lengths = {name: {len(column) for column in data[name].values()} for name in ("operators", "segments", "groups")}
    assert lengths == {"operators": {61}, "segments": {22}, "groups": {6}}
    sources = [source for own in data["segments"]["sources"] for source in own if source >= 0]
    assert len(sources) == space.segment_graph.n_edge[0]


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda p, x: (x @ p["a"] + x + jnp.exp(x @ p["b"] * (x @ p["c"]))) @ p["d"], "it feeds a product"),
        (
            lambda p, x: (x @ p["a"] + jax.nn.sigmoid(x @ p["b"])) @ p["c"] @ p["d"],
            "not zero-invariant: sigmoid does not keep zeros",
        ),
        (lambda p, x: (x @ p["a"] + x @ p["c"]) @ p["b"] @ p["c"] @ p["d"], "c is shared with other operators"),
    ],
)
def test_reasons_are_told(fn, reason):
    params = {name: np.ones((4, 4), np.float32) for name in "abcd"}
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    assert any(reason in text for text in data_of(space)["segments"]["reason"])


# What comes from a run.


def test_optimizer_state_says_the_same_as_arguments(demo_space):
    model = build(DemoNet, width=0.1)
    tx = jasgnas.h2spg(
        demo_space, learning_rate=0.1, target_groups=2, warmup_steps=1, projection_steps=1, score="magnitude"
    )
    params = nnx.state(model, nnx.Param)
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(jax.tree.map(lambda x: -0.1 * x, params), state, params)
        params = optax.apply_updates(params, updates)
    redundant = np.flatnonzero(state.redundant)
    assert len(redundant) == 2
    known = data_of(demo_space, opt_state=(state,))
    given = data_of(demo_space, redundant, scores=state.scores)
    assert known["groups"].pop("zero") == state.zero.tolist() == state.redundant.tolist()
    runner_up = demo_space.name_of(int(state.runner_up))
    assert known.pop("selection") == {
        "at": 1,
        "runnerUp": runner_up,
        "runnerUpGroup": int(state.runner_up),
        "predicted": 0,
        "measured": 0,
    }
    assert given.pop("selection") is None
    assert known == given


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"redundant": [5]}, "no group 5"),
        ({"scores": [1.0, 2.0]}, r"scores has shape \(2,\), the search space has 5 groups"),
        ({"history": {"loss": [1.0], "step": [1, 2]}}, "different lengths: {'loss': 1, 'step': 2}"),
        ({"history": [{"loss": "high"}]}, "'loss' holds something else"),
        ({"history": [{"loss": 1.0}, {"step": 1}]}, "'step' of history= must have a number in every place"),
        ({"history": [{"group_norms": [1.0]}]}, r"must have 5 numbers, entry 0 has shape \(1,\)"),
        (
            {"full": {"accuracy": [1.0]}},
            r"the result 'accuracy' of a network must be a number or a string, got \[1.0\]",
        ),
    ],
)
def test_arguments_that_do_not_fit(demo_space, tmp_path, options, match):
    with pytest.raises(ArgumentError, match=match):
        jasgnas.report(demo_space, path=tmp_path / "report.html", **options)
    assert not list(tmp_path.iterdir())


def test_state_and_scores_exclude_each_other(demo_space, tmp_path):
    tx = jasgnas.h2spg(
        demo_space, learning_rate=0.1, target_groups=2, warmup_steps=1, projection_steps=1, score="magnitude"
    )
    state = tx.init(nnx.state(build(DemoNet, width=0.1), nnx.Param))
    with pytest.raises(ArgumentError, match="leave out redundant=, scores="):
        jasgnas.report(demo_space, path=tmp_path / "report.html", opt_state=state, redundant=[0])


def test_history_by_rows_or_by_columns_is_the_same():
    rows = [{"step": 10 * i, "loss": 1 / (i + 1), "phase": i // 2, "group_norms": np.full(3, i)} for i in range(6)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert history_data(rows, 3) == history_data(columns, 3)
    data = history_data(rows, 3)
    assert data["series"]["loss"]["steps"] == [0, 10, 20, 30, 40, 50]
    assert [(p["phase"], p["start"], p["stop"]) for p in data["phases"]] == [(0, 0, 20), (1, 20, 40), (2, 40, 50)]
    assert data["norms"] == {
        "column": "group_norms",
        "steps": [0, 10, 20, 30, 40, 50],
        "values": [[0, 1, 2, 3, 4, 5]] * 3,
    }


def test_what_is_missing_is_left_out():
    data = history_data([{"loss": 1.0}, {"loss": np.nan, "test": 3}, {"loss": None}, {"loss": np.inf}, {"loss": 2}], 1)
    assert data["series"] == {"loss": {"steps": [0, 4], "values": [1, 2]}, "test": {"steps": [1], "values": [3]}}
    assert data["norms"] is None and data["phases"] == []


def test_long_histories_are_thinned_out_but_not_sparse_columns():
    length = 100_000
    sparse = [None if i % 10_000 else i for i in range(length)]
    data = history_data({"loss": np.arange(length), "test": sparse, "group_norms": np.ones((length, 500))}, 500)
    steps = data["series"]["loss"]["steps"]
    assert len(steps) <= 1000 and steps[0] == 0 and steps[-1] == length - 1
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 1
    assert data["series"]["test"]["values"] == list(range(0, length, 10_000))
    assert len(data["norms"]["values"]) == 500 and len(data["norms"]["values"][0]) <= 200


def test_an_empty_history_has_no_curves():
    assert history_data([], 3) == {"series": {}, "phases": [], "marks": [], "norms": None, "scores": None}


def test_metrics_of_the_library_are_a_history(demo_space):
    """Of a run in which 2 of 5 groups are selected at the third update and cut out after the fifth."""
    model = build(DemoNet, width=0.1)
    tx = jasgnas.h2spg(
        demo_space, learning_rate=0.1, target_groups=2, warmup_steps=2, projection_steps=2, score="magnitude"
    )
    params = nnx.state(model, nnx.Param)
    state = tx.init(params)
    rows = []
    for number in range(5):
        updates, state = tx.update(jax.tree.map(lambda x: -0.1 * x, params), state, params)
        params = optax.apply_updates(params, updates)
        rows.append({"loss": 1 / (number + 1)} | jasgnas.h2spg_metrics(state))
    cut = rows[-1] | {"step": 6, "num_removed": 2}
    redundant = np.flatnonzero(state.redundant).tolist()
    data = data_of(demo_space, redundant, scores=np.asarray(state.scores), history=[*rows, cut])
    history = data["history"]
    assert list(history["series"]) == ["loss", "selected/groups", "zero/groups", "cut out/groups", "group_sparsity"]
    assert history["series"]["selected/groups"] == {"steps": [1, 2, 3, 4, 5, 6], "values": [0, 0, 2, 2, 2, 2]}
    assert history["marks"] == [{"step": 2, "text": "selection"}, {"step": 6, "text": "shrunk: 2 groups cut out"}]
    assert np.array(history["scores"]["values"])[:, -1] == pytest.approx(np.asarray(state.scores), rel=1e-3)
    assert history["norms"]["redundant"] == state.redundant.tolist()
    assert data["selection"]["at"] == 2
    assert data["selection"]["runnerUp"] == demo_space.name_of(int(state.runner_up))


def test_sizes_by_score_are_those_of_the_sets(demo_space):
    """Groups 3 and 4 cannot go together, nor 0, 1 and 2."""
    data = data_of(demo_space, (0,), scores=[0.5, 0.9, 0.1, np.nan, 0.7])
    taken = [1, 4, 0]
    sizes = [demo_space.subnet_size(taken[:count]) for count in range(4)]
    assert data["sizes"] == {
        "groups": [0, 1, 2, 3],
        "params": [params for params, _ in sizes],
        "macs": [macs for _, macs in sizes],
    }
    assert data_of(demo_space, (0,))["sizes"] is None


def test_stages_of_a_network_stand_beside_each_other(demo_space):
    data = data_of(
        demo_space,
        (0,),
        full={"accuracy": 0.99},
        construction={"accuracy": 0.9},
        recalibrated={"accuracy": 0.95},
        sub={"accuracy": 0.98},
        settings={"target_groups": 1, "settle": True, "target_params": None},
        command="python train.py",
    )
    assert data["networks"][-1] == {
        "label": "accuracy",
        "full": 0.99,
        "construction": 0.9,
        "recalibrated": 0.95,
        "sub": 0.98,
    }
    assert (data["settings"], data["command"]) == (
        {"target_groups": 1, "settle": "True", "target_params": "None"},
        "python train.py",
    )
    assert data["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        ([], "one run at least"),
        ([jasgnas.Run()], r"got the names \[''\]"),
        ([jasgnas.Run(name="a"), jasgnas.Run(name="a")], r"got the names \['a', 'a'\]"),
        ([{"name": "a"}], "got dict"),
    ],
)
def test_runs_that_cannot_be_compared(demo_space, tmp_path, runs, match):
    with pytest.raises(ArgumentError, match=match):
        jasgnas.compare(demo_space, runs, path=tmp_path / "compare.html")
    assert not list(tmp_path.iterdir())


def test_modules_of_segments():
    """Blocks hold their sums; rows of scanned layers are modules of their own."""

    def layer(x, p):
        return x + jnp.tanh(x @ p["up"]["w"]) @ p["down"]["w"], None

    def fn(p, x):
        x = jnp.tanh(x @ p["stem"]["w"])
        for block in p["blocks"].values():
            x = jnp.tanh(x + jnp.tanh(x @ block["a"]["w"]) @ block["b"]["w"])
        return jax.lax.scan(layer, x, p["layers"])[0] @ p["head"]["w"]

    weight = np.ones((4, 4), np.float32)
    params = {
        "stem": {"w": weight},
        "blocks": {str(i): {name: {"w": weight} for name in "ab"} for i in range(2)},
        "layers": {name: {"w": np.ones((3, 4, 4), np.float32)} for name in ("up", "down")},
        "head": {"w": weight},
    }
    space = jasgnas.search_space(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=params)
    modules = ["/".join(path) for path in module_paths(space)]
    assert sorted(set(modules)) == ["blocks/0", "blocks/1", "head", "layers/0", "layers/1", "layers/2", "stem"]
    sums = [module for module, segment in zip(modules, space.graph.segments, strict=True) if segment.additive]
    assert sums == ["blocks/0", "blocks/1", "layers/0", "layers/1", "layers/2"]


def test_results_stand_beside_sizes(demo_space):
    full, sub = {"test accuracy": np.float32(0.5), "device": "cpu"}, {"parameters": 7, "test accuracy": 0.25}
    rows = {
        row["label"]: (row["full"], row["sub"]) for row in data_of(demo_space, (0,), full=full, sub=sub)["networks"]
    }
    params, macs = demo_space.subnet_size(())
    assert rows == {
        "parameters": (params, 7),
        "multiply-adds": (macs, demo_space.subnet_size((0,))[1]),
        "test accuracy": (0.5, 0.25),
        "device": ("cpu", None),
    }


# The file.


def test_report_is_one_file(demo_space, tmp_path):
    path = jasgnas.report(demo_space, path=tmp_path / "report.html", title="A & B")
    assert path == tmp_path / "report.html" and list(tmp_path.iterdir()) == [path]
    text = path.read_text("utf-8")
    assert "<title>A &amp; B</title>" in text
    assert "@@" not in text
    assert not re.search(r"<(link|img|iframe)|<script[^>]* src=|@import|url\(", text)


def test_dimensions_before_and_after():
    """A structure that goes takes the channels that only it makes along; the others lose what is removed of them."""
    model = build(DemoNet, width=0.1)
    space = jasgnas.search_space(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), channels=True)
    first, inner, last = (space.dimensions[index] for index in (0, 1, -1))
    redundant = [0, *first.groups[:2], *last.groups[1:]]
    rows = [{"step": step, "group_norms": np.full(len(space.groups), 2.0)} for step in range(3)]
    data = data_of(space, redundant, history=rows)
    left = dict(zip(data["dimensions"]["name"], data["dimensions"]["left"], strict=True))
    assert "conv2/kernel" in inner.paths
    assert left == {each.name: each.size for each in space.dimensions} | {
        first.name: first.size - 2,
        inner.name: 0,
        last.name: 1,
    }
    norms = data["history"]["norms"]
    assert norms["names"] == ["0 conv2-bn2", *(f"{g.index} {g.name}" for g in space.structures[1:]), *left]
    assert norms["redundant"] == [True] + [False] * (len(norms["names"]) - 1)
    assert norms["values"][0] == [2.0] * 3
    assert norms["values"][-1] == pytest.approx([2 * last.size**0.5] * 3, rel=1e-3)
    table = jasgnas.measure_latency(space, timer=lambda run, arrays: 2.0)
    rows = data_of(space, redundant, sub={"seconds": 1.5}, latency=table)["networks"]
    predicted, measured = rows[2:]
    assert predicted["label"] == "seconds of a forward pass, predicted"
    assert (predicted["full"], predicted["sub"] < 2.0) == (2.0, True)
    assert measured == {"label": "seconds", "full": None, "sub": 1.5}
    assert data_of(space)["dimensions"].keys() == {"name", "size", "params", "paths"}


def test_a_folder_that_is_not_there(demo_space, tmp_path):
    with pytest.raises(FileNotFoundError):
        jasgnas.report(demo_space, path=tmp_path / "none" / "report.html")


def test_notebooks_get_a_sandboxed_frame(demo_space):
    html = demo_space._repr_html_()
    assert re.match(r'<iframe sandbox="allow-scripts allow-downloads" ', html)
    assert html.count("<") == 2  # everything else is inside an attribute


def test_the_engine_is_small_enough_to_ship():
    assert len(packed_engine()) < 800 * 1024


@given(st.text() | st.sampled_from(["</script>", "<!--", "]]>", "&lt;", "\u2028", "\ud800", "@@data@@"]))
def test_no_string_ends_the_script(text):
    written = _script_json({text: [text]})
    assert not re.search("[<>&\u2028\u2029]", written)
    written.encode()
    if text.isprintable():
        assert json.loads(written) == {text: [text]}
