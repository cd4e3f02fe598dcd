"""What each cell of a finished run of DARTS computes: `python -m experiments.genotype runs/darts-8-stl10-gated`.

It is read off the groups that the run has removed, printed as papers print genotypes, and drawn.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

import jasgnas
from experiments.common.cli import parse, run_command
from experiments.common.errors import ConfigError
from experiments.engine.networks import create_module
from experiments.engine.runs import GENOTYPE, Finished, arrays_of, read_finished
from models.darts import Darts, Node

_GATES = "gates/"
"""What the paths of gates begin with."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Reads the genotype of every cell off a finished run of a DARTS network, prints and draws it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Output folder of the run."""
    drawing: Path | None = None
    """File of the drawing, SVG or PNG by its name; by default genotype.svg in the folder."""


def genotype(run: Finished) -> tuple[tuple[Node, ...], ...]:
    """Returns the nodes of each cell that is left.

    Raises:
        ConfigError: the network of the run is no DARTS network.
    """
    config, record = run.config, run.record
    model = dataclasses.replace(config.model, gated=False, ungated=())
    network = create_module(dataclasses.replace(config, model=model), record.num_classes, record.image_shape)
    if not isinstance(network, Darts):
        raise ConfigError(
            f"the network {config.model.name} has no cells: a genotype is read off runs of DARTS networks"
        )
    removed = {path for index in record.removed for path in run.space.groups[index].paths}
    # Gates that stay are held at one, and no part of the sub-network either.
    gone = {
        path.removeprefix(_GATES)
        for path in arrays_of(run.module)
        if path not in run.arrays and (path in removed or not path.startswith(_GATES))
    }
    return network.cells_without(gone)


def in_words(nodes: tuple[Node, ...]) -> str:
    """Returns a cell as text: for each node its operations and the states that they take, 0 and 1 the cell's inputs."""
    sums = (" + ".join(f"{name}({source})" for name, source in node) or "nothing" for node in nodes)
    return "; ".join(f"{number} = {each}" for number, each in enumerate(sums, 2))


def run(command: Command) -> None:
    """Prints the genotype, and draws the sub-network."""
    finished = read_finished(command.folder)
    for index, nodes in enumerate(genotype(finished)):
        print(f"cell {index}: {in_words(nodes)}", flush=True)
    path = command.drawing or command.folder / GENOTYPE
    jasgnas.draw(finished.space, finished.record.removed, path, view="subnet")
    print(f"Drawn in {path}")


def main() -> None:
    """Does what the command line asks for."""
    run_command(lambda: run(parse(Command, "genotype")))


if __name__ == "__main__":
    main()
