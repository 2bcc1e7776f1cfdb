"""A video segmented frame by frame: one thread reads ahead, the network works, one thread writes behind."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from dgmn2cli.errors import DataError, NonFiniteError, ResourceError
from dgmn2cli.inference.pipeline import in_threads
from dgmn2cli.inference.plan import Plan, Protocol, Settings, resolve_settings
from dgmn2cli.inference.prediction import ClassShare
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import in_use
from dgmn2cli.video import measures, smooth
from dgmn2cli.video.measures import Steadiness
from dgmn2cli.video.outputs import Segmented, VideoRequest, open_outputs
from dgmn2cli.video.reuse import WindowCache
from dgmn2cli.video.smooth import Smoother
from dgmn2cli.video.source import Frame, VideoInfo, VideoSource

AHEAD, BEHIND = 2, 2  # frames that are read ahead, and that wait to be written
FRAME_BYTES = 120  # per pixel: those frames, decoder and encoder
CACHE_BYTES = 1 << 30  # of windows and logits that are kept for the next frame


@dataclass(frozen=True)
class FirstFrame:
    """What the first frame took: windows, seconds; and how many frames there are, if that is known."""

    windows: int
    seconds: float
    frames: int | None


@dataclass(frozen=True)
class VideoReport:
    """The result of one `video` run."""

    run: RunInfo  # model, weights, device, backend
    protocol: Protocol  # the settings in force
    video: VideoInfo  # the video read
    frames: int  # that were segmented
    damaged: int  # frames that could not be decoded, and were left out
    windows: int  # windows of all frames
    reused: int  # those of them that were as in the frame before, and were not computed again
    smooth: float  # strength of the mean over time; 0 without
    classes: list[ClassShare]  # pixel shares over all frames, largest first
    doubt: float  # one minus the mean confidence
    steadiness: Steadiness | None  # measures over time, where they were asked for
    outputs: dict[str, Path]  # file by kind
    seconds: float  # wall time, loading the model excluded


def segment_video(
    segmenter: Segmenter, source: VideoSource, request: VideoRequest, settings: Settings, observer: Observer = Silent()
) -> VideoReport:
    """Segments a video.

    Args:
        source: the video, just opened; its frames are read here.
        observer: told of each window as a part of its frame, and, once, of the `FirstFrame`.

    Raises:
        ConfigError: impossible settings.
        DataError: the video changes its size, or ends without a frame.
        NetworkError: a stream broke off.
        NonFiniteError: the network gave NaN or infinity.
        ResourceError: out of memory, or an output cannot be written.
    """
    began, info = time.perf_counter(), source.info
    plan, budget = _plan(segmenter, (info.height, info.width), settings, request)
    if plan.peak is not None:
        observer.note(f"{info.name}: {plan}{'' if budget else ', all windows computed anew'}")
    cache, working = WindowCache(segmenter.network, budget), copy.copy(segmenter)
    working.network = cache
    smoother = Smoother(request.smooth) if request.smooth else None

    def segment(frame: Frame) -> Segmented:
        cache.begin_frame()
        try:
            scores = working.scores(frame.image, plan, lambda windows: observer.advance(windows / plan.windows))
            ids, sure = smoother(frame.image, scores) if smoother else (part.numpy() for part in scores.classes())
        except (NonFiniteError, DataError) as error:
            error.where = f"{info.name}, {frame.time:.3f} s"
            raise
        segmenter.require_room(settings, 0, "segmenting")
        if cache.frames == 1:
            observer.result(FirstFrame(plan.windows, time.perf_counter() - start, info.frames))
        return frame, ids, sure

    observer.begin("segmenting", info.frames)
    start = time.perf_counter()
    with open_outputs(request, source, segmenter.classes) as outputs:
        read = source.frames()
        with (
            closing(in_threads(lambda _: next(read, None), repeat(None), 1, ahead=AHEAD)) as ahead,
            closing(in_threads(outputs.add, map(segment, _until_none(ahead)), 1, ahead=BEHIND)) as written,
        ):
            count = sum(1 for _ in written)
        if not count:
            raise DataError("no frame is in the wanted time", where=info.name, hint="Correct --from and --to.")
        steadiness = outputs.finish(source)
    return VideoReport(
        run=segmenter.info,
        protocol=resolve_settings(settings, segmenter.inference, segmenter.device),
        video=info,
        frames=count,
        damaged=source.damaged,
        windows=cache.computed + cache.reused,
        reused=cache.reused,
        smooth=request.smooth,
        classes=outputs.shares(),
        doubt=outputs.doubt / count,
        steadiness=steadiness,
        outputs=request.targets,
        seconds=time.perf_counter() - began,
    )


def _until_none(frames: Iterable[Frame | None]) -> Generator[Frame, None, None]:
    for frame in frames:
        if frame is None:
            return
        yield frame


def _plan(segmenter: Segmenter, size: tuple[int, int], settings: Settings, request: VideoRequest) -> tuple[Plan, int]:
    """How each frame is segmented, and the bytes that windows of the frame before may take.

    Raises:
        ConfigError, ResourceError: as `Segmenter.plan`.
    """
    free = segmenter.plan(size, replace(settings, max_memory=None))
    if settings.max_memory is None:
        return free, CACHE_BYTES
    count, pixels = len(segmenter.classes.names), size[0] * size[1]
    height, width = free.largest_window
    budget = min(CACHE_BYTES, 4 * free.windows * (3 + count) * height * width)
    held = (smooth.STATE_BYTES + 4 * count) * pixels if request.smooth else 0
    if segmenter.device.type == "cpu":
        held += (FRAME_BYTES + request.measure * measures.STATE_BYTES) * pixels
    segmenter.plan(size, settings)  # measures a window, after which memory in use is what it was
    used = in_use(segmenter.device) + held
    try:
        return segmenter.plan(size, settings, used=used + budget), budget
    except ResourceError:
        return segmenter.plan(size, settings, used=used), 0
