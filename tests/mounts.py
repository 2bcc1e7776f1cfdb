"""File systems that only one process sees: for a shell script, or for this process; no privilege is needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


def in_own_mounts(
    script: str, *arguments: str, env: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in a private mount namespace; skips the test where that is not permitted."""
    unshare = shutil.which("unshare")
    probe = [unshare or "false", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    if not unshare or subprocess.run(probe, capture_output=True, timeout=20).returncode:
        pytest.skip("mounting in a private namespace is not permitted here")
    line = [unshare, "-Urm", "sh", "-ec", script, "sh", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=env, timeout=timeout)


def go_private() -> None:
    """From here on the mounts of this process (which must have one thread only) are its own.

    Raises:
        OSError: that is not permitted here.
    """
    user, group = os.getuid(), os.getgid()
    _check(_LIBC.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)
    _mount(None, "/", None, _RECURSIVE | _PRIVATE, None)


def mount_small(folder: Path, size: int, files: int = 0) -> None:
    """Mounts an empty file system of `size` bytes (whole pages) on `folder`, for at most so many files (0: any)."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("none", str(folder), "tmpfs", 0, f"size={max(size, 4096)}" + (f",nr_inodes={files}" if files else ""))


def make_read_only(folder: Path) -> None:
    """Makes what is in `folder` read-only."""
    _mount(str(folder), str(folder), None, _BIND, None)
    _mount(None, str(folder), None, _REMOUNT | _BIND | _READ_ONLY, None)


def permitted() -> bool:
    """Whether a process may do this here; found out in one of its own."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            go_private()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(process, 0)[1] == 0


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    _check(_LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
