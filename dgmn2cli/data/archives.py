"""Tar archives: the images in them, found without unpacking anything, and archives written member by member."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dgmn2cli.data.files import MOST_ENTRIES, ends_with, is_litter
from dgmn2cli.errors import DataError
from dgmn2cli.files import atomic_file, local_write_errors, open_regular
from dgmn2cli.observer import Observer

HEADER_LIMIT = 1 << 20  # bytes of an extended header; names are shorter
_WHAT, _HINT = "cannot read the archive", "Give a whole, uncompressed tar archive."


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, its first byte and their number."""

    name: str
    first: int
    size: int


class _Headers:
    """An archive as tarfile reads it; the size that a header states is not believed beyond what a header can need."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise tarfile.ReadError(f"a header states {size:,} bytes")
        return self._read(size)


def find_members(path: Path, suffixes: Sequence[str], observer: Observer) -> Iterator[Member]:
    """The files in an archive whose names end in one of `suffixes`, as they come; nothing is unpacked.

    Left out, and counted in a note: links, devices, sparse files, names that lead out of the archive, hidden files,
    files of other names.

    Raises:
        DataError: it is missing, cut, damaged or compressed, or holds no such file, or more than 5,000,000 members.
    """
    left, count, found = Counter[str](), 0, 0
    with open_regular(path, _WHAT, kind=DataError, unreadable=DataError, hint=_HINT) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]  # what it needs of a file
                while (info := tar.next()) is not None:
                    tar.members.clear()  # it would keep all
                    count += 1
                    if info.offset_data + info.size > size:
                        raise tarfile.ReadError(f"it is cut within {info.name}")
                    if count > MOST_ENTRIES:
                        raise tarfile.ReadError(f"it has more than {MOST_ENTRIES:,} members")
                    if kind := _odd(info, suffixes):
                        left[kind] += not info.isdir()
                        continue
                    found += 1
                    yield Member(str(PurePosixPath(info.name)), info.offset_data, info.size)
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset >= size:
                    raise tarfile.ReadError(f"it is cut or damaged at byte {tar.offset:,}")
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(_WHAT, where=path, why=str(error), hint=_HINT) from error
    notes = [f"{path}: left out {number} ({kind})" for kind, number in sorted(left.items()) if number]
    if not found:
        raise DataError("no image in the archive", where=path, why="; ".join(notes) or f"wanted {', '.join(suffixes)}")
    for note in notes:
        observer.note(note)


def _odd(info: tarfile.TarInfo, suffixes: Sequence[str]) -> str:
    """Why a member is no image to read; empty if it is one."""
    name = PurePosixPath(info.name)
    if not info.isreg() or info.issparse():
        return "a link, device or sparse file"
    if name.is_absolute() or ".." in name.parts or "\0" in info.name or not name.parts:
        return "a name that leads out of the archive"
    if any(map(is_litter, name.parts)):
        return "hidden, or left by a desktop"
    return "" if ends_with(info.name, suffixes) else "of another suffix"


class ArchiveWriter:
    """Adds files to an archive; the same files in the same order give the same bytes."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, content: bytes) -> None:
        """A member more."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        self._tar.addfile(info, io.BytesIO(content))


@contextmanager
def write_archive(path: Path) -> Iterator[ArchiveWriter]:
    """An archive that gets the name `path` when the block ends well; errors as `atomic_file`."""
    with (
        atomic_file(path) as file,
        local_write_errors(path),
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        yield ArchiveWriter(tar)
