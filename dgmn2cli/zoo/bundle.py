"""Files a user brings instead of a download, or takes away: one, a folder of them, a bundle for a site without network.

A bundle is a plain tar: `dgmn2-bundle.json` first, saying which file is which entry, then `files/SHA256.pth`.

All raise `IntegrityError` for what is damaged or changed meanwhile, `ResourceError` for what cannot be read or written.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.files import HASH_BLOCK, atomic_write, check_file, hash_file, open_regular, read_blocks, to_json
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo.cache import RECORD_LIMIT, FetchedFile, expected_sha256
from dgmn2cli.zoo.fetch import Download, Verify
from dgmn2cli.zoo.manifest import AnyEntry, ZooEntry

INDEX = "dgmn2-bundle.json"
MAX_FILES = 1000  # files of a folder or bundle that are looked at

VerifyFor = Callable[[AnyEntry], Verify]


@dataclass(frozen=True)
class BundleFile:
    """One line of a bundle's index."""

    key: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Index:
    """The first member of a bundle."""

    format: Literal[1]
    files: Annotated[list[BundleFile], Field(max_length=MAX_FILES)]


def adopt_offered(
    path: Path,
    entries: Sequence[AnyEntry],
    *,
    all_wanted: bool,
    cache: Path,
    verify_for: VerifyFor,
    observer: Observer = Silent(),
) -> list[FetchedFile]:
    """Takes what `path` offers into the cache, each file after the same checks as a download.

    `path` is a model file of any name, a folder of such files, or a bundle. Where `all_wanted`, every one of `entries`
    must be there, otherwise at least one.

    Raises:
        IntegrityError: an entry's file is not there, or not what it says.
        ResourceError: `path` cannot be read, or the cache not be written.
    """

    def adopt(entry: AnyEntry, file: Path, checked: str = "") -> FetchedFile:
        with open_regular(file) as stream:
            total, name = os.fstat(stream.fileno()).st_size, str(file.absolute())
            download = Download(entry, cache, (lambda _: checked) if checked else verify_for(entry), observer)
            return download.adopt(read_blocks(stream, name), total, name, checked)

    if is_bundle(path):
        found = _from_bundle(path, entries, cache, verify_for, observer)
    elif path.is_dir() or len(entries) > 1:
        found = [adopt(entry, file, sha256) for entry, file, sha256 in _fitting(path, entries, cache, verify_for)]
    else:  # one file for one entry: its own error says most
        found = [adopt(entries[0], path)]
    missing = [entry.key for entry in entries if entry.key not in {file.key for file in found}]
    if not found or (all_wanted and missing):
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise IntegrityError(
            "no file fits" if not found else "some files are missing",
            where=path,
            why=f"none is a complete checkpoint of {names}",
            hint="Check that the files are whole; a file saved from a web page is often the page itself.",
        )
    return found


def plan_offered(path: Path, entries: Sequence[AnyEntry], *, cache: Path, verify_for: VerifyFor) -> list[str]:
    """What `adopt_offered` would take over, one line a file; nothing is written."""
    if is_bundle(path):
        with _bundle(path) as (_, index):
            wanted = [line for line in index if line.key in {entry.key for entry in entries}]
        return [f"{line.key}: would be adopted from the bundle, {line.size:,} bytes" for line in wanted]
    fitting = _fitting(path, entries, cache, verify_for)
    return [f"{entry.key}: would be adopted from {file}" for entry, file, _ in fitting]


def _fitting(
    path: Path, entries: Sequence[AnyEntry], cache: Path, verify_for: VerifyFor
) -> Iterator[tuple[AnyEntry, Path, str]]:
    """For each entry the first file that fits it and its hash, files that bear its name first; each file only once."""
    left = _files_in(path) if path.is_dir() else [path]
    for entry in entries:
        names = (entry.key, entry.config if isinstance(entry, ZooEntry) else entry.file_name)
        for file in sorted(left, key=lambda file: not any(name.lower() in file.name.lower() for name in names)):
            if sha256 := _fits(file, entry, cache, verify_for):
                yield entry, file, sha256
                left.remove(file)
                break


def _fits(file: Path, entry: AnyEntry, cache: Path, verify_for: VerifyFor) -> str:
    """The file's hash if, as it lies there, it passes as the entry's; else empty."""
    try:
        if not 2 * entry.params <= file.stat().st_size <= entry.size_limit:  # 2 bytes a parameter: half precision
            return ""
        expected = expected_sha256(entry, cache)
        sha256 = verify_for(entry)(file) if expected is None else hash_file(file)
    except (OSError, IntegrityError, NonFiniteError):
        return ""
    return sha256 if expected in (None, sha256) else ""


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
    """Whether `path` is a regular file that begins like a tar whose first member is a bundle's index."""
    if path.is_dir():
        return False
    with open_regular(path) as file:
        return file.read(len(INDEX) + 1) == INDEX.encode() + b"\0"


def check_bundle_target(path: Path) -> None:
    """Refuses, before anything is downloaded, to write a bundle over something that is none."""
    if path.exists() and not (path.is_file() and is_bundle(path)):
        hint = "Choose another name, or remove it first."
        raise ResourceError("the bundle is not written", where=path, why="something else is there", hint=hint)
    check_file(path)


def write_bundle(files: Sequence[FetchedFile], path: Path) -> Path:
    """Writes verified files into a bundle, whole or not at all; the same files give the same bytes."""
    index = to_json(Index(1, [BundleFile(file.key, file.sha256, file.size) for file in files])).encode()

    def write(target: BinaryIO) -> None:
        _begin_member(target, INDEX, len(index))
        target.write(index)
        for file in {file.sha256: file for file in files}.values():
            _begin_member(target, f"files/{file.sha256}.pth", file.size)
            _copy(file, target)
        end = target.tell() + 2 * tarfile.BLOCKSIZE
        target.write(bytes(end - target.tell() + -end % tarfile.RECORDSIZE))

    return atomic_write(path, write)


def copy_to(file: FetchedFile, folder: Path, name: str, overwrite: bool) -> FetchedFile:
    """Copies a verified file into a folder of the user's, hashing what is copied; an equal file there is left alone.

    Raises:
        ResourceError: another file of that name is there, or the folder cannot be written.
        IntegrityError: the file changed meanwhile.
    """
    target = folder / name

    if overwrite or not target.exists():
        atomic_write(target, partial(_copy, file))
    elif not target.is_file() or hash_file(target) != file.sha256:
        hint = "Add --force to replace it, or choose another --dest."
        raise ResourceError("the file is not copied", where=target, why="another file is there", hint=hint)
    return replace(file, path=target)


def _copy(file: FetchedFile, target: BinaryIO) -> None:
    """Copies the content of a verified file, which must still be what was verified."""
    digest, left = hashlib.sha256(), file.size
    with open_regular(file.path) as stream:
        while block := stream.read(min(HASH_BLOCK, left + 1)):
            digest.update(block)
            left -= len(block)
            if left < 0:
                break
            target.write(block)
    if left or digest.hexdigest() != file.sha256:
        raise IntegrityError("the file is no longer what was verified", where=file.path)


def _begin_member(target: BinaryIO, name: str, size: int) -> None:
    """The header of a tar's next member, its predecessor filled up to a whole block."""
    member = tarfile.TarInfo(name)
    member.size = size
    target.write(bytes(-target.tell() % tarfile.BLOCKSIZE) + member.tobuf(tarfile.USTAR_FORMAT))


def _from_bundle(
    path: Path, entries: Sequence[AnyEntry], cache: Path, verify_for: VerifyFor, observer: Observer
) -> list[FetchedFile]:
    """The wanted entries' files out of a bundle. Member names are compared, never used as paths."""
    found = []
    with _bundle(path) as (tar, index):
        for number, member in enumerate(tar):
            if number > MAX_FILES:
                raise _no_bundle(path, f"more than {MAX_FILES:,} members")
            for entry in entries:
                stated = [line.sha256 for line in index if line.key == entry.key]
                sha256 = next((each for each in stated if member.name == f"files/{each}.pth"), None)
                if member.isreg() and sha256 and (stream := tar.extractfile(member)):
                    download = Download(entry, cache, verify_for(entry), observer)
                    name = f"{path.absolute()}: {entry.key}"
                    found.append(download.adopt(read_blocks(stream, path), member.size, name, sha256))
    return found


@contextmanager
def _bundle(path: Path) -> Iterator[tuple[tarfile.TarFile, list[BundleFile]]]:
    """The open tar, and what its index says of each file."""
    with open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                first = tar.next()
                stream = tar.extractfile(first) if first and first.isreg() and first.name == INDEX else None
                if stream is None:
                    raise _no_bundle(path, "it does not begin with an index")
                yield tar, TypeAdapter(Index).validate_json(stream.read(RECORD_LIMIT)).files
        except ValidationError as error:
            raise _no_bundle(path, "its index cannot be read, or is of another format") from error
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise _no_bundle(path, f"it is damaged ({type(error).__name__})") from error


def _no_bundle(path: Path, why: str) -> IntegrityError:
    return IntegrityError("cannot use the bundle", where=path, why=why, hint="Make it again with `download --bundle`.")
