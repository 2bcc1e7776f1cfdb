"""Where outputs go: a folder or an archive, and what is refused before any image is segmented."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from dgmn2cli.data.archives import ArchiveWriter
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import check_file, check_folder
from dgmn2cli.inference.prediction import Prediction, output_path
from dgmn2cli.inference.sources import ImageFile, ImageList

LONGEST_NAME = 255  # bytes of a file's name, on the file systems in use
NAMED = 1000  # faults that an error holds; it counts all


def check_targets(images: Sequence[ImageFile], folder: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Refuses outputs before any image is segmented.

    Raises:
        ConfigError: one would overwrite an input, or an existing file without `overwrite`, or its name is too long.
        ResourceError: the folder cannot come to be.
    """
    check_folder(folder)
    files, count, longest = array("Q"), 0, 0
    long, there = list[str](), list[str]()
    names = images.names if isinstance(images, ImageList) else [image.name for image in images]
    endings = [output_path("", "", kind).name for kind in kinds]

    @lru_cache(maxsize=4096)
    def exists(inside: str) -> bool:
        return os.path.isdir(os.path.join(folder, inside))

    for name in names:  # a million: no paths as objects, and no question about files of folders that are not there
        inside, _, last = name.rpartition("/")
        for ending in endings:
            if len(last) + len(ending) > LONGEST_NAME // 4 and len(os.fsencode(last + ending)) > LONGEST_NAME:
                longest += 1
                long += [os.path.join(folder, name + ending)] * (len(long) < NAMED)
            elif exists(inside) and (number := _file_number(target := os.path.join(folder, name + ending))) is not None:
                files.append(number)
                count += 1
                there += [target] * (len(there) < NAMED)
    if long:
        why = f"{longest:,} of {len(images) * len(kinds):,} have more than {LONGEST_NAME} bytes"
        raise ConfigError("an output's name would be too long", why=why, faults=long, hint="Rename these images.")
    if files:
        inputs = np.fromiter((_file_number(image.path) or 0 for image in images), np.uint64, len(images))
        lost = [str(images[int(index)].path) for index in np.flatnonzero(np.isin(inputs, files))[:NAMED]]
        if lost:
            raise ConfigError("an output would overwrite its input", faults=lost, hint="Choose another folder with -o.")
    if there and not overwrite:
        raise ConfigError(
            "output files exist already",
            where=folder,
            why=f"{count} of {len(images) * len(kinds)}",
            faults=there,
            hint="Add --resume or --overwrite, or choose another folder with -o.",
        )


def require_new(
    targets: Sequence[Path],
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
    hint: str = "Add --overwrite, or choose another name with -o.",
) -> None:
    """Refuses output files before any work is done.

    Raises:
        ConfigError: one is an input, or exists without `overwrite`.
        ResourceError: one cannot come to be.
    """
    taken = {_file_number(path) for path in inputs} - {None}
    for target in targets:
        check_file(target)
        if _file_number(target) in taken:
            raise ConfigError("an output would overwrite its input", where=target, hint="Choose another name with -o.")
    there = [str(target) for target in targets if os.path.lexists(target)]
    if there and not overwrite:
        where, faults = (targets[0].parent, there) if there[1:] else (there[0], [])
        why = f"{len(there)} of {len(targets)}"
        raise ConfigError("output files exist already", where=where, why=why, faults=faults, hint=hint)


def _file_number(path: str | Path) -> int | None:
    """What tells a file, whatever its names, from others; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return hash((found.st_dev, found.st_ino)) & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class FolderSink:
    """Outputs as files in a folder, each whole or not at all."""

    folder: Path
    kinds: Sequence[str]
    alpha: float

    def save(self, prediction: Prediction, name: str) -> dict[str, Path]:
        """Writes the files."""
        return prediction.save(self.folder, name, self.kinds, self.alpha)

    def commit(self, name: str) -> None:
        """The files are there already."""


@dataclass(frozen=True)
class ArchiveSink:
    """Outputs as members of an archive, in the order of the images."""

    archive: Path
    writer: ArchiveWriter
    kinds: Sequence[str]
    alpha: float
    _encoded: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def save(self, prediction: Prediction, name: str) -> dict[str, Path]:
        """Encodes the members."""
        self._encoded[name] = {kind: prediction.encode(kind, self.alpha) for kind in self.kinds}
        return {kind: output_path(self.archive, name, kind) for kind in self.kinds}

    def commit(self, name: str) -> None:
        """Adds the members."""
        for kind, content in self._encoded.pop(name).items():
            self.writer.add(str(output_path("", name, kind)), content)


Sink = FolderSink | ArchiveSink  # `save` is called in threads, `commit` after it, in the order of the images
