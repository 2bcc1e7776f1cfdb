"""Owns reading a configuration's text: regular files only, bounded in size, UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn

from dgmn2cli.errors import ConfigError

MAX_BYTES = 1_000_000
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class Unreadable(Exception):  # noqa: N818
    """Why a file's text cannot be had; its callers turn it into a fault of theirs."""


def refuse(path: object, error: Unreadable) -> NoReturn:
    """Ends the reading of a configuration whose own file cannot be read.

    Raises:
        ConfigError: always.
    """
    hint = "Give the path of a .toml or .py file, or a name that `dgmn2 zoo list` shows."
    raise ConfigError(
        "cannot read the configuration", where=path, why=str(error), faults=[f"{path}: {error}"], hint=hint
    )


def read_text(path: Path) -> str:
    """The text of a configuration file, line ends as "\\n", a byte order mark dropped.

    Raises:
        Unreadable: absent, not allowed, not a regular file, over a megabyte, or not UTF-8.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make us wait
    except FileNotFoundError as error:
        raise Unreadable("no such file") from error
    except OSError as error:
        raise Unreadable(os.strerror(error.errno) if error.errno else str(error)) from error
    except ValueError as error:  # a NUL in the name
        raise Unreadable("no such file: its name holds a NUL") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
            raise Unreadable(f"it is {kind}, wanted a text file")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(str(error)) from error
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise Unreadable(f"it is larger than {MAX_BYTES // 1_000_000} MB; is it a configuration at all?")
    return decode(data)


def decode(data: bytes) -> str:
    """UTF-8 bytes as text, line ends as "\\n", a byte order mark dropped.

    Raises:
        Unreadable: not UTF-8, or a NUL byte in it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8") from error
    if "\0" in text:
        raise Unreadable(f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} holds a NUL byte")
    return text.replace("\r\n", "\n")
