"""Loading the first weights of a training: the ImageNet backbone's, or a checkpoint's, its classes matched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dgmn2cli.checkpoint.unwrap import Checkpoint, class_names
from dgmn2cli.checkpoint.weights import load_backbone_weights, load_weights, read_checkpoint
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import ConfigError, IntegrityError
from dgmn2cli.files import read_text
from dgmn2cli.inference.load import class_list
from dgmn2cli.model.segmentor import Segmentor

MAX_WEIGHT_FILE = 1 << 20  # bytes
WEIGHT_LINES = "Each line is NAME = WEIGHT, for every class."
CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")


def load_initial_weights(model: Segmentor, first: tuple[Path, str | None] | None, data: SegmentationSet) -> list[str]:
    """Loads a training's first weights into `model`; says what was done with them.

    Args:
        model: with fresh weights.
        first: as `find_initial_weights` gives.
        data: the data set to train on; a segmentor's classifier rows are taken over by class name.

    Raises:
        ResourceError, IntegrityError, NonFiniteError: the file is missing, damaged, unsafe, or another model's.
    """
    if first is None:
        return ["Started from fresh weights (scratch)."]
    read = read_checkpoint(first[0], sha256=first[1])
    if not any(key.startswith("decode_head.") for key in read.state):
        load_backbone_weights(model.backbone, read)
        return [f"Took the backbone's weights from {first[0]}.", *read.notes]
    return [f"Took the weights from {first[0]}.", *read.notes, *_load_segmentor(model, read, data.classes)]


def _load_segmentor(model: Segmentor, read: Checkpoint, classes: tuple[str, ...]) -> list[str]:
    """All weights of a segmentor's checkpoint; classifier rows of classes it lacks stay fresh."""
    if not all(key in read.state for key in CLASSIFIER):
        load_weights(model, read)  # says what is missing
    count = read.state[CLASSIFIER[0]].shape[0]
    names = _names(read, count, classes)
    if names == classes:
        load_weights(model, read)
        return []
    known = {name: row for row, name in enumerate(names)}
    rows = [(row, known[name]) for row, name in enumerate(classes) if name in known]
    state = dict(read.state)
    for key in CLASSIFIER:
        state[key] = _matched(model.state_dict()[key], read.state[key], rows, key, read.path)
    load_weights(model, replace(read, state=state))
    copied = [classes[row] for row, _ in rows]
    fresh = [name for name in classes if name not in known]
    notes = [f"Classifier rows copied by name ({len(copied)} of {len(classes)}): {', '.join(copied) or 'none'}."]
    return [*notes, f"Classifier rows with fresh weights: {', '.join(fresh)}."] if fresh else notes


def _names(read: Checkpoint, count: int, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What the checkpoint's classes are called; where it does not say and has as many as the data: like those."""
    if class_names(read.meta)[0] is None and count == len(classes):
        return classes
    return class_list(count, read.meta).names


def _matched(fresh: Tensor, old: Tensor, rows: list[tuple[int, int]], key: str, path: Path) -> Tensor:
    """`fresh` with rows taken from `old`, both `(classes, ...)`; pairs are (row of fresh, row of old)."""
    if old.dim() != fresh.dim() or old.shape[1:] != fresh.shape[1:]:
        raise IntegrityError(
            "the checkpoint does not fit the model",
            where=path,
            why=f"{key} is {tuple(old.shape)}, wanted (classes, {', '.join(map(str, fresh.shape[1:]))})",
            hint="Check that the model name and the file belong together.",
        )
    made = fresh.detach().clone()
    with torch.no_grad():
        for row, source in rows:
            made[row] = old[source].to(made.dtype)
    return made


def class_weights_from(source: str, counted: tuple[float, ...], names: tuple[str, ...]) -> tuple[float, ...]:
    """Loss weights by class: those counted from the labels for `auto`, else those in a file.

    The file has a line `NAME = WEIGHT` or just `WEIGHT` for each class (the latter in the order of ids); `#` starts a
    comment.

    Raises:
        ConfigError: the file cannot be read, or has something else in it.
    """
    if source == "auto":
        return tuple(round(weight, 6) for weight in counted)
    path, what, hint = Path(source), "cannot use the class weights", "Give 'auto' or the path of a text file."
    content = read_text(path, MAX_WEIGHT_FILE, what, kind=ConfigError, hint=hint)
    stripped = [line.partition("#")[0].strip() for line in content.split("\n")]
    lines = [(number, line) for number, line in enumerate(stripped, 1) if line]
    found: dict[str, float] = {}
    for index, (number, line) in enumerate(lines):
        name, equals, text = line.rpartition("=")
        key = name.strip() if equals else (names[index] if index < len(names) else "")
        try:
            found[key] = float(text)
        except ValueError as error:
            why = f"line {number}: '{text.strip()[:40]}' is no number"
            raise ConfigError(what, where=path, why=why, hint=WEIGHT_LINES) from error
    wrong = [*(name for name in found if name not in names), *(name for name in names if name not in found)]
    if wrong or len(lines) != len(names) or not all(0 <= weight < float("inf") for weight in found.values()):
        why = f"wanted a weight from 0 for each of {len(names)} classes" + (f"; see {wrong[0]!r}" if wrong else "")
        raise ConfigError(what, where=path, why=why, hint=WEIGHT_LINES)
    return tuple(found[name] for name in names)
