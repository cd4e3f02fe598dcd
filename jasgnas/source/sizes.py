"""Sizes that are not known beforehand, in the parameters of equations and in the text of expressions."""

import operator
import re
from collections.abc import Mapping
from typing import Any

from jax import export

_SYMBOLIC = type(export.symbolic_shape("batch")[0])
_FUNCTIONS = {"floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min}
_NAMES = {"floordiv": "operator.floordiv", "mod": "operator.mod", "max": "max", "min": "min"}


def is_symbolic(size: Any) -> bool:
    """Tells whether a size is a symbol, or computed from symbols."""
    return isinstance(size, _SYMBOLIC)


def sizes_of(value: Any) -> set[str]:
    """Returns the symbolic sizes, as texts, anywhere in a parameter of an equation."""
    if is_symbolic(value):
        return {str(value)}
    return set().union(*map(sizes_of, value)) if isinstance(value, tuple | list) else set()


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """Returns a parameter of an equation with numbers in the places of symbols."""
    if is_symbolic(value):
        return int(eval(str(value).replace("^", "**"), dict(_FUNCTIONS), dict(sizes)))
    if isinstance(value, tuple | list):
        items = [concrete(item, sizes) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def size_text(size: Any) -> str:
    """Returns a size as a text in which symbols are places for their values, as `784 * {batch}`."""
    if not is_symbolic(size):
        return str(int(size))
    text = re.sub(r"[A-Za-z_]\w*", lambda name: _NAMES.get(name[0], f"{{{name[0]}}}"), str(size))
    return text.replace("*", " * ").replace("^", "**")
