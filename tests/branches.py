"""A small network with all that a training step has to deal with."""

from functools import partial

import jax
from flax import nnx

BATCH_NORM = partial(nnx.BatchNorm, momentum=0.9)


class Branches(nnx.Module):
    """Two branches that are added, batch norm, dropout and an auxiliary classifier: what a step has to deal with."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        features: int = 8,
        dropout: float = 0.0,
        auxiliary: bool = False,
        norm=BATCH_NORM,
        dtype=None,
    ):
        settings = {"rngs": rngs, "dtype": dtype}
        self.stem = nnx.Conv(1, features, (3, 3), strides=2, **settings)
        self.one = nnx.Conv(features, features, (1, 1), **settings)
        self.two = nnx.Conv(features, features, (3, 3), **settings)
        self.norm = norm(features, **settings)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.head = nnx.Linear(features, 10, **settings)
        self.auxiliary = nnx.Linear(features, 10, rngs=rngs) if auxiliary else nnx.data(None)
        self.deterministic = False

    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.stem(x))
        x = nnx.relu(self.norm(self.one(x) + self.two(x)))
        x = self.dropout(x.mean(axis=(1, 2)))
        logits = self.head(x)
        return logits if self.auxiliary is None or self.deterministic else (logits, self.auxiliary(x))
