"""Owns files a user brings instead of a download: one file, a folder of them, or a bundle for a site without network.

A bundle is a plain tar: `dgmn2-bundle.json` first, saying which file is which entry, then `files/SHA256.pth`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.files import atomic_write, check_file, hash_file, open_regular, to_json
from dgmn2cli.zoo.cache import RECORD_LIMIT, expected_sha256
from dgmn2cli.zoo.fetch import FetchedFile, Verify, adopt, adopt_stream, size_limit
from dgmn2cli.zoo.manifest import AnyEntry, ZooEntry
from dgmn2cli.zoo.transfer import Progress

INDEX = "dgmn2-bundle.json"
FORMAT = 1
MAX_FILES = 1000  # files of a folder or bundle that are looked at
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError)
_REFUSED = (IntegrityError, NonFiniteError)

VerifyFor = Callable[[AnyEntry], Verify]


@dataclass(frozen=True)
class BundleFile:
    """One line of a bundle's index."""

    key: str
    sha256: str
    size: int


def adopt_offered(
    path: Path,
    entries: Sequence[AnyEntry],
    *,
    all_wanted: bool,
    cache: Path,
    verify_for: VerifyFor,
    progress: Progress | None = None,
) -> list[FetchedFile]:
    """Takes what `path` offers into the cache, each file after the same checks as a download.

    Args:
        path: a model file of any name, a folder of such files, or a bundle.
        entries: the entries looked for.
        all_wanted: every one of `entries` must be there; otherwise at least one.
        cache: the cache folder.
        verify_for: gives an entry's structural check.
        progress: told the bytes of the file under way.

    Raises:
        IntegrityError: an entry's file is not there, or not what it says.
        ResourceError: `path` cannot be read, or the cache not be written.
    """
    if is_bundle(path):
        found = _from_bundle(path, entries, cache, verify_for, progress)
    else:
        files = _files_in(path) if path.is_dir() else [path]
        if path.is_dir() or len(entries) > 1:
            found = _from_files(files, entries, cache, verify_for, progress)
        else:  # one file for one entry: its own error says most
            found = [adopt(entries[0], path, cache=cache, verify=verify_for(entries[0]), progress=progress)]
    missing = [entry.key for entry in entries if entry.key not in {file.key for file in found}]
    if not found or (all_wanted and missing):
        raise IntegrityError(
            "no file fits" if not found else "some files are missing",
            where=path,
            why=f"none is a complete checkpoint of {_names(missing)}",
            hint="Check that the files are whole; a file saved from a web page is often the page itself.",
        )
    return found


def plan_offered(path: Path, entries: Sequence[AnyEntry], *, cache: Path, verify_for: VerifyFor) -> list[str]:
    """What `adopt_offered` would take over, one line a file; nothing is written.

    Raises:
        IntegrityError: `path` is a damaged bundle.
        ResourceError: it cannot be read.
    """
    if is_bundle(path):
        with _bundle(path) as (_, index):
            wanted = [line for line in index if line.key in {entry.key for entry in entries}]
        return [f"{line.key}: would be adopted from the bundle, {line.size:,} bytes" for line in wanted]
    lines = []
    left = _files_in(path) if path.is_dir() else [path]
    for entry, file in _fitting(left, entries, cache, verify_for):
        lines.append(f"{entry.key}: would be adopted from {file}")
    return lines


def _names(keys: Sequence[str]) -> str:
    more = len(keys) - 4
    return ", ".join(keys[:4]) + (f" and {more} more" if more > 0 else "")


def _from_files(
    files: list[Path], entries: Sequence[AnyEntry], cache: Path, verify_for: VerifyFor, progress: Progress | None
) -> list[FetchedFile]:
    """Adopts what fits."""
    return [
        adopt(entry, file, cache=cache, verify=verify_for(entry), progress=progress)
        for entry, file in _fitting(files, entries, cache, verify_for)
    ]


def _fitting(
    files: list[Path], entries: Sequence[AnyEntry], cache: Path, verify_for: VerifyFor
) -> Iterator[tuple[AnyEntry, Path]]:
    """For each entry the first file that fits it, files that bear its name first; a file fits one entry only."""
    left = list(files)
    for entry in entries:
        for file in sorted(left, key=lambda file: not _named_like(file, entry)):
            if _fits(file, entry, cache, verify_for):
                yield entry, file
                left.remove(file)
                break


def _fits(file: Path, entry: AnyEntry, cache: Path, verify_for: VerifyFor) -> bool:
    """Whether the file, as it lies there, would pass as the entry's."""
    try:
        size = file.stat().st_size
    except OSError:
        return False
    if not 2 * entry.params <= size <= size_limit(entry):  # 2 bytes a parameter: half precision
        return False
    expected = expected_sha256(entry, cache)
    try:
        if expected is not None:
            return hash_file(file) == expected
        verify_for(entry)(file)
    except _REFUSED:
        return False
    return True


def _named_like(file: Path, entry: AnyEntry) -> bool:
    names = (entry.key, entry.config) if isinstance(entry, ZooEntry) else (entry.key, entry.file_name)
    return any(name.lower() in file.name.lower() for name in names)


def _files_in(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ResourceError("cannot read the folder", where=folder, why=error.strerror or str(error)) from error
    if len(files) > MAX_FILES:
        why = f"it holds {len(files):,} files, at most {MAX_FILES:,} are looked at"
        raise ConfigError("the folder is too large", where=folder, why=why, hint="Name the file itself.")
    return files


def is_bundle(path: Path) -> bool:
    """Whether `path` is a regular file that begins like a tar whose first member is a bundle's index.

    Raises:
        ResourceError: it is missing or may not be read.
    """
    if path.is_dir():
        return False
    with open_regular(path) as file:
        return file.read(len(INDEX) + 1) == INDEX.encode() + b"\0"


def check_bundle_target(path: Path) -> None:
    """Refuses, before anything is downloaded, to write a bundle over something that is none.

    Raises:
        ResourceError: something else is there, or its folder cannot come to be.
    """
    if path.exists() and not (path.is_file() and is_bundle(path)):
        hint = "Choose another name, or remove it first."
        raise ResourceError("the bundle is not written", where=path, why="something else is there", hint=hint)
    check_file(path)


def write_bundle(files: Sequence[FetchedFile], path: Path) -> Path:
    """Writes verified files into a bundle, whole or not at all; the same files give the same bytes.

    Raises:
        IntegrityError: a file changed meanwhile.
        ResourceError: the bundle cannot be written.
    """
    index = {"format": FORMAT, "files": [BundleFile(file.key, file.sha256, file.size) for file in files]}

    def write(target: BinaryIO) -> None:
        with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, INDEX, to_json(index).encode())
            for file in {file.sha256: file for file in files}.values():
                if hash_file(file.path) != file.sha256:
                    why = "its content is no longer what was verified"
                    raise IntegrityError("cannot bundle the file", where=file.path, why=why)
                member = tarfile.TarInfo(f"files/{file.sha256}.pth")
                member.size = file.size
                with open_regular(file.path) as stream:
                    tar.addfile(member, stream)

    return atomic_write(path, write)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _from_bundle(
    path: Path, entries: Sequence[AnyEntry], cache: Path, verify_for: VerifyFor, progress: Progress | None
) -> list[FetchedFile]:
    """The wanted entries' files out of a bundle. Member names are compared, never used as paths."""
    wanted = {entry.key: entry for entry in entries}
    found = []
    with _bundle(path) as (tar, index):
        by_member = {f"files/{line.sha256}.pth": line.sha256 for line in index}
        for number, member in enumerate(tar):
            if number > MAX_FILES:
                raise _no_bundle(path, f"more than {MAX_FILES:,} members")
            if not member.isreg() or member.name not in by_member:
                continue
            for line in index:
                entry = wanted.get(line.key)
                stream = tar.extractfile(member)
                if entry is None or line.sha256 != by_member[member.name] or stream is None:
                    continue
                name = f"{path.absolute()}: {line.key}"
                found.append(
                    adopt_stream(
                        entry, stream, member.size, name, cache=cache, verify=verify_for(entry), progress=progress
                    )
                )
    return found


@contextmanager
def _bundle(path: Path) -> Iterator[tuple[tarfile.TarFile, list[BundleFile]]]:
    """The open tar, and its index.

    Raises:
        IntegrityError: it is no bundle, or damaged.
    """
    with open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                first = tar.next()
                stream = tar.extractfile(first) if first and first.isreg() and first.name == INDEX else None
                if stream is None:
                    raise _no_bundle(path, "it does not begin with an index")
                yield tar, _read_index(stream, path)
        except _TAR_ERRORS as error:
            raise _no_bundle(path, f"it is damaged ({type(error).__name__})") from error


def _read_index(stream: IO[bytes], path: Path) -> list[BundleFile]:
    try:
        index = json.loads(stream.read(RECORD_LIMIT).decode())
        lines = [BundleFile(str(f["key"]), str(f["sha256"]), int(f["size"])) for f in index["files"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_bundle(path, "its index cannot be read") from error
    if index.get("format") != FORMAT or len(lines) > MAX_FILES:
        raise _no_bundle(path, "its index is of another format")
    return lines


def _no_bundle(path: Path, why: str) -> IntegrityError:
    return IntegrityError("cannot use the bundle", where=path, why=why, hint="Make it again with `download --bundle`.")
