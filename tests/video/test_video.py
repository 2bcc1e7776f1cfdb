"""A video becomes a film, a film of class ids and lines: times, rotation, sound, reuse, smoothing, memory, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("av")
import av
from clips import (
    COLOURS,
    PLAIN,
    SIZE,
    Nearest,
    clip,
    image,
    label,
    packets,
    read,
    read_ids,
    seen_by_opencv,
    segmenter,
    write_clip,
)  # fmt: skip

from dgmn2cli.inference.plan import Settings
from dgmn2cli.observer import Silent
from dgmn2cli.runtime import in_use
from dgmn2cli.video.outputs import VideoRequest, check_request
from dgmn2cli.video.run import FirstFrame, VideoReport, segment_video
from dgmn2cli.video.source import Span, open_video

ALL = ("overlay", "ids", "jsonl")
VARIED = np.cumsum([0, *([40, 20, 90] * 20)])[:60].tolist()  # milliseconds


def run(
    path: Path,
    out: Path,
    span: Span = Span(),  # noqa: B008  # it is frozen
    settings: Settings = PLAIN,
    network: Nearest | None = None,
    observer: Silent = Silent(),
    **request: object,
) -> VideoReport:
    wanted = VideoRequest(out, **{"kinds": ALL, **request})
    with open_video(str(path), span, settings.max_pixels) as source:
        check_request(wanted, source, overwrite=True)
        return segment_video(segmenter(network), source, wanted, settings, observer)


@pytest.mark.parametrize("times", [None, VARIED], ids=["constant", "variable"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_keeps_its_time_and_two_decoders_read_the_film(
    tmp_path: Path, times: list[int] | None, suffix: str
) -> None:
    path = write_clip(tmp_path / "clip.mp4", clip(60), times, sound="aac")
    report = run(path, tmp_path / f"out{suffix}")
    wanted = np.array(times or [40 * i for i in range(60)]) / 1000
    assert (report.frames, report.damaged, report.video.frames) == (60, 0, 60)
    np.testing.assert_allclose(read(path)[0], wanted)
    for kind in ("overlay", "ids"):
        for found, frames in (read(report.outputs[kind]), seen_by_opencv(report.outputs[kind])):
            assert len(frames) == 60
            np.testing.assert_allclose(found, wanted, atol=1e-9)
            assert frames[0].shape == (*SIZE, 3)
    lines = [json.loads(line) for line in report.outputs["jsonl"].read_text().splitlines()]
    np.testing.assert_allclose([line["time"] for line in lines], wanted)
    for line, ids in zip(lines, read_ids(report.outputs["ids"]), strict=True):
        np.testing.assert_allclose(line["shares"]["left"], np.mean(ids == 0))
        assert 0 <= line["doubt"] <= 1


def test_ids_are_exact_and_the_film_shows_their_colours(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", clip(12), exact=True)
    report = run(path, tmp_path / "out.mp4", alpha=1.0)
    ids = read_ids(report.outputs["ids"])
    for number, found in enumerate(ids):
        np.testing.assert_array_equal(found, label(number))
    for found, frame in zip(ids, seen_by_opencv(report.outputs["ids"])[1], strict=True):
        np.testing.assert_array_equal(frame, np.repeat(found[..., None], 3, axis=2))
    for number, frame in enumerate(read(report.outputs["overlay"])[1]):
        inner = cv2.erode((label(number) == 3).astype(np.uint8), np.ones((7, 7))).astype(bool)
        assert inner.any()
        assert np.abs(frame[inner].mean(axis=0) - COLOURS[3]).max() <= 5
    assert report.classes[0].pixels == sum(int(np.sum(found == report.classes[0].id)) for found in ids)
    assert sum(share.share for share in report.classes) == pytest.approx(1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("standard", "red", "blue"), [(5, 0.299, 0.114), (1, 0.2126, 0.0722), (9, 0.2627, 0.0593)])
def test_colours_are_those_of_the_standard_that_the_film_names(
    standard: int, red: float, blue: float, full: bool, tmp_path: Path
) -> None:
    """BT.601, BT.709 and BT.2020 in FFmpeg's numbers, and their weights of red and blue (ITU-R BT.709-6, section 3)."""
    colour = np.array([30, 180, 90])
    light = float(colour @ (red, 1 - red - blue, blue))
    low, high, wide = (0, 255, 255) if full else (16, 219, 224)
    stored = np.full((48, 32), round(low + high * light / 255), np.uint8)  # a plane of 32 rows, two of half the size
    stored[32:40] = round(128 + wide * (90 - light) / (2 * (1 - blue)) / 255)
    stored[40:] = round(128 + wide * (30 - light) / (2 * (1 - red)) / 255)
    with av.open(tmp_path / "clip.mkv", "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = standard, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(stored, format="yuv420p")
        frame.colorspace, frame.color_range = context.colorspace, context.color_range
        film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    with open_video(str(tmp_path / "clip.mkv"), Span(), 10**6) as source:
        [read_frame] = source.frames()
    assert np.abs(read_frame.image[..., ::-1].astype(int) - colour).max() <= 3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_written_upright(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", clip(4), rotation=degrees, aspect=Fraction(4, 3))
    report = run(path, tmp_path / "out.mp4", alpha=0.0)
    _, wanted = seen_by_opencv(path)  # it turns what is flagged
    _, found = read(report.outputs["overlay"])  # this does not
    assert wanted[0].shape == (*(SIZE if degrees == 180 else SIZE[::-1]), 3)
    assert np.abs(cv2.blur(found[2], (5, 5)).astype(int) - cv2.blur(wanted[2], (5, 5))).mean() < 3
    assert np.abs(found[2][::-1, ::-1].astype(int) - wanted[2]).mean() > 6  # the other way round it is another image
    assert (report.video.width, report.video.height) == wanted[0].shape[1::-1]
    with av.open(report.outputs["overlay"]) as film:
        assert next(film.decode(video=0)).rotation == 0
        assert film.streams.video[0].sample_aspect_ratio == (Fraction(4, 3) if degrees == 180 else Fraction(3, 4))


@pytest.mark.parametrize(
    ("codec", "suffix"), [("aac", ".mp4"), ("aac", ".mkv"), ("libmp3lame", ".mp4"), ("libopus", ".mkv")]
)
def test_sound_is_copied_and_in_step(tmp_path: Path, codec: str, suffix: str) -> None:
    path = write_clip(tmp_path / ("clip.mkv" if codec == "libopus" else "clip.mp4"), clip(50), sound=codec)
    whole = dict(packets(path))
    report = run(path, tmp_path / f"out{suffix}", kinds=("overlay",))
    assert report.video.sounds == 1
    found = packets(report.outputs["overlay"])
    assert len(found) >= len(whole) - 1  # what lies before the first frame has no place in some containers
    first = read(path)[0][0] - read(report.outputs["overlay"])[0][0]
    inputs = sorted(whole)
    for time_, data in found:
        nearest = min(inputs, key=lambda other, seen=time_: abs(float(other - seen) - first))
        assert whole[nearest] == data
        assert abs(float(nearest - time_) - first) < 0.0015
    part = run(path, tmp_path / f"part{suffix}", Span(0.5, 1.5), kinds=("overlay",))
    times = [float(time_) for time_, _ in packets(part.outputs["overlay"])]
    assert (times[0], times[-1]) == (pytest.approx(0, abs=0.07), pytest.approx(1, abs=0.1))
    cut = {data: time_ for time_, data in packets(part.outputs["overlay"])}
    originals = {data: time_ for time_, data in whole.items()}
    assert {round(float(originals[data] - time_), 2) for data, time_ in cut.items()} <= {0.5, round(0.5 + first, 2)}


def test_what_begins_anew_in_mid_file_is_left_out_with_its_sound(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.ts", clip(10), sound="aac")
    twice = tmp_path / "twice.ts"
    twice.write_bytes(2 * one.read_bytes())
    run(one, tmp_path / "one.mp4", kinds=("overlay",))
    report = run(twice, tmp_path / "twice.mp4", kinds=("overlay",))
    assert (report.frames, report.damaged) == (10, 10)
    assert packets(tmp_path / "twice.mp4") == packets(tmp_path / "one.mp4")


def test_frames_that_an_edit_list_leaves_out_do_not_count(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", clip(20))
    data = bytearray(path.read_bytes())
    for box, place in ((b"elst", 12), (b"mvhd", 20), (b"tkhd", 24)):  # how long it lasts
        at = data.find(box) + place
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") // 2).to_bytes(4, "big")
    path.write_bytes(data)
    report = run(path, tmp_path / "b.mkv", kinds=("jsonl",))
    assert (report.frames, report.video.frames, report.damaged) == (10, 10, 0)


def test_a_part_and_every_nth_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", clip(50), exact=True)
    report = run(path, tmp_path / "out.mp4", Span(0.41, 1.2, 4))
    wanted = list(range(11, 30, 4))
    assert (report.frames, report.video.frames) == (5, 5)
    times, _ = read(report.outputs["overlay"])
    np.testing.assert_allclose(times, np.array(wanted) * 0.04 - 0.41, atol=1e-3)
    for number, found in zip(wanted, read_ids(report.outputs["ids"]), strict=True):
        np.testing.assert_array_equal(found, label(number))
    lines = [json.loads(line) for line in report.outputs["jsonl"].read_text().splitlines()]
    np.testing.assert_allclose([line["time"] for line in lines], np.array(wanted) * 0.04)


def test_odd_sizes_become_even_in_the_film_only(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", [frame[:61, :93] for frame in clip(3)], exact=True)
    report = run(path, tmp_path / "out.mp4")
    assert read(report.outputs["overlay"])[1][0].shape == (62, 94, 3)
    assert read_ids(report.outputs["ids"])[0].shape == (61, 93)


def test_windows_as_before_are_not_computed_again_and_nothing_changes(tmp_path: Path) -> None:
    still = [image(label(i // 5)[:, :48], 6, i // 5) for i in range(20)]  # five frames alike
    frames = [np.concatenate([image(label(0)[:, 48:], 6, 50), half], 1) for half in still]
    path, small = write_clip(tmp_path / "clip.mkv", frames, exact=True), Settings(protocol="native", window=48)
    network = Nearest()
    report = run(path, tmp_path / "out.mp4", settings=small, network=network)
    assert (report.windows, network.calls) == (20 * 4, report.windows - report.reused)
    assert report.reused == 19 * 4 - 3 * 2  # the left column never changes, the right one three times
    for found, frame in zip(read_ids(report.outputs["ids"]), frames, strict=True):
        alone = segmenter().predict(frame[:, :, ::-1], protocol="native", window=48)
        np.testing.assert_array_equal(found, alone.ids)


def iou(found: list[np.ndarray], wanted: list[np.ndarray], index: int) -> float:
    one, other = np.stack(found) == index, np.stack(wanted) == index
    return float((one & other).sum() / (one | other).sum())


def test_smoothing_quiets_noise(tmp_path: Path) -> None:
    still = write_clip(tmp_path / "still.mkv", clip(40, 8, moving=False), exact=True)
    alone, calm = (
        run(still, tmp_path / f"still_{smooth}.mp4", smooth=smooth, measure=True).steadiness for smooth in (0, 0.8)
    )
    assert alone is not None
    assert calm is not None
    assert alone.changing > 0.05, "noise flips nothing"
    assert calm.changing <= alone.changing / 3
    assert calm.tc > alone.tc
    assert calm.vc8 > alone.vc8


@pytest.mark.parametrize("noise", [0, 8])
def test_smoothing_does_not_trail_behind_moving_objects(tmp_path: Path, noise: float) -> None:
    path, wanted = write_clip(tmp_path / "clip.mkv", clip(40, noise), exact=True), [label(i) for i in range(40)]
    found = [read_ids(run(path, tmp_path / f"{smooth}.mp4", smooth=smooth).outputs["ids"]) for smooth in (0, 0.8)]
    for index in (2, 3, 4):
        assert iou(found[1], wanted, index) >= iou(found[0], wanted, index) - 0.005


def test_smoothing_starts_anew_at_a_cut(tmp_path: Path) -> None:
    frames = [*clip(6, moving=False), *[image(4 - label(0)) for _ in range(6)]]
    path = write_clip(tmp_path / "clip.mkv", frames, exact=True)
    ids = read_ids(run(path, tmp_path / "out.mp4", smooth=0.95).outputs["ids"])
    np.testing.assert_array_equal(ids[5], label(0))
    assert np.mean(ids[6] == 4 - label(0)) > 0.97


class Watcher(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.first: list[FirstFrame] = []
        self.parts, self.total = 0.0, None

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        self.total = total

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        self.parts += parts

    def result(self, value: object) -> None:
        assert isinstance(value, FirstFrame)
        self.first.append(value)


def test_the_observer_learns_the_cost_from_the_first_frame(tmp_path: Path) -> None:
    watcher = Watcher()
    run(write_clip(tmp_path / "clip.mp4", clip(9)), tmp_path / "out.mp4", Span(every=2), observer=watcher)
    [first] = watcher.first
    assert (first.windows, first.frames) == (2, 5)
    assert first.seconds > 0
    assert (watcher.total, watcher.parts) == (5, 5)


def test_a_memory_limit_is_planned_for_and_changes_nothing(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", clip(4, 8), exact=True)
    free = run(path, tmp_path / "free.mp4", smooth=0.5)
    limit = in_use(segmenter().device) + (900 << 20)
    kept = run(
        path, tmp_path / "kept.mp4", settings=Settings(protocol="native", window=64, max_memory=limit), smooth=0.5
    )
    assert kept.frames == 4
    for one, other in zip(read_ids(free.outputs["ids"]), read_ids(kept.outputs["ids"]), strict=True):
        np.testing.assert_array_equal(one, other)


CHILD = """
import os, sys
from clips import Nearest
from pathlib import Path
from test_video import run
count = 0
def then():
    global count
    count += 1
    if count == 20:
        print("there", flush=True)
        import time; time.sleep(60)
run(Path(sys.argv[1]), Path(sys.argv[2]), network=Nearest(then))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing_under_the_final_names(tmp_path: Path, number: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", clip(30, 8), sound="aac")
    tests = Path(__file__).parent
    places = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", str(tests.parent.parent))])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(tmp_path / "out.mp4")],
        env={**os.environ, "PYTHONPATH": places}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    time.sleep(0.2)
    child.send_signal(number)
    child.wait(30)
    child.stdout.close()
    left = {file.name for file in tmp_path.iterdir()} - {"clip.mp4"}
    assert not left & {"out.mp4", "out_ids.mkv", "out.jsonl"}
    assert len([name for name in left if name.endswith(".part")]) == (3 if number == signal.SIGKILL else 0)
    run(path, tmp_path / "out.mp4")  # takes what was left away
    assert {file.name for file in tmp_path.iterdir()} == {"clip.mp4", "out.mp4", "out_ids.mkv", "out.jsonl"}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """Resident memory when frame 500 begins is that of frame 50, within 5 %."""
    drawn = clip(40, 8, size=(160, 208))  # 100 kB a frame: 450 of them would be seen
    path = write_clip(tmp_path / "clip.mp4", [drawn[i % 40] for i in range(520)], sound="aac")
    device, seen, calls = segmenter().device, dict[int, int](), 0

    def then() -> None:
        nonlocal calls
        calls += 1
        if calls in (50, 500):
            seen[calls] = in_use(device)

    whole = Settings(protocol="native", window=320)
    run(path, tmp_path / "out.mp4", settings=whole, network=Nearest(then), smooth=0.8, measure=True)
    assert seen[500] <= 1.05 * seen[50], seen
