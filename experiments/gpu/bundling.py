"""Collects what a machine with a GPU and without a network lacks: `python -m experiments.bundle_gpu FOLDER`.

The folder holds code, wheels and the files of the data sets, and a script that runs `experiments.gpu` from there
alone. The machine must have Python and jax for its device.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import tyro
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from experiments.common.errors import ConfigError, OutputError
from experiments.common.files import write_atomically

WITH_JAX = ("jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "opt-einsum")
"""Packages that a machine with jax has."""

_EXTRA = "experiments"
_UNUSED = ("tensorflow-datasets",)
"""Packages of that extra that the command does not need there: the data sets come as they are published."""

_CODE = ("jasgnas", "models", "experiments")
_PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)) + (
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
_SCRIPT = """\
#!/usr/bin/env bash
# Runs the command from this folder alone; arguments are those of `python -m experiments.gpu`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ ! -d "$here/site" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$here/site" "$here"/wheels/*.whl
fi
export PYTHONPATH="$here/code:$here/site" PYTHONUNBUFFERED=1
exec "$python" -m experiments.gpu --files "$here/data" "$@"
"""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Collects the code, wheels and data sets that `experiments.gpu` needs on a machine without a network."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where to put them; it must not be there yet."""
    data: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Files of the data sets by name, such as `fashion_mnist FOLDER cifar10 TAR`."""
    python: str = "3.12"
    """Version of that machine's Python, on Linux and x86-64."""
    also: tuple[str, ...] = ()
    """Further packages by name and version, such as `analog-nasbench==0.1.3`, without what they need in turn."""
    present: Path | None = None
    """File with the packages that are there, as `pip freeze` prints them; by default those that jax brings along."""


def run(config: Bundle) -> None:
    """Makes the folder.

    Raises:
        ConfigError: the folder is there, or files of a data set are not.
        OutputError: a wheel could not be had.
    """
    if config.folder.exists():
        raise ConfigError(f"{config.folder} is there already: give a new folder")
    for name, path in config.data.items():
        if not path.exists():
            raise ConfigError(f"{name} {path}: expected the folder or tar of the data set's files, and it is not there")
    present: set[str] = {canonicalize_name(name) for name in WITH_JAX}
    if config.present is not None:
        present |= set(_frozen(config.present.read_text()))
    folder = config.folder / "wheels"
    folder.mkdir(parents=True)
    wanted = _installed(sorted(set(needed("jasgnas", _EXTRA, config.python)) - present))
    _download([*wanted, *config.also], config.python, folder)
    root = Path(__file__).parents[2]
    for name in _CODE:
        shutil.copytree(
            root / name, config.folder / "code" / name, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    (config.folder / "data").mkdir()
    for name, path in config.data.items():
        target = config.folder / "data" / (name + "".join(path.suffixes if path.is_file() else ()))
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
    script = config.folder / "run.sh"
    write_atomically(script, _SCRIPT)
    script.chmod(0o755)
    size = sum(path.stat().st_size for path in config.folder.rglob("*") if path.is_file())
    print(f"{config.folder}: {size / 1e6:.1f} MB, of which {len(list(folder.iterdir()))} wheels. Run {script} there")


def needed(package: str, extra: str, python: str) -> Iterator[str]:
    """Yields the names of all packages that an extra of a package needs, as what is installed here says.

    Args:
        package: the package.
        extra: its extra.
        python: version of the Python that they are needed for.
    """
    waiting, seen = [Requirement(f"{package}[{extra}]")], set()
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    while waiting:
        wanted = waiting.pop()
        for extra in {"", *wanted.extras}:
            key = canonicalize_name(wanted.name), extra
            if key in seen or key[0] in _UNUSED:
                continue
            seen.add(key)
            if not extra and key[0] != package:
                yield key[0]
            for text in requires(wanted.name) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate(environment | {"extra": extra}):
                    waiting.append(requirement)


def _frozen(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if found := re.match(r"[A-Za-z0-9][\w.-]*", line):
            yield canonicalize_name(found[0])


def _installed(names: list[str]) -> list[str]:
    """Returns the names with the versions that are installed here."""
    try:
        return [f"{name}=={version(name)}" for name in names]
    except PackageNotFoundError as error:
        raise OutputError(f"{error} is not installed here: `pip install -e '.[{_EXTRA}]'`") from None


def _download(wanted: list[str], python: str, folder: Path) -> None:
    """Fetches wheels."""
    if not wanted:
        return
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", python, *platforms, *wanted]
    if subprocess.run(command, check=False).returncode:
        raise OutputError(f"not all wheels for Python {python} could be had, see above")
