"""Submissions: the test images, their labelId files, the zip, and its check, which names every fault."""

from __future__ import annotations

import os
import re
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dgmn2cli.data import png
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import CLASSES, LABEL_ID_OF_TRAIN_ID, LABELS
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.decoding import decode_ids
from dgmn2cli.data.files import find_files
from dgmn2cli.data.formats import Malformed, sniff
from dgmn2cli.data.images import image_header, write_png
from dgmn2cli.errors import CheckFailed, ConfigError, DataError, ResourceError
from dgmn2cli.evaluate.engine import segmented
from dgmn2cli.files import absence, atomic_write, open_regular, read_bounded
from dgmn2cli.inference.pipeline import in_threads
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

MAKERS = "`dgmn2 eval --save-preds DIR` or `dgmn2 submit MODEL` makes them."
_DATE = (1980, 1, 1, 0, 0, 0)  # in every zip, so that the same files give the same bytes
TEST_CITIES = {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398}
OFFICIAL_SIZE = (2048, 1024)
MEMBER_LIMIT = 64 << 20  # bytes of one file, unpacked; a label map of the official size has about 50,000
MOST_MEMBERS = 100_000
_EVALUATED = {int(LABEL_ID_OF_TRAIN_ID[i]) for i in range(len(CLASSES))}
_LEGAL = {label.id for label in LABELS}
_NAME = re.compile(r"([A-Za-z-]+)_[0-9]{6}_[0-9]{6}(?=[_.])")


@dataclass(frozen=True)
class Expected:
    """What a submission must hold."""

    # (width, height) by image name; empty where the images are not at hand, and then the official numbers of images per
    # city and their official size count
    sizes: Mapping[str, tuple[int, int]]
    against: str  # what that is, in words

    @property
    def count(self) -> int:
        """Images in all."""
        return len(self.sizes) or sum(TEST_CITIES.values())


OFFICIAL = Expected({}, "the official numbers of test images")


@dataclass(frozen=True)
class ZipReport:
    """What the check of a zip found; a submission without faults can be sent."""

    path: str
    bytes: int
    files: int
    expected: int
    against: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class SubmissionReport:
    """A zip that was made, what it was made from, and its check; `run` and `protocol` are None for kept predictions."""

    zip: Path
    folder: Path
    run: RunInfo | None
    protocol: Protocol | None
    seconds: float
    check: ZipReport


def open_test(root: Path, split: str, observer: Observer = Silent()) -> SegmentationSet:
    """The images to submit, each read once to see that it can be.

    Raises:
        ConfigError: the data set is not Cityscapes.
        DataError: no images, unreadable ones, or names that the server does not know; all are named.
    """
    data = open_dataset(root, split, labels=False)
    for note in data.notes:
        observer.note(f"{split}: {note}")
    if data.kind != "cityscapes":
        raise ConfigError("submissions are for Cityscapes", where=root, why=f"this is a {data.kind} data set")
    faults = [
        f"{pair.image}: the name is not CITY_123456_123456_leftImg8bit.png"
        for pair in data.pairs
        if image_name(f"{pair.name}.png") != pair.name
    ]

    def fault(index: int) -> str:
        try:
            data.read_image(index)
        except DataError as error:
            return str(error)
        return ""

    observer.begin("reading the images", len(data))
    with closing(in_threads(fault, range(len(data)), 2)) as found:
        for text in found:
            faults += [text] if text else []
            observer.advance()
    if faults:
        why = f"{len(faults)} fault{'s' * (len(faults) != 1)} in split {split}"
        raise DataError("the data set has faults", where=root, why=why, hint="Mend them.", faults=faults)
    return data


def _predict(
    segmenter: Segmenter, data: SegmentationSet, settings: Settings, folder: Path, workers: int, observer: Observer
) -> dict[str, Path]:
    """Segments every image of `data` and writes `NAME_labelIds.png`; the files by image name."""
    if not segmenter.classes.cityscapes:
        raise ConfigError("this model cannot make a submission", why="its classes are not those of Cityscapes")

    files, everything = {}, range(len(data))
    observer.begin("segmenting", len(data))
    done = segmented(segmenter, data, everything, settings, labels=False, workers=workers, observer=observer)
    with closing(done) as images:
        for image in images:
            name = data.pairs[image.index].name
            files[name] = write_png(folder / f"{name}_labelIds.png", LABEL_ID_OF_TRAIN_ID[image.ids])
    return files


def kept_predictions(folder: Path, data: SegmentationSet) -> dict[str, Path]:
    """The labelIds files under `folder`, as `eval --save-preds` or others left them, by image name.

    A file belongs to an image if its name starts with the image's, as the official tool has it.

    Raises:
        DataError: no such folder; images without a file, or with several (all are named).
    """
    inner = folder / "labelIds"
    searched = inner if os.path.isdir(inner) else folder
    if not os.path.isdir(searched):
        why, hint = absence(folder, "folder"), f"Name a folder that has some. {MAKERS}"
        raise DataError("cannot read the predictions", where=folder, why=why, hint=hint)
    found: dict[str, list[Path]] = {pair.name: [] for pair in data.pairs}
    for path in find_files(searched, (".png",), name_others=False).files:
        if image_name(path.name) in found:
            found[image_name(path.name)].append(path)
    faults = [f"{name}: no file" for name, paths in found.items() if not paths]
    faults += [f"{name}: {', '.join(map(str, paths))}" for name, paths in found.items() if len(paths) > 1]
    if faults:
        why = f"{len(faults)} of {len(found)} images have no file, or several"
        raise DataError("the predictions are not complete", where=searched, why=why, faults=faults, hint=MAKERS)
    return {name: paths[0] for name, paths in found.items()}


def write_zip(path: Path, files: Sequence[Path]) -> Path:
    """A zip of `files`, flat, in the order of their names; the same files give the same bytes.

    Raises:
        DataError: a file cannot be read.
        ResourceError: the zip cannot be written.
    """
    what = "cannot read the prediction"

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
            for source in sorted(files, key=lambda item: item.name):
                entry = zipfile.ZipInfo(source.name, _DATE)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, read_bounded(source, MEMBER_LIMIT, what, kind=DataError, unreadable=DataError))

    return atomic_write(path, write)


def make_submission(
    segmenter: Segmenter | None,
    data: SegmentationSet,
    settings: Settings,
    folder: Path,
    target: Path,
    *,
    workers: int = 2,
    observer: Observer = Silent(),
) -> SubmissionReport:
    """labelIds files, the zip, and its check.

    Args:
        segmenter: the network; None to take the predictions kept in `folder`.
        data: the images, see `open_test`.
        folder: where the files go, or are.

    Raises:
        ConfigError: the network's classes are not those of Cityscapes, or `target` is a folder.
        Dgmn2Error: an image cannot be read, the network fails, a file cannot be written; as `kept_predictions`.
    """
    began = time.perf_counter()
    if target.is_dir():
        hint = "Name a file with --zip."
        raise ConfigError("the zip cannot be written", where=target, why="it is a folder", hint=hint)
    if segmenter is None:
        files, run, protocol = kept_predictions(folder, data), None, None
    else:
        run, protocol = segmenter.info, resolve_settings(settings, segmenter.inference, segmenter.device)
        files = _predict(segmenter, data, settings, folder, workers, observer)
    write_zip(target, list(files.values()))
    return SubmissionReport(
        target, folder, run, protocol, time.perf_counter() - began, validate_zip(target, expected_of(data))
    )


def expected_of(data: SegmentationSet) -> Expected:
    """What a submission for `data` must hold."""
    headers = {pair.name: image_header(pair.image) for pair in data.pairs}
    sizes = {name: (header.width, header.height) for name, header in headers.items()}
    return Expected(sizes, f"the images of split {data.split} of {data.root}")


def validate_zip(path: Path, expected: Expected, observer: Observer = Silent()) -> ZipReport:
    """Looks at every file of a zip: names, count, sizes, one channel of 8 bits, legal ids. Nothing is unpacked to disk.

    Raises:
        ResourceError: there is no such file, or it may not be read.
    """
    what, faults, names = "cannot read the zip", list[str](), list[str]()
    with open_regular(path, what, kind=ResourceError) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) > MOST_MEMBERS:
                    faults.append(f"{len(members):,} files, and {expected.count:,} are wanted")
                    members = []
                observer.begin("checking the zip", len(members))
                seen: Counter[int] = Counter()
                for member in members:
                    names.append(image_name(member.filename))
                    fault = _member_fault(archive, member, names[-1], expected, seen)
                    faults += [f"{member.filename}: {fault}"] if fault else []
                    observer.advance()
                if seen and max(seen) < len(CLASSES) and set(seen) - _EVALUATED:
                    why = "these look like training ids, and labelIds are wanted"
                    faults.append(f"no file holds an id above {max(seen)}: {why}")
        except zipfile.BadZipFile as error:
            faults.append(f"it is no zip file, or a damaged one ({error})")
        except OSError as error:
            raise ResourceError(what, where=path, why=error.strerror or str(error)) from error
    faults += _count_faults([name for name in names if name], expected)
    size = path.stat().st_size
    return ZipReport(str(path), size, len(names), expected.count, expected.against, tuple(faults))


def require_valid(report: ZipReport) -> None:
    """Raises CheckFailed, with every fault, where the zip has any."""
    if report.faults:
        count = len(report.faults)
        raise CheckFailed(
            "the submission is not valid",
            where=report.path,
            faults=report.faults,
            why=f"{count} fault{'s' * (count != 1)}, checked against {report.against}",
        )


def _member_fault(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, expected: Expected, seen: Counter[int]
) -> str:
    """What is wrong with one file; its ids are added to `seen`."""
    if not name:
        return "the name is not CITY_123456_123456*.png"
    if expected.sizes and name not in expected.sizes:
        return "there is no such image"
    if not expected.sizes and name.split("_")[0] not in TEST_CITIES:
        return "it is of no test city"
    try:
        ids = _label_ids(_content(archive, member), expected.sizes.get(name, OFFICIAL_SIZE))
    except Malformed as error:
        return str(error)
    present = {int(value) for value in np.flatnonzero(np.bincount(ids.ravel(), minlength=256))}
    seen.update(present)
    wrong = sorted(present - _LEGAL)
    some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return f"it holds {some}, and labelIds are 0 to {max(_LEGAL)}" if wrong else ""


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        raise Malformed("it is encrypted")
    try:
        with archive.open(member) as file:
            content = file.read(MEMBER_LIMIT + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: unknown compression, too
        raise Malformed(f"it cannot be unpacked ({error})") from error
    if len(content) > MEMBER_LIMIT:
        raise Malformed(f"it has more than {MEMBER_LIMIT:,} bytes")
    return content


def _label_ids(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 ids of a PNG that must have `size` (width, height), one channel and 8 bits; Malformed if not."""
    if not content or sniff(content) != "PNG":
        raise Malformed("it is no PNG")
    found = png.png_size(content)
    if found != size:
        raise Malformed(f"it is {found[0]}x{found[1]}, and {size[0]}x{size[1]} is wanted")
    image = png.parse_png(content)
    if image.color_type not in (png.GRAY, png.PALETTE) or image.depth != 8:
        raise Malformed("it is not an 8-bit image of one channel")
    return decode_ids(content, size[0] * size[1])


def _count_faults(names: Sequence[str], expected: Expected) -> Iterator[str]:
    """Images that are there twice or not at all."""
    counts = Counter(names)
    yield from (f"{name}: {count} files" for name, count in sorted(counts.items()) if count > 1)
    if expected.sizes:
        yield from (f"{name}: no file" for name in sorted(expected.sizes) if name not in counts)
        return
    cities = Counter(name.split("_")[0] for name in counts)
    for city, wanted in TEST_CITIES.items():
        if cities[city] != wanted:
            yield f"{city}: {cities[city]} images, and {wanted} are wanted"


def image_name(member: str) -> str:
    """CITY_123456_123456 of a file's name, any folder before it; empty if it does not start so, or is no PNG."""
    name = member.replace("\\", "/").rpartition("/")[2]
    match = _NAME.match(name)
    return match[0] if match is not None and name.lower().endswith(".png") else ""
