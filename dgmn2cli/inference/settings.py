"""How a user wants networks loaded and images segmented. Needs no torch, so that commands can refuse without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class LoadOptions:
    """How a recipe becomes a network."""

    checkpoint: str | Path | None = None  # the weights; the published ones, downloaded where they are not here, if None
    # device, dtype, backend: as for `load`
    device: str = "auto"
    dtype: str = "float32"
    backend: str = "auto"
    # rewrite the network into its faster equal (`model.inference_form`); else run the published order of operations
    exact_algebra: bool = True
    compiled: bool = False  # run the published order through `torch.compile`; on NVIDIA GPUs only
    # record passes and replay them: on NVIDIA GPUs only, not with `compiled` or a memory limit
    cuda_graphs: bool = False
    ema: bool = False  # take the averaged copy of the weights that the checkpoint holds
    # cache, offline: as for `ensure_weights`
    cache: Path | None = None
    offline: bool = False
    max_memory: int | None = None  # bytes that must not be exceeded, see `Settings`
