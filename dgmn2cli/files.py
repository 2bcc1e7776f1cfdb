"""Files opened safely, written whole or not at all, hashed; frozen dataclasses as JSON."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from dgmn2cli.errors import DataError, Dgmn2Error, IntegrityError, ResourceError

HASH_BLOCK = 1 << 20  # bytes read at a time
ABANDONED_AFTER = 86400  # seconds after which a temporary file that cannot be locked counts as abandoned


def to_plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, paths strings, NaN and infinities null.

    A dataclass's field is left out where its metadata say `{"json": False}`; "flat": its entries stand there.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            if how := field.metadata.get("json", True):
                item = to_plain(getattr(value, field.name))
                plain |= item if how == "flat" else {field.name: item}
        return plain
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """One JSON document of a report; `NaN` never appears in it, and bytes of names that are no UTF-8 are escaped."""
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def open_regular(
    path: str | Path,
    what: str = "cannot read the file",
    *,
    kind: type[Dgmn2Error] = IntegrityError,
    unreadable: type[Dgmn2Error] = ResourceError,
    hint: str = "Check the path.",
) -> BinaryIO:
    """`path` opened for reading if it is a regular file (or a link to one); a named pipe cannot block this.

    Args:
        what: the failed action, for the error's message.
        kind: the error for a folder, pipe, socket or device.
        unreadable: the error for a file that is missing or may not be read.
        hint: what the user can do about either.

    Raises:
        Dgmn2Error: `kind` or `unreadable`; `why` says what is there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(what, where=path, why=_reason(error), hint=hint) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise kind(what, where=path, why=f"it is {_kind_of(mode)}, wanted a file", hint=hint)
        os.pread(descriptor, 1, 0)  # some files of /proc are called regular, and fail or would wait
        return os.fdopen(descriptor, "rb")
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise unreadable(what, where=path, why=_reason(error), hint=hint) from error
        raise


def read_bounded(
    path: str | Path,
    limit: int,
    what: str = "cannot read the file",
    *,
    kind: type[Dgmn2Error] = IntegrityError,
    unreadable: type[Dgmn2Error] = ResourceError,
    hint: str = "Check the path.",
) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; the other arguments as for `open_regular`.

    Raises:
        Dgmn2Error: `kind` for what is larger or no regular file, `unreadable` for what cannot be read.
    """
    with open_regular(path, what, kind=kind, unreadable=unreadable, hint=hint) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise unreadable(what, where=path, why=_reason(error), hint=hint) from error
    if len(data) > limit:
        raise kind(what, where=path, why=f"it is larger than {limit:,} bytes", hint=hint)
    return data


def read_text(
    path: str | Path,
    limit: int,
    what: str = "cannot read the file",
    *,
    kind: type[Dgmn2Error] = DataError,
    hint: str = "Check the path.",
) -> str:
    r"""The text of a file that somebody wrote: UTF-8, line ends as "\n", a byte order mark dropped.

    Args:
        path: a regular file of at most `limit` bytes.
        what: the failed action, for the error's message.
        kind: the error for a file that is missing, too large, or no text.
        hint: what the user can do about it.

    Raises:
        Dgmn2Error: `kind`; where bytes are no text, it says in which line.
        ResourceError: the file may not be read.
    """
    try:
        data = read_bounded(path, limit, what, kind=kind, unreadable=kind, hint=hint)
    except Dgmn2Error as error:
        if isinstance(error.__cause__, PermissionError):
            raise ResourceError(what, where=path, why=error.why, hint="Choose a file you may read.") from error
        raise
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"
        raise kind(what, where=path, why=why, hint=hint) from error
    if "\0" in text:
        why = f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} holds a NUL byte"
        raise kind(what, where=path, why=why, hint=hint)
    return text.replace("\r\n", "\n")


def hash_file(path: str | Path, advance: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a regular file, 64 lower-case hex digits.

    Args:
        advance: called with the number of bytes just read, for a progress bar.

    Raises:
        IntegrityError: it is no regular file (folder, pipe, device).
        ResourceError: it is missing or cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in read_blocks(file, path):
            digest.update(block)
            if advance:
                advance(len(block))
    return digest.hexdigest()


def read_blocks(file: IO[bytes], path: str | Path) -> Iterator[bytes]:
    """What is left of an open file called `path`, in blocks.

    Raises:
        ResourceError: it cannot be read.
    """
    try:
        while block := file.read(HASH_BLOCK):
            yield block
    except OSError as error:
        raise ResourceError("cannot read the file", where=path, why=_reason(error)) from error


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "there is no such file"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return "the name is not a possible file name"


def _kind_of(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def local_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while writing `path` into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        forbidden, taken = (
            "Choose a folder you may write to.",
            "Something that is no folder is in its path; choose another.",
        )
        hints = {
            errno.ENOSPC: "Free some space, or write to another disk.",
            errno.EDQUOT: "The disk quota is used up; free some space.",
            errno.EACCES: forbidden,
            errno.EPERM: forbidden,
            errno.ENOTDIR: taken,
            errno.EEXIST: taken,
            errno.ELOOP: "Links in its path lead in a circle; choose another.",
            errno.ENAMETOOLONG: "Choose a shorter name.",
            errno.EROFS: "The file system is read-only; choose another folder.",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = hints.get(error.errno or 0, "Check the path.")
        raise ResourceError("cannot write the file", where=path, why=reason, hint=hint) from error


def atomic_write(path: str | Path, write: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Writes `path` so that it is either absent (or its old self) or complete and durable, see `atomic_file`.

    Args:
        path: the file to write; its folder is created.
        write: the content, or a function that writes it into a binary file.

    Raises:
        ResourceError: disk full, no permission, read-only file system, or what is there is a folder, pipe or device.
    """
    path = Path(path)
    with atomic_file(path) as file, local_write_errors(path):
        if callable(write):
            write(file)
        else:
            file.write(write.encode() if isinstance(write, str) else write)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and is removed when it does not.

    A temporary file in the same folder is written, flushed and fsynced, renamed over `path`, and the folder fsynced.
    Its writer holds a lock on it: an unlocked one was left by a killed process, and the next writer of `path` removes
    it. (Process ids would not do: another container's are unknown here.)

    Raises:
        ResourceError: as `atomic_write`, for all that is not done in the block.
    """
    with local_write_errors(path):
        _refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path)
        temporary, descriptor = create_part(path.parent, temporary_stem(path))
    file = os.fdopen(descriptor, "wb")
    try:
        yield file
        with local_write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # what a full disk left in the buffer
            file.close()
    with local_write_errors(path):
        sync_folder(path.parent)


def check_folder(path: Path) -> None:
    """Refuses, before any work is done, a folder that cannot come to be: called first, where writing comes last.

    Nothing is created. What only the attempt shows (a file system without room for it) stays for later.

    Raises:
        ResourceError: something else is in its place or above it, or it may not be written.
    """
    with local_write_errors(path):
        for place in (path, *path.parents):
            if os.path.isdir(place):
                if not os.access(place, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return
            if os.path.lexists(place):
                why, hint = f"{place} is no folder", "Choose another folder."
                raise ResourceError("cannot write into the folder", where=path, why=why, hint=hint)


def check_file(path: Path) -> None:
    """As `check_folder`, for a file that `atomic_write` will write.

    Raises:
        ResourceError: its folder cannot come to be, or a folder, pipe or device is in its place.
    """
    check_folder(path.parent)
    with local_write_errors(path):
        _refuse_special(path)


def open_in_place(path: Path, flags: int) -> int:
    """A descriptor of a file that is written where it is, a log or a lock; created where absent.

    What it does not find as a plain file of that very name it leaves alone: a link would lead the writing elsewhere.

    Args:
        path: the file; its folder exists.
        flags: `os.O_RDWR` or `os.O_WRONLY`, perhaps with `os.O_APPEND`.

    Raises:
        ResourceError: a link, folder, pipe or device is there, or the file cannot be opened.
    """
    with local_write_errors(path):
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            kinds = {errno.ELOOP: "a link", errno.EISDIR: "a folder", errno.ENXIO: "a pipe, socket or device"}
            if error.errno in kinds:
                raise _not_plain(path, kinds[error.errno]) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _not_plain(path, "a pipe, socket or device")
    return descriptor


def _not_plain(path: Path, kind: str) -> ResourceError:
    hint = "Remove it, or choose another folder."
    return ResourceError("cannot write the file", where=path, why=f"{kind} is there, not a plain file", hint=hint)


def _refuse_special(path: Path) -> None:
    """A rename would replace a device or a pipe by a file: whoever may write /dev must not lose /dev/null by that."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return  # nothing there, or a link that leads nowhere: it is replaced
        raise
    if not stat.S_ISREG(mode):
        hint = "Name a file that is new or may be replaced."
        raise ResourceError("cannot write the file", where=path, why=f"{_kind_of(mode)} is there", hint=hint)


def temporary_stem(path: Path) -> str:
    """The beginning of `path`'s temporary names, hashed where it is too long for a file name with more behind it."""
    name = os.fsencode(path.name)
    return f".{path.name}" if len(name) <= 120 else f".{hashlib.sha256(name).hexdigest()[:32]}"


def create_part(folder: Path, stem: str, *, as_folder: bool = False) -> tuple[Path, int]:
    """A new file or folder `STEM.PID.RANDOM.part`, with the user's umask: its path, and a locked descriptor."""
    flags = os.O_RDONLY | os.O_DIRECTORY if as_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
    while True:
        part = folder / f"{stem}.{os.getpid()}.{os.urandom(4).hex()}.part"
        if as_folder:
            part.mkdir()
        try:
            descriptor = os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if not as_folder:
                raise
            continue  # removed before it was locked
        lock_file(descriptor)
        with suppress(FileNotFoundError):  # removed before it was locked: taken for an abandoned one
            if os.path.samestat(os.fstat(descriptor), part.stat()):
                return part, descriptor
        os.close(descriptor)


def lock_file(descriptor: int) -> bool | None:
    """Takes the advisory lock of an open file, without waiting: True or False; None where locks do not work.

    The kernel drops it when the file is closed, however its process ends.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def abandoned(part: Path) -> Iterator[BinaryIO | None]:
    """The unfinished file `part`, opened and locked, if its writer is gone; None while the writer may live.

    Where locks do not work, a file counts as abandoned a day after its last change.
    """
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, a folder, a link, somebody else's
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(descriptor).st_mode) and _claim(descriptor) else None


def _claim(descriptor: int) -> bool:
    """Locks an unfinished file or folder if its writer is gone."""
    locked = lock_file(descriptor)
    return time.time() - os.fstat(descriptor).st_mtime > ABANDONED_AFTER if locked is None else locked


def clear_abandoned(path: Path) -> None:
    """Removes temporary files and folders of `path` whose writer was killed before it could rename or remove them."""
    pattern = re.compile(re.escape(temporary_stem(path)) + r"\.[0-9]+\.[0-9a-z_]{8}\.part")
    names = []
    with suppress(OSError):
        names = [name for name in os.listdir(path.parent) if pattern.fullmatch(name)]
    for part in map(path.with_name, names):
        with suppress(OSError):  # gone meanwhile, a link, somebody else's
            access = os.O_RDONLY if part.is_dir() else os.O_RDWR
            descriptor = os.open(part, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _claim(descriptor):
                    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink()
            finally:
                os.close(descriptor)


def absence(path: str | Path, wanted: Literal["file", "folder"] = "file") -> str:
    """Why there is no `wanted` at `path`, in words; never raises, whatever the path."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return "it is a link that leads nowhere" if os.path.islink(path) else f"there is no such {wanted}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return "the name is not a possible file name"
    return f"it is {_kind_of(mode)}, wanted a {wanted}"
