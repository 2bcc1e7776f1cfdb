"""Reports read back from disk, for whoever compares or verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.analysis.measure import RECORDS, ImageRecord, TemperatureCounts
from dgmn2cli.evaluate.report import DataInfo
from dgmn2cli.files import read_text
from dgmn2cli.inference.plan import Protocol
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.validation import parse_json

SIZE_LIMIT = 1 << 30  # bytes of a report
_RUN, _DATA = TypeAdapter(RunInfo), TypeAdapter(DataInfo)
_PROTOCOL: TypeAdapter[Protocol | None] = TypeAdapter(Protocol | None)
_WHAT, _HINT = "cannot read the report", "Name a report that `dgmn2 eval --report FILE` wrote."


@dataclass(frozen=True, eq=False)
class ReportFile:
    """A report on disk."""

    path: Path  # the file
    plain: dict[str, Any]  # its JSON
    # run, protocol, data: what it says was evaluated
    run: RunInfo
    protocol: Protocol | None
    data: DataInfo
    seed: int  # with which the sample was drawn
    # classes, categories: names
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    records: tuple[ImageRecord, ...]  # of every image
    temperatures: TemperatureCounts  # see `TemperatureCounts`

    @property
    def matrices(self) -> np.ndarray:
        """(n, N, N + 1) int64."""
        return np.stack([record.matrix(len(self.classes)) for record in self.records])


def read_report(path: Path) -> ReportFile:
    """The report in a file.

    Raises:
        DataError: it is missing, too large or no text.
        ConfigError: it is no report of one evaluation, or one that an earlier version wrote.
        ResourceError: it may not be read.
    """
    why, plain = "", None
    try:
        plain, repeated = parse_json(read_text(path, SIZE_LIMIT, _WHAT, kind=DataError, hint=_HINT))
        why = "; ".join(map(str, repeated[:3]))
    except ValueError as error:
        why = str(error)
    if not why and isinstance(plain, dict) and "reports" in plain:
        why = "it holds several models' reports (`eval --all`)"
    if not why and not (isinstance(plain, dict) and isinstance(plain.get("certificate"), dict)):
        why = "it has no certificate: it is no report of an evaluation, or an earlier version's"
    if not why:
        try:
            return _parsed(path, plain)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            why = f"its certificate is missing or broken ({type(error).__name__}: {str(error)[:80]})"
    raise ConfigError(_WHAT, where=path, why=why, hint=_HINT)


def _parsed(path: Path, plain: Any) -> ReportFile:
    certificate, temperatures = plain["certificate"], TemperatureCounts()
    if certificate["temperatures"] is not None:
        temperatures = TemperatureCounts.of_plain(certificate["temperatures"])
    report = ReportFile(
        path=path,
        plain=plain,
        run=_RUN.validate_python(plain["run"]),
        protocol=_PROTOCOL.validate_python(plain["protocol"]),
        data=_DATA.validate_python(plain["data"]),
        seed=int(certificate["seed"]),
        classes=tuple(map(str, certificate["classes"])),
        categories=tuple(map(str, certificate["categories"])),
        records=tuple(RECORDS.validate_python(certificate["records"])),
        temperatures=temperatures,
    )
    if not report.records or report.matrices.min() < 0 or report.seed < 0:
        raise ValueError("no images, or counts below 0")
    if not all(isinstance(entry, dict) for entry in certificate["sample"]):
        raise ValueError("its sample is no list of images")
    return report
