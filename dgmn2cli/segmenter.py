"""Owns a network ready for pictures: the published test procedure around it, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.images import MAX_PIXELS, read_image
from dgmn2cli.data.transforms import network_input, scaled, target_size
from dgmn2cli.errors import ConfigError, DataError, ResourceError
from dgmn2cli.inference import Scores, View, Windowing, segment
from dgmn2cli.prediction import ClassList, Prediction
from dgmn2cli.runtime import resolve_dtype

PROTOCOLS = ("paper", "native")
WINDOW_BATCH = {"cpu": 1}  # measured on two cores: batches gain nothing on a CPU and cost memory
WINDOW_BATCH_GPU = 4


@dataclass(frozen=True)
class RunInfo:
    """How a network runs, for reports.

    Attributes:
        model: zoo key or configuration name.
        checkpoint: path of the weights.
        sha256: hash of that file.
        device: `cpu`, `cuda:0`, ...
        device_name: what that is.
        dtype: number format of weights and activations.
        backend: op backend in use.
        form: `fused` (inference form) or `published` (order of operations as published).
    """

    model: str
    checkpoint: str
    sha256: str
    device: str
    device_name: str
    dtype: str
    backend: str
    form: str


@dataclass(frozen=True)
class Settings:
    """How pictures are segmented; None means the configuration's value.

    Attributes:
        ms_flip: average over six scales and their mirror images (12 inferences).
        scale: the pair a picture is fitted into before windows are cut.
        window: side of a window.
        stride: pixels between windows.
        protocol: `paper` (resize to `scale`, as published) or `native` (keep the picture's size; small windows are
            padded with the mean colour).
        window_batch: windows per forward pass; chosen by device if None.
        max_pixels: the largest picture that is read.
    """

    ms_flip: bool = False
    scale: tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    protocol: str | None = None
    window_batch: int | None = None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Plan:
    """The inferences of one picture.

    Attributes:
        scales: the scale pair of each, None to keep the picture's size.
        flips: orientations of each scale.
        windowing: crop, stride and batch.
        size: the picture's (height, width).
    """

    scales: tuple[tuple[int, int] | None, ...]
    flips: tuple[bool, ...]
    windowing: Windowing
    size: tuple[int, int]

    @property
    def windows(self) -> int:
        """Windows that go through the network, over all inferences."""
        sizes = [self.size if scale is None else target_size(*self.size, scale) for scale in self.scales]
        return len(self.flips) * sum(len(self.windowing.boxes(*size)) for size in sizes)


class Segmenter:
    """A network ready to segment pictures.

    Args:
        network: maps normalised RGB `(B, 3, H, W)` on `device` in `dtype` to logits `(B, C, H, W)`.
        classes: what the logits' channels mean.
        info: how it runs.
        inference: scales, ratios and window sizes in force when `predict` is not told otherwise.
    """

    def __init__(self, network: nn.Module, classes: ClassList, info: RunInfo, inference: InferenceConfig) -> None:
        self.network, self.classes, self.info, self.inference = network, classes, info, inference
        self.device = torch.device(info.device)
        self.dtype = resolve_dtype(info.dtype)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits of one batch of windows, by the path that every command uses.

        Args:
            images: `(B, 3, H, W)` float, RGB, normalised with the ImageNet mean and deviation; any device.

        Returns:
            `(B, C, H, W)` float32 on the network's device.
        """
        images = images.to(self.device, self.dtype)
        try:
            return self.network(images).float()
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                "out of memory on the device",
                where=self.info.device,
                why=f"a batch of {images.shape[0]} windows of {images.shape[3]}x{images.shape[2]} does not fit",
                hint="Use --window-batch 1, a smaller --window, or --device cpu.",
            ) from error

    def predict(
        self,
        image: str | Path | np.ndarray,
        ms_flip: bool = False,
        scale: tuple[int, int] | None = None,
        window: int | None = None,
        stride: int | None = None,
        protocol: str | None = None,
        window_batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Prediction:
        """Segments one picture by the published test procedure.

        Args:
            image: a path, or (H, W, 3) uint8 RGB.
            ms_flip: average over six scales and their mirror images (12 inferences).
            scale: the pair the picture is fitted into before windows are cut; the configuration's, (2049, 1025), if
                None.
            window: side of a window; the configuration's, 769, if None.
            stride: pixels between windows; the configuration's, 513, if None.
            protocol: `paper` (resize to `scale`, as published) or `native` (keep the picture's size; small windows
                are padded with the mean colour).
            window_batch: windows per forward pass; chosen by device if None.
            progress: called with the number of windows done.

        Raises:
            DataError: the picture cannot be read.
            ConfigError: an impossible setting.
            NonFiniteError: the network gave NaN or infinity.
        """
        picture = _picture(image)
        settings = Settings(ms_flip, scale, window, stride, protocol, window_batch)
        plan = self.plan(picture.shape[:2], settings)
        scores = self.scores(picture, plan, progress)
        ids, confidence = scores.classes()
        return Prediction(ids.numpy(), confidence.numpy(), self.classes, picture, scores, plan.windows)

    def scores(self, picture: np.ndarray, plan: Plan, progress: Callable[[int], None] | None = None) -> Scores:
        """Class scores of one picture, (H, W, 3) uint8, blue green red, by `plan`."""
        with torch.inference_mode():
            return segment(self.logits, self._views(picture, plan), plan.size, plan.windowing, progress)

    def plan(self, size: tuple[int, ...], settings: Settings | None = None) -> Plan:
        """What `settings` mean for a picture of `size` (height, width): its views and the windows of each.

        Raises:
            ConfigError: an impossible setting.
        """
        settings = settings or Settings()
        protocol = settings.protocol or self.inference.protocol
        if protocol not in PROTOCOLS:
            raise ConfigError("no such protocol", where=protocol[:60], why=f"wanted one of {', '.join(PROTOCOLS)}")
        native = protocol == "native"
        batch = settings.window_batch or WINDOW_BATCH.get(self.device.type, WINDOW_BATCH_GPU)
        crop = settings.window or self.inference.window
        windowing = Windowing(crop, settings.stride or min(self.inference.stride, crop), batch, pad=native)
        base = (size[1], size[0]) if native else (settings.scale or self.inference.scale)
        ratios = self.inference.ratios if settings.ms_flip else (1.0,)
        sizes = [scaled(base, ratio) for ratio in ratios]
        views = [(None if native and ratio == 1.0 else s) for ratio, s in zip(ratios, sizes, strict=True)]
        flips = (False, True) if settings.ms_flip and self.inference.flip else (False,)
        return Plan(tuple(views), flips, windowing, (size[0], size[1]))

    def _views(self, picture: np.ndarray, plan: Plan) -> Iterator[View]:
        for scale in plan.scales:
            for flip in plan.flips:
                array = network_input(picture, scale, flip=flip)
                yield View(torch.from_numpy(array).to(self.device, self.dtype), flip)


def _picture(image: str | Path | np.ndarray) -> np.ndarray:
    """The picture as (H, W, 3) uint8, blue green red."""
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            "this is not a picture", why=f"{image.dtype} of shape {image.shape}, wanted uint8 of shape (H, W, 3), RGB"
        )
    return np.ascontiguousarray(image[:, :, ::-1])
