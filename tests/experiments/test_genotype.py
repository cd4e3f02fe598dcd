"""A search among the cells of DARTS with gates, from its settings to the genotype that is read off and drawn."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import experiments
import models
from experiments import genotype
from experiments.data import open_dataset
from experiments.engine import job
from experiments.engine.config import Config, DataConfig, ParallelConfig
from experiments.engine.presets import DARTS_8_STL10_GATED
from experiments.engine.runs import arrays_of, read_finished
from models.darts import Darts, Genotype, operation_key

NODES = (
    (("dil_conv_3x3", 0), ("max_pool_3x3", 0), ("skip_connect", 1)),
    (("skip_connect", 2), ("max_pool_3x3", 2), ("avg_pool_3x3", 1), ("skip_connect", 0)),
)
SMALL = {"features": 2, "num_cells": 2, "genotype": Genotype(NODES, NODES)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of the preset, on a network and images that are small."""
    preset = DARTS_8_STL10_GATED
    return dataclasses.replace(
        preset,
        output_dir=tmp_path_factory.mktemp("run"),
        model=dataclasses.replace(preset.model, name="darts_8", auxiliary_weight=0.0),
        data=DataConfig(num_train=128, num_test=128),
        h2spg=dataclasses.replace(preset.h2spg, score="gate"),
        parallel=ParallelConfig(devices=1),
        epochs=5,
        batch_size=32,
        train_full=False,
        eval_every=0,
        quiet=True,
    )


@pytest.fixture(autouse=True, scope="module")
def small_network() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", partial(models.create, **SMALL))
        yield


@pytest.fixture(scope="module")
def finished(config: Config) -> job.Results:
    return job.run(config)


def test_the_sub_network_is_the_network_of_the_genotype_without_any_gate(config: Config, finished: job.Results) -> None:
    cells = genotype.genotype(read_finished(config.output_dir))
    for node in (node for nodes in cells for node in nodes):
        assert len(node) == len({source for _, source in node}) == 2
    subnet = experiments.load(config.output_dir)
    arrays = arrays_of(subnet)
    assert not [path for path in arrays if path.startswith("gates")]
    # A plain network that was told of these cells, with the same arrays.
    dataset = open_dataset("digits").take(None, config.data.num_test)
    plain = Darts(dataset.num_classes, in_channels=1, rngs=nnx.Rngs(1), **SMALL)
    for cell, nodes in zip(plain.cells, cells, strict=True):
        cell.nodes = nodes
    state = nnx.state(plain, nnx.Any(nnx.Param, nnx.BatchStat))
    for keys, variable in nnx.to_flat_state(state):
        if (path := "/".join(map(str, keys))) in arrays:
            variable.set_value(jnp.asarray(arrays[path]))
    nnx.update(plain, state)
    plain.eval()
    images, labels = dataset.test.load(np.arange(len(dataset.test)))
    mean, std = dataset.normalisation
    images = jnp.asarray((images / 255 - mean[0]) / std[0], jnp.float32)
    logits = jax.jit(subnet)(images)
    np.testing.assert_allclose(logits, jax.jit(plain)(images), atol=1e-4 * np.abs(logits).max())
    assert np.mean(logits.argmax(-1) == labels) == pytest.approx(finished.subnet.test_accuracy)


def test_the_genotype_is_printed_and_drawn(
    config: Config, finished: job.Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del finished
    monkeypatch.setattr("sys.argv", ["genotype", str(config.output_dir)])
    genotype.main()
    *lines, last = capsys.readouterr().out.splitlines()
    path = config.output_dir / "genotype.svg"
    assert last == f"Drawn in {path}"
    drawing = path.read_text()
    assert [line.partition(": ")[0] for line in lines] == ["cell 0", "cell 1"]
    for index, line in enumerate(lines):
        for node, text in enumerate(line.partition(": ")[2].split("; ")):
            for name, source in re.findall(r"(\w+)\((\d)\)", text):
                key = operation_key(node, name, int(source))
                has_parameters = name != "skip_connect" or int(source) < 2
                assert (f"cells/{index}/operations/{key}/" in drawing) == has_parameters
