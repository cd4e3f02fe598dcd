"""Versions of the registered networks that are built, compiled and run in seconds."""

from flax import nnx

from models.darts import Genotype
from models.mobilenet import BlockSpec, MobileNetV3Spec, StageSpec
from models.regnet import RegNetConfig

# Every operation, most of them in the one normal cell of three; a skip is another one where the resolution changes.
_NORMAL = (
    (("sep_conv_3x3", 0), ("dil_conv_5x5", 1), ("max_pool_3x3", 0), ("skip_connect", 1)),
    (("sep_conv_5x5", 2), ("dil_conv_3x3", 0), ("avg_pool_3x3", 1)),
)
_REDUCTION = ((("max_pool_3x3", 0), ("skip_connect", 1)),)

# A stem and its reduction alone.
SHORT_CELLS = Genotype(_REDUCTION, _REDUCTION)

# Name, overrides, shape of a batch.
SMALL = [
    ("demo_net", {"width": 0.125}, (4, 8, 8, 1)),
    ("stacked_unets", {"width": 0.125}, (4, 8, 8, 3)),
    ("darts_8", {"num_cells": 3, "features": 4, "genotype": Genotype(_NORMAL, _REDUCTION)}, (4, 8, 8, 3)),
    ("super_resnet", {"depths": (1, 1), "widths": (8, 16)}, (4, 8, 8, 3)),
    ("regnet_y_200mf_cifar", {"config": RegNetConfig(2, 8, 8.0, 2.0, 8, 0.25)}, (4, 8, 8, 3)),
    ("nasbench201", {"features": 4, "num_cells": 1}, (4, 8, 8, 3)),
    ("resnet18_cifar", {"depths": (1, 1)}, (4, 8, 8, 3)),
    ("resnet50", {"depths": (1, 1)}, (4, 32, 32, 3)),
    ("densenet121", {"depths": (1, 2), "growth": 8}, (4, 32, 32, 3)),
    ("convnext_tiny", {"depths": (1, 1), "widths": (8, 16)}, (4, 32, 32, 3)),
    ("mobilenet_v2", {"stages": (StageSpec(1, 16, 1, 1), StageSpec(6, 24, 2, 2))}, (4, 16, 16, 3)),
    (
        "mobilenet_v3_small",
        {
            "spec": MobileNetV3Spec(
                (BlockSpec(3, 16, 16, True, nnx.relu, 2), BlockSpec(5, 48, 16, True, nnx.hard_swish, 1)), 32
            )
        },
        (4, 16, 16, 3),
    ),
    ("vit_s16", {"image_size": 8, "patch_size": 4, "features": 16, "depth": 1, "num_heads": 2}, (4, 8, 8, 3)),
    ("decoder_small", {"features": 16, "depth": 1, "num_heads": 2, "hidden": 32}, (4, 8)),
]
