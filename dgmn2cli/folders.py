"""Folders that appear whole or not at all, and temporary ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgmn2cli.files import clear_abandoned, create_part, local_write_errors, sync_folder, temporary_stem


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder that gets the name `path` when the block ends well, and is removed when it does not.

    It is locked like a file of `atomic_write`: what a killed process left is removed by the next writer of `path`.

    Args:
        path: absent, or an empty folder; the folder above it is created. The block writes into the folder it is given,
            which lies beside `path`.
        overwrite: it may be any folder, which is gone once the new one is in its place.

    Raises:
        ResourceError: something is in its place, or it cannot be written.
    """
    with _locked_folder(path) as part:
        yield part
        with local_write_errors(path):
            sync_folder(part)
            _exchange(part, path) if overwrite and path.is_dir() else part.replace(path)
            sync_folder(path.parent)


def _exchange(new: Path, old: Path) -> None:
    """Two folders get each other's names, at once where system and file system can do that."""
    rename, here = getattr(ctypes.CDLL(None), "renameat2", None), -100  # renameat2(2): AT_FDCWD
    if rename is None or rename(here, os.fsencode(new), here, os.fsencode(old), 2) != 0:  # RENAME_EXCHANGE
        aside = old.rename(f"{new}.old")
        new.rename(old)
        aside.rename(new)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A new folder of the user's own among the system's temporary files, removed when the block ends.

    What a killed process left is removed by whoever next asks for a folder of that `name`.

    Raises:
        ResourceError: it cannot be made.
    """
    with _locked_folder(Path(tempfile.gettempdir(), name)) as folder:
        folder.chmod(0o700)
        yield folder


@contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, removed when the block ends unless it has another name by then."""
    with local_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path)
        part, descriptor = create_part(path.parent, temporary_stem(path), as_folder=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(descriptor)
