"""Owns how results leave the program: frozen dataclasses to JSON, and files that appear whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import glob
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dgmn2cli.errors import ResourceError


def to_plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, paths strings, NaN and infinities null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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
    """One JSON document of a report; `NaN` never appears in it."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


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
        hints = {
            errno.ENOSPC: "Free some space, or write to another disk.",
            errno.EDQUOT: "The disk quota is used up; free some space.",
            errno.EACCES: "Choose a folder you may write to.",
            errno.EPERM: "Choose a folder you may write to.",
            errno.ENOTDIR: "Something that is no folder is in its path; choose another.",
            errno.EEXIST: "Something that is no folder is in its path; choose another.",
            errno.ELOOP: "Links in its path lead in a circle; choose another.",
            errno.ENAMETOOLONG: "Choose a shorter name.",
            errno.EROFS: "The file system is read-only; choose another folder.",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = hints.get(error.errno or 0, "Check the path.")
        raise ResourceError("cannot write the file", where=path, why=reason, hint=hint) from error


def atomic_write(path: str | Path, write: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Writes `path` so that it is either absent (or its old self) or complete and durable.

    A temporary file in the same folder is written, flushed and fsynced, renamed over `path`, and the folder fsynced.

    Args:
        path: the file to write; its folder is created.
        write: the content, or a function that writes it into a binary file.

    Raises:
        ResourceError: disk full, no permission, read-only file system, or what is there is a folder, pipe or device.
    """
    path = Path(path)
    with local_write_errors(path):
        _refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:80]}.{os.getpid()}.", suffix=".part"
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                if callable(write):
                    write(file)
                else:
                    file.write(write.encode() if isinstance(write, str) else write)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def check_folder(path: Path) -> None:
    """Refuses, before any work is done, a folder that cannot come to be: called first, where writing comes last.

    Nothing is created. What only the attempt shows (a file system without room for it) stays for later.

    Raises:
        ResourceError: something else is in its place or above it, or it may not be written.
    """
    with local_write_errors(path):
        for place in (path, *path.parents):
            try:
                mode = place.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                if place.is_symlink():
                    raise _no_folder(path, f"{place} is a link that leads nowhere") from None
                continue
            if not stat.S_ISDIR(mode):
                raise _no_folder(path, f"{place} is no folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return


def check_file(path: Path) -> None:
    """As `check_folder`, for a file that `atomic_write` will write.

    Raises:
        ResourceError: its folder cannot come to be, or a folder, pipe or device is in its place.
    """
    check_folder(path.parent)
    with local_write_errors(path):
        _refuse_special(path)


def _no_folder(path: Path, why: str) -> ResourceError:
    return ResourceError("cannot write into the folder", where=path, why=why, hint="Choose another folder.")


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
        if path.is_symlink():
            raise _not_plain(path, "a link")
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
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        hint = "Name a file that is new or may be replaced."
        raise ResourceError("cannot write the file", where=path, why=f"{kind} is there", hint=hint)


def _clear_abandoned(path: Path) -> None:
    """Removes temporary files of `path` whose writer was killed before it could rename or remove them."""
    prefix = f".{path.name[:80]}."
    for part in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        writer = part.name[len(prefix) :].split(".", 1)[0]
        if writer.isdigit() and not _alive(int(writer)):
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    """The process's file mode mask (reading it means setting it twice)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def absence(path: str | Path, wanted: Literal["file", "folder"] = "file") -> str:
    """Why there is no `wanted` at `path`, in words; never raises, whatever the path."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "it is a link that leads nowhere" if os.path.islink(path) else f"there is no such {wanted}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return "the name is not a possible file name"
    kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"
    return f"it is {kind}, wanted a {wanted}"
