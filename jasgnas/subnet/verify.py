"""The comparison of a sub-network with the full network, on random inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasgnas.errors import VerificationError
from jasgnas.program.jaxpr import Equation, Program
from jasgnas.rules import rule_for
from jasgnas.rules.elementwise import Elementwise
from jasgnas.space.search import SearchSpace

# How many values an integer that is no index is drawn from, as the entries of an image are.
_NUM_VALUES = 256

# Primitives that hand on the integers they are given, beside elementwise ones.
_MOVES = ("broadcast_in_dim", "concatenate", "expand_dims", "pad", "reshape", "slice", "split", "squeeze", "transpose")


def verify_subnet(
    space: SearchSpace, values: Sequence[Any], apply: Callable[..., Any], arrays: Mapping[str, Any]
) -> None:
    """Compares full and sub-network on random inputs of the traced shapes.

    Args:
        space: the search space.
        values: the arrays of the full network, in the order of its leaves.
        apply: calls the sub-network, given arrays, `args` and `kwargs`; returns its outputs and what has changed.
        arrays: the arrays of the sub-network, by path.

    Raises:
        VerificationError: their outputs differ by more than rounding.
    """
    program = space.graph.program
    inputs = random_inputs(program, len(space.leaves))

    def outputs(apply: Callable[..., Any], arrays: Any) -> list[Any]:
        run = jax.jit(lambda arrays, inputs: apply(arrays, *space.call.arguments(inputs))[0])
        return jax.tree.leaves(run(arrays, inputs))

    expected, found = outputs(space.model.apply, values), outputs(apply, arrays)
    tolerance = tolerance_of(program)
    for index, difference in enumerate(map(Difference.between, expected, found)):
        if not difference.is_within(tolerance):
            raise VerificationError(
                f"output {index} of the sub-network differs by up to {difference.largest:.3g} from the full network's, "
                f"whose largest entry is {difference.scale:.3g}. This is a defect of jasgnas: please report it with "
                "the model."
            )


class Difference(NamedTuple):
    """How far two arrays are apart.

    Attributes:
        largest: the largest absolute difference, where the first array is finite.
        scale: the largest absolute value there.
        is_finite_alike: whether all other entries are equal.
    """

    largest: float
    scale: float
    is_finite_alike: bool

    @classmethod
    def between(cls, expected: Any, found: Any) -> "Difference":
        """Compares two arrays of one shape."""
        wide = np.result_type(expected.dtype, np.float32)
        a, b = np.asarray(expected, wide), np.asarray(found, wide)
        # Inputs at random may be out of bounds for the full network, too.
        finite = np.isfinite(a)
        error = np.max(np.abs(a[finite] - b[finite]), initial=0)
        scale = np.max(np.abs(a[finite]), initial=0)
        return cls(float(error), float(scale), np.array_equal(a[~finite], b[~finite], equal_nan=True))

    def is_within(self, tolerance: float) -> bool:
        """Tells whether the arrays are equal up to rounding, relative to numbers of the size of one or larger."""
        return self.largest <= tolerance * max(self.scale, 1) and self.is_finite_alike


def tolerance_of(program: Program) -> float:
    """Returns how far two evaluations of a flat program may be apart: the least precise dtype bounds it."""
    dtypes = {aval.dtype for aval in program.avals.values() if jnp.issubdtype(aval.dtype, jnp.inexact)}
    return max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0) ** 0.5


def random_inputs(program: Program, num_leaves: int) -> list[jax.Array]:
    """Draws inputs of a network, given its flat program, of which the first inputs are its leaves."""
    rng = np.random.default_rng(0)
    variables = program.inputs[num_leaves:]
    return [_random_array(program.avals[var], num_values(program, var), rng) for var in variables]


def _random_array(aval: Any, num: int, rng: np.random.Generator) -> jax.Array:
    """Draws normal numbers, or integers from 0 to `num` − 1."""
    if jax.dtypes.issubdtype(aval.dtype, np.inexact):
        return jnp.asarray(rng.normal(size=aval.shape), aval.dtype)
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jnp.zeros(aval.shape, aval.dtype)
    largest = 1 if aval.dtype == bool else min(num - 1, int(jnp.iinfo(aval.dtype).max))
    return jnp.asarray(rng.integers(0, largest, size=aval.shape, endpoint=True), aval.dtype)


def num_values(program: Program, var: int) -> int:
    """Returns from how many values, from 0 on, the integers of an input may be: as many as what they index has places.

    Args:
        program: a flat program.
        var: the input.
    """
    indices = {var}
    places: dict[int, int] = {}
    found: list[int] = []
    for eqn in program.equations:
        if eqn.primitive == "iota":
            places[eqn.outputs[0]] = eqn.params["shape"][eqn.params["dimension"]]
            continue
        variables = [atom for atom in eqn.inputs if isinstance(atom, int)]
        numbered = [places[each] for each in variables if each in places]
        is_read = not indices.isdisjoint(variables)
        if is_read:
            found += _places(eqn, indices)
            if eqn.primitive == "eq":
                found += numbered  # it is compared with 0, 1, 2, …, as a one-hot encoding does
        if eqn.primitive in _MOVES or isinstance(rule_for(eqn.primitive), Elementwise):
            if is_read:
                indices.update(eqn.outputs)
            for number in numbered:
                places.update(dict.fromkeys(eqn.outputs, number))
    return max(1, min(found, default=_NUM_VALUES))


def _places(eqn: Equation, indices: set[int]) -> Iterator[int]:
    """Yields how many places there are along each axis that an equation looks up by some variables."""
    shape = eqn.in_avals[0].shape if eqn.in_avals else ()
    if eqn.primitive == "gather" and eqn.inputs[1] in indices:
        sizes = eqn.params["slice_sizes"]
        yield from (shape[axis] - sizes[axis] + 1 for axis in eqn.params["dimension_numbers"].start_index_map)
    elif eqn.primitive.startswith("scatter") and eqn.inputs[1] in indices:
        yield from (shape[axis] for axis in eqn.params["dimension_numbers"].scatter_dims_to_operand_dims)
    elif eqn.primitive in ("dynamic_slice", "dynamic_update_slice"):
        first = 1 if eqn.primitive == "dynamic_slice" else 2
        taken = eqn.params["slice_sizes"] if first == 1 else eqn.in_avals[1].shape
        for axis, atom in enumerate(eqn.inputs[first:]):
            if atom in indices:
                yield shape[axis] - taken[axis] + 1
