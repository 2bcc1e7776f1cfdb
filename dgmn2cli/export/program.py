"""A network as a `.pt2` file: torch.export's program of one window, for torch without this package."""

from __future__ import annotations

import io
import warnings
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.segmentor import Segmentor

LARGEST_BATCH = 64


class _Window(nn.Module):
    """A network that takes and gives float32."""

    def __init__(self, model: Segmentor, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


def save_program(model: Segmentor, window: int, half: bool, batch: int | None) -> bytes:
    """A network, as published, as a program for windows of one size; its attention is in PyTorch's own operators.

    Args:
        half: weights and activations in float16; attention and norms are computed in float32.
        batch: windows at a time; 1 to 64 if None.
    """
    dtype = torch.float16 if half else torch.float32
    twin = deepcopy(model).to(dtype)
    use_backend(twin, "reference")
    images = torch.zeros(batch or 2, 3, window, window)
    free = None if batch else {"images": {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(_Window(twin, dtype), (images,), dynamic_shapes=free, strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def open_program(path: Path, network: Segmenter) -> Segmenter:
    """A segmenter as `network`, but with the program."""
    opened = copy(network)
    opened.network = torch.export.load(path).module()
    opened.info = replace(network.info, backend="reference", form="graph")
    return opened
