"""Owns the negative controls: the program weakened on purpose, against which the same checks must find violations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import torch

from dgmn2cli.model import formats, weights
from dgmn2cli.zoo import cache as caching
from dgmn2cli.zoo import fetch as fetching


@dataclass(frozen=True)
class Control:
    """One weakening.

    Attributes:
        kind: the faults that must show it.
        count: how many of them.
        weaken: changes the running program.
    """

    kind: str
    count: int
    weaken: Callable[[], None]


def _replace(place: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(place, name, value)


def _without_hash() -> None:
    real = weights.read_checkpoint
    from faults import models

    def read(path: Any, *, sha256: str | None = None) -> Any:
        return real(path)

    models.read_checkpoint = read  # type: ignore[assignment]


def _executing() -> None:
    real = torch.load
    torch.load = lambda *args, **settings: real(*args, **{**settings, "weights_only": False})


def _lenient_images() -> None:
    from faults import images as faults

    faults.read_image = lambda path: cv2.imread(str(path))  # type: ignore[assignment]


CONTROLS = {
    "no hash compared at load": Control("model file, hash known", 200, _without_hash),
    "cached files not hashed again": Control(
        "cached file and its note", 100, _replace(caching, "hash_file", lambda path, advance=None: path.stem)
    ),
    "archive checksums not verified": Control(
        "model file, hash not known", 400, _replace(formats, "_verify_archive", lambda *_: None)
    ),
    "weights_only=False": Control("hostile pickle", 150, _executing),
    "contents not made plain": Control(
        "hostile pickle", 150, _replace(formats, "plain", lambda content, size: content)
    ),
    "no check for NaN": Control("wrong tensors", 100, _replace(weights, "check_finite", lambda *_: None)),
    "keys and shapes not matched": Control("wrong tensors", 100, _replace(weights, "_match", lambda *_: None)),
    "lenient image decoding": Control("damaged picture", 200, _lenient_images),
    "published without verification": Control(
        "misbehaving server", 150, _replace(fetching, "_check", lambda entry, source, part, *rest: part.seal())
    ),
}
