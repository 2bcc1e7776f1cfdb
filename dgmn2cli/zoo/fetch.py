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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import requests
from filelock import FileLock, Timeout
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from dgmn2cli.errors import Dgmn2Error, IntegrityError, NetworkError, NonFiniteError, ResourceError
from dgmn2cli.files import HASH_BLOCK, hash_file, open_regular
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo import drive
from dgmn2cli.zoo.http import AGENT, Client, Limits, TemporaryError, place_of
from dgmn2cli.zoo.manifest import AnyEntry, Source, shown
from dgmn2cli.zoo.parts import UNTAGGED, Part, sweep

# raises a Dgmn2Error unless the file is the entry's model, complete and finite; gives the sha256 of what it read
Verify = Callable[[Path], str]
BYTES_PER_PARAM = 15  # float32 weights and Adam's two moments, and a quarter more
OVERHEAD = 64 << 20  # bytes a file may have beyond its tensors
TURN_LIMIT = 300.0  # seconds to wait for another process that fetches the same file
BY_HAND = "Save it with a browser (`dgmn2 zoo show {0}` has the address); then `dgmn2 download {0} --from FILE`."


@dataclass(frozen=True)
class FetchedFile:
    """An entry's file in the cache, its hash just computed."""

    key: str
    path: Path
    sha256: str
    size: int  # bytes
    source: str  # where it came from, in words
    pin: Literal["pinned", "recorded", "new"]  # its hash is the manifest's, the one noted earlier, or noted now
    cached: bool  # it was there already
    seconds: float


def fetch(
    entry: AnyEntry,
    *,
    cache: Path,
    verify: Verify,
    offline: bool = False,
    force: bool = False,
    sources: Sequence[Source] | None = None,
    limits: Limits | None = None,
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
    if not force and (ready := from_cache(entry, cache, observer)):
        return ready
    usable = [s for s in (entry.sources if sources is None else sources) if not offline or s.type == "file"]
    if not usable:
        raise _nothing_to_ask(entry, cache, force)
    download = Download(entry, cache, verify, observer, limits)
    with download.turn():
        return (None if force else from_cache(entry, cache)) or download.from_sources(usable)


def from_cache(entry: AnyEntry, cache: Path, observer: Observer = Silent()) -> FetchedFile | None:
    """The entry's file if the cache holds it and its content has the hash it must have; None otherwise.

    Raises:
        ResourceError: it may not be read.
    """
    began, found = time.monotonic(), caching.locate(entry, cache)
    if found is None:
        return None
    observer.begin(entry.key, found.size, unit="bytes")
    if hash_file(found.path, observer.advance) != found.sha256:
        observer.note(f"The cached file of {entry.key} is damaged: {found.path}")
        return None
    seconds = time.monotonic() - began
    return FetchedFile(entry.key, found.path, found.sha256, found.size, found.source, found.pin, True, seconds)


def size_limit(entry: AnyEntry) -> int:
    """Bytes the entry's file may have."""
    return entry.size or entry.params * BYTES_PER_PARAM + OVERHEAD


def _nothing_to_ask(entry: AnyEntry, cache: Path, force: bool) -> Dgmn2Error:
    """The error when the network is off and there is no good file, or another one was asked for."""
    key, off = entry.key, "the network is switched off (--offline, DGMN2_OFFLINE)"
    found = caching.locate(entry, cache)
    if force and found:
        hint = f"Leave out --force and --source: a file is there, {found.path}."
        return NetworkError("cannot download it again", where=key, why=off, hint=hint)
    hint = f"Switch the network on and run `dgmn2 download {key}`; or fetch the file elsewhere, alone or as a bundle "
    hint += f"(`dgmn2 download {key} --bundle TAR`), and adopt it here with `dgmn2 download {key} --from FILE`."
    if found:
        why = "it does not have the hash it must have"
        return IntegrityError("the cached file is damaged", where=found.path, why=why, hint=hint)
    return NetworkError("the weights are not on disk", where=key, why=off, hint=hint)


class Download:
    """One entry's file on its way into the cache; the arguments are those of `fetch`."""

    def __init__(
        self, entry: AnyEntry, cache: Path, verify: Verify, observer: Observer, limits: Limits | None = None
    ) -> None:
        self.entry, self.cache, self.parts, self.verify = entry, cache, cache / "parts", verify
        self.limits, self.observer = limits or Limits(), observer
        self.known = caching.expected_sha256(entry, cache)
        self.began = time.monotonic()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits, for a while, if another process fetches the entry; goes ahead where there is no lock to be had."""
        lock = FileLock(self.parts / f"{self.entry.key}.lock")
        with suppress(OSError, NotImplementedError):  # whether the cache can be written shows when it is written
            self.parts.mkdir(parents=True, exist_ok=True)
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
                return self._from_source(source)
            except (NetworkError, IntegrityError, NonFiniteError) as error:
                error.hint = error.hint or BY_HAND.format(self.entry.key)
                failures.append(error)
                if number < len(sources):
                    self.observer.note(f"Source {number} of {self.entry.key} failed, trying the next: {error}")
        if len(failures) == 1:
            raise failures[0]
        worst = next((failure for failure in failures if not isinstance(failure, NetworkError)), failures[-1])
        raise type(worst)(
            "no source gives the file",
            where=self.entry.key,
            why=f"{len(failures)} were tried, see above",
            hint=BY_HAND.format(self.entry.key),
            faults=[f"source {i}: {failure}" for i, failure in enumerate(failures, 1)],
        )

    def adopt(self, stream: IO[bytes], total: int, name: str, stated: str = "", verified: bool = False) -> FetchedFile:
        """Takes the `total` bytes of an open file called `name` into the cache as the entry's.

        `stated` is the hash that whoever offers it says it has; `verified` says that such content has passed the check.
        """
        source = Source("file", name)
        part = Part(self.parts, self._stem(source))
        try:
            self._copy(stream, total, part, name)
            return self._finish(source, part, stated, verified)
        except BaseException:
            part.discard()
            raise

    def _stem(self, source: Source) -> str:
        return f"{self.entry.key}@{hashlib.sha256(f'{source.type}:{source.location}'.encode()).hexdigest()[:12]}"

    def _from_source(self, source: Source) -> FetchedFile:
        if source.type == "file":
            what = "cannot read the source"
            with open_regular(source.location, what, kind=NetworkError, unreadable=NetworkError) as file:
                return self.adopt(file, os.fstat(file.fileno()).st_size, source.location)
        part = Part(self.parts, self._stem(source))
        agent = drive.AGENT if source.type == "gdrive" else AGENT
        try:
            with closing(Client(self.limits, self.began + self.limits.total, agent)) as client:
                while True:
                    self._transfer(client, source, part)
                    try:
                        return self._finish(source, part)
                    except (IntegrityError, NonFiniteError):
                        if not part.continued:
                            raise
                        part.restart()  # the pieces do not belong together; once more in one piece
        except BaseException as error:
            interrupted = isinstance(error, NetworkError) or not isinstance(error, Exception)
            if interrupted and part.size and self._continuable(part):
                part.keep()
            else:
                part.discard()
            raise

    def _continuable(self, part: Part) -> bool:
        """Whether a rest can be known to belong to the part: by the version's name, or by the hash of the whole."""
        return part.tag != UNTAGGED or self.known is not None

    def _transfer(self, client: Client, source: Source, part: Part) -> None:
        """Fills `part` from `source`, trying again after failures that may pass."""
        retry = Retry(total=self.limits.retries, backoff_factor=self.limits.backoff)
        opened = drive.opened_drive_file if source.type == "gdrive" else Client.opened
        while True:
            if not self._continuable(part):
                part.restart()
            headers = {"Range": f"bytes={part.size}-"} if part.size else {}
            try:
                with opened(client, source.location, headers) as (response, url):
                    self._receive(client, response, url, part)
                return
            except TemporaryError as error:
                pause = retry.get_backoff_time() * random.uniform(0.75, 1.25)
                with suppress(InvalidHeader, ValueError, OverflowError):
                    pause = min(60, retry.parse_retry_after(error.retry_after)) if error.retry_after else pause
                if retry.total == 0 or pause >= client.left:
                    raise
                retry = retry.increment(error=error)
                time.sleep(pause)

    def _receive(self, client: Client, response: requests.Response, url: str, part: Part) -> None:
        """Writes the body into `part`, behind what is there if the response continues it, and checks its length."""
        place, limit = place_of(url), size_limit(self.entry)
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            why = f"it is compressed ({shown(encoding)}), which was not asked for"
            raise NetworkError("the answer cannot be used", where=place, why=why)
        tag, total = version_tag(response), _length(response)
        if response.status_code == 200:
            part.restart()
            part.mark(tag)
        elif fits(response, part, tag, self.known is not None):
            total, part.continued = int(response.headers["Content-Range"].split("/")[1]), True
        else:
            part.restart()
            why = "the rest offered does not fit the beginning"
            raise TemporaryError("the download cannot be continued", where=place, why=why)
        if total is not None and total > limit:
            part.restart()
            why = f"{total:,} bytes announced, at most {limit:,} expected"
            raise NetworkError("the file is too large", where=place, why=why)
        self._check_space((total or 0) - part.size)
        page = response.headers.get("Content-Type", "").lower().startswith("text/html")
        self.observer.begin(self.entry.key, total, done=part.size, unit="bytes")
        while block := client.read(response, url):
            if part.size == 0 and (page or looks_like_page(block[:512])):
                why = "a login, quota or error page, most likely"
                raise NetworkError("the server sent a web page instead of the file", where=place, why=why)
            if part.size + len(block) > limit:
                part.restart()
                raise NetworkError("the file is too large", where=place, why=f"more than {limit:,} bytes came")
            part.append(block)
            self.observer.advance(done=part.size)
        if total is not None and part.size != total:
            raise TemporaryError(
                "the download is incomplete", where=place, why=f"{part.size:,} of {total:,} bytes came"
            )

    def _check_space(self, needed: int) -> None:
        with suppress(OSError):
            free = shutil.disk_usage(self.parts).free
            if needed > free:
                why, hint = f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free", "Free some, or use --cache DIR."
                raise ResourceError("not enough disk space", where=self.parts, why=why, hint=hint)

    def _copy(self, stream: IO[bytes], total: int, part: Part, name: str) -> None:
        if total > size_limit(self.entry):
            why = f"{total:,} bytes, at most {size_limit(self.entry):,} expected"
            raise IntegrityError("the file is not the model", where=name, why=why)
        part.restart()
        self.observer.begin(self.entry.key, total, unit="bytes")
        while part.size < total:
            try:
                block = stream.read(min(HASH_BLOCK, total - part.size))
            except OSError as error:
                raise ResourceError("cannot read the file", where=name, why=error.strerror or str(error)) from error
            if not block:
                why = f"{part.size:,} of {total:,} bytes are there"
                raise IntegrityError("the file is cut off", where=name, why=why)
            part.append(block)
            self.observer.advance(done=part.size)

    def _finish(self, source: Source, part: Part, stated: str = "", verified: bool = False) -> FetchedFile:
        part.sync()
        self.known = caching.expected_sha256(self.entry, self.cache)  # another process may have been quicker
        sha256 = self._check(source, part, stated, verified)
        size, target = part.size, caching.file_path(self.cache, sha256)
        part.publish(target)
        caching.record(self.entry, self.cache, sha256=sha256, size=size, source=source.address)
        sweep(self.parts, self.entry.key)
        pin: Literal["pinned", "recorded", "new"] = "recorded" if self.known else "new"
        pin, seconds = "pinned" if self.entry.sha256 else pin, time.monotonic() - self.began
        return FetchedFile(self.entry.key, target, sha256, size, source.address, pin, False, seconds)

    def _check(self, source: Source, part: Part, stated: str, verified: bool) -> str:
        """The part's hash, if the content is the entry's: by every hash that is known, else by structure."""
        entry, where = self.entry, f"{self.entry.key} from {source.address}"
        belong = "Check that the model's name and the file belong together."
        what, hint = "the file is not the model", belong if source.type == "file" else BY_HAND.format(entry.key)
        if entry.size is not None and part.size != entry.size:
            why = f"it has {part.size:,} bytes, the manifest says {entry.size:,}"
            raise IntegrityError(what, where=where, why=why, hint=hint)
        sha256 = part.sha256() if self.known or stated else ""
        if entry.sha256 is None and self.known not in (None, sha256):
            record = caching.record_path(entry, self.cache)
            hint = f"If the publisher replaced it, delete {record} and download again."
            why = f"its sha256 is {sha256}, recorded here was {self.known}"
            raise IntegrityError("the file is not the one recorded", where=where, why=why, hint=hint)
        if entry.sha256 and sha256 != entry.sha256:
            why = f"its sha256 is {sha256}, the manifest says {entry.sha256}"
            raise IntegrityError(what, where=where, why=why, hint=hint)
        if stated and sha256 != stated:
            why, hint = f"its sha256 is {sha256}, it should be {stated}", "It was damaged on the way; copy it again."
            raise IntegrityError("the file is damaged", where=where, why=why, hint=hint)
        if self.known or verified:
            return sha256
        try:
            return self.verify(part.path)
        except (IntegrityError, NonFiniteError) as error:
            what, why = what if isinstance(error, IntegrityError) else error.what, error.why or error.what
            raise type(error)(what, where=where, why=why, hint=hint, faults=error.faults) from error


def looks_like_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    return head.lstrip()[:100].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def version_tag(response: requests.Response) -> str:
    """A hash of what the server calls this version of its content: a strong entity tag, else the date of its change."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    name = etag if etag and not etag.startswith("W/") else modified
    return hashlib.sha256(name.encode()).hexdigest()[:12] if name else UNTAGGED


def fits(response: requests.Response, part: Part, tag: str, known: bool) -> bool:
    """Whether a 206 answer starts where the part ends, reaches the end, and belongs to the same content.

    Where the hash of the whole is `known`, a server need not say which version it sends.
    """
    said = re.fullmatch(r"bytes +([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or said is None:
        return False
    whole = int(said[1]) == part.size > 0 and int(said[2]) == int(said[3]) - 1
    return whole and (known or tag == part.tag != UNTAGGED)


def _length(response: requests.Response) -> int | None:
    """Bytes of the whole content as announced, None if they are not."""
    chunked = response.headers.get("Transfer-Encoding", "").lower() not in ("", "identity")
    text = response.headers.get("Content-Length", "").strip()
    return int(text) if not chunked and re.fullmatch(r"[0-9]{1,15}", text) else None
