"""Data sets, their preparation, and the batches that training gets."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.common.errors import DataError
from experiments.data import Augmentation, Dataset, EvalBatches, Shard, TrainBatches, open_dataset
from experiments.data import augment as augment_module
from experiments.data.augment import augment_images, mix_images, own_shares, uniforms
from experiments.data.datasets import ArrayImages
from experiments.data.images import center_crop, random_resized_crop
from experiments.data.prepare import Prepare, prepare
from experiments.data.raw import read_idx
from tests.experiments.raw_images import class_folders, encode, idx_bytes, write_folder, write_idx, write_tar

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
NOISE = np.random.default_rng(0).integers(256, size=(64, 64))
ALONE = Shard()


def numbered(size: int, test_size: int = 7, image_size: int = 2) -> Dataset:
    """Returns images that each hold their own index."""

    def images(size: int) -> ArrayImages:
        labels = np.arange(size, dtype=np.int32)
        pixels = np.broadcast_to(labels[:, None, None, None], (size, image_size, image_size, 1))
        return ArrayImages(pixels.astype(np.uint8), labels)

    shape = (image_size, image_size, 1)
    return Dataset("numbers", shape, size, ((0.5,), (0.25,)), "made up", images(size), images(test_size))


def test_digits_are_all_there() -> None:
    dataset = open_dataset("digits")
    images, labels = dataset.train.load(np.arange(1437))
    assert images.shape == (1437, 8, 8, 1) and images.dtype == np.uint8 and labels.dtype == np.int32
    mean, std = dataset.normalisation
    np.testing.assert_allclose([(images / 255).mean(), (images / 255).std()], [mean[0], std[0]])
    test_images, test_labels = dataset.test.load(np.arange(360))
    assert set(labels) == set(test_labels) == set(range(dataset.num_classes))
    seen = {image.tobytes() for image in images}
    assert not any(image.tobytes() in seen for image in test_images)


def test_digits_come_in_the_size_that_is_asked_for() -> None:
    dataset = open_dataset("digits", image_size=12)
    images, labels = dataset.train.load(np.arange(20))
    small, same_labels = open_dataset("digits").train.load(np.arange(20))
    assert images.shape == (20, *dataset.image_shape) == (20, 12, 12, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, same_labels)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), small.mean(axis=(1, 2, 3)), rtol=0.2)


def test_idx_files_become_a_tfds_copy_without_tensorflow(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path)
    folder = prepare(Prepare("fashion_mnist", tmp_path, tmp_path / "tfds"))
    assert list(folder.glob("*.array_record*"))
    dataset = open_dataset("fashion_mnist", tmp_path / "tfds")
    assert dataset.image_shape == (28, 28, 1) and dataset.num_classes == 10
    assert dataset.normalisation == ((0.2860,), (0.3530,))
    for split, images in {"train": dataset.train, "test": dataset.test}.items():
        loaded, labels = images.load(np.arange(len(images)))
        expected = {tuple(image.flatten()): label for image, label in zip(*arrays[split], strict=True)}
        assert {tuple(i.flatten().tolist()): label for i, label in zip(loaded, labels, strict=True)} == expected
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("form", ["folder", "tar", "tar.xz"])
@pytest.mark.parametrize(("evaluation", "expected"), [("val", "validation"), ("test", "test")])
def test_class_folders_become_a_tfds_copy(tmp_path: Path, form: str, evaluation: str, expected: str) -> None:
    files = class_folders({"train": 3, evaluation: 2}, ["ape", "bee"], (6, 6, 3))
    write = write_folder if form == "folder" else write_tar
    source = write(tmp_path / f"images.{form}", files | {"classes.txt": b"ape bee"})
    folder = prepare(Prepare("animals", source, tmp_path / "tfds"))
    assert (folder / f"animals-{expected}.array_record-00000-of-00001").exists()
    dataset = open_dataset("animals", tmp_path / "tfds")
    images, labels = dataset.train.load(np.arange(6))
    assert (images.mean(axis=(1, 2, 3)) > 128).tolist() == (labels == 1).tolist()
    assert labels.tolist().count(1) == 3 and len(dataset.test) == 4
    intensities = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.normalisation, [intensities.mean(0), intensities.std(0)], rtol=1e-6)
    assert dataset.origin == f"made from images.{form}"


@pytest.mark.parametrize(
    ("name", "splits", "shape", "suffix", "origin"),
    [
        ("cifar10", ("train", "test"), (32, 32, 3), "jpg", "compressed again as JPEG"),
        ("svhn_cropped", ("train", "test"), (32, 32, 3), "png", "made from"),
        ("stl10", ("train", "test"), (96, 96, 3), "png", "made from"),
        ("imagenet2012", ("train", "val"), (70, 50, 3), "jpg", "made from"),
    ],
)
def test_known_data_sets_read_from_their_tfds_format(
    tmp_path: Path, name: str, splits: tuple[str, str], shape: tuple[int, int, int], suffix: str, origin: str
) -> None:
    files = class_folders(dict.fromkeys(splits, 2), ["a", "b"], shape, suffix)
    if name == "imagenet2012":
        # As in the original: some images are grey, some have another size.
        files["train/a/0.jpg"] = encode(np.full((90, 64), 10), "jpg")
    write_folder(tmp_path / "raw", files)
    prepare(Prepare(name, tmp_path / "raw", tmp_path / "tfds"))
    if name == "imagenet2012":
        with pytest.raises(DataError, match="image_size"):
            open_dataset(name, tmp_path / "tfds")
    size = 48 if name == "imagenet2012" else None
    dataset = open_dataset(name, tmp_path / "tfds", size)
    assert dataset.image_shape == ((48, 48, 3) if size else shape) and origin in dataset.origin
    batch = next(iter(TrainBatches(dataset, 4, seed=0, epochs=1, augmentation=Augmentation(random_resized_crop=0.3))))
    assert batch.images.shape == (4, *dataset.image_shape) and sorted(batch.labels) == [0, 0, 1, 1]
    assert (batch.images.mean(axis=(1, 2, 3)) > 128).tolist() == (batch.labels == 1).tolist()
    assert sum(len(batch.labels) for batch in EvalBatches(dataset.test, 2)) == 4


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", None, "there is no file"),
        ("train-images-idx3-ubyte.gz", _truncate, "is damaged"),
        ("train-labels-idx1-ubyte.gz", lambda _: b"not gzip", "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda content: content[:20] + b"\xff" + content[21:], "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda content: gzip.compress(_truncate(gzip.decompress(content))), "values"),
        ("train-images-idx3-ubyte.gz", lambda _: gzip.compress(idx_bytes(np.zeros(12))), "not an idx file"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(b""), "not an idx file"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(idx_bytes(np.zeros(11))), "12 images but 11 labels"),
    ],
)
def test_bad_idx_files_are_refused(tmp_path: Path, name: str, damage, message: str) -> None:
    write_idx(tmp_path)
    path = tmp_path / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        prepare(Prepare("fashion_mnist", tmp_path, tmp_path / "tfds"))
    assert not list((tmp_path / "tfds").glob("**/*.array_record*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images named split/class/file"),
        ({"a.png": b"", "train/a.txt": b""}, "holds no images named split/class/file"),
        ({"train/a/0.png": encode(np.zeros((4, 4)))}, "the split train alone"),
        ({"train/a/0.png": b"no image", "test/a/0.png": b"no image"}, "a/0.png is no readable image"),
        (
            {"train/a/0.png": encode(np.zeros((4, 4))), "test/a/1.jpg": _truncate(encode(NOISE, "jpg"))},
            "a/1.jpg is truncated or damaged",
        ),
    ],
)
def test_unfit_folders_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "raw").mkdir()
    write_folder(tmp_path / "raw", files)
    with pytest.raises(DataError, match=message):
        prepare(Prepare("own", tmp_path / "raw", tmp_path / "tfds"))
    assert not (tmp_path / "tfds").exists()


def test_unfit_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or file"):
        prepare(Prepare("own", tmp_path / "nowhere", tmp_path / "tfds"))
    (tmp_path / "images.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="no readable tar"):
        prepare(Prepare("own", tmp_path / "images.tar", tmp_path / "tfds"))


@pytest.mark.parametrize("suffix", ["tar", "tar.xz"])
def test_truncated_tars_are_refused(tmp_path: Path, suffix: str) -> None:
    path = write_tar(tmp_path / f"images.{suffix}", class_folders({"train": 3, "test": 3}, ["a", "b"], (16, 16, 3)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(DataError, match="no readable tar"):
        prepare(Prepare("own", path, tmp_path / "tfds"))
    assert not (tmp_path / "tfds").exists()


def test_preparing_from_the_network_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="TensorFlow.*--source"):
        prepare(Prepare("cifar10", None, tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", r"cifar10 is not prepared.*experiments\.prepare cifar10 --source"),
        ("cifar1O", "did you mean cifar10"),
        ("fashion-mnist", "did you mean fashion_mnist"),
        ("qqqqqq", "there are digits, fashion_mnist, .*experiments.prepare qqqqqq"),
    ],
)
def test_missing_data_sets_are_explained(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, tmp_path)


def test_damaged_record_is_named_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = class_folders({"train": 2, "test": 1}, ["a", "b"], (8, 8, 3))
    # What the standard builders store is not decoded before.
    monkeypatch.setattr("experiments.data.prepare._look", _unchecked)
    files["train/a/0.png"] = _truncate(files["train/a/0.png"])
    prepare(Prepare("own", write_folder(tmp_path / "raw", files), tmp_path / "tfds"))
    with pytest.raises(DataError, match="image [0-3] of own's train split is truncated or damaged"):
        open_dataset("own", tmp_path / "tfds")


def _unchecked(image, is_training):
    from experiments.data.prepare import _Seen

    del image
    return _Seen(8, 8, "png", False, np.ones((2, 3)) if is_training else None)


def order(
    seed: int, epochs: int = 1, size: int = 23, batch_size: int = 5, shard: Shard = ALONE, num_steps: int | None = None
) -> list[int]:
    batches = TrainBatches(numbered(size), batch_size, seed=seed, epochs=epochs, num_steps=num_steps, shard=shard)
    return [label for batch in batches for label in batch.labels.tolist()]


def test_order_is_decided_by_seed_and_epoch() -> None:
    first = order(0)
    assert len(set(first)) == len(first) == 20
    assert order(0) == first != order(1)
    both = order(0, epochs=2)
    assert both[:20] == first != both[20:] != order(1)
    assert order(0, num_steps=6) == both[:30] and order(0, epochs=2, num_steps=3) == both[:15]


def test_processes_share_every_batch() -> None:
    whole = np.reshape(order(3, size=24, batch_size=8), (3, 8))
    parts = [np.reshape(order(3, size=24, batch_size=8, shard=Shard(index, 4)), (3, 2)) for index in range(4)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts, axis=1)), np.sort(whole))
    with pytest.raises(DataError, match="3 processes cannot share a batch of 8"):
        order(3, size=24, batch_size=8, shard=Shard(0, 3))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_position_can_be_saved_and_restored(workers: int) -> None:
    augmentation = Augmentation(pad_crop=1, flip=True, cutout=1, color_jitter=0.4, mixup=0.2, cutmix=1.0)
    batches = TrainBatches(numbered(50, image_size=4), 8, seed=0, epochs=3, augmentation=augmentation, workers=workers)
    iterator = iter(batches)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert len(rest) == batches.num_steps - 7
    other = iter(batches)
    next(other)
    other.set_state(state)
    for expected, found in zip(rest, other, strict=True):
        for one, two in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, two)


def test_images_stay_with_their_labels() -> None:
    dataset = numbered(11)
    for batch in [*TrainBatches(dataset, 4, seed=0, epochs=2), *EvalBatches(dataset.test, 7)]:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)


@pytest.mark.parametrize("batch_size", [0, 5])
def test_batch_sizes_without_a_full_batch_are_refused(batch_size: int) -> None:
    with pytest.raises(DataError, match="between 1 and the 4 training images"):
        TrainBatches(numbered(4), batch_size, seed=0, epochs=1)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 6, 10])
def test_eval_batches_cover_the_split_once(batch_size: int, count: int) -> None:
    images = numbered(1).test
    labels: list[int] = []
    for index in range(count):
        batches = list(EvalBatches(images, batch_size, Shard(index, count)))
        assert {batch.images.shape for batch in batches} == {(batch_size // count, 2, 2, 1)}
        labels += [label for batch in batches for label in batch.labels.tolist()]
    assert sorted(label for label in labels if label >= 0) == list(range(7))
    assert len(labels) == -(-7 // batch_size) * batch_size


def test_parts_of_a_data_set_are_the_same_every_time() -> None:
    dataset = numbered(40)
    part = dataset.take(10, 3)
    assert (len(part.train), len(part.test)) == (10, 3)
    chosen = part.train.load(np.arange(10))[1]
    assert len(set(chosen.tolist())) == 10
    np.testing.assert_array_equal(chosen, dataset.take(10, None).train.load(np.arange(10))[1])
    assert dataset.take(100, None).train is dataset.train


def test_random_numbers_belong_to_seed_epoch_and_image() -> None:
    epochs, indices = np.repeat(np.arange(20), 500), np.tile(np.arange(500), 20)
    numbers = uniforms(0, epochs, indices)
    assert numbers.min() >= 0 and numbers.max() < 1
    # All of them look independent and uniform: mean, variance and the correlation of neighbours.
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(numbers.var(axis=0), 1 / 12, atol=0.005)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(numbers.shape[1])).max() < 0.05
    assert np.abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.05
    np.testing.assert_array_equal(uniforms(0, epochs[7:9], indices[7:9]), numbers[7:9])
    assert not np.any(uniforms(1, epochs[:9], indices[:9]) == numbers[:9])


RAMP = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)


def augmented(uniform: float, images: np.ndarray = RAMP, **options) -> np.ndarray:
    numbers = np.full((len(images), 8), uniform)
    return augment_images(images, numbers, Augmentation(**options), np.array([7, 8, 9], np.uint8))


def test_nothing_is_changed_by_default() -> None:
    np.testing.assert_array_equal(augmented(0.3), RAMP)


@pytest.mark.parametrize(("uniform", "shift"), [(0.0, -2), (0.5, 0), (0.999, 2)])
def test_crops_of_padded_images_are_shifts(uniform: float, shift: int) -> None:
    padded = np.pad(RAMP, ((0, 0), (2, 2), (2, 2), (0, 0)))
    start = 2 + shift
    np.testing.assert_array_equal(augmented(uniform, pad_crop=2), padded[:, start : start + 6, start : start + 6])


@pytest.mark.parametrize(("uniform", "flipped"), [(0.49, True), (0.5, False)])
def test_flips_mirror_the_columns(uniform: float, flipped: bool) -> None:
    np.testing.assert_array_equal(augmented(uniform, flip=True), RAMP[:, :, ::-1] if flipped else RAMP)


def test_cutout_paints_a_square_that_the_border_cuts() -> None:
    inside = augmented(0.5, cutout=2)
    expected = RAMP.copy()
    expected[:, 2:4, 2:4] = [7, 8, 9]
    np.testing.assert_array_equal(inside, expected)
    corner = augmented(0.0, cutout=4)
    expected = RAMP.copy()
    expected[:, :2, :2] = [7, 8, 9]
    np.testing.assert_array_equal(corner, expected)


def test_color_jitter_changes_by_the_given_factors() -> None:
    images = np.random.default_rng(0).integers(80, 120, size=(1, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augmented(0.5, images, color_jitter=0.4), images)
    gray = augmented(0.0, images, color_jitter=1.0)  # black: no brightness at all
    assert not gray.any()
    changed = augment_module.color_jitter(images, np.array([1.2]), np.array([1.0]), np.array([1.0]))
    np.testing.assert_allclose(changed, images * 1.2, atol=0.51)
    no_contrast = augment_module.color_jitter(images, np.array([1.0]), np.array([0.0]), np.array([1.0]))
    np.testing.assert_allclose(no_contrast @ [0.299, 0.587, 0.114], (images @ [0.299, 0.587, 0.114]).mean(), atol=2)
    no_colour = augment_module.color_jitter(images, np.array([1.0]), np.array([1.0]), np.array([0.0]))
    assert np.ptp(no_colour, axis=-1).max() <= 1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_images_hold_the_shares_of_both(mixup: float, cutmix: float) -> None:
    values = np.array([0, 200] * 200, np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (400, 10, 10, 1))
    numbers = np.random.default_rng(0).random((400, 4))
    mixed, partners, shares = mix_images(images, numbers, own_shares(numbers, mixup, cutmix), mixup, cutmix)
    np.testing.assert_array_equal(partners, np.roll(np.arange(400), 1))
    expected = shares * values + (1 - shares) * values[partners]
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), expected, atol=0.51)
    blended = ((mixed > 0) & (mixed < 200)).any(axis=(1, 2, 3))
    assert blended.any() == bool(mixup) and (~blended).any()
    assert 0.3 < shares.mean() < 0.75 and shares.std() > 0.15


def test_random_resized_crops_cover_the_asked_share() -> None:
    rows, columns = np.mgrid[:40, :60]
    image = Image.fromarray(np.stack([rows * 6, columns * 4, rows * 0], axis=-1).astype(np.uint8))
    rng = np.random.default_rng(0)
    for _ in range(50):
        crop = random_resized_crop(image, 16, 0.25, rng.random(4), "it").astype(float)
        # The colours tell where a pixel comes from: what lies between the outermost ones is the crop, nearly.
        height = np.ptp(crop[..., 0]) / 6 * 16 / 15
        width = np.ptp(crop[..., 1]) / 4 * 16 / 15
        assert crop.shape == (16, 16, 3)
        assert 0.2 < height * width / 2400 <= 1.1
    whole = random_resized_crop(image, 16, 1.0, np.full(4, 0.5), "it")
    assert np.ptp(whole[..., 0].astype(float)) > 200


def test_center_crop_keeps_the_centre() -> None:
    pixels = np.zeros((40, 80), np.uint8)
    pixels[:, 20:60] = 200
    cropped = center_crop(Image.fromarray(pixels), 16, "it")
    assert cropped.shape == (16, 16, 1) and cropped.min() == 200
    small = Image.fromarray(np.eye(4, dtype=np.uint8))
    assert center_crop(small, 4, "it")[..., 0].tolist() == np.eye(4, dtype=np.uint8).tolist()


def test_installed_fashion_mnist_is_complete() -> None:
    if not FASHION_MNIST_DIR.exists():
        pytest.skip("needs the original files: sudo apt-get install dataset-fashion-mnist")
    for prefix, size in {"train": 6000, "t10k": 1000}.items():
        assert np.bincount(read_idx(FASHION_MNIST_DIR / f"{prefix}-labels-idx1-ubyte.gz", 1)).tolist() == [size] * 10
