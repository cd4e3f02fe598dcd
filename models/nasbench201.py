"""The cell space of NAS-Bench-201 (arXiv 2001.00326): the super-network of all its cells, or the network of one.

The super-network has no architecture variables: every edge is the plain mean of its five operations, of which one is
zero, as DARTS weighs them before it has learned anything. Which of them stay is for a search to find.
"""

import functools
import itertools
import operator
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers import ConvNorm, Layers, Skip, global_mean

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Names of the operations of an edge."""

NUM_NODES = 4
EDGES = tuple((source, target) for target in range(1, NUM_NODES) for source in range(target))
"""The edges of a cell, from one node to a later one, in the order of a cell's string."""

Cells = dict[tuple[int, int], str]
"""The operation of each edge of a cell."""


def cell_from_string(text: str) -> Cells:
    """Returns the operation of each edge, given a cell as the paper writes it.

    Args:
        text: `|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|`, for example: for each
            node but the first one the operation that it reads each earlier node through.

    Raises:
        ValueError: it is no such string, or an operation is unknown.
    """
    nodes = text.split("+")
    found: Cells = {}
    for target, node in enumerate(nodes, 1):
        pairs = re.findall(r"([a-z0-9_]+)~([0-9])\|", node)
        if node != "|" + "".join(f"{name}~{source}|" for name, source in pairs):
            raise ValueError(f"node {target} of a cell must look like |skip_connect~0|none~1|, got {node!r}")
        for name, source in pairs:
            if name not in OPERATIONS:
                raise ValueError(f"no operation is called {name!r}; there are {', '.join(OPERATIONS)}")
            found[int(source), target] = name
    if tuple(found) != EDGES:
        raise ValueError(f"a cell has the edges {EDGES}, got {tuple(found)}")
    return found


def cell_to_string(cell: Cells) -> str:
    """Returns a cell as the paper writes it, see `cell_from_string`."""
    nodes = ([f"{cell[source, target]}~{source}" for source in range(target)] for target in range(1, NUM_NODES))
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


class ReluConvNorm(nnx.Module):
    """Relu, convolution and batch norm."""

    def __init__(self, layers: Layers, in_features: int, features: int, kernel_size: int, strides: int = 1):
        """Initialises convolution and norm."""
        self.conv_norm = ConvNorm(layers, in_features, features, kernel_size, strides=strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height, width, features]`."""
        return self.conv_norm(nnx.relu(x))


class AveragePool(nnx.Module):
    """3×3 average pooling that keeps the resolution."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the pooled `x`, `[batch, height, width, features]` both ways."""
        return nnx.avg_pool(x, (3, 3), (1, 1), padding="SAME", count_include_pad=False)


Operation = ReluConvNorm | AveragePool | Skip


def make_operation(layers: Layers, name: str, features: int) -> Operation:
    """Returns the operation called `name`, one of `OPERATIONS` but none."""
    match name:
        case "skip_connect":
            return Skip()
        case "avg_pool_3x3":
            return AveragePool()
        case "nor_conv_1x1" | "nor_conv_3x3":
            return ReluConvNorm(layers, features, features, int(name[-1]))
        case _:
            raise ValueError(f"no operation is called {name!r}; there are {', '.join(OPERATIONS)}")


class Cell(nnx.Module):
    """Four nodes, each the sum of its edges from all earlier ones; each edge is one operation, or the mean of all."""

    def __init__(self, layers: Layers, name: str, features: int, cell: Cells | None):
        """Initialises the operations.

        Args:
            layers: makes the layers.
            name: the path of the cell, which the scopes of its operations start with.
            features: channels of every node.
            cell: the operation of each edge; None for all of them.
        """
        self.name = name
        self.scale = 1.0 if cell else 1 / len(OPERATIONS)
        self.edges: nnx.Dict[nnx.Dict[Operation]] = nnx.Dict()
        for source, target in EDGES:
            names = OPERATIONS if cell is None else (cell[source, target],)
            operations = {each: make_operation(layers, each, features) for each in names if each != "none"}
            self.edges[f"{source}_{target}"] = nnx.Dict(operations)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the last node, `[batch, height, width, features]` both ways."""
        nodes = [x]
        for target in range(1, NUM_NODES):
            edges = [self._edge(f"{source}_{target}", nodes[source]) for source in range(target)]
            living = [each for each in edges if each is not None]
            nodes.append(functools.reduce(operator.add, living) if living else jnp.zeros_like(x))
        return nodes[-1]

    def _edge(self, edge: str, x: jax.Array) -> jax.Array | None:
        """Returns the mean of the operations of an edge, None if there are none."""
        results = []
        for name, operation in self.edges[edge].items():
            with jax.named_scope(f"{self.name}/edges/{edge}/{name}"):
                results.append(operation(x))
        if not results:
            return None
        total = functools.reduce(operator.add, results)
        return total if self.scale == 1 else total * self.scale


class Reduction(nnx.Module):
    """A residual block that halves the resolution and doubles the channels."""

    def __init__(self, layers: Layers, in_features: int, features: int):
        """Initialises both paths."""
        self.conv1 = ReluConvNorm(layers, in_features, features, 3, 2)
        self.conv2 = ReluConvNorm(layers, features, features, 3)
        self.shortcut = layers.conv(in_features, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[batch, height / 2, width / 2, features]`."""
        return self.conv2(self.conv1(x)) + self.shortcut(nnx.avg_pool(x, (2, 2), (2, 2)))


class NasBench201(nnx.Module):
    """A stem of 3×3, three stages of equal cells with a residual reduction between them, and a linear classifier.

    With 16 channels and 5 cells a stage, as published, the super-network has 1.70 M parameters and 244 M multiply-adds.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        cell: Cells | str | None = None,
        features: int = 16,
        num_cells: int = 5,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            num_classes: number of logits.
            cell: what every cell computes, as a string of the paper or by edge; None for the super-network.
            features: channels of the first stage.
            num_cells: cells of each stage.
            in_channels: channels of the input images.
            dtype: dtype of the computation, or None to let inputs and parameters decide.
            param_dtype: dtype of the parameters.
            rngs: random streams of the initialisation.
        """
        layers = Layers(rngs, dtype, param_dtype)
        chosen = cell_from_string(cell) if isinstance(cell, str) else cell
        self.num_cells = num_cells
        self.stem = ConvNorm(layers, in_channels, features, 3)
        widths = (features, 2 * features, 4 * features)
        indices = range(len(widths) * num_cells)
        self.cells = nnx.List([Cell(layers, f"cells/{i}", widths[i // num_cells], chosen) for i in indices])
        self.reductions = nnx.List([Reduction(layers, before, after) for before, after in itertools.pairwise(widths)])
        self.norm = layers.batch_norm(widths[-1])
        self.head = layers.linear(widths[-1], num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Classifies images `[batch, height, width, in_channels]`; returns logits `[batch, num_classes]`."""
        x = self.stem(x)
        for index, cell in enumerate(self.cells):
            if index and index % self.num_cells == 0:
                x = self.reductions[index // self.num_cells - 1](x)
            x = cell(x)
        return self.head(global_mean(nnx.relu(self.norm(x))))
