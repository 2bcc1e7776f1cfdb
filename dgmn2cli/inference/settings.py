"""How a user wants images segmented. Needs no torch, so that commands refuse what they can before they load it."""

from __future__ import annotations

from dataclasses import dataclass

from dgmn2cli.data.images import MAX_PIXELS


@dataclass(frozen=True)
class Settings:
    """How the user wants images segmented; None means the configuration's value.

    Attributes:
        ms_flip: average over six scales and their mirror images (12 inferences).
        scale: the (width, height) an image is fitted into before windows are cut.
        window: side of a window.
        stride: pixels between windows.
        protocol: `paper` (resize to `scale`, as published) or `native` (keep the image's size; small windows are
            padded with the mean colour).
        window_batch: windows per forward pass; chosen by device if None.
        max_pixels: the largest image that is read.
        max_memory: bytes of the process (of the GPU, on a GPU) that must not be exceeded; no limit if None.
    """

    ms_flip: bool = False
    scale: tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    protocol: str | None = None
    window_batch: int | None = None
    max_pixels: int = MAX_PIXELS
    max_memory: int | None = None
