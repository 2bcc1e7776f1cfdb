"""Explaining positions of an image file: checks before the network is loaded, files, the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.images import read_image
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import check_folder, to_plain
from dgmn2cli.inference.explain import FORMATS, Window, graph_path, require_inside
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

Position = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ExplainRequest:
    """An image (H, W, 3) uint8, red green blue, with its path, the positions to explain, where files go, and how."""

    path: Path
    image: np.ndarray
    positions: tuple[Position, ...]
    folder: Path
    settings: Settings

    def stem(self, at: Position) -> str:
        """What the files of a position are called."""
        return f"{self.path.stem}_{at[0]:g}_{at[1]:g}"


@dataclass(frozen=True)
class ExplainedPosition:
    """A position, the window that was looked into, the class it gives there, the files by kind."""

    at: Position
    window: Window
    predicted: str
    confidence: float
    outputs: dict[str, Path]


@dataclass(frozen=True)
class ExplainReport:
    """The result of one `explain` run."""

    run: RunInfo  # model, weights, device, backend
    protocol: Protocol  # the settings in force
    image: Path  # the file
    positions: list[ExplainedPosition]  # what was asked for
    # a `BlockGraph` of each block for each position, as JSON types, with the position as `at`
    blocks: list[dict[str, Any]]


def prepare(
    path: Path, positions: Sequence[Position], folder: Path, settings: Settings, *, overwrite: bool = False
) -> ExplainRequest:
    """Reads the image and refuses what cannot be done, before a network is loaded.

    Raises:
        DataError: the image cannot be read.
        ConfigError: a position outside it, or files that exist already without `overwrite`.
        ResourceError: the folder cannot come to be.
    """
    image = read_image(path, settings.max_pixels)[:, :, ::-1]
    for at in positions:
        require_inside(at, image)
    request = ExplainRequest(path, image, tuple(dict.fromkeys(positions)), folder, settings)
    check_folder(folder)
    targets = [graph_path(folder, request.stem(at), kind) for at in request.positions for kind in FORMATS]
    there = [str(target) for target in targets if os.path.lexists(target)]
    if there and not overwrite:
        hint = "Add --overwrite, or choose another folder with -o."
        raise ConfigError("output files exist already", where=folder, faults=there, hint=hint)
    return request


def explain_positions(segmenter: Segmenter, request: ExplainRequest, observer: Observer = Silent()) -> ExplainReport:
    """Explains each position and writes its files.

    Raises:
        ConfigError: impossible settings, or a network that cannot be explained.
        NonFiniteError: the network gave NaN or infinity.
        ResourceError: out of memory, or a file cannot be written.
    """
    observer.begin("explaining", len(request.positions))
    found, blocks = [], []
    for at in request.positions:
        made = segmenter.explain(request.image, *at, request.settings)
        outputs = made.save(request.folder, request.stem(at))
        found.append(ExplainedPosition(at, made.window, made.predicted, made.confidence, outputs))
        blocks += [{"at": list(at), **to_plain(block)} for block in made.blocks]
        observer.result(found[-1])
        observer.advance()
    protocol = resolve_settings(request.settings, segmenter.inference, segmenter.device)
    return ExplainReport(segmenter.info, protocol, request.path, found, blocks)
