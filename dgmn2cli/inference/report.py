"""What became of images that were segmented, and the report of a run."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dgmn2cli.inference.plan import Protocol
from dgmn2cli.inference.prediction import ClassShare
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.notebook import table_html

LISTED = 10_000  # images and failures that a report lists; all of them are counted


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use at most while an image was segmented: predicted, and measured up to then."""

    predicted: int
    highest: int


@dataclass(frozen=True)
class ImageResult:
    """What became of one image."""

    path: Path  # the image
    # width, height: its displayed size, the masks' size
    width: int
    height: int
    windows: int  # windows that went through the network
    seconds: float  # from reading it to its last file
    classes: list[ClassShare]  # what it shows, largest first
    doubt: float  # one minus the mean confidence of its pixels
    outputs: dict[str, Path]  # file by kind
    memory: MemoryUse | None  # what was in use at most, where a limit was given
    sha256: str = ""  # of the image's bytes
    resumed: bool = field(default=False, metadata={"json": False})  # an earlier run did it


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented, and why."""

    path: Path
    why: str


Outcome = tuple[int, ImageResult | Failure]  # of the image at that index


@dataclass(frozen=True)
class InferReport:
    """The result of one `infer` run."""

    run: RunInfo  # model, weights, device, backend
    protocol: Protocol  # the settings in force
    images: list[ImageResult]  # what was done, in the order of the inputs: the first 10,000
    failures: list[Failure]  # what could not be segmented: the first 10,000
    classes: list[ClassShare]  # pixel shares over all images, largest first
    by_doubt: list[Path]  # the images that are listed, the one with the most doubt first
    seconds: float  # wall time, loading the model excluded
    # done, failed, resumed: how many images were done, could not be, and were done by an earlier run
    done: int
    failed: int
    resumed: int = 0
    processes: int = 1  # that worked together
    # the file with one line for each image; None where they are in the output archives, or nowhere
    results: Path | None = None

    def _repr_html_(self) -> str:
        rows = [(done.path, f"{100 * done.doubt:.1f} %", f"{done.width} x {done.height}") for done in self.images]
        return table_html(f"{self.done} images with {self.run.title}", ("image", "doubt", "size"), rows)


class Collected:
    """What became of the images so far, in whatever order they come; a report lists the first of them."""

    def __init__(self) -> None:
        self.began, self.results, self.failures = time.perf_counter(), dict[int, ImageResult](), dict[int, Failure]()
        self.done = self.failed = self.resumed = self._pixels = 0
        self._classes = Counter[tuple[int, str]]()

    def add(self, index: int, outcome: ImageResult | Failure) -> None:
        """Adds what became of the image at `index`."""
        if isinstance(outcome, Failure):
            self.failed += 1
            if len(self.failures) < LISTED:
                self.failures[index] = outcome
            return
        self.done, self.resumed = self.done + 1, self.resumed + outcome.resumed
        self._pixels += outcome.width * outcome.height
        for share in outcome.classes:
            self._classes[share.id, share.name] += share.pixels
        if index < LISTED:
            self.results[index] = outcome

    def report(self, run: RunInfo, protocol: Protocol, processes: int = 1, results: Path | None = None) -> InferReport:
        """The report, arguments as its attributes."""
        shares = [ClassShare(*key, count, count / self._pixels) for key, count in self._classes.items()]
        listed = [self.results[index] for index in sorted(self.results)]
        return InferReport(
            run,
            protocol,
            listed,
            [self.failures[index] for index in sorted(self.failures)],
            sorted(shares, key=lambda share: (-share.share, share.id)),
            [result.path for result in sorted(listed, key=lambda result: -result.doubt)],
            time.perf_counter() - self.began,
            self.done,
            self.failed,
            self.resumed,
            processes,
            results,
        )
