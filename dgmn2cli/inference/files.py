"""Owns segmenting many files: which pictures are meant, what each becomes, which could not be done and why."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgmn2cli.data.files import SUFFIXES
from dgmn2cli.data.images import read_image
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import absence, check_folder
from dgmn2cli.inference.plan import SAVE_BYTES, Plan, Settings
from dgmn2cli.inference.prediction import ClassShare, Prediction, check_outputs, output_path
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.runtime import highest_use

PROBS_BYTES = 10  # per pixel and class, while probabilities are made, halved and compressed
GIVE = "Give files, folders, globs or @list.txt."
LIST_LIMIT = 16 << 20  # bytes of a list file


@dataclass(frozen=True)
class Picture:
    """One picture to segment: its file, and the name its outputs get, relative to the output folder."""

    path: Path
    name: str


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use at most while a picture was segmented: predicted, and measured up to then."""

    predicted: int
    highest: int


@dataclass(frozen=True)
class PictureResult:
    """What became of one picture.

    Attributes:
        path: the picture.
        width, height: its displayed size, the masks' size.
        windows: windows that went through the network.
        seconds: from reading it to its last file.
        classes: what it shows, largest first.
        outputs: file by kind.
        memory: what was in use at most, where a limit was given.
    """

    path: Path
    width: int
    height: int
    windows: int
    seconds: float
    classes: list[ClassShare]
    outputs: dict[str, Path]
    memory: MemoryUse | None


@dataclass(frozen=True)
class Failure:
    """A picture that could not be segmented, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class InferReport:
    """The result of one `infer` run.

    Attributes:
        run: model, weights, device, backend.
        settings: protocol settings as asked for.
        protocol: the protocol in force, `paper` or `native`.
        pictures: what was done.
        failures: what could not be read.
        classes: pixel shares over all pictures, largest first.
        seconds: wall time, loading the model excluded.
    """

    run: RunInfo
    settings: Settings
    protocol: str
    pictures: list[PictureResult]
    failures: list[Failure]
    classes: list[ClassShare]
    seconds: float


def find_pictures(sources: Sequence[str]) -> list[Picture]:
    """The pictures that `sources` name: files, folders (searched through), globs, and `@LIST` files of paths.

    Outputs of pictures from a folder keep their subfolder; pictures of one name but different kinds keep the suffix.

    Raises:
        ConfigError: nothing is named, or two pictures would get the same output names.
        DataError: a source does not exist, or a folder or list holds no picture.
    """
    found: list[tuple[Path, Path]] = []  # file, name relative to the output folder
    for source in sources:
        found += _expand(source)
    if not found:
        raise ConfigError("no picture is named", hint=GIVE)
    unique = list(dict.fromkeys(found))
    if not any(os.path.exists(path) for path, _ in unique):
        if len(unique) == 1:
            raise DataError("cannot find the picture", where=unique[0][0], why=absence(unique[0][0]), hint=GIVE)
        raise DataError("none of these files exist", faults=[str(path) for path, _ in unique], hint=GIVE)
    stems: dict[str, int] = {}
    for _, name in unique:
        stems[str(name.with_suffix(""))] = stems.get(str(name.with_suffix("")), 0) + 1
    pictures = [
        Picture(path, str(name.with_suffix("")) if stems[str(name.with_suffix(""))] == 1 else str(name))
        for path, name in unique
    ]
    names = [picture.name for picture in pictures]
    double = [picture for picture in pictures if names.count(picture.name) > 1] if len(set(names)) < len(names) else []
    if double:
        raise ConfigError(
            "several pictures would get the same output names",
            faults=[f"{picture.name}: {picture.path}" for picture in double],
            hint="Segment them in separate runs with different -o folders.",
        )
    return pictures


def _expand(source: str) -> list[tuple[Path, Path]]:
    if source in ("", "@"):
        raise ConfigError("the name of a picture, or of a list of them, is empty", hint=GIVE)
    if source.startswith("@") and not os.path.exists(source):
        return _expand_list(Path(source[1:]))
    path = Path(source)
    if os.path.isdir(path):
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise DataError("no picture in the folder", where=path, why=f"wanted {', '.join(SUFFIXES)}")
        return [(p, p.relative_to(path)) for p in inside]
    if not os.path.exists(path) and glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(match)]
        if not matches:
            raise DataError("no file matches", where=source, hint=GIVE)
        return [(match, Path(match.name)) for match in matches]
    return [(path, Path(path.name))]


def _expand_list(path: Path) -> list[tuple[Path, Path]]:
    """One path a line, relative to the list's folder; blank lines and lines starting with # are skipped."""
    try:
        with path.open("rb") as file:
            text = file.read(LIST_LIMIT + 1)
        lines = [line.strip() for line in text.decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        hint = "Give a text file that names one picture a line."
        raise DataError("cannot read the list of pictures", where=path, why=why, hint=hint) from error
    if len(text) > LIST_LIMIT:
        raise DataError("cannot read the list of pictures", where=path, why=f"it is longer than {LIST_LIMIT} bytes")
    named = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not named:
        raise DataError("the list names no picture", where=path)
    return [(file, Path(file.name)) for file in named]


def check_targets(pictures: Iterable[Picture], folder: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Refuses outputs before any picture is segmented.

    Raises:
        ConfigError: one would overwrite an input, or an existing file without `overwrite`.
        ResourceError: the folder cannot come to be.
    """
    pictures = list(pictures)
    check_folder(folder)
    inputs = {_real(picture.path) for picture in pictures}
    targets = [output_path(folder, picture.name, kind) for picture in pictures for kind in kinds]
    lost = [str(target) for target in targets if _real(target) in inputs]
    if lost:
        raise ConfigError("an output would overwrite its input", faults=lost, hint="Choose another folder with -o.")
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


def predict_files(
    segmenter: Segmenter,
    pictures: Sequence[Picture],
    folder: Path,
    kinds: Sequence[str],
    settings: Settings,
    *,
    alpha: float = 0.5,
    on_plan: Callable[[Picture, Plan], None] | None = None,
    on_window: Callable[[int], None] | None = None,
    on_picture: Callable[[PictureResult], None] | None = None,
) -> InferReport:
    """Segments pictures one after the other; a bad one is noted and the others are done.

    Args:
        segmenter: the network.
        pictures: what to segment.
        folder: where the outputs go.
        kinds: what to write, see `Prediction.save`.
        settings: protocol settings.
        alpha: strength of the overlay's colours, 0 to 1.
        on_plan: called with each picture and what will be done with it.
        on_window: called with the number of windows done.
        on_picture: called with each result.

    Raises:
        ConfigError: impossible settings.
        ResourceError: out of memory, or an output cannot be written.
        NonFiniteError: the network gave NaN or infinity.
    """
    check_outputs(kinds, segmenter.classes)
    protocol = settings.protocol or segmenter.inference.protocol
    result_bytes = SAVE_BYTES + ("probs" in kinds) * PROBS_BYTES * len(segmenter.classes.names)
    began, results, failures = time.perf_counter(), [], []
    for picture in pictures:
        start = time.perf_counter()
        try:
            image = read_image(picture.path, settings.max_pixels)
        except DataError as error:
            failures.append(Failure(picture.path, str(error)))
            continue
        plan = segmenter.plan(image.shape[:2], settings, result_bytes)
        if on_plan is not None:
            on_plan(picture, plan)
        scores = segmenter.scores(image, plan, on_window)
        ids, confidence = scores.classes()
        prediction = Prediction(ids.numpy(), confidence.numpy(), segmenter.classes, image, scores, plan.windows)
        outputs = prediction.save(folder, picture.name, kinds, alpha)
        height, width = image.shape[:2]
        seconds = time.perf_counter() - start
        memory = None if plan.peak is None else MemoryUse(plan.peak, highest_use(segmenter.device))
        result = PictureResult(picture.path, width, height, plan.windows, seconds, prediction.stats(), outputs, memory)
        results.append(result)
        if on_picture is not None:
            on_picture(result)
    total = _total_shares(results)
    return InferReport(segmenter.info, settings, protocol, results, failures, total, time.perf_counter() - began)


def _total_shares(results: Sequence[PictureResult]) -> list[ClassShare]:
    pixels: dict[int, int] = {}
    names: dict[int, str] = {}
    for result in results:
        for share in result.classes:
            pixels[share.id] = pixels.get(share.id, 0) + share.pixels
            names[share.id] = share.name
    whole = sum(result.width * result.height for result in results)
    shares = [ClassShare(index, names[index], count, count / whole) for index, count in pixels.items()]
    return sorted(shares, key=lambda share: -share.share)
