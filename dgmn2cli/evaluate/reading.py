"""Reports read back from disk, for whoever compares or verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.analysis.measure import TemperatureCounts
from dgmn2cli.evaluate.certificate import Certificate
from dgmn2cli.evaluate.report import DataInfo
from dgmn2cli.files import read_text
from dgmn2cli.inference.plan import Protocol
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.validation import parse_json

SIZE_LIMIT = 1 << 30  # bytes of a report
_WHAT, _HINT = "cannot read the report", "Name a report that `dgmn2 eval --report FILE` wrote."


@dataclass(frozen=True, eq=False)
class ReportFile:
    """A report on disk."""

    path: Path  # the file
    plain: dict[str, Any]  # its JSON
    # run, protocol, data, certificate: what it says was evaluated
    run: RunInfo
    protocol: Protocol | None
    data: DataInfo
    certificate: Certificate

    @cached_property
    def temperatures(self) -> TemperatureCounts:
        """The certificate's."""
        return TemperatureCounts.of_plain(self.certificate.temperatures)

    @cached_property
    def matrices(self) -> np.ndarray:
        """(n, N, N + 1) int64, of its records."""
        return np.stack([record.matrix(len(self.certificate.classes)) for record in self.certificate.records])


_REPORT = TypeAdapter(ReportFile)


def read_report(path: Path) -> ReportFile:
    """The report in a file.

    Raises:
        DataError: it is missing, too large or no text.
        ConfigError: it is no report of one evaluation, or one that an earlier version wrote.
        ResourceError: it may not be read.
    """
    text = read_text(path, SIZE_LIMIT, _WHAT, kind=DataError, hint=_HINT)
    try:
        plain, repeated = parse_json(text)
        why = "; ".join(map(str, repeated[:3]))
    except ValueError as error:
        plain, why = None, str(error)
    if isinstance(plain, dict) and "reports" in plain:
        why = why or "it holds several models' reports (`eval --all`)"
    elif not isinstance(plain, dict) or not isinstance(plain.get("certificate"), dict):
        why = why or "it has no certificate: it is no report of an evaluation, or an earlier version's"
    if not why:
        try:
            return _parsed(path, plain)
        except ValueError as error:
            lines = str(error).splitlines()  # pydantic's second line is the place
            why = f"its certificate is missing or broken ({', '.join(lines[1:2] or lines[:1])[:80]})"
    raise ConfigError(_WHAT, where=path, why=why, hint=_HINT)


def _parsed(path: Path, plain: dict[str, Any]) -> ReportFile:
    found = _REPORT.validate_python({**plain, "path": path, "plain": plain})
    if not found.certificate.records or found.certificate.seed < 0:
        raise ValueError("no images, or a seed below 0")
    _ = found.temperatures  # a ValueError where they are broken
    if found.matrices.min() < 0:
        raise ValueError("counts below 0")
    return found
