"""DGMN2 semantic segmentation: 16 published models, one command line, one Python API.

Names are imported on first use, so that `import dgmn2cli` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dgmn2cli.version import __version__

__all__ = ["Prediction", "Segmenter", "__version__", "build_model", "evaluate", "export", "load", "train", "zoo"]

if TYPE_CHECKING:
    from dgmn2cli import evaluate, export, zoo
    from dgmn2cli.inference.load import build_model, load
    from dgmn2cli.inference.prediction import Prediction
    from dgmn2cli.inference.segmenter import Segmenter
    from dgmn2cli.training.api import train

_HOMES = {
    "build_model": "dgmn2cli.inference.load",
    "load": "dgmn2cli.inference.load",
    "train": "dgmn2cli.training.api",
    "Segmenter": "dgmn2cli.inference.segmenter",
    "Prediction": "dgmn2cli.inference.prediction",
}
_ROOMS = ("evaluate", "export", "zoo")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"dgmn2cli.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dgmn2cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
