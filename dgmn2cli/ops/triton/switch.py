"""Owns the one setting of Triton that both its backend and its kernels' launches read; imports neither, nor Triton."""

from __future__ import annotations

import os


def interpreted() -> bool:
    """True where TRITON_INTERPRET=1 asks Triton to run kernels on the CPU, slowly, to check them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
