"""Owns the evaluation itself: pictures read ahead, segmented, and counted into a confusion matrix that is streamed."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface
from typing import TypeVar

import numpy as np

from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import write_png
from dgmn2cli.data.loaders import eval_indices
from dgmn2cli.errors import ConfigError, Dgmn2Error, NonFiniteError
from dgmn2cli.evaluate.collective import combine
from dgmn2cli.evaluate.metrics import compute_scores, confusion
from dgmn2cli.evaluate.report import (
    DataInfo,
    EvalReport,
    Protocol,
    describe_data,
    protocol_in_force,
    versions,
)
from dgmn2cli.evaluate.tally import Tally
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.segmenter import RunInfo, Segmenter

Item = TypeVar("Item")
BEHIND = 2  # finished pictures that may wait for their counting


@dataclass(frozen=True)
class Counted:
    """One picture evaluated: its place in the data set, its name, its (N, N + 1) int64 confusion counts, seconds."""

    index: int
    name: str
    counts: np.ndarray
    seconds: float


class Watch(Interface):
    """Whoever wants to know how far an evaluation is."""

    def part(self, share: float) -> None:
        """A share of one picture, 0 to 1, is done."""

    def picture(self, counted: Counted) -> None:
        """A whole picture is counted."""


class Quiet:
    """A watch that does nothing."""

    def part(self, share: float) -> None:
        """Ignored."""

    def picture(self, counted: Counted) -> None:
        """Ignored."""


@dataclass(frozen=True, eq=False)
class PredictionFolder:
    """Where predictions are kept: `trainIds/NAME_trainIds.png`, and for Cityscapes `labelIds/NAME_labelIds.png`.

    Each subfolder holds one file per picture, as the official tool wants it. Files appear whole or not at all.
    """

    folder: Path
    palette: np.ndarray
    cityscapes: bool

    @classmethod
    def of(cls, folder: str | Path, data: SegmentationSet) -> PredictionFolder:
        """The folder for `data`.

        Raises:
            ConfigError: a prediction would overwrite a file of the data set, or two pictures have one name.
        """
        made = cls(Path(folder), data.palette, data.kind == "cityscapes")
        inputs = {os.path.realpath(p) for pair in data.pairs for p in (pair.image, pair.label) if p is not None}
        targets = [os.path.realpath(target) for pair in data.pairs for target in made.targets(pair.name)]
        lost = sorted({str(target) for target in targets if target in inputs})
        if lost:
            raise ConfigError("a prediction would overwrite a file of the data set", where=folder, faults=lost)
        if len(set(targets)) < len(targets):
            raise ConfigError("predictions of several pictures would get one name", where=data.root)
        return made

    @property
    def label_ids(self) -> Path:
        """The folder of the labelIds files, which the official tool and the test server read."""
        return self.folder / "labelIds"

    def targets(self, name: str) -> list[Path]:
        """The files of the picture `name`."""
        trained = self.folder / "trainIds" / f"{name}_trainIds.png"
        return [trained, self.label_ids / f"{name}_labelIds.png"] if self.cityscapes else [trained]

    def write(self, name: str, ids: np.ndarray) -> None:
        """Keeps `ids` (H, W) uint8 class ids of the picture `name`."""
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


def class_ids(
    segmenter: Segmenter,
    picture: np.ndarray,
    settings: Settings,
    where: object,
    part: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """(H, W) uint8 class ids of a picture (H, W, 3) uint8, blue green red.

    Raises:
        NonFiniteError: the network gave NaN or infinity; names the picture.
    """
    plan = segmenter.plan(picture.shape[:2], settings)
    whole = max(plan.windows, 1)
    try:
        scores = segmenter.scores(picture, plan, lambda windows: part(windows / whole))
    except NonFiniteError as error:
        raise NonFiniteError(error.what, where=where, why=error.why, hint=error.hint) from error
    return scores.classes()[0].numpy()


def counted_pictures(
    segmenter: Segmenter,
    data: SegmentationSet,
    indices: Sequence[int],
    settings: Settings,
    *,
    workers: int = 1,
    keep: PredictionFolder | None = None,
    part: Callable[[float], None] = lambda share: None,
) -> Generator[Counted, None, None]:
    """Each picture segmented and compared with its label, in the order of `indices`.

    While the network works on one picture, threads read the next ones and count (and save) the ones before.

    Raises:
        DataError: a picture or label cannot be read.
        NonFiniteError, ResourceError: the network failed; a prediction cannot be written.
    """
    classes = len(data.classes)

    def finish(index: int, ids: np.ndarray, label: np.ndarray, seconds: float) -> Counted:
        pair = data.pairs[index]
        counts = confusion(ids, label, classes, where=pair.label)
        if keep is not None:
            keep.write(pair.name, ids)
        return Counted(index, pair.name, counts, seconds)

    def read(index: int) -> tuple[int, np.ndarray, np.ndarray]:
        sample = data.read(index, max_pixels=settings.max_pixels)
        return index, sample.image, sample.label

    behind: deque[Future[Counted]] = deque()
    with closing(read_ahead(read, indices, workers)) as samples, ThreadPoolExecutor(1, "count") as pool:
        for index, image, label in samples:
            began = time.perf_counter()
            ids = class_ids(segmenter, image, settings, data.pairs[index].image, part)
            behind.append(pool.submit(finish, index, ids, label, time.perf_counter() - began))
            while behind and (behind[0].done() or len(behind) > BEHIND):
                yield behind.popleft().result()
        while behind:
            yield behind.popleft().result()


def evaluate(
    segmenter: Segmenter,
    data: SegmentationSet,
    settings: Settings | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    limit: int | None = None,
    workers: int = 1,
    save_preds: str | Path | None = None,
    watch: Watch | None = None,
) -> EvalReport:
    """Evaluates a network over a data set that was checked before (`data.check`).

    Args:
        segmenter: the network.
        data: pictures and labels.
        settings: the test procedure; the configuration's if None.
        shard: (rank, world). With world > 1 every process of torch.distributed's default group must call this; each
            takes its share, none takes a picture twice, and all get the report of the whole.
        limit: evaluate only the first pictures.
        workers: threads that read ahead.
        save_preds: keep the predictions in this folder.
        watch: told of progress.

    Raises:
        ConfigError: impossible settings, or the data set has another number of classes than the network.
        DataError: a picture or label cannot be read.
        NonFiniteError: the network gave NaN or infinity.
        DistributedError: another process failed.
    """
    settings, watch = settings or Settings(), watch or Quiet()
    protocol = protocol_in_force(settings, segmenter.inference)
    require_same_classes(len(segmenter.classes.names), data)
    used = first(data, limit)
    keep = PredictionFolder.of(save_preds, used) if save_preds is not None else None
    tally, failure = Tally(len(data.classes)), None
    mine = eval_indices(len(used), *shard)
    try:
        with closing(
            counted_pictures(segmenter, used, mine, settings, workers=workers, keep=keep, part=watch.part)
        ) as pictures:
            follow(pictures, tally, watch)
    except Dgmn2Error as error:
        if shard[1] == 1:
            raise
        failure = error
    if shard[1] > 1:
        tally = combine(tally, failure)
    return report_of(segmenter.info, protocol, describe_data(used, len(data)), used, tally, processes=shard[1])


def report_of(
    info: RunInfo,
    protocol: Protocol,
    about: DataInfo,
    data: SegmentationSet,
    tally: Tally,
    *,
    processes: int = 1,
    resumed: int = 0,
) -> EvalReport:
    """The report of what is counted, nothing compared yet."""
    return EvalReport(
        run=info,
        protocol=protocol,
        data=about,
        partial=about.partial,
        scores=compute_scores(tally.counts, data.classes, data.categories),
        confusion=tuple(tuple(int(count) for count in row) for row in tally.counts),
        comparison=None,
        no_comparison=(),
        official=None,
        processes=processes,
        resumed=resumed,
        seconds=tally.seconds,
        versions=versions(),
    )


def follow(pictures: Iterator[Counted], tally: Tally, watch: Watch) -> None:
    """Adds pictures to the tally as they come; what was counted is noted also when this is interrupted."""
    try:
        for counted in pictures:
            tally.add(counted.index, counted.counts)
            watch.picture(counted)
    finally:
        tally.note()


def first(data: SegmentationSet, limit: int | None) -> SegmentationSet:
    """The first `limit` pictures of `data`; all if None."""
    return data if limit is None or limit >= len(data) else replace(data, pairs=data.pairs[:limit])


def require_same_classes(count: int, data: SegmentationSet) -> None:
    """Raises ConfigError where a network with `count` classes cannot be evaluated on `data`."""
    if count != len(data.classes):
        raise ConfigError(
            "the model does not fit the data set",
            where=data.root,
            why=f"the model tells {count} classes apart, the data set has {len(data.classes)}",
            hint="Use a model trained on these classes.",
        )
