"""`--bench e2e`: an image's way from file to mask, stage by stage, against the ordinary path as a whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dgmn2cli.bench.implementations import Implementation, NetworkSpec, build
from dgmn2cli.bench.report import PartRow, Report
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import quantile, synchronize
from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import read_image, write_png
from dgmn2cli.errors import CheckFailed
from dgmn2cli.inference.prediction import CITYSCAPES, Prediction
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sliding_window import View, segment
from dgmn2cli.observer import Observer
from dgmn2cli.runtime import describe_device

STAGES = ("decode", "preprocess", "windows", "stitch", "argmax", "encode")
IMAGE_SIZE = (2048, 1024)  # width, height: a Cityscapes image


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
    with tempfile.TemporaryDirectory(prefix="dgmn2-benchmark-") as folder:
        path = Path(folder, "image.png")
        write_png(path, synthetic_image(*(request.size or IMAGE_SIZE)))
        rounds = request.warmup + request.iters
        for index in range(rounds):
            observer.advance(0, detail=f"{spec.name}: image {index + 1} of {rounds}")
            seconds, ids = _staged(segmenter, path, Path(folder))
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
        p50, p95 = quantile(samples, 0.5), quantile(samples, 0.95)
        rate = 1 / p50 if stage in ("sum", "wall") else None
        report.rows.append(PartRow(spec.name, stage, p50, p50 / in_all, "file to mask", p95, per_second=rate))


def synthetic_image(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth shapes with a little noise, about as compressible as a photograph."""
    random = np.random.Generator(np.random.PCG64(0))
    coarse = random.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (smooth + random.integers(-6, 7, smooth.shape, np.int16)).clip(0, 255).astype(np.uint8)


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
