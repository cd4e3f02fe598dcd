"""The named settings: their targets can be met, and each runs from prepared data to a loaded sub-network."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import experiments
import models
from experiments import train
from experiments.config import ParallelConfig
from experiments.prepare import Prepare, prepare
from experiments.presets import PRESETS
from tests.raw_images import class_folders, write_folder

# How the network is made small, what must go then, and the images in the data set's own format.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[tuple[int, ...], str]]] = {
    "demonet-fashion-mnist": ({"width": 0.1}, {}, ((28, 28), "png")),
    "stacked-unets-svhn": ({"width": 0.1}, {}, ((32, 32, 3), "png")),
    "darts-8-stl10": ({"features": 4, "num_cells": 3}, {"target_sparsity": 0.5}, ((96, 96, 3), "png")),
    "super-resnet-1m-cifar10": ({}, {"target_sparsity": 0.5}, ((32, 32, 3), "jpg")),
    "regnet-cifar10": ({}, {}, ((32, 32, 3), "jpg")),
    "darts-14-imagenet": ({"features": 4, "num_cells": 3}, {"target_sparsity": 0.5}, ((120, 90, 3), "jpg")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_settings_run_from_prepared_data_to_a_loaded_subnet(tmp_path: Path, name: str) -> None:
    options, target, (shape, suffix) = SMALL[name]
    preset = PRESETS[name][1]
    splits = ("train", "val" if preset.data.name == "imagenet2012" else "test")
    files = class_folders(dict.fromkeys(splits, 2), [str(label) for label in range(10)], shape, suffix)
    prepare(Prepare(preset.data.name, write_folder(tmp_path / "raw", files), tmp_path / "tfds"))
    h2spg = dataclasses.replace(preset.h2spg, **(dict(target_params=None) | target)) if target else preset.h2spg
    config = dataclasses.replace(
        preset,
        output_dir=tmp_path / "run",
        model=dataclasses.replace(preset.model, options=options),
        data=dataclasses.replace(preset.data, data_dir=tmp_path / "tfds", workers=0),
        h2spg=h2spg,
        parallel=ParallelConfig(devices=1),
        epochs=4,
        batch_size=10,
        train_full=False,
        eval_every=0,
        quiet=True,
    )
    results = train.run(config)
    assert results.removed and results.subnet.num_params < results.full_params
    assert (tmp_path / "run" / "report.html").exists()
    subnet = experiments.load(tmp_path / "run")
    size = config.data.image_size or shape[0]
    images = jnp.zeros((1, size, size, shape[-1] if len(shape) == 3 else 1))
    assert jax.jit(subnet)(images).shape == (1, 10)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_ask_for_what_there_is(name: str) -> None:
    description, config = PRESETS[name]
    assert description and config.model.name in models.list_models()
    assert config.output_dir.parent == Path("runs")
    assert len({str(each.output_dir) for _, each in PRESETS.values()}) == len(PRESETS)
    targets = [
        getattr(config.h2spg, field.name) for field in dataclasses.fields(config.h2spg) if "target" in field.name
    ]
    assert sum(target is not None for target in targets) == 1
    size = config.data.image_size
    assert size is None or size == models.example_input(config.model.name).shape[1]
