"""The configuration, declared once: every setting with its type, range, default and meaning, and rules between them.

The defaults are the published recipe's; the files under `configs/recipes/` spell the same values out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from pydantic import Field, StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from dgmn2cli.validation import STRICT, Byte, Fault, Printable, faults_of, in_words, must, raise_faults, schema_of, show

Backbone = Literal["tiny", "small", "medium", "large"]
Head = Literal["fpn", "setr_naive", "setr_pup", "setr_mla"]
Protocol = Literal["paper", "native"]
BACKBONES: tuple[str, ...] = get_args(Backbone)
HEADS: tuple[str, ...] = get_args(Head)
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
MAX_SIDE = 100_000  # pixels
MAX_NAME = 200  # characters
MAX_LIST = 4096  # elements
WRONG = "the configuration is wrong"
C = TypeVar("C")


ONE_CLASS = (
    "one class teaches nothing, as every pixel would be it; wanted two or more: "
    "name the rest, such as ['background', 'road'], and ignore only pixels that should not count"
)
RISING = must(lambda pair: pair[0] <= pair[1], "wanted the smaller first")
RUN_NAME = must(
    lambda text: text.strip(". ") and not set("/\\") & set(text), "wanted a name with no slash, and not only dots"
)
NAMES_ONCE = must(lambda names: len(set(names)) == len(names), "wanted every name once")
SEVERAL = must(lambda names: len(names) != 1, ONE_CLASS)
KEYS_ONCE = must(lambda pairs: len({stored for stored, _ in pairs}) == len(pairs), "wanted every file value once")
NOT_ALL_0 = must(lambda weights: not weights or any(weights), "wanted at least one above 0")
FOLDER = must(str.strip, "wanted a folder; '.' is the working folder")
FIRST_WEIGHTS = must(str.strip, "wanted 'imagenet', 'scratch' or a path")
Text = Annotated[Printable, Field(max_length=4096)]
ClassName = Annotated[Printable, Field(min_length=1, max_length=MAX_NAME, pattern=r"\S")]
ClassNames = Annotated[tuple[ClassName, ...], Field(max_length=MAX_LIST), NAMES_ONCE, SEVERAL]
Color = tuple[Byte, Byte, Byte]
StoredId = Annotated[StrictInt, Field(ge=0, le=65535)]
Pixels = Annotated[StrictInt, Field(ge=1, le=MAX_SIDE)]
Factor = Annotated[StrictFloat, Field(ge=0.01, le=100)]
Gain = Annotated[StrictFloat, Field(ge=0, le=100)]
Decay = Annotated[StrictFloat, Field(ge=0, lt=1)]
Weight = Annotated[StrictFloat, Field(ge=0, le=1_000_000)]
Steps = Annotated[StrictInt, Field(ge=0, le=10**9)]


def setting(default: Any, help: str, **bounds: Any) -> Any:
    """A setting's default, its meaning in a sentence, with the unit, and pydantic's bounds (`ge`, `lt`, ...)."""
    return Field(default=default, description=help, **bounds)


@dataclass_transform(frozen_default=True)
def declared(section: str) -> Callable[[type[C]], type[C]]:
    """A frozen pydantic dataclass for a section; wrong values end in a `ConfigError` with every fault."""

    def declare(cls: type[C]) -> type[C]:
        made: Any = validated(cls, frozen=True, config=STRICT)
        names = [field.name for field in dataclasses.fields(made)]
        dot, create = f"{section}." if section else "", made.__init__

        @functools.wraps(create)
        def checked(self: Any, *args: Any, **values: Any) -> None:
            values.update(zip(names[: len(args)], args, strict=True))
            try:
                create(self, **values)
            except ValidationError as error:
                found = faults_of(error, schema_of(TypeAdapter(made)), values)
                faults = [Fault(f"{dot}{fault.key}", fault.text) for fault in found]
            else:
                faults = check_rules({f"{dot}{name}": getattr(self, name) for name in names} if section else flat(self))
            if faults:
                raise_faults(WRONG, [str(fault) for fault in faults], where=f"{section} settings" if section else "")

        made.__init__ = checked
        return made

    return declare


@declared("model")
class ModelConfig:
    """Which network."""

    backbone: Backbone = setting("tiny", "Size of the DGMN2 backbone.")
    head: Head = setting("setr_pup", "Segmentation head.")
    num_classes: StrictInt = setting(19, "Number of classes; 255 in a label file is no class.", ge=2, le=255)
    drop_path: Decay = setting(
        0.0, "Stochastic depth in training: probability of dropping the last block, less for earlier ones."
    )


@declared("data")
class DataConfig:
    """Where images and labels are, and what the label values mean.

    A data set of kind `folder` describes itself in the `dataset.toml` in its root, unless `classes` is given here:
    then the settings marked "folder" below describe it instead.
    """

    kind: Literal["cityscapes", "folder"] = setting(
        "cityscapes", "Layout of the data set: Cityscapes' own, or plain folders."
    )
    root: Annotated[Text, FOLDER] = setting(
        "data/cityscapes", "Folder of the data set; a relative one starts at the working folder."
    )
    train_split: Text = setting("train", "Split to train on, in Cityscapes or under a dataset.toml.")
    val_split: Text = setting("val", "Split to evaluate on, in Cityscapes or under a dataset.toml.")
    train_images: Text = setting("images/train", "kind 'folder': training images, relative to the root.")
    train_labels: Text = setting("labels/train", "kind 'folder': training labels, relative to the root.")
    val_images: Text = setting("images/val", "kind 'folder': images to evaluate on, relative to the root.")
    val_labels: Text = setting("labels/val", "kind 'folder': labels to evaluate with, relative to the root.")
    image_suffix: Text = setting("", "kind 'folder': end of an image's name, `_leftImg8bit.png`; empty: any image.")
    label_suffix: Text = setting(".png", "kind 'folder': end of a label's name, in place of the image's suffix.")
    classes: ClassNames = setting((), "Class names in the order of their ids; empty: the data set's own.")
    palette: Annotated[tuple[Color, ...], Field(max_length=MAX_LIST)] = setting(
        (), "Red, green, blue of each class; empty: the data set's own."
    )
    ignore_index: StoredId = setting(255, "Label value of pixels that count neither in loss nor score.")
    reduce_zero_label: StrictBool = setting(
        False, "kind 'folder': label 0 is ignored and every other id is lowered by one."
    )
    id_map: Annotated[tuple[tuple[StoredId, Byte], ...], Field(max_length=65536), KEYS_ONCE] = setting(
        (), "kind 'folder': pairs [value in the file, class id], applied before anything else; other values stay."
    )
    workers: StrictInt = setting(
        2, "Loader processes per training process; 0 loads in the process itself.", ge=0, le=256
    )


@declared("augment")
class AugmentConfig:
    """What happens to a training sample, in the published order: scale, crop, mirror, colours, normalise, pad."""

    scale: tuple[Pixels, Pixels] = setting(
        (2049, 1025), "Sides, in pixels, an image is fitted into at ratio 1, its shape kept."
    )
    ratio: Annotated[tuple[Factor, Factor], RISING] = setting(
        (0.5, 2.0), "The scale's factor is drawn from this range."
    )
    crop: StrictInt = setting(769, "Side, in pixels, of the square training crop.", ge=1, le=16384)
    category_max_ratio: StrictFloat = setting(
        0.75, "A crop passes if its largest class covers less than this share; 1 takes the first crop.", gt=0, le=1
    )
    flip_prob: StrictFloat = setting(0.5, "Probability of mirroring left to right.", ge=0, le=1)
    photometric: StrictBool = setting(True, "Distort the colours: each step with probability one half.")
    brightness: StrictFloat = setting(
        32.0, "Largest change of brightness, in steps of the channels' 0 to 255.", ge=0, le=255
    )
    contrast: Annotated[tuple[Gain, Gain], RISING] = setting((0.5, 1.5), "Range of the contrast factor.")
    saturation: Annotated[tuple[Gain, Gain], RISING] = setting((0.5, 1.5), "Range of the saturation factor.")
    hue: StrictInt = setting(18, "Hue shift: from -hue to hue - 1, 180 being the full circle.", ge=1, le=90)


@declared("loss")
class LossConfig:
    """What the training minimises; class weights are `train.class_weights`, and hold for each kind."""

    kind: Literal["ce", "ohem", "focal", "dice", "ce+dice"] = setting(
        "ce", "Cross entropy, that of hard pixels only, focal loss, Dice loss, or the sum of cross entropy and Dice."
    )
    ohem_threshold: StrictFloat = setting(
        0.7, "ohem: pixels whose own class has a probability below this are hard.", gt=0, le=1
    )
    ohem_min_kept: StrictInt = setting(
        100_000, "ohem: pixels per image that count in any case, the hardest of the batch.", ge=0, le=10**9
    )
    focal_gamma: StrictFloat = setting(
        2.0, "focal: exponent of (1 - p), p being the probability of the pixel's class.", ge=1, le=100
    )
    dice_weight: StrictFloat = setting(1.0, "ce+dice: factor of the Dice loss.", ge=0, le=1000)


@declared("optim")
class OptimConfig:
    """AdamW over one parameter group; step i of n has the rate (lr - min_lr) * (1 - i/n)**power + min_lr.

    In the first `warmup` steps it is multiplied by (i + 1) / warmup.
    """

    lr: StrictFloat = setting(1e-4, "Highest learning rate, from which it falls.", gt=0)
    betas: tuple[Decay, Decay] = setting((0.9, 0.999), "Decay of the two moment estimates.")
    eps: StrictFloat = setting(1e-8, "Added to the root of the second moment.", gt=0, le=1)
    weight_decay: StrictFloat = setting(1e-4, "Decoupled weight decay, on every parameter.", ge=0, le=10)
    power: StrictFloat = setting(0.9, "Exponent of the learning rate's fall; 0 keeps it constant.", ge=0, le=100)
    min_lr: StrictFloat = setting(0.0, "Learning rate the fall ends at.", ge=0)
    warmup: Steps = setting(0, "Steps in which the learning rate rises.")


@declared("train")
class TrainConfig:
    """How long, on how much, from what, and what is kept."""

    iters: StrictInt = setting(40_000, "Optimiser steps.", ge=1, le=10**9)
    batch_size: StrictInt = setting(
        2, "Images per process and forward pass; 0: as many as the memory holds, measured.", ge=0, le=65536
    )
    recipe_batch: StrictInt = setting(8, "Images per step the learning rate is made for; 0: any.", ge=0, le=10**6)
    accumulate: StrictInt = setting(1, "Forward passes whose gradients make one step.", ge=1, le=65536)
    val_every: Steps = setting(4000, "Evaluate after this many steps; 0: only at the end.")
    patience: Steps = setting(0, "Stop after this many evaluations without a better mIoU; 0: never.")
    save_every: Steps = setting(4000, "Save a numbered checkpoint after this many steps; 0: none.")
    keep: StrictInt = setting(0, "Numbered checkpoints that stay, the newest; 0: all.", ge=0, le=10**6)
    logger: Literal["tensorboard", "wandb"] = setting(
        "tensorboard", "Where curves go; 'wandb': to Weights & Biases, too, offline unless WANDB_MODE says otherwise."
    )
    seed: StrictInt = setting(0, "Seed of everything random.", ge=0, le=2**32 - 1)
    deterministic: StrictBool = setting(False, "Refuse operations whose result depends on the run.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Dtype of the forward pass; the weights stay float32."
    )
    init: Annotated[Text, FIRST_WEIGHTS] = setting(
        "imagenet", "First weights: 'imagenet' (the published backbone), 'scratch', or a checkpoint's path."
    )
    freeze_backbone: StrictBool = setting(False, "Train the head only.")
    sync_bn: StrictBool = setting(True, "Synchronise batch norm statistics when several processes train.")
    ema: StrictBool = setting(False, "Keep a moving average of the weights and evaluate that.")
    ema_decay: Decay = setting(0.999, "Decay of the moving average per step.")
    class_weights: Annotated[tuple[Weight, ...], Field(max_length=MAX_LIST), NOT_ALL_0] = setting(
        (), "Loss weight of each class; empty: all 1."
    )
    class_weights_from: Text = setting(
        "", "Loss weights 'auto' (from the labels' pixel counts) or from a file; empty: `class_weights` holds."
    )


@validated(frozen=True, config=STRICT)
class InferenceProcedure:
    """How an image is segmented: the sliding window, and the scales of the multi-scale test."""

    protocol: Literal["paper", "native", "whole"] = setting(
        "paper",
        "'paper' fits images into `scale` and cuts windows; 'native' cuts windows of the image as it is, padded where "
        "it is smaller; 'whole' stretches it to exactly `scale`, one piece.",
    )
    scale: tuple[Pixels, Pixels] | None = setting(
        (2049, 1025), "Width and height; null, for 'native' and 'whole': the image's own."
    )
    window: Pixels = setting(769, "Side, in pixels, of the sliding window.")
    stride: Pixels = setting(513, "Pixels from one window to the next.")
    ratios: Annotated[tuple[Factor, ...], Field(min_length=1, max_length=MAX_LIST)] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "Factors of the scale that the multi-scale test averages."
    )
    flip: StrictBool = setting(True, "The multi-scale test averages mirrored images, too.")


@declared("inference")
class InferenceConfig(InferenceProcedure):
    """How an image is segmented, by windows."""

    protocol: Protocol = setting(
        "paper", "'paper' fits the image into `scale` first; 'native' keeps its size and pads small windows."
    )
    scale: tuple[Pixels, Pixels] = setting((2049, 1025), "Sides, in pixels, an image is fitted into, its shape kept.")


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "inference": InferenceConfig,
}


@declared("")
class Config:
    """A complete configuration.

    Attributes:
        name: what the run is called; the file's name without its suffix where the file does not say.
        model, data, augment, loss, optim, train, inference: the sections.
        notes: what a reader of another format thought worth saying; no setting.
    """

    name: Annotated[Printable, Field(min_length=1, max_length=MAX_NAME), RUN_NAME]
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    notes: tuple[Printable, ...] = ()


@functools.cache
def adapter() -> TypeAdapter[Config]:
    """What checks a whole configuration."""
    return TypeAdapter(Config)


@dataclass(frozen=True)
class Setting:
    """One setting as documentation shows it."""

    key: str  # dotted, `optim.lr`
    wanted: str  # type and range in words
    default: Any  # its value where no file says otherwise
    help: str  # what it does, with its unit


def config_schema() -> dict[str, Any]:
    """The JSON schema of a configuration."""
    return schema_of(adapter())


def settings() -> Iterator[Setting]:
    """Every setting with its range, default and meaning, for documentation."""
    schema = schema_of(adapter())
    for key, default in defaults().items():
        node = _node(key)
        yield Setting(key, in_words(node, schema), default, node["description"])


@functools.cache
def defaults() -> dict[str, Any]:
    """The value that each setting has where nothing is said, by its dotted key, in the schema's order."""
    fields = {section: cls.__pydantic_fields__ for section, cls in SECTIONS.items()}  # type: ignore[attr-defined]
    return {f"{section}.{name}": field.default for section in fields for name, field in fields[section].items()}


def _node(key: str) -> dict[str, Any]:
    """The JSON schema of a setting."""
    section, _, name = key.partition(".")
    node: dict[str, Any] = schema_of(adapter())["$defs"][SECTIONS[section].__name__]["properties"][name]
    return node


def is_text(key: str) -> bool:
    """Whether a dotted key is that of a setting which takes any text; of `name`, too."""
    if key not in defaults():
        return key == "name"
    node = _node(key)
    return node.get("type") == "string" and "enum" not in node


def flat(config: Config) -> dict[str, Any]:
    """Every setting of a configuration by its dotted key, in the schema's order."""
    parts = (key.partition(".") for key in defaults())
    return {f"{section}.{name}": getattr(getattr(config, section), name) for section, _, name in parts}


@dataclass(frozen=True)
class Rule:
    """A condition between settings: `holds` is called with the values of `keys` and must be true."""

    keys: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


def _one_each(items: tuple[Any, ...], count: int) -> bool:
    return len(items) in (0, count)


def _folder_only(key: str) -> Rule:
    """A setting of a folder that is described here must not be set where nothing would read it."""
    default = defaults()[f"data.{key}"]
    return Rule(
        (f"data.{key}", "data.kind", "data.classes"),
        lambda value, kind, classes: value == default or (kind == "folder" and len(classes) > 0),
        "but this setting counts only with data.kind 'folder' and data.classes given",
    )


def _of_named_splits(key: str) -> Rule:
    """The name of a split must not be set where folders are described here, each by its own path."""
    default = defaults()[f"data.{key}"]
    return Rule(
        (f"data.{key}", "data.kind", "data.classes"),
        lambda value, kind, classes: value == default or kind != "folder" or not classes,
        "but data.classes is given: data.train_images and the like say where the images are",
    )


RULES = (
    Rule(("optim.warmup", "train.iters"), lambda warmup, iters: warmup <= iters, "wanted at most train.iters"),
    Rule(
        ("train.patience", "train.val_every"),
        lambda patience, every: not patience or every > 0,
        "but train.val_every is 0: nothing is evaluated before the end",
    ),
    Rule(("optim.min_lr", "optim.lr"), lambda low, lr: low <= lr, "wanted at most optim.lr"),
    Rule(
        ("inference.stride", "inference.window"),
        lambda stride, window: stride <= window,
        "wanted at most inference.window, or pixels would be left out",
    ),
    Rule(
        ("train.class_weights_from", "train.class_weights"),
        lambda source, weights: not (source and weights),
        "but train.class_weights is given, too; wanted one of them",
    ),
    Rule(("train.class_weights", "model.num_classes"), _one_each, "wanted one weight for each of model.num_classes"),
    Rule(("data.classes", "model.num_classes"), _one_each, "wanted one name for each of model.num_classes"),
    Rule(("data.palette", "model.num_classes"), _one_each, "wanted one colour for each of model.num_classes"),
    *map(_folder_only, ("train_images", "train_labels", "val_images", "val_labels", "image_suffix", "label_suffix")),
    *map(_folder_only, ("reduce_zero_label", "id_map")),
    *map(_of_named_splits, ("train_split", "val_split")),
)


def check_rules(values: Mapping[str, Any]) -> list[Fault]:
    """The rules that do not hold, among those all of whose keys are in `values`."""
    return [
        Fault(rule.keys[0], f"{show(values[rule.keys[0]])}, {rule.text}", rule.keys[1:])
        for rule in RULES
        if all(key in values for key in rule.keys) and not rule.holds(*(values[key] for key in rule.keys))
    ]
