"""Which classes a network is written in: parts that compute the same share one, and differ in its arguments."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jasgnas.source.norms import NARROW_NORMS
from jasgnas.source.tree import Constructor, Part, is_name, quoted


@dataclass(frozen=True)
class Parameter:
    """An argument of a constructor of a class.

    Attributes:
        name: its name.
        kind: its type as an annotation.
        default: the text of its default, empty for none.
    """

    name: str
    kind: str
    default: str = ""

    @property
    def text(self) -> str:
        """How it is declared."""
        declared = f"{self.name}: {self.kind}" if self.kind else self.name
        return declared + (
            f" = {self.default}" if self.default and self.kind else f"={self.default}" if self.default else ""
        )


@dataclass(eq=False)
class Class:
    """A class of modules.

    Attributes:
        name: its name.
        parts: the parts of the network that it makes.
        parameters: what its constructor takes, beside random streams.
        init: lines of its constructor.
        body: lines of its call, with the declaration.
        doc: its docstring.
    """

    name: str
    parts: list[Part]
    parameters: list[Parameter] = field(default_factory=list)
    init: list[str] = field(default_factory=list)
    body: tuple[str, ...] = ()
    doc: str = ""


@dataclass(frozen=True)
class _Slot:
    """An argument of a layer or part, somewhere in a part.

    Attributes:
        path: the layer or part, from the part that is made.
        name: the name of the argument.
    """

    path: str
    name: str


def _signature(name: str) -> dict[str, Any]:
    """Returns the parameters of a constructor of Flax, or of one of the narrow norms, by name."""
    found = NARROW_NORMS.get(name) or getattr(nnx, name.removeprefix("nnx."), None)
    if found is None or name in ("nnx.Param", "nnx.Variable"):
        return {}
    return {key: parameter for key, parameter in inspect.signature(found.__init__).parameters.items() if key != "self"}


class ClassMaker:
    """Finds classes, from the smallest parts to the whole.

    Attributes:
        classes: the classes, in the order in which they are defined.
    """

    def __init__(self) -> None:
        """Starts without classes."""
        self.classes: list[Class] = []
        self._declared: dict[str, list[Parameter]] = {}

    def add(self, parts: Sequence[Part], name: str, body: Sequence[str]) -> None:
        """Has some parts be made by one class.

        Args:
            parts: parts that compute the same, whose own parts have constructors.
            name: what the class is to be called.
            body: lines of its call.
        """
        taken = {each.name for each in self.classes} | set(NARROW_NORMS)
        name = next(text for text in (name, *(f"{name}{number}" for number in range(2, 1000))) if text not in taken)
        values = [dict(self._slots(part)) for part in parts]
        slots = list(dict.fromkeys(slot for each in values for slot in each))
        columns = {slot: tuple(each.get(slot, self._default(parts[0], slot)) for each in values) for slot in slots}
        names: dict[tuple[str, ...], Parameter] = {}
        for slot, column in columns.items():
            if len(set(column)) > 1 and column not in names:
                names[column] = self._parameter(slot, column, names.values(), parts[0])
        texts = {slot: names[column].name if column in names else column[0] for slot, column in columns.items()}
        new = Class(name, list(parts), sorted(names.values(), key=lambda each: bool(each.default)), body=tuple(body))
        for key, child in parts[0].children.items():
            text = self._made(child, key, texts)
            new.init.append(f"self.{key} = {text}" if is_name(key) else f"setattr(self, {quoted(key)}, {text})")
        self.classes.append(new)
        self._declared[name] = new.parameters
        for part, row in zip(parts, zip(*columns.values(), strict=True) if columns else [()] * len(parts), strict=True):
            own = dict(zip(columns, row, strict=True))
            by_name = {names[column].name: own[slot] for slot, column in columns.items() if column in names}
            arguments = []
            for parameter in new.parameters:
                value = by_name[parameter.name]
                if not parameter.default:
                    arguments.append(("", value))
                elif value != parameter.default:
                    arguments.append((parameter.name, value))
            part.constructor = Constructor(name, tuple(arguments), rngs=True)

    def _slots(self, part: Part, path: str = "") -> Iterator[tuple[_Slot, str]]:
        """Yields the arguments of everything that a part is made of."""
        for key, child in part.children.items():
            inner = f"{path}/{key}".strip("/")
            if child.constructor is None:
                yield from self._slots(child, inner)
                continue
            for name, value in self._named(child.constructor):
                yield _Slot(inner, name), value

    def _named(self, constructor: Constructor) -> list[tuple[str, str]]:
        """Returns the arguments of a constructor with the names of positional ones."""
        names = [parameter.name for parameter in self._declared.get(constructor.name, [])] or list(
            _signature(constructor.name)
        )
        names += [f"value{index}" if index else "value" for index in range(len(constructor.arguments))][len(names) :]
        return [(name or names[index], value) for index, (name, value) in enumerate(constructor.arguments)]

    def _default(self, part: Part, slot: _Slot) -> str:
        """Returns the default of an argument."""
        node = part
        for key in slot.path.split("/"):
            node = node.children[key]
        assert node.constructor is not None
        for parameter in self._declared.get(node.constructor.name, ()):
            if parameter.name == slot.name:
                return parameter.default
        return _default_text(node.constructor.name, slot.name)

    def _parameter(self, slot: _Slot, column: tuple[str, ...], others: Iterable[Parameter], part: Part) -> Parameter:
        taken = {other.name for other in others}
        *_, key = slot.path.split("/")
        owner = key if is_name(key) else re.sub(r"\W", "_", f"part_{key}")
        names = (slot.name, f"{owner}_{slot.name}", *(f"{owner}_{slot.name}{number}" for number in range(2, 1000)))
        default = self._default(part, slot)
        return Parameter(
            next(name for name in names if name not in taken and name.isidentifier()),
            _kind(column),
            default if default in column else "",
        )

    def _made(self, part: Part, path: str, texts: dict[_Slot, str]) -> str:
        """Returns what makes a part, with names in the places of what differs between the parts of a class."""
        if part.constructor is not None:
            named = self._named(part.constructor)
            own = {slot.name: text for slot, text in texts.items() if slot.path == path}
            positional = sum(1 for name, _ in part.constructor.arguments if not name)
            arguments = [("", own[name]) for name, _ in named[:positional]]
            for name, text in own.items():
                is_default = text == self._default(Part("", {"part": part}), _Slot("part", name))
                if name not in {name for name, _ in named[:positional]} and not is_default:
                    arguments.append((name, text))
            return Constructor(part.constructor.name, tuple(arguments), part.constructor.rngs).text()
        made = {key: self._made(child, f"{path}/{key}", texts) for key, child in part.children.items()}
        if part.is_list:
            if list(map(int, made)) == list(range(len(made))):
                return f"nnx.List([{', '.join(_runs(list(made.values())))}])".replace("[*(", "[*(")
            return f"nnx.data({{{', '.join(f'{key}: {text}' for key, text in made.items())}}})"
        if all(map(is_name, made)):
            return f"nnx.Dict({', '.join(f'{key}={text}' for key, text in made.items())})"
        return f"nnx.Dict({{{', '.join(f'{quoted(key)}: {text}' for key, text in made.items())}}})"


def _runs(texts: list[str]) -> list[str]:
    """Returns the items of a list, those that are equal and follow each other as one expression."""
    found: list[tuple[str, int]] = []
    for text in texts:
        if found and found[-1][0] == text:
            found[-1] = (text, found[-1][1] + 1)
        else:
            found.append((text, 1))
    if len(found) == 1 and found[0][1] > 1:
        return [f"{found[0][0]} for _ in range({found[0][1]})"]
    parts: list[str] = []
    for text, number in found:
        parts += [text] * number if number < 3 else [f"*({text} for _ in range({number}))"]
    return parts


def _default_text(constructor: str, name: str) -> str:
    parameter = _signature(constructor).get(name)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return ""
    return repr(parameter.default).replace("'", '"')


def _kind(column: Sequence[str]) -> str:
    """Returns the type of texts of values."""
    kinds = set()
    for text in column:
        if text in ("True", "False"):
            kinds.add("bool")
        elif re.fullmatch(r"-?\d+", text):
            kinds.add("int")
        elif re.fullmatch(r"-?[\d.]+(e-?\d+)?", text):
            kinds.add("float")
        elif text.startswith('"'):
            kinds.add("str")
        elif text.startswith("("):
            kinds.add("tuple")
        else:
            return ""
    order = ("int", "float", "bool", "str", "tuple")
    return " | ".join(kind for kind in order if kind in kinds)
