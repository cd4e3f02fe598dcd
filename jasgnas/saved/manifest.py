"""What a folder says of the model that its sub-network is one of: enough to find it there again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jasgnas.bridge import Leaf, Model
from jasgnas.bridge.trace import Call
from jasgnas.errors import ArgumentError
from jasgnas.saved.trees import Json, array_of, described, described_array, rebuilt
from jasgnas.space.search import Kinds
from jasgnas.subnet.origin import Origin
from jasgnas.versions import versions_of

_PACKAGES = ("jasgnas", "jax", "jaxlib", "flax", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Returns the versions of what a folder is written with."""
    return versions_of(_PACKAGES)


@dataclass(frozen=True, eq=False)
class Source:
    """What a folder says of the model that the sub-network is one of.

    Attributes:
        kind: what models of its flavour are called.
        leaves: its leaves.
        given: what comes with the model, by the name of the argument; no entry for what could not be written down.
        unwritten: those names, and why.
        origin: the search space, and what was removed.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    given: Mapping[str, Any]
    unwritten: Mapping[str, str]
    origin: Origin

    @classmethod
    def of(cls, model: Model, origin: Origin) -> "Source":
        """Describes a full model."""
        given, unwritten = {}, {}
        for name, value in model.given().items():
            try:
                described(value)
                given[name] = value
            except ArgumentError as error:
                unwritten[name] = str(error)
        return cls(model.kind, model.leaves, given, unwritten, origin)

    def to_json(self) -> dict[str, Json]:
        """Returns it as JSON.

        Raises:
            ArgumentError: the example inputs cannot be written down.
        """
        origin, call = self.origin, self.origin.call
        return {
            "model": {
                "kind": self.kind,
                "leaves": [
                    {
                        "path": leaf.path,
                        **described_array(leaf.aval),
                        "trainable": leaf.trainable,
                        **({"is_gate": True} if leaf.is_gate else {}),
                    }
                    for leaf in self.leaves
                ],
                "given": {name: described(value) for name, value in self.given.items()},
                "unwritten": dict(self.unwritten),
            },
            "space": {
                "arguments": described(tuple(call.arguments(call.avals))),
                "kept": sorted(origin.kept),
                "connected": list(origin.connected),
                "outputs": None if origin.outputs is None else list(origin.outputs),
                "tie": list(origin.tie),
                "structures": origin.kinds.structures,
                "channels": origin.kinds.channels,
                "fingerprint": origin.fingerprint,
            },
            "removed": [
                {"group": index, "name": name} for index, name in zip(origin.removed, origin.names, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, manifest: Mapping[str, Json]) -> "Source":
        """Reads it from a manifest.

        Raises:
            KeyError, TypeError, ValueError: it is not there.
        """
        model, space, removed = manifest["model"], manifest["space"], manifest["removed"]
        args, kwargs = rebuilt(space["arguments"])
        leaves = [
            Leaf(
                of_type(each["path"], str),
                aval.shape,
                aval.dtype,
                of_type(each["trainable"], bool),
                of_type(each.get("is_gate", False), bool),
            )
            for each in model["leaves"]
            for aval in [array_of(each)]
        ]
        origin = Origin(
            call=Call.of(args, kwargs),
            kept=frozenset(of_type(index, int) for index in space["kept"]),
            connected=tuple(of_type(each, bool) for each in space["connected"]),
            # Folders of before there were the next two say nothing of them.
            outputs=None if space.get("outputs") is None else tuple(of_type(each, str) for each in space["outputs"]),
            tie=tuple(of_type(pattern, str) for pattern in space.get("tie", ())),
            kinds=Kinds(of_type(space["structures"], bool), of_type(space["channels"], bool)),
            fingerprint=of_type(space["fingerprint"], int),
            removed=tuple(of_type(each["group"], int) for each in removed),
            names=tuple(of_type(each["name"], str) for each in removed),
        )
        if len(origin.connected) != len(origin.call.arrays) or not all(0 <= i < len(leaves) for i in origin.kept):
            raise ValueError("it contradicts itself")
        return cls(
            kind=of_type(model["kind"], str),
            leaves=tuple(leaves),
            given={of_type(name, str): rebuilt(value) for name, value in model["given"].items()},
            unwritten={name: of_type(why, str) for name, why in model["unwritten"].items()},
            origin=origin,
        )


def of_type(value: Any, kind: type) -> Any:
    """Returns a value of a type and of no other: no truth value is a number here.

    Raises:
        TypeError: it is of another one.
    """
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value
