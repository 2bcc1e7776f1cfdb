"""Owns the schema of a configuration: every setting with its type, range, default and meaning.

The defaults are the published recipe's; the files under `configs/recipes/` spell the same values out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dgmn2cli.config.fields import Fault, Rule, Setting, check_rules, names_of, raise_faults, setting, settings_of
from dgmn2cli.config.fields import settle as _settle

BACKBONES = ("tiny", "small", "medium", "large")
HEADS = ("fpn", "setr_naive", "setr_pup", "setr_mla")
DATASETS = ("cityscapes", "folder")
PROTOCOLS = ("paper", "native")
DTYPES = ("float32", "bfloat16", "float16")
MAX_SIDE = 100_000  # pixels
MAX_NAME = 200  # characters


def settle(section: Any, name: str) -> None:
    """Checks a section as it is made, against its ranges and the rules within it."""
    _settle(section, name, RULES)


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    backbone: str = setting("tiny", "Size of the DGMN2 backbone.", choices=BACKBONES)
    head: str = setting("setr_pup", "Segmentation head.", choices=HEADS)
    num_classes: int = setting(19, "Number of classes; 255 in a label file is no class.", low=1, high=255)
    drop_path: float = setting(
        0.0,
        "Stochastic depth while training: probability of dropping the last block, less for earlier ones.",
        low=0,
        below=1,
    )

    def __post_init__(self) -> None:
        settle(self, "model")


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and labels are, and what the label values mean.

    A data set of kind `folder` describes itself in the `dataset.toml` in its root, unless `classes` is given here:
    then the settings marked "folder" below describe it instead.
    """

    kind: str = setting("cityscapes", "Layout of the data set: Cityscapes' own, or plain folders.", choices=DATASETS)
    root: str = setting("data/cityscapes", "Folder of the data set; a relative one starts at the working folder.")
    train_split: str = setting("train", "Split to train on, in Cityscapes or under a dataset.toml.")
    val_split: str = setting("val", "Split to evaluate on, in Cityscapes or under a dataset.toml.")
    train_images: str = setting("images/train", "Folder: training pictures, relative to the root.")
    train_labels: str = setting("labels/train", "Folder: training labels, relative to the root.")
    val_images: str = setting("images/val", "Folder: pictures to evaluate on, relative to the root.")
    val_labels: str = setting("labels/val", "Folder: labels to evaluate with, relative to the root.")
    image_suffix: str = setting("", "Folder: end of a picture's name, `_leftImg8bit.png`; empty: any picture.")
    label_suffix: str = setting(".png", "Folder: end of a label's name, in place of the picture's suffix.")
    classes: tuple[str, ...] = setting((), "Class names in the order of their ids; empty: the data set's own.")
    palette: tuple[tuple[int, int, int], ...] = setting(
        (), "Red, green, blue of each class; empty: the data set's own.", low=0, high=255
    )
    ignore_index: int = setting(255, "Label value of pixels that count neither in loss nor score.", low=0, high=255)
    reduce_zero_label: bool = setting(False, "Folder: label 0 is ignored and every other id is lowered by one.")
    id_map: tuple[tuple[int, int], ...] = setting(
        (),
        "Folder: pairs [value in the file, class id], applied before anything else; other values stay.",
        low=0,
        high=255,
    )
    workers: int = setting(2, "Loader processes per training process; 0 loads in the process itself.", low=0, high=256)

    def __post_init__(self) -> None:
        settle(self, "data")


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training sample, in the published order: scale, crop, mirror, colours, normalise, pad."""

    scale: tuple[int, int] = setting(
        (2049, 1025), "Sides, in pixels, a picture is fitted into at ratio 1, its shape kept.", low=1, high=MAX_SIDE
    )
    ratio: tuple[float, float] = setting((0.5, 2.0), "The scale's factor is drawn from this range.", low=0.01, high=100)
    crop: int = setting(769, "Side, in pixels, of the square training crop.", low=1, high=16384)
    category_max_ratio: float = setting(
        0.75,
        "A crop passes if its largest class covers less than this share; 1 takes the first crop.",
        above=0,
        high=1,
    )
    flip_prob: float = setting(0.5, "Probability of mirroring left to right.", low=0, high=1)
    photometric: bool = setting(True, "Distort the colours: each step with probability one half.")
    brightness: float = setting(32.0, "Added to every channel, at most, of 0 to 255.", low=0, high=255)
    contrast: tuple[float, float] = setting((0.5, 1.5), "Range of the contrast factor.", low=0, high=100)
    saturation: tuple[float, float] = setting((0.5, 1.5), "Range of the saturation factor.", low=0, high=100)
    hue: int = setting(18, "Hue shift: from -hue to hue - 1, 180 being the full circle.", low=1, high=90)

    def __post_init__(self) -> None:
        settle(self, "augment")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW over one parameter group; step i of n has the rate (lr - min_lr) * (1 - i/n)**power + min_lr."""

    lr: float = setting(1e-4, "Learning rate of the first iteration.", above=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "Decay of the two moment estimates.", low=0, below=1)
    eps: float = setting(1e-8, "Added to the root of the second moment.", above=0, high=1)
    weight_decay: float = setting(1e-4, "Decoupled weight decay, on every parameter.", low=0, high=10)
    power: float = setting(0.9, "Exponent of the learning rate's fall; 0 keeps it constant.", low=0, high=100)
    min_lr: float = setting(0.0, "Learning rate the fall ends at.", low=0)

    def __post_init__(self) -> None:
        settle(self, "optim")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on how much, from what, and what is kept."""

    iters: int = setting(40_000, "Optimiser steps.", low=1, high=10**9)
    batch_size: int = setting(2, "Pictures per process and forward pass.", low=1, high=65536)
    recipe_batch: int = setting(8, "Pictures per step the learning rate is made for; 0: any.", low=0, high=10**6)
    accumulate: int = setting(1, "Forward passes whose gradients make one step.", low=1, high=65536)
    val_every: int = setting(4000, "Evaluate after this many steps; 0: only at the end.", low=0, high=10**9)
    save_every: int = setting(4000, "Save a numbered checkpoint after this many steps; 0: none.", low=0, high=10**9)
    keep: int = setting(0, "Numbered checkpoints that stay, the newest; 0: all.", low=0, high=10**6)
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**32 - 1)
    deterministic: bool = setting(False, "Refuse operations whose result depends on the run.")
    dtype: str = setting("float32", "Number format of the forward pass; the weights stay float32.", choices=DTYPES)
    init: str = setting(
        "imagenet", "First weights: 'imagenet' (the published backbone), 'scratch', or a checkpoint's path."
    )
    freeze_backbone: bool = setting(False, "Train the head only.")
    sync_bn: bool = setting(True, "Synchronise batch norm statistics when several processes train.")
    ema: bool = setting(False, "Keep a moving average of the weights and evaluate that.")
    ema_decay: float = setting(0.999, "Decay of the moving average per step.", low=0, below=1)
    class_weights: tuple[float, ...] = setting((), "Loss weight of each class; empty: all 1.", low=0, high=1_000_000)
    class_weights_from: str = setting(
        "", "Loss weights 'auto' (from the labels' pixel counts) or from a file; empty: `class_weights` holds."
    )

    def __post_init__(self) -> None:
        settle(self, "train")


@dataclass(frozen=True)
class InferenceConfig:
    """How a picture is segmented: the sliding window, and the scales of the multi-scale test."""

    protocol: str = setting(
        "paper",
        "'paper' fits the picture into `scale` first; 'native' keeps its size and pads small windows.",
        choices=PROTOCOLS,
    )
    scale: tuple[int, int] = setting(
        (2049, 1025), "Sides, in pixels, a picture is fitted into, its shape kept.", low=1, high=MAX_SIDE
    )
    window: int = setting(769, "Side, in pixels, of the sliding window.", low=1, high=MAX_SIDE)
    stride: int = setting(513, "Pixels from one window to the next.", low=1, high=MAX_SIDE)
    ratios: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        "Factors of the scale that the multi-scale test averages.",
        low=0.01,
        high=100,
        least=1,
    )
    flip: bool = setting(True, "The multi-scale test averages mirrored pictures, too.")

    def __post_init__(self) -> None:
        settle(self, "inference")


@dataclass(frozen=True)
class Config:
    """A complete configuration.

    Attributes:
        name: what the run is called; the file's name without its suffix where the file does not say.
        model, data, augment, optim, train, inference: the sections.
        notes: what a reader of another format thought worth saying; no setting.
    """

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = [Fault("name", text)] if (text := name_fault(self.name)) else []
        faults += check_rules(RULES, flat(self))
        if faults:
            raise_faults([str(fault) for fault in faults], where=self.name if isinstance(self.name, str) else "")


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "inference": InferenceConfig,
}


def flat(config: Config) -> dict[str, Any]:
    """Every setting of a configuration by its dotted key, in the schema's order."""
    return {
        f"{section}.{name}": getattr(getattr(config, section), name)
        for section, cls in SECTIONS.items()
        for name in names_of(cls)
    }


def settings() -> Iterator[Setting]:
    """Every setting with its range, default and meaning, for documentation."""
    for section, cls in SECTIONS.items():
        yield from settings_of(cls, section)


def name_fault(name: object) -> str:
    """What is wrong with a configuration's name, or nothing."""
    fits = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name.strip(". ")
    if fits and not set("/\\") & set(str(name)):
        return ""
    return f"wanted 1 to {MAX_NAME} printable characters, no slash, not only dots"


def _rising(pair: tuple[float, float]) -> bool:
    return pair[0] <= pair[1]


def _one_each(items: tuple[Any, ...], count: int) -> bool:
    return len(items) in (0, count)


def _folder_only(key: str) -> Rule:
    """A setting of a folder that is described here must not be set where nothing would read it."""
    default = getattr(DataConfig, key)
    return Rule(
        (f"data.{key}", "data.kind", "data.classes"),
        lambda value, kind, classes: value == default or (kind == "folder" and len(classes) > 0),
        "but this setting counts only with data.kind 'folder' and data.classes given",
    )


RULES = (
    Rule(("augment.ratio",), _rising, "wanted the smaller first"),
    Rule(("augment.contrast",), _rising, "wanted the smaller first"),
    Rule(("augment.saturation",), _rising, "wanted the smaller first"),
    Rule(("optim.min_lr", "optim.lr"), lambda low, lr: low <= lr, "wanted at most optim.lr"),
    Rule(
        ("inference.stride", "inference.window"),
        lambda stride, window: stride <= window,
        "wanted at most inference.window, or pixels would be left out",
    ),
    Rule(("train.init",), lambda init: bool(init.strip()), "wanted 'imagenet', 'scratch' or a path"),
    Rule(("data.root",), lambda root: bool(root.strip()), "wanted a folder; '.' is the working folder"),
    Rule(
        ("train.class_weights_from", "train.class_weights"),
        lambda source, weights: not (source and weights),
        "but train.class_weights is given, too; wanted one of them",
    ),
    Rule(("train.class_weights", "model.num_classes"), _one_each, "wanted one weight for each of model.num_classes"),
    Rule(("train.class_weights",), lambda weights: not weights or any(weights), "wanted at least one above 0"),
    Rule(("data.classes", "model.num_classes"), _one_each, "wanted one name for each of model.num_classes"),
    Rule(("data.classes",), lambda names: len(set(names)) == len(names), "wanted every name once"),
    Rule(("data.palette", "model.num_classes"), _one_each, "wanted one colour for each of model.num_classes"),
    Rule(("data.id_map",), lambda pairs: len({a for a, _ in pairs}) == len(pairs), "wanted every file value once"),
    *(
        _folder_only(key)
        for key in (
            "train_images",
            "train_labels",
            "val_images",
            "val_labels",
            "image_suffix",
            "label_suffix",
            "reduce_zero_label",
            "id_map",
        )
    ),
)
