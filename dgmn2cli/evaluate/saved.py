"""Predictions from files as the source of an evaluation: the same figures without a network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.evaluate.analysis.measure import SegmentedImage
from dgmn2cli.evaluate.engine import Counted, Source, counted
from dgmn2cli.evaluate.predictions import find_predictions, read_prediction
from dgmn2cli.files import hash_file
from dgmn2cli.inference.pipeline import in_threads
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.observer import Observer

MODEL = "predictions"  # what a report calls them


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
    run = RunInfo(MODEL, str(folder), digest, "none", "files", "none", "", "files", runtime="files", runtime_version="")

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
