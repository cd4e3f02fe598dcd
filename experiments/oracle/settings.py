"""What an oracle trains and judges: the settings, and one preset for each network."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from typing import Any

from experiments.common.errors import ConfigError
from experiments.data import Augmentation
from experiments.engine.config import Config, DataConfig, H2SPGConfig, ModelConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained and judged."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: int = 2
    """Passes over the training images, those before the snapshot included."""
    batch_size: int = 64
    """Images per step."""
    snapshot: float = 0.3
    """Part of the steps after which the sets go, each from the same state."""
    projection: float = 0.1
    """Part of the steps over which a set goes to zero."""
    points: tuple[float, ...] = (0.1, 0.3, 0.6)
    """Parts of the steps after which the scores are compared with what the loss says, beside the snapshot."""
    score_batches: int = 16
    """Batches that scores, and the rise of the loss that they are compared with, are averaged over."""
    budgets: tuple[float, ...] = (0.8, 0.6, 0.45)
    """Parts of the full network's multiply-adds that selections must keep within."""
    num_drawn: int | None = None
    """Judge so many random maximal sets of each budget, where there are too many valid sets to train all (None)."""

    def __post_init__(self) -> None:
        """Refuses settings that no oracle could meet, before any work is done."""
        faults = []
        if not 0 < self.snapshot < 1 or not 0 < self.projection or self.snapshot + self.projection >= 1:
            faults.append(
                "snapshot and projection must be positive parts of the steps that add up to less than 1, got "
                f"{self.snapshot} and {self.projection}"
            )
        for name in ("budgets", "points"):
            values = getattr(self, name)
            if not values or not all(0 < value < 1 for value in values):
                faults.append(f"{name} must be numbers in (0, 1), at least one, got {values}")
        for name in ("score_batches", "num_drawn"):
            if (value := getattr(self, name)) is not None and value < 1:
                faults.append(f"{name} must be at least 1, got {value}")
        if faults:
            raise ConfigError("; ".join(faults))

    def config(self, seed: int) -> Config:
        """Returns the settings of a training as the engine takes them."""
        return Config(
            model=self.model,
            data=self.data,
            optimizer=self.optimizer,
            h2spg=H2SPGConfig(target_groups=1),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
        )

    @property
    def fingerprint(self) -> str:
        """Tells apart what was trained with other settings; which sets are judged, and where, is none of these."""
        settings = dataclasses.asdict(self)
        for name in ("points", "budgets", "num_drawn"):
            del settings[name]
        for name in ("data_dir", "workers"):
            del settings["data"][name]
        # What was recorded before there were gates was trained without any.
        for name, usual in (("gated", False), ("ungated", ())):
            if settings["model"][name] == usual:
                del settings["model"][name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def changes(preset: Settings, settings: Settings) -> list[str]:
    """Returns the settings that differ from those of a preset, one line each, but for the folder of the data."""
    before, after = _flat(dataclasses.asdict(preset)), _flat(dataclasses.asdict(settings))
    return [f"{name}: {before[name]} → {after[name]}" for name in after if before[name] != after[name]]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        nested = value if isinstance(value, dict) and name in ("model", "data", "optimizer") else {}
        flat |= {f"{name}.{key}": each for key, each in nested.items()} or {name: value}
    return {name: value for name, value in flat.items() if name not in ("data.data_dir", "data.workers")}


_CROP_FLIP = Augmentation(pad_crop=2, flip=True)
_SGD = OptimizerConfig(learning_rate=0.05, nesterov=True, warmup_epochs=0.1)

# Each set takes about half a minute of one CPU core. The networks are narrow and see an image once or twice, so that
# they are limited by their capacity: the loss of their training stays near that of the test.
DEMO_NET = Settings(
    model=ModelConfig("demo_net", {"width": 0.15}),
    data=DataConfig("fashion_mnist", image_size=14, num_train=32_000),
    optimizer=_SGD,
    epochs=2,
)
"""Eight channels where the network has 56; 1,000 steps."""

STACKED_UNETS = Settings(
    model=ModelConfig("stacked_unets", {"width": 0.15}),
    data=DataConfig("cifar10", image_size=16, num_train=32_000, augmentation=_CROP_FLIP),
    optimizer=_SGD,
    epochs=2,
)
"""On CIFAR-10, of which there is more at hand than of SVHN; 1,000 steps."""

REGNET = Settings(
    model=ModelConfig("regnet_x_200mf_cifar", {"width": 0.125}),
    data=DataConfig("cifar10", image_size=8, num_train=19_200, augmentation=replace(_CROP_FLIP, pad_crop=1)),
    optimizer=replace(_SGD, learning_rate=0.1),
    epochs=1,
    batch_size=32,
    budgets=(0.6,),
    num_drawn=24,
)
"""On images of 8×8, since the gradient of a grouped convolution is slow on CPUs; 600 steps."""

SUPER_RESNET = Settings(
    model=ModelConfig("super_resnet", {"width": 0.125, "depth": 0.4}),
    data=DataConfig("cifar10", image_size=12, num_train=19_200, num_test=5_000, augmentation=_CROP_FLIP),
    optimizer=_SGD,
    epochs=1,
    batch_size=32,
    budgets=(0.35,),
    num_drawn=24,
)
"""Two blocks a stage; 600 steps. The budget is a low one: kernels of 7×7 are more than half of the network."""

PRESETS = {
    "demo_net": ("DemoNet on Fashion-MNIST, all valid sets", DEMO_NET),
    "stacked_unets": ("StackedUnets on CIFAR-10, all valid sets", STACKED_UNETS),
    "regnet": ("RegNet X-200MF on CIFAR-10, sets of one budget", REGNET),
    "super_resnet": ("SuperResNet on CIFAR-10, sets of one budget", SUPER_RESNET),
}
"""Description and settings by the name of the network on the command line."""
