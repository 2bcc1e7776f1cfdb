"""Owns the evaluation of a network over a data set: counted exactly, on one process or many, continued if killed."""

from __future__ import annotations

from dgmn2cli.evaluate.engine import Counted, Quiet, Watch, counted_pictures, evaluate
from dgmn2cli.evaluate.report import DataInfo, EvalReport, EvalSettings, Protocol

__all__ = [
    "Counted",
    "DataInfo",
    "EvalReport",
    "EvalSettings",
    "Protocol",
    "Quiet",
    "Watch",
    "counted_pictures",
    "evaluate",
]
