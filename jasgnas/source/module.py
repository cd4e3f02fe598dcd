"""The source of a module: its imports, its classes, their constructors and what they compute."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from jasgnas.errors import SourceError
from jasgnas.source.body import BodyWriter, wrapped
from jasgnas.source.expression import ATOM, Expression
from jasgnas.source.primitives import dtype_text
from jasgnas.source.recognised import Mode, Recognised
from jasgnas.source.sizes import sizes_of
from jasgnas.source.tree import Constructor, Part, is_name, tree_of

_IMPORTS = {
    "jax": "import jax",
    "jnp": "import jax.numpy as jnp",
    "np": "import numpy as np",
    "nnx": "from flax import nnx",
}


def module_source(found: Recognised) -> str:
    """Returns the source of a network."""
    root = tree_of(_constructors(found).items())
    lines = ["class Network(nnx.Module):", '    """A network."""', ""]
    bodies = [_body(found, mode, root) for mode in (found.inference, found.training)]
    arguments = ", ".join(_argument_names(found).values())
    init = ["def __init__(self, *, rngs: nnx.Rngs):"]
    init += [f"    {line}" for key, part in root.children.items() for line in wrapped(_assignment(key, part), 4)]
    if bodies[0] == bodies[1]:
        methods = [[f"def __call__(self, {arguments}):", *bodies[0]]]
    else:
        init.append("        self.deterministic = False")
        methods = [
            [
                f"def __call__(self, {arguments}):",
                f"    return self.infer({arguments}) if self.deterministic else self.train_step({arguments})",
            ],
            [f"def infer(self, {arguments}):", *bodies[0]],
            [f"def train_step(self, {arguments}):", *bodies[1]],
        ]
    for method in ([line if i == 0 else line for i, line in enumerate(init)], *methods):
        lines += [f"    {method[0]}", *(f"    {line}" if method is not init else line for line in method[1:]), ""]
    text = "\n".join(lines)
    used = [line for name, line in _IMPORTS.items() if re.search(rf"\b{name}\.", text)]
    return '"""Written by jasgnas."""\n\n' + "\n".join(used) + "\n\n\n" + text.rstrip() + "\n"


def _constructors(found: Recognised) -> dict[str, Constructor]:
    """Returns what makes each layer, and each variable that belongs to none."""
    constructors = dict(found.layers)
    for leaf in found.network.leaves:
        path = leaf.path
        if path.rpartition("/")[0] in found.layers:
            continue
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = "jax.random.key(0)" if not leaf.shape else f"jax.random.split(jax.random.key(0), {leaf.shape})"
        else:
            dtype = "" if leaf.dtype == jax.numpy.float32 else f", {dtype_text(leaf.dtype)}"
            value = f"jnp.zeros({leaf.shape}{dtype})"
        name = "nnx.Param" if leaf.trainable else "nnx.Variable"
        constructors[path] = Constructor(name, (("", value),), rngs=False)
    return constructors


def _assignment(key: str, part: Part) -> str:
    return f"self.{key} = {_made(part)}" if is_name(key) else f'setattr(self, "{key}", {_made(part)})'


def _made(part: Part) -> str:
    """Returns what makes a part."""
    if part.constructor is not None:
        return part.constructor.text()
    if part.is_list:
        keys = list(map(int, part.children))
        texts = [_made(child) for child in part.children.values()]
        if keys == list(range(len(keys))):
            return f"nnx.List([{', '.join(texts)}])"
        return f"nnx.data({{{', '.join(f'{key}: {text}' for key, text in zip(keys, texts, strict=True))}}})"
    if all(map(is_name, part.children)):
        return f"nnx.Dict({', '.join(f'{key}={_made(child)}' for key, child in part.children.items())})"
    return f"nnx.Dict({{{', '.join(f'{key!r}: {_made(child)}' for key, child in part.children.items())}}})"


def _argument_names(found: Recognised) -> dict[int, str]:
    """Returns the names of the arrays among the arguments, by variable."""
    number = len(found.network.leaves)
    variables = found.inference.flow.program.inputs[number:]
    return {var: f"x{i}" if len(variables) > 1 else "x" for i, var in enumerate(variables)}


def _body(found: Recognised, mode: Mode, root: Part) -> list[str]:
    flow = mode.flow
    leaves = {var: Expression(f"{root.access(path)}[...]", ATOM) for var, path in flow.paths.items()}
    names = _argument_names(found)
    names = dict(zip(flow.program.inputs[len(found.network.leaves) :], names.values(), strict=True))
    sizes = {"batch": "batch"}
    writer = BodyWriter(leaves, root.access, sizes)
    lines, results = writer.lines(mode.steps, names, (*flow.outputs, *flow.changed.values()))
    number = len(flow.outputs)
    for path, value in zip(flow.changed, results[number:], strict=True):
        lines.append(f"{root.access(path)}[...] = {value.text}")
    lines.append(f"return {_tree_text(mode.traced.out_tree, results[:number])}")
    first = next(
        (
            name
            for name, aval in zip(names.values(), found.network.call.arrays, strict=True)
            if sizes_of(tuple(aval.shape))
        ),
        None,
    )
    if any("batch" in line for line in lines):
        lines.insert(0, f"batch = {first}.shape[0]")
    return [text for line in lines for text in wrapped(line, 4)]


class _Text(str):
    """A text that is its own representation."""

    def __repr__(self) -> str:
        return str(self)


def _tree_text(tree: Any, results: Sequence[Expression]) -> str:
    """Returns a pytree of results as Python writes it."""
    outputs = jax.tree.unflatten(tree, [_Text(result.text) for result in results])
    for node in jax.tree.leaves(outputs, is_leaf=lambda node: type(node) not in (dict, list, tuple)):
        if type(node) is not _Text and node is not None:
            raise SourceError(
                f"outputs in a {type(node).__name__} cannot be written: return dictionaries, lists or tuples"
            )
    return repr(outputs)
