"""Data sets as batches of uint8 images: TFDS copies or embedded digits, augmented on the host, fed by Grain.

`datasets.py` opens data sets by name, `images.py` decodes and resizes single images, `augment.py` changes batches of
them, and `pipeline.py` puts them in order. `prepare.py` makes the copies from files that `raw.py` reads.
"""

from experiments.data.augment import Augmentation
from experiments.data.datasets import Dataset, open_dataset
from experiments.data.pipeline import Batch, EvalBatches, Shard, TrainBatches

__all__ = ["Augmentation", "Batch", "Dataset", "EvalBatches", "Shard", "TrainBatches", "open_dataset"]
