"""The evaluation itself: images read ahead, segmented, compared with their labels, by one process or by many."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import image_header, write_png
from dgmn2cli.data.loaders import eval_indices
from dgmn2cli.distributed.group import Group
from dgmn2cli.errors import ConfigError, Dgmn2Error, DistributedError, NonFiniteError
from dgmn2cli.evaluate.counting import Tally, confusion
from dgmn2cli.evaluate.report import DataInfo, EvalReport, make_report
from dgmn2cli.inference.plan import DECODE_BYTES, Settings, resolve_settings
from dgmn2cli.inference.prediction import ClassList
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import in_use

Item = TypeVar("Item")
HELD_BYTES = 4  # per pixel of an image and its label that are in memory
BEHIND = 2  # segmented images that may wait for their counting


@dataclass(frozen=True)
class Counted:
    """One image evaluated: its place in the data set, its name, its (N, N + 1) int64 confusion counts, seconds."""

    index: int
    name: str
    counts: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class PredictionFolder:
    """Where predictions are kept: `trainIds/NAME_trainIds.png`, and for Cityscapes `labelIds/NAME_labelIds.png`.

    Each subfolder holds one file per image, as the official tool wants it. Files appear whole or not at all.
    """

    folder: Path
    palette: np.ndarray
    cityscapes: bool

    @classmethod
    def of(cls, folder: str | Path, data: SegmentationSet) -> PredictionFolder:
        """The folder for `data`.

        Raises:
            ConfigError: a prediction would overwrite a file of the data set, or two images have one name.
        """
        made = cls(Path(folder), data.palette, data.kind == "cityscapes")
        inputs = {os.path.realpath(p) for pair in data.pairs for p in (pair.image, pair.label) if p is not None}
        targets = [os.path.realpath(target) for pair in data.pairs for target in made.targets(pair.name)]
        lost = sorted({str(target) for target in targets if target in inputs})
        if lost:
            raise ConfigError("a prediction would overwrite a file of the data set", where=folder, faults=lost)
        if len(set(targets)) < len(targets):
            raise ConfigError("predictions of several images would get one name", where=data.root)
        return made

    @property
    def label_ids(self) -> Path:
        """The folder of the labelIds files, which the official tool and the test server read."""
        return self.folder / "labelIds"

    def targets(self, name: str) -> list[Path]:
        """The files of the image `name`."""
        trained = self.folder / "trainIds" / f"{name}_trainIds.png"
        return [trained, self.label_ids / f"{name}_labelIds.png"] if self.cityscapes else [trained]

    def write(self, name: str, ids: np.ndarray) -> None:
        """Keeps `ids` (H, W) uint8 class ids of the image `name`."""
        targets = self.targets(name)
        write_png(targets[0], ids, self.palette)
        if self.cityscapes:
            write_png(targets[1], LABEL_ID_OF_TRAIN_ID[ids])


@dataclass(frozen=True)
class MemoryRoom:
    """What counts as in use under a memory limit while threads read ahead and count.

    Attributes:
        before: bytes in use before the first image is read.
        workers: threads that read; each may be decoding.
    """

    before: int
    workers: int

    @classmethod
    def of(cls, segmenter: Segmenter, path: Path, settings: Settings, workers: int) -> MemoryRoom | None:
        """Measured before threads begin to read, `path` being the first image; None without a limit for this process.

        Raises:
            ResourceError: no image of this size can be segmented within the limit.
        """
        if settings.max_memory is None or segmenter.device.type != "cpu":
            return None
        header = image_header(path, settings.max_pixels)
        segmenter.plan((header.height, header.width), settings)  # a window is measured while no thread disturbs
        return cls(in_use(segmenter.device), max(1, workers))

    def used(self, pixels: int) -> int:
        """Bytes, where the images have `pixels` each: some being decoded, others held with their labels."""
        held = self.workers + 2 + BEHIND + 1  # read ahead, being segmented, waiting to be counted
        return self.before + pixels * (self.workers * DECODE_BYTES + held * HELD_BYTES)


def read_ahead(read: Callable[[int], Item], indices: Sequence[int], workers: int) -> Generator[Item, None, None]:
    """`read(index)` for each index, in order, done by `workers` threads while the consumer is busy.

    Decoding runs outside Python's lock; threads need no copies, no shared memory and no forked process beside a GPU.
    """
    waiting: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(max(1, workers), "read") as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > max(1, workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def class_ids(
    segmenter: Segmenter,
    image: np.ndarray,
    settings: Settings,
    where: object,
    observer: Observer,
    room: MemoryRoom | None = None,
) -> np.ndarray:
    """(H, W) uint8 class ids of an image (H, W, 3) uint8, blue green red; each window advances `observer` by its share.

    Raises:
        NonFiniteError: the network gave NaN or infinity; names the image.
    """
    used = room.used(image.shape[0] * image.shape[1]) if room is not None else None
    plan = segmenter.plan(image.shape[:2], settings, used=used)
    whole = max(plan.windows, 1)
    try:
        scores = segmenter.scores(image, plan, lambda windows: observer.advance(windows / whole))
    except NonFiniteError as error:
        raise NonFiniteError(error.what, where=where, why=error.why, hint=error.hint) from error
    return scores.classes()[0].numpy()


def counted_images(
    segmenter: Segmenter,
    data: SegmentationSet,
    indices: Sequence[int],
    settings: Settings,
    *,
    workers: int = 1,
    keep: PredictionFolder | None = None,
    observer: Observer | None = None,
) -> Generator[Counted, None, None]:
    """Each image segmented and compared with its label, in the order of `indices`.

    While the network works on one image, threads read the next ones and count (and save) the ones before.

    Raises:
        ConfigError: the network tells other classes apart than the data set.
        DataError: an image or label cannot be read.
        NonFiniteError, ResourceError: the network failed; a prediction cannot be written.
    """
    matched, watcher = match_classes(segmenter.classes, data), observer or Silent()

    def finish(index: int, ids: np.ndarray, label: np.ndarray, seconds: float) -> Counted:
        pair, ids = data.pairs[index], matched[ids]
        counts = confusion(ids, label, len(data.classes), where=pair.label)
        if keep is not None:
            keep.write(pair.name, ids)
        return Counted(index, pair.name, counts, seconds)

    def read(index: int) -> tuple[int, np.ndarray, np.ndarray]:
        sample = data.read(index, max_pixels=settings.max_pixels)
        return index, sample.image, sample.label

    room = MemoryRoom.of(segmenter, data.pairs[indices[0]].image, settings, workers) if len(indices) else None
    behind: deque[Future[Counted]] = deque()
    with closing(read_ahead(read, indices, workers)) as samples, ThreadPoolExecutor(1, "count") as pool:
        for index, image, label in samples:
            began = time.perf_counter()
            ids = class_ids(segmenter, image, settings, data.pairs[index].image, watcher, room)
            behind.append(pool.submit(finish, index, ids, label, time.perf_counter() - began))
            while behind and (behind[0].done() or len(behind) > BEHIND):
                yield behind.popleft().result()
        while behind:
            yield behind.popleft().result()
    segmenter.require_room(settings, 0, "evaluating")


def match_classes(classes: ClassList, data: SegmentationSet) -> np.ndarray:
    """(N,) uint8: the data set's class for each class of the network: the one of the same name.

    Where the checkpoint does not name its classes, they count as the data set's, in its order.

    Raises:
        ConfigError: there is another number of classes, or they have other names.
    """
    names, what = classes.names, "the model does not fit the data set"
    if len(names) != len(data.classes):
        why = f"the model tells {len(names)} classes apart, the data set has {len(data.classes)}"
        raise ConfigError(what, where=data.root, why=why, hint="Use a model trained on these classes.")
    if names != data.classes and set(names) == set(data.classes) and len(set(names)) == len(names):
        return np.array([data.classes.index(name) for name in names], np.uint8)
    if names != data.classes and classes.stated:
        pairs = enumerate(zip(names, data.classes, strict=True))
        faults = [
            f"class {i}: the model says {mine}, the data set {other}" for i, (mine, other) in pairs if mine != other
        ]
        hint = "Name the data set's classes as the model does, where they are the same."
        raise ConfigError(what, where=data.root, why="their classes have other names", faults=faults, hint=hint)
    return np.arange(len(names), dtype=np.uint8)


def count_together(
    segmenter: Segmenter,
    data: SegmentationSet,
    settings: Settings,
    group: Group,
    tally: Tally,
    done: Sequence[int],
    *,
    workers: int,
    keep: PredictionFolder | None,
    observer: Observer,
) -> tuple[np.ndarray, float]:
    """Counts every image that is not `done`, each on one process; the first process's tally gets them all.

    They share nothing and wait for nobody until the end: each hands every image's counts to the first one, which adds
    and notes them. So the sum is exact for any number of processes, and a killed run goes on where it was.

    Args:
        observer: advanced by 1 for each image, in parts; on the first process for all images, which are results, too.

    Returns:
        The sum, (N, N + 1) int64, and the seconds it took, on every process.

    Raises:
        Dgmn2Error: what one process raised, on all of them.
        DistributedError: a process is gone.
    """

    def take(counted: Counted) -> None:
        tally.add(counted.index, counted.counts)
        observer.result(counted)

    def hear() -> None:
        for counted in group.told():
            take(counted)
            observer.advance()

    def count() -> None:
        mine = eval_indices(len(data), group.rank, group.world, done)
        with closing(
            counted_images(segmenter, data, mine, settings, workers=workers, keep=keep, observer=observer)
        ) as images:
            for counted in images:
                take(counted) if group.main else group.tell(counted)
                hear()
                if group.given_up():
                    return

    def hear_while_waiting() -> None:
        try:
            hear()
        except Dgmn2Error as error:  # raised when the others can hear of it
            problems.append(error)

    def result() -> tuple[np.ndarray, float]:
        hear()
        if problems:
            raise problems[0]
        if len(tally.done) < len(data):
            raise DistributedError("an evaluation lost images", why=f"{len(tally.done)} of {len(data)} were counted")
        return tally.counts, tally.seconds

    problems: list[Dgmn2Error] = []
    try:
        group.together(count, meanwhile=hear_while_waiting)
        return group.once(result)
    finally:
        tally.note()


def evaluate(
    segmenter: Segmenter,
    data: SegmentationSet,
    settings: Settings | None = None,
    *,
    group: Group | None = None,
    limit: int | None = None,
    workers: int = 1,
    save_preds: str | Path | None = None,
    observer: Observer | None = None,
) -> EvalReport:
    """Evaluates a network over a data set that was checked before (`data.check`).

    Args:
        segmenter: the network.
        data: images and labels.
        settings: the test procedure; the configuration's if None.
        group: processes that share the work; every one must call this, and all get the report of the whole.
        limit: evaluate only the first images.
        workers: threads that read ahead.
        save_preds: keep the predictions in this folder.
        observer: told of progress between windows; what it raises ends the evaluation, on all processes where it is a
            Dgmn2Error. Each `Counted` image is a result, on the first process.

    Raises:
        ConfigError: impossible settings, or the data set has other classes than the network.
        DataError: an image or label cannot be read.
        NonFiniteError: the network gave NaN or infinity.
        DistributedError: another process failed.
    """
    settings, observer = settings or Settings(), observer or Silent()
    group = group or Group(0, 1, segmenter.device)
    protocol = resolve_settings(settings, segmenter.inference, segmenter.device)
    used = first(data, limit)
    keep = PredictionFolder.of(save_preds, used) if save_preds is not None else None
    observer.begin(f"evaluating {segmenter.info.model}", len(used))
    tally = Tally(len(data.classes))
    counts, seconds = count_together(
        segmenter, used, settings, group, tally, (), workers=workers, keep=keep, observer=observer
    )
    about = DataInfo.of_set(used, len(data))
    return make_report(segmenter.info, protocol, about, used, counts, seconds=seconds, processes=group.world)


def first(data: SegmentationSet, limit: int | None) -> SegmentationSet:
    """The first `limit` images of `data`; all if None."""
    return data if limit is None or limit >= len(data) else replace(data, pairs=data.pairs[:limit])
