"""Owns the evaluation of a network over a data set: counted exactly, on one process or many, continued if killed."""

from __future__ import annotations

from dgmn2cli.evaluate.engine import Counted, Quiet, Watch, counted_pictures, evaluate
from dgmn2cli.evaluate.report import DataInfo, EvalReport, Protocol
from dgmn2cli.inference.plan import Settings

__all__ = [
    "Counted",
    "DataInfo",
    "EvalReport",
    "Protocol",
    "Quiet",
    "Settings",
    "Watch",
    "counted_pictures",
    "evaluate",
]
