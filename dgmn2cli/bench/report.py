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
from dgmn2cli.runtime import describe_device
from dgmn2cli.version import __version__

# extensions that decide how fast matrices are multiplied, as Linux names them, in the order they are shown
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured.

    Attributes:
        processor, gpu: their models; no GPU where the measurement ran on the CPU.
        extensions: instruction-set extensions, empty where the system does not tell.
        capability: the widest instruction set PyTorch's kernels use.
        cores, threads: CPUs this process may run on, and threads that PyTorch uses.
        memory: bytes of main memory.
        system, versions: operating system, architecture; Python, PyTorch and this package.
        load: load average of the last minute when the measurement began.
        time: when that was, UTC.
    """

    processor: str
    extensions: str
    capability: str
    cores: int
    memory: int
    gpu: str
    system: str
    versions: str
    threads: int
    load: float
    time: str


def describe_machine(device: torch.device) -> Machine:
    """This machine, now."""
    return Machine(
        processor=describe_device(torch.device("cpu")),
        extensions=_extensions(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
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
    """One implementation in one comparison; None where a figure does not apply or could not be measured.

    Attributes:
        name: the model, the op with the map it works on, or the image.
        task: `infer`, `train`, `forward`, `forward + backward`, `decode`.
        implementation: `dgmn2cli` or a baseline's name.
        form: `fused` or `published` (order of operations); for an op or decoder what runs.
        backend: op backend, or what does the unfolding or decoding.
        dtype, compiled: whether it runs under `torch.compile`.
        batch, height, width: of the images, or of the op's map.
        runs: timings.
        median, p10, p90: seconds of one run.
        per_second: images (or maps) a second.
        times_as_fast: how many times as fast `dgmn2cli` ran in the same rounds.
        macs: multiply-accumulates of one run as published, all images of the batch: the same for every implementation.
        executed: multiply-accumulates that really run; fewer where exact algebra saves some. What a backward pass
            computes anew is not counted.
        parameters: trained numbers.
        gflops: 10^9 floating-point operations executed a second, two per multiply-accumulate.
        utilisation: `gflops` over the best matrix rate of the same rounds, 0 to 1.
        efficiency: the seconds that the published multiply-accumulates take at that rate, over the seconds taken; above
            `utilisation` where fewer are executed, and then possibly above 1.
        gbytes: 10^9 bytes a second of the tensors that must be read and written.
        peak: bytes above the weights at the highest point of a run.
        memory_share: `dgmn2cli`'s peak over this one's.
    """

    name: str
    task: str
    implementation: str
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
    executed: int | None = None
    parameters: int | None = None
    gflops: float | None = None
    utilisation: float | None = None
    efficiency: float | None = None
    gbytes: float | None = None
    peak: int | None = None
    memory_share: float | None = None

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
    """One part of a whole: a stage on an image's way from file to mask, or an operator or part of a profiled network.

    Attributes:
        name: the model.
        part: `decode`, `preprocess`, `windows`, `stitch`, `argmax`, `encode`, their `sum`, and `wall`, the same work by
            the ordinary path, untimed inside; or PyTorch's name of an operator, `backbone`, `neck`, `head`, or
            `deform_attention`; of a stream `network`, `decode, save` and `pipeline`.
        seconds: of one run (the median); of an operator in itself, operators it called excluded.
        share: of what `of` names, 0 to 1.
        of: `file to mask`, `all operators`, `all parts`, `the backbone` or `the bound`.
        p95: seconds that 95 % of the runs kept to.
        calls: in one run.
        per_second: images a second, of `sum` and `wall`.
    """

    name: str
    part: str
    seconds: float
    share: float
    of: str
    p95: float | None = None
    calls: int | None = None
    per_second: float | None = None


AnyRow = Row | PartRow


@dataclass
class Report:
    """The result of one `benchmark` run; the measurements add to it while it runs.

    Attributes:
        bench: one of `BENCHES`.
        machine: what it was measured on, and when.
        rows: the figures.
        rates: the machine's own best, measured in the same rounds; of several series the highest.
        agreements: the checks that came first.
        notes: what was left out, and why.
        seconds: wall time of the whole benchmark.
        weights: where the weights came from.
    """

    bench: str
    machine: Machine
    rows: list[AnyRow] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
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
