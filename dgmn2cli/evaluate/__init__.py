"""The evaluation of a network over a data set: counted exactly, on one process or many, continued if killed."""

from __future__ import annotations

from dgmn2cli.evaluate.engine import Counted, counted_images
from dgmn2cli.evaluate.report import DataInfo, EvalReport
from dgmn2cli.evaluate.together import evaluate
from dgmn2cli.inference.plan import Protocol, Settings

__all__ = [
    "Counted",
    "DataInfo",
    "EvalReport",
    "Protocol",
    "Settings",
    "counted_images",
    "evaluate",
]
