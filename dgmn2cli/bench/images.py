"""`--bench e2e`, `decode` and `stream`: an image from file to mask stage by stage, reading alone, and many images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.bench import OURS
from dgmn2cli.bench.implementations import LARGEST, Agreement, Implementation, NetworkSpec, build
from dgmn2cli.bench.report import PartRow, Report, Row
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import alternate, quantile, synchronize, tell_round
from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import read_image, write_png
from dgmn2cli.errors import CheckFailed
from dgmn2cli.folders import temporary_folder
from dgmn2cli.inference.files import WORKERS, Pipeline
from dgmn2cli.inference.outputs import FolderSink
from dgmn2cli.inference.plan import Plan, Settings
from dgmn2cli.inference.prediction import CITYSCAPES, Prediction
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sliding_window import View, segment
from dgmn2cli.inference.sources import ImageFile, ImageList
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import describe_device

STAGES = ("decode", "preprocess", "windows", "stitch", "argmax", "encode")
IMAGE_SIZE = (2048, 1024)  # width, height: a Cityscapes image
DECODED_SIZES = ((1920, 1080), (4000, 3000), (6000, 4000))  # 2, 12 and 24 megapixels
QUALITY = 92  # of JPEG files
OWN = Implementation(OURS, "cpu", "uint8", "read_image", "refuses damage")
OPENCV = Implementation("opencv", "cpu", "uint8", "cv2.imread", "as it is")
IMAGES = 48  # of a stream
NETWORK_SECONDS = 0.02  # of the stand-in, per image, in which it leaves the processor alone, as one on a GPU does
STREAM_KINDS = (("ids",), ("ids", "overlay"))


def measure_pipeline(
    spec: NetworkSpec,
    used: Implementation,
    inference: InferenceConfig,
    request: Request,
    report: Report,
    observer: Observer,
) -> None:
    """Times every stage of segmenting one synthetic image, and in turn the whole of it; adds to `report`.

    Raises:
        CheckFailed: the staged way and the ordinary path give different masks.
    """
    name = describe_device(torch.device(used.device))
    info = RunInfo(spec.name, "stand-in weights", "", used.device, name, used.dtype, used.backend, used.form)
    segmenter = Segmenter(build(spec, used), CITYSCAPES, info, inference)
    staged: list[dict[str, float]] = []
    whole: list[float] = []
    with temporary_folder("dgmn2-benchmark") as folder:
        path = folder / "image.png"
        write_png(path, synthetic_image(*(request.size or IMAGE_SIZE)))
        rounds = request.warmup + request.iters
        for index in range(rounds):
            observer.advance(0, detail=f"{spec.name}: image {index + 1} of {rounds}")
            seconds, ids = _staged(segmenter, path, folder)
            start = time.perf_counter()
            prediction = segmenter.predict(path)
            prediction.save(folder, "whole", ["ids"])
            wall = time.perf_counter() - start
            if not np.array_equal(ids, prediction.ids):
                raise CheckFailed("the stages do not add up to the ordinary path", where=spec.name, why="masks differ")
            if index >= request.warmup:
                staged.append(seconds)
                whole.append(wall)
    series = {stage: [seconds[stage] for seconds in staged] for stage in STAGES}
    series |= {"sum": [sum(seconds.values()) for seconds in staged], "wall": whole}
    in_all = quantile(series["sum"], 0.5)
    for stage, samples in series.items():
        share, rated = quantile(samples, 0.5) / in_all, stage in ("sum", "wall")
        report.rows.append(PartRow.timed(spec.name, stage, samples, share, "file to mask", rated=rated))


def _staged(segmenter: Segmenter, path: Path, folder: Path) -> tuple[dict[str, float], np.ndarray]:
    """Seconds of each stage, and the mask."""
    seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        synchronize(segmenter.device)
        start = time.perf_counter()
        yield
        synchronize(segmenter.device)
        seconds[stage] += time.perf_counter() - start

    def logits(windows: Tensor) -> Tensor:
        with clock("windows"):
            return segmenter.logits(windows)

    with clock("decode"):
        image = read_image(path)
    plan = segmenter.plan(image.shape[:2])
    [view] = segmenter.views(image, plan)
    with clock("preprocess"):
        opened = view.open()

    def crop(rows: slice, columns: slice) -> Tensor:
        with clock("preprocess"):
            return opened(rows, columns)

    inside = -seconds["preprocess"]
    with clock("stitch"), torch.inference_mode():
        scores = segment(logits, [View(view.size, lambda: crop)], plan.size, plan.windowing)
    seconds["stitch"] -= seconds["windows"] + seconds["preprocess"] + inside
    with clock("argmax"):
        ids, confidence = scores.classes()
    with clock("encode"):
        arrays, classes, windows = (ids.numpy(), confidence.numpy()), segmenter.classes, plan.windows
        prediction = Prediction(*arrays, classes, image, scores, windows, lambda: (scores, scores))
        prediction.save(folder, "staged", ["ids"])
    return seconds, prediction.ids


def measure_decoding(request: Request, report: Report, observer: Observer) -> None:
    """Times `read_image` and `cv2.imread` in turn on baseline and progressive JPEG files; adds to `report`.

    Raises:
        CheckFailed: a pixel differs.
    """
    with temporary_folder("dgmn2-benchmark") as folder:
        path = folder / "image.jpg"
        for width, height in (request.size,) if request.size else DECODED_SIZES:
            image = synthetic_image(width, height)
            for kind, progressive in (("baseline", 0), ("progressive", 1)):
                name = f"{kind} JPEG of {width * height / 1e6:.3g} megapixels"
                observer.advance(0, detail=name)
                _write_jpeg(path, image, progressive)
                apart = float(cv2.absdiff(read_image(path), _opencv(path)).max())
                found = Agreement(name, OPENCV.name, OPENCV.dtype, "pixels", apart, 0.0, LARGEST)
                report.agreements.append(found.require())
                steps = [lambda: read_image(path), lambda: _opencv(path)]
                timings = alternate(steps, torch.device("cpu"), request.warmup, request.iters)
                for used, seconds in zip((OWN, OPENCV), timings, strict=True):
                    report.rows.append(Row.of(name, "decode", (1, height, width), used, seconds, timings[0]))


def _opencv(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def _write_jpeg(path: Path, image: np.ndarray, progressive: int = 0) -> None:
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    path.write_bytes(cv2.imencode(".jpg", image, settings)[1].tobytes())


class _StandIn(Segmenter):
    """Waits in place of a network, and gives the same mask for every image."""

    def __init__(self, ids: np.ndarray) -> None:
        info = RunInfo("stand-in", "", "", "cpu", "", "float32", "", "published")
        super().__init__(nn.Identity(), CITYSCAPES, info, InferenceConfig())
        self._ids, self._confidence = ids, np.full(ids.shape, 0.5, np.float32)

    def predict_planned(
        self, image: np.ndarray, plan: Plan, settings: Settings, progress: Callable[[int], object] | None = None
    ) -> Prediction:
        """The mask, after a while."""
        time.sleep(NETWORK_SECONDS)
        nothing: dict[str, None] = {"scores": None, "orientations": None}
        return Prediction(self._ids, self._confidence, self.classes, image, windows=plan.windows, **nothing)  # type: ignore[arg-type]


def measure_stream(request: Request, report: Report, observer: Observer) -> None:
    """Times, in turn, the stand-in alone, decoding and saving alone on two threads, and the pipeline; adds to `report`.

    A share is what the slower of the first two takes, divided by the row's seconds: of the pipeline, how much of what
    is possible it reaches.
    """
    width, height = request.size or IMAGE_SIZE
    blocks = np.random.default_rng(0).integers(0, 19, (height // 64 + 1, width // 64 + 1), np.uint8)
    ids = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    made, settings = _StandIn(ids), Settings(protocol="native")
    with temporary_folder("dgmn2-benchmark") as folder:
        path, out = folder / "image.jpg", folder / "out"
        _write_jpeg(path, synthetic_image(width, height))
        images = ImageList([str(path)] * IMAGES, [str(number) for number in range(IMAGES)])
        for kinds in STREAM_KINDS:
            sink = FolderSink(out, kinds, 0.5)
            one = made.predict_planned(read_image(path), made.plan((height, width), settings), settings)
            name = f"{width}x{height} to {', '.join(kinds)}"
            parts = {
                "network": partial(time.sleep, NETWORK_SECONDS * IMAGES),
                "decode, save": partial(_work, images, sink, one),
                "pipeline": partial(_through, made, images, kinds, settings, sink),
            }
            told = partial(tell_round, observer, name)
            timings = alternate(list(parts.values()), made.device, request.warmup, request.iters, told)
            each = np.array(timings) / IMAGES
            bounds = each[:2].max(0)
            for part, samples in zip(parts, each, strict=True):
                report.rows.append(PartRow.timed(name, part, samples, quantile(bounds / samples, 0.5), "the bound"))


def _work(images: ImageList, sink: FolderSink, prediction: Prediction) -> None:
    """Decoding and saving of all images on two threads, without anything else."""

    def one(file: ImageFile) -> None:
        read_image(file.path)
        sink.save(prediction, file.name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, images))


def _through(
    segmenter: Segmenter, images: ImageList, kinds: tuple[str, ...], settings: Settings, sink: FolderSink
) -> None:
    pipeline = Pipeline(segmenter, images, kinds, settings, WORKERS, Silent())
    with closing(pipeline.run(range(len(images)), sink)) as outcomes:
        for _ in outcomes:
            pass


def synthetic_image(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth shapes with a little noise, about as compressible as a photograph."""
    random = np.random.Generator(np.random.PCG64(0))
    coarse = random.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (smooth + random.integers(-6, 7, smooth.shape, np.int16)).clip(0, 255).astype(np.uint8)
