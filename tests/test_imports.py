"""The rooms of the library stand in the order of the data: each imports only from those before it."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import jasgnas

LIBRARY = Path(jasgnas.__file__).parent
HELPERS = ("errors", "checks", "pytree", "collector", "versions")
ROOMS = ("program", "rules", "bridge", "graph", "space", "gates", "optimizer", "subnet", "pages", "source", "saved")
ORDER = (*HELPERS, *ROOMS, "__init__", "cli", "__main__")
# How search spaces and sub-networks show themselves is the one thing that is known only later: the methods import it
# when they are called.
DISPLAY = {
    ("space/search.py", "_repr_html_", "pages"),
    ("space/search.py", "_repr_svg_", "pages"),
    ("bridge/base.py", "_repr_svg_", "pages"),
}


def imports(node, function=None):
    """Finds what is imported from the library, for type checkers too, and the function in which it is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert not child.level
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            yield from imports(child, child.name if isinstance(child, ast.FunctionDef) else function)
            continue
        for package, *rest in (name.split(".") for name in names):
            if package == "jasgnas":
                yield function, rest[0] if rest and rest[0] in ORDER else "__init__"


def test_no_public_name_is_also_a_module():
    assert not [name for name in jasgnas.__all__ if importlib.util.find_spec(f"jasgnas.{name}")]


def test_every_room_imports_only_from_those_before_it():
    against = set()
    for path in LIBRARY.rglob("*.py"):
        module = path.relative_to(LIBRARY)
        room = module.parts[0].removesuffix(".py")
        for function, imported in imports(ast.parse(path.read_text())):
            if ORDER.index(imported) > ORDER.index(room):
                against.add((module.as_posix(), function, imported))
    assert against == DISPLAY


def test_flax_is_loaded_by_those_who_use_it():
    code = "import jasgnas, sys; sys.exit('flax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=LIBRARY.parent)
