"""What a hostile file would call: it leaves a trace, so that an execution is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TRACE: list[Path] = []


def trace_to(path: Path) -> None:
    """Says where a trace is to be left."""
    _TRACE[:] = [path]


def fire(*arguments: Any) -> str:
    """Leaves the trace."""
    for path in _TRACE:
        path.write_text("executed")
    return "fired"


class Fire:
    """Leaves the trace when an instance is made."""

    def __new__(cls, *arguments: Any) -> Fire:
        fire()
        return super().__new__(cls)
