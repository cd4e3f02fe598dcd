"""The training step and loop: several devices, accumulation, averages, mixed labels, mixed precision."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import jasgnas
from experiments.common.errors import DivergedError
from experiments.data import Augmentation, Batch, Dataset
from experiments.data.datasets import ArrayImages, open_dataset
from experiments.engine.checkpoints import Checkpoints
from experiments.engine.config import Config, DataConfig, H2SPGConfig, OptimizerConfig, ParallelConfig
from experiments.engine.logs import PlainDisplay, read_log
from experiments.engine.networks import Network, Variables
from experiments.engine.optimizers import add_h2spg, is_decayed, make_optimizer, make_schedule
from experiments.engine.parallel import start
from experiments.engine.runs import Run, make_space
from experiments.engine.steps import StepOptions, TrainState, init_state, make_eval_step, make_train_step, soft_targets
from experiments.engine.training import Trained, Training
from tests.branches import Branches

DIGITS = open_dataset("digits")
CONFIG = Config(
    data=DataConfig("digits", num_train=640, num_test=100),
    optimizer=OptimizerConfig(learning_rate=0.1),
    parallel=ParallelConfig(devices=1),
    epochs=4,
    batch_size=64,
    log_every=1,
    shrink=False,
    eval_every=0,
)


def trained(folder: Path, module: nnx.Module, config: Config = CONFIG) -> Trained:
    """Trains on digits with H2SPG."""
    config = dataclasses.replace(config, output_dir=folder)
    run = Run(config, DIGITS.take(config.data.num_train, config.data.num_test), start(config.parallel))
    space = make_space(module, DIGITS.image_shape)
    batches = run.train_batches()
    schedule = make_schedule(config.optimizer, batches.steps_per_epoch, batches.num_steps)
    tx = make_optimizer(config.optimizer, schedule)
    tx = add_h2spg(tx, space, config.h2spg, config.optimizer.name, schedule, batches.num_steps)
    return Training(run, "h2spg", module, tx, schedule, space).train(PlainDisplay(Console(quiet=True)))


def losses(result: Trained) -> list[float]:
    return [record["train/loss"] for record in result.history]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("one"), Branches(nnx.Rngs(0)))


@pytest.mark.parametrize("mode", ["pmap", "sharded-jit"])
def test_eight_devices_follow_one(tmp_path: Path, on_one_device: Trained, mode: str) -> None:
    parallel = ParallelConfig(mode=mode, sync_batch_norm=True)
    result = trained(tmp_path, Branches(nnx.Rngs(0)), dataclasses.replace(CONFIG, parallel=parallel))
    assert jax.local_device_count() == 8
    np.testing.assert_allclose(losses(result), losses(on_one_device), rtol=2e-3)
    found, expected = (jasgnas.h2spg_state(each.opt_state).zero for each in (result, on_one_device))
    np.testing.assert_array_equal(found, expected)
    assert result.evaluation.top1 == pytest.approx(on_one_device.evaluation.top1, abs=0.03)
    assert result.history[-1]["num_zero"] == 1 and result.history[-1]["phase"] == 2
    assert losses(result)[-1] < 0.95 * losses(result)[0]


def test_shrinking_on_the_way_ends_with_the_subnet(tmp_path: Path, on_one_device: Trained) -> None:
    parallel = ParallelConfig(devices=2, sync_batch_norm=True)
    config = dataclasses.replace(CONFIG, shrink=True, ema=0.5, parallel=parallel)
    result = trained(tmp_path, Branches(nnx.Rngs(0)), config)
    np.testing.assert_allclose(losses(result), losses(on_one_device), rtol=2e-3)
    assert len(jasgnas.h2spg_state(result.opt_state).remainder.removed) == 1
    assert jasgnas.count_params(result.module) < jasgnas.count_params(on_one_device.module)


def test_a_diverging_run_stops_with_what_it_has(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e18))
    with pytest.raises(DivergedError, match=r"the loss of step \d+ is (nan|inf)|hold NaN or infinity") as stop:
        trained(tmp_path, Branches(nnx.Rngs(0)), config)
    assert stop.value.exit_code == 3
    records = read_log(tmp_path / "h2spg" / "log.jsonl")
    assert all(np.isfinite(record["train/loss"]) for record in records)
    with Checkpoints(tmp_path / "h2spg" / "checkpoints", 2) as checkpoints:
        position = checkpoints.latest()
    assert position is None or position.step <= records[-1]["step"]


def options(**changes) -> StepOptions:
    return StepOptions.of(CONFIG, DIGITS)._replace(**changes)


def batch_of(size: int, mixed: bool = False) -> Batch:
    images, labels = DIGITS.train.load(np.arange(size))
    shares = np.full(size, 0.25 if mixed else 1.0, np.float32)
    return Batch(images, labels, np.roll(labels, 1), shares)


def one_step(
    module: nnx.Module, batch: Batch, changes: StepOptions, tx: optax.GradientTransformation | None = None
) -> tuple[TrainState, float]:
    tx = tx or optax.sgd(0.1)
    state = init_state(Network.variables(module), tx, changes.ema)
    state, metrics = jax.jit(make_train_step(Network(module), tx, changes, None))(state, batch)
    return state, float(metrics.loss)


def expected_step(module: nnx.Module, batch: Batch, label_smoothing: float = 0.0) -> tuple[Variables, float]:
    """Makes the same step in plain Flax."""
    module = nnx.clone(module)
    module.train()

    def loss_fn(module: nnx.Module) -> jax.Array:
        mean, std = DIGITS.normalisation
        outputs = module((batch.images / 255.0 - mean[0]) / std[0])
        targets = np.eye(10)[batch.labels] * batch.shares[:, None] + np.eye(10)[batch.other_labels] * (
            1 - batch.shares[:, None]
        )
        targets = (1 - label_smoothing) * targets + label_smoothing / 10
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = (1.0, 0.4)
        return sum(
            -weight * jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=1))
            for weight, logits in zip(weights, outputs, strict=False)
        )

    loss, grads = nnx.jit(nnx.value_and_grad(loss_fn))(module)
    nnx.update(module, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(module, nnx.Param), grads))
    return Network.variables(module), float(loss)


@pytest.mark.parametrize(("mixed", "smoothing", "auxiliary"), [(False, 0.0, False), (True, 0.1, True)])
def test_step_is_the_textbooks(mixed: bool, smoothing: float, auxiliary: bool) -> None:
    module, batch = Branches(nnx.Rngs(0), auxiliary=auxiliary), batch_of(32, mixed)
    state, loss = one_step(module, batch, options(label_smoothing=smoothing, auxiliary_weight=0.4 * auxiliary))
    expected, expected_loss = expected_step(module, batch, smoothing)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    chex.assert_trees_all_close(state.variables, expected, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 1


def test_accumulated_parts_make_one_whole_step() -> None:
    module, batch = Branches(nnx.Rngs(0), norm=nnx.LayerNorm), batch_of(32, mixed=True)
    whole, whole_loss = one_step(module, batch, options())
    divided, loss = one_step(module, batch, options(accumulate=4))
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    chex.assert_trees_all_close(divided.variables, whole.variables, rtol=1e-4, atol=1e-6)


def test_h2spg_counts_whole_steps_when_parts_accumulate() -> None:
    module = Branches(nnx.Rngs(0))
    space = make_space(module, DIGITS.image_shape)
    tx = add_h2spg(optax.sgd(0.1), space, H2SPGConfig(target_groups=1), "sgd", lambda _: 0.1, 10)
    state, _ = one_step(module, batch_of(32), options(accumulate=4), tx)
    assert int(jasgnas.h2spg_state(state.opt_state).step) == 1


def test_average_follows_the_variables() -> None:
    module, batch, tx = Branches(nnx.Rngs(0)), batch_of(32), optax.sgd(0.1)
    step = jax.jit(make_train_step(Network(module), tx, options(ema=0.8), None))
    state = init_state(Network.variables(module), tx, 0.8)
    expected = jax.tree.map(np.asarray, state.variables)
    for count in range(4):
        state, _ = step(state, batch)
        decay = min(0.8, (1 + count) / (10 + count))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.variables)
        chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-6)
    assert state.result is state.average


def test_dropout_differs_from_step_to_step_and_repeats_from_run_to_run() -> None:
    module = Branches(nnx.Rngs(0), dropout=0.5)
    network, variables = Network(module), Network.variables(module)
    images = options().normalised(batch_of(8).images)

    def logits(*seeds: int) -> np.ndarray:
        (outputs,), _ = network.train(variables, images, tuple(map(jnp.int32, seeds)))
        return np.asarray(outputs)

    np.testing.assert_array_equal(logits(3, 0), logits(3, 0))
    assert not np.allclose(logits(3, 0), logits(4, 0)) and not np.allclose(logits(3, 0), logits(3, 1))
    np.testing.assert_array_equal(network.evaluate(variables, images), network.evaluate(variables, images))


def test_taking_apart_leaves_the_module_alone() -> None:
    module = Branches(nnx.Rngs(0), dropout=0.5)
    before = nnx.as_pure(nnx.state(module))
    network = Network(module, "devices")
    rebuilt = network.module(Network.variables(module))
    assert module.norm.axis_name is None and not module.deterministic and rebuilt.deterministic
    chex.assert_trees_all_equal(Network.variables(rebuilt), Network.variables(module))
    chex.assert_trees_all_equal(jax.tree.leaves(nnx.as_pure(nnx.state(module))), jax.tree.leaves(before))


def test_half_precision_trains_float32_parameters() -> None:
    state, loss = one_step(Branches(nnx.Rngs(0), dtype=jnp.bfloat16), batch_of(32), options())
    exact = Branches(nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}
    assert loss == pytest.approx(one_step(exact, batch_of(32), options())[1], rel=0.05)


def test_evaluation_ignores_padding() -> None:
    module = Branches(nnx.Rngs(0))
    variables = Network.variables(module)
    evaluate = jax.jit(make_eval_step(Network(module), options(), None))
    batch = batch_of(30)
    padded = batch._replace(labels=np.where(np.arange(30) < 20, batch.labels, -1))
    hits, first = evaluate(variables, padded), evaluate(variables, batch_of(20))
    np.testing.assert_allclose(hits, first, rtol=1e-5)
    logits = np.asarray(Network(module).evaluate(variables, options().normalised(batch.images)))[:20]
    labels = batch.labels[:20]
    best = np.argsort(-logits, axis=1)
    assert int(hits.top1) == np.sum(best[:, 0] == labels)
    assert int(hits.top5) == np.sum(best[:, :5] == labels[:, None])


def test_mixed_labels_add_up() -> None:
    targets = soft_targets(batch_of(6, mixed=True), 10, 0.2)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    labels = batch_of(6).labels
    assert float(targets[0, labels[0]]) >= 0.8 * 0.25


def test_weight_decay_spares_norms_and_biases() -> None:
    params = Network.variables(Branches(nnx.Rngs(0))).params
    decayed = is_decayed(params)
    assert decayed["stem"] == {"bias": False, "kernel": True} and decayed["norm"] == {"bias": False, "scale": False}
    config = OptimizerConfig(weight_decay=0.5, momentum=0.0)
    tx = make_optimizer(config, optax.constant_schedule(0.1))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["one"]["kernel"], -0.05 * params["one"]["kernel"], rtol=1e-6)
    assert not np.any(updates["norm"]["scale"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(learning_rate=0.2), {0: 0.2, 50: 0.1, 100: 0.0}),
        (OptimizerConfig(learning_rate=0.2, warmup_epochs=2), {0: 0.0, 10: 0.1, 20: 0.2, 60: 0.1, 100: 0.0}),
        (
            OptimizerConfig(learning_rate=0.2, schedule="step", step_epochs=(4, 7)),
            {0: 0.2, 39: 0.2, 41: 0.02, 71: 0.002},
        ),
        (OptimizerConfig(learning_rate=0.2, schedule="constant", warmup_epochs=1), {0: 0.0, 5: 0.1, 10: 0.2, 99: 0.2}),
    ],
)
def test_schedules_have_the_asked_values(config: OptimizerConfig, expected: dict[int, float]) -> None:
    schedule = make_schedule(config, steps_per_epoch=10, num_steps=100)
    np.testing.assert_allclose([schedule(step) for step in expected], list(expected.values()), atol=1e-6)


def test_adam_reaches_the_target_too() -> None:
    params = Network.variables(Branches(nnx.Rngs(0))).params
    space = make_space(Branches(nnx.Rngs(0)), DIGITS.image_shape)
    config = OptimizerConfig(name="adamw", learning_rate=0.01, clip_norm=1.0)
    schedule = make_schedule(config, 5, 10)
    h2spg = H2SPGConfig(target_groups=1, score="magnitude")
    tx = add_h2spg(make_optimizer(config, schedule), space, h2spg, "adamw", schedule, 10)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, state = step(params, state)
    assert int(jasgnas.h2spg_state(state).zero.sum()) == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_a_network_learns_from_augmented_images(tmp_path: Path) -> None:
    images = np.repeat(np.arange(4, dtype=np.uint8) * 60, 32)[:, None, None, None] * np.ones((1, 6, 6, 1), np.uint8)
    split = ArrayImages(images, np.repeat(np.arange(4, dtype=np.int32), 32))
    dataset = Dataset("levels", (6, 6, 1), 10, ((0.35,), (0.26,)), "made up", split, split)
    augmentation = Augmentation(pad_crop=1, flip=True, cutmix=1.0, mixup=0.2)
    config = dataclasses.replace(
        CONFIG, output_dir=tmp_path, epochs=10, batch_size=32, data=DataConfig(augmentation=augmentation)
    )
    run = Run(config, dataset, start(config.parallel))
    schedule = optax.constant_schedule(0.1)
    module = Branches(nnx.Rngs(0))
    result = Training(run, "full", module, optax.sgd(0.1, 0.9), schedule).train(PlainDisplay(Console(quiet=True)))
    assert result.evaluation.top1 > 0.7 and result.evaluation.top5 == 1.0
