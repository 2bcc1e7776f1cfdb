"""Owns the compiled CPU kernels: loading the extension and calling it."""

from __future__ import annotations


def refusal(device: str, dtype: str) -> str:
    """Why the compiled kernels cannot run on a device type and number format ("" for any), empty where they can."""
    return "the compiled extension is not built"
