"""The source of a module: its imports, its classes, their constructors and what they compute."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from jasgnas.errors import SourceError
from jasgnas.program.jaxpr import key_implementation
from jasgnas.source.body import BodyWriter, wrapped
from jasgnas.source.classes import Class, ClassMaker
from jasgnas.source.expression import ATOM, Expression
from jasgnas.source.flow import Flow
from jasgnas.source.norms import SOURCES
from jasgnas.source.parts import Bodies, Body
from jasgnas.source.primitives import dtype_text
from jasgnas.source.recognised import Recognised
from jasgnas.source.sizes import is_symbolic
from jasgnas.source.tree import Constructor, Part, is_name, quoted, tree_of

_IMPORTS = {
    "operator": "import operator\n",
    "jax": "import jax",
    "jnp": "import jax.numpy as jnp",
    "nnx": "from flax import nnx",
}


def module_source(found: Recognised) -> str:
    """Returns the source of a network."""
    root = _tree(found)
    arguments = _arguments(found)
    flat = [_method(found, root, flow, _whole(flow, found), arguments) for flow in (found.inference, found.training)]
    maker = ClassMaker()
    if flat[0] == flat[1]:
        flow = found.inference
        _add_classes(found, root, flow, maker)
        maker.classes[-1].body = (f"def __call__({_declared(arguments)}):", _doc(found), *maker.classes[-1].body)
    else:
        maker.add([root], _name(found, root), ())
        names = ", ".join(["self", *arguments])
        given = ", ".join(arguments)
        maker.classes[-1].init.append("self.deterministic = False")
        maker.classes[-1].body = (
            f"def __call__({_declared(arguments)}):",
            _doc(found),
            f"    return self.infer({given}) if self.deterministic else self.train_once({given})",
            "",
            f"def infer({names}):",
            '    """Computes in inference mode."""',
            *flat[0],
            "",
            f"def train_once({names}):",
            '    """Computes in training mode."""',
            *flat[1],
        )
    return _file(found, maker.classes)


def _tree(found: Recognised) -> Part:
    """Returns the parts of a network, in the order in which they are used."""
    order: dict[str, int] = {}
    for position, step in enumerate(found.inference.steps):
        for path in (step.layer, *(found.inference.paths.get(var, "") for var in step.variables)):
            order.setdefault(path, position)
    root = tree_of(_constructors(found).items())
    root.is_module = True

    def sort(part: Part) -> int:
        first = {key: sort(child) for key, child in part.children.items()}
        numeric = part.is_list
        keys = sorted(first, key=lambda key: (int(key), 0) if numeric else (first[key], 0))
        part.children = {key: part.children[key] for key in keys}
        return min([*first.values(), order.get(part.path, len(order) + 10**6)])

    sort(root)
    return root


def _constructors(found: Recognised) -> dict[str, Constructor]:
    """Returns what makes each layer, and each variable that belongs to none."""
    constructors = dict(found.layers)
    for leaf in found.leaves:
        path = leaf.path
        if path.rpartition("/")[0] in found.layers:
            continue
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = f'jax.random.key(0, impl="{key_implementation(leaf.dtype)}")'
            value = key if not leaf.shape else f"jax.random.split({key}, {leaf.shape})"
        else:
            dtype = "" if leaf.dtype == jax.numpy.float32 else f", {dtype_text(leaf.dtype)}"
            value = f"jnp.zeros({leaf.shape}{dtype})"
        name = "nnx.Param" if leaf.trainable else "nnx.Variable"
        constructors[path] = Constructor(name, (("", value),), rngs=False)
    return constructors


def _arguments(found: Recognised) -> dict[str, tuple[int, ...]]:
    """Returns the arguments by name, with the positions of their arrays among all; those without arrays are fixed."""
    arguments: dict[str, list[int]] = {}
    names = found.network.argument_names
    for position, path in enumerate(found.network.call.paths):
        first = path.partition("/")[0]
        if first.isdecimal():
            first = names[int(first)] if int(first) < len(names) else f"x{first}"
        arguments.setdefault(first, []).append(position)
    taken = set(arguments)
    return {_argument_name(name, taken): tuple(positions) for name, positions in arguments.items()}


def _argument_name(name: str, taken: set[str]) -> str:
    """Returns what an argument is called: as in the network, or another name where that is none for a method's."""
    if is_name(name) and name != "self":
        return name
    return _unused(("x", *(f"x{number}" for number in range(2, 1000))), taken)


def _unused(names: Iterable[str], taken: set[str]) -> str:
    """Returns the first of some names that is not taken, and takes it."""
    name = next(each for each in names if each not in taken)
    taken.add(name)
    return name


def _declared(arguments: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(["self", *arguments])


def _array_texts(found: Recognised, arguments: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns how each array among the arguments is got at."""
    texts = [""] * len(found.network.call.paths)
    for name, positions in arguments.items():
        for position in positions:
            texts[position] = name + "".join(map(_index_text, found.network.call.keys[position][2:]))
    return texts


def _index_text(key: Any) -> str:
    """Returns how what is below a node of a pytree is got at."""
    match key:
        case SequenceKey(idx=index):
            return f"[{index}]"
        case GetAttrKey(name=name):
            return f".{name}"
        case DictKey(key=str(name)):
            return f"[{quoted(name)}]"
        case DictKey(key=int(number)):
            return f"[{number}]"
    raise SourceError(f"an input under the key {key} of a container cannot be written: give dictionaries or tuples")


def _whole(flow: Flow, found: Recognised) -> Body:
    inputs = flow.program.inputs[len(found.leaves) :]
    return Body(inputs, (*flow.outputs, *flow.changed.values()), tuple(flow.steps))


def _method(
    found: Recognised, part: Part, flow: Flow, body: Body, arguments: dict[str, tuple[int, ...]] | None
) -> list[str]:
    """Returns the lines of what a part computes.

    Args:
        found: the network.
        part: the part.
        flow: the steps of the network.
        body: what the part computes.
        arguments: the arguments of the network, None for a part of it.
    """
    leaves = {
        var: Expression(f"{part.access(path)}[...]", ATOM) for var, path in flow.paths.items() if _is_below(path, part)
    }
    lines: list[str] = []
    sizes = {str(size): str(size) for aval in found.network.call.avals for size in aval.shape if is_symbolic(size)}
    if arguments is None:
        texts = list(_argument_names(len(body.inputs)))
    else:
        texts = _array_texts(found, arguments)
        taken = {*arguments, *sizes}
        for position, text in enumerate(texts):
            if not is_name(text) or text in sizes:
                first = f"x{position}" if len(texts) > 1 else "x"
                texts[position] = _unused((first, *(f"x{number}" for number in range(1000))), taken)
                lines.append(f"{texts[position]} = {text}")
    names = dict(zip(body.inputs, texts, strict=True))
    writer = BodyWriter(leaves, part.access, lambda items: _loop_of(part, items), sizes)
    written, results = writer.lines(body.steps, names, body.outputs)
    for size in sizes:
        if any(re.search(rf"\b{size}\b", line) for line in (*written, *(result.text for result in results))):
            place = next(
                f"{names[var]}.shape[{axis}]"
                for var in body.inputs
                for axis, own in enumerate(flow.aval(var).shape)
                if str(own) == size
            )
            lines.append(f"{size} = {place}")
    lines += written
    number = len(flow.outputs) if arguments is not None else len(results)
    stored = [
        f"{part.access(path)}[...] = {value.text}" for path, value in zip(flow.changed, results[number:], strict=False)
    ]
    lines += stored
    if arguments is None:
        lines.append(f"return {', '.join(result.text for result in results)}")
    else:
        lines.append(f"return {_tree_text(found.network.inference.out_tree, results[:number])}")
    return [text for line in lines for text in wrapped(line.strip(), 4 + len(line) - len(line.lstrip()), 116)]


def _is_below(path: str, part: Part) -> bool:
    return not part.path or path.startswith(f"{part.path}/")


def _argument_names(number: int) -> Sequence[str]:
    return ("x", "y", "z", "u", "v", "w")[:number] if number <= 6 else [f"x{index}" for index in range(number)]


def _loop_of(part: Part, items: Sequence[str]) -> tuple[str, str]:
    """Returns the first line of a loop over items of a list, and what each of them is called in it."""
    path, _, first = items[0].rpartition("/")
    node = part
    for key in path[len(part.path) :].strip("/").split("/"):
        node = node.children[key]
    text, keys = part.access(path), list(map(int, node.children))
    own = [int(item.rpartition("/")[2]) for item in items]
    name = path.rpartition("/")[2]
    item = single if (single := _singular(name)) != name and is_name(single) and len(single) > 1 else "part"
    is_whole_list = keys == list(range(len(keys)))
    if own == keys:
        return f"for {item} in {text}{'' if is_whole_list else '.values()'}:", item
    if is_whole_list:
        return (
            f"for {item} in {text}[{first if first != '0' else ''}:{own[-1] + 1 if own[-1] != keys[-1] else ''}]:",
            item,
        )
    return f"for index in {tuple(own)}:", f"{text}[index]"


def _add_classes(found: Recognised, root: Part, flow: Flow, maker: ClassMaker) -> None:
    """Finds the modules of a network, and puts those that compute the same into one class, the smallest first."""
    whole = _whole(flow, found)
    bodies = Bodies(flow, root, whole.inputs, whole.outputs)
    levels: dict[int, list[Part]] = {}

    def visit(part: Part) -> int:
        part.is_module = part.path in bodies.of
        below = max([visit(child) for child in part.children.values()], default=-1)
        if part.is_module:
            levels.setdefault(below + 1, []).append(part)
        return below + part.is_module

    visit(root)
    arguments = _arguments(found)
    for level in sorted(levels):
        groups: dict[Any, list[Part]] = {}
        for part in levels[level]:
            body = _method(found, part, flow, bodies.of[part.path], arguments if part is root else None)
            if part is not root:
                names = ", ".join(["self", *_argument_names(len(bodies.of[part.path].inputs))])
                body = [f"def __call__({names}):", *body]
            groups.setdefault((_name(found, part), tuple(body), _structure(part)), []).append(part)
        for (name, body, _), parts in groups.items():
            maker.add(parts, name, body)
            maker.classes[-1].doc = "" if parts == [root] else _described([part.path for part in parts])


def _described(paths: Sequence[str]) -> str:
    named = [path.replace("/", ".") for path in paths]
    return (
        named[0]
        if len(named) == 1
        else f"{', '.join(named[:-1])} and {named[-1]}"
        if len(named) < 5
        else f"{named[0]}, {named[1]} and {len(named) - 2} more, up to {named[-1]}"
    )


def _structure(part: Part) -> Any:
    """Returns what parts of one class must have in common, beside what they compute."""
    if part.constructor is not None:
        return part.constructor.name, sum(1 for name, _ in part.constructor.arguments if not name)
    return tuple((key, _structure(child)) for key, child in part.children.items())


def _name(found: Recognised, part: Part) -> str:
    """Returns what the class of a part is called."""
    name = found.network.model.part_name(found.original.get(part.path, part.path))
    if name and is_name(name) and name not in ("Dict", "List", "SubNetwork"):
        return name
    keys = part.path.split("/")
    # One of several things is called after them: edges/0_1 is an edge, as blocks/3 is a block.
    *_, key = ["network", *(key for key in keys if not key[:1].isdecimal())]
    words = [word for word in re.split(r"\W|_", key or "network") if word]
    name = "".join(word[0].upper() + word[1:] for word in words)
    name = _singular(name) if keys[-1][:1].isdecimal() else name
    return name if is_name(name) else f"Part{name}"


def _singular(name: str) -> str:
    """Returns what one of several things of a name is called."""
    ending = next((each for each in _SINGULAR if name.endswith(each)), "")
    return name.removesuffix(ending) + _SINGULAR.get(ending, "")


_SINGULAR = {"ss": "ss", "ches": "ch", "ies": "y", "s": ""}
"""Endings of names of several things, and of one of them; the first that fits."""


def _doc(found: Recognised) -> str:
    takes = ", ".join(map(_spec, found.network.call.avals))
    returns = ", ".join(_spec(found.inference.aval(atom)) for atom in found.inference.outputs)
    return f'    """Returns {returns} of {takes}."""'


def _spec(aval: Any) -> str:
    return f"{aval.dtype}[{', '.join(map(str, aval.shape))}]"


def _file(found: Recognised, classes: Sequence[Class]) -> str:
    """Returns the whole source."""
    texts = [
        SOURCES[name].rstrip().splitlines()
        for name in SOURCES
        if any(name in line for each in classes for line in each.init)
    ]
    for each in classes:
        declared = [parameter.text for parameter in each.parameters]
        lines = [f"class {each.name}(nnx.Module):"]
        is_root = each is classes[-1]
        number = sum(_size(leaf.shape) for leaf in found.leaves if leaf.trainable)
        doc = f"A network of {number:,} parameters." if is_root else f"What computes {each.doc}."
        lines += wrapped(f'"""{doc}"""', 4, 10**6)
        lines += ["", *wrapped(f"def __init__({', '.join(['self', *declared, '*', 'rngs: nnx.Rngs'])}):", 4)]
        lines += [text for line in each.init for text in wrapped(line, 8)]
        lines += ["", *(f"    {line}" if line else "" for line in each.body)]
        texts.append(lines)
    text = "\n\n\n".join("\n".join(lines) for lines in texts)
    imports = [line for name, line in _IMPORTS.items() if re.search(rf"\b{name}\.", text)]
    return f"{_file_doc(found)}\n\n" + "\n".join(imports) + "\n\n\n" + text + "\n"


def _file_doc(found: Recognised) -> str:
    """Returns the docstring of the file, which says what the written network does not do."""
    summary = "A network as jasgnas.to_source has written it."
    if not found.notes:
        return f'"""{summary}"""'
    # What JAX says may hold what would end the string that it is written into.
    notes = [str(note).replace("\\", "/").replace('"', "'") for note in found.notes]
    texts = [textwrap.fill(f"{note[0].upper()}{note[1:]}.", 120) for note in notes]
    return "\n\n".join([f'"""{summary}', *texts]) + '\n"""'


def _size(shape: Sequence[int]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


class _Text(str):
    """A text that is its own representation."""

    def __repr__(self) -> str:
        return str(self)


def _tree_text(tree: Any, results: Sequence[Expression]) -> str:
    """Returns a pytree of results as Python writes it."""
    outputs = jax.tree.unflatten(tree, [_Text(result.text) for result in results])

    def text(node: Any) -> str:
        match node:
            case _Text() | None:
                return str(node)
            case dict() if type(node) is dict and all(isinstance(key, str) for key in node):
                return f"{{{', '.join(f'{quoted(key)}: {text(value)}' for key, value in node.items())}}}"
            case list() if type(node) is list:
                return f"[{', '.join(map(text, node))}]"
            case tuple() if type(node) is tuple:
                return f"({', '.join(map(text, node))}{',' if len(node) == 1 else ''})"
        raise SourceError(f"outputs in a {type(node).__name__} cannot be written: return dictionaries, lists or tuples")

    return text(outputs)
