"""What earlier checks found in files that have not changed since: one JSON file for each data set, in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import PIL
import simplejpeg

from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.files import atomic_write, read_bounded
from dgmn2cli.version import __version__

LARGEST = 1 << 28  # bytes of such a file: some 500,000 images
_VERSION = f"dgmn2cli {__version__}, simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"
_T = TypeVar("_T")


class Remembered:
    """Findings by file and kind; a file counts as unchanged if its path, size and time of change are the same.

    What cannot be read, or is damaged, or was written by another version, is as if nothing were remembered.

    Args:
        root: the data set.
        folder: where the findings are kept; None: they are not.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = None if folder is None else folder / f"{name}.json"
        self._files: dict[str, Any] = {} if self._path is None else _load(self._path)
        self._changed = False

    def recall(self, path: Path, kind: str, find: Callable[[], _T]) -> _T:
        """What was found out about a file, or `find()`, which is remembered unless it raises; JSON types only."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return find()
        stamp, key = [status.st_size, status.st_mtime_ns], os.path.abspath(path)
        known = self._files.get(key, [None, {}])
        if known[0] == stamp and kind in known[1]:
            return known[1][kind]
        found = find()
        self._files[key] = [stamp, {**(known[1] if known[0] == stamp else {}), kind: found}]
        self._changed = True
        return found

    def save(self) -> None:
        """Keeps what is new for the next run, if it can be kept."""
        if self._path is None or not self._changed:
            return
        body = json.dumps({"version": _VERSION, "files": self._files}).encode()
        with suppress(ResourceError):
            atomic_write(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            self._changed = False


def _load(path: Path) -> dict[str, Any]:
    try:
        digest, _, body = read_bounded(path, LARGEST).partition(b"\n")
    except Dgmn2Error:
        return {}
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return {}
    content = json.loads(body)
    return content["files"] if content["version"] == _VERSION else {}
