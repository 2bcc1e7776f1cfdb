"""Owns `--bench e2e`: a picture's way from file to mask, stage by stage, against the ordinary path as a whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dgmn2cli.bench.report import Findings, StageRow
from dgmn2cli.bench.sides import NetworkSpec, Side, build_side
from dgmn2cli.bench.timing import quantile, synchronize
from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import read_image, write_png
from dgmn2cli.errors import CheckFailed
from dgmn2cli.inference.prediction import CITYSCAPES, Prediction
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sliding_window import View, segment
from dgmn2cli.runtime import describe_device

STAGES = ("decode", "preprocess", "windows", "stitch", "argmax", "encode")
PICTURE = (2048, 1024)  # width, height: a Cityscapes picture


def measure_pipeline(
    spec: NetworkSpec,
    side: Side,
    inference: InferenceConfig,
    warmup: int,
    iters: int,
    findings: Findings,
    picture: tuple[int, int] = PICTURE,
    progress: Callable[[str], object] = lambda doing: None,
) -> None:
    """Times every stage of segmenting one synthetic picture, and in turn the whole of it; adds to `findings`.

    Args:
        spec, side: the network.
        inference: scale and windows.
        warmup, iters: rounds.
        findings: gets the rows.
        picture: its width and height.
        progress: called with what is being done.

    Raises:
        CheckFailed: the staged way and the ordinary path give different masks.
    """
    segmenter = stand_in_segmenter(spec, side, inference)
    staged: list[dict[str, float]] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dgmn2-benchmark-") as folder:
        path = Path(folder, "picture.png")
        write_png(path, synthetic_picture(*picture))
        for index in range(warmup + iters):
            progress(f"{spec.name}: picture {index + 1} of {warmup + iters}")
            seconds, ids = _staged(segmenter, path, Path(folder))
            start = time.perf_counter()
            prediction = segmenter.predict(path)
            prediction.save(folder, "whole", ["ids"])
            wall = time.perf_counter() - start
            if not np.array_equal(ids, prediction.ids):
                raise CheckFailed("the stages do not add up to the ordinary path", where=spec.name, why="masks differ")
            if index >= warmup:
                staged.append(seconds)
                whole.append(wall)
    findings.rows += _rows(spec.name, staged, whole)


def stand_in_segmenter(spec: NetworkSpec, side: Side, inference: InferenceConfig) -> Segmenter:
    """A segmenter on stand-in weights."""
    info = RunInfo(
        model=spec.name,
        checkpoint="stand-in weights",
        sha256="",
        device=side.device,
        device_name=describe_device(torch.device(side.device)),
        dtype=side.dtype,
        backend=side.backend,
        form=side.form,
    )
    return Segmenter(build_side(spec, side), CITYSCAPES, info, inference)


def synthetic_picture(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth shapes with a little noise, about as compressible as a photograph."""
    random = np.random.Generator(np.random.PCG64(0))
    coarse = random.integers(0, 256, (max(height // 32, 2), max(width // 32, 2), 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (smooth + random.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)


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
        picture = read_image(path)
    plan = segmenter.plan(picture.shape[:2])
    [view] = segmenter.views(picture, plan)
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
        prediction = Prediction(ids.numpy(), confidence.numpy(), segmenter.classes, picture, scores, plan.windows)
        prediction.save(folder, "staged", ["ids"])
    return seconds, prediction.ids


def _rows(subject: str, staged: list[dict[str, float]], whole: list[float]) -> list[StageRow]:
    series = {stage: [seconds[stage] for seconds in staged] for stage in STAGES}
    series["sum"] = [sum(seconds.values()) for seconds in staged]
    series["wall"] = whole
    p50 = {stage: quantile(samples, 0.5) for stage, samples in series.items()}
    return [
        StageRow(
            subject,
            stage,
            p50[stage],
            quantile(samples, 0.95),
            p50[stage] / p50["sum"],
            1 / p50[stage] if stage in ("sum", "wall") else None,
        )
        for stage, samples in series.items()
    ]
