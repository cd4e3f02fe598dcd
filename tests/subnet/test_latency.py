"""Latency tables, measured by stopwatches that are known to the last tick."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jasgnas
from jasgnas import ArgumentError, LatencyTable, TargetError
from jasgnas.program.jaxpr import trace
from jasgnas.program.macs import program_macs
from models.demo_net import DemoNet
from tests.networks import build

X = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
TICK = 1e-9


def per_mac(run, arrays):
    """A device on which a multiply-add takes a nanosecond, and nothing else any time."""
    return TICK * program_macs(trace(run, *arrays))


def per_output(run, arrays):
    """A device on which only writing the results of a program takes time."""
    return TICK * sum(math.prod(aval.shape) for aval in jax.eval_shape(run, *arrays))


@pytest.fixture(scope="module")
def demo():
    model = build(DemoNet, width=0.2)
    space = jasgnas.search_space(model, X, channels=True)
    return model, space, jasgnas.measure_latency(space, timer=per_mac)


def drawn(space, seed):
    rng = np.random.default_rng(seed)
    structures = [[], [0], [1, 4]][seed]
    channels = [index for each in space.dimensions for index in each.groups[rng.integers(1, each.size + 1) :]]
    return [*structures, *channels]


@pytest.mark.parametrize("seed", range(3))
def test_a_device_that_counts_multiply_adds(demo, seed):
    model, space, table = demo
    removed = drawn(space, seed)
    subnet = jasgnas.construct_subnet(space, space.zero(model, removed))
    assert table.predict(space, removed) == pytest.approx(TICK * jasgnas.count_macs(subnet, X), rel=1e-6)
    assert table.predict(space) == pytest.approx(table.seconds)
    assert table.seconds == pytest.approx(TICK * jasgnas.count_macs(model, X))


def test_the_same_target_as_in_multiply_adds(demo):
    _, space, table = demo
    scores = np.random.default_rng(0).random(len(space.groups))
    scores[: len(space.structures)] /= 3
    removed = space.select(scores, target_macs=0.5)
    assert space.select(scores, target_latency=0.5, latency=table) == removed
    seconds = 0.5 * table.seconds
    assert space.select(scores, target_seconds=seconds, latency=table) == removed
    assert table.predict(space, removed) <= seconds
    limited = space.select(scores, target_latency=0.5, latency=table, multiple_of=4)
    assert limited == space.select(scores, target_macs=0.5, multiple_of=4)


def test_a_device_that_only_writes():
    """Segments count by their results; those of a narrower network are narrower."""
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 8))), "b": jnp.asarray(rng.normal(size=(8, 12)))}
    params |= {"c": jnp.asarray(rng.normal(size=(8, 12))), "d": jnp.asarray(rng.normal(size=(12, 2)))}

    def fn(p, x):
        x = x @ p["a"]
        return (jnp.tanh(x @ p["b"]) + x @ p["c"]) @ p["d"]

    space = jasgnas.search_space(fn, jnp.ones((5, 3)), params=params, channels=True)
    table = jasgnas.measure_latency(space, timer=per_output)
    assert [dimension.size for dimension in space.dimensions] == [8, 12]
    # Results of five rows: 8 of a, 12 each of the branches and of their sum, 2 of d; they are scaled to the whole.
    full = 8 + 3 * 12 + 2
    removed = [*space.dimensions[0].groups[:2], *space.dimensions[1].groups[:5]]
    assert table.predict(space, removed) / table.seconds == pytest.approx((6 + 3 * 7 + 2) / full, rel=1e-5)
    without = [next(group.index for group in space.structures if group.name == "b")]
    # A sum counts as long as it has a summand left.
    assert table.predict(space, without) / table.seconds == pytest.approx((8 + 2 * 12 + 2) / full, rel=1e-5)


def test_without_channels_segments_count_as_they_are():
    model = build(DemoNet, width=0.2)
    space = jasgnas.search_space(model, X)
    table = jasgnas.measure_latency(space, timer=per_mac)
    for removed in ([0], [2, 4]):
        predicted = table.predict(space, removed)
        assert predicted == pytest.approx(TICK * space.subnet_size(removed)[1], rel=1e-6)
    scores = np.arange(len(space.groups), dtype=float)
    assert space.select(scores, target_latency=0.6, latency=table) == space.select(scores, target_macs=0.6)


def test_h2spg_takes_a_table(demo):
    model, space, table = demo
    scores = np.random.default_rng(0).random(len(space.groups)).astype(np.float32)
    tx = jasgnas.h2spg(
        space.candidates, learning_rate=0.1, warmup_steps=1, projection_steps=1, score=scores,
        target_latency=0.5, latency=table,
    )  # fmt: skip
    params = space.model.tree(model)
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert tuple(np.flatnonzero(state.redundant)) == space.select(scores, target_latency=0.5, latency=table)


def test_a_stopwatch_of_its_own(demo):
    _, space, _ = demo
    table = jasgnas.measure_latency(space, repeats=2)
    assert table.predict(space) == pytest.approx(table.seconds)
    assert 0 < table.seconds < 10
    assert sum(each.seconds for each in table.segments) == pytest.approx(table.seconds)


def test_json_brings_it_back(demo):
    _, space, table = demo
    again = LatencyTable.from_json(table.to_json())
    assert again == table
    assert again.predict(space, [0]) == table.predict(space, [0])
    assert json.loads(table.to_json())["device"] == jax.devices()[0].device_kind
    for text in ("", "[]", "{}", table.to_json().replace("seconds", "minutes", 1)):
        with pytest.raises(ArgumentError, match="LatencyTable"):
            LatencyTable.from_json(text)


def test_what_does_not_fit_says_so(demo):
    model, space, table = demo
    scores = np.zeros(len(space.groups))
    other = jasgnas.search_space(model, X)
    for options, message in [
        ({"target_latency": 0.5}, "latency=jasgnas.measure_latency"),
        ({"target_macs": 0.5, "latency": table}, "for target_latency"),
        ({"target_latency": 2, "latency": table}, "fraction"),
        ({"target_seconds": -1.0, "latency": table}, "above 0"),
        ({"target_latency": 0.5, "latency": table.to_json()}, "got str"),
        ({"target_latency": 0.5, "latency": jasgnas.measure_latency(other, timer=per_mac)}, "another search space"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            space.select(scores, **options)
    with pytest.raises(TargetError, match="seconds"):
        space.select(scores, target_seconds=1e-12, latency=table)
    with pytest.raises(ArgumentError, match="more repeats"):
        jasgnas.measure_latency(space, timer=lambda run, arrays: 0.0)
