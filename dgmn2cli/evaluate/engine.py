"""Images read ahead, segmented and compared with their labels, one after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import image_header
from dgmn2cli.errors import ConfigError, DataError, NonFiniteError, ResourceError
from dgmn2cli.evaluate.analysis.calibration import sampling_step
from dgmn2cli.evaluate.analysis.measure import Measured, SegmentedImage, count_only, measure
from dgmn2cli.evaluate.counting import confusion
from dgmn2cli.evaluate.predictions import PredictionFolder, find_predictions, read_prediction
from dgmn2cli.files import hash_file
from dgmn2cli.inference.pipeline import Footprint, in_threads
from dgmn2cli.inference.plan import Protocol, Settings, TooLargeError, resolve_settings
from dgmn2cli.inference.prediction import ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

COUNTED = Footprint(read=4, done=4, finishing=0)  # image and label
ANALYSED = Footprint(read=4, done=9, finishing=24)  # likewise, with prediction and confidence
FROM_FILES = "predictions"  # the model of a report on predictions from files
BEHIND = 2  # segmented images that may wait for their counting


@dataclass(frozen=True)
class Counted:
    """One image evaluated."""

    # index, name: its place in the data set, its name
    index: int
    name: str
    counts: np.ndarray  # (N, N + 1) int64, its confusion matrix
    seconds: float  # that segmenting it took
    measured: Measured  # its record


def segmented(
    segmenter: Segmenter,
    data: SegmentationSet,
    indices: Sequence[int],
    settings: Settings,
    *,
    labels: bool,
    workers: int,
    observer: Observer,
    analysis: bool = False,
) -> Generator[SegmentedImage, None, None]:
    """Each image segmented, in the order of `indices`, while threads read the next ones.

    Each window advances `observer` by its share of the image.

    Args:
        labels: read them, too.
        analysis: sample class probabilities, too.

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

    workers, ahead = max(1, workers), 0
    limited = settings.max_memory is not None and segmenter.device.type == "cpu" and len(indices) > 0
    if limited:
        workers, ahead = _readers(segmenter, data, indices, settings, workers, analysis)
    with closing(in_threads(read, indices, workers)) as pairs:
        for index, (image, label) in zip(indices, pairs, strict=True):
            began, size = time.perf_counter(), image.shape[:2]
            try:
                plan = segmenter.plan(size, settings, used=ahead if limited else None)

                def advance(windows: int, whole: int = plan.windows) -> None:
                    observer.advance(windows / whole)

                scores = segmenter.scores(image, plan, advance)
            except (NonFiniteError, DataError, TooLargeError) as error:
                error.where = str(data.pairs[index].image)
                raise
            found = [part.numpy() for part in scores.outcome(sampling_step(*size) if analysis else None)]
            ids, confidence, samples = found if analysis else (found[0], None, None)
            yield SegmentedImage(index, image, label, ids, confidence, samples, time.perf_counter() - began)
    segmenter.require_room(settings, 0, "segmenting")


def _readers(
    segmenter: Segmenter,
    data: SegmentationSet,
    indices: Sequence[int],
    settings: Settings,
    workers: int,
    analysis: bool,
) -> tuple[int, int]:
    """As `readers_within`, of the images at `indices`."""
    headers = [image_header(data.pairs[index].image, settings.max_pixels) for index in indices]
    sizes = [(header.height, header.width) for header in headers]

    try:
        return segmenter.readers_within(sizes, settings, workers, ANALYSED if analysis else COUNTED, BEHIND)
    except ResourceError as error:
        if analysis:
            error.hint = f"{error.hint} `eval --no-analysis` needs less."
        raise


def counted(data: SegmentationSet, found: SegmentedImage, analysis: bool, where: Path | None = None) -> Counted:
    """One image compared with its label; ids and samples are by the data set's classes.

    Args:
        where: the file to name in an error; the label if None.

    Raises:
        DataError: prediction and label differ in size.
    """
    assert found.label is not None
    pair = data.pairs[found.index]
    counts = confusion(found.ids, found.label, len(data.classes), where=where or pair.label)
    if analysis:
        measured = measure(found, pair, counts, data.palette, cityscapes=data.kind == "cityscapes")
    else:
        measured = Measured(count_only(pair, found.label, counts))
    return Counted(found.index, pair.name, counts, found.seconds, measured)


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


@dataclass(frozen=True)
class Source:
    """Where predictions come from."""

    run: RunInfo  # what made them
    protocol: Protocol | None  # the test procedure; None where it is not known
    # the images at the places given, counted one after the other
    images: Callable[[Sequence[int]], Generator[Counted, None, None]]


def network_source(
    segmenter: Segmenter,
    data: SegmentationSet,
    settings: Settings,
    *,
    workers: int = 1,
    keep: PredictionFolder | None = None,
    observer: Observer = Silent(),
    analysis: bool = True,
) -> Source:
    """Predictions by a network, in the order of the places asked for.

    While the network works on one image, threads read the next ones and measure (and keep) the ones before. `images`
    raises what `segmented` raises, and a ResourceError where a prediction cannot be written.

    Raises:
        ConfigError: impossible settings, or the network tells other classes apart than the data set.
    """
    matched = match_classes(segmenter.classes, data)
    protocol = resolve_settings(settings, segmenter.inference, segmenter.device)

    def finish(found: SegmentedImage) -> Counted:
        ids, samples = matched[found.ids], found.samples
        if keep is not None:
            keep.write(data.pairs[found.index].name, ids)
        samples = None if samples is None else samples[matched.argsort()]
        return counted(data, replace(found, ids=ids, samples=samples), analysis)

    def images(indices: Sequence[int]) -> Generator[Counted, None, None]:
        how: dict[str, Any] = {"labels": True, "workers": workers, "observer": observer, "analysis": analysis}
        with (
            closing(segmented(segmenter, data, indices, settings, **how)) as done,
            closing(in_threads(finish, done, 1, ahead=BEHIND, eager=True)) as found,
        ):
            yield from found

    return Source(segmenter.info, protocol, images)


def saved_source(
    folder: Path, data: SegmentationSet, *, workers: int, max_pixels: int, observer: Observer, analysis: bool
) -> Source:
    """The predictions in a folder, see `find_predictions`.

    Raises:
        DataError: some are missing.
        ResourceError: one cannot be read.
    """
    files = find_predictions(folder, data)
    digest = hashlib.sha256("".join(hash_file(file) for file in files).encode()).hexdigest()
    run = RunInfo(
        FROM_FILES, str(folder), digest, "none", "files", "none", "", "files", runtime="files", runtime_version=""
    )

    def one(index: int) -> Counted:
        began = time.perf_counter()
        sample = data.read(index, max_pixels=max_pixels)
        ids = read_prediction(files[index], data, max_pixels)
        found = SegmentedImage(index, sample.image, sample.label, ids, seconds=time.perf_counter() - began)
        return counted(data, found, analysis, files[index])

    def images(indices: Sequence[int]) -> Generator[Counted, None, None]:
        with closing(in_threads(one, indices, workers)) as found:
            for image in found:
                observer.advance()
                yield image

    return Source(run, None, images)
