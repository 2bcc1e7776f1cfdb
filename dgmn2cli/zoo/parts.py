"""Part files: downloads under way, each written by one process only, and continued when their writer is gone.

`KEY@SOURCE.TAG.PID.RANDOM.part`: TAG is a hash of what the server called this version of its content, so that a rest is
only added to a beginning of the same content. A writer holds a lock on its part, which the kernel drops however the
process ends; the bytes of an abandoned part are *copied* into the new writer's own file, so that even where locks do
not work no two processes ever write one file. Whatever cannot be written is a `ResourceError`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from dgmn2cli.errors import ResourceError
from dgmn2cli.files import HASH_BLOCK, abandoned, create_part, local_write_errors, sync_folder

OLD = 7 * 86400  # seconds after which an abandoned part of whatever entry is swept away
UNTAGGED = "-"  # the server did not say which version it sent


class Part:
    """A part file of this process, open for appending: `size` bytes so far of the version `tag`.

    It begins with the longest abandoned part of `stem` (which entry from which source); the others are removed.
    `continued` says that its content came in more than one piece, so that the pieces may not belong together.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.size, self.tag, self.continued, self._stem = 0, UNTAGGED, False, stem
        with local_write_errors(folder / stem):
            folder.mkdir(parents=True, exist_ok=True)
            self.path, descriptor = create_part(folder, f"{stem}.{UNTAGGED}")
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            for old in sorted(folder.glob("*.part"), key=_size, reverse=True):
                if old.name.startswith(f"{stem}.") and old != self.path:
                    self._take_over(old)
        except BaseException:
            self.discard()
            raise

    def _take_over(self, old: Path) -> None:
        """Copies `old` if this part is empty, and removes it; not while its writer lives."""
        with abandoned(old) as file:
            if file is None:
                return
            if self.size == 0:
                while block := file.read(HASH_BLOCK):
                    self.append(block)
                tag = re.match(r"\.([0-9a-f]{12})\.", old.name.removeprefix(self._stem))
                self.mark(tag[1] if tag else UNTAGGED)
                self.continued = True
            old.unlink(missing_ok=True)

    def mark(self, tag: str) -> None:
        """Says in the file's name which version of the content this is the beginning of."""
        target = self.path.with_name(self.path.name.replace(f"{self._stem}.{self.tag}.", f"{self._stem}.{tag}.", 1))
        with local_write_errors(self.path):
            self.path.rename(target)
        self.path, self.tag = target, tag

    def append(self, block: bytes) -> None:
        """Writes `block` at the end."""
        view = memoryview(block)
        try:
            with local_write_errors(self.path):
                while view:
                    view = view[self._file.write(view) or 0 :]
        except ResourceError:
            self.discard()
            raise
        self.size += len(block)

    def restart(self) -> None:
        """Forgets what was received."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.continued = 0, False

    def sync(self) -> None:
        """Sees to it that what was written is on the disk."""
        with local_write_errors(self.path):
            os.fsync(self._file.fileno())

    def sha256(self) -> str:
        """The content's hash, read back from the file itself."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def publish(self, target: Path) -> None:
        """Renames the part to `target` and makes the rename durable; the part is used up."""
        with local_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
            sync_folder(target.parent)
        self.discard()

    def keep(self) -> None:
        """Leaves the part for the next run."""
        self._file.close()

    def discard(self) -> None:
        """Removes the part, if it still is one."""
        self._file.close()
        with suppress(OSError):
            self.path.unlink()


def sweep(folder: Path, key: str) -> None:
    """Removes abandoned parts: all of the entry `key`, and whatever is older than a week."""
    with suppress(OSError):
        for path in sorted(folder.glob("*.part")):
            if path.name.startswith(f"{key}@") or time.time() - path.lstat().st_mtime > OLD:
                with abandoned(path) as file:
                    if file is not None:
                        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
