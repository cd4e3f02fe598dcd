"""The command `jasgnas`: looks at a model that a user's own code makes, and converts saved networks to ONNX."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jasgnas
from jasgnas.bridge import flavour_of, is_module
from jasgnas.errors import JasgnasError
from jasgnas.pages.page import report
from jasgnas.saved.onnx import export_onnx
from jasgnas.space.search import SearchSpace, search_space

_EPILOG = """\
FACTORY is a class or function, called without arguments or, where it has a parameter of that name, with
rngs=nnx.Rngs(0). What it returns, or what stands there itself, is one of

  an nnx.Module
  a Linen module, which is then initialised abstractly; or (module, variables)
  (fn, params), called as fn(params, *inputs)

example: jasgnas inspect my_package.models:ResNet --input 1,32,32,3
"""


class _UsageError(Exception):
    """The command line names something that is not there."""


class _ModelError(Exception):
    """The user's own code failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: those of the command line by default.

    Returns:
        The exit code: 0, 1 where the model cannot be made or searched, 2 where the command line is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (JasgnasError, _UsageError, _ModelError, OSError) as error:
        print(f"jasgnas: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, _UsageError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jasgnas", description="Automatic erasing of network structures in JAX.")
    parser.add_argument("--version", action="version", version=f"jasgnas {jasgnas.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_inspect(commands)
    _add_onnx(commands)
    return parser


def _add_onnx(commands: Any) -> None:
    command = commands.add_parser(
        "onnx",
        help="convert a saved network to ONNX",
        description="Converts a network that jasgnas.save has written to ONNX, and compares outputs in onnxruntime. It "
        "runs the model.py of the folder, and needs jasgnas[onnx].",
    )
    command.add_argument("folder", metavar="FOLDER", type=Path, help="what jasgnas.save has written")
    command.add_argument("--output", metavar="FILE", type=Path, help="file to write (default: FOLDER.onnx)")
    command.set_defaults(run=_onnx)


def _onnx(options: argparse.Namespace) -> None:
    output = options.output or Path(f"{options.folder}.onnx")
    difference = export_onnx(options.folder, output)
    print(f"{output}: {output.stat().st_size / 2**20:.2f} MiB, largest difference {difference:.2g} in onnxruntime")


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="print what may be removed from a model, and write a report",
        description="Prints what may be removed from a model of your own, and writes a report for the browser.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("factory", metavar="MODULE:FACTORY", help="what makes the model")
    command.add_argument(
        "--input",
        metavar="SHAPE",
        type=_shape,
        action="append",
        required=True,
        help="shape of an example input, as in 1,32,32,3; once for each input",
    )
    command.add_argument(
        "--dtype",
        metavar="DTYPE",
        type=_dtype,
        action="append",
        default=[],
        help="dtype of an input; once for each, or once for all (default: float32)",
    )
    command.add_argument(
        "--keep", metavar="PATTERN", action="append", default=[], help="parameter paths that must stay, as in 'head/*'"
    )
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="further argument of the call, as in train=False",
    )
    output = command.add_mutually_exclusive_group()
    output.add_argument(
        "--report", metavar="FILE", type=Path, default=Path("report.html"), help="file to write (default: report.html)"
    )
    output.add_argument("--no-report", action="store_true", help="print the table alone")
    command.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    space = _space(options)
    print(space)
    if not options.no_report:
        print(f"Report in {report(space, path=options.report, title=options.factory)}")


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(",") if size)
    except ValueError:
        shape = (0,)
    if min(shape, default=0) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; give positive integers, as in 1,32,32,3")
    return shape


def _dtype(text: str) -> Any:
    try:
        return jnp.dtype(text)
    except TypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no dtype; try float32, bfloat16 or int32") from None


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    for convert in ({"True": True, "False": False, "None": None}.__getitem__, int, float):
        with suppress(KeyError, ValueError):
            return name, convert(value)
    return name, value


def _space(options: argparse.Namespace) -> SearchSpace:
    dtypes = options.dtype or [jnp.dtype("float32")]
    if len(dtypes) not in (1, len(options.input)):
        raise _UsageError(f"{len(options.input)} inputs were given with {len(dtypes)} dtypes; give one each or one")
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(options.input, cycle(dtypes), strict=False)]
    model = _make_model(options.factory)
    settings = dict(options.set)
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in inputs)
    # Flax and JAX say what does not fit in exceptions of many kinds.
    return _calling(f"the model failed on {shapes}", lambda: _search(model, inputs, options.keep, settings))


def _search(model: Any, inputs: list[Any], keep: list[str], settings: dict[str, Any]) -> SearchSpace:
    if isinstance(model, tuple):
        owner, arrays = model
        given = dict.fromkeys(flavour_of(owner).needs or ("params",), arrays)
    else:
        owner, given = model, flavour_of(model).initial(model, inputs, settings)
    options: dict[str, Any] = {"keep": keep, **given, **settings}
    return search_space(owner, *inputs, **options)


def _make_model(place: str) -> Any:
    model = found = _find(place)
    if callable(found) and not is_module(found):
        model = _calling(f"{place} failed", lambda: found(**_rngs(found)))
    is_pair = isinstance(model, tuple) and len(model) == 2 and callable(model[0])
    if not is_pair and not is_module(model):
        raise _ModelError(
            f"{place} gave {type(model).__name__}; expected an nnx.Module, a Linen module, (module, variables) or "
            "(fn, params)"
        )
    return model


def _rngs(factory: Callable[..., Any]) -> dict[str, Any]:
    """Returns the arguments to call a factory with."""
    try:
        # A module's class is called through its metaclass, which takes anything.
        parameters = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory).parameters
    except ValueError:  # a built-in
        return {}
    return {"rngs": import_module("flax.nnx").Rngs(0)} if "rngs" in parameters else {}


def _find(place: str) -> Any:
    """Returns what a path `package.module:name` names; modules of the current directory are found."""
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise _UsageError(f"{place!r} is not of the form package.module:factory")
    sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _ModelError(f"{module_name} cannot be imported: {error}") from error
        raise _UsageError(f"there is no module {error.name} here or on the Python path") from error
    except Exception as error:  # whatever the user's code raises
        raise _ModelError(f"{module_name} cannot be imported: {_summary(error)}") from error
    finally:
        sys.path.remove("")
    for attribute in name.split("."):
        if not hasattr(found, attribute):
            names = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            raise _UsageError(f"{module_name} has no {name}; it has {', '.join(sorted(names)) or 'nothing'}")
        found = getattr(found, attribute)
    return found


def _calling(what: str, call: Callable[[], Any]) -> Any:
    """Calls the user's code; what it raises becomes one line."""
    try:
        return call()
    except JasgnasError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise _ModelError(f"{what}: {_summary(error)}") from error


def _summary(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
