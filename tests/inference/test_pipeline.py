"""The pipeline: order, overlap and the end of its threads; the same bytes for any number of them; streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from streets import SMALL, Load, predict_files, scene, segmenter

from dgmn2cli import runtime
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError, NonFiniteError
from dgmn2cli.inference.pipeline import in_threads
from dgmn2cli.inference.prediction import OUTPUTS


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dgmn2-pipeline")}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_png(tmp_path / "in" / f"{index}.png", scene(index)[0]) for index in range(6)]


def test_reading_ahead_keeps_order_overlaps_and_stops() -> None:
    release, started = threading.Event(), []

    def read(index: int) -> int:
        started.append(index)
        release.wait(10)
        return index * index

    with closing(in_threads(read, range(50), 3)) as values:
        waiter = threading.Timer(0.2, release.set)
        waiter.start()
        assert next(values) == 0
        assert set(started) >= {0, 1, 2}, "several were under way at once"
        assert [next(values) for _ in range(3)] == [1, 4, 9]
        waiter.join()
    time.sleep(0.05)
    assert len(started) <= 12, "nothing is read for a consumer that is gone"
    assert threads() == set()
    with pytest.raises(ZeroDivisionError), closing(in_threads(lambda i: 1 // (2 - i), range(5), 2)) as values:
        list(values)
    assert list(in_threads(read, [], 2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_came_before_an_error_of_the_source_is_done(workers: int) -> None:
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise DataError("the source ended")

    def work(number: int) -> int:
        time.sleep(0.02)
        return number

    got = []
    with pytest.raises(DataError, match="the source ended"):
        got.extend(in_threads(work, source(), workers))
    assert got == [1, 2]


def test_an_error_of_the_work_comes_where_its_result_would_have() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise DataError("the second")
        return number

    got = []
    with pytest.raises(DataError, match="the second"):
        got.extend(in_threads(work, range(1, 5), 2, eager=True))
    assert got == [1]


def test_the_same_bytes_with_any_number_of_threads(images: list[Path], tmp_path: Path) -> None:
    """They include the bad one in the middle, and results come in the order of the images."""
    images[2].write_bytes(images[2].read_bytes()[:200])
    kinds = [kind for kind in OUTPUTS if kind != "labelids"]
    files = {}
    for workers in (0, 1, 4):
        out = tmp_path / f"out{workers}"
        report = predict_files(segmenter(), tmp_path / "in", out, kinds, replace(SMALL, ms_flip=True), workers=workers)
        assert [result.path for result in report.images] == [image for image in images if image != images[2]]
        assert [failure.path for failure in report.failures] == [images[2]]
        files[workers] = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "results.jsonl"}
    assert len(files[0]) == 5 * len(kinds)
    assert files[0] == files[1] == files[4]
    assert threads() == set()


@pytest.mark.skipif(not runtime.can_measure(torch.device("cpu")), reason="this system does not tell memory use")
def test_under_a_memory_limit_threads_read_where_there_is_room(images: list[Path], tmp_path: Path) -> None:
    reads, made = set[bool](), segmenter()
    plan = made.plan

    def watched(size: tuple[int, ...], *arguments: object, **named: object) -> object:
        reads.add(bool(threads()))
        return plan(size, *arguments, **named)  # type: ignore[arg-type]

    made.plan = watched  # type: ignore[method-assign, assignment]
    predict_files(made, tmp_path / "in", tmp_path / "free", ["ids"], SMALL)
    ample = replace(SMALL, max_memory=10**12)
    report = predict_files(made, tmp_path / "in", tmp_path / "ample", ["ids"], ample)
    assert True in reads
    assert all(result.memory is not None for result in report.images)
    for path in (tmp_path / "free").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "ample" / path.name).read_bytes()


def test_a_network_that_fails_leaves_what_was_done(images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        predict_files(Load("nan")(device="cpu"), tmp_path / "in", tmp_path / "out", ["ids"], SMALL)
    assert threads() == set()


# --- Segmenter.stream


def test_a_stream_gives_what_predict_gives(images: list[Path]) -> None:
    made = segmenter()
    settings = replace(SMALL, ms_flip=True)
    got = list(made.stream(map(str, images), settings))
    assert [prediction.path for prediction in got] == images
    for path, prediction in zip(images, got, strict=True):
        alone = made.predict(path, scale=SMALL.scale, window=SMALL.window, stride=SMALL.stride, ms_flip=True)
        assert np.array_equal(prediction.ids, alone.ids)
        assert np.array_equal(prediction.probs, alone.probs)
    assert threads() == set()


def test_a_stream_of_arrays_may_be_endless_and_is_closed_early() -> None:
    asked, image = [], np.ascontiguousarray(scene(1)[0][..., ::-1])

    def frames() -> Iterator[np.ndarray]:
        for index in count():
            asked.append(index)
            yield image

    stream = segmenter().stream(frames(), SMALL, workers=3)
    first = next(stream)
    assert first.path is None
    assert np.array_equal(first.ids, next(stream).ids)
    assert len(asked) <= 6
    stream.close()
    assert threads() == set()


def test_bad_images_of_a_stream_end_it_or_are_skipped(images: list[Path]) -> None:
    images[1].write_bytes(b"no image")
    stream = segmenter().stream(images, SMALL)
    assert next(stream).path == images[0]
    with pytest.raises(DataError, match=r"1\.png"):
        next(stream)
    assert threads() == set()
    skipped = []
    got = list(segmenter().stream(images, SMALL, skip=lambda image, error: skipped.append((image, error.where))))
    assert [prediction.path for prediction in got] == [images[0], *images[2:]]
    assert skipped == [(images[1], str(images[1]))]
    with pytest.raises(DataError, match="pixels"):
        next(segmenter().stream(images, replace(SMALL, max_pixels=100)))
    with pytest.raises(ConfigError):
        next(segmenter().stream(images, replace(SMALL, window=0)))
