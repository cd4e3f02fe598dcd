"""Networks to search in, each in a file of its own, and a registry that makes them by name.

Nothing here knows of jasgnas: these are ordinary Flax NNX networks, and nothing in them says what is removable.
"""

import difflib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.convnext import ConvNeXt
from models.darts import DARTS_V2, Darts, LargeStem, SmallStem
from models.decoder import DecoderTransformer
from models.demo_net import DemoNet
from models.densenet import DenseNet
from models.dit import DiT
from models.mixture import MixtureBlock
from models.mobilenet import MOBILENET_V3_SMALL, MobileNetV2, MobileNetV3
from models.nasbench201 import NasBench201
from models.regnet import (
    REGNET_X_200MF,
    REGNET_X_400MF,
    REGNET_X_800MF,
    REGNET_Y_200MF,
    REGNET_Y_400MF,
    REGNET_Y_800MF,
    RegNet,
)
from models.resnet import BottleneckBlock, ResNet
from models.stacked_unets import StackedUnets
from models.super_resnet import SuperResNet
from models.vit import VisionTransformer

__all__ = [
    "ConvNeXt",
    "CountedKeys",
    "Darts",
    "DecoderTransformer",
    "DemoNet",
    "DenseNet",
    "DiT",
    "MixtureBlock",
    "MobileNetV2",
    "MobileNetV3",
    "NasBench201",
    "RegNet",
    "ResNet",
    "StackedUnets",
    "SuperResNet",
    "VisionTransformer",
    "create",
    "create_abstract",
    "example_input",
    "list_models",
]


class _Entry(NamedTuple):
    """What the registry holds of one network.

    Attributes:
        build: constructor, called with `num_classes` where given, the overrides and `rngs`.
        input_shape: shape of one example without the batch axis.
        input_dtype: dtype of an example.
    """

    build: Callable[..., nnx.Module]
    input_shape: tuple[int, ...]
    input_dtype: DTypeLike = jnp.float32


_SMALL, _LARGE = (32, 32, 3), (224, 224, 3)

_REGNETS = {
    "regnet_x_200mf": REGNET_X_200MF,
    "regnet_x_400mf": REGNET_X_400MF,
    "regnet_x_800mf": REGNET_X_800MF,
    "regnet_y_200mf": REGNET_Y_200MF,
    "regnet_y_400mf": REGNET_Y_400MF,
    "regnet_y_800mf": REGNET_Y_800MF,
}

_REGISTRY: dict[str, _Entry] = {
    "convnext_tiny": _Entry(ConvNeXt, _LARGE),
    "darts_8": _Entry(partial(Darts, features=24, num_cells=8), _SMALL),
    "darts_8_stl10": _Entry(partial(Darts, features=24, num_cells=8, stem=partial(SmallStem, strides=3)), (96, 96, 3)),
    "darts_14": _Entry(partial(Darts, num_classes=1000, features=48, num_cells=14, stem=LargeStem), _LARGE),
    "darts_v2_cifar": _Entry(partial(Darts, features=36, num_cells=20, genotype=DARTS_V2), _SMALL),
    "darts_v2_imagenet": _Entry(
        partial(Darts, num_classes=1000, features=48, num_cells=14, stem=LargeStem, genotype=DARTS_V2), _LARGE
    ),
    "decoder_small": _Entry(DecoderTransformer, (64,), jnp.int32),
    "demo_net": _Entry(DemoNet, (28, 28, 1)),
    "densenet121": _Entry(DenseNet, _LARGE),
    "mixture_decoder": _Entry(partial(DecoderTransformer, depth=4, hidden=352, block=MixtureBlock), (64,), jnp.int32),
    "mobilenet_v2": _Entry(MobileNetV2, _LARGE),
    "mobilenet_v3_large": _Entry(MobileNetV3, _LARGE),
    "mobilenet_v3_small": _Entry(partial(MobileNetV3, spec=MOBILENET_V3_SMALL), _LARGE),
    "nasbench201": _Entry(NasBench201, _SMALL),
    "resnet18": _Entry(ResNet, _LARGE),
    "resnet18_cifar": _Entry(partial(ResNet, num_classes=10, small_images=True), _SMALL),
    "resnet50": _Entry(partial(ResNet, depths=(3, 4, 6, 3), block=BottleneckBlock), _LARGE),
    "stacked_unets": _Entry(StackedUnets, _SMALL),
    "super_resnet": _Entry(SuperResNet, _SMALL),
    "vit_b16": _Entry(partial(VisionTransformer, features=768, num_heads=12), _LARGE),
    "vit_s16": _Entry(VisionTransformer, _LARGE),
}
_REGISTRY |= {name: _Entry(partial(RegNet, config=config), _LARGE) for name, config in _REGNETS.items()}
_REGISTRY |= {
    f"{name}_cifar": _Entry(partial(RegNet, num_classes=10, config=config, small_images=True), _SMALL)
    for name, config in _REGNETS.items()
}


def list_models() -> list[str]:
    """Returns the names that `create` and `example_input` know, sorted."""
    return sorted(_REGISTRY)


def create(name: str, *, num_classes: int | None = None, rngs: nnx.Rngs | None = None, **overrides: Any) -> nnx.Module:
    """Returns a freshly initialised network.

    Args:
        name: one of `list_models()`.
        num_classes: number of outputs; None takes the network's own default.
        rngs: random streams of the initialisation; None means `nnx.Rngs(0)`.
        **overrides: further keyword arguments of the network's constructor, such as `dtype`.

    Raises:
        ValueError: no network has this name.
    """
    build = _find(name).build
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return build(rngs=nnx.Rngs(0) if rngs is None else rngs, **overrides)


class CountedKeys:
    """Stands in for `nnx.Rngs` where a network without dropout is built under a trace, as inside `jax.jit`.

    There the counters of `nnx.Rngs` are traced values, which makes building a large network slow.
    """

    def __init__(self) -> None:
        """Starts counting."""
        self._key = jax.random.key(0, impl="rbg")
        self._count = itertools.count()

    def params(self) -> jax.Array:
        """Returns a new key."""
        return jax.random.fold_in(self._key, next(self._count))


def create_abstract(name: str, **options: Any) -> nnx.Module:
    """Returns a network in inference mode whose arrays are `jax.ShapeDtypeStruct`s: nothing is computed or stored.

    That is enough to count and to analyse a network of any size.

    Args:
        name: one of `list_models()`.
        **options: keyword arguments of `create` but `rngs`. Without rates of dropout: it would need random streams.

    Raises:
        ValueError: no network has this name.
    """
    model = nnx.eval_shape(lambda: create(name, rngs=CountedKeys(), **options))  # type: ignore[arg-type]
    model.eval()
    return model


def example_input(name: str, *, batch_size: int = 1) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a batch of inputs that the network called `name` was sized for.

    Raises:
        ValueError: no network has this name.
    """
    entry = _find(name)
    return jax.ShapeDtypeStruct((batch_size, *entry.input_shape), entry.input_dtype)


def _find(name: str) -> _Entry:
    """Returns the registry's entry called `name`, or raises a `ValueError` that lists the nearest names."""
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.4) or list_models()
        raise ValueError(f"no network is called {name!r}; the nearest names are {', '.join(near)} (see list_models())")
    return _REGISTRY[name]
