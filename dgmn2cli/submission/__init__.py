"""Owns the way to the Cityscapes test server."""

from __future__ import annotations

from dgmn2cli.submission.check import OFFICIAL, Expected, ZipReport, expected_of, require_valid, validate_zip
from dgmn2cli.submission.make import SubmissionReport, kept_predictions, make_submission, open_test, write_zip

__all__ = [
    "OFFICIAL",
    "Expected",
    "SubmissionReport",
    "ZipReport",
    "expected_of",
    "kept_predictions",
    "make_submission",
    "open_test",
    "require_valid",
    "validate_zip",
    "write_zip",
]
