"""Inputs and the outputs for them, saved beside a network to tell whether it still computes what it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jasgnas.bridge.trace import Call
from jasgnas.errors import SavedNetworkError, VerificationError
from jasgnas.program.jaxpr import Program
from jasgnas.saved.network import Network, array_arguments
from jasgnas.saved.tensors import from_bytes, raw, to_bytes
from jasgnas.subnet.verify import Difference, random_inputs, tolerance_of


@dataclass(frozen=True, eq=False)
class Check:
    """What a network returns for some inputs.

    Attributes:
        inputs: the arrays of a call, in order.
        outputs: the arrays that it returns, in order.
        tolerance: how far outputs may be apart, relative to the largest.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    tolerance: float

    @classmethod
    def of(cls, network: Network, params: Mapping[str, Any], call: Call, program: Program, num_leaves: int) -> "Check":
        """Calls a network on the arrays of a call, at random where they are abstract.

        Args:
            network: the network.
            params: its parameters.
            call: the call.
            program: the flat program of the full model, of which the first inputs are its leaves.
            num_leaves: how many these are.
        """
        drawn = random_inputs(program, num_leaves)
        inputs = [
            raw(random if isinstance(given, jax.ShapeDtypeStruct) else given)
            for given, random in zip(call.arrays, drawn, strict=True)
        ]
        return cls(inputs, _outputs(network, params, call, inputs), tolerance_of(program))

    @classmethod
    def from_bytes(cls, data: bytes, tolerance: float) -> "Check":
        """Reads inputs and outputs from the bytes of a file.

        Raises:
            KeyError: the file holds something else.
        """
        arrays = from_bytes(data)
        numbers = [sum(name.startswith(prefix) for name in arrays) for prefix in ("inputs/", "outputs/")]
        inputs, outputs = (
            [arrays[f"{prefix}/{index}"] for index in range(number)]
            for prefix, number in zip(("inputs", "outputs"), numbers, strict=True)
        )
        return cls(inputs, outputs, tolerance)

    def to_bytes(self) -> bytes:
        """Returns the bytes of a file that holds inputs and outputs."""
        inputs = {f"inputs/{index}": array for index, array in enumerate(self.inputs)}
        return to_bytes(inputs | {f"outputs/{index}": array for index, array in enumerate(self.outputs)})

    def require_equal(self, network: Network, params: Mapping[str, Any], call: Call, why: str) -> float:
        """Calls another network on the inputs, and returns the largest difference in an output.

        Raises:
            SavedNetworkError: it returns arrays of other shapes.
            VerificationError: outputs differ by more than rounding; `why` says what that may mean.
        """
        found = _outputs(network, params, call, self.inputs)
        shapes = [[(value.shape, value.dtype) for value in values] for values in (self.outputs, found)]
        if shapes[0] != shapes[1]:
            raise SavedNetworkError(f"the outputs are of shapes {shapes[1]}, expected {shapes[0]}. {why}")
        differences = list(map(Difference.between, self.outputs, found))
        for index, difference in enumerate(differences):
            if not difference.is_within(self.tolerance):
                raise VerificationError(
                    f"output {index} differs by up to {difference.largest:.3g} from what the sub-network returned when "
                    f"it was saved, whose largest entry is {difference.scale:.3g}. {why}"
                )
        return max((difference.largest for difference in differences), default=0.0)


def _outputs(network: Network, params: Mapping[str, Any], call: Call, inputs: Sequence[Any]) -> list[Any]:
    args, kwargs = array_arguments(call, inputs)
    return list(map(raw, jax.tree.leaves(jax.jit(network)(dict(params), *args, **kwargs))))
