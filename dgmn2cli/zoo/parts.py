"""Owns part files: downloads under way, each written by one process only, and taken over when their writer is gone.

A writer holds an advisory lock on its part, which the kernel drops however the process ends. A part whose lock is free
is abandoned; its bytes are *copied* into the new writer's own file, so that even where locks do not work no two
processes ever write one file.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dgmn2cli.errors import IntegrityError, ResourceError
from dgmn2cli.files import HASH_BLOCK, local_write_errors, open_regular
from dgmn2cli.zoo.cache import RECORD_LIMIT

logger = logging.getLogger(__name__)

TURN_LIMIT = 300.0  # seconds to wait for another process that fetches the same file
ABANDONED_AFTER = 7 * 86400  # seconds after which a part of whatever entry is swept away


@dataclass(frozen=True)
class Origin:
    """What the server said about the content a part is the beginning of.

    Attributes:
        source: where it comes from, type and location.
        etag: its entity tag, empty if none was sent.
        modified: its Last-Modified header as sent, empty if none was.
        total: bytes of the whole content, None if not announced.
    """

    source: str
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @property
    def validator(self) -> str:
        """What `If-Range` takes to make sure that the rest belongs to the beginning; empty if there is nothing."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def same_content(self, other: Origin) -> bool:
        """Whether both surely describe the same bytes."""
        if self.source != other.source or not self.validator:
            return False
        agree = self.validator == (other.etag if self.validator == self.etag else other.modified)
        return agree and (None in (self.total, other.total) or self.total == other.total)


class Part:
    """A part file of this process, open for appending.

    Attributes:
        path: where it is.
        size: bytes so far.
        origin: what it is the beginning of, None until known.
        continued: whether its content came in more than one piece, so that the pieces may not belong together.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        """Creates an empty part `STEM.PID.RANDOM.part` in `folder`.

        Raises:
            ResourceError: the folder cannot be written.
        """
        self.path = folder / f"{stem}.{os.getpid()}.{secrets.token_hex(4)}.part"
        self.size = 0
        self.origin: Origin | None = None
        self.continued = False
        with local_write_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def describe(self, origin: Origin) -> None:
        """Notes beside the part what it is the beginning of, for whoever takes it over."""
        self.origin = origin
        with local_write_errors(self.path):
            _note_path(self.path).write_text(json.dumps(asdict(origin)))

    def append(self, block: bytes) -> None:
        """Writes `block` at the end.

        Raises:
            ResourceError: disk full and the like; the part is removed then, which gives the space back.
        """
        view = memoryview(block)
        try:
            with local_write_errors(self.path):
                while view:
                    written = self._file.write(view)
                    view = view[written or 0 :]
        except ResourceError:
            self.discard()
            raise
        self.size += len(block)

    def restart(self) -> None:
        """Forgets all content."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.origin, self.continued = 0, None, False
        _note_path(self.path).unlink(missing_ok=True)

    def seal(self) -> str:
        """Makes the content durable and returns its SHA-256, read back from the file itself."""
        digest = hashlib.sha256()
        with local_write_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.seek(0)
            while block := self._file.read(HASH_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def publish(self, target: Path) -> None:
        """Renames the sealed part to `target` and makes the rename durable; the part is used up.

        Raises:
            ResourceError: the folder cannot be written, or something that is no file is in the way.
        """
        with local_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, target)
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.discard()

    def keep(self) -> None:
        """Leaves the part for the next run."""
        self._file.close()

    def discard(self) -> None:
        """Removes the part, if it still is one."""
        self._file.close()
        remove(self.path)


def resume(folder: Path, stem: str, source: str) -> Part:
    """A new part for `source`; it starts with the bytes of the longest abandoned one that may be continued.

    All abandoned parts of `stem` are removed: what is not taken over is of no use.

    Raises:
        ResourceError: the folder cannot be written.
    """
    part = Part(folder, stem)
    try:
        abandoned = [old for old in _parts(folder, stem) if old != part.path]
        for old in sorted(abandoned, key=_size, reverse=True):
            _take_over(old, part, source)
    except BaseException:
        part.discard()
        raise
    return part


def _take_over(old: Path, part: Part, source: str) -> None:
    """Copies `old` into the empty `part` if that may be continued, and removes it; not while its writer lives."""
    try:
        with open_regular(old) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:  # a file system without locks
                if _writer_alive(old):
                    return
            origin = _read_note(old)
            if part.size == 0 and origin is not None and origin.source == source:
                while block := file.read(HASH_BLOCK):
                    part.append(block)
                part.describe(origin)
                part.continued = True
            remove(old)
    except ResourceError:
        if not old.exists():  # another process was quicker
            return
        raise
    except IntegrityError:  # a folder or FIFO of that name is not ours
        return


@contextmanager
def turn(folder: Path, key: str) -> Iterator[None]:
    """Waits, for a while, if another process fetches the entry `key`: its file is then fetched once.

    A convenience only; it goes ahead without the lock where there is none to be had.
    """
    path = folder / f"{key}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:  # whether the cache can be written shows when something is to be written
        yield
        return
    try:
        _wait_for(descriptor, key)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, key: str) -> None:
    end, told = time.monotonic() + TURN_LIMIT, False
    while time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                logger.warning("another process fetches %s; waiting for it", key)
                told = True
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return


def sweep(folder: Path, key: str) -> None:
    """Removes abandoned parts: all of the entry `key`, and whatever is older than a week."""
    for path in _entries(folder):
        mine = path.name.startswith(f"{key}@")
        if path.suffix != ".part" or not (mine or _age(path) > ABANDONED_AFTER):
            continue
        with suppress(ResourceError, IntegrityError, OSError), open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
    for path in _entries(folder):
        if path.name.endswith(".part.json") and not path.with_suffix("").exists():
            with suppress(OSError):
                path.unlink()


def remove(path: Path) -> None:
    """Removes a part and its note."""
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        _note_path(path).unlink()


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> Origin | None:
    try:
        with open_regular(_note_path(part)) as file:
            values = json.loads(file.read(RECORD_LIMIT).decode())
        origin = Origin(str(values["source"]), str(values["etag"]), str(values["modified"]))
        return replace(origin, total=None if values["total"] is None else int(values["total"]))
    except (IntegrityError, ResourceError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _parts(folder: Path, stem: str) -> list[Path]:
    return list(folder.glob(f"{glob.escape(stem)}.*.part"))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def _writer_alive(part: Path) -> bool:
    """Whether the process named in the part's file name exists."""
    number = part.name.split(".")[-3]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True
