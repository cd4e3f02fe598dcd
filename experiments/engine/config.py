"""The settings of a run: typed, documented for `--help`, and saved with what the run makes."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from experiments.common.errors import ConfigError
from experiments.data.augment import Augmentation

Option = bool | int | float
"""Value of an option of a network."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = "demo_net"
    """Name of the network, one of `models.list_models()`."""
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Further options of its constructor, such as `width 0.25`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; its parameters are float32 in any case."""
    drop_path: float = 0.0
    """How often training drops a path of the network (stochastic depth), for networks that can."""
    auxiliary_weight: float = 0.0
    """Weight of the auxiliary classifier's loss, for networks that can have one; 0 means none."""
    gated: bool = False
    """Put gates on edges without parameters, such as skip connections, so that these can be removed, too."""
    ungated: tuple[str, ...] = ()
    """Patterns of the paths of gates that are not to be made, `gates/head/*` for example."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images."""

    name: str = "digits"
    """Name of the data set: the embedded digits, or one that `experiments.prepare` has made ready."""
    data_dir: Path | None = None
    """Folder of the TFDS copies; by default TFDS's own, ~/tensorflow_datasets or the variable TFDS_DATA_DIR."""
    image_size: int | None = None
    """Height and width to bring the images to; needed where images differ in size."""
    num_train: int | None = None
    """Train on so many images only."""
    num_test: int | None = None
    """Test on so many images only."""
    workers: int = 0
    """Processes that decode and augment. 0 means a thread of the training process, enough for images in memory."""
    augmentation: Augmentation = Augmentation()
    """Random changes to the training images."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer that H2SPG is chained to."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, its weight decay part of the gradient; or AdamW, its weight decay apart."""
    learning_rate: float = 0.05
    """Highest learning rate."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: along a cosine to zero, in steps, or not at all."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises from zero."""
    step_epochs: tuple[int, ...] = ()
    """Epochs after which the schedule `step` multiplies the learning rate by `step_factor`."""
    step_factor: float = 0.1
    """See `step_epochs`."""
    momentum: float = 0.9
    """Momentum of SGD, β₁ of AdamW."""
    nesterov: bool = False
    """Nesterov's momentum for SGD."""
    weight_decay: float = 5e-4
    """Weight decay; norms and biases, the parameters of one axis, are spared."""
    clip_norm: float | None = None
    """Clip the gradient to this norm."""


TARGETS = ("target_groups", "target_sparsity", "target_params", "target_macs")
"""Names of the settings of `H2SPGConfig` of which exactly one is to be given, or none beside `at_most`."""


@dataclasses.dataclass(frozen=True)
class H2SPGConfig:
    """What H2SPG removes; exactly one target is needed, or `at_most`."""

    target_groups: int | None = None
    """Number of removal structures, or of channels if `kinds` are these, that must go."""
    target_sparsity: float | None = None
    """The same as a fraction of all."""
    target_params: int | float | None = None
    """Most parameters that the sub-network may have: a number, or a fraction of the full network's such as 0.5."""
    target_macs: int | float | None = None
    """Most multiply-adds of one image that the sub-network may have: a number, or a fraction such as 0.5."""
    at_most: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many stay of the groups whose paths match a pattern, for each of its captures, such as
    `**/cells/{cell}/operations/{node}_from*/** 2`; beside a target, or in the place of one."""
    tie: tuple[str, ...] = ()
    """Patterns of paths: structures that match with the same captures go together."""
    keep: tuple[str, ...] = ()
    """Patterns of the paths of parameters that stay in any case."""
    kinds: Literal["structures", "channels", "both"] = "structures"
    """What may go: removal structures, single channels, or both in one selection."""
    min_channels: int | None = None
    """How many channels of a dimension stay at least."""
    multiple_of: int | None = None
    """What the number of channels that stay is rounded up to a multiple of."""
    warmup_fraction: float = 0.3
    """Part of the steps before H2SPG selects; in the second half of them it averages its redundancy scores."""
    settle: bool = False
    """Select sooner, as soon as the choice settles."""
    projection_fraction: float = 0.1
    """Part of the steps in which H2SPG takes the redundant structures to zero; the rest trains what is left."""
    periods: int = 1
    """Rounds of selection and projection."""
    score: str = "default"
    """Name of the redundancy score: `default`, one of `jasgnas.optimizer.scores.SCORES`, or `random`, a baseline."""
    look_every: int | None = None
    """After how many scored updates a set is selected on trial; by default about five times in all."""
    forward_passes: float | None = None
    """How many evaluations of the loss a scored update may cost, on average; by default one in two updates."""
    hierarchical: bool = True
    """Remove only what leaves a valid network; otherwise the best scores, for comparisons."""
    epsilon: float = 0.0
    """ε of the half-space projection, in [0, 1)."""

    @property
    def targets(self) -> dict[str, Any]:
        """The targets that are given, by name."""
        return {name: getattr(self, name) for name in TARGETS if getattr(self, name) is not None}

    def with_target(self, **target: int | float | None) -> "H2SPGConfig":
        """Returns the same with another target in the place of all that are given, or without any."""
        return dataclasses.replace(self, **dict.fromkeys(TARGETS) | target)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The devices."""

    mode: Literal["pmap", "sharded-jit"] = "pmap"
    """One program per device (`jax.pmap`), or one program over all devices (`jax.jit` over a mesh)."""
    devices: int | None = None
    """Use so many of this process's devices; by default all."""
    sync_batch_norm: bool = False
    """Let batch norms see the whole batch under pmap, not each device's part; under sharded-jit they always do."""
    distributed: bool = False
    """Start jax.distributed, for runs on several hosts: the same command on each."""
    coordinator: str | None = None
    """Address of the first host, `name:port`. Clusters that JAX knows (TPU, Slurm) need none."""
    num_processes: int | None = None
    """Number of processes, with `coordinator`."""
    process_id: int | None = None
    """Number of this process, with `coordinator`."""


_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        (
            *("epochs", "batch_size", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every", "num_steps"),
            *("h2spg.min_channels", "h2spg.multiple_of", "h2spg.look_every"),
            *("data.num_train", "data.num_test", "data.image_size"),
        ),
    ),
    "at least 0": (
        lambda value: 0 <= value < math.inf,
        (
            *("eval_every", "seed", "data.workers", "model.auxiliary_weight"),
            *("optimizer.weight_decay", "optimizer.warmup_epochs"),
        ),
    ),
    "at least 0 and below 1": (
        lambda value: 0 <= value < 1,
        ("ema", "label_smoothing", "model.drop_path", "optimizer.momentum"),
    ),
    "positive and finite": (
        lambda value: 0 < value < math.inf,
        ("optimizer.learning_rate", "optimizer.step_factor", "optimizer.clip_norm", "h2spg.forward_passes"),
    ),
}
"""What numbers must be: in words, as a condition, and which settings, by their names on the command line."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network in full and with H2SPG, constructs the sub-network, and compares the two.

    A run that was stopped goes on where it was when it is started again with the same settings.
    """

    output_dir: Path = Path("runs/run")
    """Folder for all that the run makes."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    h2spg: H2SPGConfig = H2SPGConfig(target_groups=1)
    parallel: ParallelConfig = ParallelConfig()
    pretrained: Path | None = None
    """Output folder of a finished run whose full network, trained there, both trainings start from."""
    epochs: int = 15
    """Passes over the training images, in each of the two trainings."""
    num_steps: int | None = None
    """Stop after so many steps, whatever number of epochs that is."""
    batch_size: int = 64
    """Images per step, over all devices."""
    accumulate: int = 1
    """Divide each batch into so many parts that are computed one after the other, to save memory."""
    label_smoothing: float = 0.0
    """Share of every label that is spread over all classes."""
    ema: float = 0.0
    """Decay of an average of the weights, which is then what is tested and constructed from; 0 means none."""
    seed: int = 0
    """Seed of the initialisation, the order of the images and all randomness."""
    train_full: bool = True
    """Train the full network, to compare with."""
    train_h2spg: bool = True
    """Train with H2SPG and construct the sub-network."""
    shrink: bool = True
    """Go on with the smaller network as soon as all redundant structures are zero, at its speed."""
    eval_every: int = 1
    """Epochs between tests during training; 0 tests at the end only."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    log_every: int = 50
    """Steps between log entries."""
    quiet: bool = False
    """Plain lines instead of a live display."""
    restart: bool = False
    """Start anew in an output folder that holds a run; it is overwritten."""

    def __post_init__(self) -> None:
        """Refuses settings that no run could meet, before any work is done."""
        settings = {name: value for name, value in _flat(dataclasses.asdict(self)).items() if value is not None}
        faults = [
            f"{name} must be {expected}, got {settings[name]}"
            for expected, (is_met, names) in _RANGES.items()
            for name in names
            if name in settings and not is_met(settings[name])
        ]
        if self.batch_size % max(1, self.accumulate):
            faults.append(f"a batch of {self.batch_size} images cannot be divided into {self.accumulate} equal parts")
        if not self.train_full and not self.train_h2spg:
            faults.append("train_full and train_h2spg are both off: there is nothing to train")
        warmup, projection = self.h2spg.warmup_fraction, self.h2spg.projection_fraction
        if warmup <= 0 or projection <= 0 or warmup + projection > 1:
            faults.append(
                "warm-up and projection must end with the training: their fractions must be positive and add up to 1 "
                f"at most, got {warmup} and {projection}"
            )
        if faults:
            raise ConfigError("; ".join(faults))


UNESSENTIAL = ("output_dir", "quiet", "restart", "keep_checkpoints")
"""Settings that do not change what a run computes."""


def to_json(config: Config) -> str:
    """Returns a config as JSON that `from_json` reads."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(text: str) -> Config:
    """Returns the config that a JSON text holds.

    Raises:
        ConfigError: it holds an unknown key, or is no JSON.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the config is no JSON: {error}") from None
    return _from_record(Config, record, "")


def differences(one: Config, other: Config) -> list[str]:
    """Returns the settings in which two configs differ and compute something else, one line each."""
    records = [essential_settings(config) for config in (one, other)]
    keys = {**records[0], **records[1]}
    return [f"{k}: {records[0].get(k)} → {records[1].get(k)}" for k in keys if records[0].get(k) != records[1].get(k)]


def essential_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that change what a run computes, by their names on the command line."""
    return {key: value for key, value in _flat(dataclasses.asdict(config)).items() if key not in UNESSENTIAL}


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _from_record(kind: type, record: dict[str, Any], prefix: str) -> Any:
    """Returns the dataclass that nested dictionaries describe."""
    hints = typing.get_type_hints(kind)
    for key in record:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(hints)}"
            raise ConfigError(f"there is no setting {prefix}{key}: {hint}")
    return kind(**{key: _from_value(hints[key], value, f"{prefix}{key}.") for key, value in record.items()})


def _from_value(kind: Any, value: Any, prefix: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _from_record(kind, value, prefix)
    if isinstance(kind, types.UnionType) and value is not None:
        return _from_value(typing.get_args(kind)[0], value, prefix)
    if kind is Path:
        return Path(value)
    return tuple(value) if typing.get_origin(kind) is tuple else value
