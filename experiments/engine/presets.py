"""Named settings: rows of the papers' tables (arXiv 2305.18030, 2312.09411), the main job, searches among cells.

Where the papers do not publish a recipe, each setting follows the full network's own published one, named beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from experiments.data import Augmentation
from experiments.engine.config import Config, DataConfig, H2SPGConfig, ModelConfig, OptimizerConfig

_CROP_FLIP = Augmentation(pad_crop=4, flip=True)

DIGITS = Config(output_dir=Path("runs/demo"), h2spg=H2SPGConfig(target_groups=3), log_every=10)
"""The main job: two minutes on a laptop, without a download."""

DEMONET_FASHION_MNIST = Config(
    output_dir=Path("runs/demonet-fashion-mnist"),
    model=ModelConfig("demo_net"),
    data=DataConfig("fashion_mnist"),
    optimizer=OptimizerConfig(learning_rate=0.1),
    h2spg=H2SPGConfig(target_groups=3),
    epochs=100,
    batch_size=128,
)
"""K = 3 of 5, as in the paper. Without augmentation: its 84.9 % says that none was used."""

STACKED_UNETS_SVHN = Config(
    output_dir=Path("runs/stacked-unets-svhn"),
    model=ModelConfig("stacked_unets"),
    data=DataConfig("svhn_cropped", augmentation=Augmentation(pad_crop=4)),
    optimizer=OptimizerConfig(learning_rate=0.1),
    h2spg=H2SPGConfig(target_params=375_000),
    epochs=100,
    batch_size=128,
)
"""The papers' 0.37 M parameters, rounded as they are. Digits are not mirrored; the rest is the CIFAR recipe of OTOv2
(arXiv 2303.06862)."""

STACKED_UNETS_CIFAR10 = replace(
    STACKED_UNETS_SVHN,
    output_dir=Path("runs/stacked-unets-cifar10"),
    data=DataConfig("cifar10", augmentation=_CROP_FLIP),
)
"""The same on CIFAR-10, which the papers do not have: OTOv2's own recipe."""

DARTS_8_STL10 = Config(
    output_dir=Path("runs/darts-8-stl10"),
    model=ModelConfig("darts_8_stl10", drop_path=0.2, auxiliary_weight=0.4),
    data=DataConfig("stl10", augmentation=Augmentation(pad_crop=12, flip=True, cutout=48)),
    optimizer=OptimizerConfig(learning_rate=0.025, weight_decay=3e-4, clip_norm=5.0),
    h2spg=H2SPGConfig(target_params=640_000),
    epochs=600,
    batch_size=96,
)
"""The CIFAR-10 recipe of DARTS (arXiv 1806.09055, section A.4), crop and cutout three times as large for 96×96."""

SUPER_RESNET_2M_CIFAR10 = Config(
    output_dir=Path("runs/super-resnet-2m-cifar10"),
    model=ModelConfig("super_resnet"),
    data=DataConfig("cifar10", augmentation=Augmentation(pad_crop=4, flip=True, cutout=16, mixup=0.2)),
    optimizer=OptimizerConfig(learning_rate=0.1, nesterov=True, warmup_epochs=5),
    h2spg=H2SPGConfig(target_params=2_000_000),
    epochs=400,
    batch_size=128,
    label_smoothing=0.1,
    ema=0.9999,
)
"""OTOv2's recipe for CIFAR-10 (arXiv 2303.06862) with cutout, MixUp, label smoothing and averaged weights, which the
networks of that size that the paper compares with use, Zen-NAS (arXiv 2102.01063) among them."""

SUPER_RESNET_1M_CIFAR10 = replace(
    SUPER_RESNET_2M_CIFAR10,
    output_dir=Path("runs/super-resnet-1m-cifar10"),
    h2spg=H2SPGConfig(target_params=1_000_000),
)
"""The same with half the parameters."""

RESNET18_CIFAR10 = Config(
    output_dir=Path("runs/resnet18-cifar10"),
    model=ModelConfig("resnet18_cifar"),
    data=DataConfig("cifar10", augmentation=_CROP_FLIP),
    optimizer=OptimizerConfig(learning_rate=0.1),
    h2spg=H2SPGConfig(target_macs=0.5, kinds="both"),
    epochs=200,
    batch_size=128,
)
"""OTOv2's recipe for CIFAR-10 (arXiv 2303.06862); blocks and channels go together."""

REGNET_CIFAR10 = Config(
    output_dir=Path("runs/regnet-cifar10"),
    model=ModelConfig("regnet_x_200mf_cifar"),
    data=DataConfig("cifar10", augmentation=replace(_CROP_FLIP, cutout=16)),
    optimizer=OptimizerConfig(learning_rate=0.1, nesterov=True, warmup_epochs=5),
    h2spg=H2SPGConfig(target_sparsity=0.3),
    epochs=200,
    batch_size=128,
    label_smoothing=0.1,
)
"""The warm-up of RegNet (arXiv 2003.13678, appendix) on the crop, flip and cutout of CIFAR-10 (arXiv 1708.04552). The
paper's table of this row is not at hand: three tenths of the blocks go."""

DARTS_14_IMAGENET = Config(
    output_dir=Path("runs/darts-14-imagenet"),
    model=ModelConfig("darts_14", auxiliary_weight=0.4),
    data=DataConfig(
        "imagenet2012",
        image_size=224,
        workers=8,
        augmentation=Augmentation(random_resized_crop=0.08, flip=True, color_jitter=0.4),
    ),
    optimizer=OptimizerConfig(learning_rate=0.5, weight_decay=3e-5, warmup_epochs=5, clip_norm=5.0),
    h2spg=H2SPGConfig(target_params=4_800_000),
    epochs=250,
    batch_size=1024,
    label_smoothing=0.1,
)
"""The ImageNet recipe of PC-DARTS (arXiv 1907.05737, section 4.3): batches of 1024, a learning rate of 0.5 after five
epochs of warm-up, weight decay 3e-5, label smoothing 0.1, auxiliary loss 0.4, 250 epochs; it falls along a cosine."""


def _with_gates(config: Config) -> Config:
    """Returns the settings of a DARTS network with gates on its skip connections, searched as DARTS searches cells.

    What stays is at most one operation of each edge, and of these two at each node (arXiv 1806.09055, section 2.4); but
    every cell is decided by itself.
    """
    edge = "**/cells/{cell}/operations/{node}_from{source}_*/**"
    h2spg = H2SPGConfig(
        at_most={edge: 1, "**/cells/{cell}/operations/{node}_from*/**": 2},
        # Halves of an input would take halves of what normalises it in every operation that reads it.
        keep=("cells/*/input?/*",),
        tie=("**/cells/{cell}/operations/{operation}/**",),  # a skip of stride 2 has two halves
    )
    ungated = ("gates/cells/*/input*", "gates/head/*")  # from a node to the output of its cell
    return replace(
        config,
        output_dir=config.output_dir.with_name(f"{config.output_dir.name}-gated"),
        model=replace(config.model, gated=True, ungated=ungated),
        h2spg=h2spg,
    )


DARTS_8_STL10_GATED = _with_gates(DARTS_8_STL10)
DARTS_14_IMAGENET_GATED = _with_gates(DARTS_14_IMAGENET)

CELL_OPERATION = "**/cells/*/edges/{edge}/{op}/**"
"""The paths of an operation of NAS-Bench-201, the same one in every cell."""
CELL_EDGE = "**/cells/*/edges/{edge}/**"
"""The paths of all operations of an edge."""
CELL_OTHERS = "reductions/*"
"""What is no part of a cell."""

NASBENCH201_CIFAR10 = Config(
    output_dir=Path("runs/nasbench201-cifar10"),
    model=ModelConfig("nasbench201", gated=True),
    data=DataConfig("cifar10", augmentation=_CROP_FLIP),
    optimizer=OptimizerConfig(learning_rate=0.05, nesterov=True, clip_norm=5.0),
    h2spg=H2SPGConfig(
        at_most={CELL_EDGE: 1},
        tie=(CELL_OPERATION,),
        keep=(CELL_OTHERS,),
        score="gate",
        warmup_fraction=0.7,
        projection_fraction=0.2,
    ),
    epochs=50,
    batch_size=128,
)
"""The super-network of NAS-Bench-201 (arXiv 2001.00326) until one operation of each edge is left, the same one in every
cell; a row of ours. Operations do much the same, and their scores need a long warm-up to come apart."""

Presets = Mapping[str, tuple[str, Config]]
"""Description and settings by name."""

PRESETS: Presets = {
    "digits": ("DemoNet on the embedded digits: the main job", DIGITS),
    "demonet-fashion-mnist": ("DemoNet on Fashion-MNIST", DEMONET_FASHION_MNIST),
    "stacked-unets-svhn": ("StackedUnets on SVHN", STACKED_UNETS_SVHN),
    "stacked-unets-cifar10": ("StackedUnets on CIFAR-10", STACKED_UNETS_CIFAR10),
    "darts-8-stl10": ("DARTS super-network of 8 cells on STL-10", DARTS_8_STL10),
    "darts-8-stl10-gated": (
        "the same with gates on skips, until two inputs of each node are left",
        DARTS_8_STL10_GATED,
    ),
    "super-resnet-1m-cifar10": ("SuperResNet on CIFAR-10, 1 million parameters left", SUPER_RESNET_1M_CIFAR10),
    "super-resnet-2m-cifar10": ("SuperResNet on CIFAR-10, 2 million parameters left", SUPER_RESNET_2M_CIFAR10),
    "resnet18-cifar10": ("ResNet-18 on CIFAR-10, blocks and channels", RESNET18_CIFAR10),
    "regnet-cifar10": ("RegNet X-200MF on CIFAR-10", REGNET_CIFAR10),
    "nasbench201-cifar10": ("NAS-Bench-201's super-network on CIFAR-10, until it is one cell", NASBENCH201_CIFAR10),
    "darts-14-imagenet": ("DARTS super-network of 14 cells on ImageNet", DARTS_14_IMAGENET),
    "darts-14-imagenet-gated": (
        "the same with gates on skips, until two inputs of each node are left",
        DARTS_14_IMAGENET_GATED,
    ),
}
"""The settings that `experiments.train` knows."""


def read_config(presets: Presets, parse: Callable[[Presets], Config]) -> Config:
    """Returns the settings that a command line asks for; a target that is given there takes the place of a preset's.

    Args:
        presets: the presets that it can start from.
        parse: reads the command line, given the presets.
    """
    config = parse(presets)
    if len(config.h2spg.targets) > 1:  # read once more from presets without a target: now each is one that was given
        config = parse(
            {name: (text, replace(each, h2spg=each.h2spg.with_target())) for name, (text, each) in presets.items()}
        )
    return config
