"""The parts of a network by path: layers, variables, and what holds them."""

import json
import keyword
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from flax import nnx

from jasgnas.errors import SourceError


@dataclass(frozen=True)
class Constructor:
    """A call that makes a layer or a variable.

    Attributes:
        name: what is called.
        arguments: name and text of each argument; positional ones have no name.
        rngs: whether it takes random streams.
    """

    name: str
    arguments: tuple[tuple[str, str], ...]
    rngs: bool = True

    def text(self) -> str:
        """Returns the call."""
        texts = [f"{name}={value}" if name else value for name, value in self.arguments]
        return f"{self.name}({', '.join([*texts, *(['rngs=rngs'] if self.rngs else [])])})"


@dataclass(eq=False)
class Part:
    """A part of a network.

    Attributes:
        path: where it is.
        children: its parts by key.
        constructor: what makes it, if it is a layer, a variable or a module whose class is known.
        is_module: whether it is a module with a class of its own.
    """

    path: str
    children: dict[str, "Part"] = field(default_factory=dict)
    constructor: Constructor | None = None
    is_module: bool = False

    @property
    def is_list(self) -> bool:
        """Whether its parts are numbered."""
        return bool(self.children) and all(key.isdecimal() for key in self.children)

    def access(self, path: str) -> str:
        """Returns how what is below a part is got at in its methods."""
        text, node = "self", self
        for key in path[len(self.path) :].strip("/").split("/"):
            if node.is_list and not node.is_module:
                text += f"[{int(key)}]"
            elif is_name(key):
                text += f".{key}"
            else:
                text = f"getattr({text}, {quoted(key)})" if node.is_module else f"{text}[{quoted(key)}]"
            node = node.children.get(key, Part(""))
        return text


def is_name(key: str) -> bool:
    """Tells whether a key can be the name of an attribute, and stays what it is as one."""
    return key.isidentifier() and not keyword.iskeyword(key) and unicodedata.normalize("NFKC", key) == key


def quoted(text: str) -> str:
    """Returns a text as Python writes it."""
    return json.dumps(text, ensure_ascii=False)


def tree_of(constructors: Iterable[tuple[str, Constructor]]) -> Part:
    """Puts layers and variables into the tree of their paths.

    Raises:
        SourceError: a key is empty, an array and what holds others have one path, or a part is to be an attribute that
            every module of Flax has.
    """
    root = Part("")
    for path, constructor in constructors:
        node = root
        keys = path.split("/")
        if len(keys) > 1 and "" in keys:
            raise SourceError(f"a part at {path!r} cannot be written: give it a name, which is empty now")
        if taken := [key for key in keys if hasattr(nnx.Module, key)]:
            raise SourceError(
                f"{path} cannot be written: {taken[0]} is an attribute of every nnx.Module. Give it another name"
            )
        for depth, key in enumerate(keys):
            node = node.children.setdefault(key, Part("/".join(keys[: depth + 1])))
            if node.constructor is not None:
                raise SourceError(f"{path} cannot be written: {node.path} is an array by itself. Give it another name")
        if node.children:
            raise SourceError(f"{path} cannot be written: others lie below it. Give it another name")
        node.constructor = constructor
    return root
