"""Multiply-adds agree with what XLA counts, once padding is explicit and elementwise work is left out."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jasgnas
import models
from experiments.benchmarks.model_table import Config, run
from experiments.benchmarks.xla_cost import xla_cost
from experiments.common.text import markdown_table
from tests.small_models import SMALL

NAMES = ("demo_net", "darts_8", "super_resnet", "convnext_tiny", "decoder_small")


@pytest.mark.parametrize(("name", "overrides", "shape"), [row for row in SMALL if row[0] in NAMES])
def test_macs_are_those_of_xla_with_explicit_padding(
    name: str, overrides: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model = models.create_abstract(name, num_classes=5, **overrides)
    x = jax.ShapeDtypeStruct(shape, models.example_input(name).dtype)
    graphdef, state = nnx.split(model)
    macs = jasgnas.count_macs(model, x)
    cost = xla_cost(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    assert cost.contraction_flops == pytest.approx(2 * macs, rel=0.05)
    assert cost.flops == pytest.approx(cost.predicted_flops(macs), rel=0.05)
    assert (cost.padding_macs > 0) == (name != "decoder_small")


# height, kernel, strides, dilation, padding, and positions of the kernel that lie on padding, by hand.
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "dilation", "padding", "on_padding"),
    [
        (4, 3, 1, 1, (1, 1), 2),
        (4, 3, 2, 1, (0, 1), 1),
        (5, 3, 1, 2, (2, 2), 4),
        (4, 2, 2, 1, (0, 0), 0),
        (3, 2, 1, 1, (-1, 2), 3),
    ],
)
def test_multiply_adds_with_padding(
    size: int, kernel: int, strides: int, dilation: int, padding: tuple[int, int], on_padding: int
) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (strides,), (padding,), rhs_dilation=(dilation,))

    cost = xla_cost(convolve, jnp.ones((2, 4, size)), jnp.ones((6, 4, kernel)))
    assert cost.padding_macs == 2 * 6 * 4 * on_padding
    assert cost.other_flops == pytest.approx(0, abs=2)
    assert cost.contraction_flops - cost.flops == pytest.approx(2 * cost.padding_macs, abs=4)


def test_table_is_markdown_and_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(Config(("demo_net",), verify=True, output=tmp_path))
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert "| demo_net | 28×28×1 |" in text
    assert row.num_groups == 5
    assert row.num_channels == 1240
    assert "padding |" in text.splitlines()[-1]
    run(Config(("demo_net",), output=tmp_path))
    assert text.startswith((tmp_path / "tables.md").read_text().split("|")[0])


def test_markdown_columns_are_aligned() -> None:
    assert markdown_table(("a", "number"), ("row", "1")) == "| a   | number |\n| :-- | -----: |\n| row |      1 |"
