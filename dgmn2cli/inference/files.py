"""Segmenting many files: which images are meant, what each becomes, which could not be done and why."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dgmn2cli.data.files import SUFFIXES, comparable, distinct_names, find_files, find_matches, short_names
from dgmn2cli.data.images import decode_file, image_header
from dgmn2cli.errors import ConfigError, DataError, ResourceError, is_exhaustion
from dgmn2cli.files import absence, check_folder, read_bounded
from dgmn2cli.inference.pipeline import Footprint, in_threads, readers_within
from dgmn2cli.inference.plan import DECODE_BYTES, SAVE_BYTES, Protocol, Settings, resolve_settings
from dgmn2cli.inference.prediction import ClassShare, Prediction, check_outputs, output_path
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.notebook import table_html
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import highest_use

CHUNK = 256  # images whose sizes are looked at before they are read, where memory is limited
WORKERS = 2  # threads that read ahead, and that write behind
READ_BYTES, DONE_BYTES = 3, 8  # per pixel of an image that waits: read, and with its class ids and confidence
HALVED_BYTES = 2  # per pixel and class of probabilities that wait
PROBS_BYTES = 10  # per pixel and class, while probabilities are made, halved and compressed
MIRRORED_BYTES = 8  # per pixel and class, while a mirrored image is segmented and compared
MAP_BYTES = 8  # per pixel, for a map of shares and its bytes
HINT = "Give files, folders, globs or @list.txt."
LIST_LIMIT = 16 << 20  # bytes of a list file
LONGEST_NAME = 255  # bytes of a file's name, on the file systems in use


@dataclass(frozen=True)
class ImageFile:
    """One image to segment: its file, and the name its outputs get, relative to the output folder."""

    path: Path
    name: str


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use at most while an image was segmented: predicted, and measured up to then."""

    predicted: int
    highest: int


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

    Attributes:
        path: the image.
        width, height: its displayed size, the masks' size.
        windows: windows that went through the network.
        seconds: from reading it to its last file.
        classes: what it shows, largest first.
        doubt: one minus the mean confidence of its pixels.
        outputs: file by kind.
        memory: what was in use at most, where a limit was given.
    """

    path: Path
    width: int
    height: int
    windows: int
    seconds: float
    classes: list[ClassShare]
    doubt: float
    outputs: dict[str, Path]
    memory: MemoryUse | None


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class InferReport:
    """The result of one `infer` run.

    Attributes:
        run: model, weights, device, backend.
        protocol: the settings in force.
        images: what was done.
        failures: what could not be segmented.
        classes: pixel shares over all images, largest first.
        by_doubt: the images, the one with the most doubt first.
        seconds: wall time, loading the model excluded.
    """

    run: RunInfo
    protocol: Protocol
    images: list[ImageResult]
    failures: list[Failure]
    classes: list[ClassShare]
    by_doubt: list[Path]
    seconds: float

    def _repr_html_(self) -> str:
        rows = [(done.path, f"{100 * done.doubt:.1f} %", f"{done.width} x {done.height}") for done in self.images]
        return table_html(f"{len(self.images)} images with {self.run.model}", ("image", "doubt", "size"), rows)


def find_images(sources: Sequence[str], observer: Observer | None = None) -> list[ImageFile]:
    """The images that `sources` name: files, folders (searched through), globs, and `@LIST` files of paths.

    Outputs of images from a folder keep their subfolder; so do files of one name in different folders. Images whose
    names differ in the suffix only keep it.

    Args:
        sources: what the user named.
        observer: gets a note for each kind of file that was left out.

    Raises:
        ConfigError: nothing is named.
        DataError: a source does not exist, or a folder or list holds no image.
    """
    observer = observer or Silent()
    loose: dict[str, Path] = {}  # files by their whole path, however they are named
    inside: dict[str, tuple[Path, Path]] = {}  # those of a folder, with their name relative to it
    for source in sources:
        files, folder = _expand(source, observer)
        for file in files:
            if folder is None:
                loose[os.path.abspath(file)] = file
            else:
                inside[os.path.abspath(file)] = file, file.relative_to(folder)
    alone = [file for place, file in loose.items() if place not in inside]
    named = dict(zip(alone, distinct_names(alone), strict=True)) | dict(inside.values())
    if not named:
        raise ConfigError("no image is named", hint=HINT)
    if not any(os.path.exists(path) for path in named):
        if len(named) == 1:
            [path] = named
            raise DataError("cannot find the image", where=path, why=absence(path), hint=HINT)
        raise DataError("none of these files exist", faults=[str(path) for path in named], hint=HINT)
    if len(set(map(comparable, named.values()))) < len(named):  # folders with files of one name
        named = dict(zip(named, distinct_names(named), strict=True))
    names = list(map(str, named.values()))
    short = short_names(names, [os.path.splitext(name)[0] for name in names])
    return [ImageFile(path, name) for path, name in zip(named, short, strict=True)]


def _expand(source: str, observer: Observer) -> tuple[Sequence[Path], Path | None]:
    """The files that one source names, and the folder that was searched for them."""
    if source in ("", "@"):
        raise ConfigError("the name of an image, or of a list of them, is empty", hint=HINT)
    if source.startswith("@") and not os.path.exists(source):
        return _read_list(Path(source[1:])), None
    path = Path(source)
    if os.path.isdir(path):
        found = find_files(path, observer=observer)
        if not found.files:
            why = "; ".join([f"wanted {', '.join(SUFFIXES)}", *found.notes])
            raise DataError("no image in the folder", where=path, why=why)
    elif not os.path.lexists(path) and glob.has_magic(source):
        found = find_matches(source, observer)
    else:
        return [path], None
    for note in found.notes:
        observer.note(note)
    return found.files, path if os.path.isdir(path) else None


def _read_list(path: Path) -> list[Path]:
    """One path a line, relative to the list's folder; blank lines and lines starting with # are skipped."""
    what, hint = "cannot read the list of images", "Give a text file that names one image a line."
    data = read_bounded(path, LIST_LIMIT, what, kind=DataError, unreadable=DataError, hint=hint)
    named = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if b"\0" in line:
            raise DataError(what, where=path, why=f"line {number} has a NUL byte; it is no text", hint=hint)
        name = os.fsdecode(line).strip()  # a name need not be UTF-8
        if name and not name.startswith("#"):
            named.append(path.parent / name)
    if not named:
        raise DataError("the list names no image", where=path, hint=hint)
    return named


def check_targets(images: Iterable[ImageFile], folder: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Refuses outputs before any image is segmented.

    Raises:
        ConfigError: one would overwrite an input, or an existing file without `overwrite`, or its name is too long.
        ResourceError: the folder cannot come to be.
    """
    images = list(images)
    check_folder(folder)
    inputs = {_real(image.path) for image in images}
    targets = [output_path(folder, image.name, kind) for image in images for kind in kinds]
    lost = [str(target) for target in targets if _real(target) in inputs]
    if lost:
        raise ConfigError("an output would overwrite its input", faults=lost, hint="Choose another folder with -o.")
    long = [str(target) for target in targets if len(os.fsencode(target.name)) > LONGEST_NAME]
    if long:
        raise ConfigError("an output's name would be too long", faults=long, hint="Rename these images.")
    there = [str(target) for target in targets if os.path.exists(target)]
    if there and not overwrite:
        raise ConfigError(
            "output files exist already",
            where=folder,
            why=f"{len(there)} of {len(targets)}",
            faults=there,
            hint="Add --overwrite, or choose another folder with -o.",
        )


def _real(path: Path) -> str:
    """The path behind all links; of one that can be no file's (a circle of links, a NUL) what there is of it."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return str(path)


@dataclass(frozen=True)
class _Loaded:
    """An image that was read, what is odd about it, and how long that took; or why it could not be."""

    file: ImageFile
    pixels: np.ndarray | None
    notes: list[str]
    seconds: float
    failure: DataError | None = None


@dataclass(frozen=True)
class _Segmented:
    """A prediction that waits for its files; without one, why there is none."""

    loaded: _Loaded
    prediction: Prediction | None
    memory: MemoryUse | None
    seconds: float


class _Pipeline:
    """Reads, segments and saves images: the first and the last in threads, each in the order of the images."""

    def __init__(
        self, segmenter: Segmenter, folder: Path, kinds: Sequence[str], settings: Settings, alpha: float,
        workers: int, observer: Observer,
    ) -> None:  # fmt: skip
        self.segmenter, self.folder, self.kinds, self.settings = segmenter, folder, kinds, settings
        self.alpha, self.workers, self.observer = alpha, workers, observer
        self.limited = settings.max_memory is not None and segmenter.device.type == "cpu"
        classes, maps = len(segmenter.classes.names), MAP_BYTES * ("entropy" in kinds)
        per_class = ("probs" in kinds) * PROBS_BYTES + ("disagreement" in kinds) * MIRRORED_BYTES
        self.result_bytes = SAVE_BYTES + maps + per_class * classes
        halved = ("probs" in kinds) * HALVED_BYTES * classes
        done = DONE_BYTES + maps + MAP_BYTES * ("disagreement" in kinds) + halved
        self.footprint = Footprint(READ_BYTES, done, SAVE_BYTES + 2 * halved, workers)

    def run(self, images: Sequence[ImageFile]) -> Generator[ImageResult | Failure, None, None]:
        for first in range(0, len(images), CHUNK if self.limited else len(images)):
            chunk = images[first : first + CHUNK] if self.limited else images
            workers, used = self._workers(chunk) if self.limited else (self.workers, None)

            def read(file: ImageFile, check: bool = self.limited and not workers) -> _Loaded:
                return self._read(file, check)

            def segment(loaded: _Loaded, used: int | None = used) -> _Segmented:
                return self._segment(loaded, used)

            with (
                closing(in_threads(read, chunk, workers)) as loaded,
                closing(in_threads(self._finish, map(segment, loaded), workers, eager=True)) as results,
            ):
                yield from results

    def _workers(self, images: Sequence[ImageFile]) -> tuple[int, int | None]:
        """Threads on either side that the memory limit allows, and the bytes that count as in use with them."""

        def size(file: ImageFile) -> tuple[int, int] | None:
            try:
                header = image_header(file.path, self.settings.max_pixels)
            except DataError:  # said when it is read
                return None
            return header.height, header.width

        def fit(size: tuple[int, int], used: int | None) -> object:
            return self.segmenter.plan(size, self.settings, self.result_bytes, used)

        workers = min(self.workers, len(images) - 1)
        if not workers:
            return 0, None
        with closing(in_threads(size, images, workers)) as found:
            sizes = [size for size in found if size is not None]
        if not sizes:
            return 0, None
        try:
            return readers_within(fit, self.segmenter.device, sizes, workers, self.footprint, workers)
        except ResourceError:
            return 0, None

    def _read(self, file: ImageFile, check: bool) -> _Loaded:
        start = time.perf_counter()
        try:
            if check:
                header = image_header(file.path, self.settings.max_pixels)
                needed = os.stat(file.path).st_size + DECODE_BYTES * header.width * header.height
                self.segmenter.require_room(self.settings, needed, f"decoding {file.path}")
            pixels, _, notes = decode_file(file.path, self.settings.max_pixels)
        except DataError as error:
            if is_exhaustion(error.__cause__):
                raise
            return _Loaded(file, None, [], 0.0, error)
        return _Loaded(file, pixels, notes, time.perf_counter() - start)

    def _segment(self, loaded: _Loaded, used: int | None) -> _Segmented:
        if loaded.pixels is None:
            self.observer.advance()
            return _Segmented(loaded, None, None, 0.0)
        start, path = time.perf_counter(), loaded.file.path
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
            return _Segmented(replace(loaded, failure=error), None, None, 0.0)
        prediction = made.without_scores(self.kinds)
        memory = None if plan.peak is None else MemoryUse(plan.peak, highest_use(self.segmenter.device))
        return _Segmented(replace(loaded, pixels=None), prediction, memory, time.perf_counter() - start)

    def _finish(self, done: _Segmented) -> ImageResult | Failure:
        prediction, file = done.prediction, done.loaded.file
        if prediction is None:
            return Failure(file.path, str(done.loaded.failure))
        start, (height, width) = time.perf_counter(), prediction.ids.shape
        outputs = prediction.save(self.folder, file.name, self.kinds, self.alpha)
        stats, doubt = prediction.stats(), prediction.doubt
        seconds = done.loaded.seconds + done.seconds + time.perf_counter() - start
        return ImageResult(file.path, width, height, prediction.windows, seconds, stats, doubt, outputs, done.memory)


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
    observer = observer or Silent()
    check_outputs(kinds, segmenter.classes)
    protocol = resolve_settings(settings, segmenter.inference, segmenter.device)
    began, results, failures = time.perf_counter(), list[ImageResult](), list[Failure]()
    observer.begin(f"segmenting {len(images)} image{'s' * (len(images) != 1)}", len(images))
    pipeline = _Pipeline(segmenter, folder, kinds, settings, alpha, workers, observer)
    with closing(pipeline.run(images)) as found:
        for one in found:
            if isinstance(one, Failure):
                failures.append(one)
            else:
                results.append(one)
                observer.result(one)
    segmenter.require_room(settings, 0, "segmenting")
    total = _total_shares(results)
    by_doubt = [result.path for result in sorted(results, key=lambda result: -result.doubt)]
    return InferReport(segmenter.info, protocol, results, failures, total, by_doubt, time.perf_counter() - began)


def _total_shares(results: Sequence[ImageResult]) -> list[ClassShare]:
    shares = [share for result in results for share in result.classes]
    names = {share.id: share.name for share in shares}
    pixels = {index: sum(share.pixels for share in shares if share.id == index) for index in names}
    whole = sum(result.width * result.height for result in results)
    total = [ClassShare(index, names[index], count, count / whole) for index, count in pixels.items()]
    return sorted(total, key=lambda share: -share.share)
