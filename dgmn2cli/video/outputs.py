"""What a segmented video becomes: a film with the classes' colours, one of class ids, a line of JSON per frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from dgmn2cli.errors import ConfigError
from dgmn2cli.files import atomic_file, local_write_errors
from dgmn2cli.inference.outputs import require_new
from dgmn2cli.inference.prediction import ClassList, ClassShare, check_outputs, mean_doubt, ranked
from dgmn2cli.inference.visualize import class_shares, overlay
from dgmn2cli.video.films import FORMATS, Film
from dgmn2cli.video.measures import SMALLEST, Steadiness, Steady

if TYPE_CHECKING:
    from dgmn2cli.video.source import Frame, VideoSource

KINDS = {"overlay": "", "ids": "_ids.mkv", "jsonl": ".jsonl"}  # and the ends of their names

Segmented = tuple["Frame", np.ndarray, np.ndarray]  # a frame, class ids (H, W) uint8, their confidence (H, W) float32


@dataclass(frozen=True)
class VideoRequest:
    """What is to come of a video."""

    out: Path  # the overlay's file; the others' names begin as it does
    kinds: tuple[str, ...] = ("overlay",)  # keys of `KINDS`
    smooth: float = 0.0  # see `Smoother`; 0: each frame by itself
    measure: bool = False  # tell how steady the predictions are
    alpha: float = 0.5  # strength of the overlay's colours, 0 to 1

    @property
    def targets(self) -> dict[str, Path]:
        """File by kind."""
        return {kind: self.out.with_name(f"{self.out.stem}{KINDS[kind] or self.out.suffix}") for kind in self.kinds}


def check_request(request: VideoRequest, source: VideoSource, overwrite: bool) -> None:
    """Refuses what cannot be written, before a network is loaded.

    Raises:
        ConfigError: an unknown kind or suffix, an output that is the input or exists already without `overwrite`, a
            sound that the container does not take, or a video too small for measuring or for an encoder.
        ResourceError: a file cannot come to be, or nothing can encode it.
    """
    check_outputs(request.kinds, known=KINDS)
    if request.out.suffix.lower() not in FORMATS:
        why = f"wanted a name that ends in {', '.join(FORMATS)}"
        raise ConfigError("no such kind of film", where=request.out, why=why, hint="Correct -o.")
    require_new(list(request.targets.values()), overwrite, [source.info.name])
    if request.measure and min(source.info.width, source.info.height) < SMALLEST:
        why = f"the frames are {source.info.width}x{source.info.height}, wanted {SMALLEST} pixels at least"
        raise ConfigError(
            "the optical flow cannot be computed", where=source.info.name, why=why, hint="Leave --metrics away."
        )
    for kind in request.targets.keys() - {"jsonl"}:
        _film(kind, request, source, BytesIO()).abandon()  # tries encoder, container and sound


def _film(kind: str, request: VideoRequest, source: VideoSource, file: BinaryIO) -> Film:
    ids, info = kind == "ids", source.info
    rate = info.rate / source.span.every if info.rate else None
    container = FORMATS[request.targets[kind].suffix.lower()]
    size, sounds = (info.width, info.height), [] if ids else source.sounds
    return Film(file, container, size, source.time_base, rate, ids=ids, aspect=source.aspect, sounds=sounds)


@dataclass
class Outputs:
    """The files that grow frame by frame, and the sums over all frames."""

    request: VideoRequest
    classes: ClassList
    films: dict[str, Film]
    lines: BinaryIO | None
    steady: Steady | None
    frames: int = 0
    doubt: float = 0.0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, segmented: Segmented) -> None:
        """Writes one frame."""
        frame, ids, confidence = segmented
        shares, doubt = class_shares(ids, len(self.classes.names)), mean_doubt(confidence)
        for kind, film in self.films.items():
            tinted = kind == "overlay"
            shown = overlay(frame.image, ids, self.classes.palette, self.request.alpha) if tinted else ids
            with local_write_errors(self.request.targets[kind]):
                film.write(frame.pts, frame.lasts, shown)
                film.copy(frame.sound if tinted else ())
        if self.lines is not None:
            names = {self.classes.names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable") if shares[i]}
            line = {"frame": self.frames, "time": frame.time, "doubt": doubt, "shares": names}
            with local_write_errors(self.request.targets["jsonl"]):
                self.lines.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        if self.steady is not None:
            self.steady.add(frame.image, ids)
        self.pixels = shares * ids.size + (self.pixels if self.frames else 0)
        self.frames, self.doubt = self.frames + 1, self.doubt + doubt

    def shares(self) -> list[ClassShare]:
        """The classes in all frames, largest first."""
        return ranked(zip(self.classes.names, self.pixels, strict=True), float(self.pixels.sum()))

    def finish(self, source: VideoSource) -> Steadiness | None:
        """Ends the films, the sound behind the last frame included; tells how steady the predictions were."""
        for kind, film in self.films.items():
            with local_write_errors(self.request.targets[kind]):
                if kind == "overlay":
                    film.copy(source.rest)
                film.finish()
        return self.steady.result() if self.steady is not None else None


@contextmanager
def open_outputs(request: VideoRequest, source: VideoSource, classes: ClassList) -> Iterator[Outputs]:
    """The outputs, under temporary names; they get their own when the block ends well.

    Raises:
        ResourceError: a file cannot be written.
    """
    with ExitStack() as stack:
        files = {kind: stack.enter_context(atomic_file(path)) for kind, path in request.targets.items()}
        lines = files.pop("jsonl", None)
        films = {kind: _film(kind, request, source, file) for kind, file in files.items()}
        for film in films.values():
            stack.callback(film.abandon)
        yield Outputs(request, classes, films, lines, Steady(classes.names) if request.measure else None)
