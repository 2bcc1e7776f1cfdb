"""The making of a submission: the test images, their labelId files, and the zip."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.files import find_files
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.engine import segmented
from dgmn2cli.evaluate.submission_check import MEMBER_LIMIT, ZipReport, expected_of, image_name, validate_zip
from dgmn2cli.files import absence, atomic_write, read_bounded
from dgmn2cli.inference.pipeline import in_threads
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

MAKERS = "`dgmn2 eval --save-preds DIR` or `dgmn2 submit MODEL` makes them."
_DATE = (1980, 1, 1, 0, 0, 0)  # in every zip, so that the same files give the same bytes


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
