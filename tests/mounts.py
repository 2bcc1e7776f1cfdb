"""Owns how tests get a small disk of their own: a shell script where it may mount."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

import pytest


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
