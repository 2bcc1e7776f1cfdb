"""Owns getting an entry's file: from the cache if its hash holds, else from its sources, checked, then published.

Nothing is published that was not hashed as it lies on disk and either has the known hash or passed the caller's
structural check. The lock taken here only saves work: correctness never depends on it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from dgmn2cli.errors import Dgmn2Error, IntegrityError, NetworkError, NonFiniteError, ResourceError
from dgmn2cli.files import HASH_BLOCK, hash_file, open_regular
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo.drive import drive_session, opened_drive_file
from dgmn2cli.zoo.http import Deadline, Limits, TemporaryError, new_session, opened
from dgmn2cli.zoo.manifest import AnyEntry, Source
from dgmn2cli.zoo.parts import Part, resume, sweep, turn
from dgmn2cli.zoo.transfer import Progress, receive

logger = logging.getLogger(__name__)

Verify = Callable[[Path], object]  # raises a Dgmn2Error unless the file is the entry's model, complete and finite
BYTES_PER_PARAM = 15  # float32 weights and Adam's two moments, and a quarter more
OVERHEAD = 64 << 20  # bytes a file may have beyond its tensors
BY_HAND = (
    "Save it with a browser from an address that `dgmn2 zoo show {key}` names, and adopt it with "
    "`dgmn2 download {key} --from FILE`."
)


@dataclass(frozen=True)
class FetchedFile:
    """An entry's file, its hash just computed.

    Attributes:
        key: the entry.
        path: the file in the cache.
        sha256: hash of its content.
        size: bytes.
        source: where it came from, in words.
        pin: `pinned`: it has the manifest's hash; `recorded`: the hash noted earlier; `new`: its hash was noted now.
        cached: it was there already.
        seconds: time taken.
    """

    key: str
    path: Path
    sha256: str
    size: int
    source: str
    pin: Literal["pinned", "recorded", "new"]
    cached: bool
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
    progress: Progress | None = None,
) -> FetchedFile:
    """The entry's file in the cache, fetched if it is not there or damaged.

    Args:
        entry: a model or backbone.
        cache: the cache folder.
        verify: called with the path of a file whose hash is not known; raises unless it is this entry's model.
        offline: do not touch the network; `file` sources are still used.
        force: fetch even if a good file is there.
        sources: other sources than the entry's, tried in order.
        limits: how patient to be.
        progress: told the bytes so far and in all, while hashing and while downloading.

    Raises:
        NetworkError: no source gave the file, or it is not here and the network is off.
        IntegrityError, NonFiniteError: what the sources gave is not the file.
        ResourceError: disk full, no permission.
    """
    began = time.monotonic()
    limits = limits or Limits()
    if not force and (ready := from_cache(entry, cache, progress, began)):
        return ready
    usable = tuple(s for s in (entry.sources if sources is None else sources) if not offline or s.type == "file")
    if not usable:
        raise _nothing_to_ask(entry, cache, force)
    with turn(_parts_folder(cache), entry.key):
        if not force and (ready := from_cache(entry, cache, progress, began)):
            return ready
        return _from_sources(entry, usable, cache, verify, limits, progress, began)


def _nothing_to_ask(entry: AnyEntry, cache: Path, force: bool) -> Dgmn2Error:
    """The error when the network is off and there is no good file, or another one was asked for."""
    off = "the network is switched off (--offline, DGMN2_OFFLINE)"
    get = f"dgmn2 download {entry.key}"
    if force and (ready := from_cache(entry, cache)):
        hint = f"Leave out --force and --source: a good file is there, {ready.path}."
        return NetworkError("cannot download it again", where=entry.key, why=off, hint=hint)
    hint = f"Switch the network on and run `{get}`; or fetch the file elsewhere, alone or as a bundle "
    hint += f"(`{get} --bundle TAR`), and adopt it here with `{get} --from FILE`."
    if found := caching.locate(entry, cache):
        why = "it does not have the hash it must have"
        return IntegrityError("the cached file is damaged", where=found.path, why=why, hint=hint)
    return NetworkError("the weights are not on disk", where=entry.key, why=off, hint=hint)


def from_cache(
    entry: AnyEntry, cache: Path, progress: Progress | None = None, began: float | None = None
) -> FetchedFile | None:
    """The entry's file if the cache holds it and its content has the hash it must have; None otherwise.

    Raises:
        ResourceError: it may not be read.
    """
    began = time.monotonic() if began is None else began
    found = caching.locate(entry, cache)
    if found is None:
        return None
    done = 0

    def advance(step: int) -> None:
        nonlocal done
        done += step
        if progress:
            progress(done, found.size)

    if hash_file(found.path, advance) != found.sha256:
        logger.warning("the cached file of %s is damaged: %s", entry.key, found.path)
        return None
    pin: Literal["pinned", "recorded"] = "pinned" if found.pin == "pinned" else "recorded"
    seconds = time.monotonic() - began
    return FetchedFile(entry.key, found.path, found.sha256, found.size, found.source, pin, True, seconds)


def adopt(entry: AnyEntry, file: Path, *, cache: Path, verify: Verify, progress: Progress | None = None) -> FetchedFile:
    """Copies a file of the user's into the cache as the entry's, after the same checks as a download.

    Raises:
        IntegrityError, NonFiniteError: it is not the entry's file.
        ResourceError: it cannot be read, or the cache not be written.
    """
    with open_regular(file) as stream:
        total = os.fstat(stream.fileno()).st_size
        return adopt_stream(entry, stream, total, str(file.absolute()), cache=cache, verify=verify, progress=progress)


def adopt_stream(
    entry: AnyEntry,
    stream: IO[bytes],
    total: int,
    name: str,
    *,
    cache: Path,
    verify: Verify,
    progress: Progress | None = None,
) -> FetchedFile:
    """As `adopt`, for the `total` bytes of an open file called `name`."""
    began = time.monotonic()
    source = Source("file", name)
    part = Part(_parts_folder(cache), _stem(entry, source))
    try:
        _copy(entry, stream, total, part, name, progress)
        fetched = _finish(entry, source, part, cache, verify, began)
    except BaseException:
        part.discard()
        raise
    sweep(_parts_folder(cache), entry.key)
    return fetched


def size_limit(entry: AnyEntry) -> int:
    """Bytes the entry's file may have."""
    return entry.size or entry.params * BYTES_PER_PARAM + OVERHEAD


def _from_sources(
    entry: AnyEntry,
    sources: Sequence[Source],
    cache: Path,
    verify: Verify,
    limits: Limits,
    progress: Progress | None,
    began: float,
) -> FetchedFile:
    """The file from the first source that gives it."""
    deadline = Deadline(limits.total)
    failures: list[Dgmn2Error] = []
    for number, source in enumerate(sources, 1):
        try:
            fetched = _from_source(entry, source, cache, verify, limits, deadline, progress, began)
        except (NetworkError, IntegrityError, NonFiniteError) as error:
            error.hint = error.hint or BY_HAND.format(key=entry.key)
            failures.append(error)
            if number < len(sources):
                logger.warning("source %d of %s failed, trying the next: %s", number, entry.key, error)
            continue
        sweep(_parts_folder(cache), entry.key)
        return fetched
    if len(failures) == 1:
        raise failures[0]
    worst = next((failure for failure in failures if not isinstance(failure, NetworkError)), failures[-1])
    raise type(worst)(
        "no source gives the file",
        where=entry.key,
        why=f"{len(failures)} were tried, see above",
        hint=BY_HAND.format(key=entry.key),
        faults=[f"source {i}: {f}" for i, f in enumerate(failures, 1)],
    )


def _from_source(
    entry: AnyEntry,
    source: Source,
    cache: Path,
    verify: Verify,
    limits: Limits,
    deadline: Deadline,
    progress: Progress | None,
    began: float,
) -> FetchedFile:
    """The file from one source: transferred with retries, checked, published."""
    known_hash = caching.expected_sha256(entry, cache) is not None
    part = resume(_parts_folder(cache), _stem(entry, source), _name(source))
    try:
        while True:
            _transfer(entry, source, part, known_hash, limits, deadline, progress)
            try:
                return _finish(entry, source, part, cache, verify, began)
            except (IntegrityError, NonFiniteError):
                if not part.continued:
                    raise
                part.restart()  # the pieces do not belong together; once more in one piece
    except BaseException as error:
        _put_away(part, error, known_hash)
        raise


def _finish(entry: AnyEntry, source: Source, part: Part, cache: Path, verify: Verify, began: float) -> FetchedFile:
    """Checks a complete part, publishes it and notes what it is."""
    expected = caching.expected_sha256(entry, cache)
    sha256 = _check(entry, source, part, expected, cache, verify)
    size, target = part.size, caching.file_path(cache, sha256)
    part.publish(target)
    caching.record(entry, cache, sha256=sha256, size=size, source=source.address)
    pin: Literal["pinned", "recorded", "new"] = "pinned" if entry.sha256 else "recorded" if expected else "new"
    return FetchedFile(entry.key, target, sha256, size, source.address, pin, False, time.monotonic() - began)


def _put_away(part: Part, error: BaseException, known_hash: bool) -> None:
    """Keeps a part that the next run can go on with, removes any other."""
    interrupted = isinstance(error, NetworkError) or not isinstance(error, Exception)
    origin = part.origin
    if interrupted and part.size and origin is not None and (origin.validator or known_hash):
        part.keep()
    else:
        part.discard()


def _transfer(
    entry: AnyEntry,
    source: Source,
    part: Part,
    known_hash: bool,
    limits: Limits,
    deadline: Deadline,
    progress: Progress | None,
) -> None:
    """Fills `part` from `source`, trying again after failures that may pass."""
    if source.type == "file":
        _copy_file(entry, Path(source.location), part, progress)
        return
    for attempt in range(limits.retries + 1):
        if part.origin is not None and part.size == part.origin.total:
            return  # an earlier run was stopped between the last byte and the check
        if not (part.origin is not None and (part.origin.validator or known_hash)):
            part.restart()
        try:
            _request(entry, source, part, known_hash, limits, deadline, progress)
            return
        except TemporaryError as error:
            pause = limits.backoff * 2**attempt * random.uniform(0.75, 1.25)
            pause = pause if error.retry_after is None else error.retry_after
            if attempt == limits.retries or pause >= deadline.left:
                raise
            logger.info("%s; trying again in %.1f s", error, pause)
            time.sleep(pause)


def _request(
    entry: AnyEntry,
    source: Source,
    part: Part,
    known_hash: bool,
    limits: Limits,
    deadline: Deadline,
    progress: Progress | None,
) -> None:
    """One attempt: the whole file, or the rest of it."""
    headers: dict[str, str] = {}
    if part.size and part.origin is not None:
        headers["Range"] = f"bytes={part.size}-"
        if part.origin.validator:
            headers["If-Range"] = part.origin.validator
    drive = source.type == "gdrive"
    with (
        drive_session() if drive else new_session() as session,
        opened_drive_file(session, source.location, limits, deadline, headers)
        if drive
        else opened(session, source.location, limits, deadline, headers) as (response, url),
    ):
        receive(
            response,
            url,
            part,
            _name(source),
            known_hash=known_hash,
            limit=size_limit(entry),
            deadline=deadline,
            progress=progress,
        )


def _copy_file(entry: AnyEntry, path: Path, part: Part, progress: Progress | None) -> None:
    """Fills `part` from a `file` source, which may lie on a share that is not there now."""
    part.restart()
    try:
        stream = open_regular(path)
    except ResourceError as error:
        raise NetworkError("cannot read the source", where=path, why=error.why) from error
    with stream:
        _copy(entry, stream, os.fstat(stream.fileno()).st_size, part, str(path), progress)


def _copy(entry: AnyEntry, stream: IO[bytes], total: int, part: Part, name: str, progress: Progress | None) -> None:
    """Fills `part` with `total` bytes of `stream`."""
    if total > size_limit(entry):
        why = f"{total:,} bytes, at most {size_limit(entry):,} expected"
        raise IntegrityError("the file is not the model", where=name, why=why)
    while part.size < total:
        try:
            block = stream.read(min(HASH_BLOCK, total - part.size))
        except OSError as error:
            raise ResourceError("cannot read the file", where=name, why=error.strerror or str(error)) from error
        if not block:
            raise IntegrityError("the file is cut off", where=name, why=f"{part.size:,} of {total:,} bytes are there")
        part.append(block)
        if progress:
            progress(part.size, total)


def _check(entry: AnyEntry, source: Source, part: Part, expected: str | None, cache: Path, verify: Verify) -> str:
    """The part's hash, if the content is the entry's: by the known hash, else by structure."""
    sha256 = part.seal()
    if entry.size is not None and part.size != entry.size:
        why = f"it has {part.size:,} bytes, the manifest says {entry.size:,}"
        raise _not_the_file(entry, source, why)
    if expected is not None:
        if sha256 != expected:
            raise _wrong_hash(entry, source, sha256, expected, cache)
        return sha256
    try:
        verify(part.path)
    except (IntegrityError, NonFiniteError) as error:
        detail = error.why or error.what
        raise type(error)(
            "the file is not the model" if isinstance(error, IntegrityError) else error.what,
            where=f"{entry.key} from {source.address}",
            why=detail,
            hint=_way_out(entry, source),
            faults=error.faults,
        ) from error
    return sha256


def _not_the_file(entry: AnyEntry, source: Source, why: str) -> IntegrityError:
    where = f"{entry.key} from {source.address}"
    return IntegrityError("the file is not the model", where=where, why=why, hint=_way_out(entry, source))


def _way_out(entry: AnyEntry, source: Source) -> str:
    belong = "Check that the model's name and the file belong together."
    return belong if source.type == "file" else BY_HAND.format(key=entry.key)


def _wrong_hash(entry: AnyEntry, source: Source, sha256: str, expected: str, cache: Path) -> IntegrityError:
    if entry.sha256:
        return _not_the_file(entry, source, f"its sha256 is {sha256}, the manifest says {expected}")
    why = f"its sha256 is {sha256}, recorded here was {expected}"
    hint = f"If the publisher replaced it, delete {caching.record_path(entry, cache)} and download again."
    return IntegrityError(
        "the file is not the one recorded", where=f"{entry.key} from {source.address}", why=why, hint=hint
    )


def _parts_folder(cache: Path) -> Path:
    return cache / "parts"


def _stem(entry: AnyEntry, source: Source) -> str:
    return f"{entry.key}@{hashlib.sha256(_name(source).encode()).hexdigest()[:12]}"


def _name(source: Source) -> str:
    return f"{source.type}:{source.location}"
