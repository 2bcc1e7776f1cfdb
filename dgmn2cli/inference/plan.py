"""What segmenting an image will do: the settings in force, the inferences, their windows, the memory they take."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from dgmn2cli.config.schema import MAX_SIDE, PROTOCOLS, InferenceProcedure
from dgmn2cli.data.transforms import scaled, target_size
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.inference.graph import GraphInference
from dgmn2cli.inference.settings import Settings as Settings
from dgmn2cli.inference.sliding_window import Windowing, band_rows
from dgmn2cli.model.fused.lanes import lanes
from dgmn2cli.runtime import highest_use, in_use, machine_memory, return_large_blocks

WINDOW_BATCH_GPU = 4

DECODE_BYTES = 12  # per pixel, while an image is decoded, turned and put into the order of colours
RESULT_BYTES = 5  # per pixel: class id and confidence
SAVE_BYTES = 16  # per pixel, while images of the result are made and encoded; at most 12 were measured
SLACK_BYTES = 64 << 20  # what the system's allocator keeps beyond what is asked of it


@dataclass(frozen=True)
class Protocol:
    """The test procedure in force, as `resolve_settings` gives it; reports carry it."""

    name: str  # `paper`, `native`, or of a graph `whole` (stretched to exactly `scale`, in one piece)
    scale: tuple[int, int] | None  # the (width, height) images are fitted into; None: they keep their size
    # window, stride: of the sliding window, in pixels
    window: int
    stride: int
    window_batch: int | None  # windows per forward pass; None: not known, because it is chosen by device
    ratios: tuple[float, ...]  # factors of the scale that are averaged
    flip: bool  # mirrored images are averaged, too

    def __str__(self) -> str:
        size = f"{self.scale[0]}x{self.scale[1]}" if self.scale else "the images' size"
        kind = f"{len(self.ratios)} scales" if len(self.ratios) > 1 else "single scale"
        cut = "one piece" if self.window == MAX_SIDE else f"window {self.window}/{self.stride}"
        return f"protocol {self.name}, {kind}{' + flip' if self.flip else ''}, {size}, {cut}"


def _window_batch(device: torch.device, graph: bool) -> int:
    """Windows at a time: a GPU's fill it, the CPU's threads share them out; runtimes of graphs share out themselves."""
    if device.type != "cpu":
        return WINDOW_BATCH_GPU
    return 1 if graph else lanes()


def resolve_settings(
    settings: Settings, inference: InferenceProcedure, device: torch.device | str | None = None
) -> Protocol:
    """What `settings` mean on top of a configuration or a graph: the one place where they are resolved.

    Args:
        device: where the network runs, which decides how many windows go through it at a time.

    Raises:
        ConfigError: an unknown protocol, an impossible scale, window, stride or batch, or a scale that is not heeded.
    """
    name = inference.protocol if settings.protocol is None else settings.protocol
    if name not in PROTOCOLS and name != inference.protocol:
        raise ConfigError("no such protocol", where=name[:60], why=f"wanted one of {', '.join(PROTOCOLS)}")
    scale = inference.scale if settings.scale is None else settings.scale
    if name == "native" and settings.scale is not None:
        why, hint = "protocol 'native' keeps the images' size", "Leave out --scale, or add --protocol paper."
        raise ConfigError("a scale would have no effect", where=str(scale)[:60], why=why, hint=hint)
    if name == "native" or (name == "whole" and scale is None):
        scale = None
    elif scale is None or len(scale) != 2 or not all(1 <= side <= MAX_SIDE for side in scale):
        raise ConfigError("impossible scale", where=str(scale)[:60], why=f"wanted (width, height), 1 to {MAX_SIDE}")
    window, stride = (MAX_SIDE, MAX_SIDE) if name == "whole" else (inference.window, inference.stride)
    window = window if settings.window is None else settings.window
    stride = min(stride, window) if settings.stride is None else settings.stride
    batch = settings.window_batch
    if batch is None and device is not None:
        batch = _window_batch(torch.device(device), isinstance(inference, GraphInference))
    Windowing(window, stride, 1 if batch is None else batch)  # refuses what cannot be
    return Protocol(
        name=name,
        scale=scale,
        window=window,
        stride=stride,
        window_batch=batch,
        ratios=inference.ratios if settings.ms_flip else (1.0,),
        flip=settings.ms_flip and inference.flip,
    )


@dataclass(frozen=True)
class Plan:
    """The inferences of one image."""

    scales: tuple[tuple[int, int] | None, ...]  # the (width, height) each fits the image into; None: its own size
    flips: tuple[bool, ...]  # orientations of each scale
    windowing: Windowing  # crop, stride and batch
    size: tuple[int, int]  # the image's (height, width)
    keep: bool = True  # hold the scores of the whole image; else only of the rows that windows still reach
    stretch: bool = False  # scales are met exactly, whatever the image's shape
    on_host: bool = False  # sum the logits in main memory although the network runs elsewhere
    peak: int | None = None  # bytes that are predicted to be in use at most; known where a limit was given

    @classmethod
    def of(cls, protocol: Protocol, size: tuple[int, ...]) -> Plan:
        """The plan by which an image of `size` (height, width) is segmented where memory is not limited."""
        own, pad, stretch = protocol.scale is None, protocol.name == "native", protocol.name == "whole"
        base = protocol.scale or (size[1], size[0])
        scales = tuple(None if own and ratio == 1.0 else scaled(base, ratio) for ratio in protocol.ratios)
        windowing = Windowing(protocol.window, protocol.stride, protocol.window_batch or 1, pad=pad)
        flips = (False, True) if protocol.flip else (False,)
        return cls(scales, flips, windowing, (size[0], size[1]), stretch=stretch)

    def __str__(self) -> str:
        batch = self.windowing.batch
        parts = [f"{self.windows} windows of {self.windowing.crop}, {batch} at a time"]
        parts.append("scores of the whole image held" if self.keep else "finished rows let go")
        parts += ["scores summed in main memory"] * self.on_host
        parts += [] if self.peak is None else [f"at most {gigabytes(self.peak)} predicted"]
        return ", ".join(parts)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) at each scale."""
        return [
            self.size if scale is None else scale[::-1] if self.stretch else target_size(*self.size, scale)
            for scale in self.scales
        ]

    @property
    def windows(self) -> int:
        """Windows that go through the network, over all inferences."""
        return len(self.flips) * sum(len(self.windowing.boxes(*size)) for size in self.sizes)

    @property
    def largest_window(self) -> tuple[int, int]:
        """(height, width) of the largest one."""
        side = self.windowing.crop
        if self.windowing.pad:
            return side, side
        return min(side, max(height for height, _ in self.sizes)), min(side, max(width for _, width in self.sizes))


class TooLargeError(ResourceError):
    """There is too little memory for one image; smaller ones may fit."""


@dataclass(frozen=True)
class Machine:
    """What memory a plan has to fit into, in bytes."""

    limit: int  # that may be in use
    in_use: int  # before the image is segmented, the image included
    window: int  # that a window takes on its way through the network, measured
    classes: int  # of the network
    discrete: bool  # the network's memory is not the main memory


def require_room(limit: int, device: torch.device, needed: int, doing: str) -> None:
    """Returns if a device's limit was kept so far, and `needed` bytes more, for `doing`, will keep it.

    Raises:
        ResourceError: it was passed; TooLargeError: it would be.
    """
    return_large_blocks()
    used, highest = in_use(device), highest_use(device)
    if max(used + needed, highest) > limit:
        why = f"the limit is {gigabytes(limit)}, and {gigabytes(used)} are in use"
        why += f", {gigabytes(needed)} more are needed" if needed else ""
        why += f"; it was passed before: {gigabytes(highest)} were in use" if highest > limit else ""
        kind = ResourceError if max(used, highest) > limit else TooLargeError
        raise kind("the memory limit is too small", where=doing, why=why, hint="Raise --max-memory.")


def require_possible(plan: Plan, classes: int, device: torch.device) -> None:
    """Raises TooLargeError where this machine's memory cannot hold what a plan needs, also without a limit."""
    whole, scores = machine_memory(), 4 * classes * _held_elements(plan) if device.type == "cpu" else 0
    least = _scaled_bytes(plan) + scores
    if least > whole:
        width, height = max((size[1], size[0]) for size in plan.sizes)
        why = f"{width}x{height} pixels take at least {gigabytes(least)}, and the machine has {gigabytes(whole)}"
        raise TooLargeError("not enough memory", why=why, hint="Use a smaller --scale, or set --max-memory.")


def fitted(plan: Plan, machine: Machine, result_bytes: int = SAVE_BYTES) -> Plan:
    """The first way to carry out `plan` that fits: scores kept, rows let go as they are done, smaller window batches.

    Args:
        result_bytes: per pixel, for making the files of the result.

    Raises:
        TooLargeError: no way fits; says what the least would be.
        ResourceError: nor would it for any other image.
    """
    least, batch, (height, width) = sys.maxsize, plan.windowing.batch, plan.size
    while batch:
        for keep, on_host in [(True, False), (False, False)] + [(False, True)] * machine.discrete:
            way = replace(plan, windowing=replace(plan.windowing, batch=batch), keep=keep, on_host=on_host)
            peak = predicted_peak(way, machine, result_bytes)
            if peak <= machine.limit:
                return replace(way, peak=peak)
            least = min(least, peak)
        batch //= 2
    without = machine.in_use - 3 * height * width + machine.window + SLACK_BYTES
    raise (TooLargeError if without <= machine.limit else ResourceError)(
        "the memory limit is too small",
        why=f"{width}x{height} pixels take at least {gigabytes(least)}, and the limit is {gigabytes(machine.limit)}: "
        f"{gigabytes(machine.in_use)} are in use or read ahead, and one window takes {gigabytes(machine.window)}",
        hint="Raise --max-memory, or use a smaller --window.",
    )


def predicted_peak(plan: Plan, machine: Machine, result_bytes: int = SAVE_BYTES) -> int:
    """The most bytes in use at a time while an image is segmented by `plan` and its files are made."""
    pixels = plan.size[0] * plan.size[1]
    held = 4 * machine.classes * _held_elements(plan)
    band = 4 * machine.classes * _band_elements(plan)
    windows = plan.windowing.batch * machine.window
    if machine.discrete:
        here = windows if plan.on_host else max(windows, band) + held
        return machine.in_use + here + _scaled_bytes(plan) + 3 * pixels
    segmenting = held + _scaled_bytes(plan) + max(windows, band)
    saving = result_bytes * pixels + (held if plan.keep else 0)
    return machine.in_use + SLACK_BYTES + RESULT_BYTES * pixels + max(segmenting, saving)


def _held_elements(plan: Plan) -> int:
    """Pixels whose class scores are held."""
    area = [height * width for height, width in plan.sizes]
    if not plan.keep:
        return len(plan.flips) * sum(plan.windowing.held_rows(*size) * size[1] for size in plan.sizes)
    return area[0] if len(area) == len(plan.flips) == 1 else max(area) + plan.size[0] * plan.size[1]


def _band_elements(plan: Plan) -> int:
    """Pixels whose class scores are held while a band of rows is resized: two rows each and their mean, and beyond."""
    rows = band_rows(plan.size[1])
    views = 1 if plan.keep else len(plan.flips)
    sources = [min(size[0], rows * size[0] // plan.size[0] + 2) * size[1] for size in plan.sizes]
    return rows * (3 * max(width for _, width in plan.sizes) + 4 * plan.size[1]) + views * sum(sources)


def _scaled_bytes(plan: Plan) -> int:
    """Bytes of the resized images that are held at a time."""
    areas = [3 * h * w for scale, (h, w) in zip(plan.scales, plan.sizes, strict=True) if scale is not None]
    return max(areas, default=0) if plan.keep else sum(areas)


def gigabytes(count: int) -> str:
    """`1.25 GB` (10^9 bytes)."""
    return f"{count / 1e9:.2f} GB"
