"""`--bench decode`: reading JPEG files as every command does, beside OpenCV's own decoding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from dgmn2cli.bench import OURS
from dgmn2cli.bench.implementations import LARGEST, Agreement, Implementation
from dgmn2cli.bench.pipeline import synthetic_image
from dgmn2cli.bench.report import Report, Row
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import alternate
from dgmn2cli.data.images import read_image
from dgmn2cli.observer import Observer

SIZES = ((1920, 1080), (4000, 3000), (6000, 4000))  # 2, 12 and 24 megapixels
QUALITY = 92
OWN = Implementation(OURS, "cpu", "uint8", "read_image", "refuses damage")
OPENCV = Implementation("opencv", "cpu", "uint8", "cv2.imread", "as it is")


def measure_decoding(request: Request, report: Report, observer: Observer) -> None:
    """Times `read_image` and `cv2.imread` in turn on baseline and progressive JPEG files; adds to `report`.

    Raises:
        CheckFailed: a pixel differs.
    """
    with tempfile.TemporaryDirectory(prefix="dgmn2-benchmark-") as folder:
        path = Path(folder, "image.jpg")
        for width, height in (request.size,) if request.size else SIZES:
            image = synthetic_image(width, height)
            for kind, progressive in (("baseline", 0), ("progressive", 1)):
                name = f"{kind} JPEG of {width * height / 1e6:.3g} megapixels"
                observer.advance(0, detail=name)
                settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
                path.write_bytes(cv2.imencode(".jpg", image, settings)[1].tobytes())
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
