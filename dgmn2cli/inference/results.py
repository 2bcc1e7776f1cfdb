"""One JSON line for each image that is done, beside its outputs: what a later run need not do again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dgmn2cli.data.archives import Member
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import local_write_errors, open_in_place, open_regular, to_plain
from dgmn2cli.inference.prediction import ClassShare, output_path
from dgmn2cli.inference.report import ImageResult
from dgmn2cli.inference.segmenter import differences
from dgmn2cli.inference.sources import ImageFile, ImageList

RESULTS = "results.jsonl"
LONGEST_LINE = 1 << 20  # bytes


class ResultsFile:
    """The file `results.jsonl` of an output folder, a line added for each image; created where absent.

    Raises:
        ResourceError: it cannot be written.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self._identity = path, identity
        with local_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = open_in_place(path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":  # a killed process was within a line
            self._write(b"\n")

    def add(self, name: str, result: ImageResult) -> None:
        """Notes an image whose outputs are there."""
        self._write(line_of(name, result, self._identity))

    def _write(self, content: bytes) -> None:
        with local_write_errors(self.path):
            while content:
                content = content[os.write(self._descriptor, content) :]

    def close(self) -> None:
        """Nothing more is added."""
        with local_write_errors(self.path):
            os.fsync(self._descriptor)
            os.close(self._descriptor)


def line_of(name: str, result: ImageResult, identity: dict[str, Any]) -> bytes:
    """The line of an image whose outputs are called `name`."""
    return _to_json({"name": name, **to_plain(result), "run": identity}).encode() + b"\n"


def _to_json(value: Any) -> str:
    """One line of JSON. Of a name that is no UTF-8 it has what `_told` gives: half a surrogate pair is no JSON."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: "\\" + _told(half[0]), text)


def _told(name: str) -> str:
    """`name` as its line has it."""
    return name.encode("utf-8", "backslashreplace").decode()


class Line(TypedDict):
    """What is used of a line; files of results are other people's, too."""

    name: str
    run: dict[str, Any]
    sha256: str
    width: int
    height: int
    windows: int
    seconds: float
    doubt: float
    classes: list[ClassShare]


_LINE = TypeAdapter(Line)


def lines_of(file: BinaryIO, first: int = 0, size: int | None = None) -> Iterator[tuple[int, Line]]:
    """The offset and content of each whole line; what a killed process or anybody else left between them is passed.

    Args:
        first, size: of the part of the file that has the lines, in bytes; all of it if None.
    """
    file.seek(first)
    while (size is None or file.tell() < first + size) and (line := file.readline(LONGEST_LINE)):
        with suppress(ValidationError):
            yield file.tell() - len(line), _LINE.validate_json(line, strict=True)


@dataclass(frozen=True)
class Earlier:
    """What earlier runs with the same settings made of images, as their lines say."""

    path: Path
    images: Sequence[ImageFile]
    offsets: np.ndarray  # (N,) int64: where each image's line is; -1 where there is none
    kinds: tuple[str, ...]

    def __call__(self, index: int, sha256: str) -> ImageResult | None:
        """The result of the image at `index` if its bytes are the same and its outputs are there."""
        if self.offsets[index] < 0:
            return None
        with open_regular(self.path) as file:
            _, line = next(lines_of(file, int(self.offsets[index])), (0, None))
        image = self.images[index]
        if line is None or (line["name"], line["sha256"]) != (_told(image.name), sha256):
            return None
        inside = self.path.name != RESULTS  # an archive, which has the outputs as it has the line
        folder = self.path if inside else self.path.parent
        outputs = {kind: output_path(folder, image.name, kind) for kind in self.kinds}
        if not inside and not all(map(os.path.isfile, outputs.values())):
            return None
        told: dict[str, Any] = {key: value for key, value in line.items() if key not in ("name", "run")}
        return ImageResult(image.path, outputs=outputs, memory=None, resumed=True, **told)


def find_earlier(
    path: Path, images: ImageList, identity: dict[str, Any], *, overwrite: bool, part: Member | None = None
) -> Earlier:
    """The lines of a file of results that tell of `images`; of several about one image the last counts.

    Args:
        overwrite: images that were done with other settings count as not done.
        part: where the lines are, if the file is an archive.

    Raises:
        ConfigError: images were done with other settings; they are named.
        DataError: it is no file, or cannot be read.
    """
    keys = np.fromiter((hash(_told(name)) for name in images.names), np.int64, len(images))
    identity = json.loads(_to_json(identity))
    order = np.argsort(keys)
    ordered, offsets = keys[order], np.full(len(images), -1, np.int64)
    other: dict[int, list[str]] = {}
    if os.path.lexists(path):
        what = "cannot read the results of the run before"
        with open_regular(path, what, kind=DataError, unreadable=DataError, hint="Use another folder.") as file:
            for offset, line in lines_of(file, part.first, part.size) if part else lines_of(file):
                key = hash(line["name"])
                place = int(np.searchsorted(ordered, key))
                if place == len(ordered) or ordered[place] != key:
                    continue
                index = int(order[place])
                if _told(images.names[index]) != line["name"]:  # two names of one hash: it is done again
                    continue
                same = line["run"] == identity
                offsets[index] = offset if same else -1
                other.pop(index, None)
                if not same and len(other) < 100:
                    other[index] = differences(line["run"], identity, "it")
    if other and not overwrite:
        index, faults = next(iter(other.items()))
        hint = "Use the same settings, another -o, or --overwrite to do such images again."
        why = f"image {images.names[index]} was done with other settings"
        raise ConfigError("cannot go on with another run's results", where=path, why=why, faults=faults, hint=hint)
    return Earlier(path, images, offsets, tuple(identity["kinds"]))
