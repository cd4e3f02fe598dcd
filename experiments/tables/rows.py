"""The rows of the papers' tables: what was reported, how each is trained, and how it is made smaller."""

import dataclasses
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.engine.config import Config, Option
from experiments.engine.presets import PRESETS


class Figures(NamedTuple):
    """What a paper reports of a network; None where it does not.

    Attributes:
        params: parameters in millions.
        macs: multiply-adds of one image in millions.
        top1: test accuracy in percent.
        top5: the same, where the class is among the five likeliest.
    """

    params: float | None = None
    macs: float | None = None
    top1: float | None = None
    top5: float | None = None


_TARGETS = ("target_sparsity", "target_params", "target_macs")
_OF_H2SPG = {
    "warmup": "warmup_fraction",
    "projection": "projection_fraction",
    **{name: name for name in ("settle", "look_every", "forward_passes")},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How a run is made smaller; None leaves a setting as the recipe has it.

    The rest of the recipe follows: the learning rate is proportional to the batch (arXiv 1706.02677), its warm-up takes
    a tenth of the training where the recipe's would take more, crops and cutout cover the same part of the image.
    """

    epochs: int | None = None
    """Passes over the training images, in every training."""
    num_train: int | None = None
    """Train on so many images only."""
    num_test: int | None = None
    """Test on so many images only."""
    image_size: int | None = None
    """Height and width to bring the images to."""
    batch_size: int | None = None
    """Images per step."""
    learning_rate: float | None = None
    """The peak of the learning rate, in place of the recipe's share for such a batch."""
    workers: int | None = None
    """Processes that decode and augment."""
    target_sparsity: float | None = None
    """Part of the removal structures that must go, in place of the row's own target."""
    target_params: int | float | None = None
    """Most parameters that the sub-network may have, a number or a fraction, in place of the row's own target."""
    target_macs: int | float | None = None
    """The same for its multiply-adds."""
    warmup: float | None = None
    """Part of the steps before H2SPG selects, in place of the row's own."""
    projection: float | None = None
    """Part of the steps in which it sets to zero what it has selected."""
    settle: bool | None = None
    """Whether it selects as soon as the choice settles."""
    look_every: int | None = None
    """After how many scored updates it selects a set on trial; with as many as there are, no sets are compared."""
    forward_passes: float | None = None
    """How many evaluations of the loss a scored update may cost, on average."""
    drop_path: float | None = None
    """Probability of dropping a path, in place of the recipe's."""
    auxiliary_weight: float | None = None
    """Weight of the auxiliary classifier's loss. Where images become small, there is no place for this classifier."""
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Options of the network, such as `width 0.25`."""

    def given(self) -> dict[str, Any]:
        """Returns the settings that are not left as they are."""
        return {name: value for name, value in vars(self).items() if value not in (None, {})}

    def overridden(self, other: "Size") -> "Size":
        """Returns a size with what another gives in place of its own; a target there replaces the target here."""
        given = other.given()
        if given.keys() & set(_TARGETS):
            given = dict.fromkeys(_TARGETS) | given
        return replace(self, **given)

    def apply(self, config: Config, native_size: int) -> Config:
        """Returns a smaller run.

        Args:
            config: the run.
            native_size: height and width of the images that its augmentation is for.
        """
        epochs, batch_size = self.epochs or config.epochs, self.batch_size or config.batch_size
        zoom = (self.image_size or native_size) / native_size
        data, optimizer, h2spg = config.data, config.optimizer, config.h2spg
        model = replace(config.model, options=config.model.options | self.options)
        if self.drop_path is not None:
            model = replace(model, drop_path=self.drop_path)
        if self.auxiliary_weight is not None:
            model = replace(model, auxiliary_weight=self.auxiliary_weight)
        augmentation = replace(
            data.augmentation,
            pad_crop=round(zoom * data.augmentation.pad_crop),
            cutout=round(zoom * data.augmentation.cutout),
        )
        if targets := self.given().keys() & set(_TARGETS):
            h2spg = h2spg.with_target(**{name: getattr(self, name) for name in targets})
        of_h2spg = self.given().keys() & _OF_H2SPG.keys()
        h2spg = replace(h2spg, **{_OF_H2SPG[name]: getattr(self, name) for name in of_h2spg})
        return replace(
            config,
            model=model,
            data=replace(
                data,
                image_size=self.image_size or data.image_size,
                num_train=self.num_train or data.num_train,
                num_test=self.num_test or data.num_test,
                workers=data.workers if self.workers is None else self.workers,
                augmentation=augmentation,
            ),
            optimizer=replace(
                optimizer,
                learning_rate=self.learning_rate or optimizer.learning_rate * (batch_size / config.batch_size),
                warmup_epochs=min(optimizer.warmup_epochs, epochs / 10),
            ),
            h2spg=h2spg,
            epochs=epochs,
            batch_size=batch_size,
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the papers' tables, or one of our own.

    Attributes:
        preset: name of its settings in `experiments.engine.presets`, and of the row.
        network: what the papers call the network.
        dataset: what the papers call the data set.
        recipe: where the settings come from.
        native_size: height and width of the images that the settings are for.
        full: what is reported of the full network.
        subnet: what is reported of the sub-network.
        sizes: by name of the scale, how a run is made smaller.
    """

    preset: str
    network: str
    dataset: str
    recipe: str
    native_size: int
    sizes: dict[str, Size]
    full: Figures = Figures()
    subnet: Figures = Figures()

    @property
    def config(self) -> Config:
        """The settings at full scale."""
        return PRESETS[self.preset][1]


_CIFAR_OURS = "OTOv2's for CIFAR-10 (arXiv 2303.06862)"
_ZEN_NAS = "OTOv2's, with the regularisation of Zen-NAS (arXiv 2102.01063)"

# The reduced scale is sized for about ten minutes of one CPU core a training, DemoNet's for an hour. There a
# kernel larger than the feature map is slow, and so is the gradient of a grouped convolution.
_SMOKE = Size(epochs=2, num_train=512, num_test=512, batch_size=64, workers=0)
_STACKED_UNETS_SIZES = {
    "full": Size(),
    "reduced": Size(epochs=6, num_train=5_000, batch_size=64),
    "smoke": replace(_SMOKE, options={"width": 0.25}),
}
_SUPER_RESNET_SIZES = {
    "full": Size(),
    "smoke": replace(_SMOKE, image_size=16, target_sparsity=0.6, options={"width": 0.125}),
}
# A quarter of the channels, a sixteenth of the parameters.
_REDUCED_SUPER_RESNET = Size(epochs=4, num_train=5_000, batch_size=64, options={"width": 0.25})
# Where selections are compared: at equal multiply-adds, and so that capacity is what limits a network. It is narrow and
# sees an image once or twice; what sees few images often can do without anything. About two minutes of one CPU core a
# training.
_CONTROL_DEMONET = Size(
    epochs=2, num_train=20_000, image_size=14, batch_size=64, target_macs=0.6, options={"width": 0.5}
)
_CONTROL_STACKED_UNETS = Size(
    epochs=2, num_train=32_000, image_size=16, batch_size=64, target_macs=0.45, options={"width": 0.15}
)
_CONTROL_RESNET18 = Size(
    epochs=2, num_train=20_000, num_test=5_000, image_size=16, batch_size=64, options={"width": 0.25}
)
_CONTROL_REGNET = Size(
    epochs=1, num_train=19_200, image_size=8, batch_size=32, target_macs=0.6, options={"width": 0.125}
)
# Still 20 removal structures. Kernels of 7×7 are more than half of the network: the budget is a low one.
_CONTROL_SUPER_RESNET = Size(
    epochs=1,
    num_train=19_200,
    num_test=5_000,
    image_size=12,
    batch_size=32,
    target_macs=0.35,
    options={"width": 0.125, "depth": 0.4},
)
# Two cells: more take minutes to compile, and are slow, as gradients of depthwise convolutions are. A thousand steps
# are few for a network whose sums of all operations make for large outputs in the beginning: no paths are dropped.
_CONTROL_DARTS = Size(
    epochs=2,
    num_train=8_000,
    num_test=2_000,
    batch_size=16,
    learning_rate=0.01,
    workers=0,
    target_macs=0.6,
    drop_path=0.0,
    auxiliary_weight=0.0,
    options={"features": 4, "num_cells": 2},
)
_SMOKE_DARTS = replace(
    _SMOKE,
    num_train=128,
    num_test=128,
    batch_size=32,
    target_sparsity=0.5,
    auxiliary_weight=0.0,
    options={"features": 4, "num_cells": 3},
)

ROWS = {
    row.preset: row
    for row in (
        Row(
            "demonet-fashion-mnist",
            "DemoNet",
            "Fashion-MNIST",
            "OTOv2's for CIFAR-10 (arXiv 2303.06862), without augmentation as the reported accuracy suggests",
            native_size=28,
            sizes={
                "full": Size(),
                "reduced": Size(epochs=3, batch_size=64),
                "control": _CONTROL_DEMONET,
                "smoke": replace(_SMOKE, options={"width": 0.25}),
            },
            full=Figures(0.82, 209, 84.9),
            subnet=Figures(0.45, 107, 84.7),
        ),
        Row(
            "stacked-unets-svhn",
            "StackedUnets",
            "SVHN",
            f"{_CIFAR_OURS}; digits are not mirrored",
            native_size=32,
            sizes=_STACKED_UNETS_SIZES
            | {
                "reduced": Size(epochs=5, num_train=8_000, batch_size=64),
                "control": replace(_CONTROL_STACKED_UNETS, epochs=5, num_train=8_000),
            },
            full=Figures(0.80, 184, 95.3),
            subnet=Figures(0.37, 115, 96.1),
        ),
        Row(
            "stacked-unets-cifar10",
            "StackedUnets",
            "CIFAR-10",
            f"{_CIFAR_OURS}; a row of ours, not the papers'",
            native_size=32,
            sizes=_STACKED_UNETS_SIZES | {"control": _CONTROL_STACKED_UNETS},
        ),
        Row(
            "darts-8-stl10",
            "DARTS, 8 cells",
            "STL-10",
            "DARTS's for CIFAR-10 (arXiv 1806.09055), crop and cutout as large a part of the image",
            native_size=96,
            sizes={
                "full": Size(),
                "reduced": Size(
                    epochs=4,
                    num_train=1_000,
                    num_test=1_000,
                    image_size=48,
                    batch_size=32,
                    target_params=100_000,
                    auxiliary_weight=0.0,
                    options={"features": 8},
                ),
                "control": replace(_CONTROL_DARTS, image_size=24),
                "smoke": replace(_SMOKE_DARTS, image_size=48),
            },
            full=Figures(4.05, 614, 74.6),
            subnet=Figures(0.64, 127, 75.1),
        ),
        Row(
            "super-resnet-1m-cifar10",
            "SuperResNet, 1 M",
            "CIFAR-10",
            _ZEN_NAS,
            native_size=32,
            sizes=_SUPER_RESNET_SIZES
            | {
                "reduced": replace(_REDUCED_SUPER_RESNET, target_params=1_000_000 // 16),
                "control": _CONTROL_SUPER_RESNET,
            },
            subnet=Figures(1.0, None, 96.3),
        ),
        Row(
            "super-resnet-2m-cifar10",
            "SuperResNet, 2 M",
            "CIFAR-10",
            _ZEN_NAS,
            native_size=32,
            sizes=_SUPER_RESNET_SIZES
            | {
                "reduced": replace(_REDUCED_SUPER_RESNET, target_params=2_000_000 // 16),
                "control": replace(_CONTROL_SUPER_RESNET, target_macs=0.6),
            },
            subnet=Figures(2.0, None, 97.5),
        ),
        Row(
            "resnet18-cifar10",
            "ResNet-18",
            "CIFAR-10",
            f"{_CIFAR_OURS}; a row of ours, not the papers'",
            native_size=32,
            sizes={
                "full": Size(),
                "reduced": Size(epochs=6, num_train=5_000, batch_size=64, options={"width": 0.25}),
                "control": _CONTROL_RESNET18,
                "smoke": replace(_SMOKE, image_size=16, options={"width": 0.125}),
            },
        ),
        Row(
            "regnet-cifar10",
            "RegNet X-200MF",
            "CIFAR-10",
            "cutout's for CIFAR-10 (arXiv 1708.04552) with RegNet's warm-up (arXiv 2003.13678)",
            native_size=32,
            sizes={
                "full": Size(),
                "reduced": Size(epochs=10, num_train=5_000, image_size=16, batch_size=64, options={"width": 0.25}),
                "control": _CONTROL_REGNET,
                "smoke": replace(_SMOKE, image_size=8),
            },
        ),
        Row(
            "darts-14-imagenet",
            "DARTS, 14 cells",
            "ImageNet",
            "PC-DARTS's (arXiv 1907.05737, section 4.3)",
            native_size=224,
            sizes={
                "full": Size(),
                "reduced": Size(epochs=20, num_train=100_000, num_test=10_000, batch_size=256),
                "control": replace(_CONTROL_DARTS, image_size=64),
                "smoke": replace(_SMOKE_DARTS, image_size=64),
            },
            subnet=Figures(4.8, 547, 75.3, 92.5),
        ),
    )
}
"""By name."""
