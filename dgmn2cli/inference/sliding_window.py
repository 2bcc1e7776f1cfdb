"""The published test procedure: sliding window, resize, softmax, multi-scale and flip averaging, band by band.

It works over any callable that maps normalised images `(B, 3, h, w)` to logits `(B, C, h, w)`; it knows no model. The
same numbers come out whether the logits of a whole image are kept or only the rows that later windows still reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.errors import ConfigError, NonFiniteError
from dgmn2cli.inference.arithmetic import window_starts
from dgmn2cli.ops.resample import resize_rows, source_span

LogitsFunction = Callable[[Tensor], Tensor]
Crop = Callable[[slice, slice], Tensor]
Band = tuple[slice, Tensor]
BAND_PIXELS = 1 << 18  # of the final image that are turned into probabilities at a time


@dataclass(frozen=True)
class Windowing:
    """How an image is covered."""

    crop: int = 769  # side of a window in pixels; an image side shorter than it gives a shorter window
    stride: int = 513  # pixels from one window to the next
    batch: int = 1  # windows sent through the network at a time
    # fill windows up to `crop` with zeros (the mean colour) and cut the logits back; the published protocol never pads
    pad: bool = False

    def __post_init__(self) -> None:
        if self.crop < 1 or self.batch < 1 or not 1 <= self.stride <= self.crop:
            raise ConfigError(
                "the sliding window is impossible",
                why=f"window {self.crop}, stride {self.stride}, batch {self.batch}; "
                "wanted 1 <= stride <= window and batch >= 1",
                hint="Lower --stride, or raise --window.",
            )

    def boxes(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Row and column slices of every window, row by row."""
        return [
            (slice(y, min(y + self.crop, height)), slice(x, min(x + self.crop, width)))
            for y in window_starts(height, self.crop, self.stride)
            for x in window_starts(width, self.crop, self.stride)
        ]

    def groups(self, height: int, width: int) -> list[list[tuple[slice, slice]]]:
        """The boxes, `batch` at a time."""
        boxes = self.boxes(height, width)
        return [boxes[first : first + self.batch] for first in range(0, len(boxes), self.batch)]

    def held_rows(self, height: int, width: int) -> int:
        """The most rows of an image whose sums must be held at a time."""
        tops = np.array(window_starts(height, self.crop, self.stride))
        across = len(window_starts(width, self.crop, self.stride))
        first = np.arange(0, len(tops) * across, self.batch)
        last = np.minimum(first + self.batch, len(tops) * across) - 1
        return int((np.minimum(tops[last // across] + self.crop, height) - tops[first // across]).max())


@dataclass(frozen=True)
class View:
    """One inference of an image: its normalised pixels at some scale, flipped or not."""

    size: tuple[int, int]  # (h, w)
    # gives a function of row and column slices that returns those pixels, `(3, rows, columns)` float
    open: Callable[[], Crop]
    flipped: bool = False  # whether the pixels are mirrored left to right


def sweep(
    logits_of: LogitsFunction,
    view: View,
    windowing: Windowing,
    progress: Callable[[int], object] | None = None,
    *,
    whole: bool = False,
    device: torch.device | None = None,
) -> Iterator[Band]:
    """Mean logits of a view over its overlapping windows, top to bottom.

    Args:
        progress: called with the number of windows done.
        whole: hold the logits of all rows and give them at once, at the end.
        device: where the logits are summed; where the network gives them if None.

    Yields:
        Rows that no later window reaches, and their mean logits `(C, rows, w)` float32, which are overwritten when
        the next ones are asked for.

    Raises:
        NonFiniteError: the network gave NaN or infinity.
    """
    (height, width), crop = view.size, view.open()
    groups = windowing.groups(height, width)
    across, down = _coverage(width, windowing), _coverage(height, windowing)[:, None]
    sums: Tensor | None = None
    done = 0  # rows given away; row `done` is the first of `sums`
    for index, group in enumerate(groups):
        scores = logits_of(stack_windows(crop, view.size, group, windowing))
        if sums is None:
            held = height if whole else windowing.held_rows(height, width)
            sums = scores.new_zeros((scores.shape[1], held, width), dtype=torch.float32, device=device)
            across, down = across.to(sums.device), down.to(sums.device)
        for (rows, columns), score in zip(group, scores, strict=True):
            inside = score[:, : rows.stop - rows.start, : columns.stop - columns.start].to(sums.device)
            sums[:, rows.start - done : rows.stop - done, columns] += inside
        if progress is not None:
            progress(len(group))
        last = index + 1 == len(groups)
        final = height if last else done if whole else groups[index + 1][0][0].start
        if final > done:
            ready = sums[:, : final - done]
            ready /= down[done:final] * across  # how often a row is covered times how often a column is
            require_finite(ready)
            yield slice(done, final), ready
            if not last:
                _move_up(sums, final - done)
            done = final


def _move_up(sums: Tensor, rows: int) -> None:
    """Drops the first rows of `(C, rows, w)`, moves the others up, and puts zeros below them, in place."""
    kept = sums.shape[1] - rows
    for channel in sums:  # one at a time: what moves may overlap where it goes, and is copied first
        channel[:kept] = channel[rows:].clone()
        channel[kept:] = 0


def require_finite(logits: Tensor) -> None:
    """Raises NonFiniteError where logits `(C, h, w)` hold NaN or infinity."""
    # extremes of one class at a time: of rows within a larger buffer all at once, PyTorch would make a copy
    extremes = torch.stack([extreme for channel in logits for extreme in channel.aminmax()])
    if not bool(extremes.isfinite().all()):
        raise NonFiniteError(
            "the network gave NaN or infinite logits",
            why="no class can be told from them",
            hint="Check the checkpoint; with --dtype float16 or bfloat16, try float32.",
        )


def stack_windows(crop: Crop, size: tuple[int, int], boxes: list[tuple[slice, slice]], windowing: Windowing) -> Tensor:
    """The windows as one batch `(B, 3, h, w)`."""
    windows, side = [crop(rows, columns) for rows, columns in boxes], windowing.crop
    if windowing.pad and min(size) < side:
        windows = [F.pad(window, (0, side - window.shape[2], 0, side - window.shape[1])) for window in windows]
    return torch.stack(windows)


def _coverage(length: int, windowing: Windowing) -> Tensor:
    """How many windows cover each pixel along one axis, `(length,)` float32."""
    counts = torch.zeros(length)
    for start in window_starts(length, windowing.crop, windowing.stride):
        counts[start : start + windowing.crop] += 1
    return counts


def _probabilities(logits: Tensor, size: tuple[int, int], band: slice, above: int, height: int) -> Tensor:
    return resize_rows(logits[None], size, band, above=above, height=height)[0].softmax(0)


@dataclass(frozen=True)
class Finish:
    """How the mean logits of a view become probabilities at the image's size."""

    # gives the rows of a map of some height that output rows are made from: as `source_span`
    span: Callable[[int, int, slice], slice]
    # of rows of the logits `(C, h, w)` float32: takes the full output size, the output rows wanted, how many rows of
    # the whole map lie above those given, and its height; gives `(C, rows, W)` float32
    probabilities: Callable[[Tensor, tuple[int, int], slice, int, int], Tensor]


PUBLISHED = Finish(source_span, _probabilities)


class _ViewRows:
    """The mean logits of one view as its sweep gives them, turned into bands of the final image from top to bottom."""

    def __init__(
        self, sweep: Iterator[Band], height: int, size: tuple[int, int], finish: Finish, flipped: bool = False
    ) -> None:
        self.sweep, self.height, self.size, self.finish, self.flipped = sweep, height, size, finish, flipped
        self.first = self.last = 0  # rows that `ready` has
        self.ready = torch.empty(0)
        self.tail, self.tail_first = torch.empty(0), 0  # rows above them that are still needed

    def probabilities(self, band: slice) -> Tensor:
        """`(C, rows, W)` float32 of the rows `band`; they must not start above those of an earlier call."""
        span = self.finish.span(self.height, self.size[0], band)
        while self.last < span.stop:
            self._advance(span.start)
        values = self.finish.probabilities(self._rows(span), self.size, band, span.start, self.height)
        return values.flip(2) if self.flipped else values

    def _rows(self, span: slice) -> Tensor:
        ready = self.ready[:, max(span.start - self.first, 0) : span.stop - self.first]
        return (
            ready if span.start >= self.first else torch.cat([self.tail[:, span.start - self.tail_first :], ready], 1)
        )

    def _advance(self, start: int) -> None:
        """Takes the sweep's next rows, which overwrite those before; of these, the ones from `start` on are copied."""
        if start < self.last:
            self.tail = self._rows(slice(start, self.last)).clone()
            self.tail_first = start
        rows, self.ready = next(self.sweep)
        self.first, self.last = rows.start, rows.stop


@dataclass(frozen=True)
class Scores:
    """Class probabilities of one image, made band by band, so that no full-size copy is ever needed."""

    size: tuple[int, int]  # `(H, W)`
    # gives, for a number of rows, the image's bands of that many rows, top to bottom
    source: Callable[[int | None], Iterator[Band]]

    @staticmethod
    def of_logits(values: Tensor, size: tuple[int, int], finish: Finish = PUBLISHED) -> Scores:
        """Of mean logits `(C, h, w)` float32 at the inference size, for an image of `size`."""
        height = values.shape[1]
        whole = slice(0, height), values
        return Scores(size, lambda rows: _mean_bands([_ViewRows(iter([whole]), height, size, finish)], size, rows))

    @staticmethod
    def of_probabilities(values: Tensor) -> Scores:
        """Of probabilities `(C, H, W)` float32 at the final size."""
        size = values.shape[1], values.shape[2]
        return Scores(size, lambda rows: ((band, values[:, band]) for band in _band_slices(size, rows)))

    def bands(self, rows: int | None = None) -> Iterator[Band]:
        """Row slices of the image with their probabilities `(C, rows, W)` float32; `rows` high, or chosen by width."""
        return self.source(rows)

    def probabilities(self) -> Tensor:
        """All of them, `(C, H, W)` float32."""
        result: Tensor | None = None
        for band, values in self.bands():
            if result is None:
                result = values.new_empty((values.shape[0], *self.size))
            result[:, band] = values
        assert result is not None
        return result

    def classes(self) -> tuple[Tensor, Tensor]:
        """The most probable class of each pixel, `(H, W)` uint8, and its probability, `(H, W)` float32."""
        return self.outcome()[:2]

    def outcome(self, step: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `classes`, and in the same pass all probabilities of every `step`-th pixel of every `step`-th row.

        Args:
            step: in pixels and in rows; None: one sample.

        Returns:
            `(H, W)` uint8, `(H, W)` float32, `(C, ceil(H / step), ceil(W / step))` float32.
        """
        ids = torch.empty(self.size, dtype=torch.uint8)
        confidence, samples = torch.empty(self.size), []
        step = step or max(self.size)
        for band, values in self.bands():
            best, index = values.max(0)
            ids[band] = index.to("cpu", torch.uint8)
            confidence[band] = best.cpu()
            samples.append(values[:, -band.start % step :: step, ::step].to("cpu", copy=True))
        return ids, confidence, torch.cat(samples, 1)


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of each pixel's `(C, h, w)` class probabilities, `(h, w)`: 0 where one is certain, 1 if all equal."""
    return torch.special.entr(probabilities).sum(0) / math.log(max(len(probabilities), 2))


def band_rows(width: int) -> int:
    """Rows of an image `width` wide that are turned into probabilities at a time."""
    return max(1, BAND_PIXELS // width)


def _band_slices(size: tuple[int, int], rows: int | None) -> Iterator[slice]:
    step = rows or band_rows(size[1])
    for first in range(0, size[0], step):
        yield slice(first, min(first + step, size[0]))


def _mean_bands(views: Sequence[_ViewRows], size: tuple[int, int], rows: int | None) -> Iterator[Band]:
    for band in _band_slices(size, rows):
        total = views[0].probabilities(band)
        for view in views[1:]:
            total += view.probabilities(band)
        if len(views) > 1:
            total /= len(views)
        yield band, total


def segment(
    logits_of: LogitsFunction,
    views: Iterable[View],
    size: tuple[int, int],
    windowing: Windowing,
    progress: Callable[[int], object] | None = None,
    *,
    keep: bool = True,
    device: torch.device | None = None,
    finish: Finish = PUBLISHED,
) -> Scores:
    """Scores of one image over its views: one for single scale, twelve for the published multi-scale and flip.

    Args:
        views: the inferences to average, in order.
        size: `(H, W)` of the result, the original image's.
        progress: called with the number of windows done.
        keep: compute everything now and hold one buffer of the image's scores; else compute while bands are asked
            for, anew each time, holding no more rows than windows reach.
        device: where logits are summed; where the network gives them if None.
        finish: how they become probabilities.

    Returns:
        The softmax of the one view's mean logits, or the mean of the views' probabilities: the same numbers with
        and without `keep`.
    """

    def rows_of(view: View) -> _ViewRows:
        bands = sweep(logits_of, view, windowing, progress, whole=keep, device=device)
        return _ViewRows(bands, view.size[0], size, finish, view.flipped)

    views = list(views)
    if not views:
        raise ValueError("an image needs at least one view")
    if not keep:
        return Scores(size, lambda rows: _mean_bands([rows_of(view) for view in views], size, rows))
    if len(views) == 1 and not views[0].flipped:
        [(_, logits)] = rows_of(views[0]).sweep
        return Scores.of_logits(logits, size, finish)
    total: Tensor | None = None
    for view in views:
        for band, values in _mean_bands([rows_of(view)], size, None):
            if total is None:
                total = values.new_zeros((values.shape[0], *size))
            total[:, band] += values
    assert total is not None
    total /= len(views)
    return Scores.of_probabilities(total)
