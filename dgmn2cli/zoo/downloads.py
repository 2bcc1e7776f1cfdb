"""Owns a download run: which source is meant, several entries of which some may fail, copies for the user's folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

from dgmn2cli.errors import ConfigError, Dgmn2Error, IntegrityError, ResourceError
from dgmn2cli.files import HASH_BLOCK, atomic_write, hash_file, open_regular
from dgmn2cli.zoo.fetch import FetchedFile
from dgmn2cli.zoo.manifest import AnyEntry, Source, shown
from dgmn2cli.zoo.parse import DRIVE_ID, url_fault


@dataclass(frozen=True)
class Failure:
    """An entry that could not be had: its key, the message, the exit code it stands for."""

    key: str
    error: str
    exit_code: int


@dataclass(frozen=True)
class DownloadReport:
    """The outcome of a download run.

    Attributes:
        files: what is there now, verified.
        failures: what is not.
        bundle: the bundle written, None if none was asked for.
    """

    files: tuple[FetchedFile, ...]
    failures: tuple[Failure, ...] = ()
    bundle: Path | None = None


def collect(
    entries: Sequence[AnyEntry], get: Callable[[AnyEntry], FetchedFile]
) -> tuple[DownloadReport, Dgmn2Error | None]:
    """Gets every entry; one that fails does not keep the others from being got.

    Returns:
        The report, and the error to raise once it has been shown: the only failure itself, or one of its kind that
        names all of them.
    """
    files: list[FetchedFile] = []
    errors: list[tuple[str, Dgmn2Error]] = []
    for entry in entries:
        try:
            files.append(get(entry))
        except Dgmn2Error as error:
            errors.append((entry.key, error))
    failures = tuple(Failure(key, str(error), error.exit_code) for key, error in errors)
    report = DownloadReport(tuple(files), failures)
    if len(errors) <= 1:
        return report, errors[0][1] if errors else None
    done = "The others are done; run it again for these." if files else "Nothing was downloaded."
    summary = type(errors[0][1])(
        f"{len(errors)} of {len(entries)} downloads failed",
        hint=done,
        faults=[f"{failure.key}: {failure.error}" for failure in failures],
    )
    return report, summary


def copy_to(file: FetchedFile, folder: Path, name: str, overwrite: bool) -> FetchedFile:
    """Copies a verified file into a folder of the user's, hashing what is copied; an equal file there is left alone.

    Raises:
        ResourceError: another file of that name is there, or the folder cannot be written.
        IntegrityError: the file changed meanwhile.
    """
    target = folder / name
    if target.exists() and not overwrite:
        if not target.is_file() or hash_file(target) != file.sha256:
            hint = "Add --force to replace it, or choose another --dest."
            raise ResourceError("the file is not copied", where=target, why="another file is there", hint=hint)
        return replace(file, path=target)

    def write(stream: BinaryIO) -> None:
        digest = hashlib.sha256()
        with open_regular(file.path) as content:
            while block := content.read(HASH_BLOCK):
                digest.update(block)
                stream.write(block)
        if digest.hexdigest() != file.sha256:
            raise IntegrityError("the file changed while it was copied", where=file.path)

    return replace(file, path=atomic_write(target, write))


def choose_source(entry: AnyEntry, text: str) -> Source:
    """The source a user names: its number in the manifest, from 1, or a URL.

    Raises:
        ConfigError: no such number, or no URL that may be used.
    """
    if re.fullmatch(r"[0-9]{1,3}", text):
        if 1 <= int(text) <= len(entry.sources):
            return entry.sources[int(text) - 1]
        why = f"it has {len(entry.sources)}"
        raise ConfigError(f"no source {text}", where=entry.key, why=why, hint=f"See `dgmn2 zoo show {entry.key}`.")
    if fault := url_fault(text):
        hint = "Wanted a number, or an https address."
        raise ConfigError("cannot use the source", where=shown(text), why=f"it {fault}", hint=hint)
    return Source("gdrive", drive) if (drive := _drive_id(text)) else Source("https", text)


def _drive_id(url: str) -> str:
    """The file id in a Google Drive link, empty if it is none."""
    parts = urlsplit(url)
    if parts.hostname not in ("drive.google.com", "docs.google.com"):
        return ""
    match = re.match(r"/file/(?:u/[0-9]+/)?d/([^/]+)", parts.path)
    identity = match[1] if match else parse_qs(parts.query).get("id", [""])[0]
    return identity if DRIVE_ID.fullmatch(identity) else ""
