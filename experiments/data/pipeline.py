"""Batches in an order that a seed fixes: shuffled, divided among processes, and read ahead and resumed by Grain."""

import dataclasses
import functools
from typing import Any, NamedTuple

import grain.python as grain
import numpy as np
from absl import flags

from experiments.common.errors import DataError
from experiments.data.augment import (
    CHANGE,
    CROP,
    MIX,
    Augmentation,
    augment_images,
    mix_images,
    own_shares,
    uniforms,
)
from experiments.data.datasets import Dataset, Images, RandomCrop

_READ_AHEAD = 4
"""Batches that each worker, or the thread of the main process, prepares before they are asked for."""


class Batch(NamedTuple):
    """Labelled images, as the training step takes them.

    Attributes:
        images: uint8 `[batch, height, width, channels]`.
        labels: int32 `[batch]`; −1 marks padding.
        other_labels: int32 `[batch]`, labels of the images that were mixed in.
        shares: float32 `[batch]`, share of the own label; 1 where nothing was mixed in.
    """

    images: np.ndarray
    labels: np.ndarray
    other_labels: np.ndarray
    shares: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of every batch this process loads.

    Attributes:
        index: number of this process.
        count: number of processes.
    """

    index: int = 0
    count: int = 1


_ALONE = Shard()
_UNCHANGED = Augmentation()


class TrainBatches:
    """Shuffled and augmented batches of several epochs.

    An image's place and changes depend on the seed, the epoch and its index alone, and not on workers or processes;
    only what MixUp and CutMix mix in comes from the same process's part of the batch. Images left over when the
    batch size does not divide the split are skipped; another epoch leaves out others.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        num_steps: int | None = None,
        augmentation: Augmentation = _UNCHANGED,
        workers: int = 0,
        shard: Shard = _ALONE,
    ):
        """Arranges the batches; nothing is loaded yet.

        Args:
            dataset: the data set.
            batch_size: images in a batch, of all processes together.
            seed: decides order and changes.
            epochs: passes over the images.
            num_steps: number of batches, in place of those of all `epochs`.
            augmentation: what is changed.
            workers: processes that prepare batches; 0 prepares them in threads of this one.
            shard: which part of every batch to load.

        Raises:
            DataError: the split is smaller than one batch, or the processes cannot share a batch equally.
        """
        num_images = len(dataset.train)
        if not 1 <= batch_size <= num_images:
            raise DataError(
                f"the batch size is {batch_size}; it must lie between 1 and the {num_images} training images"
            )
        if batch_size % shard.count:
            raise DataError(f"{shard.count} processes cannot share a batch of {batch_size} images equally")
        self.steps_per_epoch = num_images // batch_size
        self.num_steps = epochs * self.steps_per_epoch if num_steps is None else num_steps
        places = _Places(num_images, batch_size, self.num_steps, seed, shard)
        self._batches = grain.MapDataset.source(places).map(_LoadTrain(dataset, augmentation, seed))
        self._workers = workers

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        """Returns an iterator whose position `get_state` and `set_state` read and write."""
        if not self._workers:
            return iter(self._batches.to_iter_dataset(grain.ReadOptions(1, _READ_AHEAD)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers are started with flags, of which nothing else makes use
        in_workers = self._batches.to_iter_dataset(grain.ReadOptions(0, 0))
        return iter(in_workers.mp_prefetch(grain.MultiprocessingOptions(self._workers, _READ_AHEAD)))


class EvalBatches:
    """The test images in order, the last batch filled up with copies of the last image that are labelled −1."""

    def __init__(self, images: Images, batch_size: int, shard: Shard = _ALONE):
        """Arranges the batches; arguments as for `TrainBatches`.

        Raises:
            DataError: the batch size is not positive, or the processes cannot share a batch equally.
        """
        if batch_size < 1 or batch_size % shard.count:
            raise DataError(f"the batch size must be a positive multiple of {shard.count} processes, got {batch_size}")
        self.num_batches = -(-len(images) // batch_size)
        places = grain.MapDataset.range(self.num_batches * batch_size)[shard.index :: shard.count]
        self._batches = places.batch(batch_size // shard.count, batch_fn=np.asarray).map(_LoadTest(images))

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        """Returns an iterator over all batches."""
        return iter(self._batches.to_iter_dataset(grain.ReadOptions(1, _READ_AHEAD)))


@dataclasses.dataclass(frozen=True)
class _Places:
    """Epoch and index of the images of every training batch.

    Grain could shuffle and divide single images too, but that takes it longer than to cut small images out of memory.

    Attributes:
        num_images: number of images to choose from.
        batch_size: images in a batch, of all processes together.
        num_steps: number of batches in all epochs.
        seed: decides the order.
        shard: which part of every batch to return.
    """

    num_images: int
    batch_size: int
    num_steps: int
    seed: int
    shard: Shard

    def __len__(self) -> int:
        """Returns the number of batches."""
        return self.num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Returns epoch and index of the images of a batch, int `[batch, 2]`."""
        epoch, step = divmod(step, self.num_images // self.batch_size)
        order = epoch_order(self.seed, epoch, self.num_images)
        indices = order[step * self.batch_size :][: self.batch_size][self.shard.index :: self.shard.count]
        return np.stack([np.full_like(indices, epoch), indices], axis=1)


@functools.lru_cache(2)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order of `size` training images in an epoch, int64 `[size]`."""
    return np.random.default_rng((seed, epoch)).permutation(size)


class _LoadTrain:
    """Loads and changes the images of one batch."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, seed: int):
        self._images = dataset.train
        self._augmentation = augmentation
        self._seed = seed
        self._fill = mean_color(dataset)

    def __call__(self, places: np.ndarray) -> Batch:
        """Returns the batch of the images at `places`, int `[batch, 2]`: epoch and index."""
        options = self._augmentation
        epochs, indices = places.T
        u = uniforms(self._seed, epochs, indices)
        crop = RandomCrop(options.random_resized_crop, u[:, CROP]) if options.random_resized_crop else None
        images, labels = self._images.load(indices, crop)
        return changed_batch(images, labels, u, drawn_shares(u, options), options, self._fill)


def mean_color(dataset: Dataset) -> np.ndarray:
    """Returns the mean colour of a data set, which is what cutout fills with, uint8 `[channels]`."""
    return np.rint(255 * np.array(dataset.normalisation[0])).astype(np.uint8)


def drawn_shares(uniforms: np.ndarray, options: Augmentation) -> np.ndarray:
    """Returns the share that images keep of themselves where they are mixed, float32 `[batch]`; ones where not.

    Args:
        uniforms: the random numbers of each image, `[batch, NUM_UNIFORMS]`.
        options: what is changed.
    """
    if not (options.mixup or options.cutmix):
        return np.ones(len(uniforms), np.float32)
    return own_shares(uniforms[:, MIX], options.mixup, options.cutmix)


def changed_batch(
    images: Any,
    labels: Any,
    uniforms: Any,
    shares: Any,
    options: Augmentation,
    fill: np.ndarray,
) -> Batch:
    """Returns the batch of changed images. It takes arrays of NumPy, or of JAX, also inside jit.

    Args:
        images: uint8 `[batch, height, width, channels]`, cropped already where `options` asks for resized crops.
        labels: int32 `[batch]`.
        uniforms: the random numbers of each image, `[batch, NUM_UNIFORMS]`.
        shares: what `drawn_shares` returns for them.
        options: what is changed.
        fill: colour of what is cut out, uint8 `[channels]`.
    """
    images = augment_images(images, uniforms[:, CHANGE], options, fill)
    if not (options.mixup or options.cutmix):
        return Batch(images, labels, labels, shares)
    images, partners, shares = mix_images(images, uniforms[:, MIX], shares, options.mixup, options.cutmix)
    return Batch(images, labels, labels[partners], shares)


class _LoadTest:
    """Loads the images of one batch as they are."""

    def __init__(self, images: Images):
        self._images = images

    def __call__(self, indices: np.ndarray) -> Batch:
        """Returns the batch of these images, int `[batch]`; indices past the end are padding."""
        images, labels = self._images.load(np.minimum(indices, len(self._images) - 1))
        labels = np.where(indices < len(self._images), labels, -1)
        return Batch(images, labels, labels, np.ones(len(labels), np.float32))
