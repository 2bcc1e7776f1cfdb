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
from dgmn2cli.evaluate.counting import Tally, compute_scores, confusion
from dgmn2cli.evaluate.report import DataInfo, EvalReport, versions
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


def segmented(
    segmenter: Segmenter,
    data: SegmentationSet,
    indices: Sequence[int],
    settings: Settings,
    *,
    labels: bool,
    workers: int,
    observer: Observer,
) -> Generator[tuple[int, np.ndarray, np.ndarray | None, float], None, None]:
    """Each image segmented, in the order of `indices`, while threads read the next ones.

    Each window advances `observer` by its share of the image.

    Yields:
        Its place in `data`, its class ids (H, W) uint8, its label where `labels` asks for it, the seconds it took.

    Raises:
        DataError: an image or label cannot be read.
        NonFiniteError: the network gave NaN or infinity; names the image.
        ResourceError: the memory limit is too small; other threads' images count as in use, too.
    """

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if not labels:
            return data.read_image(index, max_pixels=settings.max_pixels), None
        sample = data.read(index, max_pixels=settings.max_pixels)
        return sample.image, sample.label

    limited, before = settings.max_memory is not None and segmenter.device.type == "cpu", 0
    if limited and len(indices):
        header = image_header(data.pairs[indices[0]].image, settings.max_pixels)
        segmenter.plan((header.height, header.width), settings)  # a window is measured while no thread disturbs
        before = in_use(segmenter.device)
    workers = max(1, workers)
    held = workers + 2 + BEHIND + 1  # images read ahead, being segmented, waiting to be counted
    with closing(read_ahead(read, indices, workers)) as samples:
        for index, (image, label) in zip(indices, samples, strict=True):
            began, pixels = time.perf_counter(), image.shape[0] * image.shape[1]
            used = before + pixels * (workers * DECODE_BYTES + held * HELD_BYTES) if limited else None
            plan = segmenter.plan(image.shape[:2], settings, used=used)

            def advance(windows: int, whole: int = plan.windows) -> None:
                observer.advance(windows / whole)

            try:
                scores = segmenter.scores(image, plan, advance)
            except NonFiniteError as error:
                where = data.pairs[index].image
                raise NonFiniteError(error.what, where=where, why=error.why, hint=error.hint) from error
            yield index, scores.classes()[0].numpy(), label, time.perf_counter() - began
    segmenter.require_room(settings, 0, "segmenting")


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
    matched = match_classes(segmenter.classes, data)

    def finish(index: int, ids: np.ndarray, label: np.ndarray | None, seconds: float) -> Counted:
        assert label is not None
        pair, ids = data.pairs[index], matched[ids]
        counts = confusion(ids, label, len(data.classes), where=pair.label)
        if keep is not None:
            keep.write(pair.name, ids)
        return Counted(index, pair.name, counts, seconds)

    watcher = observer or Silent()
    done = segmented(segmenter, data, indices, settings, labels=True, workers=workers, observer=watcher)
    behind: deque[Future[Counted]] = deque()
    with closing(done) as images, ThreadPoolExecutor(1, "count") as pool:
        for image in images:
            behind.append(pool.submit(finish, *image))
            while behind and (behind[0].done() or len(behind) > BEHIND):
                yield behind.popleft().result()
        while behind:
            yield behind.popleft().result()


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


def evaluate_together(
    segmenter: Segmenter,
    data: SegmentationSet,
    about: DataInfo,
    settings: Settings,
    group: Group,
    tally: Tally,
    done: Sequence[int],
    workers: int,
    keep: PredictionFolder | None,
    observer: Observer,
) -> EvalReport:
    """Counts every image that is not `done`, each on one process; the first process's tally gets them all.

    They share nothing and wait for nobody until the end: each hands every image's counts to the first one, which adds
    and notes them. So the sum is exact for any number of processes, and a killed run goes on where it was.

    Args:
        observer: advanced by 1 for each image, in parts; on the first process for all images, which are results, too.

    Returns:
        The report on every process, nothing compared yet.

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
        counts, seconds = group.once(result)
    finally:
        tally.note()
    return EvalReport(
        run=segmenter.info,
        protocol=resolve_settings(settings, segmenter.inference, segmenter.device),
        data=about,
        partial=about.partial,
        scores=compute_scores(counts, data.classes, data.categories),
        confusion=tuple(map(tuple, counts.tolist())),
        processes=group.world,
        resumed=len(done),
        seconds=seconds,
        versions=versions(),
    )


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
    resolve_settings(settings, segmenter.inference, segmenter.device)
    used = first(data, limit)
    keep = PredictionFolder.of(save_preds, used) if save_preds is not None else None
    observer.begin(f"evaluating {segmenter.info.model}", len(used))
    about, tally = DataInfo.of_set(used, len(data)), Tally(len(data.classes))
    return evaluate_together(segmenter, used, about, settings, group, tally, (), workers, keep, observer)


def first(data: SegmentationSet, limit: int | None) -> SegmentationSet:
    """The first `limit` images of `data`; all if None."""
    return data if limit is None or limit >= len(data) else replace(data, pairs=data.pairs[:limit])
