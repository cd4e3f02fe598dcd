"""Makes the TFDS copy of a data set: from files at hand without TensorFlow, or from the network with it.

python -m experiments.prepare fashion_mnist --source /usr/share/datasets/fashion-mnist
python -m experiments.prepare imagenet2012 --source /data/imagenet
python -m experiments.prepare cifar10
"""

from experiments.common.cli import parse, run_command
from experiments.data.prepare import Prepare, prepare


def main() -> None:
    """Makes the copy that the command line asks for."""
    config = parse(Prepare, "prepare")
    run_command(lambda: print(f"{config.name} is ready in {prepare(config)}"))


if __name__ == "__main__":
    main()
