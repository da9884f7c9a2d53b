"""Every setting of a training run, with its default and what it must be.

A `Config` is made of plain JSON, as train.py and the files in configs/ have it, and as
checkpoints keep it. What is left out has its default, so that a run begun by an older
config, which had fewer keys, goes on; what nobody knows is refused, with the nearest
name. `to_json` is one form for all: what has no value of its own is left out there.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from dsmooth_jax import models
from dsmooth_jax.checks import check_choice, check_count, check_pair, check_range
from dsmooth_jax.data.decoding import check_size
from dsmooth_jax.hiding import HidingConfig
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.losses import LossConfig
from dsmooth_jax.training.optimizers import OptimizerConfig
from dsmooth_jax.training.teaching import TeacherConfig

DEFENCES = ("smoothing", "double_masking")
FORMER_NAMES = {"train.augment.colour": "color"}
"""Settings that configs saved earlier have by another name."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images; see `data.load`.

    Attributes:
      name: "mnist5k", or what lies in --data_dir.
      num_validation: images taken out of the training images; "mnist5k" has its own.
      seed: of the division into training and validation.
      test_split: what the source calls its test images.
      size: (height, width) in pixels that images are resized to; None: as they are.
      channels: 1 makes all images grey, 3 makes them RGB; None leaves them.
    """

    name: str = "mnist5k"
    num_validation: int = 5000
    seed: int = 0
    test_split: str = "test"
    size: Sequence[int] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_range("data.num_validation", self.num_validation, least=0)
        check_range("data.seed", self.seed, least=0, below=2**32)
        if self.size is not None:
            check_size("data.size", self.size)


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Which ablation: its kind, and what that kind takes.

    Attributes:
      kind: "Columns", "Rows", "Blocks", "MultiColumns" or "MultiBlocks".
      width: pixels, of Columns, Blocks and MultiColumns.
      height: pixels, of Rows and Blocks.
      size: pixels, of MultiBlocks.
      keep: windows, of MultiColumns and MultiBlocks.
      stride: pixels, of Columns, Rows and Blocks.
    """

    kind: str = "Columns"
    width: int | None = None
    height: int | None = None
    size: int | None = None
    keep: int | None = None
    stride: int | None = None


@dataclasses.dataclass(frozen=True)
class MasksConfig:
    """Masks of pixels, for `covering_masks`; of the defence "double_masking".

    Attributes:
      patch: (height, width) in pixels, the largest that is to be certified.
      per_axis: masks along each axis, >= 1.
      confidence: the least score of a class under two masks that is believed, in
        [0, 1). It changes no step; the best checkpoint is chosen with it.
    """

    patch: Sequence[int] = (5, 5)
    per_axis: int = 6
    confidence: float = 0.0

    def __post_init__(self) -> None:
        check_pair("masks.patch", self.patch)
        check_count("masks.per_axis", self.per_axis)
        check_range("masks.confidence", self.confidence, least=0, below=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network, and what that network takes; None: the network's own default.

    Attributes:
      name: "bandnet", "cnn", "small_cnn", "resnet18", "resnet34", "resnet50", "vit",
        "vit_tiny", "vit_small", "vit_base", "vit_large" or "efficientnet_lite0".
      width: of bandnet, cnn, resnets and "vit".
      stem: of resnets, "cifar" or "imagenet".
      max_width: of bandnet, as are the next, see `models.bandnet`.
      depth: residual blocks; also of "vit".
      halve: numbers, from 1, of the blocks that halve an axis kept whole; None: all.
      crops: windows of each image in a step.
      mirror: whether each window is read mirrored, too.
      shift: pixels by which each window is read moved, too.
      patch: pixels, of vision transformers, as are the rest, see `models.ViTConfig`.
      heads: of "vit".
      pool: "token" or "avg".
      class_token: whether there is one.
      registers: further tokens.
      qkv_bias: whether queries, keys and values have one.
      layer_scale: whether branches are scaled.
      pre_norm: whether there is a norm before the blocks.
      activation: "gelu" or "quick_gelu".
      epsilon: of the norms.
      resize: (height, width) in pixels, to which the network resizes after ablation.
      members: of "ensemble", which is not trained: the settings of each.
    """

    name: str = "bandnet"
    width: int | None = None
    stem: str | None = None
    max_width: int | None = None
    depth: int | None = None
    halve: Sequence[int] | None = None
    crops: int | None = None
    mirror: bool | None = None
    shift: int | None = None
    patch: int | None = None
    heads: int | None = None
    pool: str | None = None
    class_token: bool | None = None
    registers: int | None = None
    qkv_bias: bool | None = None
    layer_scale: bool | None = None
    pre_norm: bool | None = None
    activation: str | None = None
    epsilon: float | None = None
    resize: Sequence[int] | None = None
    members: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("width", "max_width", "depth", "crops", "patch", "heads"):
            if getattr(self, name) is not None:
                check_count(f"model.{name}", getattr(self, name))
        if self.resize is not None:
            check_pair("model.resize", self.resize)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How it is trained.

    Attributes:
      epochs: > 0, may be a fraction.
      batch_size: images in a step, of all devices together.
      num_accumulated: parts of a batch computed one after the other; it divides it.
      precision: "float32" or "bfloat16", of activations and gradients.
      optimizer: and its schedule.
      augment: what is done to the images first.
      hide: what of them is hidden, of the defence "double_masking".
      loss: what is minimised.
      teacher: whose probabilities take the place of labels; of cross-entropy.
      ema_decay: of the moving average of the variables, in [0, 1); 0: none.
      init_from: a workdir, to start from its best variables; or a file of weights,
        see `load_weights`; "": from random ones.
      init_head: whether a file's last layer is taken; False: it starts at zero.
      init_mean: of each color, as images of a file's network were normalised, in
        [0, 1]; None: ImageNet's.
      init_std: likewise, the divisor of each color.
    """

    epochs: float = 1.0
    batch_size: int = 128
    num_accumulated: int = 1
    precision: str = "float32"
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    hide: HidingConfig = dataclasses.field(default_factory=HidingConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    ema_decay: float = 0.0
    init_from: str = ""
    init_head: bool = True
    init_mean: Sequence[float] | None = None
    init_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_range("train.epochs", self.epochs, above=0, below=1e9)
        check_count("train.batch_size", self.batch_size)
        check_count("train.num_accumulated", self.num_accumulated)
        check_choice("train.precision", self.precision, ("float32", "bfloat16"))
        check_range("train.ema_decay", self.ema_decay, least=0, below=1)
        if self.batch_size % self.num_accumulated:
            raise ValueError(
                f"train.num_accumulated={self.num_accumulated} must divide "
                f"train.batch_size={self.batch_size}"
            )
        if self.teacher.workdir and self.loss.name != "cross_entropy":
            raise ValueError(
                f"train.teacher.workdir={self.teacher.workdir!r} gives soft labels, "
                f"and train.loss.name={self.loss.name!r} needs the true class; leave "
                "the teacher out, or take 'cross_entropy'"
            )


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """What threshold, strength and checkpoint are chosen by.

    Attributes:
      every_epochs: from one validation to the next, > 0, may be a fraction.
      patch: (height, width) in pixels, that they are chosen for.
      per_axis: masks along each axis, of the defence "double_masking": fewer than those
        of the classifier cost less.
    """

    every_epochs: float = 1.0
    patch: Sequence[int] = (5, 5)
    per_axis: int = 3

    def __post_init__(self) -> None:
        check_range("validation.every_epochs", self.every_epochs, above=0)
        check_pair("validation.patch", self.patch)
        check_count("validation.per_axis", self.per_axis)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
      seed: of variables, batches and everything else that is drawn.
      data: which images.
      defence: "smoothing" shows the network a little of an image at a time;
        "double_masking" hides a little of it.
      ablation: what the network sees of one; of smoothing.
      masks: what is hidden; of double masking.
      model: the network.
      train: how it is trained.
      validation: how the best is chosen.
    """

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    defence: str = "smoothing"
    ablation: AblationConfig = dataclasses.field(default_factory=AblationConfig)
    masks: MasksConfig = dataclasses.field(default_factory=MasksConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, least=0, below=2**32)
        check_choice("defence", self.defence, DEFENCES)
        if self.train.teacher.workdir and self.defence != "smoothing":
            raise ValueError(
                f"train.teacher.workdir={self.train.teacher.workdir!r} teaches what an "
                f"ablation says, and defence={self.defence!r} has none; leave it out"
            )


def from_json(record: Mapping[str, Any]) -> Config:
    """Reads a config; what is left out has its default.

    Args:
      record: plain JSON, as `to_json` gives or a checkpoint keeps.

    Raises:
      TypeError, ValueError: a key that there is not, with the nearest that there is; a
        value out of range.
    """
    return _read(Config, record, "")


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain JSON, in one form: tuples are lists, None is left out."""
    return _plain(dataclasses.asdict(config))


def canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with every default filled in, to compare with another.

    One that today's code does not know stays as it is.
    """
    try:
        plain = to_json(from_json(record))
        defaults = models.options(plain["model"]["name"])
    except (TypeError, ValueError):
        return dict(record)
    return plain | {"model": _plain({**defaults, **plain["model"]})}


def check_flags(argv: Sequence[str]) -> None:
    """Raises ValueError for a flag --config.NAME of no setting; it says the nearest."""
    known = set(_paths(Config, ""))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and not any(f"{key}.".startswith(f"{match[1]}.") for key in known):
            raise ValueError(
                f"--config.{match[1]}: there is no such setting; the nearest is "
                f"--config.{nearest_key(match[1])}"
            )


def nearest_key(path: str) -> str:
    """The dotted name of a setting that is most like the given one.

    >>> nearest_key("train.optimiser.lr"), nearest_key("data.chanels")
    ('train.optimizer.name', 'data.channels')
    """
    known = list(_paths(Config, ""))
    last = path.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    (found,) = difflib.get_close_matches(path, same or known, n=1, cutoff=0.0)
    return found


def _read(cls: Any, record: Any, path: str) -> Any:
    if not isinstance(record, Mapping):
        raise TypeError(f"{path or 'the config'}={record!r} must have keys and values")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for former, name in FORMER_NAMES.items():
        start, _, key = former.rpartition(".")
        if path == start and key in record and name not in record:
            record = {name if k == key else k: v for k, v in record.items()}
    for key in record:
        if key not in fields:
            wrong = f"{path}.{key}" if path else str(key)
            raise ValueError(
                f"the config has a key {wrong!r} that there is not; the nearest is "
                f"{nearest_key(wrong)!r}"
            )
    given = {}
    for key, value in record.items():
        part = f"{path}.{key}" if path else key
        is_part = dataclasses.is_dataclass(fields[key].type)
        given[key] = _read(fields[key].type, value, part) if is_part else value
        wanted = type(fields[key].default)
        if wanted in (bool, int, str) and type(value) is not wanted:
            kind = {bool: "True or False", int: "an integer", str: "text"}[wanted]
            raise TypeError(f"{part}={value!r} must be {kind}")
    return cls(**given)


def _paths(cls: Any, prefix: str) -> Any:
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _paths(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return list(value) if isinstance(value, list | tuple) else value


def template() -> config_dict.ConfigDict:
    """Every setting at its default, to be changed by files in configs/ and by flags."""
    return _template(Config())


def _template(value: Any) -> config_dict.ConfigDict:
    made = config_dict.ConfigDict()
    for field in dataclasses.fields(value):
        one = getattr(value, field.name)
        if dataclasses.is_dataclass(one):
            made[field.name] = _template(one)
        elif one is None:
            made[field.name] = config_dict.placeholder(_kind(field.type))
        else:
            made[field.name] = one
    return made


def _kind(annotation: Any) -> type:
    """What a setting is that may be None, for the parser of flags."""
    (kind,) = (kind for kind in annotation.__args__ if kind is not type(None))
    return kind if isinstance(kind, type) else tuple
