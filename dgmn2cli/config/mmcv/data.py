"""What the data part of an mmcv-style configuration means here: data sets, training and test pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dgmn2cli.config.mmcv import one_of, same
from dgmn2cli.config.mmcv.node import Mapped, Node
from dgmn2cli.config.mmcv.stock import CITYSCAPES_CLASSES
from dgmn2cli.validation import show

_TRAIN_STEPS = (
    *("LoadImageFromFile", "LoadAnnotations", "Resize", "RandomCrop", "RandomFlip", "PhotoMetricDistortion"),
    *("Normalize", "Pad", "DefaultFormatBundle", "Collect"),
)
_TEST_STEPS = ("Resize", "RandomFlip", "Normalize", "ImageToTensor", "Collect")
_OPTIONAL = ("RandomFlip", "PhotoMetricDistortion", "ImageToTensor")
# what the steps may hold: values they must have, our settings with MMSegmentation's defaults, squares, the rest
_FIXED: dict[str, dict[str, Any]] = {
    "LoadImageFromFile": {"to_float32": False, "color_type": "color", "imdecode_backend": "cv2"},
    "Resize": {"keep_ratio": True},
    "Normalize": {"to_rgb": True},
    "Pad": {"size_divisor": None, "pad_val": 0},
}
_SETTINGS: dict[str, tuple[tuple[str, str, Any], ...]] = {
    "RandomCrop": (("cat_max_ratio", "augment.category_max_ratio", 1.0), ("ignore_index", "data.ignore_index", 255)),
    "PhotoMetricDistortion": (
        ("brightness_delta", "augment.brightness", 32),
        ("contrast_range", "augment.contrast", (0.5, 1.5)),
        ("saturation_range", "augment.saturation", (0.5, 1.5)),
        ("hue_delta", "augment.hue", 18),
    ),
    "Pad": (("seg_pad_val", "data.ignore_index", 255),),
}
_SQUARES = {"RandomCrop": "crop_size", "Pad": "size"}
_HARMLESS = {
    "LoadImageFromFile": ("file_client_args",),
    "LoadAnnotations": ("imdecode_backend", "file_client_args", "with_seg"),
    **dict.fromkeys(("DefaultFormatBundle", "ImageToTensor", "Collect"), ("keys", "meta_keys")),
}
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_SUFFIXES = {"CityscapesDataset": ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"), "CustomDataset": (".jpg", ".png")}


def map_data(top: Node) -> None:
    """Maps the `data` key: batch size, workers, the two data sets and their pipelines."""
    data = top.child("data")
    if not top.has("data"):
        top.note("data", "absent; the published data settings hold")
        return
    data.give("samples_per_gpu", "train.batch_size")
    data.give("workers_per_gpu", "data.workers")
    data.harmless("persistent_workers", "pin_memory", "test_dataloader")
    splits = {key: _map_split(data, key) for key in ("train", "val", "test") if data.has(key)}
    data.harmless("train", "val", "test")
    data.done()
    _agree(data, splits)
    _note_unused_helpers(top, data)


@dataclass(frozen=True)
class _Split:
    """One data set of the foreign configuration; `values` are our settings that follow from its pipeline."""

    node: Node
    kind: str
    root: str
    images: str
    labels: str
    suffixes: tuple[str, str]
    classes: tuple[str, ...]
    palette: Any
    zero: bool
    values: dict[str, Any]

    def cityscapes_split(self) -> str:
        """The split's name if this is Cityscapes in its own layout with its own classes, else nothing."""
        split = PurePosixPath(self.images).name
        folders = (f"leftImg8bit/{split}", f"gtFine/{split}")
        own = self.kind == "CityscapesDataset" and self.classes in ((), CITYSCAPES_CLASSES) and not self.zero
        plain = self.suffixes == _SUFFIXES["CityscapesDataset"] and (self.images, self.labels) == folders
        return split if own and plain else ""


def _map_split(data: Node, key: str) -> _Split:
    node = data.child(key)
    kind = node.expect("type", ("CityscapesDataset", "CustomDataset"), default=None) or ""
    suffixes = _SUFFIXES.get(kind, ("", ""))
    classes = node.get("classes")
    if classes is not None and not (isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes)):
        node.fault("classes", f"{show(classes)}, wanted a list of names")
        classes = None
    node.expect("split", (None,))
    node.harmless("test_mode", "pipeline")
    node.give("ignore_index", "data.ignore_index", default=255)
    inner = Mapped()
    pipeline = node.values.get("pipeline")
    if pipeline is not None:
        reader = _map_train_pipeline if key == "train" else _map_test_pipeline
        reader(Node({"pipeline": pipeline}, node.path, inner))
    elif kind:
        node.fault("pipeline", "absent; wanted the list of steps")
    zero = bool(node.expect("reduce_zero_label", (False, True)))
    if inner.values.pop("reduce_zero_label", zero) != zero:
        node.fault("pipeline", "reduce_zero_label of LoadAnnotations and of the data set differ")
    data.mapped.faults += inner.faults
    data.mapped.notes += [note for note in inner.notes if note not in data.mapped.notes]
    split = _Split(
        node,
        kind,
        _path(node.text("data_root")) or ".",
        _path(node.text("img_dir")),
        _path(node.text("ann_dir")),
        (node.text("img_suffix") or suffixes[0], node.text("seg_map_suffix") or suffixes[1]),
        tuple(classes or ()),
        node.get("palette"),
        zero,
        inner.values,
    )
    node.done()
    return split


def _path(text: str | None) -> str:
    return str(PurePosixPath(text)) if text else ""


def _agree(data: Node, splits: dict[str, _Split]) -> None:
    """One description of the data from its two or three splits; where they contradict each other, a fault."""
    for split in splits.values():
        for key, value in split.values.items():
            data.mapped.put_once(key, value, split.node.place("pipeline"))
    train, val = splits.get("train"), splits.get("val", splits.get("test"))
    if train is None or val is None:
        data.note("train" if train is None else "val", "absent; our default holds")
        return
    put = data.mapped.put
    for name in ("kind", "root", "suffixes", "classes", "zero"):
        if getattr(train, name) != getattr(val, name):
            data.fault("val", f"its {name} differ from the training set's")
    put("data.root", train.root, train.node.place("data_root"))
    if train.cityscapes_split() and val.cityscapes_split():
        put("data.kind", "cityscapes", train.node.place("type"))
        put("data.train_split", train.cityscapes_split(), train.node.place("img_dir"))
        put("data.val_split", val.cityscapes_split(), val.node.place("img_dir"))
    elif train.kind:
        _map_folders(data, train, val)
    if train.palette is not None:
        put("data.palette", train.palette, train.node.place("palette"))
    test = splits.get("test")
    if test is not None and (test.root, test.images) != (val.root, val.images):
        test.node.note("img_dir", f"{show(test.images)} is another data set than val's, which evaluation takes")


def _map_folders(data: Node, train: _Split, val: _Split) -> None:
    """Two plain folders per split, as MMSegmentation's `CustomDataset` has them."""
    put = data.mapped.put
    put("data.kind", "folder", train.node.place("type"))
    for split, name in ((train, "train"), (val, "val")):
        for part, folder in (("images", split.images), ("labels", split.labels)):
            key = "img_dir" if part == "images" else "ann_dir"
            if not folder:
                split.node.fault(key, "absent; wanted a folder")
            put(f"data.{name}_{part}", folder, split.node.place(key))
    put("data.image_suffix", train.suffixes[0], train.node.place("img_suffix"))
    put("data.label_suffix", train.suffixes[1], train.node.place("seg_map_suffix"))
    put("data.reduce_zero_label", train.zero, train.node.place("reduce_zero_label"))
    classes, own = train.classes, CITYSCAPES_CLASSES
    if train.kind == "CityscapesDataset":
        classes = classes or own
        if not set(classes) <= set(own):
            train.node.fault("classes", "not all are classes of Cityscapes; for others say type='CustomDataset'")
        elif classes != own[: len(classes)] or len(classes) < len(own):
            ids = tuple((i, classes.index(name) if name in classes else 255) for i, name in enumerate(own))
            put("data.id_map", ids, train.node.place("classes"))
    if not classes:
        train.node.fault("classes", "absent; wanted the list of class names")
    put("data.classes", classes, train.node.place("classes"))


def _note_unused_helpers(top: Node, data: Node) -> None:
    """mmcv gives a name that is changed in a child file no effect on the base's values; users often expect one."""
    train, test = data.values.get("train"), data.values.get("test", data.values.get("val"))
    for name, split, key in (
        ("data_root", train, "data_root"),
        ("train_pipeline", train, "pipeline"),
        ("test_pipeline", test, "pipeline"),
    ):
        if name in top.values and isinstance(split, dict) and not same(top.values[name], split.get(key)):
            top.note(name, f"has no effect: it differs from the {key} that `data` holds, as it would with mmcv")


def _steps(node: Node, allowed: tuple[str, ...], steps: Any) -> dict[str, Node]:
    """The steps of a pipeline by type; they must come in the order of `allowed`, none missing that must be there."""
    if not isinstance(steps, (list, tuple)) or not all(isinstance(step, dict) for step in steps):
        node.fault("pipeline", f"{show(steps)}, wanted a list of dicts")
        return {}
    found: dict[str, Node] = {}
    last = -1
    for index, step in enumerate(steps):
        place = Node(step, f"{node.place('pipeline')}[{index}]", node.mapped)
        kind = place.expect("type", allowed, default=None)
        if kind is None:
            continue
        if allowed.index(kind) <= last:
            place.fault("type", f"'{kind}' stands too late or twice; wanted the order {', '.join(allowed)}")
        last = max(last, allowed.index(kind))
        found.setdefault(kind, place)
    for kind in allowed:
        if kind not in found and kind not in _OPTIONAL:
            node.fault("pipeline", f"the step '{kind}' is missing")
    return found


def _map_train_pipeline(node: Node) -> None:
    steps = _steps(node, _TRAIN_STEPS, node.values["pipeline"])
    put = node.mapped.put
    for kind, step in steps.items():
        _read_step(kind, step)
        if kind == "LoadAnnotations":
            put("reduce_zero_label", bool(step.expect("reduce_zero_label", (False, True))), step.path)
        elif kind == "Resize":
            step.fixed(multiscale_mode="range")
            step.two("img_scale", "augment.scale")
            step.two("ratio_range", "augment.ratio")
        elif kind == "RandomFlip":
            step.expect("direction", ("horizontal",))
            probability = step.get("prob", step.get("flip_ratio"))
            step.harmless("flip_ratio")
            put("augment.flip_prob", 0.0 if probability is None else probability, step.place("prob"))
        step.done()
    if steps:
        put("augment.photometric", "PhotoMetricDistortion" in steps, node.place("pipeline"))
        if "RandomFlip" not in steps:
            put("augment.flip_prob", 0.0, node.place("pipeline"))


def _read_step(kind: str, step: Node) -> None:
    """What a kind of steps says in every pipeline."""
    step.fixed(**_FIXED.get(kind, {}))
    for key, ours, default in _SETTINGS.get(kind, ()):
        step.give(key, ours, default)
    if kind in _SQUARES:
        step.square(_SQUARES[kind], "augment.crop")
    if kind == "Normalize":
        step.required(mean=_MEAN, std=_STD)
    step.harmless(*_HARMLESS.get(kind, ()))


def _map_test_pipeline(node: Node) -> None:
    steps = _steps(node, ("LoadImageFromFile", "MultiScaleFlipAug"), node.values["pipeline"])
    if load := steps.get("LoadImageFromFile"):
        _read_step("LoadImageFromFile", load)
        load.done()
    wrapper = steps.get("MultiScaleFlipAug")
    if wrapper is None:
        return
    wrapper.two("img_scale", "inference.scale")
    _map_ratios(wrapper)
    wrapper.expect("flip_direction", ("horizontal", ["horizontal"]))
    inner = Node({}, wrapper.path, node.mapped)
    for kind, step in _steps(inner, _TEST_STEPS, wrapper.get("transforms")).items():
        _read_step(kind, step)
        if kind == "Resize":
            step.fixed(img_scale=None, ratio_range=None)
        elif kind == "RandomFlip":
            step.harmless("prob", "flip_ratio", "direction")  # the wrapper says what is flipped
        step.done()
    wrapper.done()


def _map_ratios(wrapper: Node) -> None:
    """What a configuration tests by default is a choice of the command here: it becomes the multi-scale test."""
    ratios, flip = wrapper.get("img_ratios"), wrapper.expect("flip", (False, True))
    if ratios is None or one_of(ratios, (1.0, [1.0])):
        if flip:
            wrapper.fault("flip", "True without img_ratios, wanted both (the multi-scale test) or neither")
        return
    single = isinstance(ratios, (int, float))
    wrapper.mapped.put("inference.ratios", (ratios,) if single else ratios, wrapper.place("img_ratios"))
    wrapper.mapped.put("inference.flip", bool(flip), wrapper.place("flip"))
    wrapper.note("img_ratios", "the multi-scale test runs when asked for: --ms-flip")
