"""Segmenting many images: read ahead, through the network, saved behind; a bad one is noted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dgmn2cli.data.images import check_image, decode_bytes
from dgmn2cli.errors import DataError, ResourceError, is_exhaustion
from dgmn2cli.inference.outputs import FolderSink, Sink
from dgmn2cli.inference.pipeline import Footprint, in_threads, readers_within
from dgmn2cli.inference.plan import DECODE_BYTES, SAVE_BYTES, Settings, resolve_settings
from dgmn2cli.inference.prediction import Prediction, check_outputs
from dgmn2cli.inference.report import Collected, Failure, ImageResult, InferReport, MemoryUse, Outcome
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.inference.sources import ImageFile
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import highest_use

CHUNK = 256  # images whose sizes are looked at before they are read, where memory is limited
WORKERS = 2  # threads that read ahead, and that save behind
READ_BYTES, DONE_BYTES = 3, 8  # per pixel of an image that waits: read, and with its class ids and confidence
HALVED_BYTES = 2  # per pixel and class of probabilities that wait
PROBS_BYTES = 10  # per pixel and class, while probabilities are made, halved and compressed
MIRRORED_BYTES = 8  # per pixel and class, while a mirrored image is segmented and compared
MAP_BYTES = 8  # per pixel, for a map of shares and its bytes


@dataclass(frozen=True)
class _Loaded:
    """An image that was read, what is odd about it, and how long that took; or its result, or why there is none."""

    index: int
    pixels: np.ndarray | None
    sha256: str = ""
    notes: Sequence[str] = ()
    seconds: float = 0.0
    outcome: ImageResult | DataError | None = None


@dataclass(frozen=True)
class _Segmented:
    """A prediction that waits for its files; none where the outcome is known."""

    loaded: _Loaded
    prediction: Prediction | None
    memory: MemoryUse | None = None
    seconds: float = 0.0


Earlier = Callable[[int, str], "ImageResult | None"]  # what an earlier run made of an image with these bytes


class Pipeline:
    """Reads, segments and saves images: the first and the last in threads, each in the order of the images.

    Args:
        earlier: the result of an image that need not be segmented again, by its index and its bytes' hash.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        images: Sequence[ImageFile],
        kinds: Sequence[str],
        settings: Settings,
        workers: int,
        observer: Observer,
        earlier: Earlier = lambda index, sha256: None,
    ) -> None:
        check_outputs(kinds, segmenter.classes)
        self.segmenter, self.images, self.kinds, self.settings = segmenter, images, kinds, settings
        self.workers, self.observer, self.earlier = workers, observer, earlier
        self.limited = settings.max_memory is not None and segmenter.device.type == "cpu"
        classes, maps = len(segmenter.classes.names), MAP_BYTES * ("entropy" in kinds)
        per_class = ("probs" in kinds) * PROBS_BYTES + ("disagreement" in kinds) * MIRRORED_BYTES
        self.result_bytes = SAVE_BYTES + maps + per_class * classes
        halved = ("probs" in kinds) * HALVED_BYTES * classes
        done = DONE_BYTES + maps + MAP_BYTES * ("disagreement" in kinds) + halved
        self.footprint = Footprint(READ_BYTES, done, SAVE_BYTES + 2 * halved, workers)

    def run(self, indices: Sequence[int] | np.ndarray, sink: Sink) -> Generator[Outcome, None, None]:
        """What becomes of the images at `indices`; a bad one is noted and the others are done.

        Raises:
            ResourceError: out of memory, or an output cannot be written.
            NonFiniteError: the network gave NaN or infinity.
        """
        step = CHUNK if self.limited else max(1, len(indices))
        for first in range(0, len(indices), step):
            chunk = indices[first : first + step]
            workers, used = self._workers(chunk) if self.limited else (self.workers, None)

            def read(index: int, check: bool = self.limited and not workers) -> _Loaded:
                return self._read(int(index), check)

            def segment(loaded: _Loaded, used: int | None = used) -> _Segmented:
                return self._segment(loaded, used)

            def finish(done: _Segmented) -> Outcome:
                return done.loaded.index, self._finish(done, sink)

            with (
                closing(in_threads(read, chunk, workers)) as loaded,
                closing(in_threads(finish, map(segment, loaded), workers, eager=True)) as outcomes,
            ):
                for index, outcome in outcomes:
                    if isinstance(outcome, ImageResult):
                        sink.commit(self.images[index].name)
                    yield index, outcome
        self.segmenter.require_room(self.settings, 0, "segmenting")

    def _workers(self, indices: Sequence[int] | np.ndarray) -> tuple[int, int | None]:
        """Threads on either side that the memory limit allows, and the bytes that count as in use with them."""

        def size(index: int) -> tuple[int, int] | None:
            file = self.images[int(index)]
            try:
                header = check_image(file.read(self.settings.max_pixels), self.settings.max_pixels, file.path)
            except DataError:  # said when it is read
                return None
            return header.height, header.width

        def fit(size: tuple[int, int], used: int | None) -> object:
            return self.segmenter.plan(size, self.settings, self.result_bytes, used)

        workers = min(self.workers, len(indices) - 1)
        if not workers:
            return 0, None
        with closing(in_threads(size, indices, workers)) as found:
            sizes = [size for size in found if size is not None]
        if not sizes:
            return 0, None
        try:
            return readers_within(fit, self.segmenter.device, sizes, workers, self.footprint, workers)
        except ResourceError:
            return 0, None

    def _read(self, index: int, check: bool) -> _Loaded:
        start, file, largest = time.perf_counter(), self.images[index], self.settings.max_pixels
        try:
            data = file.read(largest)
            sha256 = hashlib.sha256(data).hexdigest()
            if done := self.earlier(index, sha256):
                return _Loaded(index, None, outcome=done)
            if check:
                header = check_image(data, largest, file.path)
                needed = DECODE_BYTES * header.width * header.height
                self.segmenter.require_room(self.settings, needed, f"decoding {file.path}")
            pixels, _, notes = decode_bytes(data, file.path, largest)
        except DataError as error:
            if is_exhaustion(error.__cause__):
                raise
            return _Loaded(index, None, outcome=error)
        return _Loaded(index, pixels, sha256, notes, time.perf_counter() - start)

    def _segment(self, loaded: _Loaded, used: int | None) -> _Segmented:
        if loaded.pixels is None:
            self.observer.advance()
            return _Segmented(loaded, None)
        start, path = time.perf_counter(), self.images[loaded.index].path
        for note in loaded.notes:
            self.observer.note(f"{path}: {note}")
        plan = self.segmenter.plan(loaded.pixels.shape[:2], self.settings, self.result_bytes, used)
        if plan.peak is not None:
            self.observer.note(f"{path}: {plan}")
        whole = plan.windows
        if "disagreement" in self.kinds:
            whole += self.segmenter.mirrored_windows(plan, self.settings)
        try:
            made = self.segmenter.predict_planned(
                loaded.pixels, plan, self.settings, lambda windows: self.observer.advance(windows / whole)
            )
        except DataError as error:  # a window that a graph of one size does not take
            error.where = str(path)
            return _Segmented(replace(loaded, outcome=error), None)
        prediction = made.without_scores(self.kinds)
        memory = None if plan.peak is None else MemoryUse(plan.peak, highest_use(self.segmenter.device))
        return _Segmented(replace(loaded, pixels=None), prediction, memory, time.perf_counter() - start)

    def _finish(self, done: _Segmented, sink: Sink) -> ImageResult | Failure:
        prediction, loaded, file = done.prediction, done.loaded, self.images[done.loaded.index]
        if isinstance(loaded.outcome, ImageResult):
            return loaded.outcome
        if prediction is None:
            return Failure(file.path, str(loaded.outcome))
        start, (height, width) = time.perf_counter(), prediction.ids.shape
        outputs = sink.save(prediction, file.name)
        stats, doubt = prediction.stats(), prediction.doubt
        seconds = loaded.seconds + done.seconds + time.perf_counter() - start
        return ImageResult(
            file.path, width, height, prediction.windows, seconds, stats, doubt, outputs, done.memory, loaded.sha256
        )


def predict_files(
    segmenter: Segmenter,
    images: Sequence[ImageFile],
    folder: Path,
    kinds: Sequence[str],
    settings: Settings,
    *,
    alpha: float = 0.5,
    workers: int = WORKERS,
    observer: Observer | None = None,
) -> InferReport:
    """Segments images, in their order, while threads read the next ones and save those before; a bad one is noted.

    Args:
        segmenter: the network.
        images: what to segment.
        folder: where the outputs go.
        kinds: what to write, see `Prediction.save`.
        settings: how; under a memory limit there are as many threads as it allows, perhaps none.
        alpha: strength of the overlay's colours, 0 to 1.
        workers: threads that read, and as many that save; 0: everything in turn.
        observer: advanced by 1 for each image, in parts; told, as `ImageResult`, of each image that is done, and with a
            memory limit of each plan.

    Raises:
        ConfigError: impossible settings.
        ResourceError: out of memory, or an output cannot be written.
        NonFiniteError: the network gave NaN or infinity.
    """
    observer, collected = observer or Silent(), Collected()
    pipeline = Pipeline(segmenter, images, kinds, settings, workers, observer)
    protocol = resolve_settings(settings, segmenter.inference, segmenter.device)
    observer.begin(f"segmenting {len(images)} image{'s' * (len(images) != 1)}", len(images))
    with closing(pipeline.run(range(len(images)), FolderSink(folder, kinds, alpha))) as outcomes:
        for index, outcome in outcomes:
            collected.add(index, outcome)
            if isinstance(outcome, ImageResult):
                observer.result(outcome)
    return collected.report(segmenter.info, protocol)
