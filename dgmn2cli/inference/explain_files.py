"""Explaining positions of an image file: checks, files, the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.images import read_image
from dgmn2cli.files import to_plain
from dgmn2cli.inference.explain import FORMATS, Window, graph_path, require_inside
from dgmn2cli.inference.outputs import require_new
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.observer import Observer, Silent

Position = tuple[float, float]


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


def explain_image(
    load: Callable[[], Segmenter],
    path: Path,
    positions: Sequence[Position],
    folder: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    observer: Observer = Silent(),
) -> ExplainReport:
    """Explains positions of an image file, each once, and writes the files of each.

    Args:
        load: makes the network; called once the image was read and all outputs are possible.

    Raises:
        DataError: the image cannot be read.
        ConfigError: a position outside it, files that exist already without `overwrite`, impossible settings, or a
            network that cannot be explained.
        NonFiniteError: the network gave NaN or infinity.
        ResourceError: out of memory, or a file cannot be written.
    """
    image = read_image(path, settings.max_pixels)[:, :, ::-1]
    stems = {at: "_".join([path.stem, *map(_exact, at)]) for at in positions}
    for at in stems:
        require_inside(at, image)
    require_new([graph_path(folder, stem, kind) for stem in stems.values() for kind in FORMATS], overwrite)
    segmenter = load()
    observer.begin("explaining", len(stems))
    found, blocks = [], []
    for at, stem in stems.items():
        made = segmenter.explain(image, *at, settings)
        found.append(ExplainedPosition(at, made.window, made.predicted, made.confidence, made.save(folder, stem)))
        blocks += [{"at": list(at), **to_plain(block)} for block in made.blocks]
        observer.result(found[-1])
        observer.advance()
    protocol = resolve_settings(settings, segmenter.inference, segmenter.device)
    return ExplainReport(segmenter.info, protocol, path, found, blocks)


def _exact(position: float) -> str:
    """A coordinate as a part of a file's name: no other one has the same."""
    return np.format_float_positional(position, trim="-")
