"""What a benchmark reports: rows of figures, the machine they are from, and the same as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from dgmn2cli.bench.implementations import Agreement, Implementation
from dgmn2cli.bench.timing import Rate, paired_ratio, quantile
from dgmn2cli.files import atomic_write, to_plain
from dgmn2cli.runtime import describe_device, machine_memory
from dgmn2cli.version import __version__

# extensions that decide how fast matrices are multiplied, as Linux names them, in the order they are shown
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured."""

    processor: str  # its model
    extensions: str  # instruction-set extensions, empty where the system does not tell
    capability: str  # the widest instruction set PyTorch's kernels use
    cores: int  # CPUs this process may run on
    memory: int  # bytes of main memory
    gpu: str  # its model; empty where the measurement ran on the CPU
    system: str  # operating system, architecture
    versions: str  # Python, PyTorch and this package
    threads: int  # that PyTorch uses
    load: float  # load average of the last minute when the measurement began
    time: str  # when that was, UTC


def describe_machine(device: torch.device) -> Machine:
    """This machine, now."""
    return Machine(
        processor=describe_device(torch.device("cpu")),
        extensions=_extensions(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=machine_memory(),
        gpu="" if device.type == "cpu" else describe_device(device),
        system=f"{platform.system()} {platform.machine()}",
        versions=f"Python {platform.python_version()}, PyTorch {torch.__version__}, dgmn2cli {__version__}",
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _extensions() -> str:
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    line = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    present = set(line.partition(":")[2].split())
    return " ".join(flag for flag in _FLAGS if flag in present)


@dataclass(frozen=True)
class Row:
    """One implementation in one comparison; None where a figure does not apply or could not be measured."""

    name: str  # the model, the op with the map it works on, or the image
    task: str  # `infer`, `train`, `forward`, `forward + backward`, `decode`
    implementation: str  # `dgmn2cli` or a baseline's name
    form: str  # `fused`, `trainer` or `published` (order of operations); for an op or decoder what runs
    backend: str  # op backend, or what does the unfolding or decoding
    # dtype, compiled: whether it runs under `torch.compile`
    dtype: str
    compiled: bool
    # batch, height, width: of the images, or of the op's map
    batch: int
    height: int
    width: int
    runs: int  # timings
    # median, p10, p90: seconds of one run
    median: float
    p10: float
    p90: float
    per_second: float  # images (or maps) a second
    times_as_fast: float  # how many times as fast `dgmn2cli` ran in the same rounds
    # multiply-accumulates of one run as published, all images of the batch: the same for every implementation
    macs: int | None = None
    # multiply-accumulates that really run; fewer where exact algebra saves some. What a backward pass computes anew is
    # not counted.
    executed: int | None = None
    parameters: int | None = None  # trained numbers
    gflops: float | None = None  # 10^9 floating-point operations executed a second, two per multiply-accumulate
    utilisation: float | None = None  # `gflops` over the best matrix rate of the same rounds, 0 to 1
    # the seconds that the published multiply-accumulates take at that rate, over the seconds taken; above `utilisation`
    # where fewer are executed, and then possibly above 1
    efficiency: float | None = None
    gbytes: float | None = None  # 10^9 bytes a second of the tensors that must be read and written
    peak: int | None = None  # bytes above the weights at the highest point of a run
    memory_share: float | None = None  # `dgmn2cli`'s peak over this one's

    @classmethod
    def of(
        cls,
        name: str,
        task: str,
        shape: tuple[int, int, int],
        used: Implementation,
        seconds: Sequence[float],
        own: Sequence[float],
    ) -> Row:
        """The row of an implementation's timings, `own` being `dgmn2cli`'s; `shape` is (batch, height, width)."""
        how = used.name, used.form, used.backend, used.dtype, used.compiled
        median, low, high = statistics.median(seconds), quantile(seconds, 0.1), quantile(seconds, 0.9)
        rate, ratio = shape[0] / median, paired_ratio(seconds, own)
        return cls(name, task, *how, *shape, len(seconds), median, low, high, rate, ratio)


@dataclass(frozen=True)
class PartRow:
    """One part of a whole: a stage on an image's way from file to mask, an operator or part of a profiled network."""

    name: str  # the model
    # `decode`, `preprocess`, `windows`, `stitch`, `argmax`, `encode`, their `sum`, and `wall`, the same work by the
    # ordinary path, untimed inside; or PyTorch's name of an operator, `backbone`, `neck`, `head`, or
    # `deform_attention`; of a stream `network`, `decode, save` and `pipeline`
    part: str
    seconds: float  # of one run (the median); of an operator in itself, operators it called excluded
    share: float  # of what `of` names, 0 to 1
    of: str  # `file to mask`, `all operators`, `all parts`, `the backbone` or `the bound`
    p95: float | None = None  # seconds that 95 % of the runs kept to
    calls: int | None = None  # in one run
    per_second: float | None = None  # images a second, of `sum` and `wall`

    @classmethod
    def timed(
        cls, name: str, part: str, seconds: Sequence[float], share: float, whole: str, *, rated: bool = True
    ) -> PartRow:
        """The row of a part's timings of one image; `whole` is what its share is of."""
        median, p95 = quantile(seconds, 0.5), quantile(seconds, 0.95)
        return cls(name, part, median, share, whole, p95, per_second=1 / median if rated else None)


AnyRow = Row | PartRow


@dataclass
class Report:
    """The result of one `benchmark` run; the measurements add to it while it runs."""

    bench: str  # one of `BENCHES`
    machine: Machine  # what it was measured on, and when
    rows: list[AnyRow] = field(default_factory=list)  # the figures
    # the machine's own best, measured in the same rounds; of several series the highest
    rates: list[Rate] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)  # the checks that came first
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    seconds: float = 0.0  # wall time of the whole benchmark
    # where the weights came from
    weights: str = "stand-ins drawn from the tensors' names; masks made with them mean nothing"

    def note(self, line: str) -> None:
        """Adds a note once."""
        if line not in self.notes:
            self.notes.append(line)

    def timed(self) -> list[Row]:
        """The rows that compare implementations."""
        return [row for row in self.rows if isinstance(row, Row)]


def write_csv(report: Report, path: Path) -> Path:
    """Writes one line per row, the machine's description repeated on each.

    Raises:
        ResourceError: the file cannot be written.
    """
    machine = {f"machine_{key}": value for key, value in to_plain(report.machine).items()}
    text = io.StringIO()
    if report.rows:
        columns = ["bench", *(item.name for item in dataclasses.fields(report.rows[0])), *machine]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"bench": report.bench, **to_plain(row), **machine} for row in report.rows)
    return atomic_write(path, text.getvalue())
