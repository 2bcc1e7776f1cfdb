"""Getting an entry's file: from the cache if its hash holds, else from its sources, checked, then published.

Nothing is published that does not have the known hash or has not passed the caller's structural check as it lies on
disk. The lock taken here only saves work: correctness never depends on it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from threading import RLock
from typing import Literal

import requests
from filelock import FileLock, Timeout

from dgmn2cli import files
from dgmn2cli.errors import Dgmn2Error, IntegrityError, NetworkError, NonFiniteError, ResourceError
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.threads import aside
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.cache import FetchedFile
from dgmn2cli.zoo.http import Client, Limits, TemporaryError, place_of, read_block
from dgmn2cli.zoo.manifest import AnyEntry, Source, shown

# raises a Dgmn2Error unless the file is the entry's model, complete and finite; gives the sha256 of what it read
Verify = Callable[[Path], str]
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")  # how a web page begins
OLD = 7 * 86400  # seconds after which an abandoned part of whatever entry is swept away
UNTAGGED = "-"  # the server did not say which version it sent
TURN_LIMIT = 300.0  # seconds to wait for another process that fetches the same file
ELSEWHERE = (
    "Run `dgmn2 download {0}` with the network on, or adopt a file (or a bundle) that was fetched elsewhere: "
    "`dgmn2 download {0} --from FILE`."
)
BY_HAND = "Save it with a browser (`dgmn2 zoo show {0}` has the address); then `dgmn2 download {0} --from FILE`."


def fetch(
    entry: AnyEntry,
    *,
    cache: Path,
    verify: Verify,
    offline: bool = False,
    force: bool = False,
    sources: Sequence[Source] | None = None,
    limits: Limits = Limits(),
    observer: Observer = Silent(),
) -> FetchedFile:
    """The entry's file in the cache, fetched if it is not there or damaged.

    Args:
        verify: called with the path of a file whose hash is not known.
        offline: do not touch the network; `file` sources are still used.
        force: fetch even if a good file is there.
        sources: other sources than the entry's, tried in order.
        observer: told the bytes while hashing and downloading, and what is tried next.

    Raises:
        NetworkError: no source gave the file, or it is not here and the network is off.
        IntegrityError, NonFiniteError: what the sources gave is not the file.
        ResourceError: disk full, no permission.
    """
    if not force and (ready := caching.from_cache(entry, cache, observer)):
        return ready
    usable = [s for s in (entry.sources if sources is None else sources) if not offline or s.type == "file"]
    if usable:
        download = Download(entry, cache, verify, observer, limits)
        with download.turn():
            return (None if force else caching.from_cache(entry, cache)) or download.from_sources(usable)
    found, hint = caching.locate(entry, cache), ELSEWHERE.format(entry.key)
    if found and not force:
        why = "it does not have the hash it must have"
        raise IntegrityError("the cached file is damaged", where=found.path, why=why, hint=hint)
    what = f"cannot download it again, and {found.path} is there" if found else "the weights are not on disk"
    raise NetworkError(what, where=entry.key, why="the network is switched off (--offline, DGMN2_OFFLINE)", hint=hint)


@dataclass
class Download:
    """One entry's file on its way into the cache; the first fields are the arguments of `fetch`."""

    entry: AnyEntry
    cache: Path
    verify: Verify
    observer: Observer = Silent()
    limits: Limits = Limits()
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits, for a while, if another process fetches the entry; goes ahead where there is no lock to be had."""
        lock = FileLock(self.cache / "parts" / f"{self.entry.key}.lock")
        with suppress(OSError, NotImplementedError):  # whether the cache can be written shows when it is written
            (self.cache / "parts").mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.observer.note(f"Another process fetches {self.entry.key}; waiting for it.")
                lock.acquire(timeout=min(TURN_LIMIT, self.limits.total), poll_interval=0.1)
        try:
            yield
        finally:
            lock.release()

    def from_sources(self, sources: Sequence[Source]) -> FetchedFile:
        """The file from the first source that gives it; errors as `fetch`."""
        failures: list[Dgmn2Error] = []
        for number, source in enumerate(sources, 1):
            try:
                return self._from_server(source) if source.type != "file" else self._from_file(source.location)
            except (NetworkError, IntegrityError, NonFiniteError) as error:
                error.hint = error.hint or BY_HAND.format(self.entry.key)
                failures.append(error)
                if number < len(sources):
                    self.observer.note(f"Source {number} of {self.entry.key} failed, trying the next: {error}")
        worst = next((failure for failure in failures if not isinstance(failure, NetworkError)), failures[-1])
        if len(failures) > 1:
            worst.faults = tuple(f"source {i}: {failure}" for i, failure in enumerate(failures, 1))
        raise worst

    def adopt(self, blocks: Iterable[bytes], total: int, name: str, stated: str = "") -> FetchedFile:
        """Takes the `total` bytes of a file called `name`, whose hash is said to be `stated`, as the entry's."""
        source = Source("file", name)
        with self._part(source) as part:
            self._fill(part, blocks, total, name)
            return self._finish(source, part, stated)

    def _from_file(self, path: str) -> FetchedFile:
        with files.open_regular(path, "cannot read the source", kind=NetworkError, unreadable=NetworkError) as file:
            return self.adopt(files.read_blocks(file, path), os.fstat(file.fileno()).st_size, path)

    def _from_server(self, source: Source) -> FetchedFile:
        """The file from `source`, which is asked again after failures that may pass."""
        with self._part(source) as part, Client(self.limits) as client:
            part.take_over()
            for attempt in count():  # each in a thread aside: no server holds us by sending byte after byte
                left, continued = max(0, self.began + self.limits.total - time.monotonic()), part.size > 0
                try:
                    aside(partial(self._receive, client, source, part)).result(left)
                    return self._finish(source, part)
                except TimeoutError as error:
                    what, why = "the download took too long", f"more than {self.limits.total:g} s in all"
                    hint = "Run it again to go on where it stopped, or allow more with --timeout."
                    raise NetworkError(what, where=place_of(source.address), why=why, hint=hint) from error
                except (TemporaryError, IntegrityError, NonFiniteError) as error:
                    passing, said = isinstance(error, TemporaryError), getattr(error, "retry_after", None)
                    usual = self.limits.backoff * 2**attempt * random.uniform(0.75, 1.25)
                    pause = usual if said is None else min(60, said)
                    if not (passing or continued) or attempt >= self.limits.retries or pause >= left:
                        raise
                    if part.tag == UNTAGGED or not passing:
                        part.begin()  # what came is of no use, or its pieces do not belong together
                    time.sleep(pause)
        raise AssertionError  # the last attempt has returned or raised

    def _receive(self, client: Client, source: Source, part: Part) -> None:
        """Asks `source` for what `part` lacks."""
        opened = client.opened_drive_file if source.type == "gdrive" else client.opened
        with opened(source.location, {"Range": f"bytes={part.size}-"} if part.size else {}) as response:
            self._take(response, part)

    def _take(self, response: requests.Response, part: Part) -> None:
        """Writes the body into `part`, behind what is there if the response continues it."""
        place, headers = place_of(response.url), response.headers
        total, tag = response.raw.length_remaining, version_tag(response)
        if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            why = f"it is compressed ({shown(headers['Content-Encoding'])}), which was not asked for"
            raise NetworkError("the answer cannot be used", where=place, why=why)
        if response.status_code == 200:
            part.begin(tag)
        elif not (total := whole_size(response, part, tag)):
            part.begin()
            why = "the rest offered does not fit the beginning"
            raise TemporaryError("the download cannot be continued", where=place, why=why)
        blocks = iter(partial(read_block, response), b"")
        first = next(blocks, b"")
        if part.size == 0 and first.lstrip()[:100].lower().startswith(PAGE):
            why = "a login, quota or error page, most likely"
            raise NetworkError("the server sent a web page instead of the file", where=place, why=why)
        self._fill(part, chain([first], blocks), total, place)

    def _part(self, source: Source) -> Part:
        return Part(self.cache / "parts", f"{self.entry.key}@{_short_hash(f'{source.type}:{source.location}')}")

    def _fill(self, part: Part, blocks: Iterable[bytes], total: int | None, where: str) -> None:
        """Writes `blocks` behind what `part` holds; `total` bytes are announced in all."""
        limit, free = self.entry.size_limit, shutil.disk_usage(self.cache).free
        too_large = IntegrityError(
            "the file is too large to be the model", where=where, why=f"wanted at most {limit:,} bytes"
        )
        if total and total > limit:
            raise too_large
        if total and total - part.size > free:
            why, hint = f"{total / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free", "Free some, or use --cache DIR."
            raise ResourceError("not enough disk space", where=self.cache, why=why, hint=hint)
        self.observer.begin(self.entry.key, total, done=part.size, unit="bytes")
        for block in blocks:
            if part.size + len(block) > limit:
                raise too_large
            part.append(block)
            self.observer.advance(done=part.size)

    def _finish(self, source: Source, part: Part, stated: str = "") -> FetchedFile:
        """Publishes `part` if its content is the entry's: by every hash that is known, else by structure."""
        entry, size, sha256 = self.entry, part.size, ""
        known = caching.expected_sha256(entry, self.cache)  # another process may have been quicker
        pin: Literal["pinned", "recorded", "new"] = "pinned" if entry.sha256 else "recorded" if known else "new"
        try:
            if entry.size is not None and entry.size != size:
                why = f"it has {size:,} bytes, the manifest says {entry.size:,}"
                raise IntegrityError("the file is not the model", why=why)
            if (wanted := known or stated) and (sha256 := files.hash_file(part.path)) != wanted:
                raise IntegrityError("the file is not the model", why=f"its sha256 is {sha256}, wanted {wanted}")
            if not known:
                sha256 = self.verify(part.path)
        except (IntegrityError, NonFiniteError) as error:
            error.where = f"{entry.key} from {source.address}"
            if pin == "recorded":
                record = caching.record_path(entry, self.cache)
                error.hint = f"If the publisher replaced it, delete {record} and download again."
            elif source.type != "file":
                error.hint = BY_HAND.format(entry.key)
            raise
        target = caching.file_path(self.cache, sha256)
        part.publish(target)
        caching.record(entry, self.cache, sha256=sha256, size=size, source=source.address)
        return FetchedFile(entry.key, target, sha256, size, source.address, pin, False, time.monotonic() - self.began)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def version_tag(response: requests.Response) -> str:
    """A hash of what the server calls this version of its content: a strong entity tag, else the date of its change."""
    etag = response.headers.get("ETag", "")
    name = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return _short_hash(name) if name else UNTAGGED


def whole_size(response: requests.Response, part: Part, tag: str) -> int:
    """Bytes of the content whose rest, from the end of `part`, a 206 answer has; 0 if it has anything else."""
    said = re.fullmatch(r"bytes +([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or said is None or not tag == part.tag != UNTAGGED:
        return 0
    start, last, total = map(int, said.groups())
    whole = start == part.size > 0 and last == total - 1
    return total if whole and response.raw.length_remaining in (None, total - start) else 0


class Part:
    """A download under way, written by this process only: `size` bytes so far of the version `tag`.

    `KEY@SOURCE.TAG.PID.RANDOM.part`: TAG is a hash of what the server called this version of its content, so that a
    rest is only added to a beginning of the same content. A writer holds a lock on its part, which the kernel drops
    however the process ends; the bytes of an abandoned part are *copied* into the new writer's own file, so that even
    where locks do not work no two processes ever write one file. Whatever cannot be written is a `ResourceError`.

    At the end of its `with` block it is published or removed; what a failure of the network, or whatever ends the
    process, left of a named version stays for the next run.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._stem, self._turn, self.tag, self.size = stem, RLock(), UNTAGGED, 0
        with files.local_write_errors(folder / stem):
            folder.mkdir(parents=True, exist_ok=True)
            self.path, descriptor = files.create_part(folder, f"{stem}.{UNTAGGED}")
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def begin(self, tag: str = UNTAGGED) -> None:
        """Starts anew, for the version `tag`."""
        with self._turn, files.local_write_errors(self.path):
            self._file.truncate(self._file.seek(0))  # a ValueError once the part is closed
            process = self.path.name.removeprefix(f"{self._stem}.{self.tag}.")
            self.path = self.path.rename(self.path.with_name(f"{self._stem}.{tag}.{process}"))
            self.tag, self.size = tag, 0

    def take_over(self) -> None:
        """Copies what a process that is gone left of a named version, and removes it."""
        for old in self.path.parent.glob(f"{self._stem}.{'[0-9a-f]' * 12}.*.part"):
            with files.local_write_errors(old), files.abandoned(old) as file:
                if file is not None and self.size == 0:
                    self.begin(old.name.removeprefix(f"{self._stem}.")[:12])
                    while block := file.read(files.HASH_BLOCK):
                        self.append(block)
                    old.unlink(missing_ok=True)

    def append(self, block: bytes) -> None:
        """Writes `block` at the end."""
        view = memoryview(block)
        with self._turn, files.local_write_errors(self.path):
            while view:
                view = view[self._file.write(view) or 0 :]
        self.size += len(block)

    def publish(self, target: Path) -> None:
        """Renames the part to `target`, durably, and sweeps away others' of its entry and whatever is a week old."""
        with files.local_write_errors(target):
            os.fsync(self._file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
            files.sync_folder(target.parent)
        key = self._stem.partition("@")[0]
        with suppress(OSError):
            for path in self.path.parent.glob("*.part"):
                if path.name.startswith(f"{key}@") or time.time() - path.lstat().st_mtime > OLD:
                    with files.abandoned(path) as file:
                        if file is not None:
                            path.unlink(missing_ok=True)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        passing = isinstance(error, NetworkError) or (error is not None and not isinstance(error, Exception))
        with self._turn, suppress(OSError):  # a thread that is held by a server may still have it
            self._file.close()
            if not (passing and self.size > 0 and self.tag != UNTAGGED):
                self.path.unlink(missing_ok=True)
