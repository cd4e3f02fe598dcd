"""The DARTS cell network (arXiv 1806.09055): the whole super-network, or the network of one genotype.

The super-network has no architecture variables: every edge is the plain sum of its candidate operations, and which of
them stay is for a search to find.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import ConvNorm, Layers, Skip, global_mean

OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""Names of the candidate operations of an edge (arXiv 1806.09055, section 3.1, without "zero")."""

Node = tuple[tuple[str, int], ...]
"""One intermediate node: pairs of an operation and the state that it takes, 0 and 1 being the cell's two inputs."""


class Genotype(NamedTuple):
    """What the two kinds of cell compute.

    Attributes:
        normal: intermediate nodes of a normal cell.
        reduction: intermediate nodes of a reduction cell.
    """

    normal: tuple[Node, ...]
    reduction: tuple[Node, ...]

    @classmethod
    def from_pairs(cls, normal: list[tuple[str, int]], reduction: list[tuple[str, int]]) -> Self:
        """Returns the genotype of two lists of pairs, as papers print them: two pairs for every node.

        Raises:
            ValueError: an unknown operation, or an operation that takes a state that does not exist yet.
        """
        return cls(_nodes_of_pairs(normal), _nodes_of_pairs(reduction))


def _nodes_of_pairs(pairs: list[tuple[str, int]]) -> tuple[Node, ...]:
    """Returns the nodes of a list that holds two pairs for each of them, checked."""
    nodes = tuple(zip(pairs[::2], pairs[1::2], strict=True))
    for index, node in enumerate(nodes):
        for name, source in node:
            if name not in OPERATIONS:
                raise ValueError(f"no operation is called {name!r}; a genotype can hold {', '.join(OPERATIONS)}")
            if not 0 <= source < index + 2:
                raise ValueError(f"node {index} takes state {source} for {name!r}; it can take 0 to {index + 1}")
    return nodes


def _all_operations(num_nodes: int = 4) -> tuple[Node, ...]:
    """Returns nodes in which every operation takes every earlier state."""
    return tuple(
        tuple((name, source) for source in range(index + 2) for name in OPERATIONS) for index in range(num_nodes)
    )


SUPER_NETWORK = Genotype(_all_operations(), _all_operations())
"""Every candidate operation on each of the 14 edges."""

DARTS_V2 = Genotype.from_pairs(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    reduction=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
)
"""The cells found by second-order DARTS on CIFAR-10 (arXiv 1806.09055, figures 4 and 5)."""


class SeparableUnit(nnx.Module):
    """Relu, depthwise convolution, 1×1 convolution and batch norm."""

    def __init__(self, layers: Layers, features: int, kernel_size: int, strides: int, dilation: int = 1):
        """Initialises the layers; the number of channels stays."""
        self.depthwise = layers.conv(
            features, features, kernel_size, strides=strides, dilation=dilation, groups=features
        )
        self.pointwise = ConvNorm(layers, features, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the unit's output, `[batch, height, width, features]` both ways."""
        return self.pointwise(self.depthwise(nnx.relu(x)))


class SeparableConv(nnx.Module):
    """Two separable units, of which the first has the stride."""

    def __init__(self, layers: Layers, features: int, kernel_size: int, strides: int):
        """Initialises both units."""
        self.unit1 = SeparableUnit(layers, features, kernel_size, strides)
        self.unit2 = SeparableUnit(layers, features, kernel_size, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the operation's output, `[batch, height, width, features]` both ways."""
        return self.unit2(self.unit1(x))


class ReluConvNorm(nnx.Module):
    """Relu, 1×1 convolution and batch norm."""

    def __init__(self, layers: Layers, in_features: int, out_features: int):
        """Initialises convolution and norm."""
        self.conv_norm = ConvNorm(layers, in_features, out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height, width, out_features]`."""
        return self.conv_norm(nnx.relu(x))


class FactorizedReduce(nnx.Module):
    """Halves the resolution by two 1×1 convolutions, one on the even and one on the odd positions."""

    def __init__(self, layers: Layers, in_features: int, out_features: int):
        """Initialises the layers; each convolution makes half of the channels."""
        self.even = layers.conv(in_features, out_features // 2, strides=2)
        self.odd = layers.conv(in_features, out_features - out_features // 2, strides=2)
        self.norm = layers.batch_norm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height / 2, width / 2, out_features]`; height and width must be even."""
        x = nnx.relu(x)
        return self.norm(jnp.concatenate([self.even(x), self.odd(x[:, 1:, 1:])], axis=-1))


class PoolNorm(nnx.Module):
    """3×3 pooling and batch norm."""

    def __init__(self, layers: Layers, features: int, kind: Literal["max", "avg"], strides: int):
        """Initialises the norm."""
        self.kind = kind
        self.strides = strides
        self.norm = layers.batch_norm(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the pooled and normalised `x`, `[batch, height, width, features]` both ways."""
        strides = (self.strides, self.strides)
        if self.kind == "max":
            x = nnx.max_pool(x, (3, 3), strides, padding="SAME")
        else:
            x = nnx.avg_pool(x, (3, 3), strides, padding="SAME", count_include_pad=False)
        return self.norm(x)


Operation = PoolNorm | Skip | FactorizedReduce | SeparableUnit | SeparableConv


def make_operation(layers: Layers, name: str, features: int, strides: int) -> Operation:
    """Returns the operation called `name`, one of `OPERATIONS`, that keeps the number of channels."""
    match name:
        case "max_pool_3x3":
            return PoolNorm(layers, features, "max", strides)
        case "avg_pool_3x3":
            return PoolNorm(layers, features, "avg", strides)
        case "skip_connect":
            return Skip() if strides == 1 else FactorizedReduce(layers, features, features)
        case "sep_conv_3x3" | "sep_conv_5x5":
            return SeparableConv(layers, features, int(name[-1]), strides)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return SeparableUnit(layers, features, int(name[-1]), strides, dilation=2)
        case _:
            raise ValueError(f"no operation is called {name!r}; there are {', '.join(OPERATIONS)}")


class Cell(nnx.Module):
    """Intermediate nodes, each the sum of operations on earlier states; the cell's output is their concatenation."""

    def __init__(
        self,
        layers: Layers,
        name: str,
        nodes: tuple[Node, ...],
        in_features: tuple[int, int],
        features: int,
        *,
        reduction: bool,
        after_reduction: bool,
        drop_path_rate: float,
    ):
        """Initialises the cell.

        Args:
            layers: makes the layers.
            name: the path of the cell, which the scopes of its operations start with.
            nodes: operations of each intermediate node.
            in_features: channels of the output of the cell before the last one, and of the last one.
            features: channels of every node.
            reduction: halve the resolution on the edges from the cell's inputs.
            after_reduction: the last cell was a reduction cell, so that the one before it has twice the resolution.
            drop_path_rate: how often training drops an operation.
        """
        before = FactorizedReduce if after_reduction else ReluConvNorm
        self.input0 = before(layers, in_features[0], features)
        self.input1 = ReluConvNorm(layers, in_features[1], features)
        self.name = name
        self.nodes = nodes
        self.operations: nnx.Dict[Operation] = nnx.Dict()
        for index, node in enumerate(nodes):
            for name, source in node:
                strides = 2 if reduction and source < 2 else 1
                self.operations[operation_key(index, name, source)] = make_operation(layers, name, features, strides)
        self.drop_path = layers.drop_path(drop_path_rate)

    def __call__(self, before: jax.Array, last: jax.Array) -> jax.Array:
        """Returns `[batch, height, width, nodes · features]` from the outputs of the two cells before."""
        states = [self.input0(before), self.input1(last)]
        for index, node in enumerate(self.nodes):
            outputs = [self._operate(operation_key(index, name, source), states[source]) for name, source in node]
            states.append(functools.reduce(operator.add, outputs))
        return jnp.concatenate(states[2:], axis=-1)

    def _operate(self, key: str, x: jax.Array) -> jax.Array:
        """Returns the operation's output; training may drop it, unless it is the identity."""
        operation = self.operations[key]
        with jax.named_scope(f"{self.name}/operations/{key}"):
            return operation(x) if isinstance(operation, Skip) else self.drop_path(operation(x))


def operation_key(node: int, name: str, source: int) -> str:
    """Returns the name under which a cell holds one operation."""
    return f"node{node}_from{source}_{name}"


class AuxiliaryHead(nnx.Module):
    """Classifies the features of an inner cell, so that training has a second loss."""

    def __init__(self, layers: Layers, in_features: int, num_classes: int):
        """Initialises the layers, of 128 and 768 channels."""
        self.conv1 = ConvNorm(layers, in_features, 128)
        self.conv2 = ConvNorm(layers, 128, 768, 2, padding="VALID")
        self.head = layers.linear(768, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[batch, num_classes]`; `x` must have at least 7×7 positions.

        Raises:
            ValueError: it has fewer.
        """
        if min(x.shape[1:3]) < 7:
            raise ValueError(
                f"the auxiliary classifier needs at least 7×7 positions, of which these images leave {x.shape[1:3]}: "
                "train on larger images, or without it"
            )
        x = nnx.avg_pool(nnx.relu(x), (5, 5), (2, 2))
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.head(global_mean(x))


class SmallStem(nnx.Module):
    """One 3×3 convolution: of stride 1 for images of 32×32, of stride 3 for 96×96."""

    reduces = False

    def __init__(self, layers: Layers, in_channels: int, features: int, strides: int = 1):
        """Initialises the convolution; it makes three times `features` channels."""
        self.out_features = 3 * features
        self.conv = ConvNorm(layers, in_channels, self.out_features, 3, strides=strides)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the two inputs of the first cell."""
        x = self.conv(x)
        return x, x


class LargeStem(nnx.Module):
    """Three 3×3 convolutions of stride 2, for images of 224×224."""

    reduces = True

    def __init__(self, layers: Layers, in_channels: int, features: int):
        """Initialises the convolutions; they make `features` channels."""
        self.out_features = features
        self.conv1 = ConvNorm(layers, in_channels, features // 2, 3, strides=2)
        self.conv2 = ConvNorm(layers, features // 2, features, 3, strides=2)
        self.conv3 = ConvNorm(layers, features, features, 3, strides=2)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the two inputs of the first cell, at a quarter and an eighth of the resolution."""
        quarter = self.conv2(nnx.relu(self.conv1(x)))
        return quarter, self.conv3(nnx.relu(quarter))


class Darts(nnx.Module):
    """Stacked cells between a stem and a linear classifier.

    Cells number `num_cells // 3` and `2 * num_cells // 3` are reduction cells: they halve the resolution and double the
    channels. Batch norms have scale and bias everywhere, and poolings are followed by one, as in the search network.

    The width of the super-network is unpublished. With 24 channels and 8 cells it has 4.11 M parameters, and 600.0 M
    multiply-adds where the cells start at 32×32 positions; ASGNAS (arXiv 2305.18030) lists 4.05 M and 614 M for STL-10.
    STL-10's 96×96 images come to 32×32 positions by a stem of stride 3 (at full resolution the same network would take
    5.4 G). With 48 channels, 14 cells and the stem for 224×224, the width of the published ImageNet networks, it has
    25.6 M parameters and 2.84 G multiply-adds.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        features: int = 16,
        num_cells: int = 8,
        stem: Callable[[Layers, int, int], SmallStem | LargeStem] = SmallStem,
        genotype: Genotype = SUPER_NETWORK,
        in_channels: int = 3,
        auxiliary: bool = False,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            features: channels of a node in the first cells.
            num_cells: number of cells.
            stem: `SmallStem` for 32×32 images, `LargeStem` for 224×224.
            genotype: what the cells compute; the whole super-network by default.
            in_channels: channels of the input images.
            auxiliary: add the auxiliary head; in training mode the network then returns two arrays of logits.
            drop_path_rate: how often training drops an operation of a cell (paper: up to 0.2).
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype)
        reductions = (num_cells // 3, 2 * num_cells // 3)
        self.deterministic = False
        self.auxiliary_cell = reductions[1]
        self.auxiliary: AuxiliaryHead | None = nnx.data(None)
        self.stem = stem(layers, in_channels, features)
        self.cells: nnx.List[Cell] = nnx.List()
        in_features = (self.stem.out_features, self.stem.out_features)
        after_reduction = self.stem.reduces
        for index in range(num_cells):
            reduction = index in reductions
            features *= 2 if reduction else 1
            nodes = genotype.reduction if reduction else genotype.normal
            self.cells.append(
                Cell(
                    layers,
                    f"cells/{index}",
                    nodes,
                    in_features,
                    features,
                    reduction=reduction,
                    after_reduction=after_reduction,
                    drop_path_rate=drop_path_rate,
                )
            )
            in_features = (in_features[1], len(nodes) * features)
            after_reduction = reduction
            if auxiliary and index == self.auxiliary_cell:
                self.auxiliary = AuxiliaryHead(layers, in_features[1], num_classes)
        self.head = layers.linear(in_features[1], num_classes)

    def cells_without(self, paths: Iterable[str]) -> tuple[tuple[Node, ...], ...]:
        """Returns the genotype of every cell by itself, where some operations are gone, and what reads these alone.

        Args:
            paths: paths of parameters that are gone; for a skip connection, which has none, its own.

        Returns:
            The nodes of each cell. One without any operation left is empty.
        """
        gone, cells = frozenset(paths), []
        for index, cell in enumerate(self.cells):
            nodes: list[Node] = []
            for number, node in enumerate(cell.nodes):
                left = [
                    (name, source)
                    for name, source in node
                    if (source < 2 or nodes[source - 2])
                    and not gone.issuperset(self._paths(index, operation_key(number, name, source)))
                ]
                nodes.append(tuple(left))
            cells.append(tuple(nodes))
        return tuple(cells)

    def _paths(self, index: int, key: str) -> list[str]:
        """Returns the paths of the parameters of an operation, or its own if it has none."""
        own = f"cells/{index}/operations/{key}"
        params = nnx.to_flat_state(nnx.state(self.cells[index].operations[key], nnx.Param))
        return ["/".join(map(str, (own, *keys))) for keys, _ in params] or [own]

    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Classifies images `[batch, height, width, in_channels]`.

        Returns:
            The logits `[batch, num_classes]`; in training mode, with an auxiliary head, its logits as well.
        """
        before, last = self.stem(x)
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            before, last = last, cell(before, last)
            if self.auxiliary is not None and not self.deterministic and index == self.auxiliary_cell:
                auxiliary_logits = self.auxiliary(last)
        logits = self.head(global_mean(last))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)
