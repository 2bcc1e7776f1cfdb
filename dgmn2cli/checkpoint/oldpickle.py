"""Owns the few extra names the restricted pickle reader may meet in old checkpoints: numpy scalars inside `meta`.

Each name is mapped to a stand-in of ours that can only make a number, so that no numpy code is reached from a file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_FORMATS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}


class ScalarType:
    """Stands for `numpy.dtype`: knows only the name of a plain number type and its byte order."""

    def __init__(self, name: str, _align: bool = False, _copy: bool = True) -> None:
        if name not in _FORMATS:
            raise ValueError(f"the scalar type {name!r} is not a plain number")
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = "<" if state[1] == "|" else state[1]


def scalar(kind: ScalarType, data: bytes) -> float | int | bool:
    """Stands for numpy's scalar constructor: a Python number from its bytes."""
    if not isinstance(kind, ScalarType) or not isinstance(data, bytes):
        raise TypeError("a numpy scalar needs a plain number type and its bytes")
    value: float | int | bool = struct.unpack(kind.order + _FORMATS[kind.name], data)[0]
    return value


def latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 pickles carry bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the encoding {encoding!r} is not used by checkpoints")
    return text.encode("latin-1")


SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (ScalarType, "numpy.dtype"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    (latin1, "_codecs.encode"),
]
