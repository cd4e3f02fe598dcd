"""What XLA counts for a forward pass, and why it differs from twice the multiply-adds.

`jasgnas.count_macs` follows the papers: convolutions and matrix products count, multiplications with padding included,
nothing else does. XLA's cost analysis of a compiled pass leaves multiplications with padding out and counts elementwise
work and reductions. So the two are compared three ways, each time with XLA's own analysis of a compiled program:

- the pass as it is (`flops`);
- the pass with padding made explicit: every convolution gets an input that is padded already (`padded_flops`);
- the pass without its contractions: each is replaced by a call that XLA knows nothing of (`other_flops`).

The second less the third is what XLA counts for the contractions, padding included: twice the multiply-adds. And what
XLA counts for the pass as it is can be predicted, as twice the multiply-adds that meet no padding, counted here from
shapes alone, plus the other work. Nothing is ever run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
CONTRACTIONS = ("conv_general_dilated", "dot_general")

Contract = Callable[..., jax.Array]
"""Takes the equation of a contraction and its operands, and returns what stands in for its result."""


@dataclasses.dataclass(frozen=True)
class XlaCost:
    """Floating-point operations of one forward pass by XLA's cost analysis of compiled programs.

    Attributes:
        flops: those of the pass as it is.
        padded_flops: those of the pass with padding made explicit.
        other_flops: those of the pass without its convolutions and matrix products.
        padding_macs: multiply-adds of convolutions that meet padding, counted from shapes.
    """

    flops: float
    padded_flops: float
    other_flops: float
    padding_macs: int

    @property
    def contraction_flops(self) -> float:
        """Those of convolutions and matrix products, multiplications with padding included."""
        return self.padded_flops - self.other_flops

    def predicted_flops(self, macs: int) -> float:
        """Those of the pass as it is, predicted from its multiply-adds."""
        return 2 * (macs - self.padding_macs) + self.other_flops


def xla_cost(function: Callable[..., Any], *args: Any) -> XlaCost:
    """Returns what XLA counts for `function(*args)`; arguments are pytrees of arrays or `jax.ShapeDtypeStruct`s."""
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)

    def flops(contract: Contract) -> float:
        return compiled_flops(lambda *leaves: evaluate(closed.jaxpr, closed.consts, leaves, contract), *leaves)

    return XlaCost(compiled_flops(function, *args), flops(pad_first), flops(call_out), padding_macs(closed.jaxpr))


def compiled_flops(function: Callable[..., Any], *args: Any) -> float:
    """Returns the floating-point operations of a compiled function."""
    # The code is never run, so it need not be fast.
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    cost = jax.jit(function).lower(*args).compile(compiler_options=options).cost_analysis()
    assert cost is not None, "this backend of XLA has no cost analysis"
    return cost["flops"]


def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], contract: Contract) -> list[Any]:
    """Evaluates a jaxpr, its calls inlined, with `contract` in place of convolutions and matrix products."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        if name in CALLS:
            body = eqn.params[CALLS[name]]
            results = evaluate(body.jaxpr, body.consts, operands, contract)
        elif name in CONTRACTIONS:
            results = [contract(eqn, *operands)]
        else:
            bound = eqn.primitive.bind(*operands, **eqn.params)
            results = bound if eqn.primitive.multiple_results else [bound]
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def pad_first(eqn: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Contracts after padding; a barrier keeps XLA from folding the padding back into the convolution."""
    params = eqn.params
    if "padding" in params:
        widths = [(0, 0, 0)] * lhs.ndim
        for axis, (low, high) in zip(params["dimension_numbers"].lhs_spec[2:], params["padding"], strict=True):
            widths[axis] = (low, high, 0)
        lhs = jax.lax.optimization_barrier(jax.lax.pad(lhs, jnp.zeros((), lhs.dtype), widths))
        params = params | {"padding": ((0, 0),) * len(params["padding"])}
    return eqn.primitive.bind(lhs, rhs, **params)


def call_out(eqn: Any, *operands: jax.Array) -> jax.Array:
    """Replaces a contraction by a call out of the program, for which XLA counts nothing."""
    aval = eqn.outvars[0].aval

    def never_run(*operands: Any) -> Any:
        raise AssertionError("a program that is compiled for its cost alone was run")

    return jax.pure_callback(never_run, jax.ShapeDtypeStruct(aval.shape, aval.dtype), *operands)


def padding_macs(jaxpr: Any) -> int:
    """Returns the multiply-adds of convolutions whose one factor is padding."""
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in CALLS:
            total += padding_macs(eqn.params[CALLS[name]].jaxpr)
        elif name == "conv_general_dilated":
            total += _padding_macs(eqn)
    return total


def _padding_macs(eqn: Any) -> int:
    """Returns the same of one convolution: each output position meets the input under some entries of the kernel."""
    params = eqn.params
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    lhs, rhs, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    met, pairs = 1, 1
    for i, (low, _) in enumerate(params["padding"]):
        size, window, places = lhs[lhs_spec[i + 2]], rhs[rhs_spec[i + 2]], out[out_spec[i + 2]]
        starts = np.arange(places)[:, None] * params["window_strides"][i] - low
        positions = starts + np.arange(window) * params["rhs_dilation"][i]
        met *= int(np.sum((positions >= 0) & (positions < size)))
        pairs *= positions.size
    return (pairs - met) * out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]
