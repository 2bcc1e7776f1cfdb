"""Owns the published test procedure: sliding window, resize, softmax, multi-scale and flip averaging, band by band.

It works over any callable that maps normalised images `(B, 3, h, w)` to logits `(B, C, h, w)`; it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.errors import ConfigError, NonFiniteError
from dgmn2cli.ops.resample import resize_rows

LogitsFunction = Callable[[Tensor], Tensor]
BAND_ROWS = 128


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along one axis; the last window is pulled back so that it ends at the border."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride + crop, length) - crop, 0) for index in range(count)]


@dataclass(frozen=True)
class Windowing:
    """How an image is covered.

    Attributes:
        crop: side of a window in pixels; an image side shorter than it gives a shorter window.
        stride: pixels from one window to the next.
        batch: windows sent through the network at a time.
        pad: fill windows up to `crop` with zeros (the mean colour) and cut the logits back; the published
            protocol never pads.
    """

    crop: int = 769
    stride: int = 513
    batch: int = 1
    pad: bool = False

    def __post_init__(self) -> None:
        if self.crop < 1 or self.batch < 1 or not 1 <= self.stride <= self.crop:
            raise ConfigError(
                "the sliding window is impossible",
                why=f"window {self.crop}, stride {self.stride}, batch {self.batch}; "
                "wanted 1 <= stride <= window and batch >= 1",
            )

    def boxes(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Row and column slices of every window, row by row."""
        return [
            (slice(y, min(y + self.crop, height)), slice(x, min(x + self.crop, width)))
            for y in window_starts(height, self.crop, self.stride)
            for x in window_starts(width, self.crop, self.stride)
        ]


def slide(
    logits_of: LogitsFunction, image: Tensor, windowing: Windowing, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Mean logits of an image over its overlapping windows.

    Args:
        logits_of: the network.
        image: `(3, H, W)` float, normalised.
        windowing: crop, stride, batch.
        progress: called with the number of windows done.

    Returns:
        `(C, H, W)` float32.

    Raises:
        NonFiniteError: the network gave NaN or infinity.
    """
    height, width = image.shape[1:]
    boxes = windowing.boxes(height, width)
    total: Tensor | None = None
    for first in range(0, len(boxes), windowing.batch):
        group = boxes[first : first + windowing.batch]
        scores = logits_of(_stack(image, group, windowing))
        if total is None:
            total = scores.new_zeros((scores.shape[1], height, width), dtype=torch.float32)
        for (rows, columns), score in zip(group, scores, strict=True):
            total[:, rows, columns] += score[:, : rows.stop - rows.start, : columns.stop - columns.start]
        if progress is not None:
            progress(len(group))
    assert total is not None
    # the count map is separable: how often a row is covered times how often a column is
    total /= _coverage(height, windowing, total.device)[:, None] * _coverage(width, windowing, total.device)
    if not bool(total.isfinite().all()):
        raise NonFiniteError(
            "the network gave NaN or infinite logits",
            why="no class can be told from them",
            hint="Check the checkpoint; with --dtype float16 or bfloat16, try float32.",
        )
    return total


def _stack(image: Tensor, boxes: list[tuple[slice, slice]], windowing: Windowing) -> Tensor:
    """The windows as one batch `(B, 3, h, w)`; a single unpadded window stays a view of the image."""
    height, width = image.shape[1:]
    if windowing.pad and (height < windowing.crop or width < windowing.crop):
        image = F.pad(image, (0, max(windowing.crop - width, 0), 0, max(windowing.crop - height, 0)))
        boxes = [(slice(y.start, y.start + windowing.crop), slice(x.start, x.start + windowing.crop)) for y, x in boxes]
    if len(boxes) == 1:
        return image[:, boxes[0][0], boxes[0][1]].unsqueeze(0)
    return torch.stack([image[:, rows, columns] for rows, columns in boxes])


def _coverage(length: int, windowing: Windowing, device: torch.device) -> Tensor:
    """How many windows cover each pixel along one axis, `(length,)` float32."""
    counts = torch.zeros(length, device=device)
    for start in window_starts(length, windowing.crop, windowing.stride):
        counts[start : start + windowing.crop] += 1
    return counts


@dataclass(frozen=True)
class View:
    """One inference of an image: its normalised pixels at some scale, flipped or not.

    Attributes:
        image: `(3, h, w)` float.
        flipped: whether `image` is mirrored left to right.
    """

    image: Tensor
    flipped: bool = False


@dataclass(frozen=True)
class Scores:
    """Class scores of one image, turned into probabilities band by band, so that no full-size copy is ever needed.

    Attributes:
        values: `(C, h, w)` float32: mean logits at the inference size, or probabilities at the final size.
        size: final `(H, W)`.
        are_logits: which of the two `values` holds.
    """

    values: Tensor
    size: tuple[int, int]
    are_logits: bool

    def bands(self, rows: int = BAND_ROWS) -> Iterator[tuple[slice, Tensor]]:
        """Row slices of the final image with their probabilities `(C, rows, W)` float32."""
        for first in range(0, self.size[0], rows):
            band = slice(first, min(first + rows, self.size[0]))
            yield band, self._probabilities(band)

    def _probabilities(self, rows: slice) -> Tensor:
        if not self.are_logits:
            return self.values[:, rows]
        return resize_rows(self.values[None], self.size, rows)[0].softmax(0)

    def probabilities(self) -> Tensor:
        """All of them, `(C, H, W)` float32."""
        result = self.values.new_empty((self.values.shape[0], *self.size))
        for band, values in self.bands():
            result[:, band] = values
        return result

    def classes(self) -> tuple[Tensor, Tensor]:
        """The most probable class of each pixel, `(H, W)` uint8, and its probability, `(H, W)` float32."""
        ids = torch.empty(self.size, dtype=torch.uint8)
        confidence = torch.empty(self.size)
        for band, values in self.bands():
            best, index = values.max(0)
            ids[band] = index.to("cpu", torch.uint8)
            confidence[band] = best.cpu()
        return ids, confidence


def segment(
    logits_of: LogitsFunction,
    views: Iterable[View],
    size: tuple[int, int],
    windowing: Windowing,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores of one image over its views: one for single scale, twelve for the published multi-scale and flip.

    Args:
        logits_of: the network.
        views: the inferences to average, in order; consumed one at a time.
        size: `(H, W)` of the result, the original image's.
        windowing: crop, stride, batch.
        progress: called with the number of windows done.

    Returns:
        For one unflipped view its mean logits; otherwise the mean of the views' probabilities.
    """
    total: Tensor | None = None
    count = 0
    pending: tuple[Tensor, bool] | None = None
    for view in views:
        if pending is not None:
            total = _accumulate(total, *pending, size)
        pending = (slide(logits_of, view.image, windowing, progress), view.flipped)
        count += 1
    if pending is None:
        raise ValueError("an image needs at least one view")
    if total is None and not pending[1]:
        return Scores(pending[0], size, are_logits=True)
    total = _accumulate(total, *pending, size)
    total /= count
    return Scores(total, size, are_logits=False)


def _accumulate(total: Tensor | None, logits: Tensor, flipped: bool, size: tuple[int, int]) -> Tensor:
    """Adds one view's probabilities, un-flipped, to `total` `(C, H, W)`, in place."""
    if total is None:
        total = logits.new_zeros((logits.shape[0], *size))
    for band, values in Scores(logits, size, are_logits=True).bands():
        total[:, band] += values.flip(2) if flipped else values
    return total
