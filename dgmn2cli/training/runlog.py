"""Owns the record of a run: one JSON line per step and per evaluation, the same lines however often it was interrupted.

Nothing in it depends on the clock, so that the log of a resumed run equals the log of an unbroken one byte for byte.
What does (seconds, starts and stops) is in the file of events beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgmn2cli.files import local_write_errors, open_in_place, to_plain


class RunLog:
    """An append-only file of JSON lines whose end can be taken back.

    Args:
        path: the file; created where absent.
        length: bytes that are kept; None: all.

    Raises:
        ResourceError: the file cannot be written, or a link, folder, pipe or device is in its place.
    """

    def __init__(self, path: Path, length: int | None = None) -> None:
        self.path = path
        with local_write_errors(path):
            self._file = os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab")
            self.lost = max(0, (length or 0) - self._file.tell())
            if length is not None and not self.lost:
                self._file.truncate(length)
                self._file.seek(0, os.SEEK_END)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; a reader sees it at once.

        Raises:
            ResourceError: the file cannot be written.
        """
        with local_write_errors(self.path):
            self._file.write((json.dumps(to_plain(record), allow_nan=False) + "\n").encode())
            self._file.flush()

    def durable_length(self) -> int:
        """The length in bytes, once all of it is on the disk.

        Raises:
            ResourceError: the file cannot be written.
        """
        with local_write_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Closes the file; every record was handed to the system when it was written."""
        with suppress(OSError):  # of a record that could not be written, which was said then
            self._file.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log; a last line cut short by a kill is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
