"""Owns what a benchmark reports: rows of figures, the machine they are from, and the same as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dgmn2cli.bench.machine import Machine
from dgmn2cli.bench.rates import Rate
from dgmn2cli.files import atomic_write, to_plain


@dataclass(frozen=True)
class Row:
    """One side of one comparison; None where a figure does not apply or could not be measured.

    Attributes:
        subject: the model, or the op with the map it works on.
        task: `infer`, `train`, `forward`, `forward + backward`.
        side: `dgmn2cli` or a baseline's name.
        form: `fused` or `published` (order of operations); for an op what runs.
        backend: op backend, or what does the unfolding.
        dtype: number format.
        compiled: under `torch.compile`.
        batch, height, width: of the pictures, or of the op's map.
        parameters: trained numbers.
        macs: multiply-accumulates of one run as published, all pictures of the batch: the same for every side.
        executed: multiply-accumulates that this side really executes; fewer where exact algebra saves some. What a
            backward pass computes anew is not counted.
        runs: timings.
        median, p10, p90: seconds of one run.
        per_second: pictures (or maps) a second.
        peak: bytes above the weights at the highest point of a run.
        gflops: 10^9 floating-point operations executed a second, two per multiply-accumulate.
        utilisation: `gflops` over the best matrix rate of the same rounds, 0 to 1.
        efficiency: the seconds that the published multiply-accumulates take at that rate, over the seconds taken; above
            `utilisation` where fewer are executed, and then possibly above 1.
        gbytes: 10^9 bytes a second of the tensors that must be read and written.
        times_as_fast: how many times as fast `dgmn2cli` ran in the same rounds.
        memory_share: `dgmn2cli`'s peak over this side's.
    """

    subject: str
    task: str
    side: str
    form: str
    backend: str
    dtype: str
    compiled: bool
    batch: int
    height: int
    width: int
    runs: int
    median: float
    p10: float
    p90: float
    per_second: float
    times_as_fast: float
    macs: int | None = None
    gflops: float | None = None
    parameters: int | None = None
    peak: int | None = None
    memory_share: float | None = None
    efficiency: float | None = None
    utilisation: float | None = None
    executed: int | None = None
    gbytes: float | None = None


@dataclass(frozen=True)
class StageRow:
    """One stage on a picture's way from file to mask.

    Attributes:
        subject: the model.
        stage: `decode`, `preprocess`, `windows`, `stitch`, `argmax`, `encode`; then `sum`, and `wall`, the
            same work by the ordinary path, untimed inside.
        p50, p95: seconds a picture.
        share: of the sum's p50, 0 to 1.
        per_second: pictures a second, of `sum` and `wall`.
    """

    subject: str
    stage: str
    p50: float
    p95: float
    share: float
    per_second: float | None = None


@dataclass(frozen=True)
class OperatorRow:
    """One operator in a profile.

    Attributes:
        subject: the model.
        operator: PyTorch's name of it.
        calls: how often it ran.
        seconds: in itself, operators it called excluded.
        share: of all operators' seconds, 0 to 1.
    """

    subject: str
    operator: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class PartRow:
    """One part of a network in a profile.

    Attributes:
        subject: the model.
        part: `backbone`, `neck`, `head`, or `deform_attention`.
        seconds: of one run.
        share: of what `of` names, 0 to 1.
        of: `all parts` or `the backbone`.
    """

    subject: str
    part: str
    seconds: float
    share: float
    of: str


@dataclass(frozen=True)
class Agreement:
    """That two sides gave the same answer before they were timed.

    Attributes:
        subject: model or op.
        side, dtype: the side compared with `dgmn2cli`.
        what: `logits`, `gradients`, `output`.
        difference: how far they lie apart.
        limit: how far they may.
        measure: what `difference` is: `largest absolute` or `relative root mean square`.
    """

    subject: str
    side: str
    dtype: str
    what: str
    difference: float
    limit: float
    measure: str


AnyRow = Row | StageRow | OperatorRow | PartRow


@dataclass(frozen=True)
class Report:
    """The result of one `benchmark` run.

    Attributes:
        bench: `infer`, `train`, `op`, `e2e` or `profile`.
        weights: where the weights came from.
        machine: where and when.
        rows: the figures.
        rates: the machine's own best, measured in the same rounds; of several series the highest.
        agreements: the checks that came first.
        notes: what was left out, and why.
        seconds: wall time of the whole benchmark.
    """

    bench: str
    machine: Machine
    rows: Sequence[AnyRow]
    rates: Sequence[Rate] = ()
    agreements: Sequence[Agreement] = ()
    notes: Sequence[str] = ()
    seconds: float = 0.0
    weights: str = "stand-ins drawn from the tensors' names; masks made with them mean nothing"


@dataclass
class Findings:
    """What a benchmark gathers while it runs; becomes a `Report`."""

    rows: list[AnyRow] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Adds a note once."""
        if line not in self.notes:
            self.notes.append(line)


def to_csv(report: Report) -> str:
    """One line per row, the machine's description repeated on each."""
    machine = {f"machine_{key}": value for key, value in to_plain(report.machine).items()}
    lines = [{"bench": report.bench, **to_plain(row), **machine} for row in report.rows]
    text = io.StringIO()
    if report.rows:
        columns = ["bench", *(item.name for item in dataclasses.fields(report.rows[0])), *machine]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def write_csv(report: Report, path: Path) -> Path:
    """Writes `to_csv(report)` whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    return atomic_write(path, to_csv(report))
