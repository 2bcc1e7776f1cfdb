"""Owns what a training is asked for, and all that is settled and checked before a network is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dgmn2cli.config import Config
from dgmn2cli.data.check import DataReport, check_dataset, require_sound
from dgmn2cli.data.configured import open_configured, split_name
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.transforms import (
    NormalizeAndPad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomScale,
    TrainTransform,
    Transform,
)
from dgmn2cli.errors import ConfigError
from dgmn2cli.observer import Silent
from dgmn2cli.training.folder import RunFolder
from dgmn2cli.training.report import Reporter
from dgmn2cli.training.start import class_weights_from, find_first_weights
from dgmn2cli.zoo.cache import checks_dir

RESUME_NEWEST = "auto"


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; it can be sent to another process.

    Attributes:
        config: the configuration, overrides applied.
        out: the run folder.
        model: zoo key or configuration name, for reports.
        adapt_classes: the number of classes may follow the data set (nobody has named one).
        processes: on this machine; `torchrun` overrules it.
        device: `auto`, `cpu`, `cuda`, ...
        backend: of the op.
        threads: CPU threads of each process; None: torch's, divided among the processes.
        resume: empty: a new run; `auto`: go on from the newest state; else the checkpoint to go on from.
        force: go on although the configuration differs.
        zoo_file, cache: the manifest and the cache folder; the usual ones if None.
    """

    config: Config
    out: Path
    model: str = ""
    adapt_classes: bool = False
    processes: int = 1
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    resume: str = ""
    force: bool = False
    zoo_file: Path | None = None
    cache: Path | None = None

    @property
    def folder(self) -> RunFolder:
        """Where the run keeps what."""
        return RunFolder(self.out)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A training that can begin.

    Attributes:
        config: resolved: number of classes and class weights are those in force.
        train, val: the data, checked.
        notes: what the user should know about how the configuration was resolved.
    """

    config: Config
    train: SegmentationSet
    val: SegmentationSet
    notes: tuple[str, ...]


def prepare(request: TrainRequest, reporter: Reporter, *, need_first_weights: bool = True) -> Prepared:
    """Settles and checks everything that can go wrong before a network is built, cheapest first.

    Args:
        need_first_weights: the run starts from `train.init`; a resumed one does not.

    Raises:
        ConfigError: the configuration does not fit the data set, or class weights are wrong.
        ResourceError: the first weights are not there.
        DataError: the data set has faults; all are named.
    """
    config, notes = request.config, []
    if need_first_weights:
        find_first_weights(config.train.init, config.model.backbone, request.zoo_file, request.cache)
    train, val = open_splits(config)
    if config.model.num_classes != len(train.classes):
        notes.append(_refuse_or_adapt(request, train))
        config = replace(config, model=replace(config.model, num_classes=len(train.classes)))
    reports = [_checked(data, request, reporter) for data in (train, val)]
    for report in reports:
        notes += [f"{report.split}: {note}" for note in report.notes]
    if config.train.class_weights_from:
        counted = tuple(entry.weight for entry in reports[0].classes)
        weights = class_weights_from(config.train.class_weights_from, counted, train.classes)
        settings = replace(config.train, class_weights=weights, class_weights_from="")
        config = replace(config, train=settings)
        pairs = (f"{name} {weight:.3g}" for name, weight in zip(train.classes, weights, strict=True))
        notes.append(f"Class weights: {', '.join(pairs)}.")
    return Prepared(config, train, val, tuple(notes))


def open_splits(config: Config) -> tuple[SegmentationSet, SegmentationSet]:
    """The splits to train on and to evaluate on.

    Raises:
        ConfigError: class names that are not the data set's, or a wrong description.
        DataError: they cannot be opened, or do not have the same classes.
    """
    settings = config.data
    train, val = (open_configured(settings, split_name(settings, part)) for part in ("train", "val"))
    if train.classes != val.classes:
        raise ConfigError("the splits have other classes", where=train.root, why=f"{train.split} and {val.split}")
    return train, val


def _refuse_or_adapt(request: TrainRequest, data: SegmentationSet) -> str:
    count = len(data.classes)
    if not request.adapt_classes:
        raise ConfigError(
            "the configuration does not fit the data set",
            where=data.root,
            why=f"model.num_classes is {request.config.model.num_classes}, the data set has {count} classes",
            hint=f"Add --set model.num_classes={count}.",
        )
    return f"model.num_classes: {request.config.model.num_classes} -> {count}, the data set's."


class _Counting(Silent):
    """Hands each pair that was checked to the reporter."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        self._step()


def _checked(data: SegmentationSet, request: TrainRequest, reporter: Reporter) -> DataReport:
    observer = _Counting(reporter.counting(f"checking {data.split}", len(data)))
    workers = max(1, request.config.data.workers)
    return require_sound(check_dataset(data, workers=workers, observer=observer, memory=checks_dir(request.cache)))


def augmentation(config: Config) -> TrainTransform:
    """The configuration's augmentation, in the published order."""
    settings = config.augment
    crop = (settings.crop, settings.crop)
    steps: list[Transform] = [
        RandomScale(settings.scale, *settings.ratio),
        RandomCrop(crop, settings.category_max_ratio),
        RandomFlip(settings.flip_prob),
    ]
    if settings.photometric:
        distort = partial(PhotometricDistortion, settings.brightness, settings.contrast, settings.saturation)
        steps.append(distort(settings.hue))
    return TrainTransform(tuple(steps), NormalizeAndPad(crop))


def effective_batch(config: Config, world: int) -> int:
    """Pictures per optimiser step."""
    return world * config.train.batch_size * config.train.accumulate


def outline(config: Config, world: int, pictures: int) -> str:
    """Batch, learning rate and length of a training in one line."""
    train, batch = config.train, effective_batch(config, world)
    parts = f"{world} process{'es' * (world != 1)} x {train.batch_size}"
    if train.accumulate > 1:
        parts += f" x {train.accumulate} accumulated"
    if train.recipe_batch not in (0, batch):
        needed, rest = divmod(train.recipe_batch, world * train.batch_size)
        parts += f"; the recipe is made for {train.recipe_batch}" + ("" if rest else f": --accumulate {needed}")
    return (
        f"Effective batch {batch} ({parts}), learning rate {config.optim.lr:g}, "
        f"{train.iters:,} steps: {train.iters * batch / pictures:.1f} passes over {pictures:,} pictures."
    )
