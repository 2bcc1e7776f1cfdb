"""Segmenting many images: read ahead, through the network, saved behind; a bad one is noted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.images import check_image, decode_bytes
from dgmn2cli.errors import DataError, Dgmn2Error, NonFiniteError, ResourceError, is_exhaustion
from dgmn2cli.inference.outputs import Sink
from dgmn2cli.inference.pipeline import Footprint, in_threads
from dgmn2cli.inference.plan import DECODE_BYTES, SAVE_BYTES, Settings, TooLargeError
from dgmn2cli.inference.prediction import Prediction, check_outputs
from dgmn2cli.inference.report import Failure, ImageResult, MemoryUse, Outcome
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.inference.sources import ImageFile
from dgmn2cli.observer import Observer
from dgmn2cli.runtime import highest_use

CHUNK = 256  # images whose sizes are looked at before they are read, where memory is limited
WORKERS = 2  # threads that read ahead, and that save behind
READ_BYTES, DONE_BYTES = 3, 8  # per pixel of an image that waits: read, and with its class ids and confidence
HALVED_BYTES = 2  # per pixel and class of probabilities that wait
PROBS_BYTES = 10  # per pixel and class, while probabilities are made, halved and compressed
MIRRORED_BYTES = 8  # per pixel and class, while a mirrored image is segmented and compared
MAP_BYTES = 8  # per pixel, for a map of shares and its bytes


@dataclass
class _Image:
    """An image on its way: what was read and made of it so far; its outcome, once it is known."""

    index: int
    file: ImageFile
    seconds: float = 0.0  # of work
    sha256: str = ""
    notes: Sequence[str] = ()  # what is odd about the file
    pixels: np.ndarray | None = None  # until it is segmented
    prediction: Prediction | None = None  # that waits for its files
    memory: MemoryUse | None = None
    outcome: ImageResult | Failure | None = None


Earlier = Callable[[int, str], "ImageResult | None"]  # what an earlier run made of an image with these bytes


@dataclass
class Pipeline:
    """Reads, segments and saves images: the first and the last in threads, each in the order of the images."""

    segmenter: Segmenter
    images: Sequence[ImageFile]
    kinds: Sequence[str]
    settings: Settings
    workers: int
    observer: Observer
    earlier: Earlier = lambda index, sha256: None  # the result of an image that need not be segmented again

    def __post_init__(self) -> None:
        segmenter, kinds, settings, workers = self.segmenter, self.kinds, self.settings, self.workers
        check_outputs(kinds, segmenter.classes)
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
            NonFiniteError: the network gave NaN or infinity; names the image.
        """
        step = CHUNK if self.limited else max(1, len(indices))
        for first in range(0, len(indices), step):
            chunk = indices[first : first + step]
            workers, used = self._workers(chunk) if self.limited else (self.workers, None)

            def read(index: int, check: bool = self.limited and not workers) -> _Image:
                return self._read(int(index), check)

            def segment(image: _Image, used: int | None = used) -> _Image:
                return self._segment(image, used)

            def finish(image: _Image) -> Outcome:
                return image.index, image.outcome or self._finish(image, sink)

            with (
                closing(in_threads(read, chunk, workers)) as images,
                closing(in_threads(finish, map(segment, images), workers, eager=True)) as outcomes,
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

        workers = min(self.workers, len(indices) - 1)
        if not workers:
            return 0, None
        with closing(in_threads(size, indices, workers)) as found:
            sizes = [size for size in found if size is not None]
        if not sizes:
            return 0, None
        try:
            how = (workers, self.footprint, workers, self.result_bytes)
            return self.segmenter.readers_within(sizes, self.settings, *how)
        except ResourceError:
            return 0, None

    def _read(self, index: int, check: bool) -> _Image:
        image, start, largest = _Image(index, self.images[index]), time.perf_counter(), self.settings.max_pixels
        path = image.file.path
        try:
            data = image.file.read(largest)
            image.sha256 = hashlib.sha256(data).hexdigest()
            image.outcome = self.earlier(index, image.sha256)
            if image.outcome is None:
                if check:
                    header = check_image(data, largest, path)
                    needed = DECODE_BYTES * header.width * header.height
                    self.segmenter.require_room(self.settings, needed, f"decoding {path}")
                image.pixels, _, image.notes = decode_bytes(data, path, largest)
        except (DataError, TooLargeError) as error:
            if is_exhaustion(error.__cause__):
                raise
            image.outcome = Failure(path, str(error))
        image.seconds = time.perf_counter() - start
        return image

    def _segment(self, image: _Image, used: int | None) -> _Image:
        if image.pixels is None:
            self.observer.advance()
            return image
        start, path = time.perf_counter(), image.file.path
        for note in image.notes:
            self.observer.note(f"{path}: {note}")
        try:
            plan = self.segmenter.plan(image.pixels.shape[:2], self.settings, self.result_bytes, used)
        except TooLargeError as error:
            self.observer.advance()
            return self._failed(image, error)
        if plan.peak is not None:
            self.observer.note(f"{path}: {plan}")
        whole = plan.windows
        if "disagreement" in self.kinds:
            whole += self.segmenter.mirrored_windows(plan, self.settings)
        try:
            made = self.segmenter.predict_planned(
                image.pixels, plan, self.settings, lambda windows: self.observer.advance(windows / whole)
            )
            image.prediction, image.pixels = made.without_scores(self.kinds), None
        except NonFiniteError as error:
            error.where = str(path)
            raise
        except DataError as error:  # a window that a graph of one size does not take
            return self._failed(image, error)
        if plan.peak is not None:
            image.memory = MemoryUse(plan.peak, highest_use(self.segmenter.device))
        image.seconds += time.perf_counter() - start
        return image

    def _failed(self, image: _Image, error: Dgmn2Error) -> _Image:
        error.where = str(image.file.path)
        image.outcome, image.pixels = Failure(image.file.path, str(error)), None
        return image

    def _finish(self, image: _Image, sink: Sink) -> ImageResult:
        made, file = image.prediction, image.file
        assert made is not None  # or its outcome is known
        start, (height, width) = time.perf_counter(), made.ids.shape
        outputs, stats, doubt = sink.save(made, file.name), made.stats(), made.doubt
        seconds = image.seconds + time.perf_counter() - start
        return ImageResult(
            file.path, width, height, made.windows, seconds, stats, doubt, outputs, image.memory, image.sha256
        )
