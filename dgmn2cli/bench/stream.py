"""`--bench stream`: many images through `infer`'s pipeline, beside what their parts allow at most."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from dgmn2cli.bench.pipeline import IMAGE_SIZE, synthetic_image
from dgmn2cli.bench.report import PartRow, Report
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import quantile
from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import read_image
from dgmn2cli.inference.files import WORKERS, Pipeline
from dgmn2cli.inference.outputs import FolderSink
from dgmn2cli.inference.plan import Plan, Settings
from dgmn2cli.inference.prediction import CITYSCAPES, Prediction
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sources import ImageFile, ImageList
from dgmn2cli.observer import Observer, Silent

IMAGES, QUALITY = 48, 92
NETWORK_SECONDS = 0.02  # of the stand-in, per image, in which it leaves the processor alone, as one on a GPU does
KINDS = (("ids",), ("ids", "overlay"))


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
    with tempfile.TemporaryDirectory(prefix="dgmn2-benchmark-") as folder:
        path, out = Path(folder, "image.jpg"), Path(folder, "out")
        path.write_bytes(
            cv2.imencode(".jpg", synthetic_image(width, height), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        )
        images = ImageList([str(path)] * IMAGES, [str(number) for number in range(IMAGES)])
        for kinds in KINDS:
            sink = FolderSink(out, kinds, 0.5)
            one = made.predict_planned(read_image(path), made.plan((height, width), settings), settings)
            parts: dict[str, Callable[[], None]] = {
                "network": partial(time.sleep, NETWORK_SECONDS * IMAGES),
                "decode, save": partial(_work, images, sink, one),
                "pipeline": partial(_through, made, images, kinds, settings, sink),
            }
            seconds: dict[str, list[float]] = {part: [] for part in parts}
            for round_ in range(request.warmup + request.iters):
                observer.advance(0, detail=f"{', '.join(kinds)}: round {round_ + 1}")
                for part, work in parts.items():
                    began = time.perf_counter()
                    work()
                    if round_ >= request.warmup:
                        seconds[part].append((time.perf_counter() - began) / IMAGES)
            bounds = [max(pair) for pair in zip(seconds["network"], seconds["decode, save"], strict=True)]
            for part, samples in seconds.items():
                share = quantile([bound / own for bound, own in zip(bounds, samples, strict=True)], 0.5)
                p50, p95 = quantile(samples, 0.5), quantile(samples, 0.95)
                name = f"{width}x{height} to {', '.join(kinds)}"
                report.rows.append(PartRow(name, part, p50, share, "the bound", p95, per_second=1 / p50))


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
