"""The parts of a network by path: layers, variables, and what holds them."""

import keyword
from collections.abc import Iterable
from dataclasses import dataclass, field


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
                text = f'getattr({text}, "{key}")' if node.is_module else f'{text}["{key}"]'
            node = node.children.get(key, Part(""))
        return text


def is_name(key: str) -> bool:
    """Tells whether a key can be the name of an attribute."""
    return key.isidentifier() and not keyword.iskeyword(key)


def tree_of(constructors: Iterable[tuple[str, Constructor]]) -> Part:
    """Puts layers and variables into the tree of their paths."""
    root = Part("")
    for path, constructor in constructors:
        node = root
        keys = path.split("/")
        for depth, key in enumerate(keys):
            node = node.children.setdefault(key, Part("/".join(keys[: depth + 1])))
        node.constructor = constructor
    return root
