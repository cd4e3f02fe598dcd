"""The named settings: their targets can be met, and each runs from prepared data to a loaded sub-network."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import experiments
import models
from experiments.data.prepare import Prepare, prepare
from experiments.engine import job
from experiments.engine.config import ParallelConfig
from experiments.engine.presets import PRESETS
from models.regnet import RegNetConfig
from tests import small_models
from tests.experiments.raw_images import class_folders, write_folder

OVERRIDES = {name: overrides for name, overrides, _ in small_models.SMALL}

# How the network is made small, the most parameters then if the settings set such a target, and the data set's images.
SMALL: dict[str, tuple[dict[str, Any], int | None, tuple[tuple[int, ...], str]]] = {
    "demonet-fashion-mnist": (OVERRIDES["demo_net"], None, ((28, 28), "png")),
    "stacked-unets-svhn": (OVERRIDES["stacked_unets"], None, ((32, 32, 3), "png")),
    "stacked-unets-cifar10": (OVERRIDES["stacked_unets"], None, ((32, 32, 3), "jpg")),
    "darts-8-stl10": (OVERRIDES["darts_8"], 1_500, ((96, 96, 3), "png")),
    "super-resnet-1m-cifar10": (OVERRIDES["super_resnet"], 8_000, ((32, 32, 3), "jpg")),
    "super-resnet-2m-cifar10": (OVERRIDES["super_resnet"], 8_000, ((32, 32, 3), "jpg")),
    "regnet-cifar10": ({"config": RegNetConfig(4, 8, 8.0, 2.0, 8)}, None, ((32, 32, 3), "jpg")),
    "nasbench201-cifar10": (OVERRIDES["nasbench201"], None, ((32, 32, 3), "jpg")),
    "darts-14-imagenet": (OVERRIDES["darts_8"], 18_000, ((120, 90, 3), "jpg")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_settings_run_from_prepared_data_to_a_loaded_subnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    overrides, target_params, (shape, suffix) = SMALL[name]
    monkeypatch.setattr(models, "create", partial(models.create, **overrides))
    preset = PRESETS[name][1]
    splits = ("train", "val" if preset.data.name == "imagenet2012" else "test")
    files = class_folders(dict.fromkeys(splits, 2), [str(label) for label in range(10)], shape, suffix)
    prepare(Prepare(preset.data.name, write_folder(tmp_path / "raw", files), tmp_path / "tfds"))
    config = dataclasses.replace(
        preset,
        output_dir=tmp_path / "run",
        data=dataclasses.replace(preset.data, data_dir=tmp_path / "tfds", workers=0),
        h2spg=dataclasses.replace(preset.h2spg, target_params=target_params),
        parallel=ParallelConfig(devices=1),
        epochs=4,
        batch_size=10,
        train_full=False,
        eval_every=0,
        quiet=True,
    )
    results = job.run(config)
    assert results.removed and results.subnet.num_params < results.full_params
    assert target_params is None or results.subnet.num_params <= target_params
    assert (tmp_path / "run" / "report.html").exists()
    subnet = experiments.load(tmp_path / "run")
    size = config.data.image_size or shape[0]
    images = jnp.zeros((1, size, size, shape[-1] if len(shape) == 3 else 1))
    # TFDS itself says how many classes a data set of this name has.
    assert jax.jit(subnet)(images).shape == (1, 1000 if preset.data.name == "imagenet2012" else 10)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_ask_for_what_there_is(name: str) -> None:
    description, config = PRESETS[name]
    assert description and config.model.name in models.list_models()
    assert config.output_dir.parent == Path("runs")
    assert len({str(each.output_dir) for _, each in PRESETS.values()}) == len(PRESETS)
    targets = [
        getattr(config.h2spg, field.name) for field in dataclasses.fields(config.h2spg) if "target" in field.name
    ]
    assert sum(target is not None for target in targets) == (0 if config.h2spg.at_most else 1)
    size = config.data.image_size
    assert size is None or size == models.example_input(config.model.name).shape[1]
