"""Part files: downloads under way, each written by one process only, and continued when their writer is gone.

`KEY@SOURCE.TAG.PID.RANDOM.part`: TAG is a hash of what the server called this version of its content, so that a rest is
only added to a beginning of the same content. A writer holds a lock on its part, which the kernel drops however the
process ends; the bytes of an abandoned part are *copied* into the new writer's own file, so that even where locks do
not work no two processes ever write one file. Whatever cannot be written is a `ResourceError`.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from threading import RLock

from dgmn2cli.errors import NetworkError
from dgmn2cli.files import HASH_BLOCK, abandoned, create_part, local_write_errors, sync_folder

OLD = 7 * 86400  # seconds after which an abandoned part of whatever entry is swept away
UNTAGGED = "-"  # the server did not say which version it sent


class Part:
    """A part file of this process: `size` bytes so far of the version `tag`.

    At the end of its `with` block it is published or removed; what a failure of the network, or whatever ends the
    process, left of a named version stays for the next run.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem, self._turn = folder, stem, RLock()
        with local_write_errors(folder / stem):
            folder.mkdir(parents=True, exist_ok=True)
        self._create(UNTAGGED)

    def _create(self, tag: str) -> None:
        with local_write_errors(self._folder / self._stem):
            self.path, descriptor = create_part(self._folder, f"{self._stem}.{tag}")
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self.tag, self.size = tag, 0

    def begin(self, tag: str = UNTAGGED) -> None:
        """Starts an empty file for the version `tag`, in place of what was received."""
        with self._turn:
            self._file.fileno()  # a ValueError once the part is closed
            self._close()
            self._create(tag)

    def take_over(self) -> None:
        """Copies what a process that is gone left of a named version, and removes it."""
        for old in self._folder.glob(f"{self._stem}.{'[0-9a-f]' * 12}.*.part"):
            with local_write_errors(old), abandoned(old) as file:
                if file is not None and self.size == 0:
                    self.begin(old.name.removeprefix(f"{self._stem}.")[:12])
                    while block := file.read(HASH_BLOCK):
                        self.append(block)
                    old.unlink(missing_ok=True)

    def append(self, block: bytes) -> None:
        """Writes `block` at the end."""
        view = memoryview(block)
        with self._turn, local_write_errors(self.path):
            while view:
                view = view[self._file.write(view) or 0 :]
        self.size += len(block)

    def publish(self, target: Path) -> None:
        """Renames the part to `target`, durably."""
        with local_write_errors(target):
            os.fsync(self._file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
            sync_folder(target.parent)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        passing = isinstance(error, NetworkError) or (error is not None and not isinstance(error, Exception))
        self._close(keep=passing and self.size > 0 and self.tag != UNTAGGED)

    def _close(self, keep: bool = False) -> None:
        with self._turn:  # a thread that is held by a server may still have it
            self._file.close()
        with suppress(OSError):
            if not keep:
                self.path.unlink(missing_ok=True)


def sweep(folder: Path, key: str) -> None:
    """Removes abandoned parts: all of the entry `key`, and whatever is older than a week."""
    with suppress(OSError):
        for path in folder.glob("*.part"):
            if path.name.startswith(f"{key}@") or time.time() - path.lstat().st_mtime > OLD:
                with abandoned(path) as file:
                    if file is not None:
                        path.unlink(missing_ok=True)
