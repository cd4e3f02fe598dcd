import gzip
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import data, demo
from experiments.train import accuracy, logits, train
from models.demo_net import DemoNet

FASHION_MNIST_SIZES = {"train": 12, "t10k": 5}


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def write_fashion_mnist(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes a tiny data set in Fashion-MNIST's format and returns its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, size in FASHION_MNIST_SIZES.items():
        images, labels = rng.integers(256, size=(size, 28, 28)), rng.integers(10, size=size)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
        arrays[prefix] = images, labels
    return arrays


def small_split(size: int) -> data.Split:
    """Returns images that each hold their own index."""
    labels = np.arange(size, dtype=np.int32)
    return data.Split(np.broadcast_to(labels[:, None, None, None], (size, 2, 2, 1)).astype(np.float32), labels)


def test_digits_are_all_there_and_normalised() -> None:
    dataset = data.load("digits")
    assert dataset.train.images.shape == (1437, 8, 8, 1) and dataset.test.images.shape == (360, 8, 8, 1)
    assert dataset.train.images.dtype == np.float32 and dataset.train.labels.dtype == np.int32
    np.testing.assert_allclose([dataset.train.images.mean(), dataset.train.images.std()], [0, 1], atol=1e-5)
    assert set(dataset.train.labels) == set(dataset.test.labels) == set(range(dataset.num_classes))


def test_digits_test_images_are_not_trained_on() -> None:
    dataset = data.load("digits")
    train_images = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in train_images for image in dataset.test.images)


def test_fashion_mnist_reads_what_the_idx_files_hold(tmp_path: Path) -> None:
    arrays = write_fashion_mnist(tmp_path)
    dataset = data.load("fashion_mnist", tmp_path)
    mean, std = arrays["train"][0].mean(), arrays["train"][0].std()
    for split, (images, labels) in zip((dataset.train, dataset.test), arrays.values(), strict=True):
        np.testing.assert_allclose(split.images[..., 0], (images - mean) / std, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(split.labels, labels)


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", None, "no file"),
        ("train-images-idx3-ubyte.gz", _truncate, "is damaged"),
        ("train-labels-idx1-ubyte.gz", lambda _: b"not gzip", "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda content: content[:20] + b"\xff" + content[21:], "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda content: gzip.compress(_truncate(gzip.decompress(content))), "values"),
        ("train-images-idx3-ubyte.gz", lambda _: gzip.compress(idx_bytes(np.zeros(12))), "not an idx file"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(b""), "not an idx file"),
        ("train-labels-idx1-ubyte.gz", lambda _: gzip.compress(idx_bytes(np.zeros(11))), "12 images but 11 labels"),
    ],
)
def test_bad_fashion_mnist_files_are_refused(tmp_path: Path, name: str, damage, message: str) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=rf"{message}.*apt-get install.*dataset-fashion-mnist"):
        data.load("fashion_mnist", tmp_path)


def test_installed_fashion_mnist_is_complete() -> None:
    if not data.FASHION_MNIST_DIR.exists():
        pytest.skip("needs the original files: sudo apt-get install dataset-fashion-mnist")
    dataset = data.load("fashion_mnist")
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_train_batches_are_decided_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = data.train_batches(small_split(23), 5, seed=seed, epoch=epoch)
        return [label for batch in batches for label in batch.labels.tolist()]

    first = order(0, 0)
    assert len(set(first)) == len(first) == 20
    assert order(0, 0) == first
    assert order(1, 0) != first and order(0, 1) != first and order(1, 0) != order(0, 1)


def test_images_stay_with_their_labels() -> None:
    split = small_split(11)
    for batch in [*data.train_batches(split, 4, seed=0, epoch=0), *data.eval_batches(split._replace(), 11)]:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)


@pytest.mark.parametrize("batch_size", [0, 5])
def test_batch_sizes_without_a_full_batch_are_refused(batch_size: int) -> None:
    with pytest.raises(data.DataError, match="between 1 and the 4 training images"):
        next(data.train_batches(small_split(4), batch_size, seed=0, epoch=0))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_eval_batches_cover_the_split_once(batch_size: int) -> None:
    batches = list(data.eval_batches(small_split(7), batch_size))
    assert {batch.images.shape for batch in batches} == {(batch_size, 2, 2, 1)}
    labels = np.concatenate([batch.labels for batch in batches])
    assert labels[:7].tolist() == list(range(7)) and (labels[7:] == -1).all()


def test_padding_does_not_change_logits(key: jax.Array) -> None:
    model = DemoNet(width=0.1, rngs=nnx.Rngs(0))
    split = data.Split(np.asarray(jax.random.normal(key, (7, 8, 8, 1))), np.zeros(7, np.int32))
    np.testing.assert_allclose(
        logits(model, split, batch_size=3), logits(model, split, batch_size=7), rtol=1e-4, atol=1e-5
    )


def test_training_is_reproducible_and_learns() -> None:
    dataset = data.load("digits")

    def trained() -> tuple[list[float], float]:
        model = DemoNet(width=0.1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
        losses = [float(m.loss) for m in train(model, optimizer, dataset.train, epochs=3, batch_size=64, seed=0)]
        return losses, accuracy(logits(model, dataset.test, batch_size=64), dataset.test.labels)

    losses, test_accuracy = trained()
    assert len(losses) == 3 * 22
    assert test_accuracy > 0.8
    assert trained() == (losses, test_accuracy)


SMOKE = {"epochs": 2, "batch_size": 256, "width": 0.1}


def test_main_job_end_to_end(tmp_path: Path) -> None:
    config = demo.Config(output_dir=tmp_path, target_groups=2, **SMOKE)
    results = demo.run(config)

    assert len(results.removed) == 2
    assert results.subnet.num_params < results.full.num_params and results.subnet.macs < results.full.macs
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["removed"] == results.removed and saved["subnet"]["num_params"] == results.subnet.num_params
    assert json.loads((tmp_path / "config.json").read_text())["target_groups"] == 2
    assert all(name in (tmp_path / "search_space.txt").read_text() for name in results.removed)

    full, sparse, subnet = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("full", "sparse", "subnet"))
    assert {path: array.shape for path, array in sparse.items()} == {path: array.shape for path, array in full.items()}
    assert subnet.keys() < sparse.keys()


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"width": 0.0}, {"warmup_fraction": 0.6, "projection_fraction": 0.6}]
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        demo.Config(**settings)


def test_table_shows_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo.Results(
        full=demo.NetworkResults(1000, 2000, 0.5),
        subnet=demo.NetworkResults(500, 1500, 0.25),
        removed=["conv2", "conv3"],
        largest_output=10.0,
        largest_difference=1e-6,
        seconds={"search space": 1.0, "full training": 20.0, "H2SPG training": 30.0, "construction": 2.0},
        device="cpu",
    )
    demo.rich.print(demo.results_table(demo.Config(), results))
    printed = capsys.readouterr().out
    for text in ("1,000", "500 (50%)", "1,500 (75%)", "50.00%", "25.00%", "conv2", "conv3", "1.0e-06", "20.0", "30.0"):
        assert text in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-groups", "4"], "error: .*at most 3"),
        (["--dataset", "fashion_mnist", "--data-dir", "nowhere"], "error: no file .*apt-get install"),
        (["--batch-size", "2000"], "error: .*1437 training images"),
    ],
)
def test_mistakes_end_with_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--output-dir", str(tmp_path), "--width", "0.1", *arguments])
    with pytest.raises(SystemExit, match=message):
        demo.main()
    assert not (tmp_path / "results.json").exists()


def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "parameters became" in capsys.readouterr().out
